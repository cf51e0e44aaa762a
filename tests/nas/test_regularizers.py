"""The column-sparse term of Eq. 4 and the entropy that is watched."""

from __future__ import annotations

import math

import pytest
import torch

from hitdet_nni.nas.regularizers import column_sparsity, group_by_component, mean_entropy


def test_column_sparsity_and_its_gradient():
    alpha = torch.tensor([[3.0, 1.0, -2.0], [4.0, 0.0, 1.5]], dtype=torch.float64)
    rows = [row.clone().requires_grad_() for row in alpha]
    value = column_sparsity(rows)
    norms = [5.0, 1.0, 2.5]
    assert value.item() == pytest.approx(sum(norms))
    value.backward()
    torch.testing.assert_close(torch.stack([row.grad for row in rows]), alpha / torch.tensor(norms))


def test_a_zero_column_has_no_gradient():
    rows = [torch.tensor([0.0, 2.0], requires_grad=True) for _ in range(3)]
    column_sparsity(rows).backward()
    for row in rows:
        torch.testing.assert_close(row.grad, torch.tensor([0.0, 1 / math.sqrt(3)]))


def test_gradient_is_the_finite_difference():
    torch.manual_seed(0)
    rows = [torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(lambda *values: column_sparsity(values), rows)


def test_groups_are_components_in_label_order():
    values = {"neck/l01": 3, "backbone/l02": 2, "backbone/l01": 1, "backbone/l10": 4}
    assert group_by_component(values) == {"backbone": [1, 2, 4], "neck": [3]}


def test_mean_entropy():
    uniform, decided = torch.full((8,), 1 / 8), torch.eye(4)[2]
    assert mean_entropy([uniform]) == pytest.approx(1)
    assert mean_entropy([decided]) == 0
    assert mean_entropy([torch.ones(1)]) == 0
    assert mean_entropy([uniform, decided, torch.full((3,), 1 / 3)]) == pytest.approx(2 / 3)
    quarter = torch.tensor([0.25, 0.75])
    assert mean_entropy([quarter]) == pytest.approx(-(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)))
