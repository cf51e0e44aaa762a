"""The fused mixed layer by Triton's programs, interpreted: equal to the candidates' plain weighted sum."""

from __future__ import annotations

import pytest
import torch
from test_fused import LAYERS, NORMS, assert_equal, build, compare, fused, plain
from torch import nn

from hitdet_nni.nas.fused import FUSED_MODES, backend, function, plan
from hitdet_nni.nas.fused.depthwise_group import GroupPass
from hitdet_nni.operators.registry import OPERATORS

NAMES = ("ir_k3_d1_e1", "ir_k3_d1_e3", "sep_k3_d2", "conv_k3_d1")


@pytest.fixture(autouse=True)
def on_triton(monkeypatch):
    """Take inputs on a CPU for such on a GPU."""
    for module in (backend, function):
        monkeypatch.setattr(module, "uses_triton", lambda x: True)


@pytest.mark.parametrize(
    ("layer", "activations", "norms"),
    [(LAYERS[0], "fused-low", "batch"), (LAYERS[2], "fused", "some frozen"), (LAYERS[3], "fused-min", "batch")],
)
def test_equals_the_plain_sum(layer, activations, norms):
    compare(NAMES, layer, activations, torch.float64, norms)


def test_expansions_of_small_maps(monkeypatch):
    """Normalised after their product rather than from the input's covariance."""
    monkeypatch.setattr(plan, "COVARIANCE_PIXELS", 1e9)
    compare(NAMES[:3], (6, 6, 1, (2, 4, 5)), "fused-low", torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_an_input_that_is_a_slice_of_channels(name):
    """Whose pixels are further apart than it has channels."""
    torch.manual_seed(4)
    both = torch.randn(2, 12, 5, 6, dtype=torch.float64).to(memory_format=torch.channels_last)
    weights, grad = torch.ones(1, dtype=torch.float64), torch.randn(2, 6, 5, 6, dtype=torch.float64)
    found = []
    for way in (fused, plain):
        modules = build([name], 6, 6, 1, torch.float64)
        x = both.clone().requires_grad_()
        y = way(modules)(x[:, 3:9], weights)
        y.backward(grad)
        gradients = {name: parameter.grad for name, parameter in modules.named_parameters()}
        found.append({"y": y.detach(), "x": x.grad, **gradients})
    assert_equal(*found, 1e-9)


def test_the_programs_do_compute(monkeypatch):
    def refuse(*args):
        raise AssertionError("computed by the CPU's algorithms")

    monkeypatch.setattr(GroupPass, "forward", refuse)
    modules = build(NAMES[:1], 6, 6, 1, torch.float64)
    weights = nn.Parameter(torch.ones(1, dtype=torch.float64))
    y = fused(modules)(torch.randn(1, 6, 4, 4, dtype=torch.float64), weights)
    assert y.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("activations", FUSED_MODES)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_operator(layer, activations, norms):
    compare(OPERATORS, layer, activations, torch.float64, norms)
