"""Recorded passes: the same steps with and without, on a CPU with a recorder that runs the function again."""

from __future__ import annotations

import logging

import pytest
import torch
from test_fused import FAMILIES, LAYERS, build, fused
from torch import nn

from hitdet_nni.nas.fused.function import FusedMixture
from hitdet_nni.nas.fused.recording import FORGOTTEN, RECORDED_SIZES, Pass, Recordings

LAYER = LAYERS[0]
STEPS = 10


def again(function, device):
    """Stands in for a graph: replaying runs the function."""
    return function


@pytest.fixture
def record(monkeypatch):
    """Let mixtures record with a recorder; returns the recordings of all of them."""

    def start(recorder):
        made = {}

        def recording(mixture, layer, x, parameters):
            recordings = made.setdefault(mixture, Recordings(recorder))
            return recordings.find(layer.plan, tuple(p.data_ptr() for p in parameters))

        monkeypatch.setattr(FusedMixture, "recording", recording)
        return made

    return start


def train(activations="fused-low"):
    """Outputs, gradients and the final state of steps of both phases."""
    in_channels, _, _, (count, height, width) = LAYER
    modules = build(FAMILIES, *LAYER[:3], torch.float64)
    mixture = fused(modules, activations)
    alpha = nn.Parameter(torch.zeros(len(FAMILIES), dtype=torch.float64))
    optimizers = (torch.optim.SGD([alpha], 0.1), torch.optim.SGD(modules.parameters(), 0.01))
    torch.manual_seed(5)
    found = []
    for step in range(STEPS):
        modules.requires_grad_(step % 2 == 1)
        alpha.requires_grad_(step % 2 == 0)
        x = torch.randn(count, in_channels, height, width, dtype=torch.float64)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        y = mixture(x, alpha.softmax(-1))
        y.square().mean().backward()
        optimizers[step % 2].step()
        alpha.grad = None
        modules.zero_grad()
        found += [y.detach().clone(), x.grad.clone()]
    return [*found, alpha.detach(), *modules.state_dict().values()]


def equal(some, others):
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("activations", ["fused", "fused-low", "fused-min"])
def test_replayed_steps_equal_the_others_bit_by_bit(record, activations):
    plainly = train(activations)
    made = record(again)
    assert equal(train(activations), plainly)
    (recordings,) = made.values()
    (recording,) = recordings.by_size.values()
    assert recording.generation == STEPS - 2
    assert len(recording.backward_passes) == 2


def test_a_recorder_that_fails_is_told_of_once_and_done_without(record, caplog):
    plainly = train()

    def refuses(function, device):
        raise RuntimeError("operation not permitted\nwith details")

    record(refuses)
    with caplog.at_level(logging.WARNING):
        assert equal(train(), plainly)
    assert [entry.getMessage() for entry in caplog.records] == [
        "a mixed layer is not recorded as a CUDA graph: operation not permitted"
    ]


def test_a_replay_that_gives_something_else_is_not_used(record, caplog):
    plainly = train()

    def wrong(function, device):
        def replay():
            function()
            for cell in function.__closure__:
                if isinstance(cell.cell_contents, list):
                    cell.cell_contents[0].add_(1)

        return replay

    record(wrong)
    with caplog.at_level(logging.WARNING):
        assert equal(train(), plainly)
    assert "differs from what was recorded" in caplog.text


def layer_of(record):
    record(again)
    modules = build(FAMILIES, *LAYER[:3], torch.float64)
    mixture = fused(modules)
    x = torch.randn(3, 6, 7, 7, dtype=torch.float64).to(memory_format=torch.channels_last)
    weights = torch.full((len(FAMILIES),), 0.25, dtype=torch.float64)
    for _ in range(3):
        mixture(x.clone().requires_grad_(), weights).sum().backward()
    return mixture, x, weights


def test_a_second_pass_before_the_first_one_went_back_is_not_replayed(record):
    mixture, x, weights = layer_of(record)
    inputs = [(x * scale).requires_grad_() for scale in (1.0, 2.0)]
    outputs = [mixture(one, weights) for one in inputs]
    sum((output * output).sum() for output in outputs).backward()
    for one in inputs:
        alone = one.detach().clone().requires_grad_()
        y = mixture(alone, weights)
        (y * y).sum().backward()
        torch.testing.assert_close(one.grad, alone.grad, rtol=1e-12, atol=1e-12)


def test_going_back_after_a_later_pass_is_refused(record):
    mixture, x, weights = layer_of(record)
    first = mixture(x.clone().requires_grad_(), weights)
    first.sum().backward(retain_graph=True)
    mixture(x.clone().requires_grad_(), weights)
    with pytest.raises(RuntimeError, match="came after its next forward pass"):
        first.sum().backward()


def test_outputs_and_gradients_are_not_overwritten_later(record):
    mixture, x, weights = layer_of(record)
    given = x.clone().requires_grad_()
    y = mixture(given, weights)
    y.sum().backward()
    before = [y.detach().clone(), given.grad.clone()]
    mixture((x + 1).requires_grad_(), weights).sum().backward()
    assert equal([y.detach(), given.grad], before)


def recorded(recordings, size):
    found = recordings.find(size, ())
    if found is not None and found.forward_pass is None and found.calls:
        found.forward_pass = Pass([], [], lambda: None)
    elif found is not None:
        found.calls += 1
    return found


def test_sizes_that_occur_most_are_recorded():
    recordings = Recordings(again)
    for size in "aabbccc":
        recorded(recordings, size)
    assert [recordings.by_size[size].forward_pass is not None for size in "abc"] == [True, True, False]
    for _ in range(FORGOTTEN):
        recorded(recordings, "b")
    assert recorded(recordings, "c").forward_pass is not None
    assert "a" not in recordings.by_size
    assert sum(one.forward_pass is not None for one in recordings.by_size.values()) == RECORDED_SIZES


def test_moved_parameters_are_recorded_anew():
    recordings = Recordings(again)
    first = recordings.find("size", (1, 2))
    assert recordings.find("size", (1, 2)) is first
    assert recordings.find("size", (1, 3)) is not first
