"""Whether a name means an mmdet config, where its file is, and what a profile of a detector holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hitdet_nni.config.shipped import shipped
from hitdet_nni.cost.cost_model import Convention, Cost, Size
from hitdet_nni.errors import InputError

PAPER_SHAPE: Size = (800, 1216)
"""The "800 x 1200" of Table 2, padded to a multiple of 32."""


def is_config(name: str) -> bool:
    """Check whether ``name`` means an mmdet config: a ``.py`` file, or the bare name of a shipped baseline."""
    path = Path(name)
    if path.suffix:
        return path.suffix == ".py"
    return path.name == name and path.stem in baseline_names()


def baseline_names() -> list[str]:
    """Return the bare names of the shipped baselines."""
    return sorted(path.stem for path in shipped("baselines", "fpn_r50_2fc.py").parent.glob("*.py"))


def find_config(name: str) -> Path:
    """Return the file of an mmdet config.

    Args:
        name: A ``.py`` file, or the bare name of a shipped baseline, e.g. ``"fpn_r50_2fc"``.

    Raises:
        InputError: If there is no such file.
    """
    path = Path(name)
    if not path.suffix and path.name == name:
        path = shipped("baselines", f"{name}.py")
    if not path.is_file():
        raise InputError("no such file", source=path)
    return path


@dataclass(frozen=True)
class Profile:
    """What a detector costs, and for what it was counted.

    Attributes:
        name: Its name, for people.
        shape: Height and width of the image.
        proposals: RoIs that the head sees; 0 in a one-stage detector.
        convention: How FLOPs were counted.
        costs: Cost by part, and ``total``.
    """

    name: str
    shape: Size
    proposals: int
    convention: Convention
    costs: dict[str, Cost]
