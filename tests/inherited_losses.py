"""The loss of an architecture by a supernet's weights, by a detector of its own that inherits them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.engine import distributed
from hitdet_nni.engine.randomness import fork_rng
from hitdet_nni.model.detector import build_detector
from hitdet_nni.nas.evaluator import detection_loss
from hitdet_nni.training.inherit import inherit_weights


@torch.no_grad()
def supernet_loss(
    sample: Mapping[str, str],
    skeleton: Skeleton,
    num_classes: int,
    supernet_state: Mapping[str, Any],
    batches: Iterable[dict[str, Any]],
    seed: int,
) -> float:
    """Return mean detection loss of an architecture with the supernet's weights, on held-out images.

    Batch normalisation uses the batch's statistics: the supernet's running ones belong to inputs that are mixtures of
    all candidates.

    Args:
        sample: Operator name of each searched layer by its label.
        skeleton: The detector's skeleton.
        num_classes: Object classes.
        supernet_state: State of the supernet's detector.
        batches: Batches of held-out images.
        seed: Seed of the sampled RoIs, the same for all architectures that are compared.

    Raises:
        InputError: If the supernet has no such architecture.
    """
    detector = build_detector(skeleton, sample, num_classes)
    inherit_weights(detector, sample, supernet_state)
    detector.to(distributed.device()).train()
    detector.data_preprocessor.to(distributed.device())
    with fork_rng(seed):
        losses = [float(detection_loss(detector, batch)) for batch in batches]
    return sum(losses) / len(losses)
