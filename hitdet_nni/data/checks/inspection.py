"""Everything that is in a data set, and everything that is wrong with it: what ``check-data`` tells.

A defect is what training would not survive, or would read wrongly; a warning is what it survives but its owner may not
expect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

from hitdet_nni.config.settings import DataSettings, PretrainSettings
from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.data.annotations.box_forms import BEYOND
from hitdet_nni.data.annotations.class_names import alike
from hitdet_nni.data.annotations.coco import check_same_classes, read_annotations
from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations
from hitdet_nni.data.annotations.pixels import check_images
from hitdet_nni.data.checks.box_uses import BoxUses, box_uses
from hitdet_nni.data.checks.copies import Digests, same_files
from hitdet_nni.data.checks.object_sizes import ObjectSizes, object_sizes, size_hints
from hitdet_nni.data.class_folders import LabeledImages, list_images
from hitdet_nni.data.images.reading import decoded_size
from hitdet_nni.data.layouts.parts import SPLITS, Split
from hitdet_nni.data.sources import Parts, chosen_source, split_parts
from hitdet_nni.data.wording import counted
from hitdet_nni.engine.machine import available_cores
from hitdet_nni.errors import InputError

_AT_ONCE = 4096  # images that the decoding threads are given at a time

FEW_BOXES = 10
"""Boxes of a class below which training and evaluation of it say little."""

RARE = 50
"""How many times the boxes of another class must be for a class to be called rare."""


MANY_CROWDS = 0.2
"""Share of a split's boxes that are crowds from which on it is asked whether they are meant so."""

_CROWDS = (
    "{box is a crowd|boxes are crowds}, neither learned nor counted as missed; single objects, as masks from CVAT are, "
    "need iscrowd 0"
)


@dataclass
class Inspection:
    """What was found in one split of a data set.

    Attributes:
        counts: Numbers, and ranges of numbers as text, by what they count; empty where the split cannot be read.
        objects: Sizes of the objects of each class.
        notes: What is read otherwise than it stands there, one line each.
        warnings: One line each.
        hints: Settings that may be worth changing, one line each.
        defects: One line each.
    """

    counts: dict[str, int | str] = field(default_factory=dict)
    objects: tuple[ObjectSizes, ...] = ()
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)

    @property
    def facts(self) -> dict[str, object]:
        """All of it as plain values, for JSON."""
        lines = {"notes": self.notes, "warnings": self.warnings, "hints": self.hints, "defects": self.defects}
        return {**self.counts, "objects": [asdict(sizes) for sizes in self.objects], **lines}


def inspect_detection(settings: DataSettings, skeleton: Skeleton, seed: int) -> dict[str, Inspection]:
    """Read both splits of a detection set, annotations and pixels.

    Args:
        settings: The ``data`` section.
        skeleton: Gives the network's input size and the anchors that objects are compared with.
        seed: Seed of the embedded set.

    Raises:
        InputError: If the settings name no data.
    """
    defects: dict[Split, list[InputError]] = {split: [] for split in SPLITS}
    parts, digests = split_parts(settings, seed, defects), Digests()
    found = {"train": _read_split(settings, skeleton, parts, "train", defects["train"], digests)}
    if found["train"][1] is None and parts.split_off and not defects["val"]:
        # It is of the same images, whose defects have been told.
        found["val"] = Inspection(notes=["data.val_ann: is split off once the defects of data.root are mended"]), None
    else:
        found["val"] = _read_split(settings, skeleton, parts, "val", defects["val"], digests)
    inspections = {str(split): inspection for split, (inspection, _) in found.items()}
    (_, train), (_, val) = found["train"], found["val"]
    if train is not None and val is not None:
        lines = _images_between(train, val, digests)
        try:
            check_same_classes(train, val)
            lines = chain(_classes_between(train, val), lines)
        except InputError as error:
            inspections["val"].defects.append(str(error))
        inspections["val"].warnings += [f"{val.key}: {line}" for line in lines]
    return inspections


def _read_split(
    settings: DataSettings,
    skeleton: Skeleton,
    parts: Parts,
    split: Split,
    defects: list[InputError],
    digests: Digests,
) -> tuple[Inspection, CocoAnnotations | None]:
    """Read one split; `defects` are those that opening its files has met."""
    inspection, key = Inspection(), f"data.{split}_ann"
    annotations = None
    try:
        for ann, images in parts[split]:
            annotations = read_annotations(ann, images, key=key, allow_empty_boxes=True, defects=defects)
        if not defects:
            # The same file, or that of the chosen images of all of them.
            chosen = chosen_source(settings, parts, split)
            if chosen not in parts[split]:
                annotations = read_annotations(*chosen, key=key, allow_empty_boxes=True)
        elif len(parts[split]) > 1:
            annotations = None  # what was read last is a part
    except InputError as error:
        defects.append(error)
        annotations = None
    inspection.defects += [str(defect) for defect in defects]
    if annotations is None:
        return inspection, None
    inspection.notes = [f"{key}: {note}" for note in annotations.notes]
    inspection.counts = _counts(annotations)
    if defects:
        # An image whose boxes are refused has boxes, and so on: counts of what is left would mislead.
        inspection.notes.append(f"{key}: counted is what has no defect; the rest is judged once the defects are mended")
    else:
        _judge_boxes(inspection, annotations, skeleton, digests, settings.filter_empty_gt)
    report = check_images(annotations, skeleton.input_size)
    # Files that are not there have been named with their place in the annotations.
    damaged = [defect for defect in report.defects if defect.file.is_file()]
    inspection.defects += [f"{defect.file}: {defect.problem}" for defect in damaged]
    inspection.warnings += [f"{key}: {_of(len(files), what, files)}" for what, files in report.warnings.items()]
    return inspection, None if defects else annotations


def _counts(annotations: CocoAnnotations) -> dict[str, int | str]:
    summary = annotations.summary
    small, medium, large = summary.boxes_by_size
    return {
        "images": summary.images,
        "image widths": _range([width for width, _ in annotations.sizes]),
        "image heights": _range([height for _, height in annotations.sizes]),
        "classes": len(summary.classes),
        "boxes": summary.boxes,
        "boxes a class": _range(summary.boxes_per_class),
        "small boxes": small,
        "medium boxes": medium,
        "large boxes": large,
    }


def _judge_boxes(
    inspection: Inspection,
    annotations: CocoAnnotations,
    skeleton: Skeleton,
    digests: Digests,
    filter_empty_gt: bool,
) -> None:
    """Add what will happen to the boxes of a split without defects, and how their sizes suit the network."""
    uses = box_uses(annotations, skeleton.input_size)
    names = dict(zip(annotations.file_category_ids, annotations.classes_in_file_order, strict=True))
    inspection.objects = object_sizes(uses, names, skeleton)
    training = annotations.key == "data.train_ann"
    left_out = len(uses.unlabelled) if training and filter_empty_gt else 0
    trained = len(annotations.image_ids) - left_out if training else None
    inspection.counts |= _fates(uses, inspection.objects, skeleton, trained)
    warnings = _warnings(annotations, uses, digests, training=training, filter_empty_gt=filter_empty_gt)
    inspection.warnings += [f"{annotations.key}: {line}" for line in warnings]
    if training:  # the other split is not to be fitted to
        inspection.hints += [f"{annotations.key}: {line}" for line in size_hints(uses, names, skeleton)]


def _fates(
    uses: BoxUses, objects: Sequence[ObjectSizes], skeleton: Skeleton, trained: int | None
) -> dict[str, int | str]:
    """Return what becomes of the images and boxes of a split; `trained`: images that a training is on, if it is."""
    sides = sorted((uses.sides[:, 0] * uses.sides[:, 1]) ** 0.5)
    here: dict[str, int | str] = {"boxes evaluated": uses.evaluated}
    if trained is not None:
        here = {
            "images trained on": trained,
            "images of background only": len(uses.background),
            "boxes trained on": uses.trained,
            "boxes dropped": uses.dropped,
        }
    return {
        "images without boxes": len(uses.unlabelled),
        **here,
        "crowds, ignored": uses.crowds,
        "boxes clipped at an edge": uses.clipped,
        "sides at the input": _range([round(side) for side in sides]),
        "sides of the anchors": _range([round(side) for side in skeleton.anchor_sides]),
        "objects out of reach": sum(sizes.out_of_reach for sizes in objects),
    }


def _warnings(
    annotations: CocoAnnotations, uses: BoxUses, digests: Digests, *, training: bool, filter_empty_gt: bool
) -> Iterator[str]:
    classes = dict(zip(annotations.classes, annotations.summary.boxes_per_class, strict=True))
    absent = [name for name, count in classes.items() if not count]
    repeated = [name for name, times in Counter(annotations.file_names).items() if times > 1]
    left_out = ", which training leaves out" * training
    unlabelled = "{image|images} without boxes" + f"{left_out} unless data.filter_empty_gt is false" * training
    background = "{image|images} whose boxes are all crowds or dropped, which {is|are} trained on as background"
    found: list[tuple[int, str, Sequence[str]]] = [
        # Of a training that is to be on them nothing has to be said.
        (len(uses.unlabelled) * (filter_empty_gt or not training), unlabelled, uses.unlabelled),
        (len(uses.background) * training, background, uses.background),
        (len(absent), "{class|classes} without boxes", absent),
        (len(repeated), "{file|files} named by several images", repeated),
        (uses.dropped, "{box|boxes} without area or thinner than a pixel" + left_out, ()),
        (len(uses.repeated), "{box that stands|boxes that stand} there twice, of one class", uses.repeated),
        (uses.crowds * (uses.crowds > MANY_CROWDS * annotations.summary.boxes), _CROWDS, ()),
        (uses.clipped, "{box that reaches over an edge of its|boxes that reach over an edge of their} image", ()),
    ]
    yield from (_of(count, what, examples) for count, what, examples in found if count)
    if uses.corners is not None:
        beyond = counted(uses.corners.beyond, f"{{box reaches|boxes reach}} over the right or lower edge by {BEYOND:g}")
        yield (
            f"{beyond} pixels and more, and all {uses.corners.boxes} lie inside of their images where they are read as "
            "[left, top, right, bottom]: if they are written so, bbox must become [left, top, right - left, bottom - "
            "top]"
        )
    if training:
        for group in alike(classes):
            told = ", ".join(f"{name!r} ({counted(classes[name], '{box|boxes}')})" for name in group)
            yield f"{len(group)} classes differ in case or spaces alone, and are learned apart: {told}"
        yield from _imbalance({name: count for name, count in classes.items() if count})
    groups = same_files((annotations.images / name for name in annotations.file_names), digests)
    if groups:
        copies = counted(
            sum(len(group) - 1 for group in groups), "{image is a copy of another|images are copies of others}"
        )
        yield f"{copies}; the first pair: {_pair(*groups[0][:2])}"


def _imbalance(classes: Mapping[str, int]) -> Iterator[str]:
    """Yield classes with few boxes, and the rarest against the most frequent; of those that have any."""
    few = [name for name, count in classes.items() if count < FEW_BOXES]
    if few:
        yield _of(len(few), f"{{class|classes}} with fewer than {FEW_BOXES} boxes to learn from", few)
    (often, most), (rarely, least) = max(classes.items(), key=_second), min(classes.items(), key=_second)
    if least * RARE < most:
        yield f"class {often!r} has {round(most / least)} times the boxes of {rarely!r}: {most} against {least}"


def _second(pair: tuple[str, int]) -> int:
    return pair[1]


def _classes_between(train: CocoAnnotations, val: CocoAnnotations) -> Iterator[str]:
    """Yield which classes have boxes in one split alone."""
    learned, asked = (dict(zip(split.classes, split.summary.boxes_per_class, strict=True)) for split in (train, val))
    unknown = [name for name, count in asked.items() if count and not learned.get(name)]
    if unknown:
        yield _of(
            len(unknown), "{class that is evaluated has|classes that are evaluated have} no box in training", unknown
        )
    untested = [name for name, count in learned.items() if count and not asked.get(name)]
    if untested:
        yield _of(
            len(untested),
            "{class that is trained on has|classes that are trained on have} no box in validation",
            untested,
        )


def _images_between(train: CocoAnnotations, val: CocoAnnotations, digests: Digests) -> Iterator[str]:
    """Yield which images are in both splits."""
    trained, validated = _files(train), _files(val)
    shared = sorted(trained & validated)
    if shared:
        yield _of(len(shared), "{image that is|images that are} trained on as well", shared)
    pairs = [
        (file, twin)
        for group in same_files(sorted(trained) + sorted(validated - trained), digests)
        if (twin := next((other for other in group if other in trained), None)) is not None
        for file in group
        if file not in trained
    ]
    if pairs:
        what = "{image has|images have} the bytes of a training image under another name"
        yield f"{counted(len(pairs), what)}, so that the figures will flatter; the first pair: {_pair(*pairs[0])}"


def _pair(first: Path, second: Path) -> str:
    return f"{first} and {second}"


def _files(annotations: CocoAnnotations) -> set[Path]:
    return {(annotations.images / name).absolute() for name in annotations.file_names}


def inspect_folders(settings: PretrainSettings) -> dict[str, Inspection]:
    """Read the images of a classification set, one folder a class.

    Args:
        settings: The ``pretrain`` section, which names at least one folder.
    """
    inspections: dict[str, Inspection] = {}
    classes: dict[str, tuple[str, ...]] = {}
    for key, root in (("train_images", settings.train_images), ("val_images", settings.val_images)):
        name = f"pretrain.{key}"
        inspection = inspections[name] = Inspection()
        try:
            images = list_images(root, name)
        except InputError as error:
            inspection.defects.append(str(error))
            continue
        classes[name] = images.classes
        _read_folder(images, inspection)
    if len(classes) == 2:
        first, second = classes.values()
        different = sorted(set(first) ^ set(second))
        if different:
            many = counted(len(different), "{class|classes}")
            problem = f"the two folders differ in {many}, the first of them {different[0]!r}"
            inspections["pretrain.val_images"].defects.append(f"{settings.val_images}: {problem}")
    return inspections


def _read_folder(images: LabeledImages, inspection: Inspection) -> None:
    sizes: list[tuple[int, int]] = []
    with ThreadPoolExecutor(available_cores()) as threads:  # OpenCV decodes without Python's lock
        for start in range(0, len(images.files), _AT_ONCE):
            files = [images.root / name for name in images.files[start : start + _AT_ONCE]]
            for file, outcome in zip(files, threads.map(decoded_size, files), strict=True):
                if isinstance(outcome, str):
                    inspection.defects.append(f"{file}: {outcome}")
                else:
                    sizes.append(outcome)
    inspection.counts = {
        "images": len(images.files),
        "image widths": _range([width for width, _ in sizes]),
        "image heights": _range([height for _, height in sizes]),
        "classes": len(images.classes),
        "images a class": _range(list(Counter(images.labels).values())),
    }


def _range(values: Sequence[int]) -> str:
    """Return the smallest, middle and largest value."""
    ordered = sorted(values)
    return f"{ordered[0]} / {ordered[len(ordered) // 2]} / {ordered[-1]}" if ordered else "-"


def _of(count: int, what: str, examples: Sequence[object]) -> str:
    """Tell a number of something, as :func:`counted` takes it, and the first of them."""
    first = "" if not examples else f": {examples[0]}" if count == 1 else f"; the first of them: {examples[0]}"
    return counted(count, what) + first
