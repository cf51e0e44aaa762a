"""Recipes of training: one architecture trained by each of them, equally long, with the same seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.settings import Settings
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.studies.jobs import Work, run_jobs, seeded
from hitdet_nni.studies.permutation_tests import paired_p
from hitdet_nni.studies.retrainings import OnResult, Repeated, Retraining, retrain_once
from hitdet_nni.training.runner_config import STAGE

STEPS = (2 / 3, 11 / 12)
"""Parts of a training after which the learning rate falls by ten (section 4.2: 8 and 11 of 12 epochs)."""

Recipe = Mapping[str, Mapping[str, object]]
"""Values of settings by section and key."""

_AVERAGED = {"schedule": "cosine", "ema": 0.002}

RECIPES: Mapping[str, Recipe] = {
    "paper": {"data": {"augment": "flip"}, "retrain": {"optimizer": "sgd", "schedule": "step", "ema": None}},
    "averaged": {"data": {"augment": "flip"}, "retrain": {"optimizer": "sgd", **_AVERAGED}},
    "standard": {"data": {"augment": "standard"}, "retrain": {"optimizer": "sgd", **_AVERAGED}},
    "strong": {"data": {"augment": "strong"}, "retrain": {"optimizer": "sgd", **_AVERAGED}},
    "adamw": {
        "data": {"augment": "standard"},
        "retrain": {"optimizer": "adamw", "lr": 0.001, "weight_decay": 0.05, **_AVERAGED},
    },
}
"""The recipes by name: the paper's; that with cosine schedule and averaged weights; these with more augmentation; with
another optimiser. What a recipe does not name is the settings' own."""


@dataclass(frozen=True)
class TrainedRecipe(Repeated):
    """What a recipe reached.

    Attributes:
        name: The recipe's.
        accuracies: mAP after training, one a seed.
        seconds: Mean wall time of a training.
    """

    name: str
    accuracies: tuple[float, ...]
    seconds: float


def with_recipe(settings: Settings, recipe: Recipe) -> Settings:
    """Return settings with a recipe's values; where they bring steps of the learning rate, at the paper's places."""
    content = settings.model_dump()
    for section, values in recipe.items():
        content[section] |= values
    epochs = settings.retrain.epochs
    if settings.retrain.schedule != content["retrain"]["schedule"] == "step":  # the milestones are of no schedule yet
        content["retrain"]["milestones"] = sorted({max(1, round(epochs * share)) for share in STEPS})
    return Settings.model_validate(content)


def train_recipes(
    recipes: Sequence[str],
    architecture: Architecture,
    settings: Settings,
    seeds: int,
    folder: Path,
    processes: int,
    on_result: OnResult,
) -> list[TrainedRecipe]:
    """Train an architecture by every recipe with every seed; what is trained already is not trained again.

    Args:
        recipes: Names of :data:`RECIPES`.
        architecture: What is trained.
        settings: All settings; the first seed is theirs, the others follow it, on the same images.
        seeds: Trainings by each recipe.
        folder: Where the run directories go.
        processes: Trainings side by side.
        on_result: Told of trainings as they end.
    """
    jobs = [
        Retraining(
            with_recipe(own, RECIPES[name]),
            folder / f"{name}-seed-{own.seed}",
            architecture,
        )
        for own in seeded(settings, seeds)
        for name in recipes
    ]
    results = run_jobs(Work(STAGE, retrain_once, lambda result: {"mAP": result["mAP"]}), jobs, processes, on_result)
    return [
        TrainedRecipe(
            name,
            tuple(result["mAP"] for result in results[place :: len(recipes)]),
            statistics.fmean(RunDirectory(job.folder).seconds(STAGE) for job in jobs[place :: len(recipes)]),
        )
        for place, name in enumerate(recipes)
    ]


def recipe_sentences(trained: Sequence[TrainedRecipe]) -> list[str]:
    """Say of every recipe but the first how it stands against the first, over the same seeds."""
    first, *others = trained
    sentences = []
    for one in others:
        differences = [own - other for own, other in zip(one.accuracies, first.accuracies, strict=True)]
        wins = sum(difference > 0 for difference in differences)
        mean = round(statistics.fmean(differences), 3) + 0.0  # no minus before a 0
        sentences.append(
            f"{one.name} against {first.name}: {mean:+.3f}, ahead in {wins} of {len(differences)} seeds, "
            f"p {paired_p(differences):.2g}"
        )
    return sentences
