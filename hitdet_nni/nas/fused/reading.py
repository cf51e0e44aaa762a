"""The operators' blocks taken apart into the convolutions that the fused mixed layer computes.

Which families it knows is in the registry: their rows name a :class:`Reader` of this module.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hitdet_nni.errors import InputError
from hitdet_nni.nas.fused.batch_norm import check_supported
from hitdet_nni.nas.fused.plan import PARAMETERS, Candidate, ConvNorm, DenseCandidate, DepthwiseCandidate
from hitdet_nni.operators.blocks import ConvBlock, InvertedResidual, SeparableBlock
from hitdet_nni.operators.registry import FAMILIES

TakeUnit = Callable[[nn.Module], ConvNorm]
"""Reads a sequence of a convolution and its normalisation, and gives their parameters the next slot."""


@dataclass(frozen=True)
class Reader:
    """How the blocks of a family are read.

    Attributes:
        block: Class of the blocks; classes below it are not meant.
        read: Makes the candidate from a block, its index among the candidates and the function that takes its
            convolutions, in the order of the parameters.
    """

    block: type[nn.Module]
    read: Callable[[Any, int, TakeUnit], Candidate]


def _read_inverted_residual(block: InvertedResidual, index: int, take: TakeUnit) -> Candidate:
    return DepthwiseCandidate(index, take(block.expand), take(block.depthwise), take(block.project), block.residual)


def _read_separable(block: SeparableBlock, index: int, take: TakeUnit) -> Candidate:
    return DepthwiseCandidate(index, None, take(block.depthwise), take(block.project), block.residual)


def _read_dense(block: ConvBlock, index: int, take: TakeUnit) -> Candidate:
    return DenseCandidate(index, take(block.block))


INVERTED_RESIDUAL = Reader(InvertedResidual, _read_inverted_residual)
SEPARABLE = Reader(SeparableBlock, _read_separable)
DENSE = Reader(ConvBlock, _read_dense)


def readers() -> dict[type[nn.Module], Reader]:
    """Return the readers that the registry names, by the class of the blocks that they read."""
    found: list[Reader] = [pkgutil.resolve_name(family.fused) for family in FAMILIES.values() if family.fused]
    return {reader.block: reader for reader in found}


def unknown_candidates(modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Return the names of the candidates whose modules no reader knows."""
    known = readers()
    return tuple(name for name, module in modules.items() if type(module) not in known)


def read_candidates(modules: Mapping[str, nn.Module]) -> tuple[Candidate, ...]:
    """Take the operators' modules apart.

    Args:
        modules: Candidate modules by name, all for one input and output shape.

    Raises:
        InputError: If no reader knows a candidate's module, or it has an unsupported batch normalisation.
    """
    known, slot = readers(), 0

    def take(block: nn.Module) -> ConvNorm:
        nonlocal slot
        conv, norm = block.conv, block.bn
        if not isinstance(conv, nn.Conv2d) or conv.bias is not None or not isinstance(norm, nn.Module):
            raise InputError(f"the fused mixed layer cannot compute {conv}", allowed="Conv2d without bias")
        made = ConvNorm(block, conv, check_supported(norm), slot)
        slot += PARAMETERS
        return made

    candidates: list[Candidate] = []
    for index, (name, module) in enumerate(modules.items()):
        reader = known.get(type(module))
        if reader is None:
            problem = f"the fused mixed layer cannot compute a {type(module).__name__}"
            raise InputError(problem, key=name, allowed=", ".join(block.__name__ for block in known))
        candidates.append(reader.read(module, index, take))
    return tuple(candidates)
