"""What both kinds of detector share: from an image to the pyramid, and from what the heads say to detections."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.deployment.components import Backbone, Neck, operator_layers
from hitdet_nni.deployment.images import Found, Pixels
from hitdet_nni.deployment.prediction import THRESHOLD, Prediction, Source, predict
from hitdet_nni.model.preprocessing import PREPROCESSING
from hitdet_nni.operators.costs import Size


class Detector(nn.Module):
    """A decided detector of plain torch modules, for inference.

    A subclass adds the heads; parameters have the names that they have in the trained detector.

    Args:
        architecture: What to build.

    Attributes:
        classes: Class names in the order of the labels.
        input_size: Height and width that images are resized to fit.

    Shape:
        An image ``[1, 3, H, W]`` of 8 bits, red, green, blue, to boxes ``[D, 4]`` in its pixels, scores ``[D]`` and
        labels ``[D]``, best first.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.classes: tuple[str, ...] = tuple(architecture.provenance.classes)
        self.input_size: Size = architecture.skeleton.input_size
        self.backbone = Backbone(architecture.skeleton, operator_layers(architecture, "backbone"))
        self.neck = Neck(architecture.skeleton, operator_layers(architecture, "neck"))
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(PREPROCESSING[name]).view(3, 1, 1), persistent=False)
        self.divisor: int = PREPROCESSING["pad_size_divisor"]
        self.in_half = False

    def compute_in_half(self) -> None:
        """Have all layers compute in half precision but the last ones, whose outputs are scores and box offsets."""
        self.in_half = True
        self.backbone.half()
        self.neck.half()

    def heads_of(self, pyramid: list[Tensor], extent: Tensor) -> list[Tensor]:
        """Return what the heads say of an image's pyramid and :meth:`extent`, before boxes are decoded."""
        raise NotImplementedError

    def decoded(self, heads: list[Tensor], extent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes ``[D, 4]``, scores and labels by what the heads say of an image."""
        raise NotImplementedError

    def head_names(self) -> tuple[str, ...]:
        """Return the names of the outputs of :meth:`heads`."""
        raise NotImplementedError

    @torch.jit.export
    def heads(self, images: Tensor) -> list[Tensor]:
        """Return what the heads say of ``[1, 3, H, W]``, before boxes are decoded and suppressed."""
        return self.heads_of(self.pyramid(images), self.extent(images))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find objects in an image ``[1, 3, H, W]``; of several the others would be lost."""
        assert images.size(0) == 1, "takes one image"
        return self.decoded(self.heads(images), self.extent(images))

    @torch.jit.unused
    def run(self, images: Pixels) -> list[Found]:
        """Map resized images ``[B, 3, H', W']`` to boxes ``[D, 4]`` in their pixels, scores and labels of each."""
        with torch.inference_mode():
            batch = torch.from_numpy(images).to(self.mean.device)
            pyramid, extent = self.pyramid(batch), self.extent(batch)
            found = []
            for number in range(len(batch)):
                heads = self.heads_of([level[number : number + 1] for level in pyramid], extent)
                boxes, scores, labels = (part.cpu().numpy() for part in self.decoded(heads, extent))
                found.append((boxes, scores, labels))
        return found

    @torch.jit.unused
    def predict(self, source: Source, threshold: float = THRESHOLD) -> Prediction:
        """Find objects in an image; for arguments and errors see :func:`hitdet_nni.deployment.prediction.predict`."""
        return predict(self, source, threshold)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Return the pyramid of ``[B, 3, H, W]``, normalised and then padded with zeros at the right and the bottom."""
        x = (images.float() - self.mean) / self.std
        height, width = x.size(2), x.size(3)
        below = (height + self.divisor - 1) // self.divisor * self.divisor - height
        beside = (width + self.divisor - 1) // self.divisor * self.divisor - width
        x = F.pad(x, [0, beside, 0, below])
        pyramid: list[Tensor] = self.neck(self.backbone(x.half() if self.in_half else x))
        return [level.float() for level in pyramid]

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
