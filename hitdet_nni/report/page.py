"""The pages: what was read and drawn, put into the templates."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hitdet_nni import __version__
from hitdet_nni.errors import InputError, WriteError
from hitdet_nni.io import write_text
from hitdet_nni.report.architecture_drawing import draw_architecture
from hitdet_nni.report.axes import number
from hitdet_nni.report.candidates import candidate_table
from hitdet_nni.report.comparison import compare_runs
from hitdet_nni.report.config_view import config_view
from hitdet_nni.report.costs import cost_views
from hitdet_nni.report.exported_files import exported_files
from hitdet_nni.report.front_chart import FrontChart, front_chart
from hitdet_nni.report.heat_map import heat_maps
from hitdet_nni.report.operator_text import family_titles
from hitdet_nni.report.precisions import AVERAGE_PRECISIONS, percent
from hitdet_nni.report.sample_chart import sample_chart
from hitdet_nni.report.screening_chart import show_screening
from hitdet_nni.report.search_curves import health_charts, search_charts, training_charts
from hitdet_nni.report.study import Study, read_studies
from hitdet_nni.report.summary import duration, figures, searched, state_of
from hitdet_nni.report.unscreened import needs_screening, why_unscreened
from hitdet_nni.report.warning_kinds import warning_kinds
from hitdet_nni.runs.front_budgets import read_budgets
from hitdet_nni.runs.goal import own_budget
from hitdet_nni.runs.reading import ImageCounts, Run, read_run
from hitdet_nni.runs.run_directory import RunDirectory

logger = logging.getLogger(__name__)

PAGE = "report.html"
"""Name of a run's page in its directory."""

MOST_IMAGES = 40
"""Images that a page has at most, so that it stays small."""


def write_report(path: Path, out: Path | None = None, *, images: int = 6) -> Path:
    """Write the page of a run, in whatever state the run is, or of a study.

    Detections that should be there and cannot be had are a warning in the log.

    Args:
        path: The run directory.
        out: The file to write; ``report.html`` in the run directory by default.
        images: Validation images to show detections on.

    Returns:
        The file.

    Raises:
        InputError: If it is not a run directory, a file in it is damaged, or the page cannot be written.
    """
    if not 0 <= images <= MOST_IMAGES:
        raise InputError(f"got {images}", source="--images", allowed=f"0 to {MOST_IMAGES}")
    return _write(render_report(read_run(path), images), path / PAGE if out is None else out)


def write_comparison(paths: Sequence[Path], out: Path) -> Path:
    """Write a page that compares runs; arguments and errors as :func:`write_report`.

    Raises:
        InputError: Moreover if a run is named twice.
    """
    resolved = [path.resolve() for path in paths]
    for path, place in zip(paths, resolved, strict=True):
        if resolved.count(place) > 1:
            raise InputError("is named twice", source=path, allowed="each run once")
    return _write(render_comparison([read_run(path) for path in paths]), out)


def render_report(run: Run, images: int) -> str:
    """Render the page of a run, or of a study where the run directory is one's."""
    studies = read_studies(run)
    if studies is not None:
        return _render_study(run, studies)
    budget = own_budget(RunDirectory(run.path), run.settings)
    detections = _detections(run, images)
    counts = run.metadata.images
    if counts.val is None and "validation" in detections:
        counts = ImageCounts(train=counts.train, val=detections["validation"])
    return _render(
        "report.html",
        run=run,
        state=state_of(run),
        figures=figures(run),
        searched=list(searched(run, counts)),
        config=config_view(run.settings, run.metadata.command),
        screening=[
            show_screening(name, scores, None if run.space is None else run.space[name])
            for name, scores in run.scores.items()
            if scores
        ],
        heat=heat_maps(run.alphas) if run.alphas else None,
        architecture=None if run.architecture is None else draw_architecture(run.architecture),
        families=family_titles(),
        costs=() if run.architecture is None else cost_views(run.architecture, budget),
        search_charts=search_charts(run.metrics, budget),
        samples=sample_chart(run.samples) if run.samples else None,
        front=_front(run),
        candidates=candidate_table(run.trainings),
        training_charts=training_charts(run.training),
        precisions=AVERAGE_PRECISIONS,
        files=exported_files([(run.name, run)]),
        detections=detections,
        warnings=warning_kinds((stage, each) for stage, found in run.metadata.warnings.items() for each in found),
        unreliable=warning_kinds(
            (component, found.sentence(component))
            for component, found in run.reliability.items()
            if found.better_than_chance is False
        ),
        health_charts=health_charts(run.metrics),
        unscreened=why_unscreened(run),
        needs_screening=needs_screening(run),
    )


def _render_study(run: Run, studies: Sequence[Study]) -> str:
    return _render(
        "study.html",
        run=run,
        studies=studies,
        has_runs=(run.path / "runs").is_dir(),
        figures=figures(run),
        searched=list(searched(run, run.metadata.images)),
        config=config_view(run.settings, run.metadata.command),
    )


def render_comparison(runs: Sequence[Run]) -> str:
    """Render the page of a comparison."""
    return _render("compare.html", comparison=compare_runs(runs))


def _front(run: Run) -> FrontChart | None:
    if not run.front:
        return None
    searched = None if run.architecture is None else run.architecture.sample
    return front_chart(run.front, searched, read_budgets(RunDirectory(run.path).front))


def _detections(run: Run, images: int) -> dict[str, Any]:
    """Show what the detector finds, or say why that is not shown; a warning where a retrained detector has nothing."""
    if not images:
        return {"images": (), "why_none": "No images were asked for."}
    if run.baseline is not None:
        return {"images": (), "why_none": "A baseline is built by a config that is a program; a page runs none."}
    if run.architecture is None or run.weights is None:
        why = "The weights of a retrained detector are not there."
        return {"images": (), "why_none": why if run.result is None else _warned(run, why)}
    # It imports mmdet, which pages of runs without weights need not wait for.
    detections = importlib.import_module("hitdet_nni.report.detections")
    try:
        shown, total = detections.show_detections(run.architecture, run.weights, run.settings, images)
    except InputError as error:
        why = f"The detector could not be run on validation images: {error}."
        return {"images": (), "why_none": _warned(run, why)}
    return {"images": shown, "validation": total, "least_score": detections.SCORE}


def _warned(run: Run, why: str) -> str:
    logger.warning("%s: the page shows no detections. %s", run.path, why)
    return why


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent, duration=duration)
    return environment.get_template(template).render(version=__version__, **values)


def _write(page: str, out: Path) -> Path:
    # JSON can hold half of a surrogate pair, which UTF-8 has no bytes for.
    page = page.encode("utf-8", "replace").decode("utf-8")
    try:
        write_text(out, page)
    except WriteError as error:
        raise InputError(f"cannot be written ({error.reason})", source=out, key="--out") from None
    return out
