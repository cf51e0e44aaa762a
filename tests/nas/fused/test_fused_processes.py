"""The fused layer in two processes that share the statistics of batch normalisation: the whole batch in one."""

from __future__ import annotations

import pytest
import torch
from group import run_group
from test_fused import assert_equal, build, draw, fused, plain, results
from torch import nn

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
    rank,
    names=OPERATORS,
    activations="fused-low",
    small=False,
    programs=False,
    alphas_only=False,
    layer=LAYERS[0],
    dtype=torch.float64,
    mean=0.0,
):
    """Outputs, gradients and buffers of a step with one process's maps, or with all (``rank`` None)."""
    modules = build(names, *layer[:3], torch.float64).to(dtype)
    x, weights, grad = (one.to(dtype) for one in draw(*layer, len(names), torch.float32, mean))
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
    found["large mean"] = share(rank, dtype=torch.float32, mean=100.0)
    with pytest.MonkeyPatch.context() as patch:
        exchanges = []
        for name in ("all_reduce", distributed.gathering()):
            real = getattr(torch.distributed, name)
            patch.setattr(torch.distributed, name, lambda *given, real=real: exchanges.append(real(*given)))
        share(rank)
    found["exchanges"] = len(exchanges)
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


def test_large_mean_does_not_swallow_the_variance(shares):
    """Inputs of mean 100 in single precision, against double precision."""
    whole = share(None, mean=100.0)
    first, second = (found["large mean"] for found in shares)
    names = [name for name in whole if name in ("y", "x") or "running" in name]
    joined = {n: torch.cat([first[n], second[n]]) if n in ("y", "x") else first[n] for n in names}
    assert_equal(joined | {n: whole[n] for n in whole if n not in names}, whole, 1e-4, names)
    assert all(torch.equal(first[n], second[n]) for n in names if "running" in n)


def test_a_layer_exchanges_less_than_its_normalisations_would(shares):
    """These are once in each pass; a mixture takes the expansions of its candidates together."""
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in build(OPERATORS, 6, 6, 1, torch.float64).modules())
    assert [found["exchanges"] for found in shares] == [94, 94]
    assert 2 * norms == 156


@pytest.mark.parametrize("way", ["fused-low", "fused-low, programs"])
def test_without_gradients_of_the_parameters(way, shares):
    whole = share(None, WAYS[way].get("names", OPERATORS))
    first, second = (found[f"alphas by {way}"] for found in shares)
    near(torch.cat([first["x"], second["x"]]), whole["x"])
    near(first["weights"] + second["weights"], whole["weights"])
