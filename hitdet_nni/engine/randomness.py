"""The states of all random number generators that a process draws from, its GPU's among them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from hitdet_nni.engine import distributed


def random_state() -> dict[str, Any]:
    """Return the states of python's, numpy's and torch's generators, as plain numbers and tensors.

    Of several GPUs only this process's own counts: asking another one would open a context on it.
    """
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    device = distributed.device()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore what :func:`random_state` returned; a GPU's state is left out where there is none."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    device = distributed.device()
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def fork_rng(seed: int | None = None) -> Iterator[None]:
    """Let random numbers be drawn, and set anew, without a trace outside the context.

    Args:
        seed: Where torch's begin; ``None`` goes on from where they are.
    """
    state = random_state()
    if seed is not None:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        set_random_state(state)
