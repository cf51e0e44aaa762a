"""``detect``: what a trained detector finds in images."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hitdet_nni.commands.shared.options import add_json, add_overwrite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hitdet_nni.data.images.reading import ImageError
    from hitdet_nni.deployment.coco_numbers import CocoNumbers
    from hitdet_nni.deployment.image_list import ListedImage
    from hitdet_nni.deployment.images import Pixels, Predictor
    from hitdet_nni.deployment.prediction import Prediction

HELP_ORDER = 115
HELP = "find objects in images, draw them and write them as COCO's results"
EXAMPLE = "hitdet-nni detect runs/mine-retrained photos/ --out found"

RESULTS = "detections.json"
"""Name of the file of results."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``detect``."""
    parser.add_argument("source", help="run, .onnx or .xml file of `export`, or architecture JSON with --weights")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders (all below them) or patterns")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of a retraining (default: the run's)")
    parser.add_argument(
        "--out", "-o", type=Path, required=True, metavar="DIR", help=f"folder of the drawn images and {RESULTS}"
    )
    add_overwrite(parser)
    parser.add_argument(
        "--threshold", type=float, default=0.3, help="score from which on objects count (default: %(default)s)"
    )
    parser.add_argument("--draw", action=BooleanOptionalAction, default=True, help="write the drawn images")
    parser.add_argument(
        "--ann",
        type=Path,
        metavar="FILE",
        help="COCO annotation file whose numbers of images and categories the results are to have; images that it does "
        "not have are left out",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="what it runs on (default: a GPU if torch finds one)")
    parser.add_argument(
        "--batch", type=int, default=1, help="images of equal size that run together (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads on a CPU (default: %(default)s)")
    add_json(parser)


def run(options: Namespace) -> int:
    """Find objects in all images, and write them; what cannot be read or numbered is told, and the others go on.

    Returns:
        2 where an image could not be read, else 0.

    Raises:
        InputError: If an option is bad, there is no such detector or no such image, or results are there already.
    """
    import sys

    from hitdet_nni.commands.shared.console import echo, json_text, refuse_existing
    from hitdet_nni.data.images.reading import ImageError
    from hitdet_nni.data.wording import counted
    from hitdet_nni.deployment.coco_numbers import CocoNumbers
    from hitdet_nni.deployment.image_list import list_images, unread_images
    from hitdet_nni.io import write_json

    _check(options)
    listed = list_images(options.images)
    if unread_files := unread_images(options.images):
        what = counted(len(unread_files), "{image|images} of a format that is not read")
        sys.stderr.write(f"hitdet-nni: left out: {what}; convert them, the first: {unread_files[0]}\n")
    results_file = options.out / RESULTS
    refuse_existing(results_file, options.force, "another folder")
    drawings = _drawings(options, listed) if options.draw else {}
    detector = _opened(options)
    classes = detector.classes
    numbers = CocoNumbers.counted(classes) if options.ann is None else CocoNumbers.of_file(options.ann, classes)
    ids = _numbered(listed, numbers)
    listed = list(ids)
    results: list[dict[str, Any]] = []
    unread = 0
    for first in range(0, len(listed), options.batch):
        batch = listed[first : first + options.batch]
        for one, found in zip(batch, _found(detector, batch, options.threshold), strict=True):
            if isinstance(found, ImageError):
                sys.stderr.write(f"hitdet-nni: {found}\n")
                unread += 1
                continue
            results += [
                {**result, "file_name": str(one.name), "category": name}
                for result, name in zip(found.coco_results(ids[one], numbers.categories), found.names, strict=True)
            ]
            if options.draw:
                found.save(drawings[one])
            if not options.json:
                echo(f"{one.name}: {found.summary()}")
    if unread < len(listed):
        write_json(results_file, results)
        echo(json_text(results) if options.json else str(results_file))
    if unread:
        nothing = "" if unread < len(listed) else "; nothing is written"
        sys.stderr.write(f"hitdet-nni: {unread} of {len(listed)} images could not be read{nothing}\n")
    return 2 if unread else 0


def _check(options: Namespace) -> None:
    from hitdet_nni.errors import InputError

    for name, value in (("--batch", options.batch), ("--threads", options.threads)):
        if value < 1:
            raise InputError(f"got {value}", source=name, allowed="1 or more")
    if not 0 <= options.threshold <= 1:
        raise InputError(f"got {options.threshold}", source="--threshold", allowed="0 to 1")


def _opened(options: Namespace) -> Predictor:
    """Return the detector of a run, an architecture and weights, or an exported file.

    Raises:
        InputError: If it cannot be had, or not on that device.
    """
    from hitdet_nni.commands.shared.trained import trained_source
    from hitdet_nni.deployment.suffixes import RUNTIME_SUFFIXES, SUFFIXES
    from hitdet_nni.engine.process import prepare_process
    from hitdet_nni.errors import InputError

    source = Path(options.source)
    if source.suffix in RUNTIME_SUFFIXES:
        if options.weights is not None:
            raise InputError(
                "has no meaning with an exported file", key="--weights", allowed="a run, or an architecture"
            )
        if options.device == "cuda":
            raise InputError("got cuda with an exported file", key="--device", allowed="cpu")
        prepare_process(options.threads)
        from hitdet_nni.deployment.files import open_runtime_file

        return open_runtime_file(source, options.threads)
    if options.weights is None and source.is_file() and source.suffix != SUFFIXES["architecture"]:
        allowed = f"a run, a file of hitdet-nni export that ends in {' or '.join(RUNTIME_SUFFIXES)}"
        raise InputError("is no detector that this command opens", source=source, allowed=allowed)
    architecture, weights = trained_source(options.source, options.weights)
    prepare_process(options.threads)
    import torch

    from hitdet_nni.deployment.loading import load_detector

    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("torch finds no GPU", key="--device", allowed="cpu")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_detector(architecture, weights).to(device)


def _numbered(listed: Sequence[ListedImage], numbers: CocoNumbers) -> dict[ListedImage, int]:
    """Return the images that have a number, and their numbers; what is left out is told in a line."""
    import sys

    given = zip(listed, numbers.of_images([one.file_name for one in listed]), strict=True)
    ids = {one: number for one, number in given if number is not None}
    others = [str(one.file) for one in listed if one not in ids]
    if others:
        more = ", ..." if len(others) > 1 else ""
        count = f"{len(others)} of {len(listed)} images"
        sys.stderr.write(f"hitdet-nni: left out, not being in {numbers.source}: {count}, {others[0]}{more}\n")
    return ids


def _found(detector: Predictor, batch: Sequence[ListedImage], threshold: float) -> list[Prediction | ImageError]:
    """Return what is found in each image, or why it could not be read."""
    from hitdet_nni.data.images.reading import ImageError
    from hitdet_nni.deployment.prediction import pixels_of, predict_all

    read: list[Pixels | ImageError] = []
    for one in batch:
        try:
            read.append(pixels_of(one.file, detector.input_size))
        except ImageError as error:
            read.append(error)
    images = [each for each in read if not isinstance(each, ImageError)]
    predictions = iter(predict_all(detector, images, threshold))
    return [each if isinstance(each, ImageError) else next(predictions) for each in read]


def _drawings(options: Namespace, listed: Sequence[ListedImage]) -> dict[ListedImage, Path]:
    """Return where each image's drawing goes: under its name, in a format that every program shows.

    Raises:
        InputError: If one would take the place of an image, of another drawing, or of a file that is there already.
    """
    from hitdet_nni.commands.shared.console import refuse_existing
    from hitdet_nni.errors import InputError

    drawings: dict[ListedImage, Path] = {}
    taken: set[Path] = set()
    images = {one.file.resolve() for one in listed}
    for one in listed:
        kept = one.drawing.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
        path = options.out / (one.drawing if kept else one.drawing.with_name(f"{one.drawing.name}.png"))
        if path.resolve() in images:
            raise InputError(
                "would be overwritten by its drawing", source=path, key="--out", allowed="another folder, or --no-draw"
            )
        if path in taken:
            raise InputError("would be two drawings", source=path, allowed="images of other names, or --no-draw")
        refuse_existing(path, options.force, "another folder")
        drawings[one] = path
        taken.add(path)
    return drawings
