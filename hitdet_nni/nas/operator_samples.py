"""Operators ranked by evaluated samples: what each adds to the losses of architectures drawn from a trained supernet.

A sampled architecture has one operator in each searched layer and the supernet's weights. The place of its held-out
loss among those of all samples is taken to be a constant plus what the operator of each layer adds; fitted to many, an
operator's score is minus the mean of what it adds, over the layers of its component. Places stand in for losses because
few architectures with a very large loss would otherwise decide the fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from hitdet_nni.config.skeleton import component_of

Sampled = Mapping[str, str]
"""A sampled architecture: the operator of each searched layer by its label."""

Losses = Callable[[Sequence[Sampled]], list[float]]
"""Gives the losses of architectures, the same ones for the same architectures."""

RIDGE = 1.0
"""Penalty of the fit, in samples: an effect seen in n samples is shrunk to ``n / (n + RIDGE)`` of itself."""


def draw_architectures(candidates: Mapping[str, Sequence[str]], count: int, seed: int) -> list[dict[str, str]]:
    """Draw architectures of few operators each, in which every operator of a layer comes equally often, to within one.

    What is asked is how good an operator is in all layers of its component. An architecture that has it in many of them
    says so more clearly than one in which it stands among seven others: in the first round an architecture has one
    operator in all layers of a component. In each later one it has two, dealt at random to one half of the layers and
    the other, and the next architecture has them the other way round. Components are drawn independently.

    Args:
        candidates: Names of the candidates of each layer, by label.
        count: Architectures.
        seed: Decides all orders, together with the order of the layers.
    """
    generator = np.random.default_rng(seed)
    groups: dict[Hashable, list[str]] = {}
    for label, names in candidates.items():
        groups.setdefault((component_of(label), tuple(sorted(names))), []).append(label)
    drawn: list[dict[str, str]] = [{} for _ in range(count)]
    for labels in groups.values():
        names = candidates[labels[0]]
        rows: list[dict[str, str]] = []
        while len(rows) < count:
            order = [names[index] for index in generator.permutation(len(names))]
            if not rows:
                rows += [dict.fromkeys(labels, name) for name in order]
                continue
            for one, other in zip(order[::2], [*order[1::2], order[-1]], strict=False):
                first = set(generator.permutation(len(labels))[: (len(labels) + 1) // 2].tolist())
                rows.append({label: one if index in first else other for index, label in enumerate(labels)})
                if one != other:
                    rows.append({label: other if index in first else one for index, label in enumerate(labels)})
        for sample, row in zip(drawn, rows, strict=False):
            sample.update(row)
    return [{label: sample[label] for label in candidates} for sample in drawn]


def loss_places(losses: Sequence[float]) -> list[float]:
    """Return the share of the samples whose loss is below each one's, of equal losses the middle one.

    Args:
        losses: One a sample.

    Source:
        Conover and Iman, Rank transformations as a bridge between parametric and nonparametric statistics, The American
        Statistician 35, 1981.
    """
    places: list[float] = ((rankdata(losses) - 1) / max(1, len(losses) - 1)).tolist()
    return places


def operator_effects(
    samples: Sequence[Sampled], losses: Sequence[float], candidates: Mapping[str, Sequence[str]], ridge: float = RIDGE
) -> dict[str, dict[str, float]]:
    """Fit the additive model by least squares with a penalty on the effects.

    With ``x`` of one column for each operator of each layer, 1 where a sample has it, and ``y`` the losses less their
    mean, the effects ``w`` minimise ``|x w - y|^2 + ridge |w|^2``; without a penalty they are the smallest that fit.

    Args:
        samples: The architectures.
        losses: Their losses.
        candidates: Names of the candidates of each layer, by label.
        ridge: The penalty, not negative.

    Returns:
        By label and operator what it adds to the loss, with mean zero over the operators of a layer.
    """
    columns = {column: number for number, column in enumerate(_columns(candidates))}
    x = np.zeros((len(samples) + len(columns), len(columns)))
    for row, sample in zip(x, samples, strict=False):
        row[[columns[label, name] for label, name in sample.items()]] = 1.0
    x[len(samples) :] = math.sqrt(ridge) * np.eye(len(columns))
    y = np.zeros(len(x))
    y[: len(samples)] = np.asarray(losses) - np.mean(losses)
    effects, *_ = np.linalg.lstsq(x, y, rcond=None)
    found: dict[str, dict[str, float]] = {}
    for label, names in candidates.items():
        row = np.array([effects[columns[label, name]] for name in names])
        found[label] = dict(zip(names, (row - row.mean()).tolist(), strict=True))
    return found


def _columns(candidates: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    return ((label, name) for label, names in candidates.items() for name in names)


def effect_scores(effects: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return the score of each operator by component: minus its mean effect over the layers, the larger, the better.

    Args:
        effects: What each operator adds to the loss, by label, as :func:`operator_effects` gives it.
    """
    columns: dict[str, dict[str, list[float]]] = {}
    for label, row in effects.items():
        for name, effect in row.items():
            columns.setdefault(component_of(label), {}).setdefault(name, []).append(effect)
    return {
        component: {name: -sum(values) / len(values) for name, values in column.items()}
        for component, column in columns.items()
    }


def score_operators(
    losses: Losses,
    candidates: Mapping[str, Sequence[str]],
    count: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Draw architectures of a trained supernet, evaluate them and score the operators by them.

    Args:
        losses: Gives the losses of architectures.
        candidates: Names of the active candidates of each mixed layer by label, in label order.
        count: Architectures.
        seed: Seed of the architectures.

    Returns:
        The score of each active operator, by component.

    Source:
        An addition: section 3.2 ranks by architecture parameters. Differences of the loss of a trained mixture instead
        of its parameters: Wang et al., Rethinking Architecture Selection in Differentiable NAS, ICLR 2021.
    """
    samples = draw_architectures(candidates, count, seed)
    return effect_scores(operator_effects(samples, loss_places(losses(samples)), candidates))
