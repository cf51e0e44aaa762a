"""The kinds of ``study``: what each trains, and what it writes and prints of it."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from hitdet_nni.commands.console import console, say, settings_of
from hitdet_nni.config.architecture import Architecture, load_architecture
from hitdet_nni.config.search_space import save_search_space
from hitdet_nni.config.settings import Settings, load_settings, parse_overrides
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.data.sources import DetectionData, open_data
from hitdet_nni.io import write_csv, write_json
from hitdet_nni.pipeline import search
from hitdet_nni.runs.run_directory import RunDirectory, find_run
from hitdet_nni.search.checks import whole_space
from hitdet_nni.studies.operator_ablation import FIGURE_3, effects, insertion_architectures, insertions
from hitdet_nni.studies.part_ablation import part_architectures
from hitdet_nni.studies.plots import plot_effects, plot_random_study, plot_scores, plot_trained
from hitdet_nni.studies.random_baseline import Summary, draw_rivals, rate_by_supernet
from hitdet_nni.studies.retrainings import Protocol, Retraining, Trained
from hitdet_nni.studies.sparsity_ablation import curve_rows, screen_with
from hitdet_nni.studies.sub_space_ablation import common_sub_space

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


def _random(options: Namespace) -> Findings:
    """Random architectures of the found one's cost, all retrained under one protocol."""
    run, settings, data = _searched(options)
    architectures = draw_rivals(run, settings, data, options.architectures, options.slack)
    losses = rate_by_supernet(run, settings, data, architectures)
    trained = _protocol(options, settings).retrain(architectures)
    summary = Summary.of(trained, losses)
    plot_random_study(trained, losses, summary, _picture(options))
    rows = [{**row, "supernet_loss": losses[one.name]} for row, one in zip(_rows(trained), trained, strict=True)]
    details = {"summary": asdict(summary), "samples": {one.name: dict(one.sample) for one in trained}}
    return _written(options, rows, summary.sentences(), details)


def _parts(options: Namespace) -> Findings:
    """Table 5: each searched part alone in the baseline."""
    run, settings, data = _searched(options)
    return _retrained(options, settings, part_architectures(load_architecture(run.architecture), settings, data))


def _sub_spaces(options: Namespace) -> Findings:
    """Table 4: the found architecture against one searched in a sub-space that all components share."""
    run, settings, data = _searched(options)
    keep = max(len(run.kept_operators(component)) for component in COMPONENTS)
    space = common_sub_space(run, keep)
    own = RunDirectory(options.out / "one-sub-space")
    own.open(settings, resume=True)
    if not own.sub_spaces.exists():
        save_search_space(space, own.sub_spaces)
    one = search(own, space, settings, data)
    found = load_architecture(run.architecture)
    return _retrained(options, settings, {"1 sub search space": one, "3 sub search spaces": found})


def _operators(options: Namespace) -> Findings:
    """Fig. 3: one operator at a random layer of one part of the baseline."""
    settings = _open(options, settings_of(options))
    data = open_data(settings.data, settings.seed, settings.skeleton.input_size)
    chosen = insertions(settings, options.operators or FIGURE_3, options.parts or COMPONENTS, options.repeats)
    trained = _protocol(options, settings).retrain(insertion_architectures(chosen, settings, data))
    found = effects(chosen, {one.name: one for one in trained})
    baseline = trained[0]
    plot_effects(found, baseline.mean, _picture(options))
    rows: list[dict[str, object]] = [
        {"part": "-", "operator": "baseline", "mean_mAP": baseline.mean, "deviation": baseline.deviation, "repeats": 1}
    ]
    rows += [
        {
            "part": effect.component,
            "operator": effect.operator,
            "mean_mAP": effect.mean,
            "deviation": effect.deviation,
            "repeats": len(effect.accuracies),
        }
        for effect in found
    ]
    return _written(options, rows, [], {"retrainings": _rows(trained)})


def _sparsity(options: Namespace) -> Findings:
    """Fig. 4: the scores of screening with several weights of the column-sparse term."""
    settings = _open(options, settings_of(options))
    data, space = open_data(settings.data, settings.seed, settings.skeleton.input_size), whole_space(settings)
    found = [screen_with(mu, options.part, space, settings, data, options.out / f"mu-{mu:g}") for mu in options.weights]
    plot_scores(found, settings.seed, _picture(options))
    rows = [{"mu": one.weight, "deviation": one.deviation, "range": one.width} for one in found]
    curves = curve_rows(found)
    write_csv(options.out / "scores.csv", list(curves[0]), curves)
    return _written(options, rows, [], {})


def _searched(options: Namespace) -> tuple[RunDirectory, Settings, DetectionData]:
    """The run that is studied, its settings as the options change them, and the pictures."""
    run = find_run(options.run)
    skeleton = load_architecture(run.architecture).skeleton
    settings = load_settings(run.config, parse_overrides(options.overrides))
    settings = _open(options, settings.model_copy(update={"skeleton": skeleton}))
    return run, settings, open_data(settings.data, settings.seed, settings.skeleton.input_size)


def _open(options: Namespace, settings: Settings) -> Settings:
    RunDirectory(options.out).open(settings, force=options.force, resume=options.resume)
    return settings


def _protocol(options: Namespace, settings: Settings) -> Protocol:
    def say_result(done: int, total: int, one: Retraining, result: dict[str, Any]) -> None:
        if not options.json:
            say(f"{done}/{total}  {one.folder.name}  mAP {result['mAP']:.3f}  GFLOPs {result['gflops']:.4g}")

    seeds = getattr(options, "seeds", 1)
    return Protocol(settings, seeds, options.out / "runs", options.jobs, say_result)


def _retrained(options: Namespace, settings: Settings, architectures: Mapping[str, Architecture]) -> Findings:
    trained = _protocol(options, settings).retrain(architectures)
    plot_trained(trained, _picture(options))
    return _written(options, _rows(trained), [], {"samples": {one.name: dict(one.sample) for one in trained}})


def _rows(trained: Sequence[Trained]) -> list[dict[str, object]]:
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


def _picture(options: Namespace) -> Path:
    path: Path = options.out / f"{options.kind}.png"
    return path


def _written(options: Namespace, rows: Rows, sentences: Sequence[str], details: Mapping[str, object]) -> Findings:
    """Write ``KIND.csv`` and ``KIND.json``."""
    report = {"study": options.kind, "rows": list(rows), **details}
    write_csv(options.out / f"{options.kind}.csv", list(rows[0]), rows)
    write_json(options.out / f"{options.kind}.json", report)
    return Findings(report, sentences, options.out / f"{options.kind}.json")


def print_findings(findings: Findings, *, as_json: bool) -> None:
    """Print what a study has found: a table and sentences, or JSON."""
    if as_json:
        say(json.dumps(findings.report, indent=2))
        return
    rows = findings.report["rows"]
    table = Table()
    for header in rows[0]:
        table.add_column(header.replace("_", " "), justify="right" if _is_number(rows[-1][header]) else "left")
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    console().print(table)
    for line in findings.sentences:
        say(line)
    say(str(findings.file))


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, int | float)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


KINDS = {
    "random": _random,
    "operators": _operators,
    "sparsity": _sparsity,
    "sub-spaces": _sub_spaces,
    "parts": _parts,
}
"""What each kind does, by its name."""
