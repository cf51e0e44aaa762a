"""The loss of sampled architectures on held-out images, by the weights of a trained supernet."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from hitdet_nni.config.settings import Settings
from hitdet_nni.data.loaders import architecture_loader, end_workers
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine import distributed
from hitdet_nni.engine.progress import Stage
from hitdet_nni.engine.randomness import fork_rng
from hitdet_nni.errors import StoppedError
from hitdet_nni.model.replacement import replaced
from hitdet_nni.nas.evaluator import detection_loss
from hitdet_nni.nas.health.permutation_test import remembered_parts
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer
from hitdet_nni.nas.operator_samples import Losses, Sampled
from hitdet_nni.nas.sampled_supernet import SampledSupernet

logger = logging.getLogger(__name__)


@contextmanager
def evaluation(
    supernet: SampledSupernet,
    stage: str,
    settings: Settings,
    data: DetectionData,
    seed: int,
    images: int,
    count: int,
    *,
    skip: int = 0,
) -> Iterator[Losses]:
    """Yield a function that evaluates sampled architectures of a trained supernet; tell and log how far that is.

    Several processes share the architectures. The losses follow from the supernet and the arguments alone, in float32.

    Args:
        supernet: The supernet.
        stage: What it was trained for, for messages.
        settings: Give the images of a batch.
        data: The images, with the halves that the supernet was trained on.
        seed: Seed of the halves, of the choice and augmentation of the images, and of the sampling of RoIs.
        images: Images of the half for architecture parameters at most.
        count: Architectures at most, for those who watch.
        skip: Images of that half that are left out, those that come first.

    Raises:
        StoppedError: If a loss is NaN or infinite.
    """
    detector = supernet.detector
    loader = architecture_loader(data, settings.data, supernet.skeleton, seed, images, skip)
    try:
        batches = list(loader)
    finally:
        end_workers([loader])
    progress = Stage(
        f"{stage}, samples", 1, len(range(distributed.rank(), count, distributed.world_size())) * len(batches)
    )
    started, found = time.monotonic(), []

    def losses(samples: Sequence[Sampled]) -> list[float]:
        together = shared_losses(
            lambda share: architecture_losses(detector, supernet.layers, share, batches, seed, progress.step), samples
        )
        found.extend(together)
        return together

    device = next(detector.parameters()).device
    detector.to(distributed.device())
    try:
        yield losses
    finally:
        detector.to(device)
    progress.end_epoch({})
    if not found:
        return
    logger.info(
        "%d sampled architectures: loss %.3f on average, standard deviation %.3f (%.0f s)",
        len(found),
        np.mean(found),
        np.std(found),
        time.monotonic() - started,
    )


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
    batch and call. RoIs are sampled by the same random numbers for all. The detector is in training mode afterwards,
    its buffers and the caller's random numbers are as they were.

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


def shared_losses(losses: Losses, samples: Sequence[Sampled]) -> list[float]:
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
