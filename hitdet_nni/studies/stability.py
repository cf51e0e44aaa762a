"""The same screening or search with several seeds on the same images: do they come to the same operators?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from hitdet_nni.config.architecture import load_architecture
from hitdet_nni.config.screening_settings import screened_components
from hitdet_nni.config.search_space import SearchSpace, layer_candidates
from hitdet_nni.config.settings import Settings
from hitdet_nni.config.skeleton import COMPONENTS, Component, Skeleton
from hitdet_nni.data.sources import open_data
from hitdet_nni.errors import InputError
from hitdet_nni.nas.health.rank_agreement import Agreement, Preferences
from hitdet_nni.nas.sampled_decode import AdditiveModel
from hitdet_nni.nas.screening_reliability import final_preferences, same_operators
from hitdet_nni.pipeline.screening import screen
from hitdet_nni.pipeline.search import search
from hitdet_nni.runs.reliability import MAX_P_VALUE
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.samples import read_samples
from hitdet_nni.runs.sub_spaces import kept_sub_spaces
from hitdet_nni.runs.tables import read_alphas, read_scores
from hitdet_nni.studies.jobs import Job, opened, seeded

Stage = Literal["screening", "search"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class Repetition(Job):
    """A screening or a search with one seed.

    Attributes:
        stage: What is repeated.
        space: The operators of each component.
    """

    stage: Stage
    space: SearchSpace


def repetitions(settings: Settings, stage: Stage, space: SearchSpace, seeds: int, folder: Path) -> list[Repetition]:
    """Return the same screening or search with several seeds.

    The seed decides on the weights and the architecture parameters at the outset, on order and augmentation of the
    images, and on the sampled RoIs. All have the images and the halves of the first one, which is the screening or the
    search of the settings as they stand.

    Args:
        settings: All settings; the first seed is theirs, the others follow it.
        stage: What is repeated.
        space: The operators of each component.
        seeds: How many.
        folder: Where the run directories go.
    """
    return [Repetition(one, folder / f"{stage}-seed-{one.seed}", stage, space) for one in seeded(settings, seeds)]


def repeat(one: Repetition) -> RunDirectory:
    """Screen or search with one seed, or go on where that stopped; return the run directory."""
    with opened(one) as run:
        data = open_data(one.settings.data, one.settings.seed, one.settings.skeleton.input_size)
        with run.timed(one.stage):
            if one.stage == "screening":
                screen(run, one.space, one.settings, data)
            else:
                kept_sub_spaces(run, one.space)
                search(run, one.space, one.settings, data)
    return run


def preferences(run: RunDirectory, one: Repetition) -> dict[Component, Preferences]:
    """Return what a seed makes of the operators of each component that has several.

    Raises:
        InputError: If a table of the run is missing or damaged.
    """
    if one.stage == "screening":
        screened = screened_components(one.settings.screening, one.space)
        return {component: screened_preferences(run, component, one.space[component]) for component in screened}
    searched = [component for component in COMPONENTS if len(one.space[component]) > 1]
    if one.settings.search.decode == "samples":
        return sampled_preferences(run, one.settings.skeleton, one.space, searched)
    return {
        component: searched_preferences(run, one.settings.skeleton.labels(component), one.space[component])
        for component in searched
    }


def screened_preferences(run: RunDirectory, component: Component, operators: Sequence[str]) -> Preferences:
    """Return the order that a screening ends with, and what it keeps, as one row.

    Args:
        run: Run directory of the screening.
        component: The component.
        operators: All operators of the component.

    Raises:
        InputError: If the scores are missing or damaged, or are those of other operators.
    """
    scores = read_scores(run.scores(component))
    if not same_operators(scores, operators):
        allowed = f"the {len(operators)} operators of the space"
        raise InputError("holds scores of other operators", source=run.scores(component), allowed=allowed)
    return final_preferences(scores, operators)


def searched_preferences(run: RunDirectory, labels: Sequence[str], operators: Sequence[str]) -> Preferences:
    """Return the probabilities that a search ends with and the operators that are decoded, one row a layer.

    Args:
        run: Run directory of the search.
        labels: The layers of one component.
        operators: Their operators.

    Raises:
        InputError: If the table of architecture parameters or the architecture is missing or damaged.
    """
    alphas = read_alphas(run.alphas)
    sample = load_architecture(run.architecture).sample
    layers = alphas[max(alphas)] if alphas else {}
    missing = [f"{label} {name}" for label in labels for name in operators if name not in layers.get(label, {})]
    if missing:
        raise InputError(f"has no probability of {missing[0]}", source=run.alphas, allowed="all layers and operators")
    return Preferences(
        np.array([[layers[label][name].probability for name in operators] for label in labels]),
        np.array([[sample[label] == name for name in operators] for label in labels]),
    )


def sampled_preferences(
    run: RunDirectory, skeleton: Skeleton, space: SearchSpace, components: Sequence[Component]
) -> dict[Component, Preferences]:
    """Return what the architectures that a search has tried say of each operator, and those of the found one.

    Args:
        run: Run directory of the search.
        skeleton: The layers.
        space: The operators of each component.
        components: Those that have several operators.

    Raises:
        InputError: If the table of the architectures is missing or damaged.
    """
    tried, candidates = read_samples(run.samples), layer_candidates(skeleton, space)
    for one in tried:
        if one.sample.keys() != candidates.keys() or any(name not in candidates[at] for at, name in one.sample.items()):
            allowed = "layers and operators of the space"
            raise InputError("holds architectures of another space", source=run.samples, allowed=allowed)
    found = next(one.sample for one in tried if one.found)
    model = AdditiveModel([one.sample for one in tried], [one.loss for one in tried], candidates)
    effects = model.effects()
    return {
        component: Preferences(
            np.array([[-effects[label][name] for name in space[component]] for label in skeleton.labels(component)]),
            np.array([[found[label] == name for name in space[component]] for label in skeleton.labels(component)]),
        )
        for component in components
    }


def compare(found: Sequence[Mapping[Component, Preferences]]) -> dict[Component, Agreement]:
    """Return how far the seeds agree on each component.

    Args:
        found: What each seed makes of the components.
    """
    return {component: Agreement.of([one[component] for one in found]) for component in found[0]}


def agreement_rows(found: Mapping[Component, Agreement], seeds: Sequence[int]) -> list[dict[str, object]]:
    """Return a row for every two seeds, and one of their mean with its p-values, for each component.

    Columns: ``rho`` is Spearman's rank correlation, ``common`` the choices in common ``of`` how many, ``chance`` what
    chance gives of them.
    """
    rows: list[dict[str, object]] = []
    for component, agreement in found.items():
        fixed = {"of": agreement.possible, "chance": agreement.chance}
        rows += [
            {
                "part": component,
                "seeds": f"{seeds[pair.first]} {seeds[pair.second]}",
                "rho": pair.spearman,
                "rho_p": None,
                "common": float(pair.common),
                **fixed,
                "common_p": None,
            }
            for pair in agreement.pairs
        ]
        rows.append(
            {
                "part": component,
                "seeds": "mean",
                "rho": agreement.spearman,
                "rho_p": agreement.spearman_p,
                "common": agreement.common,
                **fixed,
                "common_p": agreement.common_p,
            }
        )
    return rows


def rank_rows(
    found: Sequence[Mapping[Component, Preferences]], space: SearchSpace, seeds: Sequence[int]
) -> list[dict[str, object]]:
    """Return one row a component, operator and seed: its place, mean over the layers, and how many layers chose it."""
    return [
        {
            "part": component,
            "operator": operator,
            "seed": seed,
            "rank": float(one[component].ranks()[:, number].mean()),
            "chosen": int(one[component].chosen[:, number].sum()),
        }
        for component in found[0]
        for number, operator in enumerate(space[component])
        for seed, one in zip(seeds, found, strict=True)
    ]


def judgement(found: Mapping[Component, Agreement], stage: Stage, seeds: int) -> list[str]:
    """Return what the agreement means, one sentence a component."""
    return [f"{component}: {_verdict(agreement, stage, seeds)}" for component, agreement in found.items()]


def _verdict(found: Agreement, stage: Stage, seeds: int) -> str:
    chosen, counted = {
        "screening": ("kept operators", "kept operators"),
        "search": ("decoded operators", "layers with the same operator"),
    }[stage]
    common = f"{found.common:.3g} of {found.possible} {counted}, {found.chance:.3g} by chance, p {found.common_p:.2g}"
    order = f"rho {found.spearman:+.2f}, p {found.spearman_p:.2g}"
    limit = (
        f"chance gives all of them the same {chosen} with probability {found.least_p:.2g} (threshold {MAX_P_VALUE:g}); "
        "try more seeds"
    )
    if found.least_p == 1:
        return f"every operator is kept, so there is no choice to agree on; the order: {order}"
    if found.common_p <= MAX_P_VALUE:
        return f"{seeds} seeds agree better than chance ({common}): the {chosen} are not the seed's alone"
    if found.spearman_p <= MAX_P_VALUE:
        agreed = f"{seeds} seeds agree better than chance on the order of the operators ({order})"
        if found.least_p > MAX_P_VALUE:
            return f"{agreed}, and are too few to tell of the {chosen} ({common}): {limit}"
        return f"{agreed}, but not on the {chosen} ({common}): try more epochs after warm-up"
    if found.least_p > MAX_P_VALUE:
        return f"{seeds} seeds are too few to tell ({common}; the order: {order}): {limit}"
    return (
        f"{seeds} seeds agree no better than chance ({common}): as far as they show, the {chosen} say nothing about "
        "your data; try more epochs after warm-up, more images, or pretrained weights"
    )
