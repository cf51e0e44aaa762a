"""The fused layer in two processes that share the statistics of batch normalisation: the whole batch in one."""

from __future__ import annotations

import pytest
import torch
from group import run_group
from test_fused import build, draw, fused, plain, results

from hitdet_nni.engine import distributed
from hitdet_nni.engine.synced_batch_norm import apply_batch_norm
from hitdet_nni.nas.fused import backend, function, plan
from hitdet_nni.operators.registry import OPERATORS

FEW = ("ir_k3_d1_e1", "ir_k3_d1_e3", "sep_k3_d2", "conv_k3_d1")
LAYERS = ((6, 6, 1, (5, 7, 6)), (6, 8, 2, (5, 7, 6)))
SPLIT = 2
"""Maps of the first process; the second has the other three."""
WAYS = {
    "fused-low": {},
    "fused-min": {"activations": "fused-min"},
    "fused, small maps": {"activations": "fused", "small": True},
    "fused-low, programs": {"names": FEW, "programs": True},
    "fused, small maps, programs": {"names": FEW[:3], "activations": "fused", "small": True, "programs": True},
}

pytestmark = pytest.mark.slow


def share(
    rank, names=OPERATORS, activations="fused-low", small=False, programs=False, alphas_only=False, layer=LAYERS[0]
):
    """Outputs, gradients and buffers of a step with one process's maps, or with all (``rank`` None)."""
    in_channels, out_channels, stride, shape = layer
    modules = build(names, in_channels, out_channels, stride, torch.float64)
    x, weights, grad = draw(in_channels, out_channels, stride, shape, len(names), torch.float64)
    if rank is None:
        return results(plain(modules), modules, x, weights, grad)
    own = slice(0, SPLIT) if rank == 0 else slice(SPLIT, None)
    apply_batch_norm(modules, "synced")
    modules.requires_grad_(not alphas_only)
    before = plan.COVARIANCE_PIXELS, backend.uses_triton, function.uses_triton
    plan.COVARIANCE_PIXELS = 1e9 if small else before[0]
    if programs:
        backend.uses_triton = function.uses_triton = lambda x: True
    try:
        return results(fused(modules, activations), modules, x[own], weights, grad[own])
    finally:
        plan.COVARIANCE_PIXELS, backend.uses_triton, function.uses_triton = before


def collect():
    rank = distributed.rank()
    found = {
        f"{way} {number}": share(rank, layer=layer, **kind)
        for way, kind in WAYS.items()
        for number, layer in enumerate(LAYERS)
    }
    for way in ("fused-low", "fused-low, programs"):
        found[f"alphas by {way}"] = share(rank, alphas_only=True, **WAYS[way])
    return found


@pytest.fixture(scope="module")
def shares(tmp_path_factory):
    """What each of two processes found."""
    return run_group(collect, tmp_path_factory.mktemp("group"))


def near(found, expected):
    scale = max(float(expected.double().abs().max()), 1e-2)
    torch.testing.assert_close(found.double() / scale, expected.double() / scale, rtol=0, atol=1e-9)


@pytest.mark.parametrize("number", range(len(LAYERS)))
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_are_one_with_the_whole_batch(way, number, shares):
    whole = share(None, WAYS[way].get("names", OPERATORS), layer=LAYERS[number])
    first, second = (found[f"{way} {number}"] for found in shares)
    for name, expected in whole.items():
        if name in ("y", "x"):
            near(torch.cat([first[name], second[name]]), expected)
        elif "running" in name or "batches" in name:
            near(first[name], expected)
            near(second[name], expected)
        else:
            near(first[name] + second[name], expected)


@pytest.mark.parametrize("way", ["fused-low", "fused-low, programs"])
def test_without_gradients_of_the_parameters(way, shares):
    whole = share(None, WAYS[way].get("names", OPERATORS))
    first, second = (found[f"alphas by {way}"] for found in shares)
    near(torch.cat([first["x"], second["x"]]), whole["x"])
    near(first["weights"] + second["weights"], whole["weights"])
