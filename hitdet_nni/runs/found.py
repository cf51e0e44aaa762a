"""What a search has found, in words: its cost, how much of the budget that is, and what it reaches."""

from __future__ import annotations

from collections.abc import Mapping

from hitdet_nni.config.architecture import Architecture, load_architecture
from hitdet_nni.config.budget_settings import BudgetKey, BudgetSettings
from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.units import UNITS
from hitdet_nni.runs.goal import own_budget
from hitdet_nni.runs.result import read_result
from hitdet_nni.runs.run_directory import RunDirectory


def costs_of(architecture: Architecture) -> dict[BudgetKey, float]:
    """Return what an architecture costs, as far as its provenance says, in the units of a budget."""
    provenance = architecture.provenance
    costs: dict[BudgetKey, float] = {}
    for record in provenance.cost:
        if record.convention == "macs":
            costs["params_m"] = record.params["total"] / UNITS["params_m"].scale
            costs["gflops"] = record.flops["total"] / UNITS["gflops"].scale
    if provenance.latency is not None:
        costs["latency_ms"] = provenance.latency.milliseconds
    return costs


def found_line(architecture: Architecture, budget: BudgetSettings | None) -> str:
    """Return the line that a search ends with.

    Args:
        architecture: What was found; its provenance has its cost.
        budget: What it may cost, if that is bounded.
    """
    costs = costs_of(architecture)
    share = "" if budget is None else f"; {used_of(budget, costs[budget.key])} is used"
    return f"found: {in_words(costs)}{share}"


def in_words(costs: Mapping[BudgetKey, float]) -> str:
    """Return costs with their units."""
    return ", ".join(f"{cost:.3g} {UNITS[key].name}" for key, cost in costs.items())


def used_of(budget: BudgetSettings, cost: float) -> str:
    """Return in words how much of a budget a cost in its unit is."""
    return f"{cost / budget.limit:.0%} of the budget of {budget.limit:g} {UNITS[budget.key].name}"


def facts_of(run: RunDirectory) -> dict[str, str]:
    """Return what a run has found and what that reaches, as far as the run has come, by what each is called.

    Raises:
        InputError: If one of its files is damaged.
    """
    if run.baseline.exists():
        return {"state": "the run of a baseline, which no search has found"}
    if not run.architecture.exists():
        return {"state": "not searched to its end"}
    architecture = load_architecture(run.architecture)
    result = read_result(run.metrics) if run.metrics.exists() else None
    costs = costs_of(architecture)
    if result is not None and result.params_m is not None and result.gflops is not None:
        costs |= {"params_m": result.params_m, "gflops": result.gflops}
    facts = {"architecture": architecture.name, "classes": ", ".join(architecture.provenance.classes)}
    facts["cost"] = in_words(costs)
    budget = own_budget(run, load_settings(run.config))
    if budget is not None and budget.key in costs:
        facts["budget"] = f"{used_of(budget, costs[budget.key])} is used"
    if result is not None:
        facts["mAP"] = f"{result.metrics['mAP']:.3f}"
    return facts
