"""The figures of gpu.sh that are kept in docs/benchmarks, and how those of a later run are taken in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from document_tables import FIGURES, Report
from gpu_cases import NAMES, case_name

GPU_STEM = "gpu"
"""Stem of the file."""

SETTING = ("config", "input_size")
"""Keys of a part's report that its runs share: figures of other sizes are no other cases of the same table."""

Rows = Iterable[Mapping[str, Any]]


def take_gpu(written: Path, folder: Path = FIGURES, note: str = "") -> None:
    """Keep what gpu.sh wrote.

    Parts that have figures replace those of an earlier file, the others stay. Of a run with ``--cases`` only the cases
    that it measured do: :func:`merged`.

    Args:
        written: Its gpu.json.
        folder: Where figures are kept.
        note: Words for the page beside the parts that are taken.

    Raises:
        ValueError: If the cases of a part cannot stand beside those that are there.
    """
    path = folder / f"{GPU_STEM}.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["parts"] if path.is_file() else {}
    report = json.loads(written.read_text(encoding="utf-8"))
    made = {key: value for key, value in report.items() if key != "parts"}
    for name, measured in report["parts"].items():
        if "report" in measured:
            part = {"made": made, **measured} | ({"note": note} if note else {})
            chosen = bool(made.get("cases")) and name in NAMES and name in kept
            kept[name] = merged(name, kept[name], part) if chosen else part
    path.write_text(json.dumps({"parts": kept}, indent=1) + "\n", encoding="utf-8")


def merged(name: str, before: Report, part: Report) -> dict[str, Any]:
    """Return a part with the cases of two runs; what both have measured is the later one's.

    Args:
        name: The part.
        before: What is kept of it. Its runs go into ``earlier``, each with the cases that are still its own.
        part: The later run's.

    Raises:
        ValueError: If one is at toy sizes, or of another config or input size, and the other is not.
    """
    old, new = before["report"], part["report"]
    for key in SETTING:
        if old.get(key) != new.get(key):
            raise ValueError(f"{name}: {key} is {new.get(key)!r}, of the figures that are kept {old.get(key)!r}")
    if before["made"]["toy"] != part["made"]["toy"]:
        raise ValueError(f"{name}: figures at toy sizes are not merged with others")
    measured = by_case(name, new["figures"])
    figures = by_case(name, old["figures"]) | measured
    asked = dict.fromkeys((*old.get("missing", ()), *new.get("missing", ())))
    report = {
        **new,
        "figures": [row for rows in figures.values() for row in rows],
        "missing": [case for case in asked if case not in figures],
    }
    earlier = [
        run | {"cases": [case for case in run["cases"] if case not in measured]} for run in part_runs(name, before)
    ]
    return {**part, "report": report, "earlier": [run for run in earlier if run["cases"]]}


def by_case(name: str, rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """Return the rows of each case of a part, in their order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(case_name(name, **row), []).append(row)
    return found


def part_runs(name: str, part: Report) -> list[dict[str, Any]]:
    """Return the runs that a part's figures are of, the latest last.

    Returns:
        Of each ``made``, ``cases``, ``gemm_flops`` and ``note``, the last two where there are any.
    """
    earlier = [dict(run) for run in part.get("earlier", ())]
    others = {case for run in earlier for case in run["cases"]}
    latest: dict[str, Any] = {"made": part["made"]}
    if name in NAMES:
        latest["cases"] = [case for case in by_case(name, part["report"]["figures"]) if case not in others]
    latest |= {key: value for key, value in part["report"].items() if key == "gemm_flops"}
    return [*earlier, latest | {key: value for key, value in part.items() if key == "note"}]
