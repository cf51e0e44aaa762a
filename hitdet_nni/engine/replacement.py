"""Modules that stand in the places of others for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn


@contextmanager
def replaced(root: nn.Module, stand_ins: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    """Put other modules in the places of some within the context, and put these back at its end.

    Args:
        root: Contains the modules; it is not one of them.
        stand_ins: What stands in the place of each module, in all its places where it has several.
    """
    places = [
        (parent, name, child)
        for parent in root.modules()
        for name, child in parent._modules.items()
        if child is not None and child in stand_ins
    ]
    try:
        for parent, name, child in places:
            setattr(parent, name, stand_ins[child])
        yield
    finally:
        for parent, name, child in places:
            setattr(parent, name, child)
