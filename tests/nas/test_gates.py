"""Positive gates and the proximal step of Eq. 4: closed forms, and what the step is the minimum of."""

from __future__ import annotations

import pytest
import torch
from nni.mutable import label_scope
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn

from hitdet_nni.errors import InputError
from hitdet_nni.nas.choices import find_choices, group_columns
from hitdet_nni.nas.gates import PositiveGates, open_gates, shrink_columns
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer
from hitdet_nni.nas.strategy import ColumnSparseDARTS

NAMES = ["a", "b", "c"]


class Layers(ModelSpace):
    """Two layers of one component, whose candidates come in different orders."""

    def __init__(self) -> None:
        super().__init__()
        with label_scope("head"):
            for number, names in enumerate((NAMES, ["c", "a", "b"]), 1):
                choice = LayerChoice({name: nn.Linear(4, 4) for name in names}, label=f"l0{number}")
                self.add_module(f"l0{number}", choice)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.l02(self.l01(x))


@pytest.fixture
def supernet() -> Layers:
    space = Layers()
    ColumnSparseDARTS().mutate_model(space)
    return space


@pytest.fixture
def model(supernet) -> list[ColumnSparseMixedLayer]:
    return [supernet.l01, supernet.l02]


def test_open_gates_weigh_as_a_uniform_softmax(supernet, model):
    x = torch.randn(5, 4)
    for one in model:
        nn.init.zeros_(one.alpha)
    before = [one(x) for one in model]
    open_gates(supernet)
    for one, output in zip(model, before, strict=True):
        assert one.alpha.tolist() == [1.0, 1.0, 1.0]
        assert torch.allclose(one.probabilities(), torch.full((3,), 1 / 3))
        assert torch.allclose(one(x), output, atol=1e-6)


def test_a_gate_at_zero_can_open_again():
    alpha = torch.tensor([2.0, 0.5, 0.0], requires_grad=True)
    weights = PositiveGates()(alpha)
    assert weights.tolist() == pytest.approx([2 / 3, 1 / 6, 0.0])
    weights.sum().backward()
    assert alpha.grad.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def test_what_is_left_weighs_together_as_much_as_all_did(supernet, model):
    open_gates(supernet)
    model[0].prune_to(["a", "c"])
    assert model[0].probabilities().tolist() == [0.5, 0.5]
    assert model[0].distribution().tolist() == [0.5, 0.0, 0.5]


def test_shares_sum_to_one_whatever_the_gates(supernet, model):
    open_gates(supernet)
    with torch.no_grad():
        model[0].alpha.copy_(torch.tensor([3.0, 0.0, 1.0]))
    assert model[0].distribution().tolist() == pytest.approx([0.75, 0.0, 0.25])
    with torch.no_grad():
        model[0].alpha.zero_()
    assert model[0].distribution().tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def columns_of(model: list[ColumnSparseMixedLayer]) -> torch.Tensor:
    """The matrix of Eq. 4 ``[L, N]``, operators in the order of ``NAMES``."""
    return torch.stack([one.alpha.detach()[[one.names.index(name) for name in NAMES]] for one in model])


def test_step_shortens_every_column_by_the_same_length(supernet, model):
    open_gates(supernet)
    with torch.no_grad():
        model[0].alpha.copy_(torch.tensor([3.0, 0.3, -1.0]))  # a, b, c
        model[1].alpha.copy_(torch.tensor([2.0, 4.0, 0.4]))  # c, a, b
    shrink_columns(group_columns(find_choices(supernet).values()), 0.6)
    found = columns_of(model)
    # Columns (3, 4), (0.3, 0.4) and (-1 -> 0, 2) have norms 5, 0.5 and 2.
    expected = torch.tensor([[3 * 4.4 / 5, 0.0, 0.0], [4 * 4.4 / 5, 0.0, 2 * 1.4 / 2]])
    assert torch.allclose(found, expected)
    assert torch.equal(found[:, 1], torch.zeros(2))


def test_step_is_the_proximal_map_of_the_columns_norms(supernet, model):
    """No positive matrix nearby has a smaller ``|x - v|^2 / 2 + length * sum of the columns' norms``."""
    open_gates(supernet)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for one in model:
            one.alpha.copy_(torch.randn(3, generator=generator))
    start, length = columns_of(model).double(), 0.3

    def objective(x: torch.Tensor) -> float:
        return float((x - start).square().sum() / 2 + length * x.norm(dim=0).sum())

    shrink_columns(group_columns(find_choices(supernet).values()), length)
    found = columns_of(model).double()
    best = objective(found)
    for _ in range(500):
        other = (found + 0.05 * torch.randn(found.shape, generator=generator, dtype=torch.double)).clamp(min=0)
        assert objective(other) >= best - 1e-6


def test_no_step_for_no_weight_but_negative_gates_close(supernet, model):
    open_gates(supernet)
    with torch.no_grad():
        model[0].alpha.copy_(torch.tensor([0.5, -0.5, 2.0]))
    shrink_columns(group_columns(find_choices(supernet).values()), 0.0)
    assert model[0].alpha.tolist() == [0.5, 0.0, 2.0]


def test_a_space_without_layers_has_no_gates():
    with pytest.raises(InputError, match=r"gates.*no LayerChoice"):
        open_gates(nn.Linear(2, 2))


def test_strategy_opens_the_gates_of_a_new_supernet():
    space = Layers()
    ColumnSparseDARTS(sparsity_weight=0.5, gates="positive").mutate_model(space)
    assert space.l01.alpha.tolist() == space.l02.alpha.tolist() == [1.0, 1.0, 1.0]
