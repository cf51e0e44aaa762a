"""Captions of boxes: inside the image, at their boxes, not over each other."""

import itertools
import random

import pytest

from hitdet_nni.deployment.captions import place_captions

SIZE = (270.0, 200.0)


def areas(boxes, sizes):
    return [
        (left, top, left + width, top + height)
        for (left, top), (width, height) in zip(place_captions(boxes, sizes, SIZE), sizes, strict=True)
    ]


def overlap(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.mark.parametrize(
    ("box", "place"),
    [
        ((50, 80, 150, 120), (50, 65)),  # above
        ((200, 80, 268, 120), (190, 65)),  # above, moved inside
        ((-9, -9, 20, 40), (0, 0)),
        ((265, 195, 280, 220), (190, 180)),
    ],
)
def test_a_caption_stands_inside(box, place):
    assert place_captions([box], [(80, 15)], SIZE) == [place]


def test_captions_of_the_same_box_do_not_overlap():
    boxes = [(100, 80, 180, 130), (101, 81, 182, 131), (99, 79, 179, 128), (102, 82, 178, 129), (100, 80, 180, 130)]
    found = areas(boxes, [(60, 15)] * len(boxes))
    assert not any(overlap(one, other) for one, other in itertools.combinations(found, 2))


def test_captions_stay_inside_however_many_there_are():
    rng = random.Random(0)
    corners = [(rng.uniform(0, 250), rng.uniform(0, 180)) for _ in range(60)]
    boxes = [(x, y, x + rng.uniform(5, 90), y + rng.uniform(5, 90)) for x, y in corners]
    for left, top, right, bottom in areas(boxes, [(rng.uniform(20, 90), 15) for _ in boxes]):
        assert 0 <= left < right <= SIZE[0] + 1e-9
        assert 0 <= top < bottom <= SIZE[1] + 1e-9
    assert place_captions([], [], SIZE) == []
    assert place_captions([(10, 50, 30, 70)], [(400, 15)], SIZE) == [(0, 35)]  # longer than the image is wide
