"""Why a page shows no screening of a component."""

from __future__ import annotations

from collections.abc import Sequence

from hitdet_nni.config.screening_settings import screened_components
from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.skeleton import COMPONENTS, Component
from hitdet_nni.errors import InputError
from hitdet_nni.runs.reading import Run


def why_unscreened(run: Run) -> list[str]:
    """Return a sentence for each component that has no scores."""
    needed = _screened(run)
    return [_sentence(component, run, needed) for component in COMPONENTS if component not in run.scores]


def needs_screening(run: Run) -> bool:
    """Whether any component has more operators than are kept of it, as far as the run's space is there to say."""
    return _screened(run) != ()


def _screened(run: Run) -> Sequence[Component] | None:
    """Return the components that a screening is of, ``None`` where the space that was screened is not there."""
    try:
        return screened_components(run.settings.screening, load_search_space(run.settings.space))
    except InputError:
        return None


def _sentence(component: Component, run: Run, needed: Sequence[Component] | None) -> str:
    if needed is not None and component not in needed:
        return f"The {component} needs no screening: it has no more operators than are kept."
    if run.space is None:
        return f"The screening of the {component} has not ended."
    return f"The {component} was not screened here; its operators were given: {', '.join(run.space[component])}."
