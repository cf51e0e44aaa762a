"""Time and memory of a supernet's step with given activation modes, leaving no trace in what is trained."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from hitdet_nni.config.settings import Settings
from hitdet_nni.config.skeleton import Component, Skeleton, padded
from hitdet_nni.engine import distributed
from hitdet_nni.engine.machine import is_out_of_memory
from hitdet_nni.engine.precision import Precision
from hitdet_nni.engine.randomness import fork_rng
from hitdet_nni.engine.synced_batch_norm import shares_statistics
from hitdet_nni.nas.evaluator import detection_loss
from hitdet_nni.nas.memory.estimate import estimate_step_memory, free_memory, release_memory
from hitdet_nni.nas.memory.step_simulation import image_size
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer, set_activations

logger = logging.getLogger(__name__)

WARM_UPS = 2
"""Steps that are not timed, in which libraries choose, compile and record what they run."""

REPEATS = 2
"""Steps that are timed; the shortest counts."""

SPARE = 0.05
"""Share of the free memory that is left alone: RoIs and boxes differ from batch to batch."""

SURE = 0.6
"""What a step takes at least, as a share of the estimate, which has been up to 1.4 times too large; a step of which
this does not fit is not tried."""

LARGE = ("all", "fused")
"""Modes whose memory is estimated before a component is in one for the first time; the others take little."""


@dataclass(frozen=True)
class StepCost:
    """What a step takes.

    Attributes:
        seconds: Time of both phases without the optimisers' updates, which do not depend on the mode.
        peak: Bytes that torch takes for it at most, scaled to the largest batch.
    """

    seconds: float
    peak: int


def wall_clock(step: Callable[[], None], device: torch.device) -> float:
    """Return the time of a step, of what it has started on a GPU too."""
    _synchronize(device)
    start = time.perf_counter()
    step()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class StepTimer:
    """Measures steps of a supernet with a real pair of batches; a context, at whose end all is as before.

    Batch normalisation's statistics, random numbers, gradients and what requires them are put back; parameters are not
    touched, no optimiser exists yet, and the loaders' order is read without being advanced. The modes stay those of the
    last step.

    Within the context a process computes by itself, so that one may measure for several. Where a step exchanges batch
    normalisation's statistics, all processes measure together: a step takes as long as in the slowest of them, and fits
    if it fits in each. As one that runs out of memory would leave the others waiting, modes are first rehearsed without
    the exchange, and those that take more than ``available`` are not timed.

    Args:
        space: The mutated model space.
        settings: Gives batch size and precision.
        skeleton: The supernet's skeleton.
        loaders: Those of the images for the weights and for the architecture parameters.
        device: Where the search computes.
        taken: Bytes that another process's device has less to give than this one.

    Attributes:
        available: Bytes that a step may take, beside the optimisers' states.
    """

    def __init__(
        self,
        space: Any,
        settings: Settings,
        skeleton: Skeleton,
        loaders: tuple[Any, Any],
        device: torch.device,
        taken: int = 0,
    ) -> None:
        self.space = space
        self.settings = settings
        self.skeleton = skeleton
        self.device = device
        self.taken = taken
        self.precision = Precision(settings.precision, device)
        weights, alphas = (first_batch(loader) for loader in loaders)
        layers = [layer for layer in space.modules() if isinstance(layer, ColumnSparseMixedLayer)]
        architecture = {id(layer.alpha) for layer in layers}
        self._flags = [(parameter, parameter.requires_grad) for parameter in space.parameters()]
        self._alphas, self._weights = (
            [one for one, trains in self._flags if trains and (id(one) in architecture) is of_alphas]
            for of_alphas in (True, False)
        )
        self._batches = (alphas, weights)
        self._scale = max(1.0, _pixels(image_size(skeleton, settings.data.batch_size)) / _batch_pixels(weights, alphas))
        self._small_enough: set[Component] = set()
        self._home = next(space.parameters()).device
        self._context = ExitStack()
        self.available = 0

    def __enter__(self) -> StepTimer:
        """Remember what steps change, and move the model to the device."""
        context = self._context
        if not shares_statistics(self.space):
            context.enter_context(distributed.alone())
        context.enter_context(fork_rng())
        buffers = [buffer.clone() for buffer in self.space.buffers()]
        context.callback(self._put_back, buffers, self.space.training)
        self.space.train()
        estimate = estimate_step_memory(self.space, self.settings, self.skeleton, self.device)
        self._move(self.device)
        self._connect()
        self.available = min(distributed.gather(int((1 - SPARE) * (self._free() - estimate.optimisers))))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put everything back."""
        self._context.close()

    def _connect(self) -> None:
        """Exchange something with the other processes, which takes memory for ever when it is first done."""
        something = torch.zeros(1, device=self.device)
        distributed.sum_in_place(something)
        distributed.gather_tensor(something)

    def _put_back(self, buffers: list[Tensor], training: bool) -> None:
        self._go_home()
        self._forget()
        with torch.no_grad():
            for buffer, before in zip(self.space.buffers(), buffers, strict=True):
                buffer.copy_(before)
        self.space.train(training)

    def _go_home(self) -> None:
        """Put the parameters back as they came, but for batch normalisation's statistics."""
        self._move(self._home)
        for parameter, trains in self._flags:
            parameter.requires_grad_(trains)

    def _move(self, device: torch.device) -> None:
        self.space.to(device)
        self.space.detector.data_preprocessor.to(device)

    def _forget(self) -> None:
        self.space.zero_grad(set_to_none=True)
        release_memory(self.device)

    def __call__(self, modes: Mapping[Component, str]) -> StepCost | None:
        """Measure what a step takes with the components in some modes; ``None`` where it does not fit in memory."""
        set_activations(self.space, modes, fallback=True)
        self._forget()
        large = [component for component, mode in modes.items() if mode in LARGE]
        if len(large) == 1 and large[0] not in self._small_enough:
            if self._hopeless():
                return None
            self._small_enough.add(large[0])
        reserved = self._start_counting()
        try:
            with distributed.rehearsed():
                fits = self._runs(WARM_UPS)
            if distributed.world_size() > 1:
                fits = fits and self._peak(reserved) <= self.available
            cost = self._timed(reserved) if all(distributed.gather(fits)) else None
        finally:
            self._forget()
        return cost

    def _runs(self, steps: int) -> bool:
        try:
            for _ in range(steps):
                self._step()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def _timed(self, reserved: int) -> StepCost | None:
        try:
            seconds = min(self._seconds() for _ in range(REPEATS))
        except RuntimeError as error:
            if not is_out_of_memory(error) or distributed.world_size() > 1:
                raise  # in a group the others wait for this one's sums, and end with it
            return None
        costs = distributed.gather((seconds, self._peak(reserved)))
        return StepCost(max(seconds for seconds, _ in costs), max(peak for _, peak in costs))

    def _seconds(self) -> float:
        distributed.barrier()
        return wall_clock(self._step, self.device)

    def _hopeless(self) -> bool:
        self._go_home()
        self._forget()
        estimate = estimate_step_memory(self.space, self.settings, self.skeleton, self.device)
        free = self._free()
        self._move(self.device)
        return any(distributed.gather(SURE * estimate.to_come > free))

    def _free(self) -> int:
        """Return the bytes that every process can still get."""
        return free_memory(self.device) - self.taken

    def _start_counting(self) -> int:
        if self.device.type != "cuda":
            return 0
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_reserved(self.device)

    def _peak(self, reserved: int) -> int:
        """Return the most bytes that steps have taken, scaled; recorded passes of other sizes use the same memory."""
        if self.device.type != "cuda":
            return 0
        return round(self._scale * (torch.cuda.max_memory_reserved(self.device) - reserved))

    def _step(self) -> None:
        """Run both phases, with the same RoIs each time."""
        torch.manual_seed(0)
        both = (self._alphas, self._weights)
        for batch, (trained, frozen) in zip(self._batches, (both, both[::-1]), strict=True):
            for parameters, wanted in ((trained, True), (frozen, False)):
                for parameter in parameters:
                    parameter.requires_grad_(wanted)
            with self.precision.autocast():
                loss = detection_loss(self.space.detector, batch)
            self.precision.backward(loss)
            for parameter in trained:
                parameter.grad = None


def first_batch(loader: Any) -> Any:
    """Return the batch that a loader will begin with, without asking it: its own iteration is left alone."""
    draws = islice(iter(loader.sampler), loader.batch_size)
    return loader.collate_fn([loader.dataset[draw] for draw in draws])


def _pixels(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _batch_pixels(*batches: Mapping[str, Any]) -> int:
    """Return the pixels of the largest padded image among batches."""

    def side(batch: Mapping[str, Any], axis: int) -> int:
        return padded(max(image.shape[axis] for image in batch["inputs"]))

    return max(side(batch, -2) * side(batch, -1) for batch in batches)
