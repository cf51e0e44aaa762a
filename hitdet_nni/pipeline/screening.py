"""The first stage: screening, by one supernet or several, whose scores decide what the search chooses among."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from hitdet_nni.config.screening_settings import screened_components
from hitdet_nni.config.search_space import SearchSpace, load_search_space, save_search_space
from hitdet_nni.config.settings import Settings
from hitdet_nni.config.skeleton import COMPONENTS, Component
from hitdet_nni.config.validation import validated
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine import distributed
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.progress import Progress, tell
from hitdet_nni.io import locked, read_json, write_json
from hitdet_nni.nas.affordable import affordable
from hitdet_nni.nas.budget import Budget
from hitdet_nni.nas.checks import budget_cost_model, check_budget
from hitdet_nni.nas.outlook import screening_supernets
from hitdet_nni.nas.screening import screen_components, screening_groups, screening_name, screening_stage
from hitdet_nni.nas.screening_reliability import mean_scores, ranked, reliability_of, remedies, share_of
from hitdet_nni.pipeline.stage import OnEpoch, clear_training, ignore_epoch, note_images
from hitdet_nni.runs.reliability import write_reliability
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.same_settings import plain
from hitdet_nni.runs.tables import read_scores, write_scores
from hitdet_nni.training.supernet_pretraining import with_pretrained_backbone

logger = logging.getLogger(__name__)


def screening_key(settings: Settings, space: SearchSpace) -> str:
    """Return a name for everything that screening depends on; runs with equal keys may share its result."""
    dependencies = plain(settings)
    without = () if settings.pretrain.boxes else ("pretrain",)
    for section in ("search", "retrain", "checkpoint", "logger", *without):
        del dependencies[section]
    dependencies["space"] = space
    return hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()[:12]


class Notes(BaseModel):
    """``screening/*_notes.json``: what a part of a screening says beside its scores."""

    model_config = ConfigDict(frozen=True)

    warnings: list[str] = Field(description="what the signs of health give reason to doubt, one line each")
    activations: dict[Component, str] = Field(description="how the layers of each component were computed")


@dataclass(frozen=True)
class Screening:
    """The part of a screening that one supernet does.

    Attributes:
        components: The components that are screened in it.
        supernet: Its number, from 1, where several screen them; ``None`` where it is the only one.
    """

    components: tuple[Component, ...]
    supernet: int | None = None

    @property
    def stage(self) -> str:
        """What it is called in messages, and in the run directory."""
        return screening_stage(self.components, self.supernet)

    def scores(self, run: RunDirectory, component: Component) -> Path:
        """Return the file of its scores."""
        if self.supernet is None:
            return run.scores(component)
        return run.supernet_scores(component, self.supernet)

    def notes(self, run: RunDirectory) -> Path:
        """Return the file of what is to be told of it in the metadata of every run that uses its scores."""
        number = "" if self.supernet is None else f"_supernet_{self.supernet}"
        return run.screening / f"{screening_name(self.components)}{number}_notes.json"

    def is_done(self, run: RunDirectory) -> bool:
        """Whether all its scores are there."""
        return all(self.scores(run, component).exists() for component in self.components)


@dataclass(frozen=True)
class ScreeningWork:
    """The screening of a run: the supernets that it takes, and which of them are still to be trained.

    Several runs may work on one directory: each takes supernets that no other one is at.

    Attributes:
        run: Where it is written.
        space: The operators of each component.
        settings: All settings.
        data: The images.
        on_epoch: Called with each epoch.
        user: The run whose metadata tell of it, one of several that share it; ``None`` for the same one.
    """

    run: RunDirectory
    space: SearchSpace
    settings: Settings
    data: DetectionData
    on_epoch: OnEpoch = ignore_epoch
    user: RunDirectory | None = None

    @property
    def told(self) -> RunDirectory:
        """The run whose metadata tell of it."""
        return self.user or self.run

    @cached_property
    def supernets(self) -> int:
        """How many supernets share the screening of a component."""
        return screening_supernets(self.settings, self.data)

    def parts(self, components: Sequence[Component]) -> list[Screening]:
        """Return the parts of the screening of some components."""
        numbers = [None] if self.supernets == 1 else range(1, self.supernets + 1)
        return [Screening(tuple(components), number) for number in numbers]

    def pending(self, parts: Sequence[Screening]) -> list[Screening]:
        """Return those of some parts that have not ended."""
        pending: list[Screening] = distributed.broadcast_object([part for part in parts if not part.is_done(self.run)])
        return pending

    @contextmanager
    def claimed(self, part: Screening, wait: bool) -> Iterator[bool]:
        """Whether this run (all its processes) is to do a part, which no other run then does."""
        lock = self.run.screening / f".{part.stage.replace(' ', '-')}.lock"
        with locked(lock, wait=wait) if distributed.is_main() else nullcontext(False) as mine:
            yield distributed.broadcast_object(mine and not part.is_done(self.run))

    def do(self, part: Screening) -> None:
        """Screen components by one supernet and write its scores; goes on from the newest checkpoint."""
        run, settings, components = self.run, self.settings, part.components
        operators = max(len(self.space[component]) for component in components)
        logger.info("%s: %d operators", part.stage, operators)
        checkpoints = CheckpointFolder(run.checkpoints(part.stage), settings.checkpoint.keep)
        data = replace(self.data, halves=run.screening / f"{screening_name(components)}_halves.json")
        share = settings.screening
        if part.supernet is not None:
            share = share_of(share, self.supernets, operators)
        screened = screen_components(
            components,
            self.space,
            settings.model_copy(update={"screening": share}),
            data,
            lambda record: self.on_epoch(part.stage, record),
            checkpoints,
            part.supernet,
            partial(with_pretrained_backbone, run),
        )
        if distributed.is_main():
            notes = {"warnings": list(screened.warnings), "activations": dict(screened.activations)}
            write_json(part.notes(run), notes)
            for component in components:
                write_scores(part.scores(run, component), screened.scores(component))
            clear_training(run, part.stage)
        distributed.barrier()

    def finish(self, components: Sequence[Component]) -> None:
        """Write the scores of components by the mean of several supernets, and how far these agree.

        Removes what one that was killed behind its result has left. Runs that share the directory all do the same.

        Raises:
            InputError: If scores or notes are damaged.
        """
        parts = self.parts(components)
        if distributed.is_main():
            for part in parts:
                clear_training(self.run, part.stage)
                self._note(part)
            if len(parts) > 1:
                for component in components:
                    self._join(component, parts)
        distributed.barrier()

    def _note(self, part: Screening) -> None:
        """Tell of a part that has ended in the metadata of the run that uses it."""
        file = part.notes(self.run)
        if file.is_file():  # of an earlier version there is none, and what trials share was told in their logs alone
            notes = validated(Notes, file, read_json(file))
            self.told.note_warnings(part.stage, notes.warnings)
            self.told.note_activations(part.stage, notes.activations)

    def _join(self, component: Component, parts: Sequence[Screening]) -> None:
        """Write the scores of a component by the mean of several supernets, and how far these agree."""
        run, operators = self.run, self.space[component]
        tables = [read_scores(part.scores(run, component)) for part in parts]
        found = reliability_of(tables, operators)
        write_reliability(run.reliability(component), found)
        run.write_scores(component, mean_scores(tables, operators, getattr(self.settings.screening.keep, component)))
        sentence = found.sentence(component, remedies(self.settings))
        doubtful = found.better_than_chance is False
        self.told.note_warnings(f"screening {component}", [sentence] if doubtful else [])
        logger.log(logging.WARNING if doubtful else logging.INFO, "screening %s", sentence)


def screen(
    run: RunDirectory, space: SearchSpace, settings: Settings, data: DetectionData, on_epoch: OnEpoch = ignore_epoch
) -> SearchSpace:
    """Screen every component that ``run`` has no scores of yet, and write ``screening/sub_spaces.yml``.

    A component that has no more operators than are kept of it is not screened.

    Returns:
        What :func:`hand_on` does.

    Raises:
        InputError: If no architecture of the space keeps the budget.

    Source:
        Section 3.2.
    """
    check_budget(space, settings, len(data.classes))
    note_images(run, data)
    rank_operators(run, space, settings, data, on_epoch)
    return hand_on(run, space, settings, len(data.classes))


def rank_operators(
    run: RunDirectory,
    space: SearchSpace,
    settings: Settings,
    data: DetectionData,
    on_epoch: OnEpoch = ignore_epoch,
    *,
    user: RunDirectory | None = None,
) -> None:
    """Write the scores of every screened component that ``run`` has none of, together with others that do so.

    Args:
        run: Where the scores are written.
        space: The operators of each component.
        settings: All settings.
        data: The images.
        on_epoch: Called with each epoch.
        user: The run whose metadata tell of the screening, where several share it.
    """
    work = ScreeningWork(run, space, settings, data, on_epoch, user)
    groups = screening_groups(settings.screening, space)
    parts = [part for components in groups for part in work.parts(components)]
    wait = False
    while pending := work.pending(parts):
        if wait:
            tell(Progress(pending[0].stage, "waiting"))
        for part in pending:
            with work.claimed(part, wait) as mine:
                if mine:
                    work.do(part)
        # What is left is another run's; waiting for its lock also covers its death.
        wait = True
    for components in groups:
        work.finish(components)


def hand_on(run: RunDirectory, space: SearchSpace, settings: Settings, num_classes: int) -> SearchSpace:
    """Write ``screening/sub_spaces.yml``, unless it is there, by a run's scores.

    Args:
        run: Its screening has ended.
        space: The space that was screened.
        settings: All settings.
        num_classes: Object classes, without background.

    Returns:
        The operators that are kept of each component; with a budget, such that the search can keep it.
    """
    if distributed.is_main() and not run.sub_spaces.exists():
        save_search_space(_handed_on(run, space, settings, num_classes), run.sub_spaces)
    distributed.barrier()
    return load_search_space(run.sub_spaces)


def _handed_on(run: RunDirectory, space: SearchSpace, settings: Settings, num_classes: int) -> SearchSpace:
    screened = screened_components(settings.screening, space)
    kept: SearchSpace = {one: run.kept_operators(one) if one in screened else list(space[one]) for one in COMPONENTS}
    if settings.search.budget is None:
        return kept
    reserve: SearchSpace = {component: [] for component in COMPONENTS}
    for component in screened:
        order = ranked(read_scores(run.scores(component)), space[component])
        reserve[component] = [name for name in order if name not in kept[component]]
    model = budget_cost_model(settings.skeleton, num_classes, settings.search.budget)
    return affordable(kept, reserve, Budget(model, space, settings.search.budget))


def screen_group(
    run: RunDirectory,
    components: Sequence[Component],
    space: SearchSpace,
    settings: Settings,
    data: DetectionData,
    on_epoch: OnEpoch = ignore_epoch,
) -> None:
    """Screen some components at once and write their scores; goes on from what is there."""
    work = ScreeningWork(run, space, settings, data, on_epoch)
    for part in work.pending(work.parts(components)):
        work.do(part)
    work.finish(components)
