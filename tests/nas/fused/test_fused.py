"""The fused mixed layer: in every mode equal to the candidates' plain weighted sum, gradients and all."""

from __future__ import annotations

import copy
import gc
import weakref
from collections import OrderedDict
from functools import partial

import pytest
import torch
from nni.mutable import frozen_context
from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedLayer
from torch import nn

from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.data.loaders import search_loaders
from hitdet_nni.engine import distributed
from hitdet_nni.engine.synced_batch_norm import apply_batch_norm
from hitdet_nni.kernels import layout
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.model.level_norm import LevelBatchNorm2d, select_level, separate_statistics
from hitdet_nni.nas.evaluator import detection_loss
from hitdet_nni.nas.fused import FUSED_MODES, FusedMixture, fused_weighted_sum, plan
from hitdet_nni.nas.fused.backend import precision_of_convolutions, rounding_of_convolutions
from hitdet_nni.nas.mixed import ACTIVATION_MODES, set_activations
from hitdet_nni.nas.strategy import ColumnSparseDARTS
from hitdet_nni.operators.registry import OPERATORS, build_operator

FAMILIES = ("ir_k3_d2_e3", "ir_k5_d1_e1", "sep_k3_d1", "conv_k3_d2")
EXACT = {torch.float64: 1e-9, torch.float32: 1e-4}
# in_channels, out_channels, stride, (N, H, W): residual; another width; strided; another width and odd size
LAYERS = [(6, 6, 1, (3, 7, 7)), (8, 6, 1, (2, 12, 10)), (6, 6, 2, (2, 8, 8)), (6, 8, 2, (2, 9, 11))]
NORMS = ("batch", "eval", "frozen", "some frozen")


def norms_of(modules):
    return [module for module in modules.modules() if isinstance(module, nn.BatchNorm2d)]


def build(names, in_channels, out_channels, stride, dtype, norms="batch"):
    """Candidates whose normalisations differ from each other, scales of both signs."""
    torch.manual_seed(3)
    modules = nn.ModuleDict(OrderedDict((n, build_operator(n, in_channels, out_channels, stride)) for n in names))
    for norm in norms_of(modules):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.weight.data *= torch.randint(0, 2, norm.weight.shape) * 2 - 1
        nn.init.normal_(norm.bias, std=0.3)
        nn.init.normal_(norm.running_mean, std=0.2)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    if norms == "eval":
        modules.eval()
    for index, norm in enumerate(norms_of(modules)):
        norm.train(norms == "batch" or (norms == "some frozen" and index % 3 > 0))
    return modules.to(dtype)


def draw(in_channels, out_channels, stride, shape, candidates, dtype, mean=0.0):
    torch.manual_seed(8)
    count, height, width = shape
    x = torch.randn(count, in_channels, height, width, dtype=dtype) * 1.5 + mean
    grad = torch.randn(count, out_channels, -(-height // stride), -(-width // stride), dtype=dtype)
    return x, torch.softmax(torch.randn(candidates, dtype=dtype), 0), grad


def plain(modules):
    return lambda x, weights: sum(w * module(x) for w, module in zip(weights, modules.values(), strict=True))


def fused(modules, activations="fused-low"):
    return FusedMixture(dict(modules.items()), activations)


def results(function, modules, x, weights, grad):
    """Output, gradients and buffers of one step, by name."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    weights = weights.detach().clone().requires_grad_()
    y = function(x, weights)
    y.backward(grad)
    gradients = {name: p.grad for name, p in modules.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, "weights": weights.grad, **gradients, **dict(modules.named_buffers())}


def assert_equal(ours, theirs, tolerance, names=None):
    """Relative to each tensor's largest entry; where that is zero but for rounding, to the gradient by the input."""
    assert ours.keys() == theirs.keys()
    floor = float(theirs["x"].abs().max()) * 1e-2 if theirs["x"] is not None else 1e-2
    for name in names or ours:
        expected = theirs[name].double()
        scale = max(float(expected.abs().max()), floor)
        error = float((ours[name].double() - expected).abs().max())
        assert error <= tolerance * scale, (name, error, scale)


def compare(names, layer, activations, dtype, norms="batch", mean=0.0, order=torch.channels_last):
    in_channels, out_channels, stride, shape = layer
    reference = build(names, in_channels, out_channels, stride, dtype, norms)
    modules = copy.deepcopy(reference)
    x, weights, grad = draw(in_channels, out_channels, stride, shape, len(names), dtype, mean)
    x = x.contiguous(memory_format=order)
    expected = results(plain(reference), reference, x, weights, grad)
    assert_equal(results(fused(modules, activations), modules, x, weights, grad), expected, EXACT[dtype])


@pytest.mark.parametrize("activations", FUSED_MODES)
@pytest.mark.parametrize("layer", LAYERS)
def test_all_operators_equal_their_plain_sum(layer, activations):
    compare(OPERATORS, layer, activations, torch.float64)


@pytest.mark.parametrize("norms", NORMS[1:])
@pytest.mark.parametrize("layer", LAYERS[::3])
def test_frozen_statistics(layer, norms):
    compare(OPERATORS[::3], layer, "fused-low", torch.float64, norms)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layer", LAYERS[::3])
def test_single_precision(layer, order):
    compare(OPERATORS, layer, "fused", torch.float32, order=order)


@pytest.mark.slow
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("activations", FUSED_MODES)
@pytest.mark.parametrize("layer", [*LAYERS, (16, 16, 1, (2, 20, 20)), (6, 6, 1, (40, 7, 7)), (5, 6, 2, (1, 33, 17))])
def test_every_combination(layer, activations, dtype, norms, order):
    compare(OPERATORS, layer, activations, dtype, norms, order=order)


@pytest.mark.parametrize(
    ("activations", "norms"), [("fused", "batch"), ("fused-low", "some frozen"), ("fused-min", "batch")]
)
@pytest.mark.parametrize("layer", LAYERS[::3])
def test_expansions_of_small_maps(layer, activations, norms, monkeypatch):
    """Normalised after their product rather than from the input's covariance."""
    monkeypatch.setattr(plan, "COVARIANCE_PIXELS", 1e9)
    mixture = fused(build(OPERATORS, 6, 6, 1, torch.float64))
    made = mixture.plan(layout.MapShape(3, 7, 7), torch.float64, torch.device("cpu"))
    assert not made.expansions
    assert sum(len(group.candidates) for group in made.groups if group.direct) == 20
    compare(OPERATORS, layer, activations, torch.float64, norms)


@pytest.mark.parametrize(("pixels", "direct"), [(8, True), (9, False)])
def test_which_expansions_follow_from_the_covariance(pixels, direct):
    mixture = fused(build(FAMILIES, 16, 16, 1, torch.float64))
    groups = mixture.plan(layout.MapShape(1, 1, pixels), torch.float64, torch.device("cpu")).groups
    assert [group.direct for group in groups if group.candidates[0].expand is not None] == [direct] * 2


def test_equals_stock_nni():
    reference = build(OPERATORS, 6, 6, 1, torch.float64)
    modules = copy.deepcopy(reference)
    x, _, grad = draw(6, 6, 1, (2, 7, 7), len(OPERATORS), torch.float64)
    alpha = nn.Parameter(torch.randn(len(OPERATORS), dtype=torch.float64))
    with frozen_context({"layer": OPERATORS[0]}):
        stock = DifferentiableMixedLayer(dict(reference.items()), alpha, nn.Softmax(-1), "layer")
    expected = results(lambda x, weights: stock(x), reference, x, alpha, grad)
    expected["weights"], alpha.grad = alpha.grad, None
    ours = results(lambda x, weights: fused(modules)(x, alpha.softmax(-1)), modules, x, alpha, grad)
    ours["weights"] = alpha.grad
    assert_equal(ours, expected, 1e-9)


@pytest.mark.parametrize(("budget", "activations"), [(1, "fused-low"), (1, "fused-min"), (50_000, "fused")])
def test_pieces_change_nothing(budget, activations, monkeypatch):
    """Every candidate in many pieces; some together in one."""
    monkeypatch.setattr(layout, "CPU_CHUNK_BYTES", budget)
    monkeypatch.setattr(layout, "CHUNK_CHANNELS", 4)
    mixture = fused(build(OPERATORS, 6, 6, 1, torch.float64), activations)
    groups = mixture.plan(layout.MapShape(3, 7, 7), torch.float64, torch.device("cpu")).groups
    assert max(len(group.chunks) for group in groups) == (9 if budget == 1 else 1)
    assert max(len(group.candidates) for group in groups) == (1 if budget == 1 else 2)
    compare(OPERATORS, LAYERS[0], activations, torch.float64)


@pytest.mark.parametrize("covariance_pixels", [0, 1e9])
@pytest.mark.parametrize("activations", FUSED_MODES)
def test_phases_compute_only_what_they_train(activations, covariance_pixels, monkeypatch):
    monkeypatch.setattr(plan, "COVARIANCE_PIXELS", covariance_pixels)
    modules = build(FAMILIES, 6, 6, 1, torch.float64)
    x, weights, grad = draw(6, 6, 1, (2, 7, 7), len(FAMILIES), torch.float64)
    expected = results(plain(modules), modules, x, weights, grad)
    modules.zero_grad()
    mixture = fused(modules, activations)

    def gradients(of_input, of_weights, of_parameters):
        given, shares = x.clone().requires_grad_(of_input), weights.clone().requires_grad_(of_weights)
        modules.requires_grad_(of_parameters)
        modules.zero_grad()
        mixture(given, shares).backward(grad)
        return {"x": given.grad, "weights": shares.grad, **{name: p.grad for name, p in modules.named_parameters()}}

    for wanted in ((True, True, False), (False, True, False), (True, False, True), (False, False, True)):
        computed = gradients(*wanted)
        for name, gradient in computed.items():
            due = wanted[{"x": 0, "weights": 1}.get(name, 2)]
            assert (gradient is not None) == due, name
            if due:
                torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9)


def test_no_gradient_at_all():
    modules = build(FAMILIES, 6, 6, 1, torch.float64).requires_grad_(False)
    x, weights, _ = draw(6, 6, 1, (2, 7, 7), len(FAMILIES), torch.float64)
    assert not fused(modules)(x, weights).requires_grad
    with torch.no_grad():
        torch.testing.assert_close(fused(modules)(x, weights), plain(modules)(x, weights), rtol=1e-9, atol=1e-9)


def test_large_mean_does_not_swallow_the_variance():
    """Inputs of mean 100 in single precision, against double precision; the plain sum itself is off by some 1e-5."""
    exact = build(OPERATORS, 6, 6, 1, torch.float64)
    single = copy.deepcopy(exact).float()
    x, weights, grad = draw(6, 6, 1, (3, 7, 7), len(OPERATORS), torch.float32, mean=100.0)
    expected = results(plain(exact), exact, x.double(), weights.double(), grad.double())
    names = ["y", "x", "weights", *(name for name, _ in exact.named_buffers())]
    assert_equal(results(fused(single), single, x, weights, grad), expected, 1e-4, names)


def test_gradcheck():
    modules = build(FAMILIES, 2, 2, 1, torch.float64)
    x, weights, _ = draw(2, 2, 1, (2, 3, 3), len(FAMILIES), torch.float64)
    parameters = list(modules.parameters())
    mixture = fused(modules, "fused-min")
    assert torch.autograd.gradcheck(
        lambda x, weights, *_: mixture(x, weights),
        (x.requires_grad_(), weights.requires_grad_(), *parameters),
        eps=1e-7,
        atol=1e-5,
        fast_mode=True,
    )


def test_twice_in_one_graph():
    """A layer that two maps share, as the towers of a one-stage head."""
    reference = build(FAMILIES, 6, 6, 1, torch.float64)
    modules = copy.deepcopy(reference)
    x, weights, grad = draw(6, 6, 1, (2, 7, 7), len(FAMILIES), torch.float64)

    def both(function):
        return lambda x, weights: function(function(x, weights) * 0.5, weights)

    expected = results(both(plain(reference)), reference, x, weights, grad)
    assert_equal(results(both(fused(modules)), modules, x, weights, grad), expected, 1e-9)


@pytest.mark.parametrize("momentum", [None, 0.1])
def test_statistics_of_levels(momentum):
    reference = build(FAMILIES, 6, 6, 1, torch.float64)
    separate_statistics(reference, 3)
    reference.double()
    for norm in norms_of(reference):
        norm.momentum = momentum
    modules = copy.deepcopy(reference)
    assert all(isinstance(norm, LevelBatchNorm2d) for norm in norms_of(modules))
    mixture = fused(modules)
    shapes = [(2, 5, 5), (2, 3, 3), (1, 1, 1)]  # the last has no variance
    for level, shape in [*enumerate(shapes), *enumerate(shapes)]:
        select_level(reference, level)
        select_level(modules, level)
        x, weights, grad = draw(6, 6, 1, shape, len(FAMILIES), torch.float64)
        expected = results(plain(reference), reference, x, weights, grad)
        assert_equal(results(mixture, modules, x, weights, grad), expected, 1e-9)


@pytest.mark.parametrize("momentum", [None, 0.3])
def test_momentum_of_running_averages(momentum):
    reference = build(FAMILIES, 6, 6, 1, torch.float64)
    for norm in norms_of(reference):
        norm.momentum = momentum
    modules = copy.deepcopy(reference)
    for seed in range(2):
        x, weights, grad = draw(6, 6, 1, (2, 5 + seed, 5), len(FAMILIES), torch.float64)
        expected = results(plain(reference), reference, x, weights, grad)
        assert_equal(results(fused(modules), modules, x, weights, grad), expected, 1e-9)


def test_one_value_a_channel_is_refused_as_torch_does():
    modules = build(FAMILIES, 6, 6, 1, torch.float64)
    x, weights, _ = draw(6, 6, 1, (1, 1, 1), len(FAMILIES), torch.float64)
    for function in (plain(modules), fused(modules)):
        with pytest.raises(ValueError, match=r"more than (1|one) value"):
            function(x, weights)


@pytest.mark.parametrize("covariance_pixels", [0, 1e9])
@pytest.mark.parametrize("part", ["expand", "depthwise", "project"])
def test_nan_is_not_hidden(part, covariance_pixels, monkeypatch):
    """Single precision: oneDNN's own ReLU makes it zero."""
    monkeypatch.setattr(plan, "COVARIANCE_PIXELS", covariance_pixels)
    modules = build(FAMILIES[:1], 6, 6, 1, torch.float32, "eval")
    modules[FAMILIES[0]].get_submodule(part).conv.weight.data[0] = torch.nan
    x, weights, _ = draw(6, 6, 1, (2, 20, 20), 1, torch.float32)
    for function in (plain(modules), fused(modules)):
        assert function(x, weights).isnan().any()


def test_modules_exchanged_later_are_seen():
    modules = build(FAMILIES, 6, 6, 1, torch.float64)
    x, weights, _ = draw(6, 6, 1, (2, 5, 5), len(FAMILIES), torch.float64)
    mixture = fused(modules)
    mixture(x, weights)
    separate_statistics(modules, 2)
    modules.double()
    torch.testing.assert_close(mixture(x, weights), plain(modules)(x, weights), rtol=1e-9, atol=1e-9)


def saved_bytes(function, x, weights, parameters):
    """Bytes that autograd keeps, without parameters."""
    known = {p.untyped_storage().data_ptr() for p in parameters}
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = function(x, weights)
    del y
    return sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in known)


@pytest.mark.parametrize("covariance_pixels", [0, 1e9])
def test_modes_keep_less_and_less(covariance_pixels, monkeypatch):
    monkeypatch.setattr(plan, "COVARIANCE_PIXELS", covariance_pixels)
    modules = build(OPERATORS, 6, 6, 1, torch.float32)
    x, weights, _ = draw(6, 6, 1, (16, 20, 20), len(OPERATORS), torch.float32)
    x.requires_grad_()
    weights.requires_grad_()
    kept = {mode: saved_bytes(fused(modules, mode), x, weights, modules.parameters()) for mode in FUSED_MODES}
    stock = saved_bytes(plain(modules), x, weights, modules.parameters())
    assert kept["fused"] < 0.32 * stock
    assert kept["fused-low"] < 0.10 * stock
    assert kept["fused-min"] < 0.01 * stock


def test_nothing_is_left_behind():
    """Neither the mixture nor autograd holds a tensor after a step, whether it went backward or not."""
    modules = build(FAMILIES, 6, 6, 1, torch.float32)
    mixture = fused(modules, "fused")
    x, weights, grad = draw(6, 6, 1, (2, 9, 9), len(FAMILIES), torch.float32)

    def living():
        gc.collect()
        return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())

    def step(backward):
        y = mixture(x.clone().requires_grad_(), weights.clone().requires_grad_())
        if backward:
            y.backward(grad)
        modules.zero_grad()

    step(True)
    before = living()
    step(True)
    step(False)
    assert living() == before


def test_gradients_cannot_be_differentiated_again():
    modules = build(FAMILIES, 2, 2, 1, torch.float64)
    x, weights, _ = draw(2, 2, 1, (2, 3, 3), len(FAMILIES), torch.float64)
    (grad_input,) = torch.autograd.grad(
        fused(modules)(x.requires_grad_(), weights).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad_input.sum().backward()


@pytest.mark.parametrize("activations", FUSED_MODES)
def test_is_bitwise_repeatable(activations):
    modules = build(OPERATORS, 6, 6, 1, torch.float32)
    x, weights, grad = draw(6, 6, 1, (3, 9, 9), len(OPERATORS), torch.float32)
    first, second = (copy.deepcopy(modules) for _ in range(2))
    ours, again = (results(fused(one, activations), one, x, weights, grad) for one in (first, second))
    assert all(torch.equal(again[name], value) for name, value in ours.items())


@pytest.mark.parametrize("covariance_pixels", [0, 1e9])
def test_bfloat16_autocast(covariance_pixels, monkeypatch):
    monkeypatch.setattr(plan, "COVARIANCE_PIXELS", covariance_pixels)
    reference = build(OPERATORS, 8, 8, 1, torch.float32)
    modules = copy.deepcopy(reference)
    x, weights, grad = draw(8, 8, 1, (4, 9, 9), len(OPERATORS), torch.float32)
    expected = results(plain(reference), reference, x, weights, grad)

    def cast(x, weights):
        with torch.autocast("cpu", torch.bfloat16):
            y = fused(modules)(x.bfloat16(), weights)
        assert y.dtype == torch.bfloat16
        return y

    ours = results(cast, modules, x, weights, grad.bfloat16())
    assert all(ours[name].dtype == value.dtype for name, value in expected.items() if name != "y")
    assert_equal(ours, expected, 0.05, ["y", "x", "weights"])
    averages = [name for name in expected if name.endswith("expand.bn.running_var")]
    assert_equal(ours, expected, 0.004, averages)  # only the input was rounded


class Other(nn.Module):
    pass


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda block: setattr(block.expand, "bn", nn.SyncBatchNorm(18)), "SyncBatchNorm"),
        (lambda block: setattr(block.project, "bn", nn.BatchNorm2d(6, affine=False)), "affine"),
        (lambda block: setattr(block.project, "conv", nn.Conv2d(18, 6, 1)), "Conv2d without bias"),
    ],
)
def test_refuses_what_it_does_not_know(change, complaint, refused):
    modules = build(FAMILIES, 6, 6, 1, torch.float64)
    change(modules["ir_k3_d2_e3"])
    with refused(complaint):
        fused(modules)


def test_statistics_of_several_processes_in_some_layers_only_are_refused(refused, monkeypatch):
    modules = build(FAMILIES, 6, 6, 1, torch.float64)
    x, weights, _ = draw(6, 6, 1, (2, 5, 5), len(FAMILIES), torch.float64)
    apply_batch_norm(modules["sep_k3_d1"], "synced")
    torch.testing.assert_close(fused(modules)(x, weights), plain(modules)(x, weights), rtol=1e-9, atol=1e-9)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with refused("batch_norm", "one kind", "all", "checkpoint"):
        fused(modules)(x, weights)
    modules.eval()
    torch.testing.assert_close(fused(modules)(x, weights), plain(modules)(x, weights), rtol=1e-9, atol=1e-9)


def test_frozen_kinds():
    reference = build(FAMILIES, 6, 6, 1, torch.float64)
    apply_batch_norm(reference, "frozen")
    modules = copy.deepcopy(reference).train()
    x, weights, grad = draw(6, 6, 1, (2, 5, 5), len(FAMILIES), torch.float64)
    expected = results(plain(reference), reference, x, weights, grad)
    assert_equal(results(fused(modules), modules, x, weights, grad), expected, 1e-9)


class Layer(nn.Module):
    """What the supernet's mixed layer offers."""

    def __init__(self):
        super().__init__()
        self.candidates = build(FAMILIES, 6, 6, 1, torch.float64)
        self.alpha = nn.Parameter(torch.zeros(len(FAMILIES), dtype=torch.float64))
        self.active_names = list(FAMILIES)

    def active_candidates(self):
        return [self.candidates[name] for name in self.active_names]

    def probabilities(self):
        return self.alpha[[FAMILIES.index(name) for name in self.active_names]].softmax(-1)


def test_removed_candidates_are_not_computed():
    layer = Layer()
    x, _, grad = draw(6, 6, 1, (2, 5, 5), len(FAMILIES), torch.float64)
    fused_weighted_sum("fused-low", layer, x)
    layer.active_names = [FAMILIES[0], FAMILIES[3]]
    counts = {name: int(buffer) for name, buffer in layer.named_buffers() if name.endswith("num_batches_tracked")}
    y = fused_weighted_sum("fused-low", layer, x)
    y.backward(grad)
    for name, parameter in layer.candidates.named_parameters():
        assert (parameter.grad is not None) == (name.split(".")[0] in layer.active_names)
    for name, buffer in layer.named_buffers():
        if name in counts:
            assert int(buffer) - counts[name] == (name.split(".")[1] in layer.active_names)
    expected = sum(w * c(x) for w, c in zip(layer.probabilities(), layer.active_candidates(), strict=True))
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)


def test_a_layer_and_its_mixture_end_together():
    layer = Layer()
    x, _, _ = draw(6, 6, 1, (2, 5, 5), len(FAMILIES), torch.float64)
    fused_weighted_sum("fused-low", layer, x)
    candidate = weakref.ref(layer.candidates[FAMILIES[0]])
    del layer
    gc.collect()
    assert candidate() is None


def test_refuses_other_modules_and_modes(refused):
    with refused("skip", "Other", "InvertedResidual"):
        FusedMixture({"skip": Other()})
    with refused("supernet.activations", "'none'", "fused", "fused-low", "fused-min"):
        fused(build(FAMILIES, 6, 6, 1, torch.float64), "none")


@pytest.mark.parametrize("kind", ["faster_rcnn", pytest.param("retinanet", marks=pytest.mark.slow)])
def test_whole_supernet(kind, tiny_settings, tiny_data, published, monkeypatch):
    """Detection loss and gradients of a supernet, each mixed layer by NNI's sum and fused."""
    skeleton = load_settings("tiny", {"skeleton.detector": kind}).skeleton
    space = {component: published[component][:3] for component in COMPONENTS}
    loader, _, _ = search_loaders(tiny_data, tiny_settings.data, skeleton, 0)
    batch = next(iter(loader))
    torch.manual_seed(0)
    reference = HitDetectorSpace(skeleton, space, len(tiny_data.classes))
    ColumnSparseDARTS().mutate_model(reference)
    computed = []
    for mode in ("all", *FUSED_MODES):
        if mode != "all":
            monkeypatch.setitem(ACTIVATION_MODES, mode, partial(fused_weighted_sum, mode))
        model = copy.deepcopy(reference).train()
        set_activations(model, mode)
        torch.manual_seed(1)
        loss = detection_loss(model.detector, copy.deepcopy(batch))
        loss.backward()
        alphas = [p.grad for name, p in model.named_parameters() if name.endswith("_arch_alpha")]
        computed.append((loss.detach(), torch.cat(alphas)))
    for loss, alphas in computed[1:]:
        torch.testing.assert_close(loss, computed[0][0], rtol=1e-4, atol=0)
        # Single precision: a ReLU on either side of zero in one of many layers moves a gradient by more than rounding.
        assert (alphas - computed[0][1]).norm() < 0.02 * computed[0][1].norm()


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_without_maps(training):
    """As the candidates' own modules have it."""
    found = []
    for way in (fused, plain):
        modules = build(FAMILIES, 6, 6, 1, torch.float64).train(training)
        weights = torch.full((len(FAMILIES),), 0.25, dtype=torch.float64)
        nothing = torch.zeros(0, 6, 5, 7, dtype=torch.float64)
        found.append(results(way(modules), modules, nothing, weights, nothing))
    ours, theirs = found
    assert ours["y"].shape == (0, 6, 5, 7)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def roundings():
    """torch's settings of how a GPU rounds, as they came."""
    convolutions, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = convolutions.fp32_precision, products.fp32_precision
    yield convolutions, products
    convolutions.fp32_precision, products.fp32_precision = before


@pytest.mark.parametrize(("of_convolutions", "of_products"), [("ieee", "none"), ("ieee", "tf32"), ("tf32", "tf32")])
def test_products_are_rounded_as_convolutions_are_by_torch_s_newer_names(roundings, of_convolutions, of_products):
    convolutions, products = roundings
    convolutions.fp32_precision, products.fp32_precision = of_convolutions, of_products
    with pytest.raises(RuntimeError):  # or this would show nothing
        _ = torch.backends.cudnn.allow_tf32, products.allow_tf32
    with precision_of_convolutions(torch.device("cuda")):
        assert products.fp32_precision == convolutions.fp32_precision == of_convolutions
        assert rounding_of_convolutions() == ("fp32_precision", of_convolutions)
    assert products.fp32_precision == of_products


@pytest.mark.parametrize("of_convolutions", [True, False])
def test_products_are_rounded_as_convolutions_are_by_torch_s_older_names(of_convolutions, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", of_convolutions)
    with precision_of_convolutions(torch.device("cuda")):
        assert torch.backends.cuda.matmul.allow_tf32 == of_convolutions
        assert rounding_of_convolutions() == ("allow_tf32", of_convolutions)
    assert not torch.backends.cuda.matmul.allow_tf32


NAMES = ("y", "x", "weights")


CUDA_LAYERS = [(6, 6, 1, (3, 7, 7)), (8, 6, 1, (2, 12, 10)), (6, 6, 2, (2, 24, 24)), (6, 8, 2, (2, 21, 23))]
"""With 32 pixels or so the error in 16 bits is what a few ReLUs that fall to the other side make it."""


@pytest.mark.gpu
@pytest.mark.parametrize("activations", FUSED_MODES)
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layer", CUDA_LAYERS)
def test_cuda(layer, kind, activations, monkeypatch):
    """As near to double precision as the plain sum in the same arithmetic, but for a factor of three."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    in_channels, out_channels, stride, shape = layer
    reference = build(OPERATORS, in_channels, out_channels, stride, torch.float64)
    x, weights, grad = draw(in_channels, out_channels, stride, shape, len(OPERATORS), torch.float64)
    expected = results(plain(reference), reference, x, weights, grad)

    def error(make):
        modules = copy.deepcopy(reference).float().cuda()

        def cast(x, weights):
            with torch.autocast("cuda", kind, enabled=kind != torch.float32):
                return make(modules)(x.to(kind), weights)

        given = (tensor.float().cuda() for tensor in (x, weights))
        found = results(cast, modules, *given, grad.to(kind).cuda())
        return {name: float((found[name].cpu() - expected[name]).norm() / expected[name].norm()) for name in NAMES}

    ours, theirs = error(lambda modules: fused(modules, activations)), error(plain)
    tolerance = {torch.float32: 1e-5, torch.float16: 0.003, torch.bfloat16: 0.02}[kind]
    assert all(ours[name] <= max(tolerance, 3 * theirs[name]) for name in NAMES), (ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("activations", FUSED_MODES)
def test_recorded_passes_equal_themselves(activations, monkeypatch):
    """Steps of both phases, most of them replayed, give what they give without recordings, bit by bit."""

    def train(recorded):
        if not recorded:
            monkeypatch.setattr(FusedMixture, "recording", lambda *_: None)
        modules = build(OPERATORS, 8, 8, 1, torch.float32).cuda()
        mixture = fused(modules, activations)
        alpha = nn.Parameter(torch.zeros(len(OPERATORS), device="cuda"))
        optimizers = (torch.optim.SGD([alpha], 0.1), torch.optim.SGD(modules.parameters(), 0.01))
        torch.manual_seed(5)
        found = []
        for step in range(10):
            modules.requires_grad_(step % 2 == 1)
            alpha.requires_grad_(step % 2 == 0)
            x = torch.randn(3, 8, 9, 7, device="cuda").to(memory_format=torch.channels_last).requires_grad_()
            y = mixture(x, alpha.softmax(-1))
            y.square().mean().backward()
            optimizers[step % 2].step()
            alpha.grad = None
            modules.zero_grad()
            found += [y.detach().clone(), x.grad.clone()]
        found += [alpha.detach(), *modules.state_dict().values()]
        return found, list(mixture._recordings.by_size.values())

    recorded, recordings = train(True)
    assert [recording.memory.generation for recording in recordings] == [10]
    assert len(recordings[0].backward_passes) == 2
    plainly, _ = train(False)
    assert all(torch.equal(one, other) for one, other in zip(recorded, plainly, strict=True))


@pytest.mark.gpu
def test_recorded_layers_share_the_memory_of_what_they_make_on_the_way(figure):
    """Further layers of one form take the room of what their backward passes need, and no more than that but gaps."""

    def taken(layers):
        chain = [build(OPERATORS, 48, 48, 1, torch.float32).cuda() for _ in range(layers)]
        mixtures = [fused(modules, "fused-min") for modules in chain]
        weights = torch.full((len(OPERATORS),), 1 / len(OPERATORS), device="cuda")
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        for _ in range(4):
            y = torch.randn(2, 48, 100, 152, device="cuda").to(memory_format=torch.channels_last).requires_grad_()
            for mixture in mixtures:
                y = mixture(y, weights)
            y.square().mean().backward()
            for modules in chain:
                modules.zero_grad()
        del y
        gc.collect()
        torch.cuda.empty_cache()
        own = [one.memory._buffer.nbytes for mixture in mixtures for one in mixture._recordings.by_size.values()]
        return torch.cuda.memory_reserved() - before, sum(own)

    (one, _), (several, own) = taken(1), taken(8)
    figure(f"one layer {one / 1e6:.0f} MB, eight {several / 1e6:.0f} MB, of which {own / 1e6:.0f} MB their own")
    assert several < 1.5 * one + own
