"""Convolutions and matrix products seen where torch dispatches them, whichever module or function asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry


class _Products(TorchDispatchMode):
    """Tells of every product, and returns zeros in its place."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call an operation of torch, unless it is a product."""
        kwargs = kwargs or {}
        formula = flop_registry.get(func.overloadpacket)
        if formula is None:
            return func(*args, **kwargs)
        given = next(each for each in args if isinstance(each, Tensor))
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (tuple(args), kwargs))
        result = func(*args, **kwargs)
        self.tell(formula(*args, **kwargs, out_val=result) // 2)  # torch counts multiplications and additions
        return torch.zeros_like(result, device=given.device)


@contextmanager
def products(tell: Callable[[int], None]) -> Iterator[None]:
    """Leave convolutions and matrix products uncomputed within the context: each results in zeros.

    What depends on shapes alone is as it would be; the time is that of all other operations. Attention is taken apart
    into its two products.

    Args:
        tell: Called with the multiply-adds of each.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _Products(tell):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
