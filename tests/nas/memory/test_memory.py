"""Memory of a search step: tensors counted exactly, the estimate against what processes really take."""

from __future__ import annotations

import copy
import gc
import json
import os
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.data.loaders import search_loaders
from hitdet_nni.engine.precision import Precision
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.nas.evaluator import detection_loss
from hitdet_nni.nas.memory import estimate as estimate_module
from hitdet_nni.nas.memory.estimate import GPU_LIBRARIES, MemoryEstimate, estimate_step_memory, free_memory
from hitdet_nni.nas.memory.footprint import Footprint, candidate_kind, compose, measure
from hitdet_nni.nas.memory.live_bytes import LiveBytes
from hitdet_nni.nas.memory.step_simulation import StepSimulation, image_size
from hitdet_nni.nas.mixed import ACTIVATION_MODES, ColumnSparseMixedLayer, set_activations
from hitdet_nni.nas.strategy import ColumnSparseDARTS

CPU = torch.device("cpu")
SPACE = {
    "backbone": ["ir_k3_d1_e3", "ir_k5_d2_e3", "conv_k3_d1"],
    "neck": ["sep_k3_d1", "ir_k3_d1_e1"],
    "head": ["ir_k3_d1_e3", "conv_k3_d1"],
}


def supernet(skeleton, mode="all"):
    torch.manual_seed(0)
    space = HitDetectorSpace(skeleton, SPACE, 10)
    ColumnSparseDARTS().mutate_model(space)
    set_activations(space, mode)
    return space


def first_layer(space, component):
    layers = (layer for layer in space.modules() if isinstance(layer, ColumnSparseMixedLayer))
    return next(layer for layer in layers if layer.label.startswith(component))


@pytest.mark.parametrize("context", [LiveBytes, FakeTensorMode], ids=["with data", "without data"])
def test_live_bytes_count_storages_once_and_while_they_live(context):
    with context(), LiveBytes() as live:
        a = torch.empty(1000)
        view = a.view(10, 100)[2:]
        b = view + 1
        assert (live.now, live.peak) == (4000 + 3200, 4000 + 3200)
        del a
        assert live.now == 7200  # the view holds it
        del view
        assert live.now == 3200
        del b
        assert (live.now, live.peak) == (0, 7200)
        live.forget_peak()
        assert live.peak == 0


def test_live_bytes_count_what_autograd_holds():
    x = torch.ones(100, requires_grad=True)
    with LiveBytes([x]) as live:
        y = x.exp().exp()  # each keeps its result
        assert live.now == 800
        y.sum().backward()
        assert live.now == 400 + 400  # y and the gradient of x
        del y
        assert live.now == 400
        assert live.peak >= 1200


def test_live_bytes_pause():
    with LiveBytes() as live:
        with live.paused():
            kept = torch.empty(10)
        assert live.now == 0
        del kept
        assert live.now == 0


@pytest.mark.parametrize("alphas", [True, False])
def test_footprint_of_a_convolution_block(tiny, alphas):
    """In closed form: batch normalisation keeps its input and two numbers a channel, ReLU its output."""
    layer = first_layer(supernet(tiny), "backbone")
    layer.alpha.requires_grad_(alphas)
    x = torch.empty(4, tiny.stem_channels, 48, 48, requires_grad=True)
    measured = measure(layer, ["conv_k3_d1"], x, torch.float32)
    width = tiny.widths[0]
    assert measured.output_shape(torch.Size([4, 8, 48, 47])) == (4, width, 24, 24)
    weight = 4  # of the candidate, a scalar
    for side in (48, 50):
        output = 4 * width * 4 * (side // 2) ** 2
        held = measured.footprint(4 * side * side).held
        assert held == 2 * output + 2 * width * 4 + weight
        # Backward begins with the term's gradient given and makes one tensor of each size at a time.
        assert measured.footprint(4 * side * side).backward > held + output


def test_footprint_does_not_depend_on_kernel_and_dilation(tiny):
    layer = first_layer(supernet(tiny), "backbone")
    x = torch.empty(1, tiny.stem_channels, 8, 8, requires_grad=True)
    kinds = [candidate_kind(layer[name]) for name in SPACE["backbone"]]
    assert kinds[0] == kinds[1] != kinds[2]
    one, other = (measure(layer, [name], x, torch.float32) for name in SPACE["backbone"][:2])
    assert one == other


@pytest.mark.parametrize("mode", ACTIVATION_MODES)
def test_footprint_of_a_single_pixel_is_not_negative(mode, tiny):
    """Such maps stand at the top of a RetinaNet's pyramid of small images."""
    layer = first_layer(supernet(tiny, mode), "neck")
    measured = measure(layer, SPACE["neck"], torch.empty(1, tiny.widths[0], 1, 1, requires_grad=True), torch.float32)
    smallest = measured.footprint(1)
    assert min(astuple(smallest)) >= 0
    assert measured.footprint(16).forward > smallest.forward


def test_composition():
    parts = [Footprint(held=10, forward=30, backward=50), Footprint(held=20, forward=25, backward=60)]
    assert compose(parts, input_size=5, sum_size=7) == Footprint(held=30, forward=42, backward=70)
    assert compose(parts[:1], input_size=5, sum_size=7) == Footprint(held=10, forward=30, backward=50)


def real_peak(space, settings, data, alphas, precision):
    """Most bytes of tensors alive in a real step of a phase, beside those that were there before."""
    for name, parameter in space.named_parameters():
        parameter.requires_grad_(name.endswith("_arch_alpha") is alphas)
    batch = next(iter(search_loaders(data, settings.data, settings.skeleton, 0)[0]))
    with LiveBytes([*space.parameters(), *space.buffers()]) as live:
        with precision.autocast():
            loss = detection_loss(space.detector, batch)
        precision.backward(loss)
    space.zero_grad()
    space.requires_grad_()
    return live.peak


@pytest.mark.parametrize(
    ("kind", "mode", "alphas", "precision"),
    [
        ("faster_rcnn", "all", True, "fp32"),
        ("faster_rcnn", "all", False, "fp32"),
        ("faster_rcnn", "checkpoint", False, "fp32"),
        ("retinanet", "all", False, "fp32"),
        pytest.param("faster_rcnn", "all", False, "bf16", marks=pytest.mark.slow),
        pytest.param("faster_rcnn", "checkpoint", True, "fp32", marks=pytest.mark.slow),
        pytest.param("retinanet", "all", True, "fp32", marks=pytest.mark.slow),
        pytest.param("retinanet", "checkpoint", False, "fp32", marks=pytest.mark.slow),
    ],
)
def test_simulation_equals_the_tensors_of_a_real_step(kind, mode, alphas, precision, tiny_settings, tiny_data):
    skeleton = load_settings("tiny", {"skeleton.detector": kind}).skeleton
    settings = tiny_settings.model_copy(update={"skeleton": skeleton})
    space = supernet(skeleton, mode)
    chosen = Precision(precision, CPU)
    simulated = StepSimulation(space.detector, skeleton, settings.data.batch_size, chosen.dtype).run(alphas=alphas)
    real = real_peak(space, settings, tiny_data, alphas, chosen)
    assert simulated.peak == pytest.approx(real, rel=0.06)
    assert simulated.held < simulated.peak
    weights = sum(p.nbytes for name, p in space.named_parameters() if name.endswith("_arch_alpha") is alphas)
    assert simulated.all_gradients == weights


def test_estimate_changes_nothing(tiny_settings):
    space = supernet(tiny_settings.skeleton, "checkpoint")
    layer = first_layer(space, "neck")
    layer.prune_to(SPACE["neck"][:1])
    before, random = copy.deepcopy(space.state_dict()), torch.get_rng_state()
    estimate = estimate_step_memory(space, tiny_settings, tiny_settings.skeleton, CPU)
    after = space.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]) if isinstance(value, torch.Tensor) else value == after[key]
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in space.parameters())
    assert not any("forward" in vars(module) for module in space.modules())
    assert type(layer._active_index) is torch.Tensor
    assert estimate.weights == sum(t.nbytes for t in (*space.parameters(), *space.buffers()))
    assert estimate.present == estimate.process + estimate.weights
    assert 0 < estimate.to_come < free_memory(CPU)
    alphas = sum(p.nbytes for name, p in space.named_parameters() if name.endswith("_arch_alpha"))
    assert estimate.optimisers == sum(p.nbytes for p in space.parameters()) + alphas


def test_estimate_knows_batch_mode_and_active_candidates(tiny_settings):
    skeleton = tiny_settings.skeleton

    def activations(mode="all", batch_size=4, kept=3):
        settings = tiny_settings.model_copy(
            update={"data": tiny_settings.data.model_copy(update={"batch_size": batch_size})}
        )
        space = supernet(skeleton, mode)
        for layer in space.modules():
            if isinstance(layer, ColumnSparseMixedLayer):
                layer.prune_to(layer.names[:kept])
        return estimate_step_memory(space, settings, skeleton, CPU).activations

    full = activations()
    assert activations(batch_size=8) == pytest.approx(2 * full, rel=0.05)
    assert activations(mode="checkpoint") < 0.4 * full
    assert activations(kept=1) < 0.8 * full


def test_supernets_of_one_form_are_counted_once(tiny_settings, monkeypatch):
    """Another seed of the same supernet is not simulated again; one with a candidate less, or another mode, is."""
    counted = []

    class Counted(StepSimulation):
        def __init__(self, *arguments, **options):
            counted.append(arguments)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(estimate_module, "StepSimulation", Counted)
    monkeypatch.setattr(estimate_module, "_LARGER_PHASES", {})
    skeleton = tiny_settings.skeleton

    def activations(mode="all", removed=0):
        space = supernet(skeleton, mode)
        if removed:
            layer = first_layer(space, "head")
            layer.prune_to(layer.active_names[removed:])
        return estimate_step_memory(space, tiny_settings, skeleton, CPU).activations

    first = activations()
    assert activations() == first
    assert len(counted) == 1
    assert activations(removed=1) < first
    assert activations("fused-low") != first
    assert len(counted) == 3


def test_a_gpu_s_libraries_are_counted_with_every_step(tiny_settings):
    """Nothing of the host's process, but a constant for what torch takes from a GPU beside tensors."""
    space = supernet(tiny_settings.skeleton)
    host, gpu = (
        estimate_step_memory(space, tiny_settings, tiny_settings.skeleton, torch.device(kind))
        for kind in ("cpu", "cuda")
    )
    assert (gpu.process, gpu.allocator, gpu.present) == (0, GPU_LIBRARIES, 0)
    tensors = gpu.weights + gpu.optimisers + gpu.gradients + gpu.activations
    assert gpu.total == gpu.to_come == tensors + GPU_LIBRARIES
    assert (gpu.weights, gpu.optimisers) == (host.weights, host.optimisers)


def test_batches_of_both_orientations_are_square():
    skeleton = Skeleton(input_size=(800, 1200))
    assert image_size(skeleton, 1) == (800, 1216)
    assert image_size(skeleton, 2) == (1216, 1216)
    assert image_size(skeleton, 2, upright=False) == (800, 1216)


def test_the_sentence_has_the_parts_and_their_sum():
    estimate = MemoryEstimate(
        process=500_000_000,
        weights=200_000_000,
        optimisers=400_000_000,
        gradients=0,
        activations=900_000_000,
        recorded=0,
        allocator=20_000_000,
        present=700_000_000,
    )
    assert (estimate.total, estimate.to_come) == (2_020_000_000, 1_320_000_000)
    assert estimate.sentence() == (
        "memory of a step: about 2.02 GB "
        "(weights 0.20, optimisers 0.40, activations 0.90, allocator 0.02, process 0.50)"
    )


def probe(component, mode, settings=None, device="cpu", steps=3):
    case = {"component": component, "mode": mode, "settings": settings or {}, "device": device, "steps": steps}
    script = Path(__file__).with_name("memory_probe.py")
    command = [sys.executable, str(script), json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LARGER = {
    "data.size": 160,
    "skeleton.input_size": [192, 192],
    "skeleton.widths": [24, 32, 48, 64],
    "skeleton.depths": [2, 2, 3, 2],
    "skeleton.stem_channels": 16,
    "skeleton.neck_width": 48,
    "skeleton.head_width": 48,
    "skeleton.roi_samples": 32,
}
"""A skeleton whose steps take hundreds of megabytes, so that the process at rest does not hide an error."""


def describe(result):
    return f"estimated {result['total'] / 1e9:.3f} GB, measured {result['measured'] / 1e9:.3f} GB"


@pytest.mark.slow
def test_estimate_is_near_what_a_process_takes(figure):
    result = probe("head", "all", steps=2)
    figure(describe(result))
    assert result["total"] == pytest.approx(result["measured"], rel=0.25)
    assert result["measured"] > result["process"] + result["weights"] + result["activations"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["all", "checkpoint", "fused-low"])
@pytest.mark.parametrize(
    ("component", "batch_size"), [("trinity", 2), ("trinity", 4), ("backbone", 2), ("neck", 2), ("head", 2)]
)
def test_estimate_is_near_what_a_larger_process_takes(component, batch_size, mode, figure):
    result = probe(component, mode, {**LARGER, "data.batch_size": batch_size})
    figure(describe(result))
    assert result["total"] == pytest.approx(result["measured"], rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["all", "checkpoint"])
def test_estimate_is_near_what_a_process_takes_in_bf16(mode, figure):
    result = probe("trinity", mode, {"precision": "bf16", "data.batch_size": 2})
    figure(describe(result))
    assert result["total"] == pytest.approx(result["measured"], rel=0.25)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("mode", ["all", "checkpoint", "fused", "fused-low"])
def test_estimate_is_near_what_a_gpu_takes(mode, precision, figure):
    """In the fused modes the first steps, which are not recorded yet, may take more."""
    result = probe("trinity", mode, {**LARGER, "precision": precision}, device="cuda")
    figure(describe(result))
    assert result["total"] == pytest.approx(result["measured"], rel=0.5 if mode.startswith("fused") else 0.25)


def test_what_a_gpu_s_allocator_keeps_for_later_is_free(monkeypatch):
    done = []
    monkeypatch.setattr(gc, "collect", lambda: done.append("collect"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("empty_cache"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (done.append("mem_get_info"), (7, 9))[1])
    assert free_memory(torch.device("cuda")) == 7
    assert done == ["collect", "empty_cache", "mem_get_info"]
