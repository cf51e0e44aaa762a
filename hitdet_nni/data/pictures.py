"""The pictures themselves, read as training reads them, and compared with what the annotation file says of them.

One reader decides on size, orientation and whether a picture can be read at all: OpenCV, as mmdet's
``LoadImageFromFile`` calls it (``mmcv.imfrombytes``, back end ``cv2``, flag ``color``). It applies the orientation that
it finds, drops transparency, and brings 16 bits to 8 by their upper half.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hitdet_nni.data.coco import CocoDataset
from hitdet_nni.data.picture_files import PICTURE_FORMATS as PICTURE_FORMATS
from hitdet_nni.data.picture_files import format_of, structure_problem, wrong_name
from hitdet_nni.data.quiet import quiet, said
from hitdet_nni.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DARK: Final = 24
"""A picture of which 99 % of the values lie below is warned of; 12 bits of 16 decode to at most 15."""

BRIGHT: Final = 231
"""A picture of which 99 % of the values lie above is warned of."""

_LOOKED_AT: Final = 1 << 14  # values of a picture that its brightness is judged by, about
_LIMITS: Final = {"PIXELS": 1 << 30, "WIDTH": 1 << 20, "HEIGHT": 1 << 20}  # OpenCV's own
_LIMIT: Final = re.compile(r"CV_IO_MAX_IMAGE_(PIXELS|WIDTH|HEIGHT)")
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


@dataclass(frozen=True)
class PictureReport:
    """What was found in the pictures of a data set.

    Attributes:
        defects: In the order of the file; empty if training reads every picture as annotated.
        warnings: Pictures that training reads, but their owner may not expect how, by what they are.
    """

    defects: list[PictureDefect] = field(default_factory=list)
    warnings: dict[str, list[Path]] = field(default_factory=dict)


def check_pictures(dataset: CocoDataset, input_size: tuple[int, int] | None = None) -> PictureReport:
    """Decode every picture as training does and compare its size with the annotation file.

    Args:
        dataset: A checked annotation file; reading COCO's 118 thousand pictures takes a quarter of an hour.
        input_size: Rows and columns that training resizes pictures to fit; ``None``: not looked at.
    """
    report = PictureReport()
    for file_name, size in zip(dataset.file_names, dataset.sizes, strict=True):
        file = dataset.images / file_name
        content = _content(file)
        if isinstance(content, str):
            report.defects.append(PictureDefect(file, content))
            continue
        with quiet():
            picture = _decoded(content)
            damaged = said("Corrupt JPEG data: premature end") or said("Corrupt JPEG data: bad Huffman code")
        problem = picture if isinstance(picture, str) else _size_problem(picture, size, input_size)
        if problem is not None:
            report.defects.append(PictureDefect(file, problem))
        if not isinstance(picture, str):
            for warning in (*_looks(picture), *_file_warnings(file, content, damaged)):
                report.warnings.setdefault(warning, []).append(file)
    return report


def require_sound_pictures(
    dataset: CocoDataset, input_size: tuple[int, int] | None = None, *, decode: bool = True
) -> None:
    """Check every picture as `check_pictures` does and refuse the data set at a defect.

    Args:
        dataset: A checked annotation file.
        input_size: Rows and columns that training resizes pictures to fit; ``None``: not looked at.
        decode: Whether to read the files; otherwise the annotated sizes alone are looked at.

    Raises:
        InputError: With the first defect and the number of others.
    """
    if decode:
        defects = check_pictures(dataset, input_size).defects
    else:
        thin = (
            (name, thin_problem(size, input_size)) for name, size in zip(dataset.file_names, dataset.sizes, strict=True)
        )
        defects = [PictureDefect(dataset.images / name, problem) for name, problem in thin if problem is not None]
    if defects:
        more = f" ({len(defects) - 1} more pictures have defects)" if len(defects) > 1 else ""
        allowed = f"pictures that training can read and resize, of the size in {dataset.source}"
        raise InputError(defects[0].problem + more, source=defects[0].file, key=dataset.key, allowed=allowed)


def read_picture(file: Path) -> NDArray[np.uint8]:
    """Read a picture as training does.

    Returns:
        ``[H, W, 3]``, 8 bits, in the order blue, green, red, turned as its orientation says.

    Raises:
        PictureError: If it cannot be read, is cut short or an animation.
    """
    picture = _read(file)
    if isinstance(picture, str):
        raise PictureError(picture, source=file)
    return picture


def decoded_size(file: Path) -> tuple[int, int] | str:
    """Width and height of a picture as training decodes it, or what is wrong with it."""
    picture = _read(file)
    return picture if isinstance(picture, str) else (picture.shape[1], picture.shape[0])


def resized(size: tuple[int, int], input_size: tuple[int, int]) -> tuple[int, int]:
    """Width and height to which training resizes a picture, as ``mmcv.rescale_size`` computes them.

    Args:
        size: Width and height of the picture.
        input_size: Rows and columns of the network's input, which it is resized to fit with its ratio kept.
    """
    scale = min(max(input_size) / max(size), min(input_size) / min(size))
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def thin_problem(size: tuple[int, int], input_size: tuple[int, int] | None) -> str | None:
    """What is wrong with a picture so thin that no pixel of its shorter side is left; ``None`` if nothing is.

    Args:
        size: Its width and height.
        input_size: Rows and columns that training resizes pictures to fit; ``None``: it is not resized.
    """
    if input_size is None or min(resized(size, input_size)) >= 1:
        return None
    return (
        f"is {size[0]} x {size[1]} pixels, of which the network's input of {input_size[0]} x {input_size[1]} (rows x "
        f"columns) leaves less than one across: its longer side may be {2 * max(input_size)} times the shorter at most"
    )


@contextmanager
def readable(file: Path, input_size: tuple[int, int] | None = None) -> Iterator[None]:
    """Name the picture in whatever goes wrong while training reads and resizes it.

    Args:
        file: The picture.
        input_size: Rows and columns that it is resized to fit, if it is.

    Raises:
        PictureError: If it is cut short, which OpenCV may fill with grey, or reading or resizing it fails.
    """
    problem = cut_short(file)
    if problem is not None:
        raise PictureError(problem, source=file)
    try:
        with quiet():
            yield
    except MemoryError:
        raise
    except Exception as error:  # OpenCV and mmdet have no common exception for that
        size = decoded_size(file)
        problem = size if isinstance(size, str) else thin_problem(size, input_size)
        unknown = f"can be decoded, but not be made ready for training ({type(error).__name__})"
        raise PictureError(problem or unknown, source=file) from error


def cut_short(file: Path) -> str | None:
    """What is wrong with a JPEG or PNG file whose end is missing, or with one that cannot be read; ``None`` if nothing.

    Only the last bytes are looked at, unless they are not those that end a picture: some cameras write on behind it, so
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


def _content(file: Path) -> bytes | str:
    """The bytes of a file, or why they cannot be had."""
    try:
        return file.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _read(file: Path) -> NDArray[np.uint8] | str:
    content = _content(file)
    if isinstance(content, str):
        return content
    with quiet():
        return _decoded(content)


def _decoded(content: bytes) -> NDArray[np.uint8] | str:
    """A picture as training decodes it, or what is wrong with it."""
    import cv2  # noqa: PLC0415  (what needs no picture does not wait for it)
    import numpy as np  # noqa: PLC0415

    problem = structure_problem(content)
    if problem is not None:
        return problem
    try:
        picture: NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        limit = _LIMIT.search(str(error))
        return _over(limit[1]) if limit else "cannot be decoded: it is damaged"
    if picture is None:
        form = format_of(content)
        damaged = "damaged, or of a kind that OpenCV lacks"
        what = damaged if form in PICTURE_FORMATS else form or "no picture"
        return f"cannot be decoded: it is {what} (OpenCV reads {', '.join(PICTURE_FORMATS)})"
    if picture.ndim != 3 or picture.dtype != np.uint8:
        return f"decodes to values of shape {picture.shape} and type {picture.dtype}, not to 8 bits in three colours"
    return picture


def _over(what: str) -> str:
    """That a picture has more pixels than OpenCV is set to read."""
    name = f"OPENCV_IO_MAX_IMAGE_{what}"
    limit = os.environ.get(name) or f"{_LIMITS[what]:,}".replace(",", " ")
    noun = "pixels" if what == "PIXELS" else f"pixels of {what.lower()}"
    return f"has more than the {limit} {noun} that OpenCV reads; the environment variable {name} raises the limit"


def _size_problem(
    picture: NDArray[np.uint8], annotated: tuple[int, int], input_size: tuple[int, int] | None
) -> str | None:
    height, width = picture.shape[:2]
    if (width, height) != annotated:
        return f"is {width} x {height} pixels, the annotations say {annotated[0]} x {annotated[1]}"
    return thin_problem((width, height), input_size)


def _looks(picture: NDArray[np.uint8]) -> Iterator[str]:
    """Warnings of what a picture looks like, from a grid of its pixels."""
    import numpy as np  # noqa: PLC0415

    step = max(1, round((picture.size / _LOOKED_AT) ** 0.5))
    low, high = np.percentile(picture[::step, ::step], (1, 99))
    if high < DARK:
        yield f"pictures that decode nearly black (99 % of their values below {DARK} of 255; so do 12 bits in 16)"
    if low > BRIGHT:
        yield f"pictures that decode nearly white (99 % of their values above {BRIGHT} of 255)"


def _file_warnings(file: Path, content: bytes, damaged: bool) -> Iterator[str]:
    """Warnings of what a file is."""
    form = wrong_name(file, content)
    if form is not None:
        yield f"pictures that are {form}, whatever their names say"
    if damaged:
        yield "JPEG pictures with damaged data, of which OpenCV makes up a part"
