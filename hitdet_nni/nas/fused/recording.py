"""Passes of a mixed layer recorded as CUDA graphs: what hundreds of small operations cost to start is paid once.

A recording belongs to one mixture and one size of input. Its first steps run as they are; then each pass is recorded,
and later ones only copy what comes in, replay, and copy what goes out. What the backward pass needs of the forward pass
lies in the mixture's own memory; all else where recordings of other mixtures have theirs too, which may be replayed in
any order (:mod:`hitdet_nni.nas.fused.graph_memory`). Values are those of the passes themselves.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hitdet_nni.nas.fused.graph_memory import Recorder, Replay, SharedMemory, TapeMemory, Token, capture

logger = logging.getLogger(__name__)

EAGER_CALLS = 2
"""Forward passes that run as they are first: programs are compiled, libraries choose. The last of them is recorded as
it ends; a backward pass runs as it is once, and is recorded then."""

AGREEMENT = 1e-3
"""Largest difference of a replay from the pass, as a share of the largest entry; in 16 bits two steps of that."""

PIECE = 2**24
"""Entries that are compared at a time."""

Outputs = list[Tensor | None]


@dataclass
class Pass:
    """One recorded pass.

    Attributes:
        inputs: Where its inputs are to be.
        outputs: Where its outputs will be; ``None`` where there is none.
        replay: Runs it.
        shared: Where some of them are, as all passes have them.
        constants: What holds the other tensors that it reads where they were when it was recorded.
    """

    inputs: list[Tensor]
    outputs: Outputs
    replay: Replay
    shared: SharedMemory | None = None
    constants: object = None

    @classmethod
    def record(
        cls,
        run: Callable[[], Outputs],
        inputs: Sequence[Tensor],
        places: Sequence[Tensor | None],
        shared: SharedMemory,
        recorder: Recorder,
        constants: object,
    ) -> Pass:
        """Record a pass.

        Args:
            run: Computes the outputs from the tensors of ``inputs``, which stay where they are, and may put some in
                their places itself.
            inputs: Its inputs.
            places: Tensors of the outputs' shapes and types, ``None`` for an output that is not wanted.
            shared: Where some of both are.
            recorder: :func:`~hitdet_nni.nas.fused.graph_memory.capture`, or a stand-in.
            constants: What holds the other tensors that it reads, but for parameters and buffers.
        """

        def write() -> None:
            pairs = [
                (place, tensor)
                for place, tensor in zip(places, run(), strict=True)
                if place is not None and tensor is not None and tensor is not place
            ]
            _copy_all(*zip(*pairs, strict=True))

        return cls(list(inputs), list(places), recorder(write, inputs[0].device), shared, constants)


@dataclass(eq=False)
class Recording:
    """A mixture's passes at one size of input.

    Attributes:
        places: Addresses of the parameters and buffers that the passes use.
        memory: The mixture's.
        recorder: :func:`~hitdet_nni.nas.fused.graph_memory.capture`, or a stand-in.
        calls: Forward passes so far.
        forward_pass: The forward pass, once recorded.
        backward_passes: Backward passes, by which gradients are wanted.
        failed: Whether recording has failed; nothing is tried again then.
        names: Names of the outputs behind the first.
    """

    places: tuple[int, ...] = ()
    memory: TapeMemory = field(default_factory=TapeMemory)
    recorder: Recorder = capture
    calls: int = 0
    forward_pass: Pass | None = None
    backward_passes: dict[tuple[bool, ...], Pass] = field(default_factory=dict)
    failed: bool = False
    names: list[Any] = field(default_factory=list)

    def ready(self) -> bool:
        """Whether the forward pass can be replayed: it is recorded, and the mixture's last backward pass is over."""
        return self.forward_pass is not None and self.memory.free

    def forget(self) -> None:
        """Give up what has been recorded; the next pass is recorded anew."""
        self.forward_pass = None
        self.backward_passes.clear()

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Token]:
        """Replay the forward pass.

        Args:
            inputs: In the order in which they were recorded.

        Returns:
            The first output where the next replay of any recording will overwrite it, and what must be kept as long as
            the backward pass may come.

        Raises:
            ValueError: If it is not :meth:`ready`.
        """
        if self.forward_pass is None or (first := self.forward_pass.outputs[0]) is None:
            raise ValueError("the forward pass has not been recorded")
        _replay(self.forward_pass, inputs)
        return first, self.memory.begin()

    def record_forward(
        self,
        run: Callable[..., Outputs],
        inputs: Sequence[Tensor],
        found: Outputs,
        state: Sequence[Tensor],
        constants: object,
    ) -> Token | None:
        """Record the forward pass, if it has run often enough.

        Args:
            run: Computes the outputs from inputs and a list of their places, and may put some there itself.
            inputs: Those of the pass that has just run, of any shapes.
            found: Its outputs.
            state: What a pass changes besides.
            constants: What holds the other tensors that it reads, and does not hold the token.

        Returns:
            Where it has been recorded, what must be kept as long as the backward pass may come: what that needs has its
            place now, and ``found`` can go.
        """
        self.calls += 1
        if self.failed or self.forward_pass is not None or self.calls < EAGER_CALLS or not self.memory.free:
            return None

        def record() -> Pass:
            first, *kept = (tensor for tensor in found if tensor is not None)
            own = self.memory.places([*inputs, *kept], self)
            shared = SharedMemory.of([first])
            given, places = own[: len(inputs)], [*shared.places([first]), *own[len(inputs) :]]
            for place, tensor in zip(given, inputs, strict=True):
                place.copy_(tensor)
            return Pass.record(lambda: run(*given, places), given, places, shared, self.recorder, constants)

        self.forward_pass = self._try(record, found, state)
        if self.forward_pass is None:
            self.memory.leave(self)
            return None
        return self.memory.begin()

    def check(self, generation: int) -> None:
        """Refuse a backward pass that comes too late.

        Raises:
            RuntimeError: If another forward pass has been replayed or recorded since the one of this number.
        """
        if generation != self.memory.generation:
            raise RuntimeError("a mixed layer's backward pass came after its next forward pass")

    def backward(
        self,
        run: Callable[[Tensor], Outputs],
        grad: Tensor,
        wanted: tuple[bool, ...],
        generation: int,
        constants: object,
    ) -> Outputs:
        """Replay the backward pass of the last forward pass; the first time, run and record it.

        Args:
            run: Computes the gradients from the gradient by the output and the forward pass's places.
            grad: Gradient by the output, of its shape.
            wanted: Which gradients are wanted.
            generation: Of the forward pass.
            constants: As for the forward pass.

        Returns:
            The gradients, none of which is overwritten later.

        Raises:
            RuntimeError: As :meth:`check` does.
        """
        self.check(generation)
        self.memory.end()
        known = self.backward_passes.get(wanted)
        if known is not None:
            _replay(known, [grad])
            of_input, *others = known.outputs
            return [None if of_input is None else of_input.clone(), *_copies(others)]  # it goes before the others do
        found = run(grad)
        if self.failed:
            return found

        def record() -> Pass:
            both = [grad, *(tensor for tensor in found if tensor is not None)]
            shared = SharedMemory.of(both)
            place, *others = shared.places(both)
            place.copy_(grad)
            rest = iter(others)
            places = [None if tensor is None else next(rest) for tensor in found]
            return Pass.record(lambda: run(place), [place], places, shared, self.recorder, constants)

        made = self._try(record, found, ())
        if made is not None:
            self.backward_passes[wanted] = made
        return found

    def _try(self, record: Callable[[], Pass], found: Outputs, state: Sequence[Tensor]) -> Pass | None:
        """Record a pass and replay it once; it is used only if that gives what the pass itself has given.

        Where that is not finite, as the first gradients in 16 bits may be, another pass will be recorded.
        """
        if not all(_is_finite(tensor) for tensor in found if tensor is not None):
            return None
        before = [tensor.clone() for tensor in state]
        try:
            made = record()
            made.replay()
            agree = all(_agree(one, other) for one, other in zip(made.outputs, found, strict=True))
        except RuntimeError as error:
            self._give_up(str(error).splitlines()[0])
            return None
        finally:
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
        if not agree:
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
    scale = max(abs(float(end)) for end in torch.aminmax(found))
    allowed = scale * max(AGREEMENT, 2 * torch.finfo(found.dtype).eps)
    pieces = zip(_pieces(replayed, found), _pieces(found, replayed), strict=True)
    return all(float((one.double() - other.double()).abs().max()) <= allowed for one, other in pieces)


def _pieces(tensor: Tensor, other: Tensor) -> Sequence[Tensor]:
    """Return a tensor of any shape in parts, ``[entries]``, in an order that is the same if both are exchanged."""
    dense = torch.empty_like(tensor, device="meta").stride()
    if tensor.stride() == other.stride() == dense:
        flat = tensor.as_strided((tensor.numel(),), (1,))  # [*shape] -> [numel]
    else:
        flat = tensor.reshape(-1)  # [*shape] -> [numel]
    return [flat[start : start + PIECE] for start in range(0, flat.numel(), PIECE)]


def _is_finite(tensor: Tensor) -> bool:
    """Whether all entries of a tensor of any shape are finite, without a copy of it."""
    return tensor.numel() == 0 or all(math.isfinite(end) for end in torch.aminmax(tensor))


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


RECORDED_SIZES = 4
"""Sizes of input whose passes a mixture holds recorded, e.g. batches of wide, of upright and of both images."""

LEAD = 2
"""How many times as often as the rarest recorded size another must have occurred to take its place."""

HALF_LIFE = 1024
"""Calls of a mixture after which an occurrence of a size counts half."""


@dataclass
class Recordings:
    """The recordings of a mixture, for the sizes of input that occur most.

    Attributes:
        recorder: Passed on.
        by_size: Recordings by what distinguishes their passes.
        counts: How often each size has occurred.
        calls: Calls so far.
        memory: What all of them leave to their backward passes.
    """

    recorder: Recorder = capture
    by_size: dict[Hashable, Recording] = field(default_factory=dict)
    counts: dict[Hashable, int] = field(default_factory=dict)
    calls: int = 0
    memory: TapeMemory = field(default_factory=TapeMemory)

    def find(self, size: Hashable, places: tuple[int, ...]) -> Recording | None:
        """Return the recording for a size of input.

        Args:
            size: What distinguishes it.
            places: Addresses of the parameters and buffers that the passes use; where others were recorded, the
                recording starts anew.

        Returns:
            ``None`` where as many others as there may be have been recorded and occur as often.
        """
        self._count(size)
        found = self.by_size.get(size)
        if found is None or found.places != places:
            found = self.by_size[size] = Recording(places, self.memory, self.recorder)
        due = found.forward_pass is None and not found.failed and found.calls + 1 >= EAGER_CALLS
        return None if due and not self._make_room(size) else found

    def _count(self, size: Hashable) -> None:
        self.calls += 1
        self.counts[size] = self.counts.get(size, 0) + 1
        if self.calls % HALF_LIFE == 0:
            self.counts = {known: count // 2 for known, count in self.counts.items() if count > 1}
            for gone in [known for known in self.by_size if known not in self.counts and known != size]:
                if self.by_size[gone].forward_pass is None:
                    del self.by_size[gone]

    def _make_room(self, size: Hashable) -> bool:
        """Whether another size may be recorded; one that occurs less goes."""
        recorded = [known for known, one in self.by_size.items() if one.forward_pass is not None]
        if len(recorded) < RECORDED_SIZES:
            return True
        rarest = min(recorded, key=lambda known: self.counts.get(known, 0))
        leads = self.counts.get(size, 0) > LEAD * self.counts.get(rarest, 0)
        if not (leads and self.by_size[rarest].ready()):
            return False
        del self.by_size[rarest]
        return True
