"""What each ``hitdet-nni`` command does."""

from __future__ import annotations

import csv
import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hitdet_nni.architecture import Architecture, load_architecture, save_architecture
from hitdet_nni.data.coco import read_annotations
from hitdet_nni.data.digits import make_digits
from hitdet_nni.data.pictures import check_pictures
from hitdet_nni.data.pipeline import open_data
from hitdet_nni.errors import InputError
from hitdet_nni.files import read_text, write_text
from hitdet_nni.measured import add_measured, load_measured
from hitdet_nni.mmdet_config import Profile, baseline_names, is_config, profile_config
from hitdet_nni.procedure import describe_architecture, screen, search, train_found, whole_space
from hitdet_nni.process import prepare_process
from hitdet_nni.run_directory import RunDirectory, find_run
from hitdet_nni.search.cost import PARTS, Cost, CostModel
from hitdet_nni.search.evaluator import EpochRecord
from hitdet_nni.search_space import load_search_space, save_search_space
from hitdet_nni.settings import Settings, load_settings, parse_overrides
from hitdet_nni.table_rendering import FOOTNOTE, conditions, plain, rich_table, sheet, summary, update_markdown
from hitdet_nni.tables import compare, load_tables
from hitdet_nni.train import evaluate, export_config
from hitdet_nni.trial_table import print_table


def run(options: Namespace) -> None:
    """Run the command that the options name."""
    COMMANDS[options.command](options)


def _console() -> Console:
    # A table that is piped must not be folded to a terminal's 80 columns.
    return Console(width=None if sys.stdout.isatty() else 160)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _settings(options: Namespace) -> Settings:
    settings = load_settings(options.config, parse_overrides(options.overrides))
    prepare_process(settings.threads)
    return settings


def _say_epoch(stage: str, record: EpochRecord) -> None:
    numbers = "  ".join(f"{name} {value:.4g}" for name, value in record.metrics().items())
    _say(f"{stage}  epoch {record.epoch + 1}  {numbers}")


def _refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise InputError("exists already", source=path, allowed="another file, or --force")


def data(options: Namespace) -> None:
    """``data digits``."""
    make_digits(
        options.out,
        train=options.train,
        val=options.val,
        size=options.size,
        seed=options.seed,
        force=options.force,
    )
    _say(f"{options.out}: {options.train} training and {options.val} validation pictures")


def check_data(options: Namespace) -> None:
    """``check-data``: counts and defects of both splits."""
    settings = load_settings(options.config, parse_overrides(options.overrides)).data
    if settings.builtin is not None:
        raise InputError(f"got {settings.builtin!r}", source=options.config, key="data.builtin", allowed="null")
    splits = (("train", settings.train_ann, settings.train_images), ("val", settings.val_ann, settings.val_images))
    result: dict[str, Any] = {}
    defects: list[str] = []
    for split, ann, images in splits:
        if ann is None or images is None:
            raise InputError("missing", source=options.config, key=f"data.{split}_ann")
        dataset = read_annotations(ann, images, key=f"data.{split}_ann", allow_empty_boxes=True)
        found = [f"{defect.file}: {defect.problem}" for defect in check_pictures(dataset)]
        summary = dataset.summary
        result[split] = {
            "pictures": summary.pictures,
            "boxes": summary.boxes,
            "classes": len(summary.classes),
            "crowd boxes": summary.crowd_boxes,
            "ignored boxes": summary.ignored_boxes,
            "boxes partly outside": summary.boxes_partly_outside,
            "pictures without boxes": summary.pictures_without_boxes,
            "defects": found,
        }
        defects += found
    if options.json:
        _say(json.dumps(result, indent=2))
    else:
        table = Table("", *result)
        for key in next(iter(result.values())):
            cells = [found[key] for found in result.values()]
            table.add_row(key, *(str(len(cell) if isinstance(cell, list) else cell) for cell in cells))
        _console().print(table)
    if defects:
        more = f" (and {len(defects) - 1} more)" if len(defects) > 1 else ""
        raise InputError(f"{defects[0]}{more}")


def screen_command(options: Namespace) -> None:
    """``screen``: the sub search space of each component."""
    settings = _settings(options)
    whole = whole_space(settings)
    run_directory = RunDirectory(options.out)
    pictures = open_data(settings.data, settings.seed)
    run_directory.open(settings, force=options.force, resume=options.resume)
    with run_directory.timed("screening"):
        space = screen(run_directory, whole, settings, pictures, _say_epoch)
    for component, names in space.items():
        _say(f"{component}: {', '.join(names)}")
    _say(str(run_directory.sub_spaces))


def search_command(options: Namespace) -> None:
    """``search``: from pictures to an architecture JSON."""
    settings = _settings(options)
    given = None if options.sub_spaces is None else load_search_space(options.sub_spaces)
    whole = whole_space(settings)
    run_directory = RunDirectory(options.out)
    pictures = open_data(settings.data, settings.seed)
    only_screened = run_directory.sub_spaces.is_file() and not run_directory.architecture.exists()
    run_directory.open(settings, force=options.force, resume=options.resume or (only_screened and not options.force))
    if given is not None:
        save_search_space(given, run_directory.sub_spaces)
        space = given
    else:
        with run_directory.timed("screening"):
            space = screen(run_directory, whole, settings, pictures, _say_epoch)
    with run_directory.timed("search"):
        search(run_directory, space, settings, pictures, _say_epoch)
    _say(str(run_directory.architecture))


def export(options: Namespace) -> None:
    """``export``: a run's architecture, or the one that its alphas showed after an epoch."""
    found = find_run(options.run)
    _refuse_existing(options.out, options.force)
    if options.epoch is None:
        architecture = load_architecture(found.architecture)
    else:
        architecture = _decode_epoch(found, options.epoch)
    save_architecture(architecture, options.out)
    _say(str(options.out))


def _decode_epoch(found: RunDirectory, epoch: int) -> Architecture:
    rows = [row for row in csv.DictReader(read_text(found.alphas).splitlines()) if row.get("epoch") == str(epoch)]
    if not rows:
        raise InputError(f"no epoch {epoch}", source=found.alphas, key="--epoch", allowed="an epoch of the search")
    settings = load_settings(found.config)
    space = load_search_space(found.sub_spaces)
    best: dict[str, tuple[float, str]] = {
        layer.label: (float("-inf"), space[layer.component][0]) for layer in settings.skeleton.searched_layers()
    }
    try:
        for row in rows:
            best[row["label"]] = max(best[row["label"]], (float(row["alpha"]), row["operator"]))
    except (KeyError, TypeError, ValueError):
        raise InputError("is not a table of alphas", source=found.alphas) from None
    sample = {label: name for label, (_, name) in best.items()}
    classes = open_data(settings.data, settings.seed).classes
    return describe_architecture(f"{found.path.name}-epoch{epoch}", sample, space, settings, classes)


def export_config_command(options: Namespace) -> None:
    """``export-config``: a self-contained mmdet config."""
    settings = _settings(options)
    architecture = load_architecture(options.architecture)
    _refuse_existing(options.out, options.force)
    write_text(options.out, export_config(architecture, settings, open_data(settings.data, settings.seed)))
    _say(str(options.out))


def profile(options: Namespace) -> None:
    """``profile``: parameters and FLOPs by part, and by layer where asked for."""
    for name, value in (("--shape", min(options.shape or [32])), ("--proposals", options.proposals)):
        if value is not None and value < 1:
            raise InputError(f"got {value}", source=name, allowed="positive numbers")
    shape = tuple(options.shape) if options.shape else None
    rows: list[tuple[str, str, str, Cost]] = []
    if is_config(options.target):
        if options.layers:
            raise InputError("lists the layers of architectures only", source="--layers", allowed="an architecture")
        found = profile_config(options.target, shape, options.proposals, options.convention)
    else:
        architecture = _architecture_to_profile(options.target)
        model = CostModel(
            architecture.skeleton,
            architecture.num_classes,
            shape=shape,
            proposals=options.proposals,
            convention=options.convention,
        )
        costs = model.architecture(architecture.sample)
        found = Profile(architecture.name, model.shape, model.proposals, model.convention, costs)
        rows += model.rows(architecture.sample) if options.layers else []
    if options.proposals and not found.proposals:
        sys.stderr.write(f"hitdet-nni: {found.name} has one stage and no RoIs: --proposals changes nothing\n")
    if options.json:
        _say(json.dumps(_profile_values(found, rows if options.layers else None), indent=2))
    else:
        _console().print(_profile_table(found, rows))


def _architecture_to_profile(target: str) -> Architecture:
    path = Path(target)
    try:
        return load_architecture(find_run(path).architecture if path.is_dir() else target)
    except InputError as error:
        if error.allowed is None or path.suffix or path.name != target or path.exists():
            raise
        allowed = [error.allowed, *baseline_names()]
        raise InputError(error.problem, source=error.source, key=error.key, allowed=allowed) from None


def _profile_values(found: Profile, rows: list[tuple[str, str, str, Cost]] | None) -> dict[str, Any]:
    result: dict[str, Any] = {
        "convention": found.convention,
        "shape": list(found.shape),
        "proposals": found.proposals,
        "params": {part: cost.params for part, cost in found.costs.items()},
        "flops": {part: cost.flops for part, cost in found.costs.items()},
    }
    if rows is not None:
        result["layers"] = [
            {"part": part, "layer": layer, "operator": name, "params": cost.params, "flops": cost.flops}
            for part, layer, name, cost in rows
        ]
    return result


def _profile_table(found: Profile, rows: list[tuple[str, str, str, Cost]]) -> Table:
    lines = [(layer, name, cost) for _, layer, name, cost in rows]
    lines += [(part, "", found.costs[part]) for part in (*PARTS, "total")]
    height, width = found.shape
    table = Table(title=f"{found.name}, {height} x {width}, {found.proposals} proposals, {found.convention}")
    for heading in ("part", "operator"):
        table.add_column(heading)
    for heading in ("params (M)", "FLOPs (G)"):
        table.add_column(heading, justify="right")
    for part, name, cost in lines:
        table.add_row(part, name, f"{cost.params / 1e6:.3f}", f"{cost.flops / 1e9:.3f}")
    return table


def retrain_command(options: Namespace) -> None:
    """``retrain``: train from scratch, evaluate, write metrics.json."""
    settings = _settings(options)
    architecture = load_architecture(options.architecture)
    run_directory = RunDirectory(options.out)
    pictures = open_data(settings.data, settings.seed)
    run_directory.open(settings, force=options.force, resume=options.resume)
    save_architecture(architecture, run_directory.architecture)

    def say(epoch: int, metrics: dict[str, float]) -> None:
        if not options.json:
            _say(f"epoch {epoch}  " + "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))

    with run_directory.timed("retrain"):
        result = train_found(run_directory, architecture, settings, pictures, say)
    _say(json.dumps(result, indent=2) if options.json else str(run_directory.metrics))


def evaluate_command(options: Namespace) -> None:
    """``evaluate``: COCO metrics of given weights."""
    settings = _settings(options)
    architecture = load_architecture(options.architecture)
    pictures = open_data(settings.data, settings.seed)
    metrics = evaluate(architecture, options.weights, settings, pictures)
    if options.json:
        _say(json.dumps(metrics, indent=2))
    else:
        _say("  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))


def tables_command(options: Namespace) -> None:
    """``tables``: the paper's cost tables, published beside ours."""
    prepare_process(1)
    chosen = [table for table in load_tables() if options.number in (None, table.number)]
    runs = [load_measured(path) for path in options.run]
    compared = [(table, add_measured(compare(table), runs)) for table in chosen]
    if options.markdown is not None:
        if options.number is not None or options.json:
            raise InputError("writes all tables", source="--markdown", allowed="neither a number nor --json")
        update_markdown(options.markdown, compared)
        _say(str(options.markdown))
    elif options.json:
        _say(json.dumps(plain(compared), indent=2))
    else:
        _say(conditions())
        for table, comparisons in compared:
            found = sheet(table, comparisons)
            _say(f"\n{found.title}")
            print_table(rich_table(found), sys.stdout)
            for remark in found.remarks:
                _say(f"  {remark}")
        _say(f"\n{FOOTNOTE}\n{summary(compared)}")


COMMANDS = {
    "data": data,
    "check-data": check_data,
    "screen": screen_command,
    "search": search_command,
    "export": export,
    "export-config": export_config_command,
    "profile": profile,
    "retrain": retrain_command,
    "evaluate": evaluate_command,
    "tables": tables_command,
}
