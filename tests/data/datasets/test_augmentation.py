"""What befalls training images: boxes stay where their objects are, and the same draw is the same image."""

import json

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS

from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.annotations.coco import read_annotations
from hitdet_nni.data.datasets.detection import CachedDataset, build_dataset
from hitdet_nni.data.loaders import loader_config, retraining_loaders, search_loaders
from hitdet_nni.data.sampling import Draw, ResumableSampler, SeededImages
from hitdet_nni.data.sources import DetectionData

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
"""Blue, green, red of each class's rectangles."""


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory):
    """Images that are grey but for one rectangle each, in the colour of its class, whose box is exact."""
    root = tmp_path_factory.mktemp("rectangles")
    images, annotations = [], []
    for number in range(1, 13):
        width, height = (120, 90) if number % 2 else (100, 100)
        left, top, w, h = (10 + 3 * number, 12 + 2 * number, 30, 24) if number < 12 else (2, 2, 14, 12)
        image = np.full((height, width, 3), 114, np.uint8)
        image[top : top + h, left : left + w] = COLOURS[number % 3]
        cv2.imwrite(str(root / f"{number:02d}.png"), image)
        images.append({"id": number, "file_name": f"{number:02d}.png", "width": width, "height": height})
        box = {"bbox": [left, top, w, h], "area": w * h, "iscrowd": 0}
        annotations.append({"id": number, "image_id": number, "category_id": number % 3 + 1, **box})
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(("blue", "green", "red"))]
    file = root / "all.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return read_annotations(file, root, key="data.train_ann")


def settings(**changes):
    return load_settings("tiny", {"data.workers": 0, "data.batch_size": 4, **changes})


def drawn(annotations, augment, count=60, *, flip=False, mix=True):
    """Pixels ``[H, W, 3]`` and boxes, by classes, of so many draws."""
    skeleton = settings().skeleton
    images = SeededImages(
        CachedDataset(build_dataset(annotations, skeleton, training=True, flip=flip, augment=augment), 10**7)
    )
    for seed in range(count):
        packed = images[Draw(seed % len(images), seed, mix)]
        instances = packed["data_samples"].gt_instances
        boxes = instances.bboxes.tensor.numpy()
        yield packed["inputs"].permute(1, 2, 0).numpy(), boxes, instances.labels.numpy()


def visible(image, label):
    """Which pixels are of a class's colour, its hue and strength shifted a little."""
    strongest = image.argmax(axis=2) == label  # channels are blue, green, red as the classes are
    return strongest & (image.max(axis=2).astype(int) - image.min(axis=2) > 90)


@pytest.mark.parametrize("augment", ["none", "flip", "standard", "strong"])
def test_boxes_stay_round_their_objects(rectangles, augment):
    boxes_seen = scales = 0
    for image, boxes, labels in drawn(rectangles, augment, flip=True):
        assert max(image.shape[:2]) <= 96
        for box, label in zip(boxes, labels, strict=True):
            left, top, right, bottom = box
            inside = image[round(top) : round(bottom), round(left) : round(right)]
            # One more rectangle may lie on it only in a mosaic, where none overlap: all of it has its colour.
            if min(inside.shape[:2]) >= 4:
                assert visible(inside[1:-1, 1:-1], label).mean() > 0.9
                boxes_seen += 1
        for label in range(3):  # and no object is without its box
            ys, xs = np.nonzero(visible(image, label))
            own = boxes[labels == label]
            for y, x in zip(ys, xs, strict=True):
                margin = np.minimum(own[:, 2:] + 1.5 - (x, y), (x, y) - own[:, :2] + 1.5).min(axis=1)
                assert not len(own) or margin.max() >= 0
        scales += len(boxes)
    assert boxes_seen > 40
    assert (scales > 90) == (augment == "strong")  # several objects in one image


def sizes(found):
    return np.array([np.sqrt((box[2] - box[0]) * (box[3] - box[1])) for _, boxes, _ in found for box in boxes])


def test_standard_and_strong_change_the_scale(rectangles):
    still, standard, strong = (sizes(drawn(rectangles, name)) for name in ("none", "standard", "strong"))
    assert 10 < still.min() < still.max() < 30
    for varied in (standard, strong):
        assert varied.min() < 9
        assert varied.max() > 32


def test_an_image_may_end_without_a_box(rectangles):
    counts = [len(boxes) for _, boxes, _ in drawn(rectangles, "standard", 200)]
    assert set(counts) == {0, 1}


@pytest.mark.parametrize("augment", ["standard", "strong"])
def test_the_same_draw_is_the_same_image_whenever_it_is_asked_for(rectangles, augment):
    first, again = (list(drawn(rectangles, augment, 12, flip=True)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert len({image.tobytes() for image, _, _ in first}) == 12


def test_without_mixing_an_image_is_alone_and_whole(rectangles):
    for image, boxes, _ in drawn(rectangles, "strong", 12, mix=False):
        assert len(boxes) == 1
        assert image.shape[:2] in ((72, 96), (96, 96))


def test_only_a_retraining_is_augmented(rectangles):
    data = DetectionData(rectangles, rectangles)
    strong, plain = settings(**{"data.augment": "strong"}), settings()
    for one, other in zip(
        *(search_loaders(data, each.data, each.skeleton, 0)[:2] for each in (strong, plain)), strict=True
    ):
        for batch, same in zip(one, other, strict=True):
            assert all(a.equal(b) for a, b in zip(batch["inputs"], same["inputs"], strict=True))
    mixed, alone = (retraining_loaders(data, each.data, each.skeleton, 0, 3) for each in (strong, plain))
    assert not all(
        a.shape == b.shape and a.equal(b)
        for a, b in zip(next(iter(mixed[0]))["inputs"], next(iter(alone[0]))["inputs"], strict=True)
    )
    for a, b in zip(mixed[1], alone[1], strict=True):  # validation images are as they are
        assert a["inputs"][0].equal(b["inputs"][0])


def test_the_last_epochs_put_no_images_together(rectangles):
    given = settings(**{"data.augment": "strong"})
    loader, _ = retraining_loaders(DetectionData(rectangles, rectangles), given.data, given.skeleton, 0, 20)
    mixes = []
    for epoch in range(20):
        loader.sampler.set_epoch(epoch)
        mixes.append({draw.mix for draw in loader.sampler})
    assert mixes == [{True}] * 17 + [{False}] * 3
    assert {draw.mix for draw in ResumableSampler(5, 2, 2, 0)} == {True}


@pytest.mark.parametrize("augment", ["none", "flip", "standard", "strong"])
def test_plain_mmdet_builds_the_same_kind_of_images(rectangles, augment):
    given = settings(**{"data.augment": augment, "data.flip": True})
    dataset = DATASETS.build(loader_config(rectangles, given.data, given.skeleton, training=True)["dataset"])
    packed = [dataset[index] for index in range(len(dataset))]
    assert len(packed) == 12
    flipped = {each["data_samples"].metainfo.get("flip") for each in packed}
    assert (flipped == {None}) == (augment == "none")
    assert all(max(each["inputs"].shape[1:]) <= 96 for each in packed)
    assert (sum(len(each["data_samples"].gt_instances.bboxes) for each in packed) > 14) == (augment == "strong")
