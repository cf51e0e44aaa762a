"""An architecture with its provenance: where it comes from, and what it costs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from hitdet_nni.config.architecture import (
    SCHEMA_VERSION,
    Architecture,
    CostRecord,
    LatencyRecord,
    Provenance,
    load_architecture,
    save_architecture,
)
from hitdet_nni.config.budget_settings import BudgetSettings
from hitdet_nni.config.settings import Settings
from hitdet_nni.config.skeleton import Component, Skeleton
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.latency_table import LatencyTable, load_latency_table, save_latency_table
from hitdet_nni.errors import InputError
from hitdet_nni.runs.environment import git_commit, versions
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.same_settings import plain

logger = logging.getLogger(__name__)

MOST_KEYS = 4
"""Keys that a line names of those that differ."""

SEARCH = "search"
"""The source of what this package's own search found."""


def describe_architecture(
    name: str,
    sample: Mapping[str, str],
    space: Mapping[Component, Sequence[str]],
    settings: Settings,
    classes: tuple[str, ...],
    *,
    source: str,
    activations: Mapping[Component, str] | None = None,
    latency: LatencyTable | None = None,
) -> Architecture:
    """Build an architecture with its provenance and its cost by both conventions.

    Args:
        name: A name for people.
        sample: Operator of each searched layer.
        space: The space that it was found in.
        settings: The settings that it was found with; their skeleton is the architecture's. The weights of the
            architecture loss are noted where ``source`` is :data:`SEARCH`: other strategies have none.
        classes: Class names, in label order.
        source: What found it, e.g. ``"DARTS of NNI"``.
        activations: How each component of the supernet was computed, where there was one.
        latency: Measured times, where the search had some.
    """
    weights: dict[str, float] = {}
    if source == SEARCH:
        weights["sparsity_weight"] = settings.screening.sparsity_weight
        weights["flops_weight"] = settings.search.flops_weight
    return Architecture(
        schema_version=SCHEMA_VERSION,
        name=name,
        skeleton=settings.skeleton,
        sample={layer.label: sample[layer.label] for layer in settings.skeleton.searched_layers()},
        provenance=Provenance(
            source=source,
            classes=classes,
            space={component: list(names) for component, names in space.items()},
            **weights,
            seed=settings.seed,
            data=plain(settings)["data"],
            versions=versions(),
            git_commit=git_commit(),
            activations=None if activations is None else dict(activations),
            cost=cost_records(settings.skeleton, sample, len(classes)),
            latency=None if latency is None else latency_record(settings.skeleton, sample, len(classes), latency),
        ),
    )


def latency_record(
    skeleton: Skeleton, sample: Mapping[str, str], num_classes: int, table: LatencyTable
) -> LatencyRecord:
    """Return the time of an architecture by a table of latencies."""
    total = CostModel(skeleton, num_classes, latency=table).architecture(sample)["total"]
    how = table.content.conditions
    return LatencyRecord(
        milliseconds=total.latency_ms,
        runtime=f"{how.runtime} {how.version}",
        device=how.device,
        threads=how.threads,
        machine=how.machine,
    )


def cost_records(skeleton: Skeleton, sample: Mapping[str, str], num_classes: int) -> tuple[CostRecord, ...]:
    """Return the cost of an architecture at its skeleton's padded input size, by both conventions."""
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
    """Fit an architecture to other classes and another input size than it was found for.

    Its cost is counted anew, and what it takes for an image is no longer known.
    """
    skeleton = architecture.skeleton.model_copy(update={"input_size": settings.skeleton.input_size})
    cost = cost_records(skeleton, architecture.sample, len(classes))
    provenance = architecture.provenance.model_copy(update={"classes": classes, "cost": cost, "latency": None})
    return architecture.model_copy(update={"skeleton": skeleton, "provenance": provenance})


def tell_unused_skeleton(architecture: Architecture, settings: Settings, *, trains: bool = False) -> None:
    """Log a line where the settings have another skeleton than an architecture, whose own is the one that is used.

    Args:
        architecture: What is trained or evaluated, transferred where ``retrain.transfer`` says so.
        settings: What the user gave.
        trains: Whether it is to be trained, so that ``retrain.transfer`` is a way to another input size.
    """
    used, given = (skeleton.model_dump(mode="json") for skeleton in (architecture.skeleton, settings.skeleton))
    others = [key for key, value in used.items() if given[key] != value]
    if not others:
        return
    named = ", ".join(f"{key} {used[key]} (config: {given[key]})" for key in others[:MOST_KEYS])
    named += f" and {len(others) - MOST_KEYS} more" if len(others) > MOST_KEYS else ""
    named += "; retrain.transfer=true trains at the config's" if trains and "input_size" in others else ""
    logger.warning("the skeleton of the architecture %s is used, not the config's: %s", architecture.name, named)


def with_sample(architecture: Architecture, name: str, sample: Mapping[str, str]) -> Architecture:
    """Return another architecture of the same search; its cost is counted anew, and no latency is noted."""
    cost = cost_records(architecture.skeleton, sample, architecture.num_classes)
    provenance = architecture.provenance.model_copy(update={"cost": cost, "latency": None})
    return architecture.model_copy(update={"name": name, "sample": dict(sample), "provenance": provenance})


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


def kept_budget(run: RunDirectory, settings: Settings) -> BudgetSettings | None:
    """Return the budget of a run's search, if it has one, with the run's own copy of the table of latencies.

    Args:
        run: The run of a search, which has taken the table for its machine's.
        settings: Its settings.
    """
    budget = settings.search.budget
    if budget is None or budget.table is None:
        return budget
    return budget.model_copy(update={"table": run.latency, "other_machine": True})


def require_latency_table(run: RunDirectory, settings: Settings) -> None:
    """Say where a copy is of the table of latencies that a run has its budget by, where that has gone.

    Raises:
        InputError: If it has.
    """
    budget = settings.search.budget
    table = None if budget is None else budget.table
    if table is not None and not table.exists() and run.latency.exists():
        allowed = f"a copy of {run.latency} in its place, or --set search.budget.table={run.latency}"
        raise InputError("no such file", source=table, key="search.budget.table", allowed=allowed)


def keep_latency_table(run: RunDirectory, table: LatencyTable) -> None:
    """Copy the table of latencies that a search has its budget by; in a run that is resumed it must be the same.

    Raises:
        InputError: If the run has had another table.
    """
    if not run.latency.exists():
        save_latency_table(table.content, run.latency)
    elif load_latency_table(run.latency).content != table.content:
        raise InputError(
            "is not the table that the run began with",
            source=table.source,
            key="search.budget.table",
            allowed=f"a copy of {run.latency} in its place, or --force",
        )
