"""Convolutions and matrix products seen where torch dispatches them, whichever module or function asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torchvision.ops  # noqa: F401  registers its operations
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry


def _deform_conv_flops(args: Sequence[Any], result: Tensor) -> int:
    """Count every weight once per output position (N, out, H, W); sampling is not counted."""
    return int(args[1].numel()) * (result.numel() // result.size(1))


def _no_flops(args: Sequence[Any], result: Tensor) -> int:
    """Count nothing of samples between pixels: they are left out of both conventions."""
    return 0


_OURS: Mapping[Any, Callable[[Sequence[Any], Tensor], int]] = {
    torch.ops.torchvision.deform_conv2d: _deform_conv_flops,
    torch.ops.aten.grid_sampler_2d: _no_flops,
}
"""Operations that torch's table of products lacks and that take long: multiply-adds from arguments and result."""


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells of every product, and returns zeros in its place."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tell = tell

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call an operation of torch, unless it is a product."""
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet not in flop_registry and packet not in _OURS:
            return func(*args, **kwargs)
        given = next(each for each in args if isinstance(each, Tensor))
        args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (tuple(args), kwargs))
        result = func(*args, **kwargs)
        if packet in _OURS:
            self.tell(_OURS[packet](args, result))
        else:  # torch counts multiplications and additions
            self.tell(flop_registry[packet](*args, **kwargs, out_val=result) // 2)
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
