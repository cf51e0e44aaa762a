"""Figures of studies."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hitdet_nni.config.search_space import SearchSpace
from hitdet_nni.config.skeleton import Component
from hitdet_nni.engine import distributed
from hitdet_nni.nas.health.rank_agreement import Preferences
from hitdet_nni.studies.latency_prediction import Prediction
from hitdet_nni.studies.operator_ablation import OperatorEffect
from hitdet_nni.studies.random_baseline import Summary
from hitdet_nni.studies.recipes import TrainedRecipe
from hitdet_nni.studies.retrainings import Trained
from hitdet_nni.studies.search_summary import RandomPool, SeedOutcome
from hitdet_nni.studies.sparsity_ablation import ScoreCurves

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which colour-blind people can tell apart."""

MARKERS = ("o", "s", "^", "D", "v")
"""Of seeds beyond as many as there are colours."""

SEEDS_A_COLUMN = 16
"""Seeds in a column of a legend."""

CURVES = 4
"""Operators drawn in Fig. 4."""


def _figure(panels: int, *, share: bool = True, height: float = 4) -> tuple[Figure, Sequence[Any]]:
    figure = Figure(figsize=(4.2 * panels, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, sharey=share, squeeze=False)[0]
    for one in axes:
        one.grid(alpha=0.3)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    """Write a figure, once by all processes of a study."""
    if distributed.is_main():
        figure.savefig(path, dpi=120)


def plot_random_study(
    trained: Sequence[Trained], supernet_losses: Mapping[str, float], summary: Summary, path: Path
) -> None:
    """Plot mAP against GFLOPs and against the supernet's loss, one point an architecture, bars for the deviation."""
    figure, (cost, score) = _figure(2)
    _scatter(cost, trained, [one.gflops for one in trained])
    cost.set(xlabel="GFLOPs", ylabel="mAP after retraining")
    cost.legend(frameon=False)
    _scatter(score, trained, [supernet_losses[one.name] for one in trained])
    cost.locator_params(axis="x", nbins=5)
    score.set_xlabel("loss with the supernet's weights")
    if summary.kendall is not None:
        score.set_title(f"Kendall's tau {summary.kendall:+.2f}, Spearman's rho {summary.spearman:+.2f}", fontsize=10)
    _save(figure, path)


def _scatter(axes: Any, trained: Sequence[Trained], across: Sequence[float]) -> None:
    for label, colour, marker, chosen in (
        ("random", COLOURS[0], "o", range(1, len(trained))),
        ("searched", COLOURS[1], "D", range(1)),
    ):
        axes.errorbar(
            [across[index] for index in chosen],
            [trained[index].mean for index in chosen],
            yerr=[trained[index].deviation or 0.0 for index in chosen],
            fmt=marker,
            color=colour,
            label=label,
            capsize=3,
        )


def plot_latency(predictions: Sequence[Prediction], path: Path) -> None:
    """Plot measured against predicted latency, one point a detector, beside the line where both are equal."""
    figure, (axes,) = _figure(1)
    ends = [pick(value for one in predictions for value in (one.predicted, one.measured)) for pick in (min, max)]
    axes.plot(ends, ends, color="0.6", linewidth=1)
    axes.scatter([one.predicted for one in predictions], [one.measured for one in predictions], color=COLOURS[0])
    axes.set(xlabel="predicted, ms", ylabel="measured, ms")
    _save(figure, path)


def plot_search_study(outcomes: Sequence[SeedOutcome], pool: RandomPool, count: int, path: Path) -> None:
    """Plot mAP by the way that an architecture was come to: a line for each seed, then each random one.

    Args:
        outcomes: What the seeds have found.
        pool: The random architectures.
        count: Of how many the best is drawn.
        path: The file.
    """
    figure, (axes,) = _figure(1)
    ways, shapes = list(outcomes[0].by_way), itertools.product(MARKERS, COLOURS)
    for one, (marker, colour) in zip(outcomes, itertools.cycle(shapes), strict=False):
        axes.plot(ways, [one.by_way[way] for way in ways], marker=marker, color=colour, label=f"seed {one.seed}")
    axes.scatter(["random"] * len(pool.shown), pool.shown, marker="_", color="0.4")
    sizes = 200 * pool.chances(count)  # areas are probabilities
    axes.scatter([f"best of {count} random"] * len(pool.shown), pool.shown, s=sizes, color="0.4")
    axes.set_ylabel("mAP after retraining")
    for label in axes.get_xticklabels():
        label.set(rotation=35, horizontalalignment="right")
    figure.legend(frameon=False, loc="outside right upper", ncols=math.ceil(len(outcomes) / SEEDS_A_COLUMN))
    _save(figure, path)


def plot_trained(trained: Sequence[Trained | TrainedRecipe], path: Path) -> None:
    """Plot the mean mAP of each architecture, or recipe, bars for the deviation over the seeds."""
    figure, (axes,) = _figure(1, height=max(4, 1.2 + 0.2 * len(trained)))
    places = range(len(trained))
    deviations = [one.deviation or 0.0 for one in trained]
    axes.barh(places, [one.mean for one in trained], xerr=deviations, color=COLOURS[0], capsize=3)
    axes.set_yticks(places, [one.name for one in trained])
    axes.invert_yaxis()
    axes.set_xlabel("mAP after retraining")
    _save(figure, path)


def plot_effects(effects: Sequence[OperatorEffect], baseline: float, path: Path) -> None:
    """Plot the mAP of each operator in each part, one point a repetition, and the baseline's (as Fig. 3)."""
    components = list(dict.fromkeys(effect.component for effect in effects))
    figure, panels = _figure(len(components))
    for axes, component in zip(panels, components, strict=True):
        own = [effect for effect in effects if effect.component == component]
        for place, effect in enumerate(own):
            axes.plot([place] * len(effect.accuracies), effect.accuracies, "o", color=COLOURS[0], alpha=0.5)
            axes.plot([place], [effect.mean], "_", color=COLOURS[1], markersize=16)
        axes.axhline(baseline, color="grey", linestyle="--", linewidth=1)
        axes.set_xticks(range(len(own)), [effect.operator for effect in own], rotation=90)
        axes.set_title(component)
    panels[0].set_ylabel("mAP after retraining")
    _save(figure, path)


def plot_scores(found: Sequence[ScoreCurves], seed: int, path: Path) -> None:
    """Plot the scores of some operators, chosen at random, over the epochs, one panel a reading and mu (as Fig. 4)."""
    operators = sorted(found[0].scores)
    chosen = random.Random(seed).sample(operators, min(CURVES, len(operators)))
    figure, panels = _figure(len(found), share=len({one.gates for one in found}) == 1)
    for axes, curves in zip(panels, found, strict=True):
        for colour, operator in zip(COLOURS, chosen, strict=False):
            row = curves.scores[operator]
            axes.plot(range(1, len(row) + 1), row, color=colour, label=operator)
        axes.set(title=f"{curves.gates}, mu = {curves.weight:g}", xlabel="epoch")
    panels[0].set_ylabel("score: probability summed over layers")
    panels[0].legend(frameon=False)
    _save(figure, path)


def plot_ranks(
    found: Sequence[Mapping[Component, Preferences]], space: SearchSpace, seeds: Sequence[int], path: Path
) -> None:
    """Plot each operator's place with each seed, one panel a component: the darker, the better.

    The operators stand in the order of their mean place; a number says how many layers chose the operator (1 where
    it is kept), and where none is there none did.

    Args:
        found: What each seed makes of the components.
        space: The operators of each component.
        seeds: The seeds.
        path: The file.
    """
    rows = max(len(space[component]) for component in found[0])
    figure, panels = _figure(len(found[0]), share=False, height=1.2 + 0.2 * rows)
    for axes, component in zip(panels, found[0], strict=True):
        ranks = np.array([one[component].ranks().mean(axis=0) for one in found]).T  # [N, S]
        chosen = np.array([one[component].chosen.sum(axis=0) for one in found]).T
        order = np.argsort(ranks.mean(axis=1), kind="stable")
        axes.grid(visible=False)
        axes.imshow(ranks[order], cmap="Blues_r", aspect="auto", vmin=1, vmax=1.5 * len(order))
        for row, column in zip(*np.nonzero(chosen[order]), strict=True):
            count = chosen[order][row, column]
            axes.text(column, row, count, ha="center", va="center", color="white", fontsize=8, weight="bold")
        axes.set_yticks(range(len(order)), [space[component][number] for number in order], fontsize=7)
        axes.set_xticks(range(len(seeds)), seeds)
        axes.set(title=component, xlabel="seed")
    _save(figure, path)
