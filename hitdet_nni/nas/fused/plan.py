"""Which candidates are computed together, and in which pieces.

A plan follows from the candidates, the number of pixels and the modes of the batch normalisations alone. Processes that
share statistics exchange them group by group and piece by piece: so all plan for the most pixels that one of them has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from hitdet_nni.kernels.layout import MapShape, chunk_channels, even_pieces
from hitdet_nni.nas.fused.batch_norm import uses_batch

BlockPart = Literal["expand", "depthwise"]

PARAMETERS = 3
"""Parameters of a convolution with batch normalisation: kernels, scale, shift."""

COVARIANCE_PIXELS = 1 / 32
"""Pixels, as a share of the input's channels squared, above which an expansion's statistics follow from the input's
covariance: products with it cost as much as the expansion of as many pixels as there are channels."""


@dataclass(frozen=True, eq=False)
class ConvNorm:
    """A convolution and its batch normalisation, and where their parameters stand in the list of all.

    Attributes:
        block: The module that holds both.
        conv: The convolution; no bias.
        norm: The batch normalisation behind it.
        slot: Index of the kernels in the parameters of all candidates; scale and shift follow.
    """

    block: nn.Module
    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    slot: int

    @property
    def stale(self) -> bool:
        """Whether the block's modules have been exchanged for others."""
        return self.block.conv is not self.conv or self.block.bn is not self.norm

    @property
    def channels(self) -> int:
        """Output channels."""
        return self.conv.out_channels

    def kernels(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the kernels, ``[C_out, C_in / groups, k, k]``."""
        return parameters[self.slot]

    def scale(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the scale of the normalisation, ``[C_out]``."""
        return parameters[self.slot + 1]

    def shift(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the shift of the normalisation, ``[C_out]``."""
        return parameters[self.slot + 2]


@dataclass(frozen=True, eq=False)
class DepthwiseCandidate:
    """An inverted residual, or a separable block (which has no expansion).

    Attributes:
        index: Place among the candidates.
        expand: 1x1 expansion of an inverted residual.
        depthwise: Depthwise convolution.
        project: 1x1 projection.
        residual: Whether the input is added.
    """

    index: int
    expand: ConvNorm | None
    depthwise: ConvNorm
    project: ConvNorm
    residual: bool

    @property
    def last(self) -> ConvNorm:
        """The convolution whose normalised output is the candidate's."""
        return self.project

    def unit(self, part: BlockPart) -> ConvNorm:
        """Return the expansion, which must be there, or the depthwise convolution.

        Raises:
            ValueError: If there is no expansion.
        """
        if part == "depthwise":
            return self.depthwise
        if self.expand is None:
            raise ValueError("a separable block has no expansion")
        return self.expand


@dataclass(frozen=True, eq=False)
class DenseCandidate:
    """A dense convolution, batch normalisation and ReLU.

    Attributes:
        index: Place among the candidates.
        unit: Its convolution and normalisation.
        residual: Whether the input is added: it never is.
    """

    index: int
    unit: ConvNorm
    residual: ClassVar[bool] = False

    @property
    def last(self) -> ConvNorm:
        """The convolution whose normalised output is the candidate's."""
        return self.unit


Candidate = DepthwiseCandidate | DenseCandidate


@dataclass(frozen=True, eq=False)
class Expansion:
    """Expansions that are stacked into one matrix.

    Attributes:
        units: The expansions, in the order of their rows.
        use_batch_stats: Whether they are normalised by the batch's statistics.
        eps: Of their normalisations.
    """

    units: tuple[ConvNorm, ...]
    use_batch_stats: bool
    eps: float


@dataclass(frozen=True)
class Segment:
    """The channels of a chunk that are one candidate's.

    Attributes:
        candidate: The candidate.
        columns: Which columns of the chunk.
        channels: Which of the candidate's hidden channels they are.
    """

    candidate: DepthwiseCandidate
    columns: slice
    channels: slice


@dataclass(frozen=True, eq=False)
class Group:
    """Depthwise candidates of one kernel size, dilation and stride: many small ones, or a large one in several chunks.

    Attributes:
        candidates: The candidates.
        expansion: Index of the stacked expansion that holds theirs; ``None`` where there is none, or it is ``direct``.
        direct: Whether the expansion is computed before its normalisation, chunk by chunk, which suits small maps.
        first_row: First row of the group in the stacked expansion.
        use_batch_stats: Whether the depthwise convolution is normalised by the batch's statistics.
        eps: Of that normalisation.
        chunks: The segments of each piece; the pieces' columns follow each other in the group's rows.
        first_channel: First of the group's channels among those of all groups of a plan.
    """

    candidates: tuple[DepthwiseCandidate, ...]
    expansion: int | None
    direct: bool
    first_row: int
    use_batch_stats: bool
    eps: float
    chunks: tuple[tuple[Segment, ...], ...]
    first_channel: int = 0

    @property
    def conv(self) -> nn.Conv2d:
        """A depthwise convolution of the group: size, dilation and stride are the same in all."""
        return self.candidates[0].depthwise.conv

    def rows(self, chunk: int) -> slice:
        """Return the rows of a chunk in the stacked expansion."""
        return self._slice(self.first_row, chunk)

    def columns(self, chunk: int) -> slice:
        """Return the channels of a chunk among those of all groups."""
        return self._slice(self.first_channel, chunk)

    def _slice(self, first: int, chunk: int) -> slice:
        start = first + sum(width(segments) for segments in self.chunks[:chunk])
        return slice(start, start + width(self.chunks[chunk]))


def width(segments: Sequence[Segment]) -> int:
    """Return the channels of a chunk."""
    stop: int = segments[-1].columns.stop
    return stop


@dataclass(frozen=True, eq=False)
class Plan:
    """How one call is computed.

    Attributes:
        expansions: The stacked expansions.
        groups: The depthwise candidates.
        dense: The dense candidates.
        use_batch_stats: For each convolution, whether its output is normalised by the batch's statistics.
        last: The last convolution of each candidate, by the candidate's index.
        stride: Of all candidates.
        has_residual: Whether a candidate adds the input.
        residual: Which candidates add the input, ``[n]``, true or false.
        last_use_batch_stats: One where a candidate's last normalisation takes the batch's statistics, else zero, ``[n,
            1]``.
    """

    expansions: tuple[Expansion, ...]
    groups: tuple[Group, ...]
    dense: tuple[DenseCandidate, ...]
    use_batch_stats: Mapping[ConvNorm, bool]
    last: tuple[ConvNorm, ...]
    stride: int
    has_residual: bool
    residual: Tensor
    last_use_batch_stats: Tensor

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.last[0].channels


def units(candidates: Sequence[Candidate]) -> list[ConvNorm]:
    """Return all convolutions in the order of their slots."""
    found: list[ConvNorm | None] = []
    for candidate in candidates:
        if isinstance(candidate, DenseCandidate):
            found.append(candidate.unit)
        else:
            found += [candidate.expand, candidate.depthwise, candidate.project]
    return [unit for unit in found if unit is not None]


def stride_of(candidates: Sequence[Candidate]) -> int:
    """Return the stride of candidates, which is the same for all."""
    first = candidates[0]
    stride: int = (first.unit if isinstance(first, DenseCandidate) else first.depthwise).conv.stride[0]
    return stride


def normalization_modes(candidates: Sequence[Candidate], shape: MapShape, stride: int) -> tuple[bool, ...]:
    """Return for each of :func:`units` whether it is normalised by the batch's statistics now."""
    modes = []
    for candidate in candidates:
        if isinstance(candidate, DepthwiseCandidate) and candidate.expand is not None:
            modes.append(uses_batch(candidate.expand.norm, shape.pixels))
        behind = [candidate.unit] if isinstance(candidate, DenseCandidate) else [candidate.depthwise, candidate.project]
        modes += [uses_batch(unit.norm, shape.strided(stride).pixels) for unit in behind]
    return tuple(modes)


def make_plan(
    candidates: Sequence[Candidate], modes: Sequence[bool], pixels: int, item_bytes: int, device: torch.device
) -> Plan:
    """Group the candidates.

    Args:
        candidates: The candidates.
        modes: Their :func:`normalization_modes`.
        pixels: Those of the input.
        item_bytes: Bytes of a number of the maps.
        device: Where they are.
    """
    use_batch_stats = dict(zip(units(candidates), modes, strict=True))
    largest = chunk_channels(pixels, item_bytes, device)
    expanded: dict[tuple[bool, float], list[DepthwiseCandidate]] = {}
    groups: list[Group] = []
    for candidate in candidates:
        if isinstance(candidate, DenseCandidate):
            continue
        if candidate.expand is None:
            groups.append(_group([candidate], None, 0, use_batch_stats, candidate.depthwise.channels))
        else:
            key = (use_batch_stats[candidate.expand], candidate.expand.norm.eps)
            expanded.setdefault(key, []).append(candidate)
    expansions: list[Expansion] = []
    for (from_batch, _), members in expanded.items():
        if from_batch and _is_direct(members[0], pixels):
            for together in _together(members, use_batch_stats, largest):
                groups.append(_group(together, None, 0, use_batch_stats, largest, direct=True))
            continue
        number = len(expansions)
        stacked: list[ConvNorm] = []
        first_row = 0
        for together in _together(members, use_batch_stats, largest):
            groups.append(_group(together, number, first_row, use_batch_stats, largest))
            stacked += [member.expand for member in together if member.expand is not None]
            first_row += sum(member.depthwise.channels for member in together)
        expansions.append(Expansion(tuple(stacked), use_batch_stats[stacked[0]], stacked[0].norm.eps))
    dense = tuple(candidate for candidate in candidates if isinstance(candidate, DenseCandidate))
    last = tuple(one.last for one in candidates)
    residual = torch.tensor([one.residual for one in candidates], device=device)
    last_use_batch_stats = torch.tensor([[use_batch_stats[unit]] for unit in last], dtype=torch.float32, device=device)
    return Plan(
        expansions=tuple(expansions),
        groups=tuple(_placed(groups)),
        dense=dense,
        use_batch_stats=use_batch_stats,
        last=last,
        stride=stride_of(candidates),
        has_residual=any(one.residual for one in candidates),
        residual=residual,
        last_use_batch_stats=last_use_batch_stats,
    )


def _placed(groups: Sequence[Group]) -> Iterator[Group]:
    """Yield the groups with their places among the channels of all."""
    start = 0
    for group in groups:
        yield replace(group, first_channel=start)
        start += sum(candidate.depthwise.channels for candidate in group.candidates)


def _is_direct(candidate: DepthwiseCandidate, pixels: int) -> bool:
    if candidate.expand is None:
        return False
    channels: int = candidate.expand.conv.in_channels
    return pixels <= COVARIANCE_PIXELS * channels**2


def _together(
    members: Sequence[DepthwiseCandidate], use_batch_stats: Mapping[ConvNorm, bool], largest: int
) -> list[list[DepthwiseCandidate]]:
    """Return candidates that share a depthwise convolution, as far as they fit one chunk."""
    alike: dict[tuple[object, ...], list[list[DepthwiseCandidate]]] = {}
    for member in members:
        conv, norm = member.depthwise.conv, member.depthwise.norm
        key = (conv.kernel_size, conv.dilation, conv.stride, use_batch_stats[member.depthwise], norm.eps)
        sets = alike.setdefault(key, [[]])
        channels = sum(other.depthwise.channels for other in sets[-1])
        if sets[-1] and channels + member.depthwise.channels > largest:
            sets.append([])
        sets[-1].append(member)
    return [members for sets in alike.values() for members in sets]


def _group(
    members: Sequence[DepthwiseCandidate],
    expansion: int | None,
    first_row: int,
    use_batch_stats: Mapping[ConvNorm, bool],
    largest: int,
    *,
    direct: bool = False,
) -> Group:
    unit = members[0].depthwise
    chunks: list[tuple[Segment, ...]] = []
    if len(members) == 1:
        for piece in even_pieces(unit.channels, largest):
            chunks.append((Segment(members[0], slice(0, piece.stop - piece.start), piece),))
    else:
        segments, start = [], 0
        for member in members:
            channels = member.depthwise.channels
            segments.append(Segment(member, slice(start, start + channels), slice(0, channels)))
            start += channels
        chunks.append(tuple(segments))
    return Group(tuple(members), expansion, direct, first_row, use_batch_stats[unit], unit.norm.eps, tuple(chunks))
