"""A table of latencies, measured: every operator in every layer, what is not searched, and what lies between."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.search_space import layer_candidates
from hitdet_nni.config.skeleton import Component
from hitdet_nni.cost.latency_table import SCHEMA_VERSION, Conditions, TableContent, WholeDetector
from hitdet_nni.deployment.loading import untrained_detector
from hitdet_nni.deployment.timing.layers import Application, fixed_applications, searched_applications
from hitdet_nni.deployment.timing.runtimes import ModuleRunner, Opener
from hitdet_nni.deployment.timing.stopwatch import Times, time_in_turns
from hitdet_nni.engine.machine import processor
from hitdet_nni.engine.progress import Stage
from hitdet_nni.engine.randomness import fork_rng


def measure_table(
    detectors: Sequence[Architecture],
    space: Mapping[Component, Sequence[str]],
    runner: ModuleRunner,
    *,
    rounds: int,
    pause: float,
) -> TableContent:
    """Measure a table: each distinct shape of a layer with each operator once.

    The time of a detector is the sum of its layers' and an overhead, the same for all: normalisation, resizing of maps,
    RoIAlign, decoding and suppression of boxes, and what the runtime does between two layers. It is the median of what
    whole detectors take beyond their layers. Weights are initial ones; a detector proposes as many RoIs as a trained
    one and finds nothing, and suppression among an image's many detections takes a little longer.

    Args:
        detectors: Architectures to measure as a whole, at least one, all of one skeleton and number of classes.
        space: Operators of each component.
        runner: Runs them.
        rounds: Bursts of each program.
        pause: Seconds between rounds.
    """
    skeleton, num_classes = detectors[0].skeleton, detectors[0].num_classes
    candidates = layer_candidates(skeleton, space)
    with fork_rng():
        fixed = fixed_applications(untrained_detector(detectors[0]), skeleton)
    searched = {
        (layer.label, name): searched_applications(layer, name, skeleton)
        for layer in skeleton.searched_layers()
        for name in candidates[layer.label]
    }
    times = _measure([*fixed.values(), *searched.values()], detectors, runner, rounds, pause)

    def total(applications: Sequence[Application]) -> float:
        return sum(times.milliseconds(each.key) for each in applications)

    fixed_ms = {name: total(applications) for name, applications in fixed.items()}
    layers_ms = {label: {name: total(searched[label, name]) for name in names} for label, names in candidates.items()}
    whole = []
    for number, one in enumerate(detectors):
        layers = sum(layers_ms[label][name] for label, name in one.sample.items()) + sum(fixed_ms.values())
        whole.append(WholeDetector(sample=one.sample, layers_ms=layers, measured_ms=times.milliseconds((number,))))
    return TableContent(
        schema_version=SCHEMA_VERSION,
        conditions=conditions_of(runner, rounds, pause, times.unrest),
        skeleton=skeleton,
        shape=skeleton.padded_size,
        num_classes=num_classes,
        layers_ms=layers_ms,
        fixed_ms=fixed_ms,
        detectors=tuple(whole),
        overhead_ms=statistics.median(one.measured_ms - one.layers_ms for one in whole),
    )


def conditions_of(runner: ModuleRunner, rounds: int, pause: float, unrest: float) -> Conditions:
    """Return how latencies were measured by a runner on this machine."""
    return Conditions(
        runtime=runner.name,
        version=runner.version,
        device=runner.device,
        threads=runner.threads,
        machine=processor(runner.device),
        rounds=rounds,
        pause_ms=1000 * pause,
        unrest=unrest,
    )


def measure_detectors(
    detectors: Sequence[Architecture], runner: ModuleRunner, *, rounds: int, pause: float
) -> list[float]:
    """Return the milliseconds that detectors with initial weights take for an image, each as a whole.

    Args:
        detectors: Their architectures, of one skeleton.
        runner: Runs them.
        rounds: Bursts of each.
        pause: Seconds between rounds.
    """
    times = _measure([], detectors, runner, rounds, pause)
    return [times.milliseconds((number,)) for number in range(len(detectors))]


def _measure(
    applications: Sequence[Sequence[Application]],
    detectors: Sequence[Architecture],
    runner: ModuleRunner,
    rounds: int,
    pause: float,
) -> Times[tuple[object, ...]]:
    """Return the times of each application by its key, and of each detector by its place."""
    distinct = {each.key: each for row in applications for each in row}
    with TemporaryDirectory() as folder, fork_rng():
        torch.manual_seed(0)
        programs: dict[tuple[object, ...], Opener] = {
            key: runner.compile(each.build().requires_grad_(False), torch.randn(each.shape), Path(folder))
            for key, each in distinct.items()
        }
        height, width = detectors[0].skeleton.input_size
        image = torch.randint(0, 256, (1, 3, height, width)).byte()
        for number, one in enumerate(detectors):
            programs[number,] = runner.compile(untrained_detector(one), image, Path(folder))
        stage = Stage("latency", rounds, len(programs))
        return time_in_turns(programs, rounds, pause, stage.step, lambda: stage.end_epoch({}))
