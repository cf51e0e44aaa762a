"""What several test modules share: one thread, the small skeleton, random samples, the one-line error check."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
from contextlib import contextmanager

import pytest
import torch

from hitdet_nni.errors import InputError
from hitdet_nni.search_space import load_search_space
from hitdet_nni.settings import load_settings

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny():
    """The skeleton of the shipped `tiny` config."""
    return load_settings("tiny").skeleton


@pytest.fixture(scope="session")
def published():
    """The published sub search spaces."""
    return load_search_space("hit_detector")


@pytest.fixture(scope="session")
def draw():
    """Draw a sample of a skeleton: one operator a label, from a space, by a seed."""

    def sample(skeleton, space, seed):
        rng = random.Random(seed)
        return {layer.label: rng.choice(space[layer.component]) for layer in skeleton.searched_layers()}

    return sample


@pytest.fixture(scope="session")
def refused():
    """Context in which an `InputError` must be raised: one line that contains every fragment."""

    @contextmanager
    def check(*fragments):
        with pytest.raises(InputError) as caught:
            yield
        text = str(caught.value)
        assert "\n" not in text
        for fragment in fragments:
            assert str(fragment) in text

    return check
