"""The exported files that were benchmarked, of one run or of several, as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hitdet_nni.report.precisions import percent
from hitdet_nni.runs.reading import Run


@dataclass(frozen=True)
class FileRow:
    """A file that was measured.

    Attributes:
        run: Name of its run.
        file: Its name.
        precision: What its layers compute in.
        accuracy: Its own mAP in percent, as text.
        p50: Milliseconds that half of the runs took at most.
        p90: Those of nine tenths.
        conditions: How it was measured; latencies of other conditions do not compare.
    """

    run: str
    file: str
    precision: str
    accuracy: str
    p50: float
    p90: float
    conditions: str


def exported_files(runs: Iterable[tuple[str, Run]]) -> tuple[FileRow, ...]:
    """Return the files of runs, those of a run in the order in which they were measured first.

    Args:
        runs: The runs with their names.
    """
    return tuple(
        FileRow(
            run=name,
            file=one.file,
            precision=one.precision or "–",
            accuracy=percent(one.metrics["mAP"]),
            p50=one.latency_ms.p50,
            p90=one.latency_ms.p90,
            conditions=one.conditions,
        )
        for name, run in runs
        for one in (() if run.benchmark is None else run.benchmark.files)
    )
