"""Memory of fused layers on a GPU, counted without one: against the same passes with data, and in closed form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hitdet_nni.config.settings import load_settings
from hitdet_nni.kernels.gpu import depthwise, launch, moments, normalization
from hitdet_nni.kernels.gpu import mixture as mixture_programs
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.model.level_norm import LevelBatchNorm2d
from hitdet_nni.nas.fused import FusedMixture, backend, function
from hitdet_nni.nas.memory import gpu_passes
from hitdet_nni.nas.memory.estimate import estimate_step_memory
from hitdet_nni.nas.memory.gpu_passes import GpuLayers, count_passes, layers_of_programs, mixture_of
from hitdet_nni.nas.memory.live_bytes import LiveBytes
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer, set_activations
from hitdet_nni.nas.strategy import ColumnSparseDARTS
from hitdet_nni.operators.registry import OPERATORS, build_operator

NAMES = ("ir_k3_d1_e3", "ir_k5_d2_e1", "sep_k3_d1", "conv_k3_d1")
SHAPE = (2, 8, 12, 10)
GPU = torch.device("cuda")


@pytest.fixture(params=[NAMES])
def layer(monkeypatch, request):
    """Stands for a mixed layer in ``fused``."""
    torch.manual_seed(0)
    modules = nn.ModuleDict({name: build_operator(name, 8, 8, 1) for name in request.param})
    monkeypatch.setattr(gpu_passes, "mixture_of", lambda modules: FusedMixture(dict(modules.items()), "fused"))
    return modules


def spaces(tiny, mode="fused-low"):
    space = HitDetectorSpace(tiny, {"backbone": NAMES[:2], "neck": ["sep_k3_d1"], "head": NAMES[2:]}, 10)
    ColumnSparseDARTS().mutate_model(space)
    set_activations(space, mode)
    return space


@pytest.mark.parametrize("layer", [NAMES[:3]], indirect=True)
def test_passes_without_data_take_what_they_take_with_data(layer, monkeypatch):
    layer.double()  # a CPU multiplies single precision by oneDNN, which needs room of its own
    counted = count_passes(layer, SHAPE, torch.float64, torch.float64, recorded=False)
    for module in (backend, function):
        monkeypatch.setattr(module, "uses_triton", lambda x: True)

    def uncounted(live):
        """Leave out what Triton's interpreter makes."""

        def start(program, grid, /, *arguments, **constants):
            with live.paused():
                launch.start(program, grid, *arguments, **constants)

        for module in (depthwise, mixture_programs, moments, normalization):
            monkeypatch.setattr(module, "start", start)
        return live

    mixture = FusedMixture(dict(layer.items()), "fused")
    x = torch.randn(SHAPE, dtype=torch.float64).to(memory_format=torch.channels_last)
    weights = torch.full((len(layer),), 1 / len(layer), dtype=torch.float64)
    parameters = [p for unit in mixture.units for p in (unit.conv.weight, unit.norm.weight, unit.norm.bias)]
    known = [x, weights, *parameters, *mixture.changed()]
    with torch.no_grad():
        passes = mixture.passes(x, torch.float64, mixture.policy)
        with uncounted(LiveBytes(known)) as live:
            output, tape = passes.forward(x, weights, parameters)
            forward = live.peak
        grad = torch.ones_like(output)
        kept = list(tape.tensors.values())
        with uncounted(LiveBytes([*known, output, grad, *kept])) as live:
            gradients = passes.backward(tape, x, weights, parameters, (True, False, *(True for _ in parameters)), grad)
    assert counted.output_shape == tuple(output.shape)
    assert counted.kept == sum(tensor.nbytes for tensor in kept)
    assert counted.of_parameters == sum(one.nbytes for one in gradients[2:])
    assert counted.forward == pytest.approx(forward, rel=0.01)
    assert counted.backward == pytest.approx(live.peak, rel=0.03)


def test_counting_leaves_the_layer_as_it_was(layer):
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    count_passes(layer, SHAPE, torch.float32, torch.bfloat16, recorded=True)
    after = layer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_maps_grow_with_the_input_and_halve_in_16_bits(layer):
    small, large = (
        count_passes(layer, (count, 8, 40, 40), torch.float32, torch.float32, recorded=True) for count in (2, 4)
    )
    assert large.kept == pytest.approx(2 * small.kept, rel=0.02)
    assert large.output_bytes == 2 * small.output_bytes == 4 * 8 * 40 * 40 * 4
    half = count_passes(layer, (4, 8, 40, 40), torch.bfloat16, torch.bfloat16, recorded=True)
    assert half.kept == pytest.approx(large.kept / 2, rel=0.02)


@pytest.mark.parametrize("layer", [OPERATORS], indirect=True)
def test_what_is_kept_is_not_held_twice_while_a_pass_is_recorded(layer):
    shape = (8, 8, 80, 80)  # maps above LARGE
    eager, recorded = (
        count_passes(layer, shape, torch.float32, torch.float32, recorded=recorded) for recorded in (False, True)
    )
    assert recorded.kept == eager.kept
    assert recorded.forward < eager.forward - 0.7 * eager.kept
    assert recorded.footprint().held == 0
    assert eager.footprint().held == eager.kept


def test_layers_share_all_but_inputs_and_what_is_kept(layer):
    x = torch.empty(SHAPE)
    layers = [nn.ModuleDict(layer.items()) for _ in range(3)]
    gpu = GpuLayers(layers, torch.float32)
    one = gpu.passes(layers[0], x)
    assert one.shared_forward < one.shared_backward
    shared = one.shared_forward + one.shared_backward  # the forward pass was recorded first, and keeps what it has
    assert gpu.recorded_bytes() == one.inputs + one.kept + shared + max(one.forward, one.backward)
    alone = gpu.recorded_bytes()
    for other in layers[1:]:
        assert gpu.passes(other, x) is one  # counted once
    assert gpu.recorded_bytes() == alone + 2 * (one.inputs + one.kept)
    more = {layers[0]: 5, layers[1]: 3, layers[2]: 4}  # recorded from the last to the first
    for other, factor in more.items():
        gpu._met[other, x.shape] = replace(one, shared_backward=factor * one.shared_backward)
    assert gpu.recorded_bytes() == alone + 2 * (one.inputs + one.kept) + (4 + 5 - 1) * one.shared_backward


def test_only_fused_layers_on_a_gpu_are_counted_so(tiny):
    space = spaces(tiny)
    fused = layers_of_programs(space.detector, GPU)
    mixed = [part for part in fused if isinstance(part, ColumnSparseMixedLayer)]
    assert {part.label.split("/")[0].split("_")[0] for part in mixed} == {"backbone", "head"}
    assert len(fused) > len(mixed)  # the neck's are fixed at one operator
    assert all(mixture_of(part).candidates for part in fused)
    assert layers_of_programs(space.detector, torch.device("cpu")) == []
    assert layers_of_programs(spaces(tiny, "all").detector, GPU) == []


def test_estimate_for_a_gpu_has_recorded_passes(tiny_settings):
    skeleton = tiny_settings.skeleton
    found = {
        mode: estimate_step_memory(spaces(skeleton, mode), tiny_settings, skeleton, GPU)
        for mode in ("all", "fused", "fused-low", "fused-min")
    }
    assert found["all"].recorded == 0
    assert found["fused"].recorded > found["fused-low"].recorded > found["fused-min"].recorded > 0
    assert "recorded passes" in found["fused"].sentence()
    assert estimate_step_memory(spaces(skeleton), tiny_settings, skeleton, torch.device("cpu")).recorded == 0


def test_what_is_counted_once_depends_on_what_is_recorded_and_kept(tiny_settings, monkeypatch):
    """Also of layers that are fixed at one operator, as the neck's are here."""
    space = spaces(tiny_settings.skeleton)

    def recorded():
        return estimate_step_memory(space, tiny_settings, tiny_settings.skeleton, GPU).recorded

    modes = {"backbone": "fused-low", "neck": "fused", "head": "fused-low"}
    set_activations(space, modes)
    first = recorded()
    set_activations(space, modes | {"neck": "fused-min"})
    assert recorded() < first
    monkeypatch.setattr(FusedMixture, "recordable", False)  # as with statistics of several processes
    assert recorded() == 0


def test_counting_leaves_the_levels_of_a_pyramid_s_statistics(layer):
    norms = nn.ModuleList(LevelBatchNorm2d(8, levels=2) for _ in NAMES)
    for block, norm in zip(layer.values(), norms, strict=True):
        last = block.project if hasattr(block, "project") else block
        last.bn = norm
    count_passes(layer, SHAPE, torch.float32, torch.float32, recorded=False)
    assert all(not norm.batches for norm in norms)


def test_batches_of_both_orientations_need_the_room_of_squares():
    settings = load_settings("tiny", {"skeleton.input_size": [64, 128]})
    space = spaces(settings.skeleton)
    one, both = (
        estimate_step_memory(space, settings, settings.skeleton, GPU, upright=upright) for upright in (False, True)
    )
    assert 1.5 * one.recorded < both.recorded < 3 * one.recorded


class Started(TorchDispatchMode):
    """Counts the operators that a GPU starts kernels for: those that make or change data."""

    FREE = (
        *("alias", "as_strided", "detach", "expand", "lift_fresh", "permute", "select", "slice", "split"),
        *("split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view"),
        *("empty", "empty_like", "new_empty", "promote_types"),
    )

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "_foreach_copy_" and not all(map(laid_out_alike, *args)):
            self.count += len(args[0])  # torch then copies one after the other
        else:
            self.count += name not in self.FREE
        return func(*args, **(kwargs or {}))


def laid_out_alike(one, other):
    """Sizes and strides, but for the strides of what has one entry."""
    strides = zip(one.shape, one.stride(), other.stride(), strict=True)
    return one.shape == other.shape and all(mine == its for length, mine, its in strides if length > 1)


@pytest.mark.parametrize(("layer", "limit"), [(OPERATORS, 1000)], indirect=["layer"])
def test_kernels_of_a_step(layer, limit, monkeypatch, figure):
    """Starting kernels limits steps with one image on a GPU; before they were counted, 1669 were started here."""
    layer.to("meta")
    mixture = FusedMixture(dict(layer.items()))
    x = torch.empty(1, 8, 100, 152, device="meta").to(memory_format=torch.channels_last)
    weights = torch.empty(len(layer), device="meta")
    parameters = [p.detach() for unit in mixture.units for p in (unit.conv.weight, unit.norm.weight, unit.norm.bias)]
    passes = mixture.passes(x, torch.float32, mixture.policy)
    programs = []
    for module in (depthwise, mixture_programs, moments, normalization):
        monkeypatch.setattr(module, "start", lambda program, grid, /, *a, **k: programs.append(program))
    with torch.no_grad(), Started() as started:
        for phase in ((True, True, *(False for _ in parameters)), (True, False, *(True for _ in parameters))):
            output, tape = passes.forward(x, weights, parameters)
            passes.backward(tape, x, weights, parameters, phase, torch.empty_like(output))
    total = started.count + len(programs)
    figure(f"{total} kernels a step of a layer of {len(layer)}, {len(programs)} of them programs")
    assert total <= limit
