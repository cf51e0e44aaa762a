"""The curves of a retraining, read off mmengine's log files."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from hitdet_nni.io import read_text

_TRAIN = re.compile(r"Epoch\(train\)\s+\[(\d{1,9})\]\[\s*(\d{1,9})/\s*(\d{1,9})\].*?\sloss: ([-+.\w]+)")
_VAL = re.compile(r"Epoch\(val\)\s+\[(\d{1,9})\]\[\s*\d+/\s*\d+\](.*)")
_METRIC = re.compile(r"coco/bbox_(\w+): ([-+.\w]+)")


@dataclass(frozen=True)
class TrainingLog:
    """What mmengine logged of a retraining.

    Attributes:
        losses: Position in epochs (2.5 is the middle of the third) and training loss, in order.
        evaluations: Finished epochs and average precisions in [0, 1] of every evaluation, in order.
    """

    losses: tuple[tuple[float, float], ...] = ()
    evaluations: tuple[tuple[int, dict[str, float]], ...] = ()


def read_training_log(folder: Path) -> TrainingLog:
    """Read all logs of a retraining; where it was stopped and went on, the later log counts.

    Lines of any other form are passed over: the file is a log for people, and its last line may be cut off.

    Args:
        folder: The run's ``retrain`` folder. mmengine makes a folder in it each time it starts, named by the time.

    Raises:
        InputError: If a log cannot be read.
    """
    losses: dict[float, float] = {}
    evaluations: dict[int, dict[str, float]] = {}
    for log in sorted(folder.glob("*/*.log")):
        for line in read_text(log).splitlines():
            if (found := _TRAIN.search(line)) and int(found[3]):
                loss = _finite(found[4])
                if loss is not None:
                    losses[int(found[1]) - 1 + int(found[2]) / int(found[3])] = loss
            elif found := _VAL.search(line):
                metrics = _metrics(found[2])
                if "mAP" in metrics:
                    evaluations[int(found[1])] = metrics
    return TrainingLog(tuple(sorted(losses.items())), tuple(sorted(evaluations.items())))


def _metrics(line: str) -> dict[str, float]:
    return {name: value for name, text in _METRIC.findall(line) if (value := _finite(text)) is not None}


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
