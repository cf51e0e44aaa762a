"""What the cases of gpu.sh are called: the names that ``--cases`` chooses by, and that the page lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES: Mapping[str, str] = {
    "layers": "{case}, {candidates} candidates, {precision}",
    "supernets": "{case}, {precision}, batch {batch}",
    "auto": "{case}, {precision}",
    "profile": "{case}, {precision}, {implementation}",
    "largest": "{case}, {implementation}, {precision}",
}
"""The parts that are measured case by case: how a case is named after its rows in the figures."""


def case_name(part: str, **row: Any) -> str:
    """Name a case of a part after what its rows have in common.

    Args:
        part: A key of :data:`NAMES`.
        row: A row of the part's figures, or as much of it as the name has.
    """
    return NAMES[part].format_map(row)
