"""What recorded passes of a GPU have in common: the memory of what they make on the way, one stream, one recorder.

Passes run one after the other, so what none of them leaves to another one can lie in the same place: tensors between
two kernels of a graph, and what is copied into a pass just before it or out of it just after.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from hitdet_nni.engine.machine import is_out_of_memory

Replay = Callable[[], None]
Recorder = Callable[[Callable[[], None], torch.device], Replay]


_STREAMS: dict[torch.device, torch.cuda.Stream] = {}
"""The stream of each device on which graphs are recorded. cuBLAS keeps a workspace for each stream that it meets, which
lies in the memory of the graph that was recorded first, and the addresses of which all graphs of the stream hold."""


class GraphMemory:
    """The memory of a device that its graphs share for what they make on the way.

    All are recorded on one stream: torch's allocator gives a freed piece to the stream alone that it belonged to, and
    with a stream each, graphs would not share. Nothing in it outlives a replay: what a graph leaves to another one lies
    outside.

    Attributes:
        device: The device.
        pool: The allocator's name of the memory.
        stream: The stream.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = torch.cuda.graph_pool_handle()
        if device not in _STREAMS:
            _STREAMS[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.stream = _STREAMS[device]

    @classmethod
    def of(cls, device: torch.device) -> GraphMemory:
        """Return the memory of a device; it goes with the last graph, and the next one begins with a new one."""
        known = _MEMORIES.get(device)
        if known is None:
            if not any(memory.device == device for memory in _ALIVE):
                _clear_workspaces()  # that of the last memory would keep it for ever
            known = _MEMORIES[device] = cls(device)
            _ALIVE.add(known)
        return known

    def begin(self, graph: torch.cuda.CUDAGraph) -> None:
        """Let a graph record what is started from now on."""
        with self._given_up_on_failure():
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")

    def end(self, graph: torch.cuda.CUDAGraph) -> None:
        """Let a graph record no more."""
        with self._given_up_on_failure():
            graph.capture_end()

    @contextmanager
    def _given_up_on_failure(self) -> Iterator[None]:
        """Let no further graph use this memory if torch fails within the context: it may be left in a bad state.

        Its graphs may still be replayed, and use its workspace: the next memory gets a stream, and so a workspace, of
        its own.
        """
        try:
            yield
        except BaseException:
            if _MEMORIES.get(self.device) is self:
                del _MEMORIES[self.device]
                _STREAMS.pop(self.device, None)
            end = getattr(torch._C, "_cuda_endAllocateToPool", None)
            if end is not None:
                index = torch.cuda.current_device() if self.device.index is None else self.device.index
                with suppress(RuntimeError):  # torch may have ended it
                    end(index, self.pool)
            raise


_MEMORIES: weakref.WeakValueDictionary[torch.device, GraphMemory] = weakref.WeakValueDictionary()
"""The memory that the next graph of a device uses."""

_ALIVE: weakref.WeakSet[GraphMemory] = weakref.WeakSet()
"""All that a graph can still use, those that were given up too."""


def _clear_workspaces() -> None:
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None:
        clear()


def capture(function: Callable[[], None], device: torch.device) -> Replay:
    """Record what a function starts on a GPU, without running it.

    Where the memory does not suffice it is tried again without what torch has in reserve: while it records, its
    allocator does not give that back by itself.

    Args:
        function: Reads and writes tensors that stay where they are.
        device: The GPU.

    Raises:
        RuntimeError: If it does what cannot be recorded, or does not fit in memory.
    """
    try:
        return _capture(function, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    torch.cuda.empty_cache()  # what the first attempt made has gone with its error
    return _capture(function, device)


def _capture(function: Callable[[], None], device: torch.device) -> Replay:
    with _no_collection():
        graph = torch.cuda.CUDAGraph()
        memory = GraphMemory.of(device)
        stream = memory.stream
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            memory.begin(graph)
            try:
                function()
            except BaseException:
                with suppress(RuntimeError):  # what went wrong first is what is told
                    memory.end(graph)
                raise
            memory.end(graph)
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


ALIGNMENT = 512
"""Bytes at whose multiples tensors begin, as torch's allocator has it."""


def layout(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """Return where tensors of any shapes begin that lie one behind the other, and all their bytes."""
    starts, total = [], 0
    for tensor in tensors:
        starts.append(total)
        total += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return starts, total


def _places(buffer: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return a place in a buffer of bytes for each tensor, of its shape and type."""
    starts, _ = layout(tensors)
    parts = [buffer[start : start + tensor.nbytes] for start, tensor in zip(starts, tensors, strict=True)]
    strides = [torch.empty_like(tensor, device="meta").stride() for tensor in tensors]  # without their gaps
    return [
        part.view(tensor.dtype).as_strided(tensor.shape, stride)  # [bytes] -> [*shape]
        for part, tensor, stride in zip(parts, tensors, strides, strict=True)
    ]


class SharedMemory:
    """Where all passes of a device have what is copied into them before they run, and out of them after that.

    A pass holds it as long as it may run. Where a pass needs more room than there is, it and those after it use a
    larger one.

    Args:
        size: Bytes.
        device: Where it lies.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._buffer = torch.empty(size, dtype=torch.uint8, device=device)

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> SharedMemory:
        """Return the memory of the device of some tensors of any shapes, with room for these."""
        device, (_, total) = tensors[0].device, layout(tensors)
        known = _SHARED.get(device)
        if known is None or known._buffer.nbytes < total:
            known = _SHARED[device] = cls(total, device)
        return known

    def places(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return a place for each tensor of any shape; they begin where those of other calls do."""
        return _places(self._buffer, tensors)


_SHARED: weakref.WeakValueDictionary[torch.device, SharedMemory] = weakref.WeakValueDictionary()


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
        generation: Number of the last forward pass whose backward pass finds what it needs there.
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
        device, (_, total) = tensors[0].device, layout(tensors)
        self.generation += 1  # what a pass left there, whose backward pass may come a second time, is no more
        if self._buffer is None or self._buffer.nbytes < total or self._buffer.device != device:
            for other in list(self._users):
                other.forget()
            self._users.clear()
            self._buffer = None  # before there is another one
            self._buffer = torch.empty(total, dtype=torch.uint8, device=device)
        self._users.add(user)
        return _places(self._buffer, tensors)

    def leave(self, user: User) -> None:
        """Note that a user has nothing here; the memory goes with the last one."""
        self._users.discard(user)
        if not self._users:
            self._buffer = None
