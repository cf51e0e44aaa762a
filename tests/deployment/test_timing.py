"""Latencies: the order and the medians of bursts, shapes against a detector that runs, and tables of known times."""

import itertools

import pytest
import torch

from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.latency_table import LatencyTable, fixed_names
from hitdet_nni.deployment.loading import untrained_detector
from hitdet_nni.deployment.timing import runtimes, stopwatch
from hitdet_nni.deployment.timing.layers import fixed_applications, searched_applications
from hitdet_nni.deployment.timing.runtimes import RUNNERS, ModuleRunner
from hitdet_nni.deployment.timing.stopwatch import BURST_SECONDS, FEWEST, MOST, WARM_UP, burst, time_in_turns
from hitdet_nni.deployment.timing.table import measure_detectors, measure_table
from hitdet_nni.studies.latency_prediction import Prediction, PredictionSummary
from hitdet_nni.studies.random_architectures import random_detectors

CLASSES = tuple(map(str, range(10)))
SPACE = {
    "backbone": ["ir_k3_d1_e1", "sep_k3_d2"],
    "neck": ["sep_k3_d1", "conv_k3_d1"],
    "head": ["conv_k3_d1", "ir_k5_d1_e1"],
}


@pytest.fixture(params=["tiny", "digits_retinanet"])
def settings(request):
    return load_settings(request.param, {"skeleton.input_size": [64, 96]})


class Clock:
    """A clock that programs move on."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(stopwatch, "time", made)
    return made


def test_a_burst_is_the_median_behind_the_warm_up(clock):
    durations = [9.0] * WARM_UP + [BURST_SECONDS / 3.5, BURST_SECONDS, BURST_SECONDS / 2, 50.0]
    left = iter(durations)

    def program():
        clock.now += next(left)

    assert burst(program) == pytest.approx(BURST_SECONDS / 2)
    assert list(left) == [50.0]  # as soon as they take long enough together, and there are enough, it ends


def test_fast_programs_run_often_and_slow_ones_a_few_times(clock):
    for seconds, runs in ((1.0, FEWEST), (BURST_SECONDS / 10.5, 11), (0.0, MOST)):
        count = itertools.count()

        def program(seconds=seconds, count=count):
            next(count)
            clock.now += seconds

        burst(program)
        assert next(count) - WARM_UP == runs


def test_programs_take_turns_one_open_at_a_time(clock):
    opened, told = [], []

    def opener(name, durations):
        left = iter(durations)

        def opened_one():
            opened.append(name)
            seconds = next(left)

            def program():
                clock.now += seconds

            return program

        return opened_one

    times = time_in_turns(
        {"a": opener("a", [3.0, 1.0, 2.0]), "b": opener("b", [10.0, 10.0, 40.0])},
        3,
        0.5,
        told.append,
        lambda: told.append("round"),
    )
    assert opened == ["a", "b"] * 3
    assert told == [3.0, 10.0, "round", 1.0, 10.0, "round", 2.0, 40.0, "round"]
    assert (times.milliseconds("a"), times.milliseconds("b")) == (2000, 10000)
    assert times.unrest == pytest.approx((1.0 + 0.0) / 2)  # 2 s against 1 s at best, 10 s against 10 s
    assert clock.now == pytest.approx(1.0 + (WARM_UP + FEWEST) * 66)  # two pauses


def test_shapes_are_those_of_a_detector_that_runs(settings):
    [one] = random_detectors(settings, SPACE, CLASSES, 1, "--detectors")
    detector, skeleton = untrained_detector(one), settings.skeleton
    seen = {}

    def note(name):
        return lambda module, inputs: seen.setdefault(name, []).append(tuple(inputs[0].shape))

    layers = {layer.label: layer for layer in skeleton.searched_layers()}
    blocks = [block for stage in detector.backbone.stages for block in stage]
    modules = {f"backbone/l{number:02d}": [block] for number, block in enumerate(blocks, 1)}
    rows = [*detector.neck.top_down, *detector.neck.bottom_up]
    modules |= {f"neck/l{number:02d}": [block] for number, block in enumerate(rows, 1)}
    if skeleton.layout.pooled:
        modules |= {f"head/l{n:02d}": [block] for n, block in enumerate(detector.roi_head.bbox_head.blocks, 1)}
        fixed = {"rpn/rpn": [detector.rpn_head.rpn_conv], "head/fc": [detector.roi_head.bbox_head.shared_fcs]}
    else:
        towers = [*zip(*detector.bbox_head.cls_convs, strict=True), *zip(*detector.bbox_head.reg_convs, strict=True)]
        modules |= {f"head/l{number:02d}": list(blocks) for number, blocks in enumerate(towers, 1)}
        fixed = {"head/classes": [detector.bbox_head.retina_cls], "head/boxes": [detector.bbox_head.retina_reg]}
    fixed["backbone/stem"] = [detector.backbone.stem]
    fixed |= {f"neck/fuse{number}": [block] for number, block in enumerate(detector.neck.fuse, 1)}
    fixed |= {f"neck/extra{number}": [block] for number, block in enumerate(detector.neck.extra, 1)}
    for name, parts in (modules | fixed).items():
        for part in parts:
            part.register_forward_pre_hook(note(name))
    detector(torch.randint(0, 256, (1, 3, *skeleton.input_size)).byte())
    found = {label: searched_applications(layer, one.sample[label], skeleton) for label, layer in layers.items()}
    assert {label: [each.shape for each in row] for label, row in found.items()} == {
        label: seen[label] for label in layers
    }
    parts = fixed_applications(detector, skeleton)
    assert set(parts) == set(fixed_names(skeleton, len(CLASSES))) == set(fixed)
    flat = {name: [shape if name != "head/fc" else (shape[0], 0) for shape in seen[name]] for name in fixed}
    shapes = {
        name: [each.shape if name != "head/fc" else (each.shape[0], 0) for each in row] for name, row in parts.items()
    }
    assert shapes == flat
    for row in (*found.values(), *parts.values()):
        for each in row:
            each.build()(torch.zeros(each.shape))  # what is built takes what it is said to take


def test_an_untrained_detector_proposes_all_it_may_and_finds_nothing(settings):
    for one in random_detectors(settings, SPACE, CLASSES, 3, "--detectors"):
        detector = untrained_detector(one)
        for seed in range(2):
            image = torch.randint(0, 256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(seed)).byte()
            boxes, scores, labels = detector(image)
            assert (boxes.shape, len(scores), len(labels)) == ((0, 4), 0, 0)
            if settings.skeleton.layout.pooled:
                rois = detector.heads(image)[-3]
                assert len(rois) == settings.skeleton.proposals_test


class KnownTimes(ModuleRunner):
    """Takes a millisecond for every thousand parameters and for every thousand numbers that come in."""

    name = "torch"
    overhead = 0.0

    def __init__(self, clock):
        super().__init__("cpu", 1)
        self.clock = clock
        self.compiled = 0

    def compile(self, module, example, folder):
        self.compiled += 1
        assert not module.training
        if hasattr(module, "pyramid"):
            seconds = whole_time(module, example) + self.overhead
        else:
            seconds = layer_time(module, example)

        def program():
            self.clock.now += seconds

        return lambda: program


def layer_time(module, example):
    return (sum(each.numel() for each in module.parameters()) + example.numel()) / 1e6


def whole_time(detector, image):
    """What the layers of a two-stage detector take, each on what it sees."""
    spent = [0.0]

    def add(module, inputs):
        spent[0] += layer_time(module, inputs[0])

    head = detector.roi_head.bbox_head
    hooks = [
        module.register_forward_pre_hook(add)
        for module in (
            detector.backbone.stem,
            *(block for stage in detector.backbone.stages for block in stage),
            *detector.neck.top_down,
            *detector.neck.bottom_up,
            *detector.neck.fuse,
            *head.blocks,
        )
    ]
    network, parts = detector.rpn_head, (head.shared_fcs, head.fc_cls, head.fc_reg)
    weights = sum(each.numel() for each in network.parameters())
    hooks.append(
        network.rpn_conv.register_forward_pre_hook(
            lambda module, inputs: spent.__setitem__(0, spent[0] + (weights + inputs[0].numel()) / 1e6)
        )
    )
    hooks.append(
        head.shared_fcs.register_forward_pre_hook(
            lambda module, inputs: spent.__setitem__(
                0,
                spent[0]
                + (sum(each.numel() for part in parts for each in part.parameters()) + inputs[0].numel()) / 1e6,
            )
        )
    )
    detector(image)
    for hook in hooks:
        hook.remove()
    return spent[0]


def test_a_table_of_known_times_predicts_them(clock, monkeypatch):
    settings = load_settings("tiny", {"skeleton.input_size": [64, 64]})
    monkeypatch.setattr(KnownTimes, "overhead", 0.0042)
    runner = KnownTimes(clock)
    detectors = random_detectors(settings, SPACE, CLASSES, 3, "--detectors")
    content = measure_table(detectors, SPACE, runner, rounds=2, pause=0.1)
    assert content.overhead_ms == pytest.approx(4.2)
    assert content.conditions.unrest == pytest.approx(0, abs=1e-9)
    shapes = {
        (layer.in_channels, layer.out_channels, layer.stride, layer.input_strides, layer.component)
        for layer in settings.skeleton.searched_layers()
    }
    assert runner.compiled == 2 * len(shapes) + len(fixed_names(settings.skeleton, 10)) - 1 + levels(settings) + 3
    model = CostModel(settings.skeleton, 10, latency=LatencyTable(content, "t.json"))
    others = random_detectors(settings, SPACE, CLASSES, 5, "--detectors", exclude=[one.sample for one in detectors])
    measured = measure_detectors(others, runner, rounds=1, pause=0)
    predicted = [model.architecture(one.sample)["total"].nanoseconds / 1e6 for one in others]
    assert predicted == pytest.approx(measured, abs=1e-4)
    assert len(set(measured)) == 5


def levels(settings):
    """The region proposal network is applied to every level."""
    return len(settings.skeleton.pyramid_strides)


@pytest.mark.parametrize("name", RUNNERS)
def test_a_real_table_has_every_operator(name):
    settings = load_settings("tiny", {"skeleton.input_size": [64, 64]})
    before = torch.get_rng_state()
    runner = RUNNERS[name]("cpu", 1)
    content = measure_table(
        random_detectors(settings, SPACE, CLASSES, 1, "--detectors"), SPACE, runner, rounds=1, pause=0
    )
    assert (torch.get_rng_state() == before).all()
    assert {label: list(row) for label, row in content.layers_ms.items()} == {
        layer.label: SPACE[layer.component] for layer in settings.skeleton.searched_layers()
    }
    assert all(ms > 0 for row in content.layers_ms.values() for ms in row.values())
    assert content.conditions.runtime == name
    assert content.conditions.version == runner.version
    assert content.detectors[0].measured_ms > content.layers_ms["head/l01"]["conv_k3_d1"]


def test_a_device_or_a_package_that_is_not_there_is_refused(monkeypatch, refused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with refused("--device", "torch finds no GPU"):
        RUNNERS["torch"]("cuda", 1)
    with refused("--device", "--runtime torch"):
        RUNNERS["onnxruntime"]("cuda", 1)
    monkeypatch.setattr(runtimes, "find_spec", lambda package: None)
    with refused("--runtime", "onnx"):
        RUNNERS["onnxruntime"]("cpu", 1)


def test_errors_and_ranks_of_predictions():
    pairs = [(1.0, 1.0), (2.2, 2.0), (3.0, 4.0), (9.0, 10.0)]
    found = PredictionSummary.of([Prediction(str(p), -p, p, m) for p, m in pairs])
    assert found.median_error == pytest.approx(0.1)  # of 0, .1, .25 and .1
    assert found.largest_error == pytest.approx(0.25)
    assert (found.spearman, found.spearman_gflops, found.detectors) == (pytest.approx(1), pytest.approx(-1), 4)
    assert "10.0 %" in found.sentences()[0]
