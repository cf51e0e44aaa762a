"""The trials of an NNI experiment: read from the answers of NNI's REST API, and shown as lines and as a table."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from hitdet_nni.integration.nni_words import ENDED
from hitdet_nni.runs.run_directory import RunDirectory

FAILED = frozenset({"FAILED", "SYS_CANCELED", "USER_CANCELED"})  # NNI calls a trial that a signal killed USER_CANCELED
COLUMN_NAMES = {"search.flops_weight": "cost weight"}


@dataclass(frozen=True)
class Trial:
    """One trial of an experiment.

    Args:
        number: Its place in the experiment, from 0.
        id: NNI's name of it.
        status: NNI's status.
        parameters: The tuner's choice: values of dotted config keys.
        reports: How many intermediate results have come.
        latest: The last of them; empty where none has come.
        final: The final result; empty where there is none (yet).
        folder: Where NNI keeps the trial's output on this machine; empty where it keeps none here.
        place: ``host:folder`` of that output where the trial runs on another machine; empty for this one.
    """

    number: int
    id: str
    status: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    reports: int = 0
    latest: Mapping[str, Any] = field(default_factory=dict)
    final: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()
    place: str = ""

    @property
    def host(self) -> str:
        """The machine where it runs; empty for this one."""
        return self.place.partition(":~/")[0]

    def log(self) -> Path | str:
        """Return the file that says most of a failure: the first here that is not empty, else where its output is."""
        names = ("trial.stderr", "trial.log", "trial.stdout") if self.folder.is_absolute() else ()
        paths = [self.folder / name for name in names]
        return next((path for path in paths if path.is_file() and path.stat().st_size), self.place or self.folder)

    def complaint(self) -> str:
        """Tell of a failure in a line: the last one of its log, where there is one, and the log."""
        log = self.log()
        here = isinstance(log, Path) and log.is_file()
        said = Path(log).read_text(encoding="utf-8", errors="replace").strip() if here else ""
        last = f"{said.splitlines()[-1].strip()}; " if said else ""
        return f"trial {self.number} ({self.id}) {self.status}: {last}see {log}"


@dataclass(frozen=True)
class Snapshot:
    """The state of an experiment: NNI's status and complaints, the trials submitted, how many the tuner asked for."""

    status: str
    errors: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    requested: int = 0

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        ended = all(trial.status in ENDED for trial in self.trials)
        if self.status == "TUNER_NO_MORE_TRIAL":  # may come before the tuner's last trial is submitted
            return ended and len(self.trials) >= self.requested
        return self.status in {"DONE", "ERROR", "STOPPED"} or (self.status == "NO_MORE_TRIAL" and ended)

    def complaints(self) -> list[str]:
        """Tell why a finished experiment is no success, a line each."""
        lines = [f"NNI ended with ERROR: {'; '.join(self.errors)}"] if self.status == "ERROR" else []
        lines += [trial.complaint() for trial in self.trials if trial.status in FAILED]
        if not lines and not any(trial.status in {"SUCCEEDED", "EARLY_STOPPED"} for trial in self.trials):
            lines.append("no trial ran to its end")
        return lines


def metric_values(data: str) -> dict[str, Any]:
    """Return the values of a metric as NNI stores it: JSON inside a JSON string; a bare number is its ``default``."""
    value = json.loads(data)
    value = json.loads(value) if isinstance(value, str) else value
    return value if isinstance(value, dict) else {"default": value}


def parse_trials(jobs: Iterable[Mapping[str, Any]], metrics: Iterable[Mapping[str, Any]]) -> tuple[Trial, ...]:
    """Read the trials, in order, from the answers of ``/trial-jobs`` and ``/metric-data-latest``.

    NNI 3.0 hands parameters to trials in the order in which they ask, yet lists them in the order of the starts: for
    concurrent trials ``/trial-jobs`` and the web UI may show them swapped. The metrics name what a trial really got; a
    trial without metrics has parameters here only where just one set is left.
    """
    jobs = list(jobs)
    chosen = {
        str(c["parameter_id"]): c["parameters"] for j in jobs for c in map(json.loads, j.get("hyperParameters", ()))
    }
    owners: dict[str, str] = {}
    reports: dict[str, Mapping[str, Any]] = {}
    for metric in metrics:
        owners[metric["trialJobId"]] = metric["parameterId"]
        if metric["type"] == "PERIODICAL":
            reports[metric["trialJobId"]] = metric
    unowned = chosen.keys() - owners.values()
    trials = []
    for job in jobs:
        owned = owners.get(job["trialJobId"], next(iter(unowned)) if len(unowned) == 1 else "")
        report = reports.get(job["trialJobId"])
        final = job.get("finalMetricData")
        output = job.get("logPath", "")
        remote = ":~/" in output and not output.startswith("/")  # a folder of this machine is absolute
        trial = Trial(
            number=job.get("sequenceId", -1),
            id=job["trialJobId"],
            status=job["status"],
            parameters=chosen.get(owned) or {},
            reports=report["sequence"] + 1 if report else 0,
            latest=metric_values(report["data"]) if report else {},
            final=metric_values(final[0]["data"]) if final else {},
            folder=Path() if remote else Path(output),
            place=output if remote else "",
        )
        trials.append(trial)
    return tuple(sorted(trials, key=lambda trial: trial.number))


def three_digits(value: float) -> str:
    """Write a number with three significant digits and no exponent, e.g. ``0.750`` or ``1230``."""
    return f"{Decimal(f'{value:.2e}'):f}"


# Header of a column: the key of the final result, and how its numbers are shown.
RESULTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "params M": ("params_m", "{:.2f}".format),
    "GFLOPs": ("gflops", three_digits),
    "mAP": ("default", "{:.3f}".format),
}


def format_value(value: object, number: Callable[[float], str] | None = None) -> str:
    """Write a value for people: ``-`` where there is none; a number as `number` says, else four significant digits."""
    if value is None or isinstance(value, str):
        return value or "-"
    if number and isinstance(value, int | float):
        return number(value)
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def status_line(trial: Trial) -> str:
    """Write a line, e.g. ``trial 0 (AbCde) RUNNING  search.flops_weight=3``; of a final result, where there is one."""
    values = dict(trial.final or trial.parameters)
    if trial.final:
        values = {"mAP": values.pop("default", None), **values}
    shown = " ".join(f"{key}={format_value(value)}" for key, value in values.items())
    return f"trial {trial.number} ({trial.id}) {trial.status}  {shown}".rstrip()


def results_table(trials: Sequence[Trial], runs: Path) -> Table:
    """Return the trials with what the tuner chose, cost (params in millions), mAP, and where the architecture is.

    Args:
        trials: The trials of one experiment.
        runs: Folder of this machine with ``<trial id>/architecture.json``. Of a trial that wrote it on another machine
            the table names that machine.
    """
    keys = list(dict.fromkeys(key for trial in trials for key in trial.parameters))
    table = Table(box=box.SIMPLE)
    for header in ("trial", "status", *(COLUMN_NAMES.get(key, key) for key in keys), *RESULTS, "architecture"):
        table.add_column(header, overflow="fold")
    for trial in trials:
        chosen = [format_value(trial.parameters.get(key)) for key in keys]
        found = [format_value(trial.final.get(key), show) for key, show in RESULTS.values()]
        path = RunDirectory(runs / trial.id).architecture
        elsewhere = f"on {trial.host}" if trial.place and trial.status == "SUCCEEDED" else "-"
        where = os.path.relpath(path) if path.is_file() else elsewhere
        table.add_row(f"{trial.number} ({trial.id})", trial.status, *chosen, *found, where)
    return table


def print_table(table: Table, stream: IO[str]) -> None:
    """Print a table whole: folded to a terminal's width, as wide as it needs in a file or pipe."""
    console = Console(file=stream, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.print(table)
