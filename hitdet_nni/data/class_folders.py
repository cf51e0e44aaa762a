"""Images for classification, one folder a class: which there are. None is decoded here.

What loads them is in :mod:`hitdet_nni.data.datasets.classification`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hitdet_nni.config.settings import PretrainSettings
from hitdet_nni.errors import InputError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings of the files that are images, whatever their case; other files are passed over."""

_LAYOUT = "a folder with one folder of images a class"


@dataclass(frozen=True)
class LabeledImages:
    """The images of one split.

    Attributes:
        root: The folder.
        classes: Names of the class folders, in alphabetical order; a label is an index into them.
        files: Paths of the images inside ``root``.
        labels: Class of each image.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class ClassificationData:
    """Training and validation images of the same classes."""

    train: LabeledImages
    val: LabeledImages

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        return self.train.classes


def open_folders(settings: PretrainSettings) -> ClassificationData:
    """List the images of both splits; none is decoded yet.

    Raises:
        InputError: If a folder is not given or missing, has no class or a class without images, or the two splits
            have different classes.
    """
    train = list_images(settings.train_images, "pretrain.train_images")
    val = list_images(settings.val_images, "pretrain.val_images")
    different = sorted(set(train.classes) ^ set(val.classes))
    if different:
        name = different[0]
        folders = (train.root, val.root) if name in train.classes else (val.root, train.root)
        raise InputError(
            f"has no class {name!r}, which is in {folders[0]}",
            source=folders[1],
            key="pretrain.val_images" if folders[1] == val.root else "pretrain.train_images",
            allowed="the same classes in both splits",
        )
    return ClassificationData(train, val)


def list_images(root: Path | None, key: str) -> LabeledImages:
    """List the images of one split.

    Args:
        root: Its folder.
        key: Dotted configuration key that names it, for messages.

    Raises:
        InputError: If the folder is not given or missing, has no class or a class without images.
    """
    if root is None:
        raise InputError("is missing", key=key, allowed=_LAYOUT)
    if not root.is_dir():
        raise InputError("no such folder", source=root, key=key, allowed=_LAYOUT)
    with os.scandir(root) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise InputError("has no class folder", source=root, key=key, allowed=_LAYOUT)
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _images_below(root, name)
        if not found:
            raise InputError(
                f"class {name!r} has no image", source=root, key=key, allowed=f"files ending in {', '.join(SUFFIXES)}"
            )
        files += found
        labels += [label] * len(found)
    return LabeledImages(root, tuple(classes), tuple(files), tuple(labels))


def _images_below(root: Path, name: str) -> list[str]:
    """Return the paths inside ``root`` of the images in a class folder and the folders in it, sorted."""
    return sorted(
        os.path.relpath(os.path.join(folder, file), root)  # noqa: PTH118  (a Path an image costs ImageNet gigabytes)
        for folder, _, files in os.walk(root / name)
        for file in files
        if file.lower().endswith(SUFFIXES) and not file.startswith(".")
    )
