"""Which code computes the candidates of a fused mixed layer: a function of the device alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hitdet_nni.kernels.gpu.launch import triton_is_there
from hitdet_nni.nas.fused.dense_candidate import DensePass
from hitdet_nni.nas.fused.depthwise_group import GroupPass


def uses_triton(x: Tensor) -> bool:
    """Whether the programs of :mod:`hitdet_nni.kernels.gpu` compute a layer with this input, ``[N, C, H, W]``.

    Tensors without data (of the device ``meta``) stand for those of a GPU.
    """
    return (x.is_cuda or x.is_meta) and triton_is_there()


def computed_on_cpu(x: Tensor) -> bool:
    """Whether the CPU's own algorithms compute a layer with this input, ``[N, C, H, W]``."""
    return x.device.type == "cpu" and not uses_triton(x)


def passes(x: Tensor) -> tuple[type[GroupPass], type[DensePass]]:
    """Return the classes for groups of depthwise and for dense candidates, for inputs like ``x`` of any shape."""
    if not uses_triton(x):
        return GroupPass, DensePass
    from hitdet_nni.nas.fused.triton_passes import TritonDensePass, TritonGroupPass  # noqa: PLC0415 - not everywhere

    return TritonGroupPass, TritonDensePass


@contextmanager
def precision_of_convolutions(device: torch.device) -> Iterator[None]:
    """Round products of matrices on a GPU as convolutions are rounded there: to TF32, unless that is switched off.

    1x1 convolutions are products here; in the candidates' own modules cuDNN computes them.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
