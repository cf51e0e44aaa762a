"""Class names are one line, in every layout; `--fix` makes them one."""

import json
from functools import partial

import pytest
from layouts import shots, write_voc, write_yolo
from PIL import Image

from hitdet_nni.config.settings import DataSettings
from hitdet_nni.data.annotations.class_names import alike, folded, in_one_line, is_one_line
from hitdet_nni.data.annotations.coco import read_annotations
from hitdet_nni.data.checks.repair import repair
from hitdet_nni.data.sources import open_data
from hitdet_nni.errors import InputError

BROKEN = ["x\ny", "x\r\ny", "x\ty", "x\x1b[31my", "x\u2028y", "x\x85y", "cat\n"]


@pytest.mark.parametrize("name", BROKEN)
def test_names_of_several_lines(name):
    assert not is_one_line(name)
    assert in_one_line(name) in ("x y", "x [31my", "cat")


@pytest.mark.parametrize(
    "name", ["two  words", "红心 杰克", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "$x_1$ <b>", "\U0001f0ab"]
)
def test_names_of_one_line(name):
    assert is_one_line(name)
    assert in_one_line(name) == name


def coco(folder, *names):
    """A COCO file of one image with a box of each class, and its folder."""
    Image.new("RGB", (48, 32), "teal").save(folder / "1.png")
    box = {"image_id": 1, "bbox": [1, 2, 10, 8], "area": 80, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 48, "height": 32}],
        "annotations": [{"id": number, "category_id": number, **box} for number, _ in enumerate(names, start=1)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
    }
    (folder / "ann.json").write_text(json.dumps(content))
    return folder / "ann.json"


@pytest.mark.parametrize("name", BROKEN)
def test_coco(tmp_path, refused, name):
    ann = coco(tmp_path, "dog", name)
    with refused(ann, f"categories[1].name: is {name!r}", "one line", "check-data --fix OUT"):
        read_annotations(ann, tmp_path, key="data.train_ann")
    paths = {"train_ann": ann, "train_images": tmp_path, "val_ann": ann, "val_images": tmp_path}
    for each in repair(DataSettings(**paths), 0, tmp_path / "out"):
        assert each.changes == (f"categories[1] (id 2).name: {name!r} -> {in_one_line(name)!r}",)
        paths[f"{each.split}_ann"] = each.file
    assert open_data(DataSettings(**paths), 0).classes == ("dog", in_one_line(name))


@pytest.mark.parametrize("names", [("dog", ""), ("dog", "dog"), ("dog", "x\ny"), ("dog", 5)])
def test_a_refused_category_leaves_its_boxes_without_defect(tmp_path, names):
    defects: list[InputError] = []
    read_annotations(coco(tmp_path, *names), tmp_path, key="data.train_ann", defects=defects)
    assert [defect.key for defect in defects] == ["categories[1].name"]


@pytest.mark.parametrize(
    ("write", "file"),
    [
        (write_yolo, "data.yaml: names"),
        (partial(write_voc, named=True), "labelmap.txt"),
        (partial(write_voc, named=False), "Annotations/p001.xml: object[0].name"),
    ],
)
def test_layouts_with_label_files(tmp_path, refused, write, file):
    root = tmp_path / "my_images"
    write(root, {"train": shots(tmp_path / "made", 4)}, ("zebra", "ant\tbear"))
    with refused(root / file, repr("ant\tbear"), "one line"):
        open_data(DataSettings(root=root), 0)


def test_a_list_of_names(tmp_path, refused):
    root = tmp_path / "my_images"
    write_yolo(root, {"train": shots(tmp_path / "made", 3)}, ("zebra", "ant"))
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("zebra\nant\tbear\n")
    with refused(root / "classes.txt", "name 1 is", "one line"):
        open_data(DataSettings(root=root), 0)


def test_names_that_differ_in_case_or_spaces_alone():
    assert alike(["Nine", "ten", "nine", "two  hearts", "Two hearts", "ten"]) == [
        ("Nine", "nine"),
        ("two  hearts", "Two hearts"),
    ]
    assert alike(["Stra\u00dfe", "STRASSE", "cafe\u0301", "caf\u00e9"]) == [
        ("Stra\u00dfe", "STRASSE"),
        ("cafe\u0301", "caf\u00e9"),
    ]
    assert folded(" A b ") == "a b"
    assert alike(["nine", "ninety", "nine 9"]) == []
