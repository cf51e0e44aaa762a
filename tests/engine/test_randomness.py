"""Random numbers drawn on the side leave a training's own alone."""

from __future__ import annotations

import random
from contextlib import suppress

import numpy as np
import pytest
import torch

from hitdet_nni.engine.distributed import device
from hitdet_nni.engine.randomness import fork_rng, random_state, set_random_state


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(())), float(torch.rand((), device=device()))


@pytest.fixture(autouse=True)
def kept():
    state = random_state()
    yield
    set_random_state(state)


def test_a_state_brings_the_same_numbers_again():
    state = random_state()
    first, second = draw(), draw()
    assert first != second
    set_random_state(state)
    assert [draw(), draw()] == [first, second]


@pytest.mark.parametrize("seed", [None, 5])
def test_what_is_drawn_within_leaves_no_trace(seed):
    state = random_state()
    expected = draw()
    set_random_state(state)
    with fork_rng(seed):
        assert (draw() == expected) == (seed is None)
    assert draw() == expected


def test_an_error_leaves_no_trace_either():
    state = random_state()
    expected = draw()
    set_random_state(state)
    with suppress(KeyError), fork_rng():
        draw()
        raise KeyError
    assert draw() == expected


def test_a_seed_fixes_torch_s_numbers():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(6)
    with fork_rng(5):
        assert torch.equal(torch.rand(3), expected)


def test_a_state_is_plain_values(tmp_path):
    torch.save(random_state(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    expected = draw()
    set_random_state(state)
    assert draw() == expected
