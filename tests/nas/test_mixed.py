"""The mixed layer: NNI's own where nothing is removed, and what removal does."""

from __future__ import annotations

import copy

import pytest
import torch
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedLayer
from nni.nas.strategy import DARTS
from torch import nn

from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.loaders import search_loaders
from hitdet_nni.engine.precision import Precision
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.model.level_norm import LevelBatchNorm2d, select_level, separate_statistics
from hitdet_nni.model.searchable import searched_layer
from hitdet_nni.nas.evaluator import detection_loss
from hitdet_nni.nas.fused import mixed_layer
from hitdet_nni.nas.mixed import (
    ACTIVATION_MODES,
    ColumnSparseMixedLayer,
    scale_candidate_gradients,
    set_activations,
)
from hitdet_nni.nas.strategy import ColumnSparseDARTS

NAMES = ["ir_k3_d1_e3", "sep_k3_d1", "conv_k3_d2", "sep_k5_d1"]
ALPHA = [0.3, -0.2, 0.9, 0.1]
LEFT = ["ir_k3_d1_e3", "sep_k5_d1"]


class OneLayer(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = searched_layer("backbone", 0, NAMES, 4, 4, 1)


def mixed(strategy=ColumnSparseDARTS, seed=0):
    torch.manual_seed(seed)
    layer = strategy().mutate_model(OneLayer()).layer
    layer._arch_alpha.data.copy_(torch.tensor(ALPHA))
    return layer


@pytest.fixture
def x():
    torch.manual_seed(5)
    return torch.randn(2, 4, 6, 6, requires_grad=True)


def test_equals_the_stock_layer_when_nothing_is_removed(x):
    results = []
    for strategy, kind in ((ColumnSparseDARTS, ColumnSparseMixedLayer), (DARTS, DifferentiableMixedLayer)):
        layer, given = mixed(strategy), x.detach().clone().requires_grad_()
        assert type(layer) is kind
        output = layer(given)
        output.square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
        results.append((output, given.grad, gradients, layer.export({}), layer.export_probs({})))
    ours, stock = results
    assert torch.equal(ours[0], stock[0])
    assert torch.equal(ours[1], stock[1])
    assert ours[2].keys() == stock[2].keys()
    assert all(torch.equal(gradient, stock[2][name]) for name, gradient in ours[2].items())
    assert ours[3:] == stock[3:]


def test_is_the_weighted_sum(x):
    """Eq. 5 written out."""
    layer = mixed().eval()
    weights = torch.tensor(ALPHA).exp() / torch.tensor(ALPHA).exp().sum()
    expected = sum(weight * layer[name](x) for weight, name in zip(weights, NAMES, strict=True))
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("mode", ACTIVATION_MODES)
@pytest.mark.parametrize("left", [NAMES, LEFT])
def test_full_gradients_are_those_that_a_candidate_gets_alone(x, mode, left):
    """With equal weights a candidate has 1/N of the gradient that the same loss would give it by itself."""
    layer = mixed()
    layer.alpha.data.zero_()
    layer.prune_to(left)
    set_activations(layer, mode)
    torch.manual_seed(6)
    wanted = torch.randn(2, 4, 6, 6)
    expected = {}
    for name in left:
        weights = list(layer[name].parameters())
        expected[name] = torch.autograd.grad((layer[name](x) * wanted).sum(), weights)
        assert any(gradient.abs().max() > 1e-3 for gradient in expected[name])
    (layer(x) * wanted).sum().backward()
    alpha = layer.alpha.grad.clone()
    scale_candidate_gradients([layer])
    for name in NAMES:
        gradients = [weight.grad for weight in layer[name].parameters()]
        if name in left:
            torch.testing.assert_close(gradients, list(expected[name]), rtol=1e-4, atol=1e-4)
        else:
            assert gradients == [None] * len(gradients)
    assert torch.equal(layer.alpha.grad, alpha)


def test_removed_candidates_have_no_part(x):
    layer = mixed().eval()
    keys = [key for key in layer.state_dict() if not key.endswith("_extra_state")]
    calls = []
    for name in NAMES:
        layer[name].register_forward_hook(lambda *_, name=name: calls.append(name))
    layer.prune_to(LEFT[::-1])
    assert layer.active_names == LEFT

    weights = torch.softmax(torch.tensor([ALPHA[0], ALPHA[3]]), 0)
    torch.testing.assert_close(layer.probabilities(), weights)
    assert layer.all_probabilities().tolist() == pytest.approx([weights[0].item(), 0, 0, weights[1].item()])

    output = layer(x)
    assert calls == LEFT
    torch.testing.assert_close(output, weights[0] * layer[LEFT[0]](x) + weights[1] * layer[LEFT[1]](x))

    output.square().sum().backward()
    assert layer._arch_alpha.grad[1:3].tolist() == [0, 0]
    assert (layer._arch_alpha.grad[[0, 3]] != 0).all()
    for name in NAMES:
        assert all((parameter.grad is not None) == (name in LEFT) for parameter in layer[name].parameters())
    assert [key for key in layer.state_dict() if not key.endswith("_extra_state")] == keys


def test_gradient_reaches_the_alphas_through_all_probabilities():
    layer = mixed()
    layer.prune_to(LEFT)
    layer.all_probabilities()[0].backward()
    assert (layer._arch_alpha.grad[[0, 3]] != 0).all()
    assert layer._arch_alpha.grad[1:3].tolist() == [0, 0]


def test_export_names_only_active_candidates():
    layer = mixed()
    assert layer.export({}) == {"backbone/l01": "conv_k3_d2"}
    layer.prune_to(LEFT)
    assert layer.export({}) == {"backbone/l01": "ir_k3_d1_e3"}
    (probabilities,) = layer.export_probs({}).values()
    assert list(probabilities) == LEFT
    assert sum(probabilities.values()) == pytest.approx(1)
    assert layer.export({"backbone/l01": "x"}) == layer.export_probs({"backbone/l01": "x"}) == {}


def test_state_dict_restores_the_active_candidates(x):
    layer = mixed().eval()
    layer.prune_to(LEFT)
    fresh = mixed(seed=9).eval()
    fresh.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert fresh.active_names == LEFT
    torch.testing.assert_close(fresh(x), layer(x))
    fresh.prune_to(LEFT[:1])
    assert fresh.all_probabilities().tolist() == [1, 0, 0, 0]
    assert layer.active_names == LEFT


def test_state_survives_a_weights_only_checkpoint(tmp_path):
    layer = mixed()
    layer.prune_to(LEFT)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    fresh = mixed()
    fresh.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert fresh.active_names == LEFT


@pytest.mark.parametrize(("names", "complaint"), [([], "nothing"), (["sep_k3_d1"], "sep_k3_d1"), (["skip"], "skip")])
def test_prune_to_refuses(names, complaint):
    layer = mixed()
    layer.prune_to(LEFT)
    with pytest.raises(ValueError, match=f"backbone/l01.*{complaint}.*ir_k3_d1_e3"):
        layer.prune_to(names)
    assert layer.active_names == LEFT


def kept_bytes(function):
    """Bytes of the activations that a call keeps for backward, each storage once."""
    storages = {}

    def pack(tensor):
        if not isinstance(tensor, nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    assert result.requires_grad
    return sum(storages.values())


def train_alphas_only(layer):
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name == "_arch_alpha")


CASES = {
    "training": lambda layer: None,
    "evaluation": lambda layer: layer.eval(),
    "frozen statistics": lambda layer: [part.eval() for part in layer.modules() if type(part) is nn.BatchNorm2d],
    "removed": lambda layer: layer.prune_to(LEFT),
    "one left": lambda layer: layer.prune_to(LEFT[:1]),
    "alphas": train_alphas_only,
    "weights": lambda layer: layer._arch_alpha.requires_grad_(False),
}


def outcome(mode, case, kind):
    """Output, gradients and buffers of a layer, by name, after one forward and one backward pass."""
    layer = mixed()
    CASES[case](layer)
    set_activations(layer, mode)
    precision = Precision(kind, torch.device("cpu"))
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(5)).to(precision.dtype)
    x.requires_grad_(case != "alphas")
    with precision.autocast():
        output = layer(x)
    assert output.dtype == precision.dtype
    output.float().square().sum().backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in layer.named_parameters()}
    return {"output": output, "gradient of x": x.grad, **gradients, **dict(layer.named_buffers())}


def assert_identical(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert (value is None) == (right[name] is None), name
        assert value is None or torch.equal(value, right[name]), name


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_recomputation_changes_no_bit(case, kind):
    full, recomputed = (outcome(mode, case, kind) for mode in ("all", "checkpoint"))
    assert_identical(full, recomputed)
    tracked = [value.item() for name, value in recomputed.items() if name.endswith("num_batches_tracked")]
    expected = {"evaluation": {0}, "frozen statistics": {0}, "removed": {0, 1}, "one left": {0, 1}}
    assert set(tracked) == expected.get(case, {1})


def test_recomputation_sees_the_level_of_the_forward_pass():
    """A map of one value a channel is normalised by its own level's running averages, not the last level's."""
    results = []
    for mode in ("all", "checkpoint"):
        layer = mixed()
        separate_statistics(layer, 2)
        set_activations(layer, mode)
        generator = torch.Generator().manual_seed(5)
        inputs = [torch.randn(1, 4, side, side, generator=generator).requires_grad_() for side in (1, 6)]
        outputs = []
        for level, x in zip((1, 0), inputs, strict=True):
            select_level(layer, level)
            outputs.append(layer(x))
        sum(output.square().sum() for output in outputs).backward()
        assert {part.level for part in layer.modules() if isinstance(part, LevelBatchNorm2d)} == {0}
        gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
        results.append({**gradients, **dict(layer.named_buffers()), "x1": inputs[0].grad, "x6": inputs[1].grad})
    assert_identical(*results)
    assert results[0]["x1"].abs().sum() > 0


def test_recomputation_can_be_repeated(x):
    layer = mixed()
    set_activations(layer, "checkpoint")
    loss = layer(x).square().sum()
    before = copy.deepcopy(dict(layer.named_buffers()))
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert_identical(before, dict(layer.named_buffers()))


@pytest.mark.parametrize("case", ["weights", "alphas"])
def test_recomputation_keeps_the_input_only(case):
    kept = {}
    for mode in ("all", "checkpoint"):
        layer = mixed()
        CASES[case](layer)
        set_activations(layer, mode)
        x = torch.randn(2, 4, 6, 6, requires_grad=True)
        kept[mode] = kept_bytes(lambda layer=layer, x=x: layer(x))
    weights = len(NAMES) * 4
    assert kept["checkpoint"] == x.nbytes + weights
    assert kept["all"] > 10 * x.nbytes


def test_gradients_of_weights_have_32_bits():
    """Two candidates whose 16-bit outputs differ little: the difference reaches the alphas."""
    output = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(5)).bfloat16()
    gradient = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(6)).bfloat16()
    layer = mixed()
    layer.prune_to(LEFT)
    for name, shift in zip(LEFT, (0, 2**-6), strict=True):
        layer[name].forward = lambda x, shift=shift: output + shift
    layer(output).backward(gradient)
    first, second = torch.tensor(ALPHA)[[0, 3]].double().softmax(0)
    dots = [(gradient.double() * (output + shift).double()).sum() for shift in (0, 2**-6)]
    expected = first * second * (dots[0] - dots[1])
    torch.testing.assert_close(
        layer._arch_alpha.grad[[0, 3]].double(), torch.stack([expected, -expected]), rtol=1e-4, atol=0
    )


def test_the_automatic_mode_is_fused_low():
    layer = mixed()
    assert set_activations(layer, "auto") == layer.activations == "fused-low"


def test_what_a_fused_sum_holds_is_given_back_with_its_mode(x):
    layer = mixed()
    set_activations(layer, "fused")
    layer(x)
    assert layer in mixed_layer._MIXTURES
    set_activations(layer, "all")
    assert layer not in mixed_layer._MIXTURES


def test_unknown_mode_is_refused(refused):
    with refused("supernet.activations", "'everything'", *ACTIVATION_MODES):
        set_activations(mixed(), "everything")


@pytest.mark.parametrize(("kind", "phase"), [("faster_rcnn", "alphas"), ("retinanet", "weights")])
def test_recomputation_changes_no_bit_of_a_detector(kind, phase, tiny_settings, tiny_data):
    skeleton = load_settings("tiny", {"skeleton.detector": kind}).skeleton
    space = {"backbone": NAMES[:2], "neck": NAMES[1:3], "head": NAMES[2:]}
    batch = next(iter(search_loaders(tiny_data, tiny_settings.data, skeleton, 0)[0]))
    results = []
    for mode in ("all", "checkpoint"):
        torch.manual_seed(0)
        supernet = HitDetectorSpace(skeleton, space, 10)
        ColumnSparseDARTS().mutate_model(supernet)
        set_activations(supernet, mode)
        for name, parameter in supernet.named_parameters():
            parameter.requires_grad_(name.endswith("_arch_alpha") == (phase == "alphas"))
        loss = detection_loss(supernet.detector, batch)
        loss.backward()
        gradients = {f"gradient of {name}": parameter.grad for name, parameter in supernet.named_parameters()}
        random = {"random": torch.get_rng_state()}
        results.append({"loss": loss, **gradients, **dict(supernet.named_buffers()), **random})
    assert_identical(*results)
    assert (
        sum(value.abs().sum() > 0 for name, value in results[0].items() if name.startswith("g") and value is not None)
        > 10
    )
