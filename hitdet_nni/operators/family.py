"""One operator, and what is known of the family that it belongs to."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from hitdet_nni.operators.costs import Convention, Cost, Size

if TYPE_CHECKING:
    from torch import nn

NUMBERS: Mapping[str, str] = {
    "kernel_size": "[1-9]?[13579]",
    "dilation": "[1-9]",
    "expansion": "[1-9][0-9]?",
}
"""How the numbers in a name are written, as regular expressions; the keys are the attributes of :class:`Operator`."""


@dataclass(frozen=True)
class Operator:
    """One candidate operator, as its name spells it.

    Attributes:
        family: Name of its family, e.g. ``"ir"``.
        kernel_size: Side of the spatial kernel, odd.
        dilation: Dilation of the spatial kernel.
        expansion: Ratio of hidden to input channels; 1 for a family whose names have no such number.
    """

    family: str
    kernel_size: int = 1
    dilation: int = 1
    expansion: int = 1


Build = Callable[[Operator, int, int, int], "nn.Module"]
"""Makes the block of an operator from channels in, channels out and stride; imports torch when it is called."""

OperatorCost = Callable[[Operator, int, int, int, Size, Convention], Cost]
"""Cost of an operator from channels in, channels out, stride and the height and width of its input."""


@dataclass(frozen=True)
class Family:
    """One row of the registry.

    Attributes:
        name: First part of the operators' names.
        pattern: The operators' names, with the numbers of :data:`NUMBERS` in braces.
        title: What the family is called in the pages of runs.
        build: Makes the block, ``[N, in_channels, H, W]`` to ``[N, out_channels, ceil(H / stride), ceil(W / stride)]``.
        cost: Parameters and FLOPs in closed form, without torch.
        fused: Where the family's :class:`~hitdet_nni.nas.fused.reading.Reader` is, as ``module:name``; ``None``
            where the fused mixed layer does not know the family. It is looked up when a layer is fused.
    """

    name: str
    pattern: str
    title: str
    build: Build
    cost: OperatorCost
    fused: str | None = None

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"\{(\w+)\}", lambda number: f"(?P<{number[1]}>{NUMBERS[number[1]]})", self.pattern))

    @property
    def grammar(self) -> str:
        """The pattern for people, e.g. ``"sep_k{odd}_d{dilation}"``."""
        return self.pattern.replace("{kernel_size}", "{odd}")

    def has(self, number: str) -> bool:
        """Whether the family's names hold a number, a key of :data:`NUMBERS`."""
        return f"{{{number}}}" in self.pattern

    def parse(self, name: str) -> Operator | None:
        """Return the operator that a name stands for; ``None`` for a name that is not of this family."""
        match = self._expression.fullmatch(name)
        return None if match is None else Operator(self.name, **{key: int(n) for key, n in match.groupdict().items()})

    def spell(self, operator: Operator) -> str:
        """Return the name that :meth:`parse` reads back."""
        return self.pattern.format(**asdict(operator))
