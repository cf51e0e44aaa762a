"""Products of matrices, by the library that is fast for them.

On a CPU torch's own products are MKL's; those of oneDNN, which torch holds too and calls for linear layers that it has
compiled, are twice as fast on an AMD processor with vectors of 512 bits. Both are exact but for rounding. Figures:
docs/fused.md.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=1)
def onednn_multiplies() -> bool:
    """Whether this build of torch has oneDNN's linear layer, and it gives what it should.

    It is no public function: versions of torch differ in whether it sees that a weight is a transposed matrix.
    """
    left, right = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(3, 4)  # [6] -> [2, 3], [12] -> [3, 4]
    shift, total = torch.arange(4.0), torch.arange(8.0).view(2, 4)  # [8] -> [2, 4]
    try:
        shifted = torch.ops.mkldnn._linear_pointwise(left, right.t(), shift, "none", [], "")
        summed = torch.ops.mkldnn._linear_pointwise.binary(left, total, right.t(), None, "add")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(shifted, left @ right + shift) and torch.equal(summed, left @ right + total)


LONG_PRODUCT = 256
"""Rows from which a correlation of their columns is faster by oneDNN, copies included."""

LOOPED_PRODUCT = 2**21
"""Multiply-adds of a product from which several are faster one by one than together, which only MKL computes."""


def _by_onednn(matrix: Tensor) -> bool:
    return matrix.device.type == "cpu" and matrix.dtype == torch.float32 and onednn_multiplies()


def _as_weight(right: Tensor) -> Tensor:
    """Return a right factor ``[K, J]`` as a linear layer's weight; a copy where neither order is consecutive.

    oneDNN has no fast code for matrices with gaps.
    """
    weight = right.t()
    return weight if right.is_contiguous() or weight.is_contiguous() else weight.contiguous()


def _correlates_by_onednn(left: Tensor) -> bool:
    return _by_onednn(left) and len(left) >= LONG_PRODUCT


def multiply(left: Tensor, right: Tensor, shift: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Return the product of ``[I, K]`` and ``[K, J]``, with ``shift``, ``[J]``, added to each row.

    It is written to ``out``, ``[I, J]``, where that is given.
    It is fastest where ``left`` is contiguous and ``right`` is so or the transpose of such a matrix. oneDNN would apply
    a ReLU, too, but its ReLU of NaN is zero: a search that diverges would hide it.
    """
    if _by_onednn(left):
        result: Tensor = torch.ops.mkldnn._linear_pointwise(left, _as_weight(right), shift, "none", [], "")
        return result if out is None else out.copy_(result)
    return torch.mm(left, right, out=out) if shift is None else torch.addmm(shift, left, right, out=out)


def multiply_each(left: Tensor, right: Tensor) -> Tensor:
    """Return the products of ``[R, I, K]`` and ``[R, K, J]``, ``[R, I, J]``; of large ones each by :func:`multiply`."""
    rows, height, depth = left.shape
    if not _by_onednn(left) or height * depth * right.shape[2] < LOOPED_PRODUCT:
        return torch.bmm(left, right)
    products = left.new_empty(rows, height, right.shape[2])
    for product, one, other in zip(products.unbind(), left.unbind(), right.unbind(), strict=True):
        product.copy_(multiply(one, other))
    return products


def correlate(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Write ``left^T @ right``, of ``[P, I]`` and ``[P, J]``, to ``out``, which may be of another type.

    oneDNN wants the columns of ``left`` consecutive in memory and cannot write to ``out``; few rows are not worth that.
    """
    if out.dtype != left.dtype or _correlates_by_onednn(left):
        out.copy_(multiply(left.t(), right))
    else:
        torch.mm(left.t(), right, out=out)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Compute ``total + left @ right``, of ``[I, K]`` and ``[K, J]``; in place of ``total``, maybe of a finer type."""
    if total.dtype != left.dtype:
        return total.add_(left @ right)
    if _by_onednn(left):
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(left, total, _as_weight(right), None, "add")
        return result
    return total.addmm_(left, right)


def by_columns(matrix: Tensor) -> Tensor:
    """Return the same ``[P, I]`` as left factor of several correlations: in the order that they would copy it to."""
    return matrix.t().contiguous().t() if _correlates_by_onednn(matrix) else matrix
