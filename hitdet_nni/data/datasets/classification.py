"""Images for classification, one folder a class: decoded, augmented, put together.

Images stay as OpenCV decodes them, 8-bit in the order blue, green, red, until the classifier normalises them as the
detector does its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import v2

from hitdet_nni.config.settings import PretrainSettings
from hitdet_nni.data.class_folders import LabeledImages
from hitdet_nni.data.images.reading import ImageDefect, ImageError, read_image
from hitdet_nni.errors import InputError

CROP_SHARE = 224 / 256
"""Side of the validation crop relative to the shorter side of the resized image."""

Batch = tuple[Tensor, Tensor, Tensor]
"""Images ``[N, 3, S, S]`` of 8 bits, their classes ``[N]`` and their numbers in the data set ``[N]``."""


def training_transform(settings: PretrainSettings) -> v2.Transform:
    """Build a random crop of random size and shape, resized, and mirrored at random where that is allowed.

    Source:
        Szegedy et al., Going Deeper with Convolutions, section 6; the paper does not describe its own.
    """
    crop = v2.RandomResizedCrop(settings.size, scale=(settings.min_crop, 1.0), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(0.5 if settings.flip else 0.0)])


def validation_transform(settings: PretrainSettings) -> v2.Transform:
    """Build the crop of the image's centre, resized."""
    return v2.Compose([v2.Resize(round(settings.size / CROP_SHARE), antialias=True), v2.CenterCrop(settings.size)])


class FolderImages(Dataset[Any]):
    """The images of a split, decoded as the detector's are and transformed.

    Args:
        images: The split.
        transform: From a ``[3, H, W]`` tensor of 8 bits to one of the input size.
    """

    def __init__(self, images: LabeledImages, transform: v2.Transform) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int] | ImageDefect:
        """Return the image, class and number; a defect where the file cannot be read.

        A defect is returned, not raised, since a worker process cannot raise an error of one line.
        """
        file = self.images.root / self.images.files[index]
        try:
            image = read_image(file)
        except ImageError as error:
            return ImageDefect(file, error.problem)
        tensor = torch.from_numpy(image).permute(2, 0, 1).contiguous()
        return self.transform(tensor), self.images.labels[index], index


def collate(items: Sequence[tuple[Tensor, int, int] | ImageDefect]) -> Batch | ImageDefect:
    """Put together a batch of images ``[B, 3, side, side]``, labels ``[B]`` and ids ``[B]``, or its first defect."""
    for item in items:
        if isinstance(item, ImageDefect):
            return item
    batch: list[Tensor] = default_collate(list(items))
    return batch[0], batch[1], batch[2]


def sound(batch: Batch | ImageDefect) -> Batch:
    """Return the batch itself.

    Raises:
        InputError: Naming the file, if the batch is a defect.
    """
    if isinstance(batch, ImageDefect):
        raise InputError(batch.problem, source=batch.file)
    return batch
