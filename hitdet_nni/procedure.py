"""The procedure: screening, trinity search and retraining in order, each stage writing into a run directory."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from hitdet_nni.architecture import (
    SCHEMA_VERSION,
    Architecture,
    CostRecord,
    Provenance,
    load_architecture,
    save_architecture,
)
from hitdet_nni.data.pipeline import DetectionData
from hitdet_nni.engine import distributed
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.weights_file import save_weights
from hitdet_nni.errors import InputError
from hitdet_nni.files import append_epoch, locked, read_json, write_json
from hitdet_nni.run_directory import RunDirectory, git_commit, plain, versions
from hitdet_nni.search.budget import Budget
from hitdet_nni.search.cost import CostModel
from hitdet_nni.search.evaluator import EpochRecord
from hitdet_nni.search.screening import screen_components, screening_groups, screening_name, screening_stage
from hitdet_nni.search.supernet import Phase, train_supernet
from hitdet_nni.search_space import SearchSpace, load_search_space, save_search_space
from hitdet_nni.settings import Settings
from hitdet_nni.skeleton import COMPONENTS, Component, Skeleton
from hitdet_nni.training.retrain import Retrained, retrain

logger = logging.getLogger(__name__)

OnEpoch = Callable[[str, EpochRecord], None]
"""Called with the stage's name (``"screening backbone"``, ``"search"``) and the record of each epoch."""


def whole_space(settings: Settings) -> SearchSpace:
    """The search space that the settings name.

    Raises:
        InputError: If it is missing or broken, or a component has fewer operators than screening is to keep.
    """
    space = load_search_space(settings.space)
    for component, names in space.items():
        keep = getattr(settings.screening.keep, component)
        if keep > len(names):
            key = f"screening.keep.{component}"
            raise InputError(f"got {keep}", key=key, allowed=f"1 to {len(names)}, the operators of {settings.space}")
    return space


def check_budget(space: SearchSpace, settings: Settings, num_classes: int) -> None:
    """Refuse a budget that no architecture of a space keeps to, before hours are spent on it.

    Raises:
        InputError: Naming the least reachable cost.
    """
    if settings.search.budget is not None:
        Budget(CostModel(settings.skeleton, num_classes), space, settings.search.budget).check_reachable()


def screening_key(settings: Settings, space: SearchSpace) -> str:
    """A name for everything that screening depends on; runs with equal keys may share its result."""
    dependencies = plain(settings)
    for section in ("search", "retrain", "pretrain", "checkpoint"):
        del dependencies[section]
    dependencies["space"] = space
    return hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()[:12]


def screen(
    run: RunDirectory, space: SearchSpace, settings: Settings, data: DetectionData, on_epoch: OnEpoch
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
    kept: SearchSpace = {component: run.kept_operators(component) for component in COMPONENTS}
    if distributed.is_main() and not run.sub_spaces.exists():
        save_search_space(kept, run.sub_spaces)
    distributed.barrier()
    return kept


def _has_scores(run: RunDirectory, components: Sequence[Component]) -> bool:
    return all(run.scores(component).exists() for component in components)


def _unscreened(run: RunDirectory, settings: Settings) -> list[tuple[Component, ...]]:
    groups = screening_groups(settings.screening.joint)
    pending: list[tuple[Component, ...]] = distributed.from_main(
        [components for components in groups if not _has_scores(run, components)]
    )
    return pending


@contextmanager
def _claimed(run: RunDirectory, components: Sequence[Component], wait: bool) -> Iterator[bool]:
    """Whether this run (all its processes) is to screen some components, which no other run then does."""
    lock = run.screening / f".{screening_name(components)}.lock"
    with locked(lock, wait=wait) if distributed.is_main() else nullcontext(False) as mine:
        yield distributed.from_main(mine and not _has_scores(run, components))


def screen_group(
    run: RunDirectory,
    components: Sequence[Component],
    space: SearchSpace,
    settings: Settings,
    data: DetectionData,
    on_epoch: OnEpoch,
) -> None:
    """Screen some components in one supernet and write their scores; goes on from the newest checkpoint."""
    stage = screening_stage(components)
    logger.info("%s: %d operators", stage, max(len(space[component]) for component in components))
    checkpoints = CheckpointFolder(run.checkpoints(stage), settings.checkpoint.keep)
    data = replace(data, halves=run.screening / f"{screening_name(components)}_halves.json")
    screened = screen_components(components, space, settings, data, lambda record: on_epoch(stage, record), checkpoints)
    if distributed.is_main():
        run.note_warnings(stage, screened.warnings)
        run.note_saving(stage, screened.saving)
        for component in components:
            run.write_scores(component, screened.rows(component))
        checkpoints.clear()
    distributed.barrier()


def search(
    run: RunDirectory, space: SearchSpace, settings: Settings, data: DetectionData, on_epoch: OnEpoch
) -> Architecture:
    """Search all three components in their sub spaces and write ``architecture.json``.

    Does nothing where the file is there already; otherwise goes on from the newest checkpoint.

    Source:
        Sections 3.3 and 3.4.
    """
    if distributed.from_main(run.architecture.exists()):
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
        run.path.name, trained.sample, space, settings, data.classes, saving=trained.saving
    )
    if distributed.is_main():
        run.note_warnings(stage, trained.warnings)
        run.note_saving(stage, trained.saving)
        save_weights(trained.module.model.detector, run.supernet)
        save_architecture(architecture, run.architecture)
        checkpoints.clear()
    distributed.barrier()
    return architecture


def write_epoch(run: RunDirectory, record: EpochRecord) -> None:
    """Add an epoch to ``search/metrics.csv`` and ``search/alphas.csv``; one that is there already is replaced."""
    metrics = {"epoch": record.epoch, **record.metrics()}
    alphas = [
        {
            "epoch": record.epoch,
            "label": label,
            "operator": name,
            "alpha": alpha,
            "probability": record.probabilities[label][name],
        }
        for label, row in record.alphas.items()
        for name, alpha in row.items()
    ]
    append_epoch(run.alphas, record.epoch, alphas)
    append_epoch(run.search_metrics, record.epoch, [metrics])


def describe_architecture(
    name: str,
    sample: dict[str, str],
    space: SearchSpace,
    settings: Settings,
    classes: tuple[str, ...],
    *,
    saving: Mapping[Component, str] | None = None,
) -> Architecture:
    """An architecture with its provenance and its cost by both conventions.

    Args:
        name: A name for people.
        sample: Operator of each searched layer.
        space: The space that it was found in.
        settings: The run's settings.
        classes: Class names, in label order.
        saving: How each component of the supernet was computed, where there was one.
    """
    return Architecture(
        schema_version=SCHEMA_VERSION,
        name=name,
        skeleton=settings.skeleton,
        sample={layer.label: sample[layer.label] for layer in settings.skeleton.searched_layers()},
        provenance=Provenance(
            classes=classes,
            space={component: list(names) for component, names in space.items()},
            sparsity_weight=settings.screening.sparsity_weight,
            flops_weight=settings.search.flops_weight,
            seed=settings.seed,
            data=plain(settings)["data"],
            versions=versions(),
            git_commit=git_commit(),
            saving=None if saving is None else dict(saving),
            cost=cost_records(settings.skeleton, sample, len(classes)),
        ),
    )


def cost_records(skeleton: Skeleton, sample: dict[str, str], num_classes: int) -> tuple[CostRecord, ...]:
    """The cost of an architecture at its skeleton's input size, by both conventions."""
    records = []
    for convention in ("macs", "paper"):
        model = CostModel(skeleton, num_classes, convention=convention)
        costs = model.architecture(sample)
        records.append(
            CostRecord(
                convention=convention,
                shape=model.shape,
                proposals=model.proposals,
                params={part: cost.params for part, cost in costs.items()},
                flops={part: cost.flops for part, cost in costs.items()},
            )
        )
    return tuple(records)


def transferred(architecture: Architecture, settings: Settings, classes: tuple[str, ...]) -> Architecture:
    """An architecture for other classes and another input size than it was found for; its cost is counted anew."""
    skeleton = architecture.skeleton.model_copy(update={"input_size": settings.skeleton.input_size})
    cost = cost_records(skeleton, architecture.sample, len(classes))
    provenance = architecture.provenance.model_copy(update={"classes": classes, "cost": cost})
    return architecture.model_copy(update={"skeleton": skeleton, "provenance": provenance})


def keep_architecture(run: RunDirectory, architecture: Architecture) -> None:
    """Write ``architecture.json`` of a retraining; in a run that is resumed it must be the same.

    Raises:
        InputError: If the run is of another architecture.
    """
    if not run.architecture.exists():
        save_architecture(architecture, run.architecture)
        return
    there = load_architecture(run.architecture)
    if (there.skeleton, there.sample) != (architecture.skeleton, architecture.sample):
        raise InputError(
            "the run there is of another architecture",
            source=run.architecture,
            allowed="the same architecture, or --force",
        )


def train_found(
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
        data: The pictures.
        on_evaluation: Called with the finished epochs and the metrics after every evaluation.
        resume: Go on from the newest checkpoint; do nothing where ``metrics.json`` is there already.
        inherit: Weights of the supernet to start from, instead of new ones.

    Returns:
        What the file holds: COCO metrics before and after training, parameters and FLOPs.

    Source:
        Section 4.2.
    """
    checkpoints = CheckpointFolder(run.checkpoints("retrain"), settings.checkpoint.keep)
    if not (resume and distributed.from_main(run.metrics.exists())):
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
    return {
        "architecture": architecture.name,
        "mAP": outcome.metrics["mAP"],
        "params_m": cost.params / 1e6,
        "gflops": cost.flops / 1e9,
        "shape": list(skeleton.input_size),
        "metrics": outcome.metrics,
        "metrics_before_training": outcome.before,
        "weights": str(outcome.weights.relative_to(run.path)),
    }
