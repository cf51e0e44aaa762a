"""Processes that share statistics while their maps are of different sizes, as batches of photographs are."""

from __future__ import annotations

import pytest
import torch
from group import run_group
from test_fused import build, draw, fused, plain, results

from hitdet_nni.engine import distributed
from hitdet_nni.engine.synced_batch_norm import apply_batch_norm
from hitdet_nni.kernels import layout
from hitdet_nni.nas.fused import backend, function, plan

NAMES = ("ir_k3_d1_e6", "ir_k5_d2_e3", "ir_k3_d1_e1", "sep_k3_d2", "conv_k3_d1")
CHANNELS = 12
SIZES = {"upright and wide": ((2, 9, 4), (2, 5, 7)), "none": ((2, 5, 6), (0, 5, 6))}
"""(N, H, W) of both processes. Of the first, 72 pixels meet 70: one number below a threshold, the other above it."""
WAYS = {
    "pieces": {"chunk_bytes": 71 * 8 * 64},
    "small maps": {"covariance_pixels": 71 / CHANNELS**2},
    "pieces, programs": {"chunk_bytes": 71 * 8 * 64, "programs": True},
}
CASES = [(way, name, stride) for way in WAYS for name in SIZES for stride in (1, 2)]
CASES = [case for case in CASES if "programs" not in case[0] or case[1:] == ("upright and wide", 1)]


def step(sizes, stride, *, candidate_by_candidate, chunk_bytes=0, covariance_pixels=0.0, programs=False):
    """Outputs, gradients and buffers of a step with this process's maps, and how many exchanges there were."""
    modules = build(NAMES, CHANNELS, CHANNELS, stride, torch.float64)
    apply_batch_norm(modules, "synced")
    x, _, grad = draw(CHANNELS, CHANNELS, stride, sizes[distributed.rank()], len(NAMES), torch.float64)
    weights = torch.softmax(torch.linspace(-1, 1, len(NAMES), dtype=torch.float64), 0)
    exchanges = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_reduce", distributed.gathering()):
            real = getattr(torch.distributed, name)
            patch.setattr(torch.distributed, name, lambda *given, real=real: exchanges.append(real(*given)))
        if chunk_bytes:
            patch.setattr(layout, "CPU_CHUNK_BYTES", chunk_bytes)
        if covariance_pixels:
            patch.setattr(plan, "COVARIANCE_PIXELS", covariance_pixels)
        if programs:
            for module in (backend, function):
                patch.setattr(module, "uses_triton", lambda x: True)
        way = plain if candidate_by_candidate else fused
        return results(way(modules), modules, x, weights, grad) | {"exchanges": len(exchanges)}


def collect():
    cases = [*CASES, *dict.fromkeys(("plain", name, stride) for _, name, stride in CASES)]
    return {
        f"{way} {name} {stride}": step(SIZES[name], stride, candidate_by_candidate=way == "plain", **WAYS.get(way, {}))
        for way, name, stride in cases
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes found."""
    return run_group(collect, tmp_path_factory.mktemp("group"))


@pytest.mark.parametrize(("way", "sizes", "stride"), CASES)
def test_processes_compute_what_they_would_candidate_by_candidate(way, sizes, stride, found):
    ours, theirs = ([shares[f"{kind} {sizes} {stride}"] for shares in found] for kind in (way, "plain"))
    first, second = (share.pop("exchanges") for share in ours)
    assert first == second > 0
    for share in theirs:
        share.pop("exchanges", None)
    assert ours[0].keys() == theirs[0].keys()
    for name in theirs[0]:
        parts, expected = ([share[name].double() for share in shares] for shares in (ours, theirs))
        if not (name in ("y", "x") or "running" in name or "batches" in name):
            parts, expected = [sum(parts)], [sum(expected)]  # a process has its share, the sum is what counts
        for part, right in zip(parts, expected, strict=True):
            scale = max([1e-2, *right.abs().flatten().tolist()])
            torch.testing.assert_close(part / scale, right / scale, rtol=0, atol=1e-9)


@pytest.mark.parametrize("way", ["pieces", "small maps"])
def test_the_sizes_are_planned_differently_by_themselves(way, monkeypatch):
    """Or the test above would say nothing."""
    kind = WAYS[way]
    monkeypatch.setattr(layout, "CPU_CHUNK_BYTES", kind.get("chunk_bytes", layout.CPU_CHUNK_BYTES))
    monkeypatch.setattr(plan, "COVARIANCE_PIXELS", kind.get("covariance_pixels", plan.COVARIANCE_PIXELS))
    mixture = fused(build(NAMES, CHANNELS, CHANNELS, 1, torch.float64))
    plans = [
        mixture.plan(layout.MapShape(*size), torch.float64, torch.device("cpu")) for size in SIZES["upright and wide"]
    ]
    pieces, direct = ([[what(group) for group in one.groups] for one in plans] for what in (_pieces, _is_direct))
    assert (pieces[0] == pieces[1]) == (way != "pieces")
    assert (direct[0] == direct[1]) == (way != "small maps")


def _pieces(group):
    return len(group.chunks)


def _is_direct(group):
    return group.direct
