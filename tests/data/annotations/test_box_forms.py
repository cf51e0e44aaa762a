"""Boxes by their corners: recognised where they can be nothing else, warned of where they may be, else left alone."""

import copy
import random

import pytest
from PIL import Image

from hitdet_nni.config.settings import DataSettings, load_settings
from hitdet_nni.data.annotations.box_forms import box_around, corner_boxes
from hitdet_nni.data.annotations.coco import read_annotations
from hitdet_nni.data.checks.inspection import inspect_detection
from hitdet_nni.data.checks.repair import repair
from hitdet_nni.data.sources import split_parts
from hitdet_nni.io import read_json, write_json

WIDTH, HEIGHT = 320, 240
IMAGES = [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(40)]


def sound(seed, *, beyond=0.0):
    """Boxes of objects anywhere, of which up to some pixels lie over any edge."""
    rng = random.Random(seed)
    entries = []
    for number in range(40):
        left, top = rng.uniform(-beyond, WIDTH - 20), rng.uniform(-beyond, HEIGHT - 20)
        width, height = rng.uniform(10, WIDTH + beyond - left), rng.uniform(10, HEIGHT + beyond - top)
        entry = {"id": number + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
        entries.append({**entry, "bbox": [left, top, width, height], "area": width * height})
    return entries


def as_corners(entries):
    entries = copy.deepcopy(entries)
    for entry in entries:
        left, top, width, height = entry["bbox"]
        entry["bbox"] = [left, top, left + width, top + height]
    return entries


@pytest.fixture
def folder(tmp_path):
    """A folder of images, and a function that writes boxes of them as ``ann.json``."""
    for entry in IMAGES:
        Image.new("L", (WIDTH, HEIGHT), 128).save(tmp_path / entry["file_name"])

    def write(entries):
        content = {"images": IMAGES, "annotations": entries, "categories": [{"id": 1, "name": "cat"}]}
        write_json(tmp_path / "ann.json", content)
        return tmp_path

    return write


def with_areas(entries, area):
    return [{**entry, "area": area(*entry["bbox"])} for entry in entries]


def without_areas(entries):
    return [{key: value for key, value in entry.items() if key != "area"} for entry in entries]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("beyond", [0.0, 10.0, 60.0])
def test_sound_boxes_are_no_corners(seed, beyond):
    entries = sound(seed, beyond=beyond)
    segmented = with_areas(entries, lambda left, top, width, height: 0.6 * width * height)
    for each in (entries, segmented, without_areas(entries)):
        assert corner_boxes(IMAGES, each) is None


@pytest.mark.parametrize("beyond", [0, 3, 9])
def test_one_large_object_an_image_is_warned_of_at_most(beyond):
    """Objects that fill their image, and boxes that are a bit too large: all lie inside as corners too."""
    entries = [{"image_id": i, "bbox": [9, 8, WIDTH - 9 + beyond, HEIGHT - 8]} for i in range(40)]
    for each in (entries, with_areas(entries, lambda left, top, width, height: width * height)):
        found = corner_boxes(IMAGES, each)
        assert (found is not None) == (beyond > 2)
        assert found is None or not found.certain


@pytest.mark.parametrize("seed", range(3))
def test_corners_are_certain(seed):
    entries = as_corners(sound(seed))
    assert corner_boxes(IMAGES, entries).by_area
    inside = [each for each in entries if each["bbox"][0] + each["bbox"][2] < WIDTH][:5]
    assert corner_boxes(IMAGES, inside).certain  # their areas alone say it
    segmented = with_areas(entries, lambda left, top, right, bottom: 0.6 * (right - left) * (bottom - top))
    for each in (without_areas(entries), segmented):
        found = corner_boxes(IMAGES, each)
        assert (found.certain, found.by_area, found.boxes) == (True, False, 40)
        assert found.beyond > 20
    assert corner_boxes(IMAGES, [{**entries[0], "bbox": [50, 50, 20, 20]}, *entries * 3]).certain
    assert corner_boxes(IMAGES, entries[:4]) is None  # too few to tell


def test_corners_whose_areas_are_computed_of_them_are_likely():
    found = corner_boxes(IMAGES, with_areas(as_corners(sound(0)), lambda left, top, right, bottom: right * bottom))
    assert not found.certain


def test_what_is_no_box_is_passed_over():
    odd = [{"image_id": [1]}, {"image_id": 1, "bbox": ["1", 2, 3, 4]}, {"bbox": [1, 2, 3]}, {"image_id": 99}]
    assert corner_boxes([*IMAGES, {"id": "x"}, {}], odd) is None
    assert corner_boxes(IMAGES, odd + as_corners(sound(0))).boxes == 40


@pytest.mark.parametrize("name", ["cards", "coco_tiny"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_photographs(shared_data, name, split):
    document = read_json(shared_data / name / "annotations" / f"instances_{split}.json")
    images, boxes = document["images"], document["annotations"]
    assert corner_boxes(images, boxes) is None
    assert corner_boxes(images, without_areas(boxes)) is None
    assert corner_boxes(images, as_corners(boxes)).certain
    assert corner_boxes(images, without_areas(as_corners(boxes))).certain


@pytest.mark.parametrize("config", ["tiny", "digits"])
def test_digits(config):
    settings = load_settings(config)
    for ((ann, _),) in split_parts(settings.data, settings.seed).files.values():
        document = read_json(ann)
        assert corner_boxes(document["images"], document["annotations"]) is None


@pytest.mark.parametrize(("areas", "why"), [(True, "the areas of area"), (False, "only so they lie inside")])
def test_corners_are_refused_and_mended(folder, refused, areas, why, tmp_path):
    entries = sound(0)
    corners = as_corners(entries) if areas else without_areas(as_corners(entries))
    images = folder(corners)
    ann = images / "ann.json"
    with refused(f"{ann}: annotations: 40 boxes are [left, top, right, bottom]", why, "check-data --fix OUT"):
        read_annotations(ann, images, key="data.train_ann")
    paths = {"train_ann": ann, "train_images": images, "val_ann": ann, "val_images": images}
    train, _ = repair(DataSettings(**paths), 0, tmp_path / "out")
    assert sum(".bbox: " in line for line in train.changes) == 40
    mended = read_json(train.file)["annotations"]
    assert [each["bbox"] for each in mended] == [pytest.approx(each["bbox"], abs=0.01) for each in entries]
    assert [each["area"] for each in mended] == [pytest.approx(each["area"], rel=0.01) for each in entries]
    read_annotations(train.file, images, key="data.train_ann")


def test_likely_corners_are_warned_of(folder, tiny):
    images = folder(with_areas(as_corners(sound(0)), lambda left, top, right, bottom: right * bottom))
    ann = images / "ann.json"
    settings = DataSettings(train_ann=ann, train_images=images, val_ann=ann, val_images=images)
    for split, inspection in inspect_detection(settings, tiny, 0).items():
        assert inspection.defects == []
        (line,) = (line for line in inspection.warnings if "[left, top, right, bottom]" in line)
        assert line.startswith(f"data.{split}_ann: ")
        assert "all 40 lie inside of their images" in line


def test_box_around_a_polygon():
    assert box_around([3, 9, 1.5, 4, 8, 7]) == (1.5, 4, 8, 9)
