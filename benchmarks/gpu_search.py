"""A whole search and retraining by the `hitdet-nni` command, in single precision and in bf16, and what they detect.

The size of the pipeline follows from the time: the largest whose steps, at the rates below, both precisions are likely
to end with. Both run side by side.

    python benchmarks/gpu_search.py --out search.json --work runs/search
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from measure import echo

PRECISIONS = ("fp32", "bf16")
START = 50.0
"""Seconds that the start of both commands takes, evaluations included."""

SEARCH_STEP, RETRAIN_STEP = 0.6, 0.12
"""Seconds of a step on a GPU beside another search, generously."""

SAMPLE_PASS = 0.06
"""Seconds of a batch of a sampled architecture, in the same way."""


@dataclass(frozen=True)
class Size:
    """How much of a pipeline is run.

    Attributes:
        name: What it is called.
        config: The shipped config that it is a diff of.
        steps: Steps of screening and search, and of retraining, for ``images``.
        samples: Batches of sampled architectures, whatever the images.
        images: Images of the training set.
        changes: Settings that differ, by dotted key.
        screened: Whether sub-spaces are screened; else they are two operators a component.
    """

    name: str
    config: str
    steps: tuple[int, int]
    samples: int
    images: int
    changes: Mapping[str, object] = field(default_factory=dict)
    screened: bool = True

    def seconds(self, images: int) -> float:
        """Time that it takes with so many images, if the machine is as fast as is thought."""
        searching, retraining = self.steps
        steps = (searching * SEARCH_STEP + retraining * RETRAIN_STEP) * images / self.images
        return START + steps + self.samples * SAMPLE_PASS


SIZES = (
    Size("whole", "digits", (540, 1440), 4608, 240),
    Size(
        "half",
        "digits",
        (180, 720),
        1536,
        120,
        {
            "screening.epochs": 2,
            "screening.sample_images": 32,
            "data.train": 120,
            "search.epochs": 6,
            "retrain.epochs": 24,
            "retrain.val_interval": 24,
        },
    ),
    Size(
        "short",
        "digits",
        (60, 240),
        512,
        120,
        {
            "screening.joint": True,
            "screening.epochs": 2,
            "screening.sample_images": 32,
            "data.train": 120,
            "search.epochs": 2,
            "retrain.epochs": 8,
            "retrain.milestones": [5, 7],
            "retrain.val_interval": 8,
        },
    ),
    Size("tiny", "tiny", (32, 16), 0, 32),
)
"""From large to small; the last is taken where none fits."""

TOY = Size(
    "toy",
    "tiny",
    (2, 2),
    0,
    8,
    {"data.train": 8, "data.val": 4, "retrain.epochs": 1, "retrain.warmup_iterations": 1},
    screened=False,
)
TOY_OPERATORS = ["sep_k3_d1", "ir_k3_d1_e1"]


@dataclass(frozen=True)
class SearchFigures:
    """What a search and the retraining of its architecture came to.

    Attributes:
        data: ``"digits"`` or ``"cards"``.
        size: Name of a :class:`Size`.
        precision: Type of the activations.
        search_s: Wall time of the first command, start included; ``None`` where it failed.
        retrain_s: The same of the second.
        map: mAP on the validation images after retraining.
        gflops: Multiply-adds of the found detector, 10^9.
        sample: Operator of each layer.
        problem: Last line of a command that failed.
    """

    data: str
    size: str
    precision: str
    search_s: float | None = None
    retrain_s: float | None = None
    map: float | None = None
    gflops: float | None = None
    sample: Mapping[str, str] | None = None
    problem: str | None = None


class CommandError(Exception):
    """A command failed, or its time was over."""


def hitdet(arguments: Sequence[str], cache: Path, until: float) -> float:
    """Run the command; its wall time in seconds.

    Args:
        arguments: Its arguments.
        cache: Folder for the embedded images, which two commands at once would both make.
        until: Unix time at which it is ended.

    Raises:
        CommandError: With its last line.
    """
    started = time.time()
    command = [sys.executable, "-m", "hitdet_nni", *arguments]
    options: dict[str, Any] = {
        "timeout": max(1.0, until - started),
        "env": {**os.environ, "XDG_CACHE_HOME": str(cache)},
    }
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    except subprocess.TimeoutExpired:
        raise CommandError(f"{arguments[0]}: out of time after {time.time() - started:.0f} s") from None
    sys.stdout.write(done.stdout + done.stderr)
    if done.returncode:
        raise CommandError(f"{arguments[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return time.time() - started


def search_and_retrain(data: str, config: str, size: Size, precision: str, work: Path, until: float) -> SearchFigures:
    """Run both commands in one precision.

    Args:
        data: What the images are called.
        config: Config file, or a shipped one's name.
        size: Which settings differ from it.
        precision: Type of the activations.
        work: Folder for the runs.
        until: Unix time at which a command is ended.
    """
    changes = {**size.changes, "precision": precision}
    settings = [part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    cache = work / f"{data}-{precision}-cache"
    searched, retrained = (work / f"{data}-{precision}-{stage}" for stage in ("search", "retrain"))
    spaces = [] if size.screened else ["--sub-spaces", str(work / "spaces.yml")]
    found: dict[str, Any] = {"data": data, "size": size.name, "precision": precision}
    try:
        common = ("--config", config, *settings)
        found["search_s"] = hitdet(["search", *common, *spaces, "--out", str(searched)], cache, until)
        architecture = searched / "architecture.json"
        found["sample"] = json.loads(architecture.read_text(encoding="utf-8"))["sample"]
        found["retrain_s"] = hitdet(
            ["retrain", *common, "--architecture", str(architecture), "--out", str(retrained)], cache, until
        )
        metrics = json.loads((retrained / "metrics.json").read_text(encoding="utf-8"))
        found |= {"map": metrics["mAP"], "gflops": metrics["gflops"]}
    except CommandError as error:
        found["problem"] = str(error)
    return SearchFigures(**found)


def choose_size(seconds: float, images: int | None) -> Size:
    """The largest size that fits in a time, else the smallest.

    Args:
        seconds: The time.
        images: Training images, where they are not the size's to choose.
    """
    return next((size for size in SIZES if size.seconds(images or size.images) <= seconds), SIZES[-1])


def cards_images(cards: Path) -> int:
    """Training images of a folder as :func:`cards_config` takes it."""
    return len(json.loads((cards / "annotations" / "instances_train.json").read_text(encoding="utf-8"))["images"])


def cards_config(cards: Path, work: Path) -> str:
    """A config file for a folder with ``annotations/instances_train.json``, ``train`` and the same of ``val``."""
    data: dict[str, object] = {"builtin": None}
    for half in ("train", "val"):
        data |= {
            f"{half}_ann": str(cards / "annotations" / f"instances_{half}.json"),
            f"{half}_images": str(cards / half),
        }
    path = work / "cards.yml"
    config = {"extends": "digits", "data": data, "skeleton": {"input_size": [128, 128]}}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(path)


def main() -> None:
    """Search, retrain, and write the figures after each pair of runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="file for the figures (JSON)")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--cards", type=Path, help="folder with annotations, train and val: searched too")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"), help="what is there; a CPU takes the toy")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--until", type=float, help="Unix time at which all is to be done (default: no limit)")
    options = parser.parse_args()
    until = options.until or time.time() + 24 * 3600
    options.work.mkdir(parents=True, exist_ok=True)
    (options.work / "spaces.yml").write_text(
        yaml.safe_dump(dict.fromkeys(("backbone", "neck", "head"), TOY_OPERATORS)), encoding="utf-8"
    )
    sets = ["digits"] + ([] if options.cards is None else ["cards"])
    rows: list[dict[str, Any]] = []
    for number, data in enumerate(sets):
        left = (until - time.time()) / (len(sets) - number)
        images = None if data == "digits" else cards_images(options.cards)
        size = TOY if options.toy else choose_size(left, images)
        config = size.config if images is None else cards_config(options.cards, options.work)
        if images is not None:
            changes = {key: value for key, value in size.changes.items() if not key.startswith("data.")}
            size = replace(size, changes=changes)
        echo(f"{data}, {size.name}: {size.seconds(images or size.images):.0f} s expected, {left:.0f} s are there")
        with ThreadPoolExecutor(len(PRECISIONS)) as pool:
            jobs = [
                pool.submit(search_and_retrain, data, config, size, precision, options.work, time.time() + left)
                for precision in (PRECISIONS[:1] if options.toy else PRECISIONS)
            ]
            found = [job.result() for job in jobs]
        for figures in found:
            echo(" ".join(f"{key} {value}" for key, value in asdict(figures).items() if key != "sample"))
        rows += [asdict(figures) for figures in found]
        options.out.write_text(json.dumps({"figures": rows, "missing": sets[number + 1 :]}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
