"""What the signs of health of a search mean: one line for each that is bad, with what to try."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hitdet_nni.config.skeleton import component_of
from hitdet_nni.nas.health.permutation_test import Permutation
from hitdet_nni.nas.health.stats import SearchStats

MAX_P_VALUE = 0.01
"""A detector has learned from its annotations if chance gives what they gain with this probability or less."""

MIN_BATCHES = 8
"""Batches from which the p-value can be that small at all."""

WINNER_RATIO = 2.0
"""An operator stands out if it has this many times the weight of each other one."""

ONE_OPERATOR_SHARE = 0.9
"""From this share of a component's layers on one operator took nearly every layer,"""

ONE_OPERATOR_CHANCE = 0.01
"""unless layers that choose at random would agree so with a larger probability, as the few of a short component may."""

COST_RATIO = 1.25
"""Decoded and expected cost are far apart from this ratio on, either way."""

VANISHED_SHARE = 0.01
"""Gradients of architecture parameters vanish below this share of their norm in the first epoch that had any,"""

VANISHED_NORM = 1e-6
"""or below this norm, where Adam's epsilon, 1e-8 an element, begins to count,"""

DECIDED_ENTROPY = 0.1
"""unless the component has decided: softmax makes the gradients small below this entropy."""

CHANGED_SHARE = 0.25
"""The argmax has not settled if more layers than this changed theirs, in the mean of the last two epochs."""


def standing_out_entropy(candidates: int) -> float:
    """Return the entropy, 1 for uniform, where one candidate has twice the weight of each other one.

    It depends on their number: 0.918 for 2, 0.983 for 8, 0.997 for 32.
    """
    total = candidates - 1 + WINNER_RATIO
    winner, other = WINNER_RATIO / total, 1 / total
    return -(winner * math.log(winner) + (candidates - 1) * other * math.log(other)) / math.log(candidates)


def chance_of_agreement(layers: int, agreeing: int, candidates: int) -> float:
    """Bound the probability that some operator gets ``agreeing`` layers or more if all choose at random."""
    share = 1 / candidates
    tail = sum(
        math.comb(layers, count) * share**count * (1 - share) ** (layers - count)
        for count in range(agreeing, layers + 1)
    )
    return min(1.0, candidates * tail)


@dataclass(frozen=True)
class Setup:
    """How the supernet was trained, as far as verdicts and advice depend on it.

    Attributes:
        decodes: Whether the argmax becomes the architecture. Screening only ranks operators by their weight over all
            layers, and a search by samples takes the best of those, so that the argmax of a layer and its cost do not
            matter there.
        pretrained: Whether its backbone had pretrained weights.
        weighs_cost: Whether a fixed weight of the cost was part of the loss.
    """

    decodes: bool
    pretrained: bool = False
    weighs_cost: bool = True


def diagnose(history: Sequence[SearchStats], stage: str, setup: Setup) -> list[str]:
    """Return the warnings at the end of a search or a screening.

    Args:
        history: One value an epoch, in order, at least one.
        stage: What was trained, e.g. ``"screening neck"``.
        setup: How it was trained.

    Returns:
        One line each, naming component, value, threshold and epoch; empty where all is well. Where no epoch trained
        the architecture parameters, only what the weights have learned is judged.
    """
    checks = (*CHECKS, *(DECODING_CHECKS if setup.decodes else ()))
    if not any(health.searching for health in history):
        checks = (_uninformed,)
    where = f"{stage}, epoch {history[-1].epoch + 1}"
    return [f"{where}: {finding}" for check in checks for finding in check(history, setup)]


def _uninformed(history: Sequence[SearchStats], setup: Setup) -> Iterator[str]:
    # Where there are fewer batches there is no verdict, which validation_batches says before the training.
    for kind, found in history[-1].evidence.items():
        if found.batches >= MIN_BATCHES and found.p_value > MAX_P_VALUE:
            yield (
                f"all components: exchanging the {_PERMUTED[kind]} changes the loss by {found.gain:.3g}, and chance "
                f"does so with probability {found.p_value:.2g} (threshold {MAX_P_VALUE:g}, {found.batches} batches): "
                "what the detector has learned from them cannot be told from nothing, nor what chooses the operators; "
                "check that images and annotations belong together, then try more epochs"
                f"{'' if setup.pretrained else ', pretrained weights'}, or more validation images to see a smaller "
                "difference"
            )


_PERMUTED: Mapping[Permutation, str] = {
    "annotations": "annotations of held-out images",
    "categories": "categories of held-out boxes",
}


def _uniform(history: Sequence[SearchStats], _: Setup) -> Iterator[str]:
    last = history[-1]
    for component, entropy in last.entropy.items():
        candidates = last.candidates[component]
        if candidates > 1 and entropy > (limit := standing_out_entropy(candidates)):
            yield (
                f"{component}: entropy {entropy:.4f} is above {limit:.4f}, that of one of {candidates} operators with "
                f"{WINNER_RATIO:g} times the weight of each other: the operators are hardly told apart; try more "
                "epochs after warm-up or a larger alphas.lr"
            )


def _one_operator(history: Sequence[SearchStats], setup: Setup) -> Iterator[str]:
    last = history[-1]
    for component, candidates in last.candidates.items():
        chosen = [name for label, name in last.decoded.items() if component_of(label) == component]
        (operator, count), *_ = Counter(chosen).most_common(1)
        chance = chance_of_agreement(len(chosen), count, candidates)
        if count / len(chosen) >= ONE_OPERATOR_SHARE and chance <= ONE_OPERATOR_CHANCE:
            cause, way = (" or its cost", " or a smaller search.flops_weight") if setup.weighs_cost else ("", "")
            yield (
                f"{component}: {operator} took {count} of {len(chosen)} layers, a share of {count / len(chosen):.2f} "
                f"(threshold {ONE_OPERATOR_SHARE:g}): something other than the layers' needs may decide, such as its "
                f"speed of training{cause}; try a longer warm-up{way}"
            )


def _vanished(history: Sequence[SearchStats], _: Setup) -> Iterator[str]:
    searched = [health for health in history if health.searching]
    for component, norm in searched[-1].gradient_norm.items() if searched else ():
        limit = max(VANISHED_NORM, VANISHED_SHARE * searched[0].gradient_norm[component])
        if norm < limit and history[-1].entropy[component] > DECIDED_ENTROPY:
            yield (
                f"{component}: the gradient of its architecture parameters has norm {norm:.2g}, below {limit:.2g}: it "
                "vanishes before the operators are decided; try fewer epochs or look for activations that are zero"
            )


def _unsettled(history: Sequence[SearchStats], _: Setup) -> Iterator[str]:
    searched = [health for health in history if health.searching]
    # The first epoch after warm-up leaves the random start: its changes say nothing.
    if len(searched) < 3:
        return
    for component in searched[-1].changed:
        share = (searched[-2].changed[component] + searched[-1].changed[component]) / 2
        if share > CHANGED_SHARE:
            yield (
                f"{component}: {share:.2f} of its layers changed their strongest operator in each of the last two "
                f"epochs (threshold {CHANGED_SHARE:g}): the search has not settled; try more epochs or a smaller "
                "alphas.lr"
            )


def _other_cost(history: Sequence[SearchStats], _: Setup) -> Iterator[str]:
    last = history[-1]
    ratio = last.decoded_gflops / last.expected_gflops
    if max(ratio, 1 / ratio) > COST_RATIO:
        component = max(last.cost_gap, key=lambda name: abs(last.cost_gap[name]))
        yield (
            f"{component}: the decoded detector costs {last.decoded_gflops:.3g} GFLOPs, {ratio:.2f} times the expected "
            f"{last.expected_gflops:.3g} (outside {1 / COST_RATIO:g} to {COST_RATIO:g}), mostly by this component: "
            "the search has weighed another cost than it ends with; try more epochs, so that the operators are decided"
        )


Check = Callable[[Sequence[SearchStats], Setup], Iterator[str]]
CHECKS: tuple[Check, ...] = (_uninformed, _uniform, _one_operator, _vanished)
"""Signs that are bad in screening and search."""

DECODING_CHECKS: tuple[Check, ...] = (_unsettled, _other_cost)
"""Signs that are bad where the argmax becomes the architecture."""
