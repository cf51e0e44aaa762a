"""Images read as training reads them: what one becomes, or in plain words why it cannot be read.

One reader decides on size, orientation and whether an image can be read at all: OpenCV, as mmdet's
``LoadImageFromFile`` calls it (``mmcv.imfrombytes``, back end ``cv2``, flag ``color``). It applies the orientation that
it finds, drops transparency, and brings 16 bits to 8 by their upper half.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hitdet_nni.data.images.image_files import IMAGE_FORMATS, format_of, structure_problem
from hitdet_nni.data.images.quiet import quiet
from hitdet_nni.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LIMITS: Final = {"PIXELS": 1 << 30, "WIDTH": 1 << 20, "HEIGHT": 1 << 20}  # OpenCV's own
_LIMIT: Final = re.compile(r"CV_IO_MAX_IMAGE_(PIXELS|WIDTH|HEIGHT)")
_ENDS: Final = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND\xaeB`\x82"}
"""Last bytes of a whole file by its first two: JPEG and PNG."""


class ImageError(InputError):
    """An image that training cannot read: it was sound when it was checked, or was not checked.

    Args:
        problem: What is wrong; or what torch makes of this error when it hands it on from a loader process, the text of
            a traceback that ends with it.
        source: The image.
    """

    def __init__(self, problem: str, *, source: Path | None = None) -> None:
        last = problem.strip().splitlines()[-1] if problem.strip() else problem
        super().__init__(last.removeprefix(f"{__name__}.{ImageError.__qualname__}: "), source=source)


@dataclass(frozen=True)
class ImageDefect:
    """An image that training could not read, or would read wrongly.

    Attributes:
        file: The image.
        problem: What is wrong with it.
    """

    file: Path
    problem: str


def read_image(file: Path) -> NDArray[np.uint8]:
    """Read an image as training does.

    Returns:
        ``[H, W, 3]``, 8 bits, in the order blue, green, red, turned as its orientation says.

    Raises:
        ImageError: If it cannot be read, is cut short or an animation.
    """
    image = _read(file)
    if isinstance(image, str):
        raise ImageError(image, source=file)
    return image


def decoded_size(file: Path) -> tuple[int, int] | str:
    """Return the width and height of an image as training decodes it, or what is wrong with it."""
    image = _read(file)
    return image if isinstance(image, str) else (image.shape[1], image.shape[0])


def resized(size: tuple[int, int], input_size: tuple[int, int]) -> tuple[int, int]:
    """Return the width and height to which training resizes an image, as ``mmcv.rescale_size`` computes them.

    Args:
        size: Width and height of the image.
        input_size: Height and width of the network's input, which it is resized to fit with its ratio kept.
    """
    scale = min(max(input_size) / max(size), min(input_size) / min(size))
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def wrong_size(size: tuple[int, int], annotated: tuple[int, int]) -> str:
    """Say that an image has another width and height than its annotations say."""
    turned = ", perhaps before it was turned as its EXIF orientation says" if size == annotated[::-1] else ""
    return f"is {size[0]} x {size[1]} pixels, the annotations say {annotated[0]} x {annotated[1]}{turned}"


def thin_problem(size: tuple[int, int], input_size: tuple[int, int] | None) -> str | None:
    """Say what is wrong with an image so thin that no pixel of its shorter side is left; ``None`` if nothing is.

    Args:
        size: Its width and height.
        input_size: Height and width that training resizes images to fit; ``None``: it is not resized.
    """
    if input_size is None or min(resized(size, input_size)) >= 1:
        return None
    return (
        f"is {size[0]} x {size[1]} pixels, of which the network's input of {input_size[0]} x {input_size[1]} (rows x "
        f"columns) leaves less than one across: its longer side may be {2 * max(input_size)} times the shorter at most"
    )


@contextmanager
def readable(file: Path, input_size: tuple[int, int] | None = None) -> Iterator[None]:
    """Name the image in whatever goes wrong while training reads and resizes it.

    Args:
        file: The image.
        input_size: Height and width that it is resized to fit, if it is.

    Raises:
        ImageError: If it is cut short, which OpenCV may fill with grey, or reading or resizing it fails.
    """
    problem = cut_short(file)
    if problem is not None:
        raise ImageError(problem, source=file)
    try:
        with quiet():
            yield
    except MemoryError:
        raise
    except Exception as error:  # OpenCV and mmdet have no common exception for that
        size = decoded_size(file)
        problem = size if isinstance(size, str) else thin_problem(size, input_size)
        unknown = f"can be decoded, but not be made ready for training ({type(error).__name__})"
        raise ImageError(problem or unknown, source=file) from error


def cut_short(file: Path) -> str | None:
    """Say what is wrong with a JPEG or PNG file that cannot be read or whose end is missing; ``None`` if nothing is.

    Only the last bytes are looked at, unless they are not those that end an image: some cameras write on behind it, so
    that the whole structure is followed.
    """
    try:
        with file.open("rb") as stream:
            end = _ENDS.get(stream.read(2), b"")
            stream.seek(-min(len(end), stream.seek(0, os.SEEK_END)), os.SEEK_END)
            if stream.read() == end:
                return None
            stream.seek(0)
            return structure_problem(stream.read())
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def file_content(file: Path) -> bytes | str:
    """Return the bytes of a file, or why they cannot be had."""
    try:
        return file.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _read(file: Path) -> NDArray[np.uint8] | str:
    content = file_content(file)
    if isinstance(content, str):
        return content
    with quiet():
        return decode_image(content)


def decode_image(content: bytes) -> NDArray[np.uint8] | str:
    """Return an image ``[H, W, 3]`` as training decodes it, or what is wrong with it."""
    import cv2  # noqa: PLC0415  (what needs no image does not wait for it)
    import numpy as np  # noqa: PLC0415

    problem = structure_problem(content)
    if problem is not None:
        return problem
    try:
        image: NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        limit = _LIMIT.search(str(error))
        return _over(limit[1]) if limit else "cannot be decoded: it is damaged"
    if image is None:
        form = format_of(content)
        damaged = "damaged, or of a kind that OpenCV lacks"
        what = damaged if form in IMAGE_FORMATS else form or "no image"
        return f"cannot be decoded: it is {what} (OpenCV reads {', '.join(IMAGE_FORMATS)})"
    if image.ndim != 3 or image.dtype != np.uint8:
        return f"decodes to values of shape {image.shape} and type {image.dtype}, not to 8 bits in three colours"
    return image


def _over(what: str) -> str:
    """Say that an image has more pixels than OpenCV is set to read."""
    name = f"OPENCV_IO_MAX_IMAGE_{what}"
    limit = os.environ.get(name) or f"{_LIMITS[what]:,}".replace(",", " ")
    noun = "pixels" if what == "PIXELS" else f"pixels of {what.lower()}"
    return f"has more than the {limit} {noun} that OpenCV reads; the environment variable {name} raises the limit"
