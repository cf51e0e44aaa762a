"""The two-stage detector without mmdet: region proposals, and the searched box head on what is pooled from them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.deployment.boxes import base_anchors, by_anchor, decode, grid_anchors, suppress, with_area
from hitdet_nni.deployment.components import operator_layers
from hitdet_nni.deployment.detector import Detector
from hitdet_nni.model.two_stage import faster_rcnn

FINEST_SCALE = 56.0
"""Side in pixels of a RoI below twice which it is pooled from the finest level (mmdet's default)."""


def _end(config: dict[str, Any]) -> float:
    """Return 1 where the last pixel is part of a box, by mmdet's config of a head; else 0."""
    return float(config["bbox_coder"]["type"].startswith("Legacy"))


class RegionProposals(nn.Module):
    """Where objects may be.

    Args:
        config: mmdet's config of the region proposal network.
        test: Its test settings.
    """

    anchors: Tensor
    stds: Tensor

    def __init__(self, config: dict[str, Any], test: dict[str, Any]) -> None:
        super().__init__()
        channels, anchors = config["feat_channels"], config["anchor_generator"]
        self.strides: list[int] = list(anchors["strides"])
        self.end = _end(config)
        bases = [base_anchors(stride, anchors["scales"], anchors["ratios"], self.end) for stride in self.strides]
        self.register_buffer("anchors", torch.stack(bases), persistent=False)
        self.register_buffer("stds", torch.tensor(config["bbox_coder"]["target_stds"]), persistent=False)
        self.rpn_conv = nn.Conv2d(config["in_channels"], channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, len(bases[0]), 1)
        self.rpn_reg = nn.Conv2d(channels, len(bases[0]) * 4, 1)
        self.in_half = False
        self.candidates: int = test["nms_pre"]
        self.most: int = test["max_per_img"]
        self.iou_threshold: float = test["nms"]["iou_threshold"]

    def heads(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Return the L logits ``[1, A, H_i, W_i]``, then L box offsets ``[1, 4 * A, H_i, W_i]``."""
        logits: list[Tensor] = []
        offsets: list[Tensor] = []
        for level in pyramid:
            hidden = torch.relu(self.rpn_conv(level.half() if self.in_half else level)).float()
            logits.append(self.rpn_cls(hidden))
            offsets.append(self.rpn_reg(hidden))
        return logits + offsets

    def forward(self, heads: list[Tensor], extent: Tensor) -> Tensor:
        """Return proposals ``[R, 4]``: boxes of each level's best anchors, suppressed level by level, best first."""
        boxes: list[Tensor] = []
        scores: list[Tensor] = []
        levels: list[Tensor] = []
        for index, stride in enumerate(self.strides):
            logits, offsets = heads[index], heads[len(self.strides) + index]
            ranked, order = by_anchor(logits, 1).squeeze(1).sigmoid().sort(descending=True)
            best = order[: self.candidates]
            anchors = grid_anchors(self.anchors[index], logits, stride)[best]
            boxes.append(decode(anchors, by_anchor(offsets, 4)[best] * self.stds, extent, self.end))
            scores.append(ranked[: self.candidates])
            levels.append(torch.full_like(best, index))
        found = torch.cat(boxes)
        sound = with_area(found)
        found = found[sound]
        kept = suppress(found, torch.cat(scores)[sound], torch.cat(levels)[sound], self.iou_threshold, self.most)
        return found[kept]


class BoxHead(nn.Module):
    """The searched blocks, a fully connected layer, and the class and box outputs.

    Args:
        config: mmdet's config of the box head.
        layers: The blocks, in order.

    Shape:
        Pooled RoIs ``[R, C, 7, 7]`` to logits ``[R, num_classes + 1]``, the background's last, and box offsets
        ``[R, 4 * num_classes]``.
    """

    def __init__(self, config: dict[str, Any], layers: Sequence[nn.Module]) -> None:
        super().__init__()
        num_classes, channels = config["num_classes"], config["fc_out_channels"]
        self.in_half = False
        self.blocks = nn.Sequential(*layers)
        self.shared_fcs = nn.Sequential(nn.Linear(config["width"] * config["roi_feat_size"] ** 2, channels))
        self.fc_cls = nn.Linear(channels, num_classes + 1)
        self.fc_reg = nn.Linear(channels, 4 * num_classes)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Classify and move pooled RoIs."""
        pooled = pooled.half() if self.in_half else pooled
        hidden = torch.relu(self.shared_fcs(self.blocks(pooled).flatten(1))).float()
        return self.fc_cls(hidden), self.fc_reg(hidden)


class RegionHead(nn.Module):
    """RoIs, pooled from the level that fits their size, classified and moved.

    Args:
        config: mmdet's config of the RoI head.
        test: Its test settings.
        layers: The blocks of the head, in order.
    """

    stds: Tensor

    def __init__(self, config: dict[str, Any], test: dict[str, Any], layers: Sequence[nn.Module]) -> None:
        super().__init__()
        extractor, head = config["bbox_roi_extractor"], config["bbox_head"]
        self.bbox_head = BoxHead(head, layers)
        self.register_buffer("stds", torch.tensor(head["bbox_coder"]["target_stds"]), persistent=False)
        self.strides: list[int] = list(extractor["featmap_strides"])
        self.size: int = extractor["roi_layer"]["output_size"]
        self.samples: int = extractor["roi_layer"]["sampling_ratio"]
        self.aligned: bool = extractor["roi_layer"]["aligned"]
        self.end = _end(head)
        self.finest_scale = FINEST_SCALE
        self.num_classes: int = head["num_classes"]
        self.score_threshold: float = test["score_thr"]
        self.iou_threshold: float = test["nms"]["iou_threshold"]
        self.most: int = test["max_per_img"]

    def heads(self, pyramid: list[Tensor], rois: Tensor) -> list[Tensor]:
        """Return the class logits and box offsets of RoIs ``[R, 4]``; for their shapes see :class:`BoxHead`."""
        scale = (rois[:, 2:] - rois[:, :2]).prod(dim=1).sqrt() / self.finest_scale
        levels = torch.log2(scale + 1e-6).floor().clamp(0, len(self.strides) - 1).long()
        of_image = torch.cat([rois.new_zeros(rois.size(0), 1), rois], dim=1)
        pooled: list[Tensor] = []
        for index, stride in enumerate(self.strides):
            of_level = of_image[torch.nonzero(levels == index).squeeze(1)]
            pooled.append(
                roi_align(pyramid[index], of_level, (self.size, self.size), 1 / stride, self.samples, self.aligned)
            )
        # ONNX has no stable sort, hence keys that are distinct.
        numbers = torch.arange(rois.size(0), device=rois.device)
        place = (levels * rois.size(0) + numbers).argsort().argsort()
        logits, offsets = self.bbox_head(torch.cat(pooled)[place])
        return [logits, offsets]

    def forward(self, heads: list[Tensor], rois: Tensor, extent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the boxes ``[D, 4]``, scores and labels: what is above the threshold, suppressed class by class."""
        scores = heads[0].softmax(dim=1)[:, : self.num_classes].flatten()
        sure = torch.nonzero(scores > self.score_threshold).squeeze(1)
        labels, scores = sure % self.num_classes, scores[sure]
        boxes = decode(rois[sure // self.num_classes], heads[1].reshape(-1, 4)[sure] * self.stds, extent, self.end)
        kept = suppress(boxes, scores, labels, self.iou_threshold, self.most)
        return boxes[kept], scores[kept], labels[kept]


class TwoStageDetector(Detector):
    """The detector that is trained as mmdet's ``FasterRCNN``; for arguments and shapes see :class:`Detector`."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        config = faster_rcnn(architecture.skeleton, [], architecture.num_classes)
        test = config["test_cfg"]
        self.rpn_head = RegionProposals(config["rpn_head"], test["rpn"])
        self.roi_head = RegionHead(config["roi_head"], test["rcnn"], operator_layers(architecture, "head"))

    def compute_in_half(self) -> None:
        """Have all layers compute in half precision but the last ones."""
        super().compute_in_half()
        head = self.roi_head.bbox_head
        self.rpn_head.in_half = head.in_half = True
        for part in (self.rpn_head.rpn_conv, head.blocks, head.shared_fcs):
            part.half()

    def head_names(self) -> tuple[str, ...]:
        """Return the proposal network's outputs by stride, the RoIs, their class logits and box offsets."""
        by_level = [f"rpn_{kind}_{stride}" for kind in ("logits", "offsets") for stride in self.rpn_head.strides]
        return (*by_level, "rois", "logits", "offsets")

    def heads_of(self, pyramid: list[Tensor], extent: Tensor) -> list[Tensor]:
        """Return the proposal network's L logits and L box offsets; the RoIs ``[R, 4]``; their logits and offsets."""
        proposals = self.rpn_head.heads(pyramid)
        rois = self.rpn_head(proposals, extent)
        outputs: list[Tensor] = list(proposals)
        outputs.append(rois)
        outputs.extend(self.roi_head.heads(pyramid, rois))
        return outputs

    def decoded(self, heads: list[Tensor], extent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the boxes ``[D, 4]``, scores and labels ``[D]`` that the region head finds."""
        found: tuple[Tensor, Tensor, Tensor] = self.roi_head(heads[-2:], heads[-3], extent)
        return found
