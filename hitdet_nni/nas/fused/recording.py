"""Passes of a mixed layer recorded as CUDA graphs: what hundreds of small operations cost to start is paid once.

A recording belongs to one mixture and one size of input. Its first steps run as they are; then each pass is recorded,
and later ones only copy what comes in, replay, and copy what goes out. All that outlives a pass (input, what the
backward pass needs, results) has a fixed place outside the memory that graphs share for what they make on the way, so
recordings may be replayed in any order. Values are those of the passes themselves.
"""

from __future__ import annotations

import gc
import logging
import math
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

EAGER_CALLS = 2
"""Forward passes that run as they are first, with their backward passes: programs are compiled, libraries choose."""

AGREEMENT = 1e-3
"""Largest difference of a replay from the pass, as a share of the largest entry."""

Outputs = list[Tensor | None]
Replay = Callable[[], None]


class Memory:
    """The memory that the graphs of a device share for what they make on the way.

    It goes with the last of them; the next graph begins with a new one.
    """

    _pools: dict[torch.device, tuple[Any, weakref.WeakSet[torch.cuda.CUDAGraph]]] = {}  # noqa: RUF012 - one a process

    @classmethod
    def pool(cls, device: torch.device) -> tuple[Any, weakref.WeakSet[torch.cuda.CUDAGraph]]:
        """Return the pool of a device, and the graphs that use it."""
        known = cls._pools.get(device)
        if known is None or not known[1]:
            known = cls._pools[device] = torch.cuda.graph_pool_handle(), weakref.WeakSet()
        return known


def capture(function: Callable[[], None], device: torch.device) -> Replay:
    """Record what a function starts on a GPU, without running it.

    Args:
        function: Reads and writes tensors that stay where they are.
        device: The GPU.

    Raises:
        RuntimeError: If it does what cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    pool, users = Memory.pool(device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with _no_collection(), torch.cuda.stream(stream):
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            function()
        finally:
            graph.capture_end()
    torch.cuda.current_stream(device).wait_stream(stream)
    users.add(graph)
    return graph.replay


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from ending other graphs meanwhile, which a recording does not survive."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Token:
    """Lives as long as a forward pass whose backward pass may come."""


@dataclass
class Pass:
    """One recorded pass.

    Attributes:
        inputs: Where its inputs are to be.
        outputs: Where its outputs will be; ``None`` where there is none.
        replay: Runs it.
    """

    inputs: list[Tensor]
    outputs: Outputs
    replay: Replay

    @classmethod
    def record(cls, run: Callable[[], Outputs], inputs: Sequence[Tensor], like: Outputs, recorder: Recorder) -> Pass:
        """Record a pass.

        Args:
            run: Computes the outputs from the tensors of ``inputs``, which stay where they are.
            inputs: Its inputs.
            like: Tensors of the outputs' shapes and types.
            recorder: :func:`capture`, or a stand-in.
        """
        places = [None if tensor is None else torch.empty_like(tensor) for tensor in like]

        def write() -> None:
            pairs = [
                (place, tensor)
                for place, tensor in zip(places, run(), strict=True)
                if place is not None and tensor is not None
            ]
            _copy_all(*zip(*pairs, strict=True))

        return cls(list(inputs), places, recorder(write, inputs[0].device))


Recorder = Callable[[Callable[[], None], torch.device], Replay]


@dataclass
class Recording:
    """A mixture's passes at one size of input.

    Attributes:
        places: Addresses of the parameters and buffers that the passes use.
        recorder: :func:`capture`, or a stand-in.
        calls: Forward passes so far.
        forward_pass: The forward pass, once recorded.
        backward_passes: Backward passes, by which gradients are wanted.
        generation: Number of the last forward pass that was replayed.
        failed: Whether recording has failed; nothing is tried again then.
        names: Names of the outputs behind the first.
        last_call: When it was used last, by the calls of its mixture.
    """

    places: tuple[int, ...] = ()
    recorder: Recorder = capture
    calls: int = 0
    forward_pass: Pass | None = None
    backward_passes: dict[tuple[bool, ...], Pass] = field(default_factory=dict)
    generation: int = 0
    failed: bool = False
    names: list[Any] = field(default_factory=list)
    last_call: int = 0
    _token: weakref.ref[Token] | None = None

    def ready(self) -> bool:
        """Whether the forward pass can be replayed: it is recorded, and its last one's backward pass is over."""
        return self.forward_pass is not None and (self._token is None or self._token() is None)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Token]:
        """Replay the forward pass.

        Args:
            inputs: In the order in which they were recorded.

        Returns:
            The first output where the next replay will overwrite it, and what must be kept as long as the backward
            pass may come.

        Raises:
            ValueError: If it is not :meth:`ready`.
        """
        if self.forward_pass is None or (first := self.forward_pass.outputs[0]) is None:
            raise ValueError("the forward pass has not been recorded")
        _replay(self.forward_pass, inputs)
        self.generation += 1
        token = Token()
        self._token = weakref.ref(token)
        return first, token

    def record_forward(
        self, run: Callable[..., Outputs], inputs: Sequence[Tensor], found: Outputs, state: Sequence[Tensor]
    ) -> None:
        """Record the forward pass, if it has run often enough.

        Args:
            run: Computes the outputs from inputs.
            inputs: Those of the pass that has just run, of any shapes.
            found: Its outputs.
            state: What a pass changes besides.
        """
        self.calls += 1
        if self.failed or self.forward_pass is not None or self.calls < EAGER_CALLS:
            return
        places = [tensor.detach().clone() for tensor in inputs]
        self.forward_pass = self._try(lambda: run(*places), places, found, state)

    def backward(
        self, run: Callable[[Tensor], Outputs], grad: Tensor, wanted: tuple[bool, ...], generation: int
    ) -> Outputs:
        """Replay the backward pass of the last forward pass; the first time, run and record it.

        Args:
            run: Computes the gradients from the gradient by the output and the forward pass's places.
            grad: Gradient by the output, of its shape.
            wanted: Which gradients are wanted.
            generation: Of the forward pass.

        Returns:
            The gradients, none of which is overwritten later.

        Raises:
            RuntimeError: If another forward pass has been replayed since.
        """
        if generation != self.generation:
            raise RuntimeError("a mixed layer's backward pass came after its next forward pass")
        self._token = None
        known = self.backward_passes.get(wanted)
        if known is not None:
            _replay(known, [grad])
            return _copies(known.outputs)
        found = run(grad)
        if not self.failed:
            place = grad.detach().clone()
            made = self._try(lambda: run(place), [place], found, ())
            if made is not None:
                self.backward_passes[wanted] = made
        return found

    def _try(
        self, run: Callable[[], Outputs], inputs: Sequence[Tensor], found: Outputs, state: Sequence[Tensor]
    ) -> Pass | None:
        """Record a pass and replay it once; it is used only if that gives what the pass itself has given."""
        before = [tensor.clone() for tensor in state]
        try:
            made = Pass.record(run, inputs, found, self.recorder)
            made.replay()
        except RuntimeError as error:
            self._give_up(str(error).splitlines()[0])
            return None
        finally:
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
        if not all(_agree(one, other) for one, other in zip(made.outputs, found, strict=True)):
            self._give_up("what it replays differs from what was recorded")
            return None
        return made

    def _give_up(self, reason: str) -> None:
        self.failed = True
        logger.warning("a mixed layer is not recorded as a CUDA graph: %s", reason)


def _agree(replayed: Tensor | None, found: Tensor | None) -> bool:
    """Whether a replay gave a pass's result, up to the order of sums in libraries that do not fix it."""
    if replayed is None or found is None:
        return replayed is found
    if torch.equal(replayed, found):
        return True
    scale = float(found.double().abs().max())
    error = float((replayed.double() - found.double()).abs().max())
    return error <= AGREEMENT * scale or (math.isnan(scale) and math.isnan(error))


def _replay(recorded: Pass, inputs: Sequence[Tensor]) -> None:
    for place, tensor in zip(recorded.inputs, inputs, strict=True):
        place.copy_(tensor)
    recorded.replay()


def _copy_all(places: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Copy tensors into others of their shapes and types, few operations for all of one type."""
    kinds: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for place, tensor in zip(places, tensors, strict=True):
        into, given = kinds.setdefault(tensor.dtype, ([], []))
        into.append(place)
        given.append(tensor)
    for into, given in kinds.values():
        torch._foreach_copy_(into, given)


def _copies(tensors: Outputs) -> Outputs:
    """Return copies of tensors, those of one type in one piece of memory."""
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor is not None:
            kinds.setdefault(tensor.dtype, []).append(tensor)
    copied: dict[int, Tensor] = {}
    for kind, several in kinds.items():
        sizes = [tensor.numel() for tensor in several]
        buffer = several[0].new_empty(sum(sizes), dtype=kind)
        parts = [
            part.as_strided(tensor.shape, tensor.stride(), part.storage_offset())
            for part, tensor in zip(torch.split(buffer, sizes), several, strict=True)
        ]
        torch._foreach_copy_(parts, several)
        copied |= {id(tensor): part for tensor, part in zip(several, parts, strict=True)}
    return [None if tensor is None else copied[id(tensor)] for tensor in tensors]


RECORDED_SIZES = 2
"""Sizes of input whose passes a mixture holds recorded, e.g. those of wide and of upright images."""

KNOWN_SIZES = 16
"""Sizes that a mixture counts."""

FORGOTTEN = 32
"""Calls of a mixture after which a recorded size that did not occur makes room for another."""


@dataclass
class Recordings:
    """The recordings of a mixture, for the sizes of input that occur most.

    Attributes:
        recorder: Passed on.
        by_size: Recordings by what distinguishes their passes, the one used last behind the others.
        calls: Calls so far.
    """

    recorder: Recorder = capture
    by_size: dict[Hashable, Recording] = field(default_factory=dict)
    calls: int = 0

    def find(self, size: Hashable, places: tuple[int, ...]) -> Recording | None:
        """Return the recording for a size of input.

        Args:
            size: What distinguishes it.
            places: Addresses of the parameters and buffers that the passes use; where others were recorded, the
                recording starts anew.

        Returns:
            ``None`` where other sizes have been recorded and are in use: a recording holds what it keeps for gradients.
        """
        self.calls += 1
        found = self.by_size.pop(size, None)
        if found is None or found.places != places:
            found = Recording(places, self.recorder)
        self.by_size[size] = found
        found.last_call = self.calls
        if found.forward_pass is None and found.calls + 1 >= EAGER_CALLS and not self._make_room():
            return None
        for old in list(self.by_size)[:-KNOWN_SIZES]:
            if self.by_size[old].forward_pass is None:
                del self.by_size[old]
        return found

    def _make_room(self) -> bool:
        """Whether another size may be recorded; one that is out of use goes."""
        recorded = [size for size, one in self.by_size.items() if one.forward_pass is not None]
        if len(recorded) < RECORDED_SIZES:
            return True
        oldest = self.by_size[recorded[0]]
        if self.calls - oldest.last_call < FORGOTTEN or not oldest.ready():
            return False
        del self.by_size[recorded[0]]
        return True
