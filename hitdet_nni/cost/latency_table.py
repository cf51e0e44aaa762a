"""A table of latencies: what each operator takes in each layer, measured on one machine by one runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.config.validation import validated
from hitdet_nni.cost.counting import CountingConditions
from hitdet_nni.cost.fixed_cost import fixed_layers
from hitdet_nni.errors import InputError
from hitdet_nni.io import read_json, write_json
from hitdet_nni.operators.costs import Size

SCHEMA_VERSION = 1

Runtime = Literal["onnxruntime", "torch"]
"""What runs a detector."""

Device = Literal["cpu", "cuda"]
"""What it runs on."""

_NOT_TIMED = {"proposals_train", "roi_samples"}
"""Keys of the skeleton that change nothing of a decided detector."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Conditions(_Part):
    """How latencies were measured."""

    runtime: Runtime
    version: str = Field(description="version of the runtime")
    device: Device
    threads: PositiveInt = Field(description="threads of one operation")
    machine: str = Field(description="processor, or GPU")
    rounds: PositiveInt = Field(description="bursts of each program, of which the median is taken")
    pause_ms: NonNegativeFloat = Field(description="pause between two rounds")
    unrest: NonNegativeFloat = Field(
        description="share by which a program's median burst takes longer than its fastest; median over programs"
    )


class WholeDetector(_Part):
    """A whole detector that was measured, to see what it takes beyond its layers."""

    sample: dict[str, str]
    layers_ms: PositiveFloat = Field(description="sum of its layers' times")
    measured_ms: PositiveFloat


class TableContent(_Part):
    """What the file of a table holds; times are in milliseconds for one image."""

    schema_version: Literal[1]
    conditions: Conditions
    skeleton: Skeleton
    shape: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="height and width that layers were measured at; the skeleton's input size if null"
    )
    num_classes: PositiveInt
    layers_ms: dict[str, dict[str, NonNegativeFloat]] = Field(description="times of searched layers by operator")
    fixed_ms: dict[str, NonNegativeFloat] = Field(description="times of the layers that are not searched")
    detectors: Annotated[tuple[WholeDetector, ...], Field(min_length=1)]
    overhead_ms: float = Field(description="median of what the whole detectors take beyond their layers")


class LatencyTable:
    """Times of every layer of a detector with every operator.

    Args:
        content: What was measured.
        source: The file, for messages.

    Attributes:
        overhead: What a detector takes beyond its layers, in nanoseconds.
    """

    def __init__(self, content: TableContent, source: str | Path) -> None:
        self.content = content
        self.source = source
        self.overhead = _nanoseconds(content.overhead_ms)

    def layer(self, label: str, name: str) -> int:
        """Return the time of a searched layer with an operator, in nanoseconds.

        Raises:
            InputError: If the operator was not measured.
        """
        row = self.content.layers_ms[label]
        if name not in row:
            raise InputError(f"{name} was not measured in {label}", source=self.source, allowed=row)
        return _nanoseconds(row[name])

    def fixed_layer(self, part: str, name: str) -> int:
        """Return the time of a layer that is not searched, in nanoseconds."""
        return _nanoseconds(self.content.fixed_ms[f"{part}/{name}"])

    def require(self, skeleton: Skeleton, num_classes: int, shape: Size, proposals: int) -> None:
        """Refuse another detector than the one that was measured.

        Args:
            skeleton: What is asked about.
            num_classes: Its classes, without background.
            shape: Height and width of its input.
            proposals: RoIs that its head sees; 0 in a one-stage detector.

        Raises:
            InputError: Naming what differs.
        """
        measured, asked = (
            {**each.model_dump(exclude=_NOT_TIMED), "num_classes": count}
            for each, count in ((self.content.skeleton, self.content.num_classes), (skeleton, num_classes))
        )
        measured["input_size"] = self.content.shape or self.content.skeleton.input_size
        asked["input_size"] = tuple(shape)
        if skeleton.layout.pooled:
            asked["proposals_test"] = proposals
        for key, value in asked.items():
            if value != measured[key]:
                raise InputError(
                    f"was measured with {key} {_plain(measured[key])}, and {_plain(value)} is asked for",
                    source=self.source,
                    allowed="a table of this detector: hitdet-nni latency",
                )

    def require_machine(self, here: str, allowed: str) -> None:
        """Refuse a table that was measured on another machine.

        Args:
            here: The processor or GPU of this machine.
            allowed: What would be accepted.

        Raises:
            InputError: Naming both machines.
        """
        there = self.content.conditions.machine
        if there != here:
            raise InputError(
                f"was measured on {there}, and this is {here}",
                source=self.source,
                allowed=allowed,
            )


def load_latency_table(path: Path) -> LatencyTable:
    """Read a table.

    Raises:
        InputError: If the file cannot be read, or is not such a table.
    """
    content = validated(TableContent, path, read_json(path))
    _check_names(content, path)
    return LatencyTable(content, path)


def save_latency_table(content: TableContent, path: Path) -> None:
    """Write a table, whole or not at all."""
    write_json(path, content.model_dump(mode="json"))


def fixed_names(skeleton: Skeleton, num_classes: int) -> tuple[str, ...]:
    """Return the names of the layers that are not searched, with their parts, e.g. ``"neck/fuse1"``."""
    conditions = CountingConditions(skeleton.input_size, 1, "macs")
    return tuple(f"{layer.part}/{layer.name}" for layer in fixed_layers(skeleton, num_classes, conditions))


def _check_names(content: TableContent, source: Path) -> None:
    """Refuse a table that has not exactly the layers of its skeleton.

    Raises:
        InputError: Naming the first layer that is missing or unknown.
    """
    labels = [layer.label for layer in content.skeleton.searched_layers()]
    for key, names in (("layers_ms", labels), ("fixed_ms", fixed_names(content.skeleton, content.num_classes))):
        row: Mapping[str, object] = getattr(content, key)
        wrong = [name for name in (*row, *names) if name not in names or name not in row]
        if wrong:
            problem = f"{'unknown layer' if wrong[0] in row else 'lacks the layer'} {wrong[0]}"
            raise InputError(problem, source=source, key=key, allowed=names)


def _nanoseconds(milliseconds: float) -> int:
    return round(milliseconds * 1e6)


def _plain(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
