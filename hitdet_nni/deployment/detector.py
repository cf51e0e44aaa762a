"""What both kinds of detector share: from an image to the pyramid, and from what the heads say to detections."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.deployment.components import Backbone, Neck, operator_layers
from hitdet_nni.model.preprocessing import PREPROCESSING


class Detector(nn.Module):
    """A decided detector of plain torch modules, for inference on one image at a time.

    A subclass adds the heads; parameters have the names that they have in the trained detector.

    Args:
        architecture: What to build.

    Shape:
        An image ``[1, 3, H, W]`` of 8 bits, red, green, blue, to boxes ``[D, 4]`` in its pixels, scores ``[D]`` and
        labels ``[D]``, best first.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.backbone = Backbone(architecture.skeleton, operator_layers(architecture, "backbone"))
        self.neck = Neck(architecture.skeleton, operator_layers(architecture, "neck"))
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(PREPROCESSING[name]).view(3, 1, 1), persistent=False)
        self.divisor: int = PREPROCESSING["pad_size_divisor"]

    def heads(self, images: Tensor) -> list[Tensor]:
        """Return what the heads say of ``[1, 3, H, W]``, before boxes are decoded and suppressed."""
        raise NotImplementedError

    def head_names(self) -> tuple[str, ...]:
        """Return the names of the outputs of :meth:`heads`."""
        raise NotImplementedError

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Return the pyramid of ``[1, 3, H, W]``, normalised and then padded with zeros at the right and the bottom."""
        x = (images.float() - self.mean) / self.std
        height, width = x.size(2), x.size(3)
        below = (height + self.divisor - 1) // self.divisor * self.divisor - height
        beside = (width + self.divisor - 1) // self.divisor * self.divisor - width
        pyramid: list[Tensor] = self.neck(self.backbone(F.pad(x, [0, beside, 0, below])))
        return pyramid

    def extent(self, images: Tensor) -> Tensor:
        """Return the width, height, width, height of the image in pixels, ``[4]``."""
        width = torch.full((1,), images.size(3), dtype=torch.float32, device=images.device)
        height = torch.full((1,), images.size(2), dtype=torch.float32, device=images.device)
        return torch.cat([width, height, width, height])


class RawHeads(nn.Module):
    """What a detector's heads say, before boxes are decoded and suppressed.

    Args:
        detector: The detector.

    Shape:
        An image as the detector takes it to the tensors that its ``head_names()`` name.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map an image to the outputs of the heads."""
        outputs: list[Tensor] = self.detector.heads(images)
        return outputs
