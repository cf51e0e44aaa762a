"""Accuracy and latency of one exported file, so that no figure is of another one."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations
from hitdet_nni.data.images.reading import read_image
from hitdet_nni.deployment.files import open_runtime_file
from hitdet_nni.deployment.formats import weights_digest
from hitdet_nni.deployment.images import Pixels, Predictor, fit_image
from hitdet_nni.deployment.timing.stopwatch import WARM_UP
from hitdet_nni.engine.machine import processor
from hitdet_nni.errors import InputError
from hitdet_nni.runs.benchmark import FileBenchmark, Percentiles
from hitdet_nni.training.precisions import Detections


def require_weights(file: Path, weights: Path) -> None:
    """Refuse a file that was not made of a run's weights.

    Raises:
        InputError: If it was made of others, or the run has none.
    """
    if not weights.is_file():
        raise InputError("no such file", source=weights, allowed="a run that was retrained, or --config with --out")
    if open_runtime_file(file, 1).weights != weights_digest(weights):
        raise InputError(f"was not made of {weights}", source=file, allowed="hitdet-nni export of this run, or --out")


def benchmark_file(
    file: Path, validation: CocoAnnotations, threads: int, timed_images: int, rounds: int, pause: float
) -> FileBenchmark:
    """Evaluate a file on all validation images, and time it on some of them.

    Args:
        file: A file of ``export`` in ONNX, or the ``.xml`` of one of OpenVINO.
        validation: The images.
        threads: Threads of one operation.
        timed_images: Images that are timed, evenly spaced over the set; of a smaller set all.
        rounds: How often each of them is run.
        pause: Seconds between rounds.

    Raises:
        InputError: If the file is no detector, or of other classes.
    """
    detector = open_runtime_file(file, threads)
    if detector.classes != validation.classes_in_file_order:
        raise InputError(
            f"has the classes {', '.join(detector.classes[:5])}, ...",
            source=file,
            allowed=f"those of {validation.source}: {', '.join(validation.classes_in_file_order[:5])}, ...",
        )
    files = [validation.images / name for name in validation.file_names]
    metrics = Detections.of(detector, validation).precisions()
    count = min(timed_images, len(files))
    chosen = [fit_image(read_image(files[k * len(files) // count]), detector.input_size) for k in range(count)]
    times = _times(detector, chosen, rounds, pause)
    p50, p90, p99 = np.percentile(times, [50, 90, 99]).tolist()
    return FileBenchmark(
        file=file.name,
        precision=detector.precision,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        images=len(files),
        metrics=metrics,
        latency_ms=Percentiles(p50=1000 * p50, p90=1000 * p90, p99=1000 * p99),
        runs=len(times),
        runtime=detector.runtime,
        threads=threads,
        machine=processor("cpu"),
        rounds=rounds,
        pause_ms=1000 * pause,
    )


def _times(detector: Predictor, images: Sequence[Pixels], rounds: int, pause: float) -> list[float]:
    """Return the seconds of every timed run; each round is warmed up anew."""
    times: list[float] = []
    for number in range(rounds):
        if number:
            time.sleep(pause)
        for image in [*([images[0]] * WARM_UP), *images]:
            started = time.perf_counter()
            detector.run(image)
            times.append(time.perf_counter() - started)
        del times[-len(images) - WARM_UP : -len(images)]
    return times
