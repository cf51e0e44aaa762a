"""The pictures themselves: each decoded and compared with what the annotation file says of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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


_ENDS: Final = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND\xaeB`\x82"}
"""Last bytes of a whole file by its first two: JPEG and PNG."""


class PictureError(InputError):
    """A picture that training cannot read: it was sound when it was checked, or was not checked.

    Args:
        problem: What is wrong; or what torch makes of this error when it hands it on from a loader process, the text of
            a traceback that ends with it.
        source: The picture.
    """

    def __init__(self, problem: str, *, source: Path | None = None) -> None:
        last = problem.strip().splitlines()[-1] if problem.strip() else problem
        super().__init__(last.removeprefix(f"{__name__}.{PictureError.__qualname__}: "), source=source)


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


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Name the picture in whatever goes wrong while it is read.

    Raises:
        PictureError: If it is cut short, which OpenCV would fill with grey, or reading it fails and Pillow cannot
            decode it either.
    """
    problem = cut_short(file)
    if problem is not None:
        raise PictureError(problem, source=file)
    try:
        yield
    except Exception as error:  # OpenCV and mmdet have no common exception for that
        problem = _picture_problem(file)
        if problem is None:
            raise
        raise PictureError(problem, source=file) from error


def cut_short(file: Path) -> str | None:
    """What is wrong with a JPEG or PNG file whose end is missing, or with one that cannot be read; ``None`` if nothing.

    OpenCV fills what is missing with grey. Only the last bytes are looked at, unless they are not those that end a
    picture: some cameras write on behind it, so that Pillow is to say whether all is there.
    """
    try:
        with file.open("rb") as stream:
            end = _ENDS.get(stream.read(2), b"")
            stream.seek(-min(len(end), stream.seek(0, os.SEEK_END)), os.SEEK_END)
            return None if stream.read() == end else _picture_problem(file)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _picture_problem(file: Path, size: tuple[int, int] | None = None) -> str | None:
    """Why a picture cannot be decoded, or that its width and height are not the annotations'."""
    try:
        with Image.open(file, formats=PICTURE_FORMATS) as picture:
            picture.load()
            width, height = picture.size
            if picture.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS:
                width, height = height, width
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        return " ".join(f"cannot be decoded: {getattr(error, 'strerror', None) or error}".split())
    if size is not None and (width, height) != size:
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
        allowed = f"pictures that can be read, of the size in {dataset.source}"
        raise InputError(defects[0].problem + more, source=defects[0].file, key=dataset.key, allowed=allowed)
