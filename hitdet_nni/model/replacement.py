"""Exchanging modules inside a network for others: for good, or for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

SHARED_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""Parameters and buffers that a convolution or a batch normalisation may have."""


def replace_modules(root: nn.Module, convert: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Put what a function makes of each module in the module's place; the order and the keys of the state dict stay.

    A module that stands in several places is converted once.

    Args:
        root: A network.
        convert: Returns another module, or the one that it is given.

    Returns:
        The root, or what the function made of it.
    """
    made: dict[nn.Module, nn.Module] = {}

    def converted(module: nn.Module) -> nn.Module:
        if module not in made:
            made[module] = convert(module)
        return made[module]

    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and converted(child) is not child:
                setattr(parent, name, converted(child))
    return converted(root)


def share_tensors(source: nn.Module, target: nn.Module) -> None:
    """Give a new layer the parameters, the buffers and the mode of another one, in place.

    Args:
        source: A convolution or a batch normalisation.
        target: A layer of a class that has the same tensors.
    """
    for name in SHARED_TENSORS:
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))
    target.train(source.training)


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
