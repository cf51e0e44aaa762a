"""Whole training steps of a detector supernet: both phases and both optimisers, each fused mode as the plain sum.

In double precision: in single precision two proposals of nearly equal scores change places after a few steps whatever
computes the layers, and the runs part.
"""

from __future__ import annotations

import copy
from itertools import cycle, islice

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from hitdet_nni.config.skeleton import COMPONENTS, Skeleton
from hitdet_nni.data.loaders import search_loaders
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.nas.evaluator import detection_loss
from hitdet_nni.nas.fused import FUSED_MODES
from hitdet_nni.nas.fused.fixed import FusedBlock
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer, set_activations
from hitdet_nni.nas.strategy import ColumnSparseDARTS
from hitdet_nni.operators.blocks import InvertedResidual

STEPS = 10


def trained(reference, batches, activations):
    """Losses of both phases of every step, and the architecture parameters at the end."""
    model = copy.deepcopy(reference).train()
    set_activations(model, activations)
    layers = [module for module in model.modules() if isinstance(module, ColumnSparseMixedLayer)]
    alphas = [layer.alpha for layer in layers]
    architecture = {id(alpha) for alpha in alphas}
    weights = [parameter for parameter in model.parameters() if id(parameter) not in architecture]
    phases = [
        (torch.optim.Adam(alphas, 0.02), alphas, weights),
        (torch.optim.SGD(weights, 0.005, momentum=0.9), weights, alphas),
    ]
    losses = []
    for step, pair in enumerate(batches):
        for (optimizer, moved, frozen), batch in zip(phases, pair, strict=True):
            for parameters, wanted in ((moved, True), (frozen, False)):
                for parameter in parameters:
                    parameter.requires_grad_(wanted)
            torch.manual_seed(step)  # the sampler draws the same proposals and RoIs
            loss = detection_loss(model.detector, copy.deepcopy(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return torch.stack(losses), torch.cat([alpha.detach() for alpha in alphas])


def in_double_precision(batch):
    """The batch with images and boxes of the type that everything is computed in."""
    images = [image.double() for image in batch["inputs"]]
    for sample in batch["data_samples"]:
        sample.gt_instances.bboxes.tensor = sample.gt_instances.bboxes.tensor.double()
    return {**batch, "inputs": images}


@pytest.fixture(scope="module", autouse=True)
def _double_precision():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def supernet(_double_precision, tiny, tiny_settings, tiny_data, published):
    """A mutated supernet, and ten pairs of batches for its phases."""
    skeleton = Skeleton(**{**tiny.model_dump(), "roi_samples": 8})
    loaders = search_loaders(tiny_data, tiny_settings.data.model_copy(update={"batch_size": 2}), skeleton, 0)
    weights_batches, alphas_batches = (
        [in_double_precision(copy.deepcopy(batch)) for batch in islice(cycle(loader), STEPS)] for loader in loaders[:2]
    )
    torch.manual_seed(0)
    space = HitDetectorSpace(skeleton, {part: published[part][::4] for part in COMPONENTS}, len(tiny_data.classes))
    ColumnSparseDARTS().mutate_model(space)
    return space, list(zip(alphas_batches, weights_batches, strict=True))


@pytest.fixture(scope="module")
def screening(_double_precision, supernet, tiny_data):
    """The same for a supernet whose backbone and head are fixed at one operator."""
    space, batches = supernet
    candidates = {"backbone": ("ir_k3_d1_e3",), "neck": ("conv_k5_d2", "ir_k5_d3_e1"), "head": ("ir_k3_d1_e3",)}
    torch.manual_seed(0)
    screened = HitDetectorSpace(space.skeleton, candidates, len(tiny_data.classes))
    ColumnSparseDARTS().mutate_model(screened)
    return screened, batches[:2]


def test_fixed_layers_are_fused_too(screening):
    expected, results = (trained(*screening, activations) for activations in ("all", "fused-low"))
    for ours, theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_fixed_layers_go_back_to_their_own_forward_pass(screening):
    space, _ = copy.deepcopy(screening)
    names = list(space.state_dict())
    places = {name: module for name, module in space.named_modules() if type(module) is InvertedResidual}
    blocks = list(places.values())
    parameters = dict(space.named_parameters())
    fixed = [block for block in blocks if block.expand.conv.weight.shape[0] == 3 * block.expand.conv.weight.shape[1]]
    set_activations(space, "fused-low")
    now = [space.get_submodule(name) for name in places]
    assert [isinstance(module, FusedBlock) for module in now] == [block in fixed for block in blocks]
    assert [module.replaced if isinstance(module, FusedBlock) else module for module in now] == blocks
    assert list(space.state_dict()) == names
    of_space, of_copy = (
        [module for module in each.modules() if isinstance(module, FusedBlock)]
        for each in (space, copy.deepcopy(space))
    )
    assert len(of_copy) == len(of_space) == len(fixed)
    for module, original in zip(of_copy, of_space, strict=True):
        assert module.replaced is not original.replaced  # not the block that was copied
        pairs = zip(module.replaced.parameters(), module.parameters(), strict=True)
        assert all(one is two for one, two in pairs)
    space.eval()
    set_activations(space, "checkpoint")
    assert [space.get_submodule(name) for name in places] == blocks
    assert not any(block.training for block in blocks)
    assert list(space.state_dict()) == names
    assert all(parameter is parameters[name] for name, parameter in space.named_parameters())


def test_fixed_layers_of_tensors_without_data(screening):
    """Their own forward pass runs, whose operators state shapes."""
    space, _ = copy.deepcopy(screening)
    set_activations(space, "fused-low")
    block = next(module for module in space.modules() if isinstance(module, FusedBlock))
    channels = block.expand.conv.in_channels
    with FakeTensorMode(allow_non_fake_inputs=True):
        y = block(torch.empty(2, channels, 8, 8))
    assert type(y) is FakeTensor
    assert y.shape[1] == block.project.conv.out_channels


@pytest.fixture(scope="module")
def full(supernet):
    return trained(*supernet, "all")


@pytest.mark.parametrize(
    "activations", [mode if mode == "fused-low" else pytest.param(mode, marks=pytest.mark.slow) for mode in FUSED_MODES]
)
def test_ten_steps(activations, supernet, full):
    losses, alphas = trained(*supernet, activations)
    torch.testing.assert_close(losses, full[0], rtol=1e-9, atol=0)
    moved = full[1].abs().max()
    assert moved > 0.05  # ten steps of Adam have changed the architecture
    torch.testing.assert_close(alphas, full[1], rtol=0, atol=1e-9)
    assert losses[-2:].mean() < losses[:2].mean()
