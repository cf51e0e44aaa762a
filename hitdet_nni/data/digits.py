"""Handwritten digits on photographs: detection tasks that are made in seconds and need no download.

Scikit-learn's 8x8 handwritten digits are blended, enlarged and coloured, over crops of its two sample photographs.
The result is a COCO data set of ten classes on which a small detector, trained from scratch on a CPU, shows within
minutes whether it learns. There are two sets of unlike character: `DIGITS`, few of them, upright and apart, and
`DIGITS_DENSE`, many small ones, turned and partly on top of each other.

* Training and validation share neither digit samples nor photograph halves.
* Boxes are exact: a box is the tight extent of the pixels that its digit inks, where another digit covers them, too.
* The same arguments give the same bytes. Every image has its own random generator, so an image depends on the
  seed, the split and its index only, and longer sets start with the images of shorter ones.

Source: digits, E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI; photographs, danielbuechele
and vultilion, CC BY 2.0. Both ship with scikit-learn.
"""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from hitdet_nni.errors import InputError
from hitdet_nni.io import writing

logger = logging.getLogger(__name__)

Split = Literal["train", "val"]
Pixels = npt.NDArray[np.uint8]

CLASSES: Final = tuple(str(digit) for digit in range(10))
"""Class names; the category id of class ``i`` is ``i + 1``."""

INK_THRESHOLD: Final = 0.2
"""Opacity from which a pixel counts as inked; fainter ink is left out of the image, so that boxes are exact."""

_DESCRIPTION: Final = "hitdet-nni handwritten digits on photographs"
_SPLITS: Final[tuple[Split, ...]] = ("train", "val")
_VAL_SHARE: Final = 0.2  # of the 1797 digit samples
_CROP_SIDE: Final = (96, 320)  # side of a photograph crop, in pixels of the 640x427 photograph
_INK_GAIN: Final = 1.6  # makes the strokes of the blurry originals opaque
_PHOTO_CONTRAST: Final = 0.6  # photographs are faded towards grey, so that ink of one colour stands out everywhere
_MIN_CONTRAST: Final = 90.0  # between ink and the mean of what it covers, in luma levels of 0..255
_POSITIONS_TRIED: Final = 40
_SHRINK: Final = 0.75
_TURNED_AT: Final = 4  # digits are turned at so many times their size, because that takes the nearest pixel
_LUMA: Final = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass(frozen=True)
class DigitSet:
    """What the images of an embedded set look like.

    Attributes:
        name: Its name, a value of ``data.builtin``.
        digits: Fewest and most digits of an image. Where no room is found for one, it is left out.
        side: Shortest and longest extent of a digit, its longer side before it is turned, in image sides.
        angle: Degrees by which a digit is turned at most, to either side.
        overlap: Share of a box that another one may cover.
        min_size: Smallest image side in pixels: below it the smallest digits have too few pixels to be told apart.
    """

    name: str
    digits: tuple[int, int]
    side: tuple[float, float]
    angle: float
    overlap: float
    min_size: int


DIGITS: Final = DigitSet("digits", digits=(2, 5), side=(1 / 6, 1 / 2), angle=0.0, overlap=0.0, min_size=32)
DIGITS_DENSE: Final = DigitSet(
    "digits_dense", digits=(8, 16), side=(1 / 12, 1 / 5), angle=40.0, overlap=0.3, min_size=64
)
EMBEDDED_SETS: Final = {each.name: each for each in (DIGITS, DIGITS_DENSE)}
"""The embedded sets by name."""


@dataclass(frozen=True)
class PlacedDigit:
    """A digit in an image.

    Attributes:
        sample: Index of its handwriting in ``sklearn.datasets.load_digits()``, 0..1796.
        label: The digit, 0..9.
        box: Left, top, width and height of the inked pixels, in pixels.
        opacity: Ink from 0 to 1, either 0 or at least `INK_THRESHOLD`. Shape: (height, width) of the box.
        colour: Red, green and blue of the ink, 0..255.
    """

    sample: int
    label: int
    box: tuple[int, int, int, int]
    opacity: npt.NDArray[np.float64]
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """An image before it is written.

    Attributes:
        background: The photograph crop without digits, RGB. Shape: (size, size, 3).
        digits: The digits to blend over it, one after the other.
    """

    background: Pixels
    digits: tuple[PlacedDigit, ...]

    def render(self) -> Pixels:
        """Blend the digits over the background.

        Shape:
            Returns (size, size, 3), RGB.
        """
        image = self.background.astype(np.float64)
        for digit in self.digits:
            left, top, width, height = digit.box
            under = image[top : top + height, left : left + width]
            opacity = digit.opacity[:, :, None]
            under += opacity * (np.array(digit.colour) - under)
        return np.rint(image).astype(np.uint8)


@lru_cache(maxsize=1)
def _sources() -> tuple[Pixels, tuple[int, ...], tuple[Pixels, ...]]:
    """Return the digits (1797, 8, 8) in 0..255, their labels, and the photographs (427, 640, 3) in RGB."""
    # It takes a second to import, and a set that is in the cache is not made again.
    from sklearn.datasets import load_digits, load_sample_images  # noqa: PLC0415

    digits = load_digits()
    ink = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return ink, tuple(int(label) for label in digits.target), tuple(load_sample_images().images)


def digit_samples(split: Split, seed: int) -> tuple[int, ...]:
    """Return which of scikit-learn's 1797 digit samples a split may use.

    Args:
        split: ``"train"`` (1438 samples) or ``"val"`` (the other 359).
        seed: Seed of the data set.

    Returns:
        Indices into ``sklearn.datasets.load_digits()``.
    """
    order = np.random.default_rng(seed).permutation(len(_sources()[0])).tolist()
    cut = round(len(order) * _VAL_SHARE)
    return tuple(order[:cut] if split == "val" else order[cut:])


def draw_scene(split: Split, index: int, *, size: int, seed: int, kind: DigitSet = DIGITS) -> Scene:
    """Compose one image.

    Args:
        split: ``"train"`` takes left halves of the photographs, ``"val"`` right halves.
        index: Number of the image in its split, from 0.
        size: Side of the image in pixels, at least the set's smallest.
        seed: Seed of the data set, not negative.
        kind: What it looks like.
    """
    return _draw_scene(split, index, size, seed, digit_samples(split, seed), kind)


def _draw_scene(split: Split, index: int, size: int, seed: int, samples: tuple[int, ...], kind: DigitSet) -> Scene:
    rng = np.random.default_rng([seed, _SPLITS.index(split), index])
    background = _crop_photograph(split, size, rng)
    fewest, most = kind.digits
    digits: list[PlacedDigit] = []
    # A first digit in the middle of the image may leave no room for a second one: start again then.
    while len(digits) < fewest:
        digits = []
        for _ in range(int(rng.integers(fewest, most + 1))):
            digit = _place_digit(int(rng.choice(samples)), background, digits, rng, kind)
            if digit is not None:
                digits.append(digit)
    return Scene(background, tuple(digits))


def _crop_photograph(split: Split, size: int, rng: np.random.Generator) -> Pixels:
    photographs = _sources()[2]
    photograph = photographs[int(rng.integers(len(photographs)))]
    height, width = photograph.shape[:2]
    half = width // 2
    side = int(rng.integers(_CROP_SIDE[0], min(_CROP_SIDE[1], half, height) + 1))
    left = int(rng.integers(half - side + 1)) + (half if split == "val" else 0)
    top = int(rng.integers(height - side + 1))
    crop = Image.fromarray(photograph).crop((left, top, left + side, top + side))
    # Pillow resamples in fixed point: the same pixels on every machine and for any number of threads.
    pixels = np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR))
    return np.rint(127.5 + _PHOTO_CONTRAST * (pixels - 127.5)).astype(np.uint8)


def _place_digit(
    sample: int, background: Pixels, placed: list[PlacedDigit], rng: np.random.Generator, kind: DigitSet
) -> PlacedDigit | None:
    """Find room for a digit, shrinking it as far as the smallest side; None if there is none."""
    size = background.shape[0]
    low, high = (share * size for share in kind.side)
    side = rng.uniform(low, high)
    angle = rng.uniform(-kind.angle, kind.angle) if kind.angle else 0.0
    while True:
        opacity = _ink(sample, round(side), angle)
        height, width = opacity.shape
        corners = rng.integers([size - width + 1, size - height + 1], size=(_POSITIONS_TRIED, 2)).tolist()
        for left, top in corners:
            if all(_overlap((left, top, width, height), other.box) <= kind.overlap for other in placed):
                under = background[top : top + height, left : left + width]
                label = _sources()[1][sample]
                return PlacedDigit(sample, label, (left, top, width, height), opacity, _ink_colour(under, rng))
        if side == low:
            return None
        side = max(low, side * _SHRINK)


def _ink(sample: int, side: int, angle: float) -> npt.NDArray[np.float64]:
    """Return the opacity of a digit whose handwriting has a longer side of `side` pixels, cut to the inked pixels.

    It is turned by so many degrees, against the clock.
    """
    ink = _sources()[0][sample]
    # A blank frame lets strokes that touch the edge of the 8x8 grid fade out like all others.
    glyph = Image.fromarray(np.pad(ink[_extent(ink > 0)], 1))
    scale = side / (max(glyph.size) - 2)
    if angle:
        # Pillow takes the nearest pixel in fixed point, too; its finer ways to turn an image round in floating point.
        large = glyph.resize(_scaled(glyph.size, _TURNED_AT * scale), Image.Resampling.BICUBIC)
        glyph, scale = large.rotate(angle, Image.Resampling.NEAREST, expand=True), 1 / _TURNED_AT
    enlarged = np.asarray(glyph.resize(_scaled(glyph.size, scale), Image.Resampling.BICUBIC))
    opacity = np.minimum(enlarged * (_INK_GAIN / 255), 1.0)
    opacity[opacity < INK_THRESHOLD] = 0.0
    return opacity[_extent(opacity > 0)]


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return round(size[0] * scale), round(size[1] * scale)


def _extent(inked: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Return which share of the smaller of two boxes the other covers."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height) / min(a[2] * a[3], b[2] * b[3])


def _ink_colour(under: Pixels, rng: np.random.Generator) -> tuple[int, int, int]:
    """Return the first of 64 random colours that contrasts with what it covers, or the one that contrasts most."""
    colours = rng.integers(256, size=(64, 3))
    contrast = np.abs(colours @ _LUMA - under.mean(axis=(0, 1)) @ _LUMA)
    enough = np.flatnonzero(contrast >= _MIN_CONTRAST)
    red, green, blue = colours[enough[0] if enough.size else contrast.argmax()].tolist()
    return red, green, blue


def make_digits(
    out: Path, *, train: int, val: int, size: int, seed: int, force: bool = False, kind: DigitSet = DIGITS
) -> None:
    """Write a data set of digits in COCO format.

    It is built beside `out` and renamed, so that an interrupted run leaves no `out` (or, with `force`, the old one).
    The layout is ``{train,val}/000000.png`` and ``annotations/instances_{train,val}.json``. Besides COCO's keys, every
    annotation has ``sample``, the index of its handwriting in ``sklearn.datasets.load_digits()``.

    Args:
        out: Folder to make, with its parents.
        train: Number of training images, at least 1.
        val: Number of validation images, at least 1.
        size: Side of the square images in pixels, at least the set's smallest.
        seed: Seed of everything random, not negative.
        force: Replace an existing `out`, if it is empty or was made by this function.
        kind: What the images look like.

    Raises:
        InputError: If an argument is out of range, `out` exists and may not be replaced, or its parent is unusable.
        WriteError: If there is no room for it.
    """
    for key, value, least in (("train", train, 1), ("val", val, 1), ("size", size, kind.min_size), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{key} is {value}", source="make_digits", key=key, allowed=f"{least} or more")
    out = out.resolve()
    _check_replaceable(out, force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        workshop = tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)
    except OSError as error:
        raise InputError(f"cannot write here: {error}", source=out.parent, allowed="a writable folder") from error
    with workshop as folder, writing(out):
        # A folder inside the temporary one, because the temporary one itself is private to its owner.
        built = Path(folder) / "built"
        for split, count in zip(_SPLITS, (train, val), strict=True):
            _write_split(built, split, count, size, seed, kind)
        _check_replaceable(out, force)
        _swap(built, out, Path(folder) / "replaced")
    logger.info("%s: %d training and %d validation images of %d px, seed %d", out, train, val, size, seed)


def _check_replaceable(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise InputError("already exists", source=out, key="out", allowed="a new folder, or force to replace it")
    # Force deletes: a mistyped folder of something else must survive it.
    made_here = False
    if out.is_dir():
        notes = out / "annotations" / "instances_train.json"
        made_here = not any(out.iterdir()) or (notes.is_file() and _DESCRIPTION.encode() in notes.read_bytes()[:200])
    if not made_here:
        raise InputError(
            "is not a data set of digits", source=out, key="out", allowed="to replace: empty folders, sets of digits"
        )


def _swap(built: Path, out: Path, replaced: Path) -> None:
    """Put `built` in the place of `out`, moving an old `out` to `replaced`; put that back if it fails."""
    existed = out.exists()
    if existed:
        out.rename(replaced)
    try:
        built.rename(out)
    except BaseException:
        if existed and not out.exists():
            replaced.rename(out)
        raise


def _write_split(root: Path, split: Split, count: int, size: int, seed: int, kind: DigitSet) -> None:
    folder, notes = root / split, root / "annotations"
    folder.mkdir(parents=True)
    notes.mkdir(exist_ok=True)
    samples = digit_samples(split, seed)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene = _draw_scene(split, index, size, seed, samples, kind)
        name = f"{index:06d}.png"
        Image.fromarray(scene.render()).save(folder / name, compress_level=1)
        images.append({"id": index + 1, "file_name": name, "width": size, "height": size})
        for digit in scene.digits:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": digit.label + 1,
                    "bbox": list(digit.box),
                    "area": digit.box[2] * digit.box[3],
                    "iscrowd": 0,
                    "segmentation": [],
                    "sample": digit.sample,
                }
            )
    made_as = {"set": kind.name, "split": split, "images": count, "size": size, "seed": seed}
    dataset = {
        "info": {"description": _DESCRIPTION, **made_as},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)],
    }
    (notes / f"instances_{split}.json").write_text(json.dumps(dataset) + "\n", encoding="utf-8")
