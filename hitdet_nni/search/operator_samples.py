"""Operators ranked by evaluated samples: what each adds to the losses of architectures drawn from a trained supernet.

A sampled architecture has one operator in each searched layer and the supernet's weights. The place of its held-out
loss among those of all samples is taken to be a constant plus what the operator of each layer adds; fitted to many, an
operator's score is minus the mean of what it adds, over the layers of its component. Places stand in for losses because
few architectures with a very large loss would otherwise decide the fit.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

from hitdet_nni.config.skeleton import component_of
from hitdet_nni.engine import distributed
from hitdet_nni.engine.randomness import fork_rng
from hitdet_nni.errors import StoppedError
from hitdet_nni.model.replacement import replaced
from hitdet_nni.search.evaluator import detection_loss
from hitdet_nni.search.health.permutation_test import remembered_parts
from hitdet_nni.search.mixed import ColumnSparseMixedLayer

logger = logging.getLogger(__name__)

Sampled = Mapping[str, str]
"""A sampled architecture: the operator of each searched layer by its label."""

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


@torch.no_grad()
def architecture_losses(
    detector: nn.Module,
    layers: Mapping[str, ColumnSparseMixedLayer],
    samples: Sequence[Sampled],
    batches: Iterable[dict[str, object]],
    seed: int,
    on_loss: Callable[[float], None] = lambda loss: None,
) -> list[float]:
    """Return the mean loss of each sampled architecture over the same batches, by the supernet's weights.

    Batch normalisation takes its statistics as in training: the running ones are those of the mixture. What no sample
    changes and stands in front of all that does, such as the backbone where the head is screened, is computed once a
    batch. RoIs are sampled by the same random numbers for all. The detector is in training mode afterwards, its
    buffers and the caller's random numbers are as they were.

    Args:
        detector: The supernet's detector.
        layers: Its mixed layers by label.
        samples: The architectures: an operator for each of the layers.
        batches: Batches of images and their annotations.
        seed: Seed of the sampling of RoIs.
        on_loss: Called with each batch's loss of each architecture.

    Raises:
        StoppedError: If a loss is NaN or infinite.
    """
    sums = [0.0] * len(samples)
    count = 0
    detector.train()
    with fork_rng(), _same_buffers(detector), remembered_parts(detector, layers.values()):
        for batch in batches:
            for number, sample in enumerate(samples):
                torch.manual_seed(seed + count)
                with replaced(detector, {layers[label]: layers[label][name] for label, name in sample.items()}):
                    loss = float(detection_loss(detector, batch))
                if not math.isfinite(loss):
                    names = ", ".join(f"{label} {name}" for label, name in sample.items())
                    raise StoppedError(
                        f"the loss of a sampled architecture is {loss} ({names}); train the supernet anew with a "
                        "smaller weights.lr or weights.grad_clip"
                    )
                sums[number] += loss
                on_loss(loss)
            count += 1
    return [total / count for total in sums]


@contextmanager
def _same_buffers(module: nn.Module) -> Iterator[None]:
    """Put all buffers back at the end of the context, running statistics among them."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def shared_losses(losses: Callable[[Sequence[Sampled]], list[float]], samples: Sequence[Sampled]) -> list[float]:
    """Compute the losses of all samples, those of every so many-th in each process, alone and at the same time.

    Args:
        losses: Gives the losses of some of the samples.
        samples: The same in every process.

    Returns:
        One loss a sample, in every process.
    """
    rank, processes = distributed.rank(), distributed.world_size()
    with distributed.alone():
        own = losses(samples[rank::processes])
    together = [0.0] * len(samples)
    for other, part in enumerate(distributed.gather(own)):
        together[other::processes] = part
    return together


def score_operators(
    detector: nn.Module,
    layers: Mapping[str, ColumnSparseMixedLayer],
    batches: Iterable[dict[str, object]],
    count: int,
    seed: int,
    on_loss: Callable[[float], None] = lambda loss: None,
) -> dict[str, dict[str, float]]:
    """Draw architectures of a trained supernet, evaluate them and score the operators by them.

    Several processes share the architectures. The result follows from the supernet, the batches and the arguments
    alone, in float32.

    Args:
        detector: The supernet's detector, on the device of this process.
        layers: Its mixed layers by label, in label order.
        batches: Batches of images that the weights were not trained on, the same in every process and each time.
        count: Architectures.
        seed: Seed of the architectures and of the sampling of RoIs.
        on_loss: Called with each batch's loss of each architecture of this process.

    Returns:
        The score of each active operator, by component.

    Raises:
        StoppedError: If a loss is NaN or infinite.

    Source:
        An addition: section 3.2 ranks by architecture parameters. Differences of the loss of a trained mixture instead
        of its parameters: Wang et al., Rethinking Architecture Selection in Differentiable NAS, ICLR 2021.
    """
    started = time.monotonic()
    candidates = {label: tuple(layer.active_names) for label, layer in layers.items()}
    samples = draw_architectures(candidates, count, seed)
    losses = shared_losses(lambda share: architecture_losses(detector, layers, share, batches, seed, on_loss), samples)
    logger.info(
        "%d sampled architectures: loss %.3f on average, standard deviation %.3f (%.0f s)",
        count,
        np.mean(losses),
        np.std(losses),
        time.monotonic() - started,
    )
    return effect_scores(operator_effects(samples, loss_places(losses), candidates))
