"""The data files that travel with the package: search spaces, architectures, experiments, baselines."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from hitdet_nni.errors import InputError

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(folder: Literal["search_spaces", "experiments", "baselines"], name: str) -> Path:
    """Return the path of a shipped data file.

    Args:
        folder: The folder that it is in: inside an installed package, at the top of a checkout.
        name: File name inside the folder.

    Raises:
        InputError: If there is no such file in the folder, naming those that there are, and the nearest of them.
    """
    inside = _PACKAGE / folder
    root = inside if inside.is_dir() else _PACKAGE.parent / folder
    found = root / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not found.is_file():
        names = sorted(path.stem for path in found.parent.glob(f"*{found.suffix}"))
        nearest = "".join(f" (the nearest is {near})" for near in get_close_matches(found.stem, names, n=1))
        raise InputError(f"no such file, and none shipped under that name{nearest}", source=found.stem, allowed=names)
    return found
