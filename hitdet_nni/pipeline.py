"""The pipeline: screening, trinity search and retraining in order, each stage writing into a run directory."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from hitdet_nni.config.architecture import Architecture, load_architecture, save_architecture
from hitdet_nni.config.search_space import SearchSpace, save_search_space
from hitdet_nni.config.settings import Settings
from hitdet_nni.config.skeleton import COMPONENTS, Component
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine import distributed
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.progress import Progress, tell
from hitdet_nni.engine.weights_file import save_weights
from hitdet_nni.io import locked, read_json, write_json
from hitdet_nni.runs.result import result_content
from hitdet_nni.runs.run_directory import RunDirectory, plain
from hitdet_nni.runs.tables import append_alphas, append_metrics
from hitdet_nni.search.checks import check_budget
from hitdet_nni.search.epoch_record import EpochRecord
from hitdet_nni.search.provenance import describe_architecture
from hitdet_nni.search.screening import screen_components, screening_groups, screening_name, screening_stage
from hitdet_nni.search.supernet import Phase, train_supernet
from hitdet_nni.training.retrain import Retrained, retrain

logger = logging.getLogger(__name__)

OnEpoch = Callable[[str, EpochRecord], None]
"""Called with the stage's name (``"screening backbone"``, ``"search"``) and the record of each epoch."""


def ignore_epoch(stage: str, record: EpochRecord) -> None:
    """Make nothing of an epoch; what is written and shown of it does not depend on this."""


def screening_key(settings: Settings, space: SearchSpace) -> str:
    """Return a name for everything that screening depends on; runs with equal keys may share its result."""
    dependencies = plain(settings)
    for section in ("search", "retrain", "pretrain", "checkpoint"):
        del dependencies[section]
    dependencies["space"] = space
    return hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()[:12]


def screen(
    run: RunDirectory, space: SearchSpace, settings: Settings, data: DetectionData, on_epoch: OnEpoch = ignore_epoch
) -> SearchSpace:
    """Screen every component that ``run`` has no scores of yet, and write ``screening/sub_spaces.yml``.

    Several processes may work on one directory: each takes components that no other one is at.

    Source:
        Section 3.2.
    """
    pending = _unscreened(run, settings)
    wait = False
    while pending:
        for components in pending:
            with _claimed(run, components, wait) as mine:
                if mine:
                    screen_group(run, components, space, settings, data, on_epoch)
        # What is left is another run's; waiting for its lock also covers its death.
        wait = True
        pending = _unscreened(run, settings)
        if pending:
            tell(Progress(screening_stage(pending[0]), "waiting"))
    kept: SearchSpace = {component: run.kept_operators(component) for component in COMPONENTS}
    if distributed.is_main() and not run.sub_spaces.exists():
        save_search_space(kept, run.sub_spaces)
    distributed.barrier()
    return kept


def _has_scores(run: RunDirectory, components: Sequence[Component]) -> bool:
    return all(run.scores(component).exists() for component in components)


def _unscreened(run: RunDirectory, settings: Settings) -> list[tuple[Component, ...]]:
    groups = screening_groups(settings.screening.joint)
    pending: list[tuple[Component, ...]] = distributed.broadcast_object(
        [components for components in groups if not _has_scores(run, components)]
    )
    return pending


@contextmanager
def _claimed(run: RunDirectory, components: Sequence[Component], wait: bool) -> Iterator[bool]:
    """Whether this run (all its processes) is to screen some components, which no other run then does."""
    lock = run.screening / f".{screening_name(components)}.lock"
    with locked(lock, wait=wait) if distributed.is_main() else nullcontext(False) as mine:
        yield distributed.broadcast_object(mine and not _has_scores(run, components))


def screen_group(
    run: RunDirectory,
    components: Sequence[Component],
    space: SearchSpace,
    settings: Settings,
    data: DetectionData,
    on_epoch: OnEpoch = ignore_epoch,
) -> None:
    """Screen some components in one supernet and write their scores; goes on from the newest checkpoint."""
    stage = screening_stage(components)
    logger.info("%s: %d operators", stage, max(len(space[component]) for component in components))
    checkpoints = CheckpointFolder(run.checkpoints(stage), settings.checkpoint.keep)
    data = replace(data, halves=run.screening / f"{screening_name(components)}_halves.json")
    screened = screen_components(components, space, settings, data, lambda record: on_epoch(stage, record), checkpoints)
    if distributed.is_main():
        run.note_warnings(stage, screened.warnings)
        run.note_activations(stage, screened.activations)
        for component in components:
            run.write_scores(component, screened.scores(component))
        checkpoints.clear()
    distributed.barrier()


def search(
    run: RunDirectory, space: SearchSpace, settings: Settings, data: DetectionData, on_epoch: OnEpoch = ignore_epoch
) -> Architecture:
    """Search all three components in their sub spaces and write ``architecture.json``.

    Does nothing where the file is there already; otherwise goes on from the newest checkpoint.

    Source:
        Sections 3.3 and 3.4.
    """
    if distributed.broadcast_object(run.architecture.exists()):
        return load_architecture(run.architecture)
    check_budget(space, settings, len(data.classes))
    stage = "search"

    def keep(record: EpochRecord) -> None:
        write_epoch(run, record)
        on_epoch(stage, record)

    checkpoints = CheckpointFolder(run.checkpoints(stage), settings.checkpoint.keep)
    phase = Phase(
        stage=stage,
        skeleton=settings.skeleton,
        space=space,
        epochs=settings.search.epochs,
        warmup_epochs=settings.search.warmup_epochs,
        flops_weight=settings.search.flops_weight,
        budget=settings.search.budget,
        pretrained=settings.search.pretrained,
    )
    data = replace(data, halves=run.halves)
    trained = train_supernet(phase, settings, data, settings.seed, keep, checkpoints)
    architecture = describe_architecture(
        run.path.name, trained.sample, space, settings, data.classes, activations=trained.activations
    )
    if distributed.is_main():
        run.note_warnings(stage, trained.warnings)
        run.note_activations(stage, trained.activations)
        save_weights(trained.module.model.detector, run.supernet)
        save_architecture(architecture, run.architecture)
        checkpoints.clear()
    distributed.barrier()
    return architecture


def write_epoch(run: RunDirectory, record: EpochRecord) -> None:
    """Add an epoch to ``search/metrics.csv`` and ``search/alphas.csv``; one that is there already is replaced."""
    append_alphas(run.alphas, record.epoch, record.alphas, record.probabilities)
    append_metrics(run.search_metrics, record.epoch, record.metrics())


def retrain_architecture(
    run: RunDirectory,
    architecture: Architecture,
    settings: Settings,
    data: DetectionData,
    on_evaluation: Callable[[int, dict[str, float]], None] = lambda epoch, metrics: None,
    *,
    resume: bool = False,
    inherit: Path | None = None,
) -> dict[str, Any]:
    """Retrain an architecture and write ``metrics.json``.

    Args:
        run: Where it is written.
        architecture: What to train.
        settings: All settings.
        data: The images.
        on_evaluation: Called with the finished epochs and the metrics after every evaluation.
        resume: Go on from the newest checkpoint; do nothing where ``metrics.json`` is there already.
        inherit: Weights of the supernet to start from, instead of new ones.

    Returns:
        What the file holds: COCO metrics before and after training, parameters and FLOPs.

    Source:
        Section 4.2.
    """
    checkpoints = CheckpointFolder(run.checkpoints("retrain"), settings.checkpoint.keep)
    if not (resume and distributed.broadcast_object(run.metrics.exists())):
        outcome = retrain(
            architecture,
            settings,
            data,
            run.retrain,
            on_evaluation,
            resume=resume,
            inherit=inherit,
            checkpoints=checkpoints,
        )
        if distributed.is_main():
            write_json(run.metrics, _describe_retrained(run, architecture, outcome))
    if distributed.is_main():
        checkpoints.clear()
    distributed.barrier()
    result: dict[str, Any] = read_json(run.metrics)
    return result


def _describe_retrained(run: RunDirectory, architecture: Architecture, outcome: Retrained) -> dict[str, Any]:
    skeleton = architecture.skeleton
    cost = CostModel(skeleton, architecture.num_classes).architecture(architecture.sample)["total"]
    return result_content(
        "architecture",
        architecture.name,
        {"params_m": cost.params / 1e6, "gflops": cost.flops / 1e9, "shape": list(skeleton.input_size)},
        outcome.metrics,
        outcome.before,
        outcome.weights.relative_to(run.path),
    )
