"""The classifier that pretrains a backbone: the detector's own backbone, global average pooling and a linear layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.model import initialize
from nni.nas.nn.pytorch import ModelSpace
from torch import Tensor, nn

from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.model.detector import detector_config
from hitdet_nni.model.searchable import Candidates


class HitClassifier(nn.Module):
    """A backbone built and initialised, and its images normalised, as in a detector of the same skeleton.

    Args:
        skeleton: The parts that are not searched.
        operators: One entry a block: an operator name where it is decided, the candidates' names where it is searched.
        num_classes: Classes of the images.

    Shape:
        Images of 8 bits, blue, green, red, ``[N, 3, H, W]`` to logits ``[N, num_classes]``.

    Raises:
        InputError: If the number of entries is not the number of blocks, or a name is not an operator's.

    Source:
        Section 4.2; it says that the backbone is pretrained on ImageNet, not with what behind it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, skeleton: Skeleton, operators: Sequence[Candidates], num_classes: int) -> None:
        super().__init__()
        config = detector_config(skeleton, {"backbone": operators, "neck": (), "head": ()}, num_classes)
        pixels = config["data_preprocessor"]
        self.bgr_to_rgb = bool(pixels["bgr_to_rgb"])
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(pixels[name]).view(3, 1, 1), persistent=False)
        self.backbone: nn.Module = MODELS.build(ConfigDict(config["backbone"], _scope_="mmdet"))
        initialize(self.backbone, self.backbone.init_cfg)  # as init_weights() does, without a line of log a parameter
        self.linear = nn.Linear(skeleton.feature_channels[-1], num_classes)

    def normalized(self, images: Tensor) -> Tensor:
        """Return the images of 8 bits as the backbone takes them, ``[N, 3, H, W]``."""
        ordered = images.flip(1) if self.bgr_to_rgb else images
        return (ordered.float() - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        features: Tensor = self.backbone(self.normalized(images))[-1]
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits


class HitClassifierSpace(ModelSpace):  # type: ignore[misc]
    """A classifier whose blocks are NNI ``LayerChoice``s, labelled as in the detector's space.

    Args:
        skeleton: The parts that are not searched.
        candidates: Operator names of every block.
        num_classes: Classes of the images.

    Shape:
        As :class:`HitClassifier`.
    """

    def __init__(self, skeleton: Skeleton, candidates: Sequence[str], num_classes: int) -> None:
        super().__init__()
        operators = [list(candidates)] * len(skeleton.labels("backbone"))
        self.classifier = HitClassifier(skeleton, operators, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        logits: Tensor = self.classifier(images)
        return logits
