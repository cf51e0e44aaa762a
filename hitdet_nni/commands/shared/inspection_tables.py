"""What ``check-data`` prints: tables of counts and of objects' sizes, then every remark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.markup import escape
from rich.table import Column, Table

from hitdet_nni.commands.shared.console import echo, show
from hitdet_nni.data.checks.inspection import Inspection
from hitdet_nni.data.checks.object_sizes import ObjectSizes

MOST_CLASSES = 20
"""Classes whose objects a table shows; more are for ``--json``."""

MOST_LINES = 100
"""Lines of a kind, such as defects, that are printed of a split; more are for ``--json``."""


def print_inspections(detection: Mapping[str, Inspection], found: Mapping[str, Inspection]) -> None:
    """Print a table of the detection set, one of the classification set, then every warning and defect.

    Args:
        detection: What was seen of the detection set, by its splits.
        found: All that was seen, that of the detection set included.
    """
    for group in (detection, {name: found[name] for name in found.keys() - detection.keys()}):
        if not group:
            continue
        names = sorted(group)
        table = Table("", *names)
        rows = _merged([list(group[name].counts) for name in names])
        for row in rows:
            table.add_row(row, *(str(group[name].counts.get(row, "-")) for name in names))
        for kind in ("warnings", "hints", "defects"):
            table.add_row(kind, *(str(len(getattr(group[name], kind))) for name in names))
        show(table)
    if any("/" in str(value) for inspection in found.values() for value in inspection.counts.values()):
        echo("a / b / c: smallest, middle and largest")
    _print_objects(detection)
    for name, inspection in found.items():
        for kind in ("note", "warning", "hint", "defect"):
            lines = getattr(inspection, f"{kind}s")
            for line in lines[:MOST_LINES]:
                echo(f"{kind}: {line}")
            if len(lines) > MOST_LINES:
                echo(f"{kind}: and {len(lines) - MOST_LINES} more of {name}; --json has all")


def _merged(orders: Sequence[Sequence[str]]) -> list[str]:
    """Return all rows of several tables, each before the one that it stands before in its table."""
    merged: list[str] = []
    for order in orders:
        place = len(merged)
        for row in reversed(order):
            if row in merged:
                place = merged.index(row)
            else:
                merged.insert(place, row)
    return merged


def _sides(one: ObjectSizes) -> str:
    sides = (one.smallest, one.median, one.largest)
    return " / ".join(f"{side:.0f}" if side >= 10 else f"{side:.1f}" for side in sides)


def _print_objects(detection: Mapping[str, Inspection]) -> None:
    """Print the sizes of each class's objects at the network's input, in the order of the annotation files.

    Of many classes those with the smallest objects are shown.
    """
    splits = [name for name in sorted(detection) if detection[name].objects]
    if not splits:
        return
    sizes = {name: {one.name: one for one in detection[name].objects} for name in splits}
    smallest: dict[str, float] = {}
    for one in (one for name in splits for one in sizes[name].values()):
        smallest[one.name] = min(one.smallest, smallest.get(one.name, one.smallest))
    chosen = set(sorted(smallest, key=lambda name: (smallest[name], name))[:MOST_CLASSES])
    in_order = _merged([[one.name for one in detection[name].objects] for name in splits])
    shown = [name for name in in_order if name in chosen]
    sides_of = (Column(f"{name} sides", no_wrap=True) for name in splits)
    table = Table("class", *sides_of, *(f"{name} out of reach" for name in splits))
    for class_name in shown:
        ones = [sizes[name].get(class_name) for name in splits]
        sides = ["-" if one is None else _sides(one) for one in ones]
        missed = ["-" if one is None else f"{one.out_of_reach} of {one.boxes}" for one in ones]
        table.add_row(escape(class_name), *sides, *missed)
    show(table)
    echo("sides: roots of the objects' areas, in pixels of the network's input (skeleton.input_size)")
    if len(shown) < len(smallest):
        echo(f"the {len(shown)} of {len(smallest)} classes with the smallest objects; --json has all")
