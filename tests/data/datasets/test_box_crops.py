"""Boxes as images for classification: which are listed, what is cut out of an image, and the one line for defects."""

import json
import logging

import cv2
import numpy as np
import pytest

from hitdet_nni.config.settings import PretrainSettings, load_settings
from hitdet_nni.data.box_crops import open_boxes
from hitdet_nni.data.datasets.classification import build_images, cut, sound
from hitdet_nni.data.loaders import pretraining_loaders, search_loaders, weights_half
from hitdet_nni.data.sources import open_data

SIZE = (60, 40)  # width and height
NAMES = {7: "zebra", 3: "ant", 5: "bee"}  # in the order of the file


def box(image, category, bbox, **extra):
    return {"image_id": image, "category_id": category, "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0, **extra}


def write_set(root, split, boxes, images=3):
    (root / split).mkdir(parents=True)
    rng = np.random.default_rng(len(split))
    for number in range(images):
        pixels = rng.integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
        assert cv2.imwrite(str(root / split / f"{number}.png"), pixels)
    document = {
        "images": [
            {"id": number, "file_name": f"{number}.png", "width": SIZE[0], "height": SIZE[1]}
            for number in range(images)
        ],
        "annotations": [{"id": number, **each} for number, each in enumerate(boxes, 1)],
        "categories": [{"id": number, "name": name} for number, name in NAMES.items()],
    }
    (root / f"{split}.json").write_text(json.dumps(document))
    return {f"data.{split}_ann": str(root / f"{split}.json"), f"data.{split}_images": str(root / split)}


GOOD = [
    box(0, 7, [10, 10, 20, 8]),
    box(0, 3, [-4, 30, 20, 16]),  # reaches over two edges
    box(2, 7, [40.5, 0, 10, 12]),
]
BAD = [
    box(0, 3, [5, 5, 20, 20], iscrowd=1),
    box(1, 3, [5, 5, 20, 20], ignore=1),
    box(1, 3, [5, 5, 20, 0.5]),
    box(1, 3, [5, 5, 7, 7]),  # too small
    box(1, 3, [55, 5, 7, 5]),  # too small inside the image
]


@pytest.fixture
def make(tmp_path):
    def settings_of(train=(*GOOD, *BAD), val=GOOD, **values):
        paths = write_set(tmp_path, "train", train) | write_set(tmp_path, "val", val)
        given = {"data.builtin": None, **paths, "pretrain.boxes": True, "pretrain.size": 32, **values}
        settings = load_settings("tiny", given)
        return settings, open_data(settings.data, 0)

    return settings_of


def test_which_boxes_and_their_squares(make, caplog):
    settings, data = make()
    with caplog.at_level(logging.INFO, "hitdet_nni"):
        found = open_boxes(data, settings)
    assert found.classes == data.classes == ("zebra", "ant", "bee")
    assert found.train.files == ("0.png", "0.png", "2.png")
    assert found.train.labels == (0, 1, 0)
    # Centres (20, 14), (8, 35) of what is inside, (45.5, 6); sides 30, 24, 18.
    assert found.train.squares.tolist() == [[5, -1, 35, 29], [-4, 23, 20, 47], [36, -3, 54, 15]]
    lines = [record.getMessage() for record in caplog.records if "pretrain.boxes" in record.getMessage()]
    assert lines == ["pretrain.boxes: 1 class has no box that is large enough to learn from: bee"]
    some = open_boxes(data, settings, [2, 1])
    assert (some.train.files, some.val.labels) == (("2.png",), (0, 1, 0))


def test_a_split_without_a_box_is_refused(make, refused):
    settings, data = make(train=BAD)
    with refused("train.json", "pretrain.boxes", "no box of 8 pixels"):
        open_boxes(data, settings)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("pretrain.train_images", "crops", "boxes is true and train_images is given"),
        ("pretrain.val_images", "crops", "boxes is true and val_images is given"),
        ("batch_norm", "frozen", "pretrain.boxes is true and batch_norm is 'frozen'"),
    ],
)
def test_what_does_not_go_together_is_refused(refused, key, value, said):
    with refused(said):
        load_settings("tiny", {"pretrain.boxes": True, key: value})


def test_a_cut_is_a_slice_and_repeats_edges():
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    assert np.array_equal(cut(image, (2, 1, 6, 5)), image[1:5, 2:6])
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="edge")
    assert np.array_equal(cut(image, (-4, -2, 12, 11)), padded[2:15, :16])


def test_pixels_are_those_of_the_image(make):
    settings, data = make()
    boxes = open_boxes(data, settings).train
    image = cv2.imread(str(data.train.images / "0.png"))
    squares = build_images(boxes, settings.pretrain, training=False)
    expected = cv2.resize(np.pad(image, ((1, 0), (0, 0), (0, 0)), mode="edge")[:30, 5:35], (37, 37))
    assert np.array_equal(squares.pixels(data.train.images / "0.png", 0), expected)
    item, label, number = squares[0]
    assert (label, number) == (0, 0)
    # 32 of 37: the centre
    assert np.array_equal(item.permute(1, 2, 0).numpy(), expected[2:34, 2:34])


@pytest.mark.parametrize("cache_mb", [0, 1])
def test_squares_that_fit_are_read_once(make, refused, cache_mb):
    settings, data = make(**{"data.cache_mb": cache_mb})
    found = open_boxes(data, settings)
    loader = pretraining_loaders(found, settings.pretrain.model_copy(update={"batch_size": 3}), 0)[1]
    before = [sound(batch)[0] for batch in loader]
    file = data.val.images / "2.png"
    file.write_bytes(b"no image")
    if cache_mb:
        assert all((one == two).all() for one, two in zip(before, (sound(batch)[0] for batch in loader), strict=True))
    else:
        with refused(file):
            list(map(sound, loader))


def test_mirrored_only_where_the_data_are(make):
    settings, data = make(**{"data.flip": True})
    boxes = open_boxes(data, settings).train

    def chances(flip):
        made = build_images(boxes, PretrainSettings(boxes=True, size=32, flip=flip), training=True)
        return made.transform.transforms[0].scale, made.transform.transforms[1].p

    assert chances(True) == ((0.5, 1.0), 0.5)
    assert chances(False) == ((0.5, 1.0), 0.0)
    boxes = open_boxes(data, settings.model_copy(update={"data": settings.data.model_copy(update={"flip": False})}))
    assert build_images(boxes.train, settings.pretrain, training=True).transform.transforms[1].p == 0.0
    assert settings.pretrain.flip


def test_the_half_for_weights_is_the_search_s(tiny_settings, tiny_data):
    half = weights_half(tiny_data, tiny_settings.data, tiny_settings.skeleton, 5)
    loader = search_loaders(tiny_data, tiny_settings.data, tiny_settings.skeleton, 5)[0]
    seen = {sample.metainfo["img_id"] for batch in loader for sample in batch["data_samples"]}
    assert len(half) == 8
    assert seen == set(half)
