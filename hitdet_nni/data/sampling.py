"""Order and augmentation of training images as functions of seed, epoch and position: nothing to restore but those.

A data loader's position, its shuffling and the random numbers of its workers are then two integers, the epoch and the
step; they do not depend on the number of workers, and processes draw disjoint parts of one order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler


class Draw(NamedTuple):
    """One image of a training: which one, the seed of its augmentation, and whether others may be put into it."""

    image: int
    seed: int
    mix: bool = True


class ResumableSampler(Sampler[Draw]):
    """Draws images for a fixed number of steps an epoch, from any step on.

    Each epoch goes through a permutation of its own, and through further ones where it is longer than the set. The
    processes of a group take the batches of a step side by side from one order: no image twice.

    Args:
        images: Number of images.
        batch_size: Images a process and step.
        steps: Steps an epoch.
        seed: Seed of order and augmentation.
        rank: Number of this process.
        processes: Processes that share the order.
        mix_epochs: Epochs in which several images may be put into one; ``None``: all.

    Attributes:
        epoch: The epoch that the next iteration is for; Lightning and mmengine set it.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        steps: int,
        seed: int,
        *,
        rank: int = 0,
        processes: int = 1,
        mix_epochs: int | None = None,
    ) -> None:
        self.images = images
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.rank = rank
        self.processes = processes
        self.mix_epochs = mix_epochs
        self.epoch = 0
        self._start = (0, 0)

    def __len__(self) -> int:
        """Return the draws of a whole epoch of this process."""
        return self.steps * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def start_at(self, epoch: int, step: int) -> None:
        """Begin at a step of an epoch; the epochs after it are whole."""
        self.epoch = epoch
        self._start = (epoch, step)

    def __iter__(self) -> Iterator[Draw]:
        """Yield the draws of this process from the epoch's first step that is to be made."""
        epoch, first = self.epoch, self._start[1] if self.epoch == self._start[0] else 0
        order = self._order(epoch)
        mix = self.mix_epochs is None or epoch < self.mix_epochs
        for step in range(first, self.steps):
            for place in range(self.batch_size):
                position = (step * self.processes + self.rank) * self.batch_size + place
                yield Draw(int(order[position]), self._seed(epoch, position), mix)

    def _order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        needed = self.steps * self.batch_size * self.processes
        generator = np.random.default_rng([self.seed, epoch])
        rounds = -(-needed // self.images)
        return np.concatenate([generator.permutation(self.images) for _ in range(rounds)])[:needed]

    def _seed(self, epoch: int, position: int) -> int:
        return int(np.random.SeedSequence([self.seed, epoch, position]).generate_state(1)[0])


class SeededImages(Dataset[Any]):
    """A data set asked by :class:`Draw`: the image comes out the same in any process and at any time.

    Args:
        images: A map-style data set whose items may be augmented at random; with draws that put no others into an image
            a :class:`~hitdet_nni.data.datasets.detection.CachedDataset`.
    """

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, draw: Draw) -> Any:
        """Return the image of a draw; the process's own random numbers are left as they were."""
        with seeded(draw.seed):
            return self.images[draw.image] if draw.mix else self.images.image(draw.image, mix=False)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the random numbers of python, numpy and torch (CPU) within the context; restore them afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def steps_an_epoch(images: int, batch_size: int, processes: int = 1) -> int:
    """Count the full batches of all processes in an epoch; one where the set is smaller than that."""
    return max(1, images // (batch_size * processes))
