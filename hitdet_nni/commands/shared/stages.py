"""What the commands and the Python interface both do in a run directory: checks first, then the stages' work."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hitdet_nni.commands.shared.console import refuse_existing
from hitdet_nni.commands.shared.trained import trained_source
from hitdet_nni.commands.shared.work import libraries_loading, working
from hitdet_nni.config.architecture import Architecture, load_architecture
from hitdet_nni.config.budget_settings import BudgetKey
from hitdet_nni.config.search_space import SearchSpace, load_search_space
from hitdet_nni.config.settings import Settings, load_settings
from hitdet_nni.data.sources import open_data, open_images
from hitdet_nni.deployment.suffixes import require_suffix
from hitdet_nni.engine import distributed
from hitdet_nni.engine.process import prepare_process
from hitdet_nni.errors import InputError
from hitdet_nni.loggers.packages import require_package
from hitdet_nni.nas.checks import check_budget, check_classes, check_initial_weights, tell_unused_budget, whole_space
from hitdet_nni.nas.provenance import (
    keep_architecture,
    require_latency_table,
    tell_unused_skeleton,
    transferred,
    with_sample,
)
from hitdet_nni.runs.front import FrontRow, points_within, read_front
from hitdet_nni.runs.run_directory import RunDirectory, find_run
from hitdet_nni.runs.sub_spaces import kept_sub_spaces
from hitdet_nni.studies.random_architectures import RandomDraw

if TYPE_CHECKING:
    from hitdet_nni.cost.latency_table import LatencyTable
    from hitdet_nni.deployment import FilePrecision, Format
    from hitdet_nni.training.exported_file import FileCheck

logger = logging.getLogger(__name__)


def run_search(
    out: Path, settings: Settings, config: str, given: SearchSpace | None = None, *, force: bool, resume: bool
) -> Architecture:
    """Screen unless that has been done, and search.

    Args:
        out: The run directory.
        settings: All settings.
        config: What they are called.
        given: Search space to use instead of screening.
        force: Remove the results that are there.
        resume: Go on where an earlier run stopped.

    Raises:
        InputError: If the data, the search space or the run directory is bad.
    """
    require_package(settings.logger)
    run = RunDirectory(out)
    with working(out, "search", config) as view:
        require_latency_table(run, settings)
        kept = load_search_space(run.sub_spaces) if run.sub_spaces.is_file() and not force else None
        candidates = given or kept or whole_space(settings)
        settings, images = open_images(settings)
        tell_unused_budget(check_budget(candidates, settings, len(images.classes)))
        only_screened = run.sub_spaces.is_file() and not run.architecture.exists()
        resume = resume or (only_screened and not force)
        run.check(settings, force=force, resume=resume)
        with libraries_loading(view, settings):
            from hitdet_nni.loggers.following import followed
            from hitdet_nni.nas.health.validation_batches import tell_too_few_batches
            from hitdet_nni.pipeline.screening import screen
            from hitdet_nni.pipeline.search import search

        run.open(settings, force=force, resume=resume)
        space = kept_sub_spaces(run, given)
        with followed(run, settings):
            if not run.architecture.exists():
                tell_too_few_batches(run, settings, images)
            if space is None:
                with run.timed("screening"):
                    space = screen(run, candidates, settings, images)
            with run.timed("search"):
                return search(run, space, settings, images)


def run_retraining(
    out: Path,
    settings: Settings,
    config: str,
    architectures: Sequence[Architecture] | RandomDraw,
    supernet: Path | None = None,
    *,
    force: bool,
    resume: bool,
    processes: int = 1,
    as_json: bool = False,
) -> dict[str, Any]:
    """Train an architecture, or several of which ever fewer go on, from new weights or a supernet's.

    Args:
        out: The run directory.
        settings: All settings.
        config: What they are called.
        architectures: What to train, or to choose from.
        supernet: Weights to start from.
        force: Remove the results that are there.
        resume: Go on where an earlier run stopped.
        processes: Trainings side by side, of several architectures, until one is left.
        as_json: Leave standard output to the result.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        InputError: If the data, the weights or the run directory is bad.
    """
    check_initial_weights(settings, supernet)
    require_package(settings.logger)
    run = RunDirectory(out)
    of = str(architectures) if isinstance(architectures, RandomDraw) else ", ".join(one.name for one in architectures)
    with working(out, "retrain", f"{config}, {of}", as_json=as_json) as view:
        if isinstance(architectures, RandomDraw):
            settings, images = open_images(settings)
            architectures = architectures.drawn(settings, images)
        else:
            settings, images = open_images(settings, architectures[0].skeleton.input_size)
            if settings.retrain.transfer:
                architectures = [transferred(one, settings, images.classes) for one in architectures]
        check_classes(architectures[0], images, trains=True)
        tell_unused_skeleton(architectures[0], settings, trains=True)
        run.check(settings, force=force, resume=resume)
        with libraries_loading(view, settings):
            from hitdet_nni.loggers.following import followed
            from hitdet_nni.pipeline.retraining import retrain_architecture
            from hitdet_nni.training.retrain import check_start
            from hitdet_nni.training.runner_config import STAGE

        check_start(settings, supernet)
        run.open(settings, force=force, resume=resume)
        architecture = architectures[0]
        with followed(run, settings):
            if len(architectures) > 1:
                with run.timed("rungs"):
                    architecture = _begin_the_best(run, architectures, settings, supernet, processes)
                resume = True
            if distributed.is_main():
                keep_architecture(run, architecture)
            with run.timed(STAGE):
                return retrain_architecture(run, architecture, settings, images, resume=resume, inherit=supernet)


def _begin_the_best(
    run: RunDirectory,
    architectures: Sequence[Architecture],
    settings: Settings,
    supernet: Path | None,
    processes: int,
) -> Architecture:
    """Return the best of several, which a run is to go on training; one that has ended is not chosen again."""
    from hitdet_nni.studies.retrainings import go_on_from
    from hitdet_nni.studies.successive_halving import best_by_halving, halving_in_words, note_candidates

    folder = run.rungs
    if distributed.broadcast_object(run.architecture.exists()):
        there = load_architecture(run.architecture)
        if not distributed.broadcast_object(run.candidates.exists()):
            raise InputError(
                "the run there is of one architecture", source=run.path, allowed="another folder, or --force"
            )
        if all(one.sample != there.sample for one in architectures):
            keep_architecture(run, architectures[0])  # refuses
        if distributed.broadcast_object(run.metrics.exists()):
            note_candidates(architectures, folder)
            return there
    logger.info(halving_in_words(len(architectures), settings.retrain.epochs))
    chosen = best_by_halving(architectures, settings, folder, processes, supernet)
    if distributed.is_main():
        keep_architecture(run, chosen.architecture)
    if chosen.begun is not None:
        go_on_from(chosen.begun, run)
    return chosen.architecture


def run_front(
    run: RunDirectory,
    key: BudgetKey,
    budgets: Sequence[float],
    table: LatencyTable | None,
    samples: int,
    images: int,
    *,
    force: bool,
    resume: bool,
    as_json: bool = False,
) -> tuple[FrontRow, ...]:
    """Try architectures of a finished search's supernet, compare the best, and write the front.

    Args:
        run: The run of the search.
        key: Unit of the cost.
        budgets: Costs at which an architecture is wanted besides.
        table: Measured times, if there are some.
        samples: Architectures tried, besides a third as many that fill the budgets.
        images: Images that they are tried on.
        force: Remove the front that is there.
        resume: Go on where an earlier call stopped.
        as_json: Leave standard output to the result.

    Raises:
        InputError: If the search has not ended, a number is out of range, or a front is there.
    """
    for name, value, least in (("--samples", samples, 8), ("--images", images, 1)):
        if value < least:
            raise InputError(f"got {value}", source=name, allowed=f"{least} or more")
    for budget in budgets:
        if not 0 < budget < math.inf:
            raise InputError(f"got {budget:g}", source="--budget", allowed="numbers above 0")
    run.require(run.architecture, "search")
    settings = load_settings(run.config)
    if run.front.exists() and not (resume or force):
        raise InputError("exists already", source=run.front, allowed="--resume, or --force")
    with working(run.path, "front", f"{run.path}, {key}", as_json=as_json) as view:
        data = open_data(settings.data, settings.seed, settings.skeleton.input_size)
        with libraries_loading(view, settings):
            from hitdet_nni.nas.run_front import FrontRequest, find_front

        with run.timed("front"):
            return find_front(run, settings, data, FrontRequest(key, tuple(budgets), table, samples, images, force))


def front_unit(
    run: RunDirectory, settings: Settings, cost: BudgetKey | None = None, table: Path | None = None
) -> tuple[BudgetKey, LatencyTable | None]:
    """Return the unit of a front's costs, and the table of latencies where there is one.

    Args:
        run: The run of the search.
        settings: Its settings, whose budget's unit is the default.
        cost: Another unit.
        table: A file of `latency` in place of the search's.

    Raises:
        InputError: If milliseconds are asked for and there is no table, or it is of another machine.
    """
    from hitdet_nni.cost.latency_table import load_latency_table
    from hitdet_nni.engine.machine import processor

    budget = settings.search.budget
    key: BudgetKey = cost or ("gflops" if budget is None else budget.key)
    if table is not None:
        given = load_latency_table(table)
        given.require_machine(processor(given.content.conditions.device), "a table of this machine")
        return key, given
    if run.latency.exists():
        return key, load_latency_table(run.latency)
    if key == "latency_ms":
        raise InputError("is missing", key="--table", allowed="a file of hitdet-nni latency")
    return key, None


def run_export(
    source: str,
    weights: Path | None,
    out: Path,
    kind: Format,
    config: str | Path | None = None,
    *,
    force: bool,
    raw_heads: bool,
    precision: FilePrecision,
    calibration: int,
    verify: bool = False,
) -> FileCheck | None:
    """Write a trained detector as a model file, calibrated and evaluated where that is asked for.

    Args:
        source: A run directory; with weights also an architecture JSON, or a shipped one's name.
        weights: Weights of a retraining; ``None`` for the run's.
        out: File to write.
        kind: Its format.
        config: Config of the images, if any are needed; ``None`` for the run's.
        force: Overwrite the file.
        raw_heads: Write what the heads say.
        precision: What its layers compute in.
        calibration: Training images for ``int8``.
        verify: Evaluate the file.

    Raises:
        InputError: If a value has no meaning, the file's name stands for another format, images are needed and not
            named, or they are of other classes.
    """
    require_suffix(out, kind)
    if calibration < 1:
        raise InputError(f"got {calibration}", key="--calibration", allowed="1 or more")
    if verify and raw_heads:
        raise InputError("has no meaning with --raw-heads", key="--verify", allowed="a whole detector")
    architecture, weights = trained_source(source, weights)
    refuse_existing(out, force)
    if kind == "openvino":
        refuse_existing(out.with_suffix(".bin"), force)
    data = None
    if verify or precision == "int8":
        if config is None and not Path(source).is_dir():
            raise InputError("is missing", key="--config", allowed="a config of the images, or a run as the source")
        settings = load_settings(config or find_run(source).config)
        data = open_data(settings.data, settings.seed, architecture.skeleton.input_size)
        check_classes(architecture, data)
        prepare_process(settings.threads)
    from hitdet_nni.deployment.formats import export_model
    from hitdet_nni.training.exported_file import calibration_images, check_file

    size = architecture.skeleton.input_size
    images = () if data is None else calibration_images(data.train, size, calibration)
    export_model(architecture, weights, out, kind, raw_heads=raw_heads, precision=precision, calibration=images)
    return check_file(out, kind, architecture, weights, data.val) if verify and data is not None else None


def front_points(run: RunDirectory, budget: float, count: int) -> list[Architecture]:
    """Return the architectures of a run's front within a cost of which trainings are to choose, the best first.

    Args:
        run: The run of the search.
        budget: The cost, in the front's unit.
        count: How many.

    Raises:
        InputError: If the front has none within it, or fewer than are wanted.
    """
    if count < 1:
        raise InputError(f"got {count}", key="--top", allowed="1 or more")
    within = points_within(read_front(run.require(run.front_table, "front")), budget, count)
    if len(within) < count:
        raise InputError(f"got {count}", key="--top", allowed=f"{len(within)} or fewer, as {run.front_table} has")
    point, *others = within
    architecture = load_architecture(run.front / f"{point.name}.json")
    if architecture.sample != point.sample:
        raise InputError(
            f"is not {point.name} of {run.front_table}", source=run.front, allowed="the front written anew: --force"
        )
    return [architecture, *(with_sample(architecture, row.name, row.sample) for row in others)]
