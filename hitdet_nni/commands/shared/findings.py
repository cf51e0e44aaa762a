"""What the kinds of ``study`` share: their directory, their protocol, and what they write and print."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from hitdet_nni.commands.shared.console import echo, json_text, show
from hitdet_nni.config.architecture import Architecture, load_architecture
from hitdet_nni.config.settings import Settings, load_settings, parse_overrides
from hitdet_nni.data.sources import DetectionData, open_images
from hitdet_nni.engine import distributed
from hitdet_nni.io import write_csv, write_json
from hitdet_nni.runs.run_directory import RunDirectory, find_run
from hitdet_nni.studies.plots import plot_trained
from hitdet_nni.studies.retrainings import Protocol, Retraining, Trained

Rows = Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class Findings:
    """What a study has found.

    Attributes:
        report: What its JSON file holds; ``rows`` make the table.
        sentences: The same in words.
        file: The JSON file.
    """

    report: Mapping[str, Any]
    sentences: Sequence[str]
    file: Path


def open_searched(options: Namespace) -> tuple[RunDirectory, Settings, DetectionData]:
    """Open a study's directory; return what :func:`read_searched` does."""
    run, settings, data = read_searched(options)
    return run, open_study(options, settings), data


def read_searched(options: Namespace) -> tuple[RunDirectory, Settings, DetectionData]:
    """Return the run that is studied, its settings as the options change them, and its images."""
    run = find_run(options.run)
    skeleton = load_architecture(run.require(run.architecture, "search")).skeleton
    settings = load_settings(run.config, parse_overrides(options.overrides))
    settings, data = open_images(settings.model_copy(update={"skeleton": skeleton}))
    return run, settings, data


def open_study(options: Namespace, settings: Settings) -> Settings:
    """Open a study's directory, and return the settings."""
    RunDirectory(options.out).open(settings, force=options.force, resume=options.resume)
    return settings


def protocol(options: Namespace, settings: Settings) -> Protocol:
    """Return how a study retrains; it tells of every retraining that ends, unless JSON is to be printed."""

    def echo_result(done: int, total: int, one: Retraining, result: dict[str, Any]) -> None:
        if not options.json:
            echo(f"{done}/{total}  {one.folder.name}  mAP {result['mAP']:.3f}  GFLOPs {result['gflops']:.4g}")

    seeds = getattr(options, "seeds", 1)
    return Protocol(settings, seeds, options.out / "runs", options.jobs, echo_result)


def retrain_all(options: Namespace, settings: Settings, architectures: Mapping[str, Architecture]) -> Findings:
    """Retrain architectures by the study's protocol, draw and write what came of them."""
    trained = protocol(options, settings).retrain(architectures)
    plot_trained(trained, image_file(options))
    return write_findings(
        options, trained_rows(trained), [], {"samples": {one.name: dict(one.sample) for one in trained}}
    )


def trained_rows(trained: Sequence[Trained]) -> list[dict[str, object]]:
    """Return a row of a study's table for each architecture."""
    return [
        {
            "architecture": one.name,
            "params_m": one.params_m,
            "gflops": one.gflops,
            "mean_mAP": one.mean,
            "deviation": one.deviation,
            **{f"mAP_{number}": value for number, value in enumerate(one.accuracies, start=1)},
        }
        for one in trained
    ]


def image_file(options: Namespace) -> Path:
    """Return the file of a study's plot."""
    path: Path = options.out / f"{options.kind}.png"
    return path


def write_findings(options: Namespace, rows: Rows, sentences: Sequence[str], details: Mapping[str, object]) -> Findings:
    """Write ``KIND.csv`` and ``KIND.json``.

    Args:
        options: The study's options.
        rows: The table; all rows have the same keys.
        sentences: What the table says in words.
        details: What the JSON file holds besides.
    """
    report = {"study": options.kind, "rows": list(rows), "findings": list(sentences), **details}
    if distributed.is_main():
        write_csv(options.out / f"{options.kind}.csv", list(rows[0]), rows)
        write_json(options.out / f"{options.kind}.json", report)
    return Findings(report, sentences, options.out / f"{options.kind}.json")


def print_findings(findings: Findings, *, as_json: bool) -> None:
    """Print what a study has found: a table and sentences, or JSON."""
    if as_json:
        echo(json_text(findings.report))
        return
    rows = findings.report["rows"]
    table = Table()
    for header in rows[0]:
        table.add_column(header.replace("_", " "), justify="right" if _is_number(rows[-1][header]) else "left")
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    show(table)
    for line in findings.sentences:
        echo(line)
    echo(str(findings.file))


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, int | float)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
