"""A search space file: the candidate operator names of each component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from hitdet_nni.config.shipped import shipped
from hitdet_nni.config.skeleton import COMPONENTS, Component, Skeleton
from hitdet_nni.errors import InputError
from hitdet_nni.io import read_yaml, write_text
from hitdet_nni.operators.registry import parse_operator

SCREENED = Path("screening", "sub_spaces.yml")
"""Where a run keeps the search space that it has screened."""

SearchSpace = dict[Component, list[str]]
"""Candidate operator names of each component, in the order of the architecture parameters."""


def check_search_space(value: object, source: str | Path) -> SearchSpace:
    """Validate ``{backbone: [names], neck: [names], head: [names]}``.

    Raises:
        InputError: On a missing or unknown component, an empty or repeated list entry, or an unknown operator.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"expected a mapping, got {type(value).__name__}", source=source, allowed=COMPONENTS)
    for key in value:
        if key not in COMPONENTS:
            raise InputError(f"unknown component {key!r}", source=source, allowed=COMPONENTS)
    return {component: _names(value.get(component), source, component) for component in COMPONENTS}


def _names(value: object, source: str | Path, key: str) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise InputError(f"got {value!r}", source=source, key=key, allowed="a list of operator names")
    for name in value:
        try:
            parse_operator(name)
        except InputError as error:
            raise InputError(error.problem, source=source, key=key, allowed=error.allowed) from None
    repeated = sorted({name for name in value if value.count(name) > 1})
    if repeated:
        raise InputError(f"operator {repeated[0]!r} is listed twice", source=source, key=key)
    return list(value)


def load_search_space(path: str | Path) -> SearchSpace:
    """Read a search space file.

    Args:
        path: A file, a run that has been screened, or the bare name of a shipped space: ``"full"`` (the 32 operators
            for each component) or ``"hit_detector"`` (the published sub-spaces of appendix 6.2).

    Raises:
        InputError: If the file is missing or its content is not a search space.
    """
    found = find_space_file(path)
    return check_search_space(read_yaml(found), found)


def find_space_file(path: str | Path) -> Path:
    """Return the file behind a path, a run that has been screened, or a shipped space's bare name.

    Raises:
        InputError: If it is a folder of another kind, or there is none.
    """
    given = Path(path)
    if given.is_file() or (given.suffix and not given.is_dir()):
        return given
    if given.is_dir():
        if not (given / SCREENED).is_file():
            allowed = "a search space file, or a run that has been screened"
            raise InputError(f"has no {SCREENED.as_posix()}", source=given, allowed=allowed)
        return given / SCREENED
    if "/" in str(path):
        raise InputError("no such file or run", source=given)
    return shipped("search_spaces", f"{path}.yml")


def layer_candidates(skeleton: Skeleton, space: Mapping[Component, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return the candidate names of every searched layer by its label, in the skeleton's order of layers.

    Args:
        skeleton: Gives the layers.
        space: Candidate names of each component; one name fixes a component.
    """
    return {layer.label: tuple(space[layer.component]) for layer in skeleton.searched_layers()}


def save_search_space(space: Mapping[Component, Sequence[str]], path: Path) -> None:
    """Write a search space file atomically."""
    plain = {component: list(space[component]) for component in COMPONENTS}
    write_text(path, yaml.safe_dump(plain, sort_keys=False))
