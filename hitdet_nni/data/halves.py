"""The two halves of the training images that DARTS alternates between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hitdet_nni.engine import distributed
from hitdet_nni.errors import InputError
from hitdet_nni.io import read_json, write_json

HALF_NAMES = ("weights", "alphas")
"""What each half trains, in the order of :func:`split_halves`: the keys of the file that keeps them."""


def split_halves(
    image_ids: Iterable[int], seed: int, *, image_classes: Mapping[int, Collection[int]] | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Split training images in two halves: one trains weights, the other architecture parameters.

    Images are ordered by their rarest class, at random within a class, and dealt in pairs, one to each half; of a
    pair, the first half gets the image whose classes it lacks more. So the halves differ by at most one image, and
    by at most two among the images that share a rarest class; other classes come out about even.

    Args:
        image_ids: Ids of the images; their order does not matter.
        seed: Seed of the shuffling, not negative.
        image_classes: Category ids of each image's boxes, such as `CocoAnnotations.image_classes`. Without it, or for
            images without boxes, no class is balanced.

    Returns:
        The ids of both halves, ascending.

    Raises:
        InputError: If there are fewer than two images, an id comes twice, or the seed is negative.

    Source: DARTS (Liu et al., ICLR 2019), section 3.1: half of the training data is held out as the validation set.
    """
    ids = sorted(image_ids)
    if seed < 0:
        raise InputError(f"is {seed}", key="seed", allowed="0 or more")
    if len(ids) < 2:
        raise InputError(f"cannot split {len(ids)} image(s) in halves", key="image_ids", allowed="two or more")
    for image_id, following in pairwise(ids):
        if image_id == following:
            raise InputError(f"id {image_id} comes twice", key="image_ids", allowed="unique ids")
    shuffled = [ids[index] for index in np.random.default_rng(seed).permutation(len(ids))]
    known = {} if image_classes is None else image_classes
    classes = {image_id: frozenset(known.get(image_id, ())) for image_id in ids}
    frequency = Counter(category_id for found in classes.values() for category_id in found)

    def rarest(image_id: int) -> tuple[int, int]:
        # Images without boxes come last, as one group.
        return min(
            ((frequency[category_id], category_id) for category_id in classes[image_id]), default=(len(ids) + 1, 0)
        )

    ordered = sorted(shuffled, key=rarest)
    first, second = [], []
    lead: Counter[int] = Counter()  # by how many images of a class the first half is ahead
    for one, other in zip(ordered[::2], ordered[1::2], strict=False):
        if sum(lead[c] for c in classes[one]) > sum(lead[c] for c in classes[other]):
            one, other = other, one
        first.append(one)
        second.append(other)
        lead.update(classes[one])
        lead.subtract(classes[other])
    if len(ordered) % 2:
        first.append(ordered[-1])
    return tuple(sorted(first)), tuple(sorted(second))


def load_or_create_split(
    file: Path | None,
    image_ids: Iterable[int],
    seed: int,
    *,
    image_classes: Mapping[int, Collection[int]] | None = None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the halves that a file keeps; where there is none, split and write it.

    Args:
        file: The file, ``{"seed": S, "weights": [ids], "alphas": [ids]}``; ``None`` to split without keeping.
        image_ids: As :func:`split_halves`.
        seed: As :func:`split_halves`.
        image_classes: As :func:`split_halves`.

    Returns:
        As :func:`split_halves`.

    Raises:
        InputError: As :func:`split_halves`, or if the file does not split exactly these images.
    """
    ids = list(image_ids)
    if file is not None and file.exists():
        return _read_halves(file, ids)
    halves = split_halves(ids, seed, image_classes=image_classes)
    if file is not None and distributed.is_main():
        write_json(file, {"seed": seed, **dict(zip(HALF_NAMES, map(list, halves), strict=True))})
    return halves


def _read_halves(file: Path, ids: Collection[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    content = read_json(file)
    halves: list[Any] = [content.get(name) if isinstance(content, dict) else None for name in HALF_NAMES]
    if not all(isinstance(half, list) and half and all(type(each) is int for each in half) for half in halves):
        raise InputError("is not a split", source=file, allowed=f"lists of image ids in {', '.join(HALF_NAMES)}")
    first, second = (tuple(half) for half in halves)
    together = [*first, *second]
    if len(together) != len(ids) or set(together) != set(ids):
        different = min(set(together) ^ set(ids), default=None)
        problem = "holds an id twice" if different is None else f"was made of other images: id {different} differs"
        raise InputError(problem, source=file, allowed="the training images that the run was started with")
    return first, second
