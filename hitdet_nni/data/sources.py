"""From data settings to checked annotations: which files each split of the data is made of, and what is in them.

No network is needed for that, and nothing heavy is imported; mmdet's data sets are in
:mod:`hitdet_nni.data.datasets.detection`, loaders in :mod:`hitdet_nni.data.loaders`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hitdet_nni import __version__
from hitdet_nni.config.data_settings import ID_KEYS, LAYOUTS, DataSettings
from hitdet_nni.config.lengths import for_images
from hitdet_nni.config.settings import Settings
from hitdet_nni.data.annotations.coco import check_same_classes, read_annotations
from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations
from hitdet_nni.data.annotations.coco_document import cache_folder as cache_folder
from hitdet_nni.data.annotations.merging import one_annotation_file
from hitdet_nni.data.annotations.pixels import require_sound_images
from hitdet_nni.data.layouts.parts import SPLITS, Split
from hitdet_nni.data.layouts.recognise import echo, open_root
from hitdet_nni.data.layouts.split import split_lists
from hitdet_nni.data.wording import counted
from hitdet_nni.errors import InputError
from hitdet_nni.io import locked

SMALL_SET = 2000
"""Sets of up to this many images are decoded once before training starts; larger ones by ``check-data`` only."""


@dataclass(frozen=True)
class DetectionData:
    """Checked training and validation images with the same classes.

    Attributes:
        train: Training images.
        val: Validation images.
        halves: File in which a search keeps how it has split the training images; ``None``: nowhere.
    """

    train: CocoAnnotations
    val: CocoAnnotations
    halves: Path | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of mmdet's labels."""
        return self.train.classes_in_file_order


def open_data(settings: DataSettings, seed: int, input_size: tuple[int, int] | None = None) -> DetectionData:
    """Read and check the images that the settings name; make the embedded set where they ask for it.

    Args:
        settings: The ``data`` section.
        seed: The run's seed; that of the embedded set, unless the settings give it its own.
        input_size: Height and width that training resizes images to fit; ``None``: no training follows.

    Raises:
        InputError: If a file is missing or has a defect that training would not survive.
    """
    # mmdet skips boxes without area, and COCO itself has two of them.
    parts = split_parts(settings, seed)
    train, val = (
        read_annotations(*chosen_source(settings, parts, split), key=f"data.{split}_ann", allow_empty_boxes=True)
        for split in SPLITS
    )
    check_same_classes(train, val)
    for each in (train, val):
        require_sound_images(each, input_size, decode=len(each.image_ids) <= SMALL_SET)
    return DetectionData(train, val)


def open_images(settings: Settings, input_size: tuple[int, int] | None = None) -> tuple[Settings, DetectionData]:
    """Read and check the images of a training, and have its stages be as long as their number asks for.

    Args:
        settings: All settings.
        input_size: Height and width that training resizes images to fit; ``None``: the skeleton's.

    Returns:
        The settings for so many images (:func:`~hitdet_nni.config.lengths.for_images`), and the images.

    Raises:
        InputError: If a file is missing or has a defect that training would not survive.
    """
    data = open_data(settings.data, settings.seed, input_size or settings.skeleton.input_size)
    return for_images(settings, len(data.train.image_ids)), data


def num_trained(data: DetectionData, settings: DataSettings) -> int:
    """Return how many images are trained on: those without boxes only where the settings keep them.

    Args:
        data: The images.
        settings: The ``data`` section.
    """
    if not settings.filter_empty_gt:
        return len(data.train.image_ids)
    return sum(map(bool, data.train.image_classes.values()))


def open_validation(settings: DataSettings, seed: int) -> CocoAnnotations:
    """Read and check the validation split of :func:`open_data` alone; its images are not decoded.

    Raises:
        InputError: If a file is missing or has a defect.
    """
    return read_annotations(*split_source(settings, seed, "val"), key="data.val_ann", allow_empty_boxes=True)


@dataclass(frozen=True)
class Parts:
    """What each split is made of.

    Attributes:
        files: Its annotation files, each with its folder of images; both splits have those of all images where
            validation images are split off.
        split_off: Whether that is so: neither the settings nor the folder name validation images.
    """

    files: Mapping[Split, tuple[tuple[Path, Path], ...]]
    split_off: bool = False

    def __getitem__(self, split: Split) -> tuple[tuple[Path, Path], ...]:
        """Return the files of a split."""
        return self.files[split]


def split_parts(settings: DataSettings, seed: int, defects: Mapping[Split, list[InputError]] | None = None) -> Parts:
    """Return the files that the splits are made of.

    Args:
        settings: The ``data`` section.
        seed: The run's seed; that of the embedded set, unless the settings give it its own. The set is made where it
            is asked for.
        defects: Takes what is wrong with the label files, and their images, of a folder that is recognised, instead of
            the first being raised. Images that it concerns are left out, and a split of which no box is left is of no
            file; the defects of a folder without a validation part are those of training.

    Raises:
        InputError: If the settings name no data, or a folder that is not recognised, or labels in it have a defect
            that `defects` does not take.
    """
    if settings.is_recognised:
        return _recognised(settings, defects)
    if settings.builtin is not None:
        root = _embedded_set(settings, settings.seed_of(seed))
        return Parts({split: ((root / "annotations" / f"instances_{split}.json", root / split),) for split in SPLITS})
    if settings.layout is not None and not settings.train_sources:
        allowed = f"the folder of {settings.layout}, which holds {LAYOUTS[settings.layout]['val_ann']}"
        raise InputError("is missing", key="data.root", allowed=allowed)
    if settings.val_ann is None or settings.val_images is None:
        allowed = (
            "a folder of images and labels, such as --set data.root=my_images; or COCO files by data.train_ann, "
            "train_images, val_ann and val_images; data.layout with data.root; data.builtin"
        )
        raise InputError("is missing", key="data.root", allowed=allowed)
    return Parts({"train": settings.train_sources, "val": ((settings.val_ann, settings.val_images),)})


def split_source(settings: DataSettings, seed: int, split: Split) -> tuple[Path, Path]:
    """Return a split's annotation file and folder of images; make them where it has several parts or lists of ids.

    Args:
        settings: The ``data`` section.
        seed: The run's seed; that of the embedded set, unless the settings give it its own.
        split: Which split.

    Raises:
        InputError: If the settings name no data, or files that are to be put together do not fit.
    """
    return chosen_source(settings, split_parts(settings, seed), split)


def chosen_source(settings: DataSettings, splits: Parts, split: Split) -> tuple[Path, Path]:
    """Return what :func:`split_source` does.

    Args:
        settings: The ``data`` section.
        splits: The files that the splits are made of.
        split: Which split; there is a file of it.

    Raises:
        InputError: As :func:`split_source`.
    """
    parts = splits[split]
    if splits.split_off:
        chosen = _split(settings, parts[0], split)
        return one_annotation_file(parts, cache_folder() / "subsets", split=split, only=chosen, without=None)
    only, without = (settings.train_ids, settings.train_without) if split == "train" else (settings.val_ids, None)
    if len(parts) == 1 and only is None and without is None:
        return parts[0]
    return one_annotation_file(parts, cache_folder() / "subsets", split=split, only=only, without=without)


def _recognised(settings: DataSettings, defects: Mapping[Split, list[InputError]] | None) -> Parts:
    """Return the parts of a folder that is recognised, less a split that is named by its paths.

    Where the folder has no validation part, both splits are all its images; :func:`chosen_source` splits them.
    """
    assert settings.root is not None
    val = () if settings.val_ann is None or settings.val_images is None else ((settings.val_ann, settings.val_images),)
    named = Parts({"train": settings.train_sources, "val": val})
    asked = [split for split in SPLITS if not named[split]]
    found = open_root(settings.root, cache_folder() / "layouts", asked, defects)
    split_off = "val" in asked and "val" not in found
    if split_off:
        if "train" not in asked:
            allowed = "data.val_ann and val_images as well"
            raise InputError("has no validation part", source=settings.root, key="data.root", allowed=allowed)
        found["val"] = found["train"]
    opened = {split: () if source is None else (source,) for split, source in found.items()}
    return Parts({split: named[split] or opened[split] for split in SPLITS}, split_off)


def _split(settings: DataSettings, source: tuple[Path, Path], split: Split) -> Path:
    """Return the file of the ids of a split of the images of a folder that has no validation part."""
    for key in ID_KEYS:
        if getattr(settings, key) is not None:
            problem = "is given, and data.root has no validation part: what is split off is chosen by its own list"
            raise InputError(problem, key=f"data.{key}", allowed="data.val_ann and val_images, or no list")
    lists = split_lists(*source, settings.val_share, settings.val_seed, cache_folder() / "subsets")
    counts = [count for _, count in lists]
    about = f"{settings.val_share:g} of every class, by data.val_share and val_seed {settings.val_seed}"
    told = counted(counts[1], f"of {sum(counts)} {{images is|images are}} split off for validation")
    echo(f"data.root: {told} ({about})")
    return lists[SPLITS.index(split)][0]


def _embedded_set(settings: DataSettings, seed: int) -> Path:
    name = f"{settings.builtin}-{__version__}-{settings.train}-{settings.val}-{settings.size}px-seed{seed}"
    root = cache_folder() / name
    with locked(root.parent / f"{name}.lock"):
        if not root.exists():
            # It needs NumPy and, to draw, scikit-learn; most often the set is there already.
            from hitdet_nni.data.digits import EMBEDDED_SETS, make_digits  # noqa: PLC0415

            kind = EMBEDDED_SETS[str(settings.builtin)]
            make_digits(root, train=settings.train, val=settings.val, size=settings.size, seed=seed, kind=kind)
    return root
