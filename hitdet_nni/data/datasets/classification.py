"""Images for classification, whole ones or boxes cut out of them: decoded, augmented, put together.

Images stay as OpenCV decodes them, 8-bit in the order blue, green, red, until the classifier normalises them as the
detector does its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import v2

from hitdet_nni.config.settings import PretrainSettings
from hitdet_nni.data.box_crops import LabeledBoxes
from hitdet_nni.data.class_folders import LabeledImages
from hitdet_nni.data.images.reading import ImageDefect, ImageError, read_image
from hitdet_nni.errors import InputError

CROP_SHARE = 224 / 256
"""Side of the validation crop relative to the shorter side of the resized image."""

MIN_CROP = 0.08
"""Smallest share of an image in a training crop, where the settings give none."""

MIN_BOX_CROP = 0.5
"""Smallest share of the square around a box in a training crop, where the settings give none."""

Batch = tuple[Tensor, Tensor, Tensor]
"""Images ``[N, 3, S, S]`` of 8 bits, their classes ``[N]`` and their numbers in the data set ``[N]``."""


def build_images(images: LabeledImages, settings: PretrainSettings, *, training: bool) -> FolderImages:
    """Build the data set of one split: of whole images, or of boxes cut out of them.

    Args:
        images: The split.
        settings: The ``pretrain`` section.
        training: Whether images are cropped and mirrored at random.
    """
    if not isinstance(images, LabeledBoxes):
        return FolderImages(images, training_transform(settings) if training else validation_transform(settings))
    recipe = {"min_crop": settings.min_crop or MIN_BOX_CROP, "flip": settings.flip and images.flip}
    settings = settings.model_copy(update=recipe)
    transform = training_transform(settings) if training else validation_transform(settings)
    return BoxCrops(images, transform, resized_side(settings), images.cache_bytes // max(1, settings.workers))


def training_transform(settings: PretrainSettings) -> v2.Transform:
    """Build a random crop of random size and shape, resized, and mirrored at random where that is allowed.

    Source:
        Szegedy et al., Going Deeper with Convolutions, section 6; the paper does not describe its own.
    """
    share = (settings.min_crop or MIN_CROP, 1.0)
    crop = v2.RandomResizedCrop(settings.size, scale=share, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(0.5 if settings.flip else 0.0)])


def resized_side(settings: PretrainSettings) -> int:
    """Return the shorter side in pixels of a resized image, of which a validation crop is the centre."""
    return round(settings.size / CROP_SHARE)


def validation_transform(settings: PretrainSettings) -> v2.Transform:
    """Build the crop of the image's centre, resized."""
    return v2.Compose([v2.Resize(resized_side(settings), antialias=True), v2.CenterCrop(settings.size)])


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
            image = self.pixels(file, index)
        except ImageError as error:
            return ImageDefect(file, error.problem)
        tensor = torch.from_numpy(image).permute(2, 0, 1).contiguous()
        return self.transform(tensor), self.images.labels[index], index

    def pixels(self, file: Path, index: int) -> NDArray[np.uint8]:
        """Return what is transformed, ``[H, W, 3]``.

        Args:
            file: The image file.
            index: Number of the item.

        Raises:
            ImageError: If the file cannot be read.
        """
        return read_image(file)


class BoxCrops(FolderImages):
    """The boxes of a split, each cut out with what is around it and resized; those that fit in memory only once.

    Beyond an edge of the image its outermost pixels are repeated.

    Args:
        boxes: The split.
        transform: From a ``[3, side, side]`` tensor of 8 bits to one of the input size.
        side: Side in pixels that squares are resized to.
        capacity: Bytes of resized squares to keep; loader processes keep squares of their own.
    """

    images: LabeledBoxes

    def __init__(self, boxes: LabeledBoxes, transform: v2.Transform, side: int, capacity: int) -> None:
        super().__init__(boxes, transform)
        self.side = side
        self._capacity = capacity
        self._cached: dict[int, NDArray[np.uint8]] = {}

    def pixels(self, file: Path, index: int) -> NDArray[np.uint8]:
        """Return the square around a box, ``[side, side, 3]``.

        Raises:
            ImageError: If the file cannot be read.
        """
        if index in self._cached:
            return self._cached[index]
        square = cut(read_image(file), self.images.squares[index].tolist())
        # Averaging areas keeps small squares from aliasing; it cannot enlarge.
        method = cv2.INTER_AREA if len(square) > self.side else cv2.INTER_LINEAR
        resized = np.asarray(cv2.resize(square, (self.side, self.side), interpolation=method), dtype=np.uint8)
        if self._capacity >= resized.nbytes:
            self._capacity -= resized.nbytes
            self._cached[index] = resized
        return resized


def cut(image: NDArray[np.uint8], square: Sequence[int]) -> NDArray[np.uint8]:
    """Cut a rectangle out of an image; beyond an edge the outermost pixels are repeated.

    Args:
        image: ``[H, W, C]``.
        square: Left, top, right and bottom in pixels.

    Returns:
        ``[bottom - top, right - left, C]``.
    """
    left, top, right, bottom = square
    height, width = image.shape[:2]
    rows = np.arange(top, bottom).clip(0, height - 1)
    columns = np.arange(left, right).clip(0, width - 1)
    crop: NDArray[np.uint8] = image[rows[:, None], columns]
    return crop


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
