"""``study``: is what the search finds better than chance?"""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from typing import Any

from rich.table import Table

from hitdet_nni.architecture import load_architecture
from hitdet_nni.commands.console import console, say
from hitdet_nni.data.pipeline import open_data
from hitdet_nni.errors import InputError
from hitdet_nni.process import prepare_process
from hitdet_nni.run_directory import RunDirectory, find_run
from hitdet_nni.settings import load_settings, parse_overrides
from hitdet_nni.studies.plots import plot_random_study
from hitdet_nni.studies.random_baseline import RandomStudy, Rated, Summary, write_study
from hitdet_nni.studies.retrainings import Retraining


def study_command(options: Namespace) -> None:
    """``study random``: random architectures of the searched one's cost, all retrained under one protocol."""
    for name, value in (
        ("--architectures", options.architectures),
        ("--seeds", options.seeds),
        ("--jobs", options.jobs),
    ):
        if value < 1:
            raise InputError(f"got {value}", source=name, allowed="a positive number")
    if not 0 < options.slack <= 1:
        raise InputError(f"got {options.slack}", source="--slack", allowed="above 0, at most 1")
    run = find_run(options.run)
    settings = load_settings(run.config, parse_overrides(options.overrides))
    settings = settings.model_copy(update={"skeleton": load_architecture(run.architecture).skeleton})
    prepare_process(settings.threads)
    study = RandomStudy(run, settings, options.architectures, options.seeds, options.slack, options.jobs)
    RunDirectory(options.out).open(settings, force=options.force, resume=options.resume)
    total, done = (1 + options.architectures) * options.seeds, 0

    def say_result(one: Retraining, result: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        if not options.json:
            say(f"{done}/{total}  {one.folder.name}  mAP {result['mAP']:.3f}  GFLOPs {result['gflops']:.4g}")

    rated = study.carry_out(open_data(settings.data, settings.seed), options.out / "runs", say_result)
    summary = write_study(rated, study, options.out)
    plot_random_study(rated, summary, options.out / "study.png")
    if options.json:
        say(json.dumps({"summary": asdict(summary), "architectures": [asdict(one) for one in rated]}, indent=2))
        return
    console().print(_table(rated))
    for line in _sentences(summary):
        say(line)
    say(str(options.out / "study.json"))


def _table(rated: list[Rated]) -> Table:
    table = Table()
    for header in ("architecture", "params M", "GFLOPs", "supernet loss", "mAP, mean", "sd over seeds"):
        table.add_column(header, justify="left" if header == "architecture" else "right")
    for one in sorted(rated, key=lambda one: one.mean, reverse=True):
        deviation = "-" if one.deviation is None else f"{one.deviation:.3f}"
        figures = (f"{one.params_m:.3f}", f"{one.gflops:.4g}", f"{one.supernet_loss:.3f}", f"{one.mean:.3f}", deviation)
        table.add_row(one.name, *figures)
    return table


def _sentences(summary: Summary) -> list[str]:
    def spread(mean: float, deviation: float | None, of: str) -> str:
        return f"{mean:.3f}" + ("" if deviation is None else f" (sd {deviation:.3f} over {of})")

    lines = [
        f"searched: mAP {spread(summary.searched_mean, summary.searched_deviation, 'seeds')}",
        f"random: mAP {spread(summary.random_mean, summary.random_deviation, 'architectures')}",
        f"the searched one is number {summary.rank} of {summary.architectures}; "
        f"{summary.share_as_good:.0%} of the random ones are at least as good",
    ]
    if summary.kendall is not None and summary.spearman is not None:
        lines.append(
            "supernet against retrained: Kendall's tau "
            f"{summary.kendall:+.2f}, Spearman's rho {summary.spearman:+.2f} over {summary.architectures} architectures"
        )
    return lines
