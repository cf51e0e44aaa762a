"""Whose goal the settings of a run are: a search's, or nobody's where an architecture was given."""

from __future__ import annotations

from hitdet_nni.config.architecture import load_architecture
from hitdet_nni.config.budget_settings import BudgetSettings
from hitdet_nni.config.settings import Settings
from hitdet_nni.runs.run_directory import RunDirectory

RANDOM = "random"
"""Source of an architecture that was drawn."""


def is_searched_here(run: RunDirectory) -> bool:
    """Whether a run's own search has found its architecture, or will find it, or a choice among random ones.

    What `retrain` was given was found by another search, of whose goal the settings of the retraining say nothing.

    Args:
        run: The run, in any state.
    """
    if run.sub_spaces.is_file() or not run.architecture.is_file():
        return True
    return run.candidates.is_file() and load_architecture(run.architecture).provenance.source == RANDOM


def own_budget(run: RunDirectory, settings: Settings) -> BudgetSettings | None:
    """Return the budget of a run's own search, ``None`` where it has none.

    Args:
        run: The run.
        settings: Its settings.
    """
    return settings.search.budget if is_searched_here(run) else None
