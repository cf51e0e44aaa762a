"""An exported file beside the detector that it was made of: images to calibrate it on, and its accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations
from hitdet_nni.data.images.reading import read_image, resized
from hitdet_nni.deployment import Format
from hitdet_nni.deployment.files import open_file
from hitdet_nni.deployment.formats import LARGEST, SMALLEST
from hitdet_nni.deployment.images import Pixels, fit_image
from hitdet_nni.deployment.loading import load_detector
from hitdet_nni.errors import InputError
from hitdet_nni.operators.costs import Size
from hitdet_nni.training.precisions import Detections


@dataclass(frozen=True)
class FileCheck:
    """The accuracy of a file and of the detector that it was made of, on the same images.

    Attributes:
        eager: mAP of the detector.
        file: mAP of the file.
        images: How many images.
    """

    eager: float
    file: float
    images: int

    def sentence(self) -> str:
        """Return the same in words."""
        difference = self.file - self.eager
        return f"mAP on {self.images} images: {self.eager:.4f} eager, {self.file:.4f} of the file ({difference:+.4f})"


def calibration_images(train: CocoAnnotations, input_size: Size, count: int) -> Iterator[Pixels]:
    """Yield training images, evenly spaced over the set, as a detector takes them, ``[1, 3, H, W]``.

    Args:
        train: The images.
        input_size: Height and width that they are resized to fit.
        count: How many; of a smaller set all.
    """
    names = train.file_names
    count = min(count, len(names))
    for number in range(count):
        yield fit_image(read_image(train.images / names[number * len(names) // count]), input_size)


def check_file(
    file: Path, kind: Format, architecture: Architecture, weights: Path, validation: CocoAnnotations
) -> FileCheck:
    """Evaluate a file, and the detector that it was made of, on all validation images.

    Args:
        file: The file, a whole detector.
        kind: Its format.
        architecture: What it was made of.
        weights: File of the trained weights.
        validation: The images.

    Raises:
        InputError: If an image is resized to a size that the format does not take.
    """
    if kind == "torch-export":
        for name, size in zip(validation.file_names, validation.sizes, strict=True):
            sides = resized(size, architecture.skeleton.input_size)
            if min(sides) < SMALLEST or max(sides) > LARGEST:
                problem = f"is resized to {sides[0]} x {sides[1]} pixels, which a file of torch-export does not take"
                allowed = f"sides of {SMALLEST} to {LARGEST} pixels, or another --format"
                raise InputError(problem, source=validation.images / name, allowed=allowed)
    eager, exported = (
        Detections.of(detector, validation).precisions()["mAP"]
        for detector in (load_detector(architecture, weights), open_file(file, kind, 1))
    )
    return FileCheck(eager, exported, len(validation.image_ids))
