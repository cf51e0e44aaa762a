"""What a measured latency is worth: beside what a table of latencies has predicted, and by how much runs differ."""

from __future__ import annotations

from hitdet_nni.config.architecture import LatencyRecord
from hitdet_nni.data.wording import counted
from hitdet_nni.runs.benchmark import FileBenchmark

SPREAD = 0.25
"""Share by which a tenth of the runs may take longer than the median before a measurement is doubted."""


def beside_prediction(found: FileBenchmark, predicted: LatencyRecord, budget: float | None) -> str:
    """Return a line that puts the measured median beside the table's prediction.

    Args:
        found: What was measured.
        predicted: What the table of the search says.
        budget: Milliseconds that the search allowed, where that is known.
    """
    median = found.latency_ms.p50
    text = f"predicted {predicted.milliseconds:.3g} ms by the table"
    if budget is not None:
        text += f", budget {budget:g} ms"
    text += f"; measured {median:.3g} ms in the median, {median / predicted.milliseconds - 1:+.0%}"
    if budget is not None:
        text += ", within the budget" if median <= budget else ", over the budget"
    table = f"{predicted.runtime}, {counted(predicted.threads, '{thread|threads}')}, {predicted.machine}"
    others = [] if (table, predicted.device) == (found.conditions, "cpu") else [f"{table}, {predicted.device}"]
    others += [] if found.precision in (None, "fp32") else ["fp32"]
    return f"{text} (the table is of {' and '.join(others)})" if others else text


def doubt(found: FileBenchmark) -> str | None:
    """Return why a measurement is doubted, ``None`` where it is not.

    Args:
        found: What was measured.
    """
    times = found.latency_ms
    more = times.p90 / times.p50 - 1
    if more <= SPREAD:
        return None
    return (
        "the machine was not at rest, unless the images differ much in size: a tenth of the runs took "
        f"{more:.0%} longer than the median, or more; try again, with --force"
    )
