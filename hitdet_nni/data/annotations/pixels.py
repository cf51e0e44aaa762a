"""What the pixels say to an annotation file: every image decoded as training decodes it, its size compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations
from hitdet_nni.data.images.image_files import tiff_pages, wrong_name
from hitdet_nni.data.images.quiet import quiet, said
from hitdet_nni.data.images.reading import ImageDefect, decode_image, file_content, thin_problem, wrong_size
from hitdet_nni.data.wording import counted
from hitdet_nni.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DARK: Final = 24
"""An image of which 99 % of the values lie below is warned of; 12 bits of 16 decode to at most 15."""

BRIGHT: Final = 231
"""An image of which 99 % of the values lie above is warned of."""

_DAMAGE: Final = {
    "JPEG {image|images} with damaged data, of which OpenCV makes up a part": (
        "Corrupt JPEG data: premature end",
        "Corrupt JPEG data: bad Huffman code",
    ),
    # Bytes are left over where some in the middle were changed; some cameras write a few more than there are pixels.
    "JPEG {image|images} with more data than pixels, which may be damaged": ("extraneous bytes before marker 0xd9",),
}
"""Warnings of JPEG files by what libjpeg says of them."""

_LOOKED_AT: Final = 1 << 14  # values of an image that its brightness is judged by, about


@dataclass(frozen=True)
class ImageReport:
    """What was found in the images of a data set.

    Attributes:
        defects: In the order of the file; empty if training reads every image as annotated.
        warnings: Images that training reads, but their owner may not expect how, by what they are: a phrase of
            :func:`~hitdet_nni.data.wording.counted`.
    """

    defects: list[ImageDefect] = field(default_factory=list)
    warnings: dict[str, list[Path]] = field(default_factory=dict)


def check_images(annotations: CocoAnnotations, input_size: tuple[int, int] | None = None) -> ImageReport:
    """Decode every image as training does and compare its size with the annotation file.

    Args:
        annotations: A checked annotation file; reading COCO's 118 thousand images takes a quarter of an hour.
        input_size: Height and width that training resizes images to fit; ``None``: not looked at.
    """
    report = ImageReport()
    for file_name, size in zip(annotations.file_names, annotations.sizes, strict=True):
        file = annotations.images / file_name
        content = file_content(file)
        if isinstance(content, str):
            report.defects.append(ImageDefect(file, content))
            continue
        with quiet():
            image = decode_image(content)
            damage = next((text for text, words in _DAMAGE.items() if any(map(said, words))), None)
        problem = image if isinstance(image, str) else _size_problem(image, size, input_size)
        if problem is not None:
            report.defects.append(ImageDefect(file, problem))
        if not isinstance(image, str):
            for warning in (*_looks(image), *_file_warnings(file, content, damage)):
                report.warnings.setdefault(warning, []).append(file)
    return report


def require_sound_images(
    annotations: CocoAnnotations, input_size: tuple[int, int] | None = None, *, decode: bool = True
) -> None:
    """Check every image as `check_images` does and refuse the data set at a defect.

    Args:
        annotations: A checked annotation file.
        input_size: Height and width that training resizes images to fit; ``None``: not looked at.
        decode: Whether to read the files; otherwise the annotated sizes alone are looked at.

    Raises:
        InputError: With the first defect and the number of others.
    """
    if decode:
        defects = check_images(annotations, input_size).defects
    else:
        thin = (
            (name, thin_problem(size, input_size))
            for name, size in zip(annotations.file_names, annotations.sizes, strict=True)
        )
        defects = [ImageDefect(annotations.images / name, problem) for name, problem in thin if problem is not None]
    if defects:
        more = f" ({counted(len(defects) - 1, 'more {image has|images have} defects')})" if len(defects) > 1 else ""
        allowed = f"images that training can read and resize, of the size in {annotations.source}"
        raise InputError(defects[0].problem + more, source=defects[0].file, key=annotations.key, allowed=allowed)


def _size_problem(
    image: NDArray[np.uint8], annotated: tuple[int, int], input_size: tuple[int, int] | None
) -> str | None:
    height, width = image.shape[:2]
    if (width, height) != annotated:
        return wrong_size((width, height), annotated)
    return thin_problem((width, height), input_size)


def _looks(image: NDArray[np.uint8]) -> Iterator[str]:
    """Yield warnings of what an image looks like, from a grid of its pixels."""
    import numpy as np  # noqa: PLC0415

    step = max(1, round((image.size / _LOOKED_AT) ** 0.5))
    low, high = np.percentile(image[::step, ::step], (1, 99))
    if high < DARK:
        amount = f"99 % of {{its|their}} values below {DARK} of 255; so do 12 bits in 16"
        yield f"{{image that decodes|images that decode}} nearly black ({amount})"
    if low > BRIGHT:
        amount = f"99 % of {{its|their}} values above {BRIGHT} of 255"
        yield f"{{image that decodes|images that decode}} nearly white ({amount})"


def _file_warnings(file: Path, content: bytes, damage: str | None) -> Iterator[str]:
    """Yield warnings of what a file is."""
    form = wrong_name(file, content)
    if form is not None:
        yield f"{{image that is|images that are}} {form}, whatever {{its name says|their names say}}"
    if damage is not None:
        yield damage
    if tiff_pages(content) > 1:
        yield "TIFF {image|images} of several pages, of which the first is read"
