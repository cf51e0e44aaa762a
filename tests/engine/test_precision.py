"""Precision: what is 16 bits wide and what is not, scaled losses, steps left out."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.loaders import search_loaders
from hitdet_nni.engine import distributed
from hitdet_nni.engine.precision import MIN_SCALE, Precision
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.nas.evaluator import detection_loss
from hitdet_nni.nas.strategy import ColumnSparseDARTS

CPU = torch.device("cpu")
SPACE = {
    "backbone": ["ir_k3_d1_e3", "sep_k3_d1", "conv_k3_d1"],
    "neck": ["sep_k3_d1", "sep_k5_d1"],
    "head": ["sep_k3_d1"],
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 4)
    )


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(8, 3, 8, 8), torch.arange(8) % 4


def scaled(kind="bf16"):
    """The precision of a CPU with fp16's loss scaling, which needs no GPU by itself."""
    precision = Precision(kind, CPU)
    precision.scaler = torch.amp.GradScaler("cpu")
    return precision


def gradients(precision, batch):
    model = network()
    with precision.autocast():
        loss = F.cross_entropy(model(batch[0]), batch[1])
    precision.backward(loss)
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_fp16_is_refused_on_a_cpu(refused):
    with refused("precision", "fp16", "bf16, fp32"):
        Precision("fp16", CPU)


@pytest.mark.parametrize(("kind", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_sets_the_type_of_activations_only(kind, dtype, batch):
    model, precision = network(), Precision(kind, CPU)
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with precision.autocast():
        loss = F.cross_entropy(model(batch[0]), batch[1])
    assert seen == [dtype] == [precision.dtype]
    precision.backward(loss)
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


def test_bf16_gradients_are_close_to_fp32(batch):
    exact, rounded = (gradients(Precision(kind, CPU), batch) for kind in ("fp32", "bf16"))
    assert not torch.equal(exact, rounded)
    assert torch.linalg.vector_norm(exact - rounded) < 0.02 * torch.linalg.vector_norm(exact)


def test_training_in_bf16_lowers_the_loss(batch):
    model, precision = network(), Precision("bf16", CPU)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        with precision.autocast():
            loss = F.cross_entropy(model(batch[0]), batch[1])
        precision.backward(loss)
        assert precision.step(optimizer, model.parameters(), max_norm=35.0)
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert precision.state_dict() == {}


def linear_step(precision, weight, gradient, max_norm=None):
    """One SGD step of rate 1 on `weight * gradient`, whose gradient is `gradient`."""
    parameter = nn.Parameter(torch.tensor(weight))
    optimizer = torch.optim.SGD([parameter], 1.0)
    precision.backward((parameter * torch.tensor(gradient)).sum())
    made = precision.step(optimizer, [parameter], max_norm)
    return made, parameter


@pytest.mark.parametrize("precision", [Precision("fp32", CPU), scaled()], ids=["unscaled", "scaled"])
def test_clipping_is_of_the_unscaled_gradient(precision):
    made, parameter = linear_step(precision, [1.0, 1.0], [3.0, 4.0], max_norm=1.0)
    assert made
    torch.testing.assert_close(parameter.detach(), torch.tensor([1 - 0.6, 1 - 0.8]))
    made, parameter = linear_step(precision, [1.0, 1.0], [3.0, 4.0], max_norm=10.0)
    torch.testing.assert_close(parameter.detach(), torch.tensor([-2.0, -3.0]))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_step_that_is_not_finite_is_left_out(bad, max_norm):
    precision = scaled()
    assert linear_step(precision, [1.0, 1.0], [0.1, 0.2], max_norm)[0]
    scale = precision.state_dict()["scale"]
    made, parameter = linear_step(precision, [1.0, 1.0], [bad, 0.5], max_norm)
    assert not made
    assert parameter.tolist() == [1, 1]
    assert precision.state_dict()["scale"] == scale / 2
    assert linear_step(precision, [1.0, 1.0], [0.1, 0.2], max_norm)[0]


def test_two_optimisers_share_the_scale():
    """An overflow in one phase lowers the scale that the other one uses; only the phase's own step is left out."""
    precision = scaled()
    weight, alpha = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    sgd, adam = torch.optim.SGD([weight], 1.0), torch.optim.Adam([alpha], 0.1)
    precision.backward((alpha * float("inf")).sum())
    assert not precision.step(adam, [alpha])
    precision.backward((weight * 0.5).sum())
    assert precision.step(sgd, [weight])
    assert (alpha.item(), weight.item()) == (1.0, 0.5)
    assert not adam.state
    assert precision.state_dict()["scale"] == 2.0**15


def test_endless_overflow_is_an_error():
    precision = scaled()
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=2 * MIN_SCALE)
    assert not linear_step(precision, [1.0], [float("nan")])[0]
    with pytest.raises(FloatingPointError, match="diverged"):
        linear_step(precision, [1.0], [float("nan")])


def test_resumes_exactly(tmp_path):
    precision = scaled()
    linear_step(precision, [1.0], [float("inf")])
    for _ in range(3):
        linear_step(precision, [1.0], [1.0])
    torch.save(precision.state_dict(), tmp_path / "state.pt")
    resumed = scaled()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.state_dict() == precision.state_dict()
    for each in (precision, resumed):
        linear_step(each, [1.0], [1.0])
    assert resumed.state_dict() == precision.state_dict()
    assert resumed.state_dict()["_growth_tracker"] == 4


def test_averaged_gradients_decide_alike(monkeypatch):
    """What is not finite in one process makes all leave the step out: the mean carries it."""
    precisions = [scaled(), scaled()]
    parameters = [nn.Parameter(torch.ones(2)) for _ in precisions]
    for precision, parameter, gradient in zip(precisions, parameters, (1.0, float("inf")), strict=True):
        precision.backward((parameter * gradient).sum())
    flat = [torch.cat([parameter.grad]) for parameter in parameters]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor, op=None: tensor.copy_(total(tensor)))

    def total(tensor):
        return torch.ones_like(tensor) if tensor.dtype == torch.int32 else flat[0] + flat[1]

    for precision, parameter in zip(precisions, parameters, strict=True):
        distributed.average_gradients([parameter])
        assert not precision.step(torch.optim.SGD([parameter], 1.0), [parameter])
    assert precisions[0].state_dict() == precisions[1].state_dict()
    assert all(parameter.tolist() == [1, 1] for parameter in parameters)


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_a_detector_supernet_takes_both_steps_in_bf16(kind, tiny_settings, tiny_data):
    skeleton = load_settings("tiny", {"skeleton.detector": kind}).skeleton
    torch.manual_seed(0)
    space = HitDetectorSpace(skeleton, SPACE, 10)
    ColumnSparseDARTS().mutate_model(space)
    named = dict(space.named_parameters())
    alphas = [parameter for name, parameter in named.items() if name.endswith("_arch_alpha")]
    weights = [parameter for name, parameter in named.items() if not name.endswith("_arch_alpha")]
    precision = Precision("bf16", CPU)
    phases = ((torch.optim.Adam(alphas, 0.1), alphas), (torch.optim.SGD(weights, 0.001), weights))
    loaders = search_loaders(tiny_data, tiny_settings.data, skeleton, 0)
    for (optimizer, parameters), loader in zip(phases, loaders, strict=False):
        before = copy.deepcopy(parameters)
        space.zero_grad()
        with precision.autocast():
            loss = detection_loss(space.detector, next(iter(loader)))
        precision.backward(loss)
        assert loss.isfinite()
        assert precision.step(optimizer, parameters, 35.0)
        moved = [not torch.equal(old, new) for old, new in zip(before, parameters, strict=True)]
        assert sum(moved) >= 0.9 * len(moved)
        assert all(parameter.isfinite().all() for parameter in parameters)
    assert {parameter.dtype for parameter in space.parameters()} == {torch.float32}


@pytest.mark.gpu
def test_fp16_trains_on_a_gpu(batch):
    device = torch.device("cuda")
    model, precision = network().to(device), Precision("fp16", device)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    losses, made = [], []
    for _ in range(20):
        optimizer.zero_grad()
        with precision.autocast():
            output = model(batch[0].to(device))
            loss = F.cross_entropy(output, batch[1].to(device))
        assert output.dtype == torch.float16
        precision.backward(loss)
        made.append(precision.step(optimizer, model.parameters(), 35.0))
        losses.append(loss.item())
    assert sum(made) >= 15
    assert losses[-1] < 0.3 * losses[0]
    assert precision.state_dict()["scale"] == 2.0 ** (16 - made.count(False))


@pytest.mark.parametrize(("capability", "slow"), [((7, 5), True), ((8, 0), False), ((9, 4), False)])
def test_a_gpu_without_bf16_is_told_of(capability, slow, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    Precision("bf16", torch.device("cuda"))
    assert ("Tesla T4 has no bf16 units" in caplog.text) == slow
