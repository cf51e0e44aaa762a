"""The paper's cost tables, counted again: what is printed there beside what comes out here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, TypeAdapter, model_validator

from hitdet_nni.config.architecture import load_architecture
from hitdet_nni.config.shipped import shipped
from hitdet_nni.cost.cost_model import Cost, CostModel, Size
from hitdet_nni.cost.profile import PAPER_SHAPE
from hitdet_nni.cost.stored_costs import CONVENTION, stored_costs
from hitdet_nni.io import read_yaml

PROPOSALS = 1000
"""RoIs that the heads of two-stage detectors see in Table 2, and in the baselines' configs."""

Figure = Literal["backbone", "neck", "head", "total", "gflops"]
"""A column of costs: the parameters of a part, in millions, or the FLOPs of the whole, in 10^9."""

Accuracy = Literal["mAP", "AP50", "AP75", "APS", "APM", "APL"]

Printed = Annotated[Decimal, Field(gt=0, strict=False)]
"""A figure with exactly the digits that are printed."""

TOLERANCE = 0.5
"""Difference, percent, up to which a figure counts as met; half of the last printed digit is granted as well."""


class Published(BaseModel):
    """What the paper prints in a row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    params: dict[Figure, Printed] = Field(default={}, description="parameters by part, millions")
    gflops: Printed | None = Field(None, description="FLOPs of the whole, 10^9")
    accuracy: dict[Accuracy, PositiveFloat] = Field(description="COCO's average precisions, percent")


class Variant(BaseModel):
    """Another input size, at which a printed figure was evidently counted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: tuple[PositiveInt, PositiveInt] = Field(description="height and width")
    reason: str


class Row(BaseModel):
    """A row: what is printed, and what rebuilds it or why nothing does."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="name in the paper")
    published: Published
    baseline: str | None = Field(None, description="a shipped mmdet config")
    architecture: str | None = Field(None, description="a shipped architecture")
    missing: str | None = Field(None, description="why the row is not rebuilt")
    note: str | None = None
    variant: Variant | None = None

    @model_validator(mode="after")
    def _rebuilt_or_explained(self) -> Row:
        if [self.baseline, self.architecture, self.missing].count(None) != 2:
            raise ValueError("one of baseline, architecture and missing is needed")
        return self


class PaperTable(BaseModel):
    """One table of the paper."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: PositiveInt
    title: str
    figures: tuple[Figure, ...] = Field(description="its columns of costs")
    rows: tuple[Row, ...]

    @property
    def accuracies(self) -> tuple[Accuracy, ...]:
        """Its columns of accuracies: those of the row that has most."""
        return max((tuple(row.published.accuracy) for row in self.rows), key=len)


def load_tables() -> tuple[PaperTable, ...]:
    """Load the paper's tables from the shipped ``paper_tables.yml``."""
    content = read_yaml(shipped("baselines", "paper_tables.yml"))
    return TypeAdapter(tuple[PaperTable, ...]).validate_python(content)


@dataclass(frozen=True)
class RowComparison:
    """A row with what was counted.

    Attributes:
        row: The row of the paper.
        shape: Height and width of the image that FLOPs are for.
        published: The printed figures, as far as there are any.
        ours: The counted figures; none where the row is not rebuilt.
        remark: What there is to say about it; may be empty.
        beside: What sets this line apart from the row that it stands behind: another input size, or a run; empty for
            the row itself.
        measured: Average precisions, percent, that a run supplies.
    """

    row: Row
    shape: Size
    published: dict[Figure, Decimal]
    ours: dict[Figure, float]
    remark: str
    beside: str = ""
    measured: Mapping[Accuracy, float] | None = None

    @property
    def name(self) -> str:
        """The model's name, with what sets the line apart."""
        return f"{self.row.model}, {self.beside}" if self.beside else self.row.model

    @property
    def differences(self) -> dict[Figure, float]:
        """Ours against the published, percent."""
        return {
            figure: 100 * (self.ours[figure] / float(value) - 1)
            for figure, value in self.published.items()
            if figure in self.ours
        }

    @property
    def missed(self) -> tuple[Figure, ...]:
        """The printed figures that ours do not meet."""
        return tuple(
            figure
            for figure, difference in self.differences.items()
            if abs(difference) > TOLERANCE
            and abs(Decimal(self.ours[figure]) - self.published[figure]) > _half_digit(self.published[figure])
        )


def _half_digit(value: Decimal) -> Decimal:
    return Decimal(1).scaleb(int(value.as_tuple().exponent)) / 2


CostOf = Callable[[str, Size], Mapping[str, Cost]]
"""Cost by part, and ``total``, of a shipped baseline at an input size."""


def _costs(row: Row, shape: Size, cost_of: CostOf) -> Mapping[str, Cost]:
    if row.baseline is not None:
        return cost_of(row.baseline, shape)
    found = load_architecture(str(row.architecture))
    model = CostModel(found.skeleton, found.num_classes, shape=shape, proposals=PROPOSALS, convention=CONVENTION)
    return model.architecture(found.sample)


def _figures(table: PaperTable, row: Row, shape: Size, cost_of: CostOf) -> dict[Figure, float]:
    if row.missing is not None:
        return {}
    costs = _costs(row, shape, cost_of)
    values: dict[Figure, float] = {}
    for figure in table.figures:
        values[figure] = costs["total"].gflops if figure == "gflops" else costs[figure].params_m
    return values


def compare(table: PaperTable, cost_of: CostOf = stored_costs) -> tuple[RowComparison, ...]:
    """Put our figures beside every row of a table that can be rebuilt; a variant follows its row.

    Args:
        table: The paper's table.
        cost_of: What a baseline costs: as it was counted and stored, or
            :func:`~hitdet_nni.cost.mmdet_config.counted_costs`, counted now. Architectures are counted now.

    Raises:
        InputError: If what should rebuild a row is missing or cannot be counted.
    """
    comparisons = []
    for row in table.rows:
        published: dict[Figure, Decimal] = {**row.published.params}
        if row.published.gflops is not None:
            published["gflops"] = row.published.gflops
        remark = f"not rebuilt: {row.missing}" if row.missing else row.note or ""
        comparisons.append(
            RowComparison(row, PAPER_SHAPE, published, _figures(table, row, PAPER_SHAPE, cost_of), remark)
        )
        if row.variant is not None:
            height, width = shape = row.variant.shape
            ours = _figures(table, row, shape, cost_of)
            comparisons.append(RowComparison(row, shape, published, ours, row.variant.reason, f"{height} x {width}"))
    return tuple(comparisons)
