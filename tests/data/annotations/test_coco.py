"""Annotation files: every defect is named with its place and value, everything else is counted."""

import copy
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from hitdet_nni.data.annotations.coco import check_same_classes, read_annotations
from hitdet_nni.data.annotations.pixels import check_images, require_sound_images
from hitdet_nni.data.checks.box_uses import box_uses
from hitdet_nni.data.halves import split_halves
from hitdet_nni.errors import InputError

KEY = "data.train_ann"


def box(box_id, image_id, category_id, bbox, **more):
    area = bbox[2] * bbox[3]
    return {
        "id": box_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "area": area,
        "iscrowd": 0,
    } | more


GOOD = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 3, "file_name": "deep/b.jpg", "width": 20, "height": 20},
        {"id": 5, "file_name": "c.png", "width": 20, "height": 10},
    ],
    "annotations": [
        box(1, 7, 90, [1, 2, 10.5, 10]),
        box(2, 7, 4, [-5, 2, 10, 10]),
        box(4, 3, 4, [0, 0, 20, 20], iscrowd=1, segmentation={"counts": [0], "size": [20, 20]}),
        box(9, 3, 4, [0, 0, 0.5, 20]),
    ],
    "categories": [{"id": 4, "name": "cat"}, {"id": 90, "name": "toothbrush"}, {"id": 17, "name": "dog"}],
}


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    (images / "deep").mkdir(parents=True)
    for entry in GOOD["images"]:
        Image.new("RGB", (entry["width"], entry["height"]), "teal").save(images / entry["file_name"])
    return tmp_path


def read(folder, data, *, key=KEY, name="ann.json", **options):
    ann = folder / name
    ann.write_text(data if isinstance(data, str) else json.dumps(data))
    return read_annotations(ann, folder / "images", key=key, **options)


def refusal(folder, data):
    with pytest.raises(InputError) as caught:
        read(folder, data)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert str(folder / "ann.json") in text
    assert KEY in text
    assert "; allowed: " in text
    return text


def test_good_file(folder):
    dataset = read(folder, GOOD)
    assert dataset.image_ids == (7, 3, 5)
    assert dataset.file_names == ("a.png", "deep/b.jpg", "c.png")
    assert dataset.sizes == ((40, 30), (20, 20), (20, 10))
    assert dataset.category_ids == (4, 17, 90)
    assert dataset.classes == dataset.summary.classes == ("cat", "dog", "toothbrush")
    assert dataset.file_category_ids == (4, 90, 17)
    assert dataset.classes_in_file_order == ("cat", "toothbrush", "dog")
    assert dataset.image_classes == {7: {4, 90}, 3: {4}, 5: set()}
    summary = dataset.summary
    assert (summary.images, summary.boxes, summary.boxes_per_class) == (3, 4, (3, 0, 1))
    uses = box_uses(dataset, (64, 64))
    assert (uses.crowds, uses.dropped, uses.clipped, len(uses.unlabelled)) == (1, 1, 1, 1)
    assert check_images(dataset).defects == []
    require_sound_images(dataset)


def test_boxes_that_are_shares_of_the_image(folder):
    data = copy.deepcopy(GOOD)
    for entry in data["annotations"]:
        entry["bbox"], entry["area"] = [0.25, 0.5, 0.5, 0.25], 0.125
    assert "has 4 boxes within one pixel, as if they were shares of the image" in refusal(folder, data)
    assert "in pixels" in refusal(folder, data)


GONE = "\0nothing"


def changed(path, value):
    data = copy.deepcopy(GOOD)
    *parents, last = path
    holder = data
    for step in parents:
        holder = holder[step]
    if value is GONE:
        del holder[last]
    else:
        holder[last] = value
    return data


def place_of(path):
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


DEFECTS = [
    *[((name,), value) for name in ("images", "annotations", "categories") for value in (GONE, [], {}, None, "x")],
    *[((name, 1), value) for name in ("images", "annotations", "categories") for value in (None, 5, [1])],
    *[(("images", 1, "id"), value) for value in (GONE, "3", 3.5, True, None, 7, 7.0, 2**64)],
    *[(("images", 1, "file_name"), value) for value in (GONE, 3, "", ".", "/etc/passwd", "../b.jpg", "a/../../b")],
    *[(("images", 1, "file_name"), value) for value in ("a\0b", "\ud800", "gone.png", "deep", "n/" * 3000 + "a")],
    *[(("images", 1, side), value) for side in ("width", "height") for value in (GONE, "20", 20.5, 0, -1, 10**400)],
    *[(("annotations", 1, "id"), value) for value in (GONE, "2", 1, 1.0, True, None)],
    *[(("annotations", 1, "image_id"), value) for value in (GONE, "7", 8, 7.5, [7])],
    *[(("annotations", 1, "category_id"), value) for value in (GONE, "4", 5, True, {})],
    *[(("annotations", 1, "bbox"), value) for value in (GONE, None, "1234", [1, 2, 3], [1, 2, 3, 4, 5])],
    *[(("annotations", 1, "bbox"), [1, 2, 3, value]) for value in ("4", None, True, 10**400, float("nan"))],
    *[(("annotations", 1, "bbox"), [1, value, 3, 4]) for value in (float("inf"), -float("inf"))],
    *[(("annotations", 1, "bbox"), [1, 2, *sides]) for sides in ((0, 4), (3, 0), (-3, 4), (3, -4))],
    *[(("annotations", 1, "bbox"), [*corner, 3, 4]) for corner in ((40, 2), (1, 30), (-3, 2), (1, -4), (900, 2))],
    *[(("annotations", 1, "area"), value) for value in ("9", float("nan"))],
    *[(("annotations", 1, "iscrowd"), value) for value in (2, 0.5, "0", float("nan"))],
    *[(("annotations", 1, "ignore"), value) for value in (2, "yes", [1], float("nan"))],
    *[(("categories", 1, "id"), value) for value in (GONE, "x", 4, 4.0, 1.5)],
    *[(("categories", 1, "name"), value) for value in (GONE, 3, "", " ", "cat")],
]


@pytest.mark.parametrize(("path", "value"), DEFECTS, ids=lambda part: repr(part)[:40])
def test_defect_is_named_with_place_and_value(folder, path, value):
    text = refusal(folder, changed(path, value))
    assert f": {place_of(path)}: " in text
    shown = "is missing" if value is GONE else "is empty" if value == [] else " ".join(repr(value).split())
    if isinstance(value, float) and value.is_integer():
        shown = str(int(value))  # whole numbers are taken, and refused as what they are
    if isinstance(value, list) and any(isinstance(number, int) and number > 1e9 for number in value):
        shown = "[1, 2, 3, 1000"
    assert shown[:20] in text


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("", "line 1 column 1"),
        ('{"images": [{"id": 1},', "line 1 column"),
        (json.dumps(GOOD, indent=1)[:200], "cut off"),
        ("[1, 2]", "[1, 2]"),
        ("null", "None"),
        ("[" * 100_000, "not JSON"),
    ],
    ids=["empty", "open", "truncated", "list", "null", "deep"],
)
def test_file_that_is_no_annotation_file(folder, content, shown):
    assert shown in refusal(folder, content)


def test_bytes_that_are_no_text(folder):
    (folder / "ann.json").write_bytes(b"\xff\xd8\xff\xe0 an image")
    with pytest.raises(InputError, match="is not JSON"):
        read_annotations(folder / "ann.json", folder / "images", key=KEY)


@pytest.mark.parametrize("name", ["gone.json", "images"])
def test_unreadable_file(folder, name):
    with pytest.raises(InputError, match=f"{name}: cannot be read: .*{KEY}"):
        read_annotations(folder / name, folder / "images", key=KEY)


def test_missing_images_are_counted(folder):
    for name in ("a.png", "deep/b.jpg"):
        (folder / "images" / name).unlink()
    text = refusal(folder, GOOD)
    assert "images[0].file_name: 'a.png'" in text
    assert "1 more" in text


def test_missing_folder_of_images(folder):
    (folder / "images").rename(folder / "elsewhere")
    assert str(folder / "images") in refusal(folder, GOOD)


def test_nothing_to_learn_from(folder):
    data = copy.deepcopy(GOOD)
    data["annotations"] = data["annotations"][2:]
    assert "1 crowd box and 1 without area" in refusal(folder, data)


def test_empty_boxes_are_counted_on_demand(folder):
    for bbox in ([1, 2, 3, 0], [0, 2, 0, 3], [1, 0, 0, 0]):
        dataset = read(folder, changed(("annotations", 1, "bbox"), bbox), allow_empty_boxes=True)
        assert box_uses(dataset, (64, 64)).dropped == 2
    with pytest.raises(InputError, match=r"annotations\[1\].bbox"):
        read(folder, changed(("annotations", 1, "bbox"), [1, 2, -1, 3]), allow_empty_boxes=True)


def test_images_are_decoded(folder):
    images = folder / "images"
    dataset = read(folder, GOOD)
    Image.effect_noise((20, 20), 80).save(images / "deep" / "b.jpg")
    whole = (images / "deep" / "b.jpg").read_bytes()
    (images / "deep" / "b.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    Image.new("RGB", (41, 30)).save(images / "a.png")
    (images / "c.png").write_text("no image")
    defects = check_images(dataset).defects
    assert [defect.file for defect in defects] == [images / name for name in dataset.file_names]
    assert "41 x 30" in defects[0].problem
    assert "40 x 30" in defects[0].problem
    assert "cut short" in defects[1].problem
    assert "cannot be decoded" in defects[2].problem
    with pytest.raises(InputError, match=rf"a\.png: {KEY}: is 41 x 30 .*2 more") as caught:
        require_sound_images(dataset)
    assert len(str(caught.value).splitlines()) == 1


def test_size_is_that_after_exif_rotation(folder):
    dataset = read(folder, changed(("images", 1, "width"), 12))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = folder / "images" / "deep" / "b.jpg"
    Image.new("RGB", (20, 12)).save(file, exif=exif)
    assert check_images(dataset).defects == []
    Image.new("RGB", (12, 20)).save(file, exif=exif)
    assert [defect.problem for defect in check_images(dataset).defects] == [
        "is 20 x 12 pixels, the annotations say 12 x 20, perhaps before it was turned as its EXIF orientation says"
    ]


def test_vanished_image_is_a_defect(folder):
    dataset = read(folder, GOOD)
    (folder / "images" / "a.png").unlink()
    assert "No such file" in check_images(dataset).defects[0].problem


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        (("categories", 1, "name"), "broom", "id 90 is 'broom' here and 'toothbrush'"),
        (("categories", 2, "id"), 18, "id 17 is of no class here and 'dog'"),
        (("categories",), GOOD["categories"][::-1], "another order"),
    ],
)
def test_different_classes_are_refused(folder, path, value, shown):
    train = read(folder, GOOD)
    check_same_classes(train, read(folder, GOOD, key="data.val_ann", name="val.json"))
    val = read(folder, changed(path, value), key="data.val_ann", name="val.json")
    with pytest.raises(InputError) as caught:
        check_same_classes(train, val)
    text = str(caught.value)
    for part in (str(folder / "val.json"), str(folder / "ann.json"), "data.train_ann", "data.val_ann", shown):
        assert part in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("name", ["cards", "coco_tiny"])
def test_shared_data(name):
    shared = os.environ.get("HITDET_SHARED_DATA")
    if not shared:
        pytest.skip("HITDET_SHARED_DATA is not set")
    root = Path(shared) / name
    train, val = (
        read_annotations(root / "annotations" / f"instances_{split}.json", root / split, key=f"data.{split}_ann")
        for split in ("train", "val")
    )
    check_same_classes(train, val)
    assert (train.summary.images, val.summary.images) == {"cards": (296, 67), "coco_tiny": (48, 20)}[name]
    assert len(train.classes) == {"cards": 6, "coco_tiny": 80}[name]
    assert check_images(val).defects == []
    first, second = split_halves(train.image_ids, 0, image_classes=train.image_classes)
    assert len(first) == len(second)
