"""What recorded passes of a GPU have in common: the memory of what they make on the way, one stream, one recorder.

Passes run one after the other, so what none of them leaves to another one can lie in the same place: tensors between
two kernels of a graph, and what is copied into a pass just before it or out of it just after.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

Replay = Callable[[], None]
Recorder = Callable[[Callable[[], None], torch.device], Replay]


class GraphMemory:
    """The memory of a device that its graphs share for what they make on the way.

    All are recorded on one stream: torch's allocator gives a freed piece to the stream alone that it belonged to, and
    with a stream each, graphs would not share.

    Attributes:
        pool: The allocator's name of the memory.
        stream: The stream.
    """

    def __init__(self, device: torch.device) -> None:
        self.pool: Any = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @classmethod
    def of(cls, device: torch.device) -> GraphMemory:
        """Return the memory of a device; it goes with the last graph, and the next one begins with a new one."""
        known = _MEMORIES.get(device)
        if known is None:
            known = _MEMORIES[device] = cls(device)
        return known


_MEMORIES: weakref.WeakValueDictionary[torch.device, GraphMemory] = weakref.WeakValueDictionary()


def capture(function: Callable[[], None], device: torch.device) -> Replay:
    """Record what a function starts on a GPU, without running it.

    Args:
        function: Reads and writes tensors that stay where they are.
        device: The GPU.

    Raises:
        RuntimeError: If it does what cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    memory = GraphMemory.of(device)
    stream = memory.stream
    stream.wait_stream(torch.cuda.current_stream(device))
    with _no_collection(), torch.cuda.stream(stream):
        graph.capture_begin(pool=memory.pool, capture_error_mode="thread_local")
        try:
            function()
        finally:
            graph.capture_end()
    torch.cuda.current_stream(device).wait_stream(stream)

    def replay(_memory: GraphMemory = memory) -> None:
        graph.replay()

    return replay


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


Place = tuple[torch.device, torch.dtype, torch.Size, tuple[int, ...], int]
"""What a place is for: tensors of a device, type, shape and stride, and which of those within a call."""

_PLACES: weakref.WeakValueDictionary[Place, Tensor] = weakref.WeakValueDictionary()
"""The places that passes share; each lives as long as a pass that uses it."""


def places_of(tensors: Sequence[Tensor]) -> list[Place]:
    """Return what tells the place of each tensor, of any shape: another one within a call, the same in other calls."""
    met: Counter[tuple[Any, ...]] = Counter()
    found = []
    for tensor in tensors:
        form = (tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        found.append((*form, met[form]))
        met[form] += 1
    return found


def shared_places(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the place of each tensor, which other passes use too.

    It holds what is copied into a pass before it runs, or out of it before another one runs.

    Args:
        tensors: Their shapes, strides, types and devices are the places'.
    """
    places = []
    for tensor, key in zip(tensors, places_of(tensors), strict=True):
        place = _PLACES.get(key)
        if place is None:
            place = _PLACES[key] = torch.empty_like(tensor)
        places.append(place)
    return places


ALIGNMENT = 512
"""Bytes at whose multiples tensors begin, as torch's allocator has it."""


class Token:
    """Lives as long as a forward pass whose backward pass may come."""


class User(Protocol):
    """What has tensors in a :class:`TapeMemory`."""

    def forget(self) -> None:
        """Give them up: the memory moves."""


class TapeMemory:
    """The memory of a mixture for what a recorded forward pass leaves to its backward pass.

    One forward pass at a time waits for its backward pass, so those of all sizes of input use the same memory. It is as
    large as the largest of them needs; where a larger one comes, what was recorded before is forgotten.

    Attributes:
        generation: Number of the last forward pass that was replayed.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._buffer: Tensor | None = None
        self._users: weakref.WeakSet[User] = weakref.WeakSet()
        self._token: weakref.ref[Token] | None = None

    @property
    def free(self) -> bool:
        """Whether no forward pass waits for its backward pass."""
        return self._token is None or self._token() is None

    def begin(self) -> Token:
        """Note that a forward pass has been replayed and its backward pass is to come."""
        self.generation += 1
        token = Token()
        self._token = weakref.ref(token)
        return token

    def end(self) -> None:
        """Note that the backward pass has come."""
        self._token = None

    def places(self, tensors: Sequence[Tensor], user: User) -> list[Tensor]:
        """Return a place for each tensor of any shape; they begin where those of other calls do.

        Args:
            tensors: All of one device.
            user: Whose they are.
        """
        starts, total = [], 0
        for tensor in tensors:
            starts.append(total)
            total += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        device = tensors[0].device
        if self._buffer is None or self._buffer.nbytes < total or self._buffer.device != device:
            for other in list(self._users):
                other.forget()
            self._users.clear()
            self._buffer = None  # before there is another one
            self._buffer = torch.empty(total, dtype=torch.uint8, device=device)
        self._users.add(user)
        buffer = self._buffer
        strides = [torch.empty_like(tensor, device="meta").stride() for tensor in tensors]  # without their gaps
        parts = (buffer[start : start + tensor.nbytes] for start, tensor in zip(starts, tensors, strict=True))
        return [
            part.view(tensor.dtype).as_strided(tensor.shape, stride)  # [bytes] -> [*shape]
            for part, tensor, stride in zip(parts, tensors, strides, strict=True)
        ]
