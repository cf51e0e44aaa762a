"""Products of matrices: the same numbers by either library, in every order of memory."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from hitdet_nni.kernels import products

KINDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
ORDERS = {
    "contiguous": lambda matrix: matrix.clone(),
    "transposed": lambda matrix: matrix.t().clone().t(),
    "with gaps": lambda matrix: torch.cat([matrix, matrix], 1)[:, : matrix.shape[1]],
    "every other": lambda matrix: matrix.repeat_interleave(2, 1)[:, ::2],
}


@pytest.fixture(params=["oneDNN", "MKL"])
def library(request, monkeypatch):
    assert products.onednn_multiplies()
    monkeypatch.setattr(products, "onednn_multiplies", lambda: request.param == "oneDNN")


def draw(*shape, kind):
    return torch.randn(shape, dtype=torch.float64).to(kind)


def assert_near(computed, expected):
    tolerance = KINDS[computed.dtype] * float(expected.abs().max())
    torch.testing.assert_close(computed.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("right_order", ORDERS)
@pytest.mark.parametrize("left_order", ORDERS)
@pytest.mark.parametrize("sizes", [(33, 20, 17), (1, 5, 3), (5, 1, 3), (5, 3, 1)])
def test_products(sizes, left_order, right_order, kind):
    torch.manual_seed(0)
    rows, depth, columns = sizes
    left, right = ORDERS[left_order](draw(rows, depth, kind=kind)), ORDERS[right_order](draw(depth, columns, kind=kind))
    shift, total = draw(columns, kind=kind), draw(rows, columns, kind=kind)
    expected = left.double() @ right.double()
    assert_near(products.multiply(left, right), expected)
    assert_near(products.multiply(left, right, shift), expected + shift.double())
    assert_near(products.add_product(total.clone(), left, right), expected + total.double())


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("long", [0, 256])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("right_order", ORDERS)
@pytest.mark.parametrize("left_order", ORDERS)
def test_correlations(left_order, right_order, kind, long, monkeypatch):
    monkeypatch.setattr(products, "LONG_PRODUCT", long)
    torch.manual_seed(0)
    left, right = ORDERS[left_order](draw(33, 7, kind=kind)), ORDERS[right_order](draw(33, 5, kind=kind))
    for given in (left, products.by_columns(left)):
        for out in (torch.full((7, 5), torch.nan, dtype=kind), torch.full((5, 9), torch.nan, dtype=kind)[:, 1:8].t()):
            products.correlate(out, given, right)
            assert_near(out, left.double().t() @ right.double())


@pytest.mark.usefixtures("library")
def test_sums_and_results_of_a_finer_type():
    left, right, total = (draw(9, 9, kind=torch.bfloat16) for _ in range(3))
    expected = left.double() @ right.double()
    summed = products.add_product(total.float(), left, right)
    assert summed.dtype == torch.float32
    torch.testing.assert_close(summed.double(), expected + total.double(), rtol=0.02, atol=0.05)
    out = torch.empty(9, 9)
    products.correlate(out, left.t(), right)
    torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.05)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("least", [0, 2**20])
@pytest.mark.parametrize("kind", KINDS)
def test_several_products(kind, least, monkeypatch):
    monkeypatch.setattr(products, "LOOPED_PRODUCT", least)
    left, right = draw(4, 7, 6, kind=kind), draw(4, 5, 6, kind=kind)
    assert_near(products.multiply_each(left, right.mT), left.double() @ right.double().mT)
    assert_near(products.multiply_each(left.mT, left), left.double().mT @ left.double())


def refuse(*_):
    raise TypeError("other arguments")


@pytest.mark.parametrize(
    ("linear", "binary"),
    [
        (refuse, lambda left, other, weight, *_: left @ weight.t() + other),
        (lambda left, weight, shift, *_: left @ weight.t() + shift, refuse),
        # blind to the order of the weight in memory
        (lambda left, weight, shift, *_: left @ weight.t().reshape(4, 3).t() + shift, lambda left, other, *_: other),
        (lambda left, weight, shift, *_: left @ weight.t() + shift, lambda left, other, *_: other),
    ],
)
def test_a_torch_whose_onednn_does_otherwise_goes_without(linear, binary, monkeypatch):
    works = products.onednn_multiplies.__wrapped__
    assert works()
    linear = partial(linear)
    linear.binary = binary
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(_linear_pointwise=linear))
    assert not works()
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert not works()


def test_matrices_with_gaps_are_copied_for_onednn():
    """It has no fast code for them."""
    weight = torch.zeros(6, 4)
    for right in (weight.t(), weight.t().contiguous()):
        assert products._as_weight(right).data_ptr() == right.data_ptr()
    assert products._as_weight(weight.t()[:3]).is_contiguous()
