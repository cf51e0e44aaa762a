"""Everything that is in a data set, and everything that is wrong with it: what ``check-data`` tells.

A defect is what training would not survive, or would read wrongly; a warning is what it survives but its owner may not
expect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from hitdet_nni.data.class_folders import LabelledPictures, list_pictures
from hitdet_nni.data.coco import CocoDataset, check_same_classes, read_annotations
from hitdet_nni.data.pictures import check_pictures, decoded_size
from hitdet_nni.data.sources import Half, half_parts, half_source
from hitdet_nni.engine.machine import available_cores
from hitdet_nni.errors import InputError
from hitdet_nni.settings import DataSettings, PretrainSettings

_AT_ONCE = 4096  # pictures that the decoding threads are given at a time


@dataclass
class Inspection:
    """What was found in one half of a data set.

    Attributes:
        counts: Numbers, and ranges of numbers as text, by what they count; empty where the half cannot be read.
        defects: One line each.
        warnings: One line each.
    """

    counts: dict[str, int | str] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def inspect_detection(
    settings: DataSettings, seed: int, input_size: tuple[int, int] | None = None
) -> dict[str, Inspection]:
    """Read both halves of a detection set, annotations and pixels.

    Args:
        settings: The ``data`` section.
        seed: Seed of the embedded set.
        input_size: Rows and columns that training resizes pictures to fit; ``None``: not looked at.

    Raises:
        InputError: If the settings name no data.
    """
    parts = half_parts(settings, seed)
    found = {half: _read_half(settings, seed, half, sources, input_size) for half, sources in parts.items()}
    inspections = {str(half): inspection for half, (inspection, _) in found.items()}
    (_, train), (_, val) = found["train"], found["val"]
    if train is not None and val is not None:
        try:
            check_same_classes(train, val)
        except InputError as error:
            inspections["val"].defects.append(str(error))
        shared = sorted(_files(train) & _files(val))
        if shared:
            inspections["val"].warnings.append(_of(len(shared), "pictures that are trained on as well", shared))
    return inspections


def _read_half(
    settings: DataSettings,
    seed: int,
    half: Half,
    sources: Sequence[tuple[Path, Path]],
    input_size: tuple[int, int] | None,
) -> tuple[Inspection, CocoDataset | None]:
    inspection, key = Inspection(), f"data.{half}_ann"
    defects: list[InputError] = []
    dataset = None
    try:
        for ann, images in sources:
            dataset = read_annotations(ann, images, key=key, allow_empty_boxes=True, defects=defects)
        if not defects:
            # The same file, or that of the chosen pictures of all of them.
            chosen = half_source(settings, seed, half)
            if chosen not in sources:
                dataset = read_annotations(*chosen, key=key, allow_empty_boxes=True)
        elif len(sources) > 1:
            dataset = None  # what was read last is a part
    except InputError as error:
        defects.append(error)
        dataset = None
    inspection.defects += [str(defect) for defect in defects]
    if dataset is not None:
        inspection.counts = _detection_counts(dataset)
        inspection.warnings = [*dataset.notes, *_detection_warnings(dataset)]
        # Files that are not there have been named with their place in the annotations.
        report = check_pictures(dataset, input_size)
        damaged = [defect for defect in report.defects if defect.file.is_file()]
        inspection.defects += [f"{defect.file}: {defect.problem}" for defect in damaged]
        found = report.warnings.items()
        inspection.warnings += [f"{dataset.key}: {_of(len(files), what, files)}" for what, files in found]
    return inspection, dataset


def _detection_counts(dataset: CocoDataset) -> dict[str, int | str]:
    summary = dataset.summary
    small, medium, large = summary.boxes_by_size
    return {
        "pictures": summary.pictures,
        "picture widths": _range([width for width, _ in dataset.sizes]),
        "picture heights": _range([height for _, height in dataset.sizes]),
        "classes": len(summary.classes),
        "boxes": summary.boxes,
        "boxes a class": _range(summary.boxes_per_class),
        "small boxes": small,
        "medium boxes": medium,
        "large boxes": large,
        "crowd boxes": summary.crowd_boxes,
        "ignored boxes": summary.ignored_boxes,
        "boxes partly outside": summary.boxes_partly_outside,
        "pictures without boxes": "-" if summary.refused_boxes else summary.pictures_without_boxes,
    }


def _detection_warnings(dataset: CocoDataset) -> list[str]:
    summary = dataset.summary
    empty = [
        name
        for name, image_id in zip(dataset.file_names, dataset.image_ids, strict=True)
        if not dataset.image_classes[image_id]
    ]
    absent = [name for name, count in zip(summary.classes, summary.boxes_per_class, strict=True) if not count]
    if summary.refused_boxes:  # nobody knows of what picture and class they are
        empty = absent = []
    repeated = [name for name, times in Counter(dataset.file_names).items() if times > 1]
    left_out = ", which training leaves out" if dataset.key == "data.train_ann" else ""
    found = [
        (len(empty), f"pictures without boxes{left_out}", empty),
        (len(absent), "classes without boxes", absent),
        (len(repeated), "files named by several pictures", repeated),
        (summary.ignored_boxes, f"boxes without area or thinner than a pixel{left_out}", []),
        (summary.boxes_partly_outside, "boxes that reach over an edge of their picture", []),
    ]
    return [f"{dataset.key}: {_of(count, what, examples)}" for count, what, examples in found if count]


def _files(dataset: CocoDataset) -> set[Path]:
    return {(dataset.images / name).absolute() for name in dataset.file_names}


def inspect_folders(settings: PretrainSettings) -> dict[str, Inspection]:
    """Read the pictures of a classification set, one folder a class.

    Args:
        settings: The ``pretrain`` section, which names at least one folder.
    """
    inspections: dict[str, Inspection] = {}
    classes: dict[str, tuple[str, ...]] = {}
    for key, root in (("train_images", settings.train_images), ("val_images", settings.val_images)):
        name = f"pretrain.{key}"
        inspection = inspections[name] = Inspection()
        try:
            pictures = list_pictures(root, name)
        except InputError as error:
            inspection.defects.append(str(error))
            continue
        classes[name] = pictures.classes
        _read_folder(pictures, inspection)
    if len(classes) == 2:
        first, second = classes.values()
        different = sorted(set(first) ^ set(second))
        if different:
            problem = f"the two folders differ in {len(different)} classes, the first of them {different[0]!r}"
            inspections["pretrain.val_images"].defects.append(f"{settings.val_images}: {problem}")
    return inspections


def _read_folder(pictures: LabelledPictures, inspection: Inspection) -> None:
    sizes: list[tuple[int, int]] = []
    with ThreadPoolExecutor(available_cores()) as threads:  # OpenCV decodes without Python's lock
        for start in range(0, len(pictures.files), _AT_ONCE):
            files = [pictures.root / name for name in pictures.files[start : start + _AT_ONCE]]
            for file, outcome in zip(files, threads.map(decoded_size, files), strict=True):
                if isinstance(outcome, str):
                    inspection.defects.append(f"{file}: {outcome}")
                else:
                    sizes.append(outcome)
    inspection.counts = {
        "pictures": len(pictures.files),
        "picture widths": _range([width for width, _ in sizes]),
        "picture heights": _range([height for _, height in sizes]),
        "classes": len(pictures.classes),
        "pictures a class": _range(list(Counter(pictures.labels).values())),
    }


def _range(values: Sequence[int]) -> str:
    """Smallest, middle and largest value."""
    ordered = sorted(values)
    return f"{ordered[0]} / {ordered[len(ordered) // 2]} / {ordered[-1]}" if ordered else "-"


def _of(count: int, what: str, examples: Sequence[object]) -> str:
    return f"{count} {what}" + (f"; the first of them: {examples[0]}" if examples else "")
