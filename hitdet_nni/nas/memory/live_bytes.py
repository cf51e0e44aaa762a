"""Bytes of the tensors alive while something is computed, and their largest sum."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within the context the tensors that operators make are counted from their making to their end.

    A storage counts once, however many tensors share it, and for as long as anything holds it: a variable, autograd for
    its backward pass, a parameter as its gradient. Works on tensors without data as on others.

    Args:
        known: Tensors that are there already and do not count.

    Attributes:
        now: Bytes alive.
        peak: The largest that ``now`` has been.
        gradients: Bytes that :meth:`count_gradient` was told of.
        gradients_at_peak: What ``gradients`` was when ``now`` was largest.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.gradients = self.gradients_at_peak = 0
        self._paused = False
        self._alive = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count what it made."""
        result = func(*args, **(kwargs or {}))
        if not self._paused:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self._count(leaf)
        return result

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing new within the context."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def count_gradient(self, size: int) -> None:
        """Say that ``size`` of the bytes alive are gradients of parameters."""
        self.gradients += size

    def forget_peak(self) -> None:
        """Let ``peak`` start again from ``now``."""
        self.peak, self.gradients_at_peak = self.now, self.gradients

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._alive:
            return
        self._alive.add(address)
        self.now += size
        if self.now > self.peak:
            self.forget_peak()
        weakref.finalize(storage, self._end, address, size)

    def _end(self, address: int, size: int) -> None:
        self._alive.discard(address)
        self.now -= size
