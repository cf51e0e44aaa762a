"""What other formats write in place of COCO's keys, and `--fix` makes COCO's."""

import json

import pytest
from PIL import Image

from hitdet_nni.config.settings import DataSettings
from hitdet_nni.data.annotations.coco import read_annotations
from hitdet_nni.data.checks.repair import repair

FILES = ("val2017/000001.jpg", "000002.jpg")
URL = "http://images.cocodataset.org"


@pytest.fixture
def mended(tmp_path):
    """Mend a set of two images; its changes, and the document that was written."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (48, 32), "teal").save(tmp_path / name)
    ann = tmp_path / "ann.json"

    def mend(images, annotations):
        size = {"width": 48, "height": 32}
        content = {
            "images": [{"id": number, **size, **entry} for number, entry in enumerate(images, start=1)],
            "annotations": [{"id": n, "image_id": n, "category_id": 1} | each for n, each in enumerate(annotations, 1)],
            "categories": [{"id": 1, "name": "cat"}],
        }
        ann.write_text(json.dumps(content))
        paths = {"train_ann": ann, "train_images": tmp_path, "val_ann": ann, "val_images": tmp_path}
        train, _ = repair(DataSettings(**paths), 0, tmp_path / "out")
        read_annotations(train.file, tmp_path, key="data.train_ann")
        return train.changes, json.loads(train.file.read_text())

    return mend


NAMED = [{"file_name": name} for name in FILES]
BOX = {"bbox": [1, 2, 10, 8], "area": 80, "iscrowd": 0}


def test_file_names_of_lvis_are_the_ends_of_urls(mended):
    """The last two parts of the path where such a file is there, else the last; with nothing there it is left out."""
    urls = [f"{URL}/{path}" for path in ("val2017/000001.jpg", "train2017/000002.jpg", "train2017/000003.jpg")]
    changes, written = mended([{"coco_url": url} for url in urls], [BOX] * 3)
    assert [each["file_name"] for each in written["images"]] == list(FILES)
    assert changes[:2] == tuple(f"images[{i}] (id {i + 1}).file_name: missing -> {FILES[i]!r}" for i in (0, 1))
    assert [line for line in changes if line.startswith("images[2] (id 3): left out: is missing")]


@pytest.mark.parametrize("url", ["http://[", "", "http://x.org/..", f"{URL}/val2017", "/", "a\0b", 5, None])
def test_urls_of_no_file(mended, url):
    changes, written = mended([NAMED[0], {"coco_url": url}], [BOX] * 2)
    assert len(written["images"]) == 1
    assert changes[0].startswith("images[1] (id 2): left out: is missing")


def test_a_file_name_comes_before_a_url(mended):
    changes, _ = mended([{**each, "coco_url": f"{URL}/val2017/000001.jpg"} for each in NAMED], [BOX] * 2)
    assert changes == ()


def test_boxes_of_polygons(mended):
    polygons = [[[3, 9, 1.5, 4, 8, 7], [20.25, 10, 30, 10, 30, 14.125]], [[1, 2, 11, 2, 11, 10]]]
    changes, written = mended(NAMED, [{"segmentation": polygons[0], "area": 20.5}, {"segmentation": polygons[1]}])
    assert changes[:2] == (
        "annotations[0] (id 1).bbox: missing -> [1.5, 4.0, 28.5, 10.12]",
        "annotations[1] (id 2).bbox: missing -> [1.0, 2.0, 10.0, 8.0]",
    )
    assert [each["area"] for each in written["annotations"]] == [20.5, 80.0]


@pytest.mark.parametrize("segmentation", [[], [[]], [[1, 2, 3]], [[1, 2, 3, 4, 5, "6"]], {"counts": [1]}, None])
def test_segmentations_without_polygons(mended, segmentation):
    changes, written = mended(NAMED, [BOX, {"segmentation": segmentation}])
    assert len(written["annotations"]) == 1
    assert any(line.startswith("annotations[1] (id 2): left out: is missing") for line in changes)


def test_the_refusals_name_the_way_out(tmp_path, refused):
    Image.new("RGB", (48, 32)).save(tmp_path / "1.png")
    box = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 2, 11, 2, 11, 10]]}
    image = {"id": 1, "width": 48, "height": 32}
    ann = tmp_path / "ann.json"
    for more, fragments in (
        ({"coco_url": f"{URL}/1.png"}, ("images[0].file_name: is missing", "OUT` takes it from coco_url")),
        ({"file_name": "1.png"}, ("annotations[0].bbox: is missing", "OUT` takes them from polygons")),
    ):
        content = {"images": [image | more], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
        ann.write_text(json.dumps(content))
        with refused(ann, *fragments):
            read_annotations(ann, tmp_path, key="data.train_ann")
