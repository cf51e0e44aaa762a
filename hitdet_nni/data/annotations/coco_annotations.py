"""A checked annotation file in COCO format, as values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hitdet_nni.data.identity import identity


@dataclass(frozen=True)
class CocoSummary:
    """What an annotation file holds.

    Attributes:
        images: Number of images.
        boxes: Number of boxes of every kind.
        classes: Class names in the order of their category ids.
        boxes_per_class: Number of boxes of each of `classes`.
        boxes_by_size: Boxes below 32 x 32 pixels of area, below 96 x 96, and above. (COCO's metrics count a box of
            exactly such an area in both sizes.)
    """

    images: int
    boxes: int
    classes: tuple[str, ...]
    boxes_per_class: tuple[int, ...]
    boxes_by_size: tuple[int, int, int]


@dataclass(frozen=True)
class CocoAnnotations:
    """A checked annotation file and its images.

    Attributes:
        ann: The annotation file that mmdet and pycocotools are to read: `source`, or what was written in its place.
        images: Folder that the file names are relative to.
        key: Dotted configuration key that named `ann`.
        image_ids: Ids of the images in the order of the file.
        file_names: File name of each image, relative to `images`.
        sizes: Width and height of each image in pixels.
        category_ids: Ascending category ids; they may have gaps.
        classes: Class name of each of `category_ids`.
        file_category_ids: The category ids in the order of the file.
        image_classes: Category ids of the boxes of each image, by image id.
        summary: Counts.
        source: The annotation file, or the folder of label files, that the user named, for messages.
        left_out: Id and name of the category that only groups the others, if there is one.
        notes: A line for each kind of value that was taken otherwise than it stands in the file.
    """

    ann: Path
    images: Path
    key: str
    image_ids: tuple[int, ...]
    file_names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    category_ids: tuple[int, ...]
    classes: tuple[str, ...]
    file_category_ids: tuple[int, ...]
    image_classes: Mapping[int, frozenset[int]]
    summary: CocoSummary
    source: Path
    left_out: tuple[int, str] | None = None
    notes: tuple[str, ...] = ()

    @cached_property  # of a large set the file takes seconds
    def identity(self) -> str:
        """What tells these images and annotations from others, wherever they lie."""
        document = json.loads(self.ann.read_bytes())
        lists = [document.get(name) for name in ("images", "annotations", "categories")]
        return identity(len(self.image_ids), json.dumps(lists, sort_keys=True).encode())

    @property
    def classes_in_file_order(self) -> tuple[str, ...]:
        """Class names as mmdet numbers its labels: in the order of the file, whatever ``metainfo`` says."""
        names = dict(zip(self.category_ids, self.classes, strict=True))
        return tuple(names[category_id] for category_id in self.file_category_ids)
