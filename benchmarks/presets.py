"""What presets take on this machine: seconds of every stage by image, memory, and hours for a number of images.

python benchmarks/presets.py nano_cpu small_cpu    # Markdown rows, as docs/presets.md has them

Each preset runs on a few embedded images of its own size, two epochs a stage, of which the second counts: it has no
warming up. Hours are these seconds times the epochs that the preset has for that many images.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import hitdet_nni
from hitdet_nni.config.lengths import for_images
from hitdet_nni.config.settings import Settings, load_settings
from hitdet_nni.engine.machine import processor
from hitdet_nni.engine.progress import Progress, listening

IMAGES = (300, 1000)
"""Numbers of training images that hours are printed for."""

SAMPLES = "samples"
"""What the stage of the tried architectures is called behind the screening's name."""


def preset_settings(preset: str) -> Settings:
    """Return a preset's settings, with embedded images so that they are whole."""
    return load_settings(preset, {"data.builtin": "digits"})


def seconds_by_image(preset: str, count: int, folder: Path) -> dict[str, float]:
    """Return what each stage takes by image: of an epoch, and of one tried architecture.

    Args:
        preset: Name of the config.
        count: Training images.
        folder: Where the run goes.
    """
    tried = 32  # one an operator
    short = {
        "data.builtin": "digits",
        "data.train": count,
        "data.val": 4,
        "data.size": max(preset_settings(preset).skeleton.input_size),
        "screening.supernets": 1,
        "screening.samples": tried,
        "screening.sample_images": count // 2,
        "search.warmup_epochs": 0,
        **{f"{stage}.epochs": 2 for stage in ("screening", "search", "retrain")},
    }
    last: dict[str, float] = {}

    def keep(progress: Progress) -> None:
        if "seconds" in progress.results:
            last[progress.stage] = progress.results["seconds"]

    with listening(keep), contextlib.redirect_stdout(sys.stderr):
        hitdet_nni.search(preset=preset, settings=short, out=folder / "run").retrain()
    found = {}
    for stage, seconds in last.items():
        name = SAMPLES if stage.endswith(SAMPLES) else stage.split()[0]
        found[name] = seconds / (tried * (count // 2) if name == SAMPLES else count)
    return found


def hours(preset: str, images: int, seconds: dict[str, float]) -> dict[str, float]:
    """Return the hours of each stage on a number of training images."""
    settings = for_images(preset_settings(preset), images)
    screening = settings.screening
    taken = {
        "screening": seconds["screening"] * images * screening.epochs
        + seconds.get(SAMPLES, 0.0) * screening.samples * screening.sample_images,
        "search": seconds["search"] * images * settings.search.epochs,
        "retrain": seconds["retrain"] * images * settings.retrain.epochs,
    }
    return {stage: value / 3600 for stage, value in taken.items()}


def row(preset: str, count: int) -> str:
    """Measure a preset, and return its row."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = seconds_by_image(preset, count, Path(folder))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    cells = [preset, f"{memory:.1f}", *(f"{seconds[stage]:.2f}" for stage in ("screening", "search", "retrain"))]
    for images in IMAGES:
        taken = hours(preset, images, seconds)
        cells.append(" + ".join(f"{taken[stage]:.1f}" for stage in ("screening", "search", "retrain")))
    return f"| `{cells[0]}` | {' | '.join(cells[1:])} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--images", type=int, default=16, help="embedded images to train on (default: %(default)s)")
    options = parser.parse_args()
    if len(options.presets) > 1:  # each in a process of its own, whose memory is the preset's
        for preset in options.presets:
            subprocess.run([sys.executable, __file__, preset, "--images", str(options.images)], check=True)
        sys.exit()
    sys.stderr.write(f"{processor('cpu')}, one thread\n")
    sys.stdout.write(f"{row(options.presets[0], options.images)}\n")
