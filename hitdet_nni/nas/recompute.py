"""Calls whose activations are computed again in backward instead of being kept, and that count only once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import TracebackType
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from hitdet_nni.model.level_norm import LevelBatchNorm2d


def recomputed(function: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call ``function(module, *args, **kwargs)``; only the arguments are kept for backward, which calls it once more.

    The second call sees the pyramid level of the first and leaves no trace: running statistics move once. Values and
    gradients are those of a plain call, bit for bit.

    Args:
        function: What is computed.
        module: Holds every parameter and buffer that ``function`` uses.
        args: Further arguments.
        kwargs: Named arguments.

    Source:
        Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016.
    """
    contexts = partial(_contexts, module)
    return checkpoint(function, module, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first and of the second call; made when the first one starts."""
    return nullcontext(), WithoutTrace(module)


class WithoutTrace(AbstractContextManager[None]):
    """Within the context a module works on copies of its buffers, at the pyramid level of the context's making."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.levels = _levels(module)

    def __enter__(self) -> None:
        self.levels_before = _levels(self.module)
        self.buffers = [
            (part, name, buffer)
            for part in self.module.modules()
            if part.training  # others leave their buffers alone
            for name, buffer in part.named_buffers(recurse=False)
        ]
        for part, name, buffer in self.buffers:
            setattr(part, name, buffer.clone())
        _select(self.levels)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for part, name, buffer in self.buffers:
            setattr(part, name, buffer)
        _select(self.levels_before)


def _levels(module: nn.Module) -> list[tuple[LevelBatchNorm2d, int, Counter[int]]]:
    norms = (part for part in module.modules() if isinstance(part, LevelBatchNorm2d))
    return [(norm, norm.level, norm.batches.copy()) for norm in norms]


def _select(levels: list[tuple[LevelBatchNorm2d, int, Counter[int]]]) -> None:
    for norm, level, batches in levels:
        norm.level, norm.batches = level, batches
