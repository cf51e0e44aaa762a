"""Several annotation files and lists of ids as one file; the halves of a search, kept."""

import json
from pathlib import Path

import pytest
from mmdet.datasets import CocoDataset
from PIL import Image

from hitdet_nni.config.settings import DataSettings
from hitdet_nni.data.annotations.coco import read_annotations
from hitdet_nni.data.annotations.merging import one_annotation_file, read_ids
from hitdet_nni.data.sources import open_data

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}]


def write_part(root, name, ids):
    """A folder of images and its annotation file, laid out as COCO 2014's; two boxes an image."""
    (root / name).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, boxes = [], []
    for image_id in ids:
        file_name = f"COCO_{name}_{image_id:012d}.jpg"
        Image.new("RGB", (40, 32), "teal").save(root / name / file_name)
        images.append({"id": image_id, "file_name": file_name, "width": 40, "height": 32})
        for category_id in (7, 90):
            box = {"bbox": [1, 2, 10, 12], "area": 120, "iscrowd": 0, "category_id": category_id}
            boxes.append({"id": 1000 * image_id + category_id, "image_id": image_id, **box})
    ann = root / "annotations" / f"instances_{name}.json"
    ann.write_text(json.dumps({"images": images, "annotations": boxes, "categories": CATEGORIES}))
    return ann, root / name


@pytest.fixture
def coco2014(tmp_path):
    """A folder of COCO 2014's layout: images 1 to 4 train, 11 to 15 validate, of them 12 and 14 minival."""
    root = tmp_path / "coco"
    write_part(root, "train2014", range(1, 5))
    write_part(root, "val2014", range(11, 16))
    minival = {"images": [{"id": 12}, {"id": 14}], "annotations": []}
    (root / "annotations" / "instances_minival2014.json").write_text(json.dumps(minival))
    return root


def test_trainval35k_and_minival(coco2014, tmp_path):
    data = open_data(DataSettings(layout="coco2014", root=coco2014), 0)
    assert data.train.image_ids == (1, 2, 3, 4, 11, 13, 15)
    assert data.val.image_ids == (12, 14)
    assert data.train.images == coco2014
    assert data.train.file_names[3:5] == (
        "train2014/COCO_train2014_000000000004.jpg",
        "val2014/COCO_val2014_000000000011.jpg",
    )
    assert (data.train.summary.boxes, data.val.summary.boxes) == (14, 4)
    # mmdet finds the images.
    dataset = CocoDataset(ann_file=str(data.train.ann), data_prefix={"img": str(data.train.images)}, pipeline=[])
    assert len(dataset) == 7
    assert all(Path(dataset.get_data_info(index)["img_path"]).is_file() for index in range(7))


def test_the_file_is_made_once_and_anew_for_other_content(coco2014, tmp_path):
    sources = [write_part(tmp_path, "a", [1, 2]), write_part(tmp_path, "b", [3])]

    def make(**lists):
        return one_annotation_file(
            sources, tmp_path / "made", split="train", **{"only": None, "without": None, **lists}
        )

    first, root = make()
    stamp = first.stat().st_mtime_ns
    assert make() == (first, root)
    assert (root, first.stat().st_mtime_ns) == (tmp_path, stamp)
    ids = tmp_path / "ids.txt"
    ids.write_text("3\n1\n")
    chosen, without = make(only=ids)[0], make(without=ids)[0]
    assert len({first, chosen, without}) == 3
    found = [read_annotations(ann, root, key="data.train_ann").image_ids for ann in (first, chosen, without)]
    assert found == [(1, 2, 3), (1, 3), (2,)]
    ids.write_text("2\n")
    assert make(only=ids)[0] not in (first, chosen, without)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5\n\n 7 \n9", {5, 7, 9}),
        ("[5, 7]", {5, 7}),
        (' {"images": [{"id": 5}, {"id": 8}]}', {5, 8}),
        ("", "holds no ids"),
        ("[]", "holds no ids"),
        ("{}", "holds no ids"),
        ('{"images": 5}', "holds no ids"),
        ('{"images": [5, {"name": 6}]}', "entry 1 is None"),
        ("5\nsix", "line 2 is 'six'"),
        ("5\n-6", "line 2 is '-6'"),
        ("9" * 5000, "line 1 is '999"),
        ("[5, 7.0]", "entry 1 is 7.0"),
        ("[true]", "entry 0 is True"),
        ("[5, 5]", "id 5 comes twice"),
        ("5\n7\n5", "line 3: id 5 comes twice"),
        ("[5, ", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_lists_of_ids(text, expected, tmp_path, refused):
    path = tmp_path / "ids"
    path.write_text(text)
    if isinstance(expected, set):
        assert read_ids(path, key="data.val_ids") == expected
    else:
        with refused(path, "data.val_ids", expected):
            read_ids(path, key="data.val_ids")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_lists_of_ids_in_other_encodings(encoding, tmp_path, refused):
    path = tmp_path / "ids"
    for text in ("5\n7\n", "[5, 7]", '{"images": [{"id": 5}, {"id": 7}]}'):
        path.write_bytes(text.encode(encoding))
        assert read_ids(path, key="data.val_ids") == {5, 7}
    path.write_bytes(b"\xff5\n")
    with refused(path, "data.val_ids", "is no text in UTF-8"):
        read_ids(path, key="data.val_ids")


def test_what_cannot_be_put_together(tmp_path, refused):
    first, second = write_part(tmp_path, "a", [1, 2]), write_part(tmp_path, "b", [3])
    ids = tmp_path / "ids.txt"

    def attempt(*fragments, sources=(first, second), **lists):
        with refused("data.train", *fragments):
            one_annotation_file(sources, tmp_path / "made", split="train", **{"only": None, "without": None, **lists})
        assert not list((tmp_path / "made").glob("*.json"))

    shared = (first, write_part(tmp_path, "c", [1]))
    ids.write_text("1")
    attempt(ids, "id 1 is that of several images", sources=shared, only=ids)
    attempt(ids, "id 1 is that of several images", sources=shared, without=ids)
    ids.write_text("1\n8\n9")
    attempt(ids, "2 ids are in no annotation file", "8", only=ids)
    ids.write_text("8\n9")
    attempt(ids, "none of its 2 ids", without=ids)
    ids.write_text("1\n2\n3")
    attempt(ids, "leaves no image", without=ids)
    attempt(tmp_path / "absent", "No such file", without=tmp_path / "absent")
    content = json.loads(second[0].read_text())
    second[0].write_text(json.dumps({**content, "categories": content["categories"][::-1]}))
    attempt(second[0], "another order")
    second[0].write_text(json.dumps({**content, "annotations": [{**content["annotations"][0], "category_id": 8}]}))
    attempt(second[0], "annotations[0].category_id")
