"""What becomes of each box and image of an annotation file: trained on, ignored, dropped, clipped, left out.

The rules are those of ``mmdet.datasets.CocoDataset`` (``parse_data_info``, ``filter_data``), of its ``Resize`` and of
``mmcv.rescale_size``, which :mod:`hitdet_nni.data.datasets.detection` configures, and of pycocotools' evaluation.
Nothing is dropped after the resizing: a box that it makes thinner than a pixel is trained on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hitdet_nni.data.annotations.box_forms import CornerBoxes, corner_boxes
from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations
from hitdet_nni.data.annotations.coco_document import ROUNDING, Entry
from hitdet_nni.data.images.reading import resized


@dataclass(frozen=True)
class BoxUses:
    """What becomes of the boxes of one split.

    Attributes:
        trained: Number of boxes that a training on these images learns from.
        crowds: Boxes around groups, in which training looks for nothing and evaluation counts nothing.
        dropped: Boxes that training does not load: a side under a pixel, or no area.
        clipped: Boxes of `trained` that are cut off at an edge of their image.
        evaluated: Boxes that an evaluation on these images counts: all but crowds.
        unlabelled: File names of images without any box, which `data.filter_empty_gt` leaves out of training.
        background: File names of images whose boxes are all crowds or dropped: trained on without a box.
        labels: Category id of each trained box, ``[trained]``.
        sides: Width and height of each trained box in pixels of the network's input, ``[trained, 2]``.
        repeated: File names of the images of boxes that stand there twice, of one class, once for each repetition.
        corners: What speaks for boxes that are left, top, right and bottom, if anything does.
    """

    trained: int
    crowds: int
    dropped: int
    clipped: int
    evaluated: int
    unlabelled: tuple[str, ...]
    background: tuple[str, ...]
    labels: NDArray[np.int64]
    sides: NDArray[np.float64]
    repeated: tuple[str, ...] = ()
    corners: CornerBoxes | None = None


def box_uses(annotations: CocoAnnotations, input_size: tuple[int, int]) -> BoxUses:
    """Count what training and evaluation do with the boxes of a file.

    Args:
        annotations: A checked annotation file without defects; it is read once more.
        input_size: Height and width of the network's input.
    """
    document: dict[str, list[Entry]] = json.loads(annotations.ann.read_bytes())
    entries = document["annotations"]
    places = {image_id: place for place, image_id in enumerate(annotations.image_ids)}
    boxes_of, trained_of = np.zeros((2, len(places)), dtype=np.int64)
    kept, labels, owners = [], [], []
    crowds = dropped = 0
    for entry in entries:
        place = places[entry["image_id"]]
        boxes_of[place] += 1
        crowds += bool(entry["iscrowd"])
        if is_dropped(entry, annotations.sizes[place]):
            dropped += not entry["iscrowd"]
        elif not entry["iscrowd"]:
            trained_of[place] += 1
            kept.append(entry["bbox"])
            labels.append(entry["category_id"])
            owners.append(place)
    of_box = np.array(owners, dtype=np.int64)
    fitted = np.array([resized(size, input_size) for size in annotations.sizes], dtype=np.float64)[of_box]
    sizes = np.array(annotations.sizes, dtype=np.float64)[of_box]
    boxes = np.array(kept, dtype=np.float64).reshape(-1, 4)
    corners = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    inside = np.clip(corners, 0, np.hstack([sizes, sizes]))
    names = np.array(annotations.file_names, dtype=object)
    same = Counter(zip(owners, labels, map(tuple, kept), strict=True))
    return BoxUses(
        trained=len(kept),
        crowds=crowds,
        dropped=dropped,
        clipped=int((np.abs(inside - corners) > ROUNDING).any(axis=1).sum()),
        evaluated=len(entries) - crowds,
        unlabelled=tuple(names[boxes_of == 0]),
        background=tuple(names[(boxes_of > 0) & (trained_of == 0)]),
        labels=np.array(labels, dtype=np.int64),
        sides=(inside[:, 2:] - inside[:, :2]) * fitted / sizes,
        repeated=tuple(names[owner] for (owner, *_), count in same.items() for _ in range(count - 1)),
        corners=corner_boxes(document["images"], entries),
    )


def is_dropped(entry: Mapping[str, Any], size: tuple[int, int]) -> bool:
    """Whether training does not load a box, be it a crowd or not.

    Args:
        entry: An entry of ``annotations``.
        size: Width and height of its image in pixels.
    """
    left, top, width, height = entry["bbox"]
    across = min(left + width, size[0]) - max(left, 0)
    down = min(top + height, size[1]) - max(top, 0)
    outside = across <= 0 or down <= 0
    return bool(entry.get("ignore")) or outside or entry["area"] <= 0 or width < 1 or height < 1
