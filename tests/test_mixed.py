"""The mixed layer: NNI's own where nothing is removed, and what removal does."""

from __future__ import annotations

import copy

import pytest
import torch
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedLayer
from nni.nas.strategy import DARTS

from hitdet_nni.model.searchable import searched_layer
from hitdet_nni.search.mixed import ColumnSparseMixedLayer
from hitdet_nni.search.strategy import ColumnSparseDARTS

NAMES = ["ir_k3_d1_e3", "sep_k3_d1", "conv_k3_d2", "sep_k5_d1"]
ALPHA = [0.3, -0.2, 0.9, 0.1]
LEFT = ["ir_k3_d1_e3", "sep_k5_d1"]


class OneLayer(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = searched_layer("backbone", 0, NAMES, 4, 4, 1)


def mixed(strategy=ColumnSparseDARTS, seed=0):
    torch.manual_seed(seed)
    layer = strategy().mutate_model(OneLayer()).layer
    layer._arch_alpha.data.copy_(torch.tensor(ALPHA))
    return layer


@pytest.fixture
def x():
    torch.manual_seed(5)
    return torch.randn(2, 4, 6, 6, requires_grad=True)


def test_equals_the_stock_layer_when_nothing_is_removed(x):
    results = []
    for strategy, kind in ((ColumnSparseDARTS, ColumnSparseMixedLayer), (DARTS, DifferentiableMixedLayer)):
        layer, given = mixed(strategy), x.detach().clone().requires_grad_()
        assert type(layer) is kind
        output = layer(given)
        output.square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
        results.append((output, given.grad, gradients, layer.export({}), layer.export_probs({})))
    ours, stock = results
    assert torch.equal(ours[0], stock[0])
    assert torch.equal(ours[1], stock[1])
    assert ours[2].keys() == stock[2].keys()
    assert all(torch.equal(gradient, stock[2][name]) for name, gradient in ours[2].items())
    assert ours[3:] == stock[3:]


def test_is_the_weighted_sum(x):
    """Eq. 5 written out."""
    layer = mixed().eval()
    weights = torch.tensor(ALPHA).exp() / torch.tensor(ALPHA).exp().sum()
    expected = sum(weight * layer[name](x) for weight, name in zip(weights, NAMES, strict=True))
    torch.testing.assert_close(layer(x), expected)


def test_removed_candidates_have_no_part(x):
    layer = mixed().eval()
    keys = [key for key in layer.state_dict() if not key.endswith("_extra_state")]
    calls = []
    for name in NAMES:
        layer[name].register_forward_hook(lambda *_, name=name: calls.append(name))
    layer.keep_only(LEFT[::-1])
    assert layer.active_names == LEFT

    weights = torch.softmax(torch.tensor([ALPHA[0], ALPHA[3]]), 0)
    torch.testing.assert_close(layer.probabilities(), weights)
    assert layer.all_probabilities().tolist() == pytest.approx([weights[0].item(), 0, 0, weights[1].item()])

    output = layer(x)
    assert calls == LEFT
    torch.testing.assert_close(output, weights[0] * layer[LEFT[0]](x) + weights[1] * layer[LEFT[1]](x))

    output.square().sum().backward()
    assert layer._arch_alpha.grad[1:3].tolist() == [0, 0]
    assert (layer._arch_alpha.grad[[0, 3]] != 0).all()
    for name in NAMES:
        assert all((parameter.grad is not None) == (name in LEFT) for parameter in layer[name].parameters())
    assert [key for key in layer.state_dict() if not key.endswith("_extra_state")] == keys


def test_gradient_reaches_the_alphas_through_all_probabilities():
    layer = mixed()
    layer.keep_only(LEFT)
    layer.all_probabilities()[0].backward()
    assert (layer._arch_alpha.grad[[0, 3]] != 0).all()
    assert layer._arch_alpha.grad[1:3].tolist() == [0, 0]


def test_export_names_only_those_in_the_race():
    layer = mixed()
    assert layer.export({}) == {"backbone/l01": "conv_k3_d2"}
    layer.keep_only(LEFT)
    assert layer.export({}) == {"backbone/l01": "ir_k3_d1_e3"}
    (probabilities,) = layer.export_probs({}).values()
    assert list(probabilities) == LEFT
    assert sum(probabilities.values()) == pytest.approx(1)
    assert layer.export({"backbone/l01": "x"}) == layer.export_probs({"backbone/l01": "x"}) == {}


def test_state_dict_restores_the_race(x):
    layer = mixed().eval()
    layer.keep_only(LEFT)
    fresh = mixed(seed=9).eval()
    fresh.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert fresh.active_names == LEFT
    torch.testing.assert_close(fresh(x), layer(x))
    fresh.keep_only(LEFT[:1])
    assert fresh.all_probabilities().tolist() == [1, 0, 0, 0]
    assert layer.active_names == LEFT


def test_state_survives_a_weights_only_checkpoint(tmp_path):
    layer = mixed()
    layer.keep_only(LEFT)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    fresh = mixed()
    fresh.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    assert fresh.active_names == LEFT


@pytest.mark.parametrize(("names", "complaint"), [([], "nothing"), (["sep_k3_d1"], "sep_k3_d1"), (["skip"], "skip")])
def test_keep_only_refuses(names, complaint):
    layer = mixed()
    layer.keep_only(LEFT)
    with pytest.raises(ValueError, match=f"backbone/l01.*{complaint}.*ir_k3_d1_e3"):
        layer.keep_only(names)
    assert layer.active_names == LEFT
