"""Validation images split off where a set has none: the same ones every time, of every class its share."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import groupby
from pathlib import Path

import numpy as np

from hitdet_nni.data.annotations.coco import read_annotations
from hitdet_nni.errors import InputError
from hitdet_nni.io import locked, write_text

Ids = tuple[int, ...]


def split_off(
    image_ids: Iterable[int], share: float, seed: int, *, image_classes: Mapping[int, Collection[int]]
) -> tuple[Ids, Ids]:
    """Split images into training and validation images, every class in both as far as the share allows.

    Images are grouped by their rarest class, those without boxes in a group of their own; of each group, in random
    order, the share is taken, rounded so that the whole comes out right, and one image at least stays. So of classes
    with fewer than one over the share images only some are in both.

    Args:
        image_ids: Ids of the images; their order does not matter.
        share: Part of the images that validates, above 0 and below 1.
        seed: Seed of the order, not negative.
        image_classes: Category ids of each image's boxes.

    Returns:
        Ids of the training and of the validation images, ascending.

    Raises:
        InputError: If there are fewer than two images.
    """
    ids = sorted(image_ids)
    if len(ids) < 2:
        raise InputError(f"cannot split {len(ids)} image(s)", key="data.root", allowed="two or more images")
    shuffled = [ids[index] for index in np.random.default_rng(seed).permutation(len(ids))]
    classes = {image_id: frozenset(image_classes.get(image_id, ())) for image_id in ids}
    frequency = Counter(category_id for found in classes.values() for category_id in found)

    def rarest(image_id: int) -> tuple[int, int]:
        # Images without boxes come last, as one group.
        return min(((frequency[each], each) for each in classes[image_id]), default=(len(ids) + 1, 0))

    chosen: list[int] = []
    owed = 0.0
    for _, members in groupby(sorted(shuffled, key=rarest), key=rarest):
        group = list(members)
        owed += share * len(group)
        taken = min(max(0, round(owed)), len(group) - 1)
        owed -= taken
        chosen += group[:taken]
    if not chosen:
        chosen = [sorted(shuffled, key=rarest)[-1]]
    return tuple(sorted(set(ids) - set(chosen))), tuple(sorted(chosen))


def split_lists(ann: Path, images: Path, share: float, seed: int, cache: Path) -> tuple[tuple[Path, int], ...]:
    """Return the files of the ids of the training and of the validation images; write them where they are not there.

    Args:
        ann: COCO annotation file of all images.
        images: Folder that its file names are relative to.
        share: As :func:`split_off`.
        seed: As :func:`split_off`.
        cache: The folder of such files.

    Returns:
        File and number of images of the training part, and of the validation part.

    Raises:
        InputError: If the annotation file has a defect, or there are fewer than two images.
    """
    try:
        digest = hashlib.sha256(json.dumps([share, seed]).encode() + ann.read_bytes()).hexdigest()[:24]
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", source=ann, key="data.root") from None
    file = cache / f"split-{digest}.json"
    lists = [cache / f"split-{digest}-{split}.json" for split in ("train", "val")]
    with locked(file.with_suffix(".lock")):
        if not file.exists():
            annotations = read_annotations(ann, images, key="data.root", allow_empty_boxes=True)
            parts = split_off(annotations.image_ids, share, seed, image_classes=annotations.image_classes)
            for path, ids in zip(lists, parts, strict=True):
                write_text(path, json.dumps(ids))
            write_text(file, json.dumps([len(ids) for ids in parts]))  # the last: both lists are there
        counts = json.loads(file.read_bytes())
    return tuple(zip(lists, counts, strict=True))
