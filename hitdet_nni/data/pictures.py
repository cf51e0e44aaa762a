"""The pictures themselves: each decoded and compared with what the annotation file says of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from hitdet_nni.data.coco import CocoDataset
from hitdet_nni.errors import InputError

PICTURE_FORMATS: Final = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000")
"""Formats that both Pillow, which checks pictures, and OpenCV, which reads them in training, decode."""

_EXIF_ORIENTATION: Final = 0x0112
_SIDEWAYS: Final = (5, 6, 7, 8)  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class PictureDefect:
    """A picture that training could not read, or would read wrongly.

    Attributes:
        file: The picture.
        problem: What is wrong with it.
    """

    file: Path
    problem: str


def check_pictures(dataset: CocoDataset) -> list[PictureDefect]:
    """Decode every picture and compare its size with the annotation file.

    Pillow decodes, although training reads with OpenCV: OpenCV fills the lost part of a cut-off JPEG with grey and
    goes on. Sizes are compared after the EXIF rotation that OpenCV applies.

    Args:
        dataset: A checked annotation file; reading COCO's 118 thousand pictures takes a quarter of an hour.

    Returns:
        The defects in the order of the file; empty if all is well.
    """
    defects = []
    for file_name, size in zip(dataset.file_names, dataset.sizes, strict=True):
        file = dataset.images / file_name
        problem = _picture_problem(file, size)
        if problem is not None:
            defects.append(PictureDefect(file, problem))
    return defects


def _picture_problem(file: Path, size: tuple[int, int]) -> str | None:
    try:
        with Image.open(file, formats=PICTURE_FORMATS) as picture:
            picture.load()
            width, height = picture.size
            if picture.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS:
                width, height = height, width
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        return " ".join(f"cannot be decoded: {error}".split())
    if (width, height) != size:
        return f"is {width} x {height} pixels, the annotations say {size[0]} x {size[1]}"
    return None


def require_sound_pictures(dataset: CocoDataset) -> None:
    """Decode every picture as `check_pictures` does and refuse the data set at a defect.

    Raises:
        InputError: With the first defect and the number of others.
    """
    defects = check_pictures(dataset)
    if defects:
        more = f" ({len(defects) - 1} more pictures have defects)" if len(defects) > 1 else ""
        allowed = f"pictures that can be read, of the size in {dataset.ann}"
        raise InputError(defects[0].problem + more, source=defects[0].file, key=dataset.key, allowed=allowed)
