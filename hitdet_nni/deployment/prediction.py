"""What a detector finds in an image, by name, as a drawing and as COCO's results have it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hitdet_nni.config.validation import require_kind
from hitdet_nni.data.images.reading import ImageError, read_image, thin_problem
from hitdet_nni.deployment.drawing import draw_boxes, encoded
from hitdet_nni.deployment.images import Pixels, Predictor, detect
from hitdet_nni.errors import InputError
from hitdet_nni.io import expanded, whole_file
from hitdet_nni.operators.costs import Size

THRESHOLD = 0.3
"""Score from which on detections are shown, where nothing else is said."""

Source = str | os.PathLike[str] | Pixels | Image.Image
"""A file, an image ``[H, W, 3]`` of 8 bits, blue, green, red, as OpenCV reads it, or one of Pillow's."""

_ONE_IMAGE = (
    "a file, an array [H, W, 3] of uint8 in the order blue, green, red, or an image of Pillow's; predict_all takes a "
    "list of them"
)


@dataclass(frozen=True)
class Detection:
    """An object that was found.

    Attributes:
        box: Left, top, right and bottom in pixels of the image.
        score: In [0, 1].
        label: Its class's place.
        name: Its class's name.
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a detector finds in an image, best first.

    Attributes:
        image: The image, ``[H, W, 3]``, blue, green, red.
        boxes: ``[D, 4]``: left, top, right and bottom in its pixels.
        scores: ``[D]``, in [0, 1].
        labels: ``[D]``, places in ``classes``.
        classes: Class names in the order of the labels.
    """

    image: Pixels
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Class name of each detection."""
        return tuple(self.classes[label] for label in self.labels)

    def __len__(self) -> int:
        """Return the number of detections."""
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        """Yield the detections, best first."""
        for box, score, label in zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True):
            yield Detection(tuple(box), score, label, self.classes[label])

    def __repr__(self) -> str:
        """Say how many of which class were found, and the image's size."""
        height, width = self.image.shape[:2]
        return f"{type(self).__name__}({self.summary()}; {width} x {height} pixels)"

    def summary(self) -> str:
        """Return how many of which class were found, in words."""
        counts = {name: self.names.count(name) for name in dict.fromkeys(self.names)}
        return ", ".join(f"{count} x {name}" for name, count in counts.items()) or "nothing"

    def above(self, threshold: float) -> Prediction:
        """Return what is found with at least a score.

        Raises:
            InputError: If the threshold is no number.
        """
        require_kind("threshold", threshold, Real, "a number, 0 to 1")
        sure = self.scores >= threshold
        return Prediction(self.image, self.boxes[sure], self.scores[sure], self.labels[sure], self.classes)

    def drawn(self) -> Pixels:
        """Return a copy of the image with the boxes, ``[H, W, 3]``, blue, green, red."""
        captions = [f"{one.name} {one.score:.2f}" for one in self]
        return draw_boxes(self.image, self.boxes, self.labels, captions)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the drawn image, whole or not at all; the ending of the name decides on the format.

        Raises:
            InputError: If OpenCV writes no such format.
            WriteError: If it cannot be written.
        """
        require_kind("path", path, (str, os.PathLike), "a path")
        file = expanded(os.fspath(path))
        content = encoded(self.drawn(), file)
        with whole_file(file) as stream:
            stream.write(content)

    def coco_results(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Return the detections as COCO's results format has them.

        Args:
            image_id: The image's number in the annotations.
            category_ids: Number of each class in the annotations, in the order of the labels.

        Raises:
            InputError: If there is not one number of each class.
        """
        if len(category_ids) != len(self.classes):
            allowed = f"{len(self.classes)}, one of each class: {', '.join(self.classes)}"
            raise InputError(f"got {len(category_ids)} numbers", key="category_ids", allowed=allowed)
        return [
            {
                "image_id": image_id,
                "category_id": category_ids[one.label],
                "bbox": [one.box[0], one.box[1], one.box[2] - one.box[0], one.box[3] - one.box[1]],
                "score": one.score,
            }
            for one in self
        ]

    def to_supervision(self) -> Any:
        """Return the detections as ``supervision.Detections``, class names in their data.

        Raises:
            InputError: If the package supervision is not installed.
        """
        try:
            import supervision  # noqa: PLC0415  (an extra of the user's)
        except ImportError:
            raise InputError("needs the package supervision", allowed="after pip install supervision") from None
        names: Mapping[str, Any] = {"class_name": np.array(self.names)}
        return supervision.Detections(
            xyxy=self.boxes, confidence=self.scores, class_id=self.labels.astype(int), data=dict(names)
        )

    def _repr_png_(self) -> bytes:
        """Return the drawn image for a notebook."""
        return encoded(self.drawn(), Path("drawn.png"))


def predict(detector: Predictor, source: Source, threshold: float = THRESHOLD) -> Prediction:
    """Find objects in an image.

    Args:
        detector: The detector.
        source: A file, an image ``[H, W, 3]`` of 8 bits, blue, green, red, or one of Pillow's, of 8 bits or 16, of
            which the upper 8 count. A file is turned as its EXIF orientation says, and boxes are of the turned image;
            others are taken as they are.
        threshold: Score from which on detections count, in [0, 1].

    Raises:
        InputError: If the threshold is no score, or the source no such image.
        ImageError: If the file cannot be read.
    """
    return predict_all(detector, [source], threshold)[0]


def predict_all(detector: Predictor, sources: Sequence[Source], threshold: float = THRESHOLD) -> list[Prediction]:
    """Find objects in images, run together where they are resized to the same size; for arguments see :func:`predict`.

    Raises:
        InputError: As :func:`predict`, which also names the errors of files.
    """
    require_kind("threshold", threshold, Real, "a number, 0 to 1")
    if not 0 <= threshold <= 1:
        raise InputError(f"got {threshold}", key="threshold", allowed="0 to 1")
    images = [pixels_of(source, detector.input_size) for source in sources]
    found = (
        Prediction(
            image, boxes.astype(np.float32), scores.astype(np.float32), labels.astype(np.int64), detector.classes
        )
        for image, (boxes, scores, labels) in zip(images, detect(detector, images), strict=True)
    )
    return [one.above(threshold) for one in found]


def pixels_of(source: Source, input_size: Size) -> Pixels:
    """Return an image ``[H, W, 3]``, blue, green, red, that a detector can take; for arguments see :func:`predict`.

    Raises:
        InputError: If the source is no such image.
        ImageError: If the file cannot be read, or it is so thin that resizing leaves nothing of it.
    """
    require_kind("image", source, (str, os.PathLike, np.ndarray, Image.Image), _ONE_IMAGE)
    if isinstance(source, Image.Image):
        image = _of_pillow(source)
    elif not isinstance(source, np.ndarray):
        image = read_image(expanded(os.fspath(source)))
    elif source.dtype == np.uint8 and source.ndim == 3 and source.shape[2] == 3 and source.size:
        image = source
    else:
        raise InputError(
            f"got an array of shape {source.shape} and type {source.dtype}", key="image", allowed=_ONE_IMAGE
        )
    problem = thin_problem((image.shape[1], image.shape[0]), input_size)
    if problem is not None:
        raise ImageError(problem, source=None if isinstance(source, np.ndarray | Image.Image) else Path(source))
    return image


def _of_pillow(image: Image.Image) -> Pixels:
    """Return an image of Pillow's as ``[H, W, 3]``, blue, green, red; of 16 bits the upper 8, as files are read.

    Raises:
        InputError: If the range of its values is not known.
    """
    if image.mode in ("I", "F"):
        allowed = 'one of 8 or 16 bits: bring its values to 0 to 255, then convert it with image.convert("L")'
        raise InputError(f"got an image of Pillow's mode {image.mode}, of 32 bits", key="image", allowed=allowed)
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])
