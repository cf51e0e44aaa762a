"""The one-stage detector without mmdet: the searched towers on every level of the pyramid."""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.deployment.boxes import base_anchors, by_anchor, decode, grid_anchors, suppress, with_area
from hitdet_nni.deployment.components import operator_layers
from hitdet_nni.deployment.detector import Detector
from hitdet_nni.model.one_stage import retinanet


def level_towers(layers: Sequence[nn.Module], levels: int) -> nn.ModuleList:
    """Build a tower for each level: all have the same parameters, and each its own batch statistics."""
    first = nn.Sequential(*layers)
    towers = nn.ModuleList([first, *(copy.deepcopy(first) for _ in range(levels - 1))])
    for tower in towers:
        for own, shared in zip(tower.modules(), first.modules(), strict=True):
            for name, parameter in shared.named_parameters(recurse=False):
                setattr(own, name, parameter)
    return towers


def state_by_level(state: Mapping[str, Any], levels: int) -> dict[str, Any]:
    """Turn the state of a trained ``HitRetinaHead``, with statistics by level, into that of :class:`RetinaHead`."""
    result: dict[str, Any] = {}
    for key, value in state.items():
        tower = re.fullmatch(r"(bbox_head\.(?:cls|reg)_convs)\.(.+)", key)
        if tower is None:
            result[key] = value
            continue
        statistics = key.endswith((".running_mean", ".running_var"))
        for level in range(levels):
            result[f"{tower[1]}.{level}.{tower[2]}"] = value[level] if statistics else value
    return result


class RetinaHead(nn.Module):
    """The towers and the two output layers.

    Args:
        config: mmdet's config of the head.
        test: Its test settings.
        layers: The blocks: first those of the classification tower, then as many of the box tower.
    """

    stds: Tensor
    anchors: Tensor

    def __init__(self, config: dict[str, Any], test: dict[str, Any], layers: Sequence[nn.Module]) -> None:
        super().__init__()
        anchors, width = config["anchor_generator"], config["width"]
        octaves = anchors["scales_per_octave"]
        scales = [anchors["octave_base_scale"] * 2 ** (step / octaves) for step in range(octaves)]
        self.strides: list[int] = list(anchors["strides"])
        bases = [base_anchors(stride, scales, anchors["ratios"]) for stride in self.strides]
        self.register_buffer("anchors", torch.stack(bases), persistent=False)
        self.register_buffer("stds", torch.tensor(config["bbox_coder"]["target_stds"]), persistent=False)
        self.num_classes: int = config["num_classes"]
        half = len(layers) // 2
        self.cls_convs = level_towers(layers[:half], len(self.strides))
        self.reg_convs = level_towers(layers[half:], len(self.strides))
        self.retina_cls = nn.Conv2d(width, len(bases[0]) * self.num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(width, len(bases[0]) * 4, 3, padding=1)
        self.in_half = False
        self.candidates: int = test["nms_pre"]
        self.score_threshold: float = test["score_thr"]
        self.iou_threshold: float = test["nms"]["iou_threshold"]
        self.most: int = test["max_per_img"]

    def heads(self, pyramid: list[Tensor]) -> list[Tensor]:
        """Return the L logits ``[1, A * num_classes, H_i, W_i]``, then L box offsets ``[1, 4 * A, H_i, W_i]``."""
        logits: list[Tensor] = []
        for index, tower in enumerate(self.cls_convs):
            logits.append(self.retina_cls(tower(self._taken(pyramid[index])).float()))
        for index, tower in enumerate(self.reg_convs):
            logits.append(self.retina_reg(tower(self._taken(pyramid[index])).float()))
        return logits

    def _taken(self, level: Tensor) -> Tensor:
        """Return a level ``[1, C, H, W]`` as the towers compute."""
        return level.half() if self.in_half else level

    def forward(self, heads: list[Tensor], extent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes ``[D, 4]``, scores, labels: each level's best above the threshold, suppressed class by class."""
        boxes: list[Tensor] = []
        scores: list[Tensor] = []
        labels: list[Tensor] = []
        for index, stride in enumerate(self.strides):
            logits, offsets = heads[index], heads[len(self.strides) + index]
            level_scores = by_anchor(logits, self.num_classes).sigmoid().flatten()
            sure = torch.nonzero(level_scores > self.score_threshold).squeeze(1)
            ranked, order = level_scores[sure].sort(descending=True)
            best = sure[order[: self.candidates]]
            anchor = best // self.num_classes
            anchors = grid_anchors(self.anchors[index], logits, stride)[anchor]
            boxes.append(decode(anchors, by_anchor(offsets, 4)[anchor] * self.stds, extent))
            scores.append(ranked[: self.candidates])
            labels.append(best % self.num_classes)
        all_boxes = torch.cat(boxes)
        sound = with_area(all_boxes)
        found, score, label = all_boxes[sound], torch.cat(scores)[sound], torch.cat(labels)[sound]
        kept = suppress(found, score, label, self.iou_threshold, self.most)
        return found[kept], score[kept], label[kept]


class OneStageDetector(Detector):
    """The detector that is trained as mmdet's ``RetinaNet``; for arguments and shapes see :class:`Detector`."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        config = retinanet(architecture.skeleton, [], architecture.num_classes)
        self.bbox_head = RetinaHead(config["bbox_head"], config["test_cfg"], operator_layers(architecture, "head"))

    def compute_in_half(self) -> None:
        """Have all layers compute in half precision but the last ones."""
        super().compute_in_half()
        self.bbox_head.in_half = True
        self.bbox_head.cls_convs.half()
        self.bbox_head.reg_convs.half()

    def head_names(self) -> tuple[str, ...]:
        """Return the class logits and box offsets by stride."""
        return tuple(f"{kind}_{stride}" for kind in ("logits", "offsets") for stride in self.bbox_head.strides)

    def heads_of(self, pyramid: list[Tensor], extent: Tensor) -> list[Tensor]:
        """Return the L class logits, then L box offsets, fine to coarse, of the shapes that the box head gives."""
        outputs: list[Tensor] = self.bbox_head.heads(pyramid)
        return outputs

    def decoded(self, heads: list[Tensor], extent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the boxes ``[D, 4]``, scores and labels ``[D]`` that the towers find."""
        found: tuple[Tensor, Tensor, Tensor] = self.bbox_head(heads, extent)
        return found
