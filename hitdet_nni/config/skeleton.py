"""The skeleton of a detector: everything about its shape that is not searched.

The model modules and the cost model both read the list of searched layers from here, so that a label, its channels
and its place in the image are stated once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

BlockCount = Annotated[int, Field(ge=1, le=99)]  # a label has two digits
Component = Literal["backbone", "neck", "head"]
COMPONENTS: tuple[Component, ...] = get_args(Component)
"""The detector trinity, in the order of the data flow (section 3.1)."""

ROI_SIZE = 7
"""Height and width of the RoIAlign output that the head sees (facts of the released configuration)."""

ANCHOR_RATIOS = (0.5, 1.0, 2.0)
"""Height to width of the anchors of both kinds of detector."""

SCALES_PER_OCTAVE = 3
"""Anchor sizes a level of a RetinaNet; a two-stage detector has one."""


@dataclass(frozen=True)
class SearchedLayer:
    """One layer whose operator is searched.

    Attributes:
        component: The part of the trinity that it belongs to.
        label: Its name in a sample, e.g. ``"backbone/l07"``, numbered from 1 in the order of Eq. 4's rows.
        in_channels: Channels of its input.
        out_channels: Channels of its output.
        stride: 1 or 2.
        input_strides: Ratio of the image's side to that of the layer's input, for each map that the layer is applied
            to; none for a layer that sees pooled RoIs.
    """

    component: Component
    label: str
    in_channels: int
    out_channels: int
    stride: int
    input_strides: tuple[int, ...]


DetectorKind = Literal["faster_rcnn", "retinanet"]


@dataclass(frozen=True)
class DetectorLayout:
    """What distinguishes the kinds of detector, as far as searched layers and their sizes go.

    Attributes:
        finest_stride: Default of the skeleton's finest stride.
        extra_levels: Default of the skeleton's extra levels.
        extra_convs: Whether strided convolutions make the extra levels, or else subsampling.
        towers: Stacks of searched blocks in the head.
        pooled: Whether the head sees pooled RoIs, or else every level of the pyramid.
        anchor_scale: Default of the skeleton's anchor scale.
        octave_scales: Anchor sizes a level, evenly spaced between a level and the next.
        positive_iou: Overlap with an object, as intersection over union, from which an anchor is to find it.
        negative_iou: Overlap below which an anchor is to find nothing.
    """

    finest_stride: int
    extra_levels: int
    extra_convs: bool
    towers: int
    pooled: bool
    anchor_scale: int
    octave_scales: int
    positive_iou: float
    negative_iou: float


LAYOUTS: Mapping[DetectorKind, DetectorLayout] = {
    "faster_rcnn": DetectorLayout(
        finest_stride=4,
        extra_levels=1,
        extra_convs=False,
        towers=1,
        pooled=True,
        anchor_scale=8,
        octave_scales=1,
        positive_iou=0.7,
        negative_iou=0.3,
    ),
    "retinanet": DetectorLayout(
        finest_stride=8,
        extra_levels=2,
        extra_convs=True,
        towers=2,
        pooled=False,
        anchor_scale=4,
        octave_scales=SCALES_PER_OCTAVE,
        positive_iou=0.5,
        negative_iou=0.4,
    ),
}
"""The released two-stage detector, and RetinaNet as mmdet configures it (Table 6 of the paper)."""


def layer_label(component: Component, index: int) -> str:
    """Return the label of the layer with a 0-based index, e.g. ``("backbone", 6)`` to ``"backbone/l07"``."""
    return f"{component}/l{index + 1:02d}"


def label_parts(label: str) -> tuple[str, str]:
    """Return a label's component and the layer's name in it, e.g. ``"backbone/l07"`` to ``("backbone", "l07")``."""
    component, _, name = label.partition("/")
    return component, name


def component_of(label: str) -> str:
    """Return the component of a layer by its label, e.g. ``"backbone/l07"`` to ``"backbone"``."""
    return label_parts(label)[0]


def stage_blocks(
    stem_channels: int, widths: Sequence[int], depths: Sequence[int], strides: Sequence[int]
) -> Iterator[tuple[int, int, int]]:
    """Yield ``(in_channels, out_channels, stride)`` of each backbone block; a stage strides in its first block."""
    in_channels = stem_channels
    for width, depth, stride in zip(widths, depths, strides, strict=True):
        for block in range(depth):
            yield in_channels, width, stride if block == 0 else 1
            in_channels = width


def output_stages(strides: Sequence[int]) -> tuple[int, ...]:
    """Return the indices of stages that give a pyramid level: the last of each resolution, from stride 4 on."""
    last = len(strides) - 1
    return tuple(i for i in range(len(strides)) if 2 in strides[: i + 1] and (i == last or strides[i + 1] == 2))


SIDE_DIVISOR = 32
"""mmdet's preprocessor pads the sides of a batch to multiples of this."""


def padded(side: int) -> int:
    """Return the side of a batch that holds images of this side."""
    return -(-side // SIDE_DIVISOR) * SIDE_DIVISOR


class Tail(BaseModel):
    """The blocks behind the last stage that are not searched: an inverted residual and a 1x1 convolution.

    The released network has one, the paper's text does not mention it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: PositiveInt = Field(1024, description="channels of the inverted residual")
    out_channels: PositiveInt = Field(2048, description="channels of the 1x1 convolution, the backbone's last level")


class Skeleton(BaseModel):
    """Everything about a detector's shape that is not searched.

    The defaults are the released network's (five stages and a tail); section 3.3 of the paper has four stages of
    48/96/256/352 channels and 4 + 4 + 8 + 4 blocks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    detector: DetectorKind = Field("faster_rcnn", description="kind of detector")
    input_size: tuple[Annotated[int, Field(ge=32)], Annotated[int, Field(ge=32)]] = Field(
        (800, 1216), description="height and width of the network's input; images are resized to fit and padded"
    )
    stem_channels: PositiveInt = Field(16, description="channels of the stride-2 stem")
    widths: tuple[PositiveInt, ...] = Field((48, 96, 184, 256, 352), description="channels of each stage")
    depths: tuple[BlockCount, ...] = Field((4, 4, 4, 4, 4), description="searched blocks of each stage")
    strides: tuple[Literal[1, 2], ...] = Field((2, 2, 2, 1, 2), description="stride of each stage's first block")
    tail: Tail | None = Field(Tail(), description="unsearched blocks behind the last stage, or null")
    neck_width: PositiveInt = Field(256, description="channels of the pyramid")
    head_width: PositiveInt = Field(256, description="channels of the head's blocks")
    head_blocks: BlockCount = Field(4, description="searched blocks of the head; of each of a RetinaNet's two towers")
    head_fc: PositiveInt = Field(512, description="outputs of the fully connected layer (Faster R-CNN only)")
    anchor_scale: PositiveInt = Field(
        8, description="side of the smallest square anchor in units of its level's stride; 4 by default for a RetinaNet"
    )
    finest_stride: Literal[4, 8] = Field(
        4, description="stride of the pyramid's finest level: 4 takes the backbone's C1, 8 by default for a RetinaNet"
    )
    extra_levels: Annotated[int, Field(ge=0, le=2)] = Field(
        1, description="levels that the neck adds behind the backbone's coarsest map; 2 by default for a RetinaNet"
    )
    boxes: Literal["continuous", "inclusive"] = Field(
        "continuous",
        description="how a box is counted: from edge to edge, or as mmdet 1 did, both ends being pixels of it, for "
        "weights that were trained so (Faster R-CNN only)",
    )
    proposals_train: PositiveInt = Field(2000, description="proposals kept in training (Faster R-CNN only)")
    proposals_test: PositiveInt = Field(1000, description="proposals kept in testing (Faster R-CNN only)")
    roi_samples: PositiveInt = Field(512, description="RoIs sampled for the head's loss (Faster R-CNN only)")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("detector") not in get_args(DetectorKind):
            return values  # the fields' own checks speak
        layout = LAYOUTS[values["detector"]]
        return {**{key: getattr(layout, key) for key in ("anchor_scale", "finest_stride", "extra_levels")}, **values}

    @model_validator(mode="after")
    def _stages_agree(self) -> Skeleton:
        if not len(self.widths) == len(self.depths) == len(self.strides):
            raise ValueError(
                f"widths, depths and strides need one entry a stage, got {len(self.widths)}, {len(self.depths)} "
                f"and {len(self.strides)}"
            )
        if self.boxes == "inclusive" and not self.layout.pooled:
            raise ValueError("boxes: inclusive is of faster_rcnn alone")
        if self.strides.count(2) != 4:
            raise ValueError(f"four stages must have stride 2 (pyramid strides 4 to 32), got {self.strides.count(2)}")
        return self

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width of what the network sees of an image that fills the input size."""
        height, width = self.input_size
        return padded(height), padded(width)

    @property
    def output_stages(self) -> tuple[int, ...]:
        """Indices of the stages whose output is a pyramid level."""
        return output_stages(self.strides)

    @property
    def layout(self) -> DetectorLayout:
        """What the kind of detector does with the pyramid."""
        return LAYOUTS[self.detector]

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of C1..C4; the last is the tail's where there is one."""
        channels = [self.widths[i] for i in self.output_stages]
        if self.tail is not None:
            channels[-1] = self.tail.out_channels
        return tuple(channels)

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Ratio of the image's side to that of each of C1..C4."""
        return tuple(4 * 2**level for level in range(len(self.feature_channels)))

    @property
    def start_level(self) -> int:
        """Index of the finest backbone map that the neck takes; 0 is C1."""
        return self.feature_strides.index(self.finest_stride)

    @property
    def neck_channels(self) -> tuple[int, ...]:
        """Channels of the maps that the neck takes."""
        return self.feature_channels[self.start_level :]

    @property
    def neck_strides(self) -> tuple[int, ...]:
        """Ratio of the image's side to that of each map that the neck takes."""
        return self.feature_strides[self.start_level :]

    @property
    def extra_strides(self) -> tuple[int, ...]:
        """Ratio of the image's side to that of each level that the neck adds behind the coarsest map."""
        return tuple(self.feature_strides[-1] * 2**level for level in range(1, self.extra_levels + 1))

    @property
    def pyramid_strides(self) -> tuple[int, ...]:
        """Ratio of the image's side to that of each level of the pyramid: the anchors' strides."""
        return self.neck_strides + self.extra_strides

    @property
    def anchor_sides(self) -> tuple[float, ...]:
        """Side in pixels of the square anchor of each size, ascending; those of other ratios have the same area."""
        octaves = self.layout.octave_scales
        scales = [self.anchor_scale * 2 ** (step / octaves) for step in range(octaves)]
        return tuple(stride * scale for stride in self.pyramid_strides for scale in scales)

    def searched_layers(self) -> tuple[SearchedLayer, ...]:
        """Return all searched layers: the backbone's blocks, the neck's two rows (fine to coarse), the head's blocks.

        A head with two towers has those of the classification tower first, then those of the box tower.
        """
        layers: list[SearchedLayer] = []
        total = 2  # of the stem
        blocks = stage_blocks(self.stem_channels, self.widths, self.depths, self.strides)
        for index, (in_channels, out_channels, stride) in enumerate(blocks):
            label = layer_label("backbone", index)
            layers.append(SearchedLayer("backbone", label, in_channels, out_channels, stride, (total,)))
            total *= stride
        levels = tuple(zip(self.neck_channels, self.neck_strides, strict=True))
        rows = [*levels, *((self.neck_width, level) for _, level in levels)]
        for index, (channels, level) in enumerate(rows):
            label = layer_label("neck", index)
            layers.append(SearchedLayer("neck", label, channels, self.neck_width, 1, (level,)))
        maps = () if self.layout.pooled else self.pyramid_strides
        for index in range(self.layout.towers * self.head_blocks):
            in_channels = self.neck_width if index % self.head_blocks == 0 else self.head_width
            layers.append(SearchedLayer("head", layer_label("head", index), in_channels, self.head_width, 1, maps))
        return tuple(layers)

    def labels(self, component: Component) -> tuple[str, ...]:
        """Return the labels of one component's layers, in order."""
        return tuple(layer.label for layer in self.searched_layers() if layer.component == component)
