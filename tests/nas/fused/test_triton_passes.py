"""The fused mixed layer by Triton's programs, interpreted: equal to the candidates' plain weighted sum."""

from __future__ import annotations

import pytest
import torch
from test_fused import LAYERS, NORMS, build, compare, fused
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
