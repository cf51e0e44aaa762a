"""Which code computes the candidates of a fused mixed layer: a function of the device alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hitdet_nni.engine import distributed
from hitdet_nni.kernels.gpu.availability import programs_run
from hitdet_nni.nas.fused.dense_candidate import DensePass
from hitdet_nni.nas.fused.depthwise_group import GroupPass


def uses_triton(x: Tensor) -> bool:
    """Whether the programs of :mod:`hitdet_nni.kernels.gpu` compute a layer with this input, ``[N, C, H, W]``.

    Tensors without data (of the device ``meta``) stand for those of a GPU.
    """
    return (x.is_cuda or x.is_meta) and programs_are_used()


def programs_are_used() -> bool:
    """Whether the programs compute layers on this process's GPU; without one, whether they would on another."""
    return not _PROGRAMS_MISSING and programs_run()


def agree_on_programs(device: torch.device) -> None:
    """Use programs in no process of the group where one of them cannot: their passes exchange other sums.

    Args:
        device: Where this process computes.
    """
    if device.type == "cuda" and not all(distributed.gather(programs_are_used())):
        _PROGRAMS_MISSING.add(device.type)


_PROGRAMS_MISSING: set[str] = set()
"""Kinds of device for which some process of the group has no programs."""


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Start programs and recordings on the device of a tensor of any shape, which need not be the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def computed_on_cpu(x: Tensor) -> bool:
    """Whether the CPU's own algorithms compute a layer with this input, ``[N, C, H, W]``."""
    return x.device.type == "cpu" and not uses_triton(x)


def passes(x: Tensor) -> tuple[type[GroupPass], type[DensePass]]:
    """Return the classes for groups of depthwise and for dense candidates, for inputs like ``x`` of any shape."""
    if not uses_triton(x):
        return GroupPass, DensePass
    from hitdet_nni.nas.fused.triton_passes import TritonDensePass, TritonGroupPass  # noqa: PLC0415 - not everywhere

    return TritonGroupPass, TritonDensePass


def rounding_of_convolutions() -> tuple[str, Any]:
    """Return how a GPU rounds what convolutions multiply: the name that torch gives this setting, and its value.

    torch has two names for it, and refuses to read the older one, of convolutions or of products, where the newer one
    has been used.
    """
    convolutions: Any = torch.backends.cudnn
    try:
        _ = torch.backends.cuda.matmul.allow_tf32
        return "allow_tf32", convolutions.allow_tf32
    except RuntimeError:
        return "fp32_precision", convolutions.conv.fp32_precision


@contextmanager
def precision_of_convolutions(device: torch.device) -> Iterator[None]:
    """Round products of matrices on a GPU as convolutions are rounded there: to TF32, unless that is switched off.

    1x1 convolutions are products here; in the candidates' own modules cuDNN computes them.
    """
    if device.type != "cuda":
        yield
        return
    products = torch.backends.cuda.matmul
    name, rounding = rounding_of_convolutions()
    before = getattr(products, name)
    setattr(products, name, rounding)
    try:
        yield
    finally:
        setattr(products, name, before)
