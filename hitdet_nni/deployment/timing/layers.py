"""The layers of a detector as modules by themselves, with what they are applied to in inference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hitdet_nni.config.skeleton import ROI_SIZE, SearchedLayer, Skeleton
from hitdet_nni.deployment.detector import Detector
from hitdet_nni.deployment.one_stage import OneStageDetector
from hitdet_nni.deployment.two_stage import RegionProposals, TwoStageDetector
from hitdet_nni.operators.costs import Size, halved
from hitdet_nni.operators.registry import build_operator

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Application:
    """A module that is applied to one tensor.

    Attributes:
        key: What it is; two with the same key take the same time.
        shape: Shape of the tensor.
        build: Makes the module.
    """

    key: tuple[object, ...]
    shape: Shape
    build: Callable[[], nn.Module]


def searched_applications(layer: SearchedLayer, name: str, skeleton: Skeleton) -> list[Application]:
    """Return what a searched layer with an operator does to one image: one application for each map that it sees.

    Args:
        layer: The layer.
        name: Its operator.
        skeleton: Gives the input size, and the RoIs of a layer that sees pooled ones.
    """
    channels = (layer.in_channels, layer.out_channels, layer.stride)
    shapes = [(1, layer.in_channels, *_size(skeleton, stride)) for stride in layer.input_strides]
    if not shapes:
        shapes = [(skeleton.proposals_test, layer.in_channels, ROI_SIZE, ROI_SIZE)]
    return [
        Application((name, *channels, shape), shape, lambda: build_operator(name, *channels).eval()) for shape in shapes
    ]


def fixed_applications(detector: Detector, skeleton: Skeleton) -> Mapping[str, list[Application]]:
    """Return what the layers that are not searched do to one image.

    Args:
        detector: Any detector of the skeleton.
        skeleton: The skeleton.

    Returns:
        By the names of :func:`hitdet_nni.cost.fixed_cost.fixed_layers`, with their parts.
    """
    found: dict[str, list[Application]] = {}

    def add(name: str, module: nn.Module, shapes: list[Shape]) -> None:
        found[name] = [Application((name, shape), shape, module.eval) for shape in shapes]

    def maps(channels: int, strides: tuple[int, ...]) -> list[Shape]:
        return [(1, channels, *_size(skeleton, stride)) for stride in strides]

    width = skeleton.neck_width
    add("backbone/stem", detector.backbone.stem, [(1, 3, *skeleton.padded_size)])
    if skeleton.tail is not None:
        add("backbone/tail", detector.backbone.tail, maps(skeleton.widths[-1], skeleton.feature_strides[-1:]))
    for index, convolution in enumerate(detector.neck.fuse):
        add(f"neck/fuse{index + 1}", convolution, maps(width, skeleton.neck_strides[index + 1 : index + 2]))
    for index, convolution in enumerate(detector.neck.extra):
        before = skeleton.pyramid_strides[len(skeleton.neck_strides) - 1 + index]
        add(f"neck/extra{index + 1}", convolution, maps(width, (before,)))
    levels = skeleton.pyramid_strides
    if isinstance(detector, TwoStageDetector):
        add("rpn/rpn", _Proposing(detector.rpn_head), maps(width, levels))
        head = detector.roi_head.bbox_head
        pooled = (skeleton.proposals_test, skeleton.head_width, ROI_SIZE, ROI_SIZE)
        add("head/fc", _Deciding(head.shared_fcs, head.fc_cls, head.fc_reg), [pooled])
    elif isinstance(detector, OneStageDetector):
        add("head/classes", detector.bbox_head.retina_cls, maps(skeleton.head_width, levels))
        add("head/boxes", detector.bbox_head.retina_reg, maps(skeleton.head_width, levels))
    return found


class _Proposing(nn.Module):
    """The region proposal network on one level."""

    def __init__(self, network: RegionProposals) -> None:
        super().__init__()
        self.network = network

    def forward(self, level: Tensor) -> list[Tensor]:
        return self.network.heads([level])


class _Deciding(nn.Module):
    """What stands behind the blocks of a two-stage head."""

    def __init__(self, hidden: nn.Module, classes: nn.Module, boxes: nn.Module) -> None:
        super().__init__()
        self.hidden, self.classes, self.boxes = hidden, classes, boxes

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.hidden(pooled.flatten(1)))
        return self.classes(hidden), self.boxes(hidden)


def _size(skeleton: Skeleton, stride: int) -> Size:
    return halved(skeleton.padded_size, stride)
