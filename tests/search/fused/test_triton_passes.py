"""The fused mixed layer by Triton's programs, interpreted: equal to the candidates' plain weighted sum."""

from __future__ import annotations

import pytest
import torch
from test_fused import LAYERS, NORMS, build, compare, fused
from torch import nn

from hitdet_nni.operators.registry import OPERATORS
from hitdet_nni.search.fused import SAVINGS, backend, function, plan
from hitdet_nni.search.fused.depthwise_group import GroupPass

NAMES = ("ir_k3_d1_e1", "ir_k3_d1_e3", "sep_k3_d2", "conv_k3_d1")


@pytest.fixture(autouse=True)
def on_triton(monkeypatch):
    """Take inputs on a CPU for such on a GPU."""
    for module in (backend, function):
        monkeypatch.setattr(module, "uses_triton", lambda x: True)


@pytest.mark.parametrize(
    ("layer", "saving", "norms"),
    [(LAYERS[0], "slim", "batch"), (LAYERS[2], "mid", "some frozen"), (LAYERS[3], "lean", "batch")],
)
def test_equals_the_plain_sum(layer, saving, norms):
    compare(NAMES, layer, saving, torch.float64, norms)


def test_expansions_of_small_maps(monkeypatch):
    """Normalised after their product rather than from the input's covariance."""
    monkeypatch.setattr(plan, "COVARIANCE_PIXELS", 1e9)
    compare(NAMES[:3], (6, 6, 1, (2, 4, 5)), "slim", torch.float64)


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
@pytest.mark.parametrize("saving", SAVINGS)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_operator(layer, saving, norms):
    compare(OPERATORS, layer, saving, torch.float64, norms)
