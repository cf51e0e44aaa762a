"""The architecture JSON: what a search found, enough to build and to judge the detector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from hitdet_nni.config.shipped import shipped
from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.config.validation import one_line
from hitdet_nni.errors import InputError
from hitdet_nni.io import read_json, write_json
from hitdet_nni.operators.registry import OPERATORS, parse_operator

SCHEMA_VERSION = 1


class CostRecord(BaseModel):
    """What the architecture costs, and how that was counted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    convention: Literal["macs", "paper"]
    shape: tuple[PositiveInt, PositiveInt] = Field(description="height and width of the input")
    proposals: NonNegativeInt = Field(description="RoIs that the head sees")
    params: dict[str, NonNegativeInt] = Field(description="parameters by part")
    flops: dict[str, NonNegativeInt] = Field(description="multiply-adds by part")


class LatencyRecord(BaseModel):
    """How long the architecture takes for an image, by a table of latencies, and how that was measured."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    milliseconds: PositiveFloat
    runtime: str = Field(description="what runs it, with its version")
    device: str
    threads: PositiveInt
    machine: str = Field(description="processor, or GPU")


class Provenance(BaseModel):
    """Where an architecture comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    source: str = Field("search", description="'search', or what else the architecture was read off")
    classes: tuple[str, ...] = Field(
        min_length=1, description="class names that the detector was searched for, in label order"
    )
    space: dict[str, list[str]] | None = Field(None, description="sub search space of each component")
    sparsity_weight: float | None = Field(None, description="mu of Eq. 4")
    flops_weight: float | None = Field(None, description="lambda of Eq. 6")
    seed: int | None = None
    data: dict[str, Any] | None = Field(None, description="settings of the data that it was searched on")
    versions: dict[str, str] | None = None
    git_commit: str | None = None
    activations: dict[str, str] | None = Field(None, description="supernet.activations of each component in the search")
    cost: tuple[CostRecord, ...] = ()
    latency: LatencyRecord | None = Field(None, description="by the table of a search with a budget in milliseconds")


class Architecture(BaseModel):
    """A decided architecture: a skeleton and one operator a searched layer.

    Attributes:
        schema_version: Version of this file's layout.
        name: A name for people.
        skeleton: Everything that is not searched.
        sample: Operator name by layer label: exactly what NNI's ``freeze()`` takes.
        provenance: Where it comes from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1]
    name: str
    skeleton: Skeleton
    sample: dict[str, str]
    provenance: Provenance

    @property
    def num_classes(self) -> int:
        """Object classes, without background."""
        return len(self.provenance.classes)


def check_sample(sample: Mapping[str, str], skeleton: Skeleton, source: str | Path) -> None:
    """Refuse a sample whose labels are not exactly the skeleton's, or that names an unknown operator.

    NNI accepts extra labels in silence, hence this check.

    Raises:
        InputError: Naming the label or operator, and what is allowed.
    """
    labels = [layer.label for layer in skeleton.searched_layers()]
    for label, name in sample.items():
        if label not in labels:
            raise InputError(f"unknown layer {label!r}", source=source, key="sample", allowed=labels)
        try:
            parse_operator(name)
        except InputError as error:
            raise InputError(error.problem, source=source, key=f"sample.{label}", allowed=OPERATORS) from None
    missing = [label for label in labels if label not in sample]
    if missing:
        raise InputError(f"layer {missing[0]!r} is missing", source=source, key="sample", allowed=labels)


def check_architecture(value: object, source: str | Path) -> Architecture:
    """Validate the content of an architecture file.

    Raises:
        InputError: On a missing, extra or ill-typed key, an unknown layer or an unknown operator.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"expected an object, got {type(value).__name__}", source=source)
    try:
        architecture = Architecture.model_validate(value)
    except ValidationError as error:
        raise one_line(error, Architecture, source) from None
    check_sample(architecture.sample, architecture.skeleton, source)
    return architecture


def load_architecture(path: str | Path) -> Architecture:
    """Read an architecture file.

    Args:
        path: A file, or the bare name of a shipped architecture, e.g. ``"hit_detector"``.

    Raises:
        InputError: If the file is missing or its content is not an architecture.
    """
    found = find_architecture(path)
    return check_architecture(read_json(found), found)


def find_architecture(path: str | Path) -> Path:
    """Return the file behind a path or a shipped architecture's bare name."""
    given = Path(path)
    if given.is_file() or given.suffix or given.name != str(path):
        return given
    return shipped("search_spaces", f"architectures/{path}.json")


def save_architecture(architecture: Architecture, path: Path) -> None:
    """Write an architecture file atomically."""
    write_json(path, architecture.model_dump(mode="json"))
