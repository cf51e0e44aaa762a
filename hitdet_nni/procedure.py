"""The procedure: screening, trinity search and retraining in order, each stage writing into a run directory."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
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
from hitdet_nni.errors import InputError
from hitdet_nni.files import locked, write_csv, write_json
from hitdet_nni.run_directory import RunDirectory, git_commit, plain, versions
from hitdet_nni.search.cost import CostModel
from hitdet_nni.search.evaluator import EpochRecord
from hitdet_nni.search.screening import screen_component
from hitdet_nni.search.supernet import Phase, train_supernet
from hitdet_nni.search_space import SearchSpace, load_search_space, save_search_space
from hitdet_nni.settings import Settings
from hitdet_nni.skeleton import COMPONENTS, Component, Skeleton
from hitdet_nni.train import retrain

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


def screening_key(settings: Settings, space: SearchSpace) -> str:
    """A name for everything that screening depends on; runs with equal keys may share its result."""
    dependencies = plain(settings)
    for section in ("search", "retrain"):
        del dependencies[section]
    dependencies["space"] = space
    return hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()[:12]


def screen(
    run: RunDirectory, space: SearchSpace, settings: Settings, data: DetectionData, on_epoch: OnEpoch
) -> SearchSpace:
    """Screen every component that ``run`` has no scores of yet, and write ``screening/sub_spaces.yml``.

    Several processes may work on one directory: each takes a component that no other one is at.

    Source:
        Section 3.2.
    """
    pending = [component for component in COMPONENTS if not run.scores(component).exists()]
    wait = False
    while pending:
        for component in pending:
            with locked(run.screening / f".{component}.lock", wait=wait) as mine:
                if mine and not run.scores(component).exists():
                    _screen_one(run, component, space, settings, data, on_epoch)
        # What is left is another process's; waiting for its lock also covers its death.
        wait = True
        pending = [component for component in pending if not run.scores(component).exists()]
    kept: SearchSpace = {component: run.kept_operators(component) for component in COMPONENTS}
    if not run.sub_spaces.exists():
        save_search_space(kept, run.sub_spaces)
    return kept


def _screen_one(
    run: RunDirectory,
    component: Component,
    space: SearchSpace,
    settings: Settings,
    data: DetectionData,
    on_epoch: OnEpoch,
) -> None:
    logger.info("screening the %s: %d operators", component, len(space[component]))
    screened = screen_component(
        component, space, settings, data, lambda record: on_epoch(f"screening {component}", record)
    )
    run.write_scores(component, screened.rows())


def search(
    run: RunDirectory, space: SearchSpace, settings: Settings, data: DetectionData, on_epoch: OnEpoch
) -> Architecture:
    """Search all three components in their sub spaces and write ``architecture.json``.

    Does nothing where the file is there already.

    Source:
        Sections 3.3 and 3.4.
    """
    if run.architecture.exists():
        return load_architecture(run.architecture)
    records: list[EpochRecord] = []

    def keep(record: EpochRecord) -> None:
        records.append(record)
        write_search_tables(run, records)
        on_epoch("search", record)

    phase = Phase(
        skeleton=settings.skeleton,
        space=space,
        epochs=settings.search.epochs,
        warmup_epochs=settings.search.warmup_epochs,
        flops_weight=settings.search.flops_weight,
    )
    trained = train_supernet(phase, settings, data, settings.seed, keep)
    architecture = describe_architecture(run.path.name, trained.sample, space, settings, data.classes)
    save_architecture(architecture, run.architecture)
    return architecture


def write_search_tables(run: RunDirectory, records: list[EpochRecord]) -> None:
    """Write ``search/metrics.csv`` and ``search/alphas.csv``."""
    metrics = [{"epoch": record.epoch, **record.metrics()} for record in records]
    write_csv(run.search_metrics, list(metrics[0]), metrics)
    alphas = [
        {
            "epoch": record.epoch,
            "label": label,
            "operator": name,
            "alpha": alpha,
            "probability": record.probabilities[label][name],
        }
        for record in records
        for label, row in record.alphas.items()
        for name, alpha in row.items()
    ]
    write_csv(run.alphas, ["epoch", "label", "operator", "alpha", "probability"], alphas)


def describe_architecture(
    name: str, sample: dict[str, str], space: SearchSpace, settings: Settings, classes: tuple[str, ...]
) -> Architecture:
    """An architecture with its provenance and its cost by both conventions."""
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


def train_found(
    run: RunDirectory,
    architecture: Architecture,
    settings: Settings,
    data: DetectionData,
    on_evaluation: Callable[[int, dict[str, float]], None] = lambda epoch, metrics: None,
) -> dict[str, Any]:
    """Retrain an architecture from scratch and write ``metrics.json``.

    Returns:
        What the file holds: COCO metrics before and after training, parameters and FLOPs.

    Source:
        Section 4.2.
    """
    outcome = retrain(architecture, settings, data, run.retrain, on_evaluation)
    skeleton = architecture.skeleton
    cost = CostModel(skeleton, architecture.num_classes).architecture(architecture.sample)["total"]
    result = {
        "architecture": architecture.name,
        "mAP": outcome.metrics["mAP"],
        "params_m": cost.params / 1e6,
        "gflops": cost.flops / 1e9,
        "shape": list(skeleton.input_size),
        "metrics": outcome.metrics,
        "metrics_before_training": outcome.before,
        "weights": str(outcome.weights.relative_to(run.path)),
    }
    write_json(run.metrics, result)
    return result
