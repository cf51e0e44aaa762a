"""Folders as labelling tools leave them: recognised, read to the same boxes, split; and refused in a line."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import yaml
from layouts import (
    WRITERS,
    Shot,
    coco,
    copy,
    documents,
    shots,
    voc_xml,
    write_coco,
    write_json,
    write_rows,
    write_voc,
    write_xml,
    write_yolo,
)

from hitdet_nni.cli import main
from hitdet_nni.config.data_settings import DataSettings
from hitdet_nni.config.settings import load_settings, parse_overrides
from hitdet_nni.data.box_crops import open_boxes
from hitdet_nni.data.checks.inspection import inspect_detection
from hitdet_nni.data.checks.repaired_settings import settings_of
from hitdet_nni.data.layouts import recognise
from hitdet_nni.data.layouts.split import split_off
from hitdet_nni.data.sources import open_data, split_source

CLASSES = ("zebra", "ant")


def boxes(document):
    """File name without folders, class and box of all boxes in the order of the file."""
    names = {each["id"]: each["name"] for each in document["categories"]}
    files = {each["id"]: Path(each["file_name"]).name for each in document["images"]}
    return [(files[x["image_id"]], names[x["category_id"]], *np.round(x["bbox"], 3)) for x in document["annotations"]]


def made_boxes(made, classes=CLASSES):
    return [(shot.file.name, classes[label], *np.round(box, 3)) for shot in made for label, *box in shot.boxes]


def files(document):
    return [Path(each["file_name"]).name for each in document["images"]]


# ----------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("kind", WRITERS)
def test_four_layouts_hold_the_same(kind, root, parts, said):
    WRITERS[kind](root, parts, CLASSES)
    before = sorted(root.rglob("*"))
    found = documents(root)
    for split, document in found.items():
        assert files(document) == [shot.file.name for shot in parts[split]]
        assert boxes(document) == made_boxes(parts[split])
        assert [each["name"] for each in document["categories"]] == list(CLASSES)
    opened = open_data(DataSettings(root=root), 0)
    assert (opened.train.summary.boxes, opened.val.summary.boxes) == (6, 3)
    assert sorted(root.rglob("*")) == before
    (line,) = (line for line in said().splitlines() if " is a " in line)
    names = {"coco": "COCO", "roboflow": "Roboflow COCO", "yolo": "YOLO", "voc": "PASCAL VOC"}
    assert line.startswith(f"data.root: {root} is a {names[kind]} data set: ")


def test_line_of_a_yolo_set(root, parts, said):
    write_yolo(root, parts, CLASSES)
    documents(root)
    expected = "is a YOLO data set: data.yaml, 2 classes; training images/train (6), validation images/val (3)"
    assert said() == f"data.root: {root} {expected}"


@pytest.mark.parametrize(
    ("ann", "images", "val_ann", "val_images"),
    [
        ("annotations/instances_train2017.json", "train2017", "annotations/instances_val2017.json", "val2017"),
        ("annotations/train2017.json", "images/train2017", "annotations/val2017.json", "images/val2017"),
        ("annotations/train.json", "images/train", "annotations/val.json", "images/val"),
        ("annotations/train.json", "images", "annotations/valid.json", "images"),
        ("annotations/Train.json", "images/Train", "annotations/Validation.json", "images/Validation"),
        ("annotations/person_keypoints_train.json", "train", "annotations/person_keypoints_val.json", "val"),
        ("train.json", "train", "val.json", "val"),
        ("train/annotations.json", "train/images", "val/annotations.json", "val/images"),
        ("train/labels.json", "train/data", "valid/labels.json", "valid/data"),
        ("annotations/coco_train.json", ".", "annotations/coco_val.json", "."),
    ],
)  # fmt: skip
def test_coco_names(ann, images, val_ann, val_images, root, parts):
    for split, name, folder in (("train", ann, images), ("val", val_ann, val_images)):
        copy(parts[split], root / folder)
        write_json(root / name, coco(parts[split], CLASSES))
    write_json(root / "annotations" / "captions_train2017.json", {"images": [], "annotations": []})
    data = DataSettings(root=root)
    assert split_source(data, 0, "train") == (root / ann, root / images)
    assert split_source(data, 0, "val") == (root / val_ann, root / val_images)
    assert open_data(data, 0).val.summary.boxes == 3


@pytest.mark.parametrize(
    ("ann", "folder"),
    [
        ("annotations/instances_default.json", "images"),  # CVAT
        ("result.json", "images"),  # Label Studio
        ("annotations.coco.json", "."),
        ("dataset.json", "."),  # labelme2coco
        ("labels.json", "data"),  # FiftyOne
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_a_single_coco_file_is_split(ann, folder, root, tmp_path, said):
    made = shots(tmp_path / "made", 20)
    copy(made, root / folder)
    write_json(root / ann, coco(made, CLASSES))
    found = documents(root)
    assert sorted(files(found["train"]) + files(found["val"])) == [shot.file.name for shot in made]
    assert len(files(found["val"])) == 4
    assert "no validation part" in said()
    assert "4 of 20 images are split off for validation" in said()


def test_label_studio_s_file_names_its_folder(root, tmp_path):
    made = shots(tmp_path / "made", 10)
    copy(made, root / "images")
    content = coco(made, CLASSES)
    for image in content["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    write_json(root / "result.json", content)
    assert split_source(DataSettings(root=root), 0, "train")[1] == root
    # UTF-16 is recognised too; whether it is read is told by what reads it.
    (root / "result.json").write_text(json.dumps(content), encoding="utf-16")
    assert recognise.recognise(root).train.images == root


def test_test_parts_are_not_used(root, parts, tmp_path, said):
    write_coco(root, {**parts, "test": shots(tmp_path / "made", 2, first=9)}, CLASSES)
    assert len(files(documents(root)["train"])) == 6
    assert "annotations/instances_test.json is a test part: not used" in said()


def test_coco_that_is_unclear(root, parts, refused):
    write_coco(root, {"train2014": parts["train"], "train2017": parts["train"], "val2017": parts["val"]}, CLASSES)
    with refused(root, "data.root", "instances_train2014.json", "instances_train2017.json", "data.train_ann"):
        documents(root)
    shutil.rmtree(root)
    write_coco(root, {"val": parts["val"]}, CLASSES)
    with refused(root, "without a training part", "instances_val.json", "data.train_ann"):
        documents(root)
    write_json(root / "annotations" / "mine.json", coco(parts["train"], CLASSES))
    with refused(root, "2 COCO files", "mine.json", "train, val or test"):
        documents(root)


# -------------------------------------------------------------------------------------------------------------- YOLO


YOLO = [
    ("images/train", "labels/train", "images/val", "labels/val", {}),
    ("train/images", "train/labels", "valid/images", "valid/labels", {"train": "../train/images"}),
    ("train/images", "train/labels", "valid/images", "valid/labels", {"train": "train", "val": "valid"}),
    ("images/train", "labels/train", "images/val", "labels/val", {"path": "/elsewhere/on/another/machine"}),
    ("images/train", "labels/train", "images/val", "labels/val", {"names": {0: "zebra", 1: "ant"}, "nc": 2}),
    ("images/train", "labels/train", "images/val", "labels/val", {"names": {"0": "zebra", "1": "ant"}}),
    ("images/train", "labels/train", "images/val", "labels/val", {"val": None, "valid": "images/val"}),
    ("a", "a", "b", "b", {"train": ["a"], "val": "b"}),
]  # fmt: skip


@pytest.mark.parametrize("case", YOLO, ids=str)
def test_yolo_names(case, root, parts):
    images, labels, val_images, val_labels, description = case
    for split, folder, rows in (("train", images, labels), ("val", val_images, val_labels)):
        copy(parts[split], root / folder)
        write_rows(parts[split], root / rows)
    content = {"train": images, "val": val_images, "names": list(CLASSES), **description}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    found = documents(root)
    assert {split: boxes(document) for split, document in found.items()} == {
        split: made_boxes(made) for split, made in parts.items()
    }


def test_what_is_taken_otherwise_than_data_yaml_says_is_told(root, parts, said):
    write_yolo(root, parts, CLASSES, train="../images/train", path="/nowhere")
    documents(root)
    assert "data.yaml names '../images/train' for train: images/train is taken" in said()


def test_lists_of_images(root, parts, tmp_path, refused):
    """Text files that name images, with absolute paths elsewhere among them."""
    write_yolo(root, parts, CLASSES, train="train.txt", val=["val.txt"])
    far = tmp_path / "far" / "images"
    copy(parts["train"][3:], far)
    write_rows(parts["train"][3:], tmp_path / "far" / "labels")
    near = [f"./images/train/{shot.file.name}" for shot in parts["train"][:3]]
    (root / "train.txt").write_text("\n".join([*near, *(str(far / shot.file.name) for shot in parts["train"][3:])]))
    (root / "val.txt").write_text("\n".join(f"images/val/{shot.file.name}" for shot in parts["val"]) + "\n\n")
    found = documents(root)
    assert sorted(boxes(found["train"])) == made_boxes(parts["train"])
    assert boxes(found["val"]) == made_boxes(parts["val"])
    open_data(DataSettings(root=root), 0)
    (root / "val.txt").write_text("images/val/p006.png\nimages/val/lost.png\n")
    with refused(root / "val.txt", "line 2", "lost.png"):
        documents(root)


def test_images_of_one_name(root, parts, said):
    """Two endings share a label file, in YOLO as in VOC, and both images are kept."""
    write_yolo(root, parts, CLASSES)
    shutil.copy(root / "images" / "train" / "p000.png", root / "images" / "train" / "p000.bmp")
    assert files(documents(root)["train"])[:3] == ["p000.bmp", "p000.png", "p001.png"]
    assert "1 label file is that of several images of one name; the first: labels/train/p000.txt" in said()
    copy(parts["train"], root.parent / "voc")
    write_xml(parts["train"], root.parent / "voc", CLASSES)
    shutil.copy(root.parent / "voc" / "p000.png", root.parent / "voc" / "p000.bmp")
    assert sum(len(document["images"]) for document in documents(root.parent / "voc").values()) == 7


@pytest.mark.parametrize(("of_images", "of_labels"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_label_files_in_another_unicode_form_are_the_images_own(of_images, of_labels, root, parts, said):
    write_yolo(root, parts, CLASSES)
    for folder, form in (("images", of_images), ("labels", of_labels)):
        for file in list((root / folder / "train").iterdir()):
            file.rename(file.with_name(normalize(form, f"\u00fc {file.name}")))
    found = boxes(documents(root)["train"])
    assert [row[1:] for row in found] == [row[1:] for row in made_boxes(parts["train"])]
    assert "label file" not in said()


def test_images_of_formats_that_are_not_read_are_told(root, parts, said):
    write_yolo(root, parts, CLASSES)
    for number, ending in ((0, "heic"), (1, "AVIF")):
        image = root / "images" / "train" / f"p00{number}.png"
        image.rename(image.with_suffix(f".{ending}"))
    assert len(documents(root)["train"]["images"]) == len(parts["train"]) - 2
    what = "2 images of a format that is not read (.avif, .heic) are left out: convert them"
    assert f"{what}; the first: images/train/p000.heic" in said()


def test_a_test_part_that_is_not_there_is_not_spoken_of(root, parts, said):
    write_yolo(root, parts, CLASSES, test=["images/test", "x" * 300, 3])
    documents(root)
    assert "test part" not in said()


@pytest.mark.parametrize("test", ["images/test", "../images/test"])
def test_a_test_part_of_a_yolo_set_is_told(test, root, parts, said):
    write_yolo(root, parts, CLASSES, test=test)
    (root / "images" / "test").mkdir()
    documents(root)
    assert "images/test is a test part: not used in training or validation" in said()


def test_cvat_s_lists(root, parts):
    """Its lists of images begin with a folder that is not in the export."""
    write_yolo(root, parts, CLASSES, path=".", train="train.txt", names=dict(enumerate(CLASSES)))
    (root / "train.txt").write_text("".join(f"data/images/train/{shot.file.name}\n" for shot in parts["train"]))
    assert boxes(documents(root)["train"]) == made_boxes(parts["train"])


@pytest.mark.parametrize("names", ["classes.txt", "obj.names"])
def test_yolo_without_description(names, root, tmp_path, said):
    """Label Studio's export, which has one part; and CVAT's YOLO 1.1."""
    made = shots(tmp_path / "made", 10)
    folders = ("images", "labels") if names == "classes.txt" else ("obj_train_data", "obj_train_data")
    copy(made, root / folders[0])
    write_rows(made, root / folders[1])
    (root / names).write_text("zebra\nant\n")
    found = documents(root)
    assert sorted(boxes(found["train"]) + boxes(found["val"])) == sorted(made_boxes(made))
    assert f"{names}, 2 classes" in said()
    assert "2 of 10 images are split off" in said()


def test_yolo_rows(root, parts, said):
    """Polygons and rotated boxes are the boxes around them; endings and marks of other systems."""
    write_yolo(root, parts, CLASSES)
    labels = root / "labels" / "train"
    (labels / "p000.txt").write_text("1 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75\n0 .5 .5 .75 .5 .5 1\n\n")
    (labels / "p001.txt").write_bytes("\ufeff1.0 0.5 0.5 0.5 0.5\r\n".encode())
    (labels / "p002.txt").write_text("")
    (labels / "p003.txt").unlink()
    (labels / "p004.txt").rename(labels / "p004.TXT")
    (root / "images" / "train" / "p004.png").rename(root / "images" / "train" / "p004.PNG")
    (labels / "lost.txt").write_text("0 .5 .5 .1 .1")
    (labels / "classes.txt").write_text("zebra\nant\n")
    train = documents(root)["train"]
    expected = [
        ("p000.png", "ant", 16, 12, 16, 24),
        ("p000.png", "zebra", 32, 24, 16, 24),
        ("p001.png", "ant", 16, 12, 32, 24),
    ]
    assert boxes(train)[:3] == expected
    assert [each[0] for each in boxes(train)[3:]] == ["p004.PNG", "p005.png"]
    assert len(train["images"]) == 6
    lines = said()
    assert f"2 polygons are taken as the boxes around them; the first: {labels / 'p000.txt'} line 1" in lines
    assert "1 image has no label file: taken as an image without objects; the first: images/train/p003.png" in lines
    assert "1 label file has no image and is left out; the first: labels/train/lost.txt" in lines
    recognise._said.clear()
    documents(root)  # from the cache, which tells the same
    assert set(said().splitlines()[len(lines.splitlines()) :]) == set(lines.splitlines())


def test_key_points(root, parts, said):
    write_yolo(root, parts, CLASSES, kpt_shape=[2, 3])
    (root / "labels" / "train" / "p000.txt").write_text("0 .5 .5 .5 .5 .1 .1 2 .2 .2 1\n")
    assert boxes(documents(root)["train"])[0] == ("p000.png", "zebra", 16, 12, 32, 24)
    assert "1 row has key points" in said()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("0 .5 .5 .5", "has 4 numbers"),
        ("0 .5 .5 .5 .5 .9", "confidence"),
        ("0 .5 .5 .5 .5 .9 .9 .9", "has 8 numbers"),
        ("zebra .5 .5 .1 .1", "is 'zebra"),
        ("2 .5 .5 .1 .1", "a class of 0 to 1"),
        ("-1 .5 .5 .1 .1", "a class of 0 to 1"),
        ("0.5 .5 .5 .1 .1", "a class of 0 to 1"),
        ("0 32 24 10 10", "not relative"),
        ("0 .5 .5 -.1 .1", "not relative"),
        ("0 .5 .5 -.005 .1", "negative"),
        ("0 nan .5 .1 .1", "is '0 nan"),
        ("0,.5,.5,.1,.1", "is '0,.5"),
    ],
)
def test_bad_rows(row, problem, root, parts, refused):
    write_yolo(root, parts, CLASSES)
    file = root / "labels" / "train" / "p001.txt"
    file.write_text(f"0 .5 .5 .1 .1\n{row}\n")
    with refused(file, "line 2", problem):
        documents(root)
    with refused(file, "line 2", problem, "1 more file has defects"):
        (root / "labels" / "train" / "p003.txt").write_bytes(b"\xff\xfe\0")
        documents(root)


@pytest.mark.parametrize(
    ("description", "fragments"),
    [
        ({"names": 3}, ["names", "is 3", "list"]),
        ({"names": []}, ["names", "list"]),
        ({"names": ["a", "a"]}, ["names", "name 1 is 'a'", "each once"]),
        ({"names": ["a", None]}, ["names[1]", "None", "quotes"]),
        ({"names": {1: "a", 2: "b"}}, ["names", "1, 2", "0 to 1"]),
        ({"nc": 3}, ["nc", "is 3", "names has 2"]),
        ({"train": "nowhere"}, ["train", "'nowhere' does not exist"]),
        ({"train": 3}, ["train", "is 3"]),
        ({"train": "data.yaml"}, ["no list of images", ".txt"]),
        ({"train": "labels/train"}, ["without an image in labels/train"]),
        ({"path": 3}, ["path", "is 3"]),
        ({"names": {"0": "a", "00": "b"}}, ["names", "0, 00", "0 to 1"]),
        ({"path": "~nobody-of-that-name/x"}, ["~nobody-of-that-name/x", "home folder"]),
        ({"train": "x" * 300}, ["train", "does not exist"]),
        ({"kpt_shape": "x"}, ["kpt_shape", "'x'"]),
    ],
)
def test_bad_descriptions(description, fragments, root, parts, refused):
    write_yolo(root, parts, CLASSES, **description)
    with refused(root, *fragments):
        documents(root)


def test_yolo_without_names(root, parts, refused):
    write_yolo(root, parts, CLASSES)
    (root / "data.yaml").unlink()
    with refused(root, "data.root", "no file with the names", "classes.txt"):
        documents(root)
    (root / "data.yaml").write_text("names: [\n")
    with refused(root / "data.yaml", "not valid YAML"):
        documents(root)


def test_images_behind_links_and_damaged_ones(root, parts, refused):
    write_yolo(root, parts, CLASSES)
    moved = root.parent / "disk"
    (root / "images").rename(moved)
    (root / "images").symlink_to(moved)
    assert boxes(documents(root)["train"]) == made_boxes(parts["train"])
    open_data(DataSettings(root=root), 0)
    (moved / "train" / "p001.png").write_bytes(b"no image")
    with refused(moved / "train" / "p001.png", "decoded"):
        documents(root)


def test_a_change_of_a_label_or_image_is_seen(root, parts):
    write_yolo(root, parts, CLASSES)
    first = split_source(DataSettings(root=root), 0, "train")
    assert split_source(DataSettings(root=root), 0, "train") == first
    (root / "labels" / "train" / "p000.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    assert boxes(documents(root)["train"])[0] == ("p000.png", "ant", 16, 12, 32, 24)
    shots(root / "images" / "train", 1, size=(128, 96))
    assert boxes(documents(root)["train"])[0] == ("p000.png", "ant", 32, 24, 64, 48)


def test_turned_images_are_read_as_training_reads_them(root, tmp_path):
    """The shares are those of the image as it is shown."""
    from PIL import Image

    folder = root / "images"
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(2):
        Image.new("RGB", (60, 40)).save(folder / f"{number}.jpg", exif=exif)
    (root / "labels").mkdir()
    (root / "labels" / "0.txt").write_text("0 .5 .5 .5 .5")
    (root / "classes.txt").write_text("thing")
    found = documents(root)
    sizes = {(each["width"], each["height"]) for document in found.values() for each in document["images"]}
    assert sizes == {(40, 60)}
    assert [each["bbox"] for split in found.values() for each in split["annotations"]] == [[10, 15, 20, 30]]


# --------------------------------------------------------------------------------------------------------------- VOC


@pytest.mark.parametrize("images", ["", "train", "train/images"])
def test_xml_beside_the_images(images, root, parts, said):
    """labelImg's files, Roboflow's VOC export; classes in the order of their names."""
    if images:
        for split, name in (("train", "train"), ("val", "valid")):
            copy(parts[split], root / images.replace("train", name))
            write_xml(parts[split], root / images.replace("train", name), CLASSES)
        found = documents(root)
        assert {split: boxes(document) for split, document in found.items()} == {
            split: made_boxes(made) for split, made in parts.items()
        }
    else:
        copy(parts["train"], root)
        write_xml(parts["train"], root, CLASSES)
        found = documents(root)
        assert sorted(boxes(found["train"]) + boxes(found["val"])) == sorted(made_boxes(parts["train"]))
    assert [each["name"] for each in found["train"]["categories"]] == ["ant", "zebra"]
    assert "XML files, 2 classes" in said()


def test_voc_lists(root, parts, refused):
    write_voc(root, parts, CLASSES)
    lists = root / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text((lists / "train.txt").read_text() + (lists / "val.txt").read_text())
    assert len(documents(root)["train"]["images"]) == 6
    (lists / "train.txt").unlink()
    (lists / "val.txt").unlink()
    found = documents(root)
    assert len(found["train"]["images"]) + len(found["val"]["images"]) == 9
    (lists / "trainval.txt").rename(lists / "default.txt")
    assert {split: files(each) for split, each in documents(root).items()} == {
        split: files(each) for split, each in found.items()
    }
    (lists / "default.txt").write_text("p000\nlost\n")
    with refused(lists / "default.txt", "line 2", "'lost'"):
        documents(root)


def test_voc_objects(root, parts, said):
    write_voc(root, parts, CLASSES, named=False)
    hard = root / "Annotations" / "p000.xml"
    hard.write_text(voc_xml(parts["train"][0], CLASSES, difficult=1))
    zero = root / "Annotations" / "p001.xml"
    zero.write_text(voc_xml(Shot(parts["train"][1].file, (0, 0), [(0, -1.0, 5.0, 10.0, 10.0)]), CLASSES))
    (root / "Annotations" / "p002.xml").unlink()
    (root / "Annotations" / "lost.xml").write_text(voc_xml(parts["train"][0], CLASSES))
    document = documents(root)["train"]
    assert [each["iscrowd"] for each in document["annotations"]] == [1, 0, 0, 0, 0]
    assert {(each["width"], each["height"]) for each in document["images"]} == {(64, 48)}
    assert f"1 object is marked difficult: neither learned nor counted as missed; the first: {hard}" in said()
    assert "1 box begins at pixel 0" in said()
    assert "1 image has no label file" in said()
    assert "1 XML file has no image and is left out; the first: Annotations/lost.xml" in said()


def test_bad_voc(root, parts, refused):
    write_voc(root, parts, CLASSES)
    file = root / "Annotations" / "p001.xml"
    good = file.read_text()
    for content, fragments in (
        ("<annotation>", ["not XML"]),
        (good.replace("zebra", "").replace("ant<", "<"), ["object[0].name", "missing"]),
        (good.replace("<xmin>", "<xmin>x"), ["object[0].bndbox/xmin"]),
        (good.replace("<width>64", "<width>6.4"), ["size", "6.4 x 48"]),
    ):
        file.write_text(content)
        with refused(file, *fragments):
            documents(root)
    file.write_text(good)
    (root / "labelmap.txt").write_text("zebra\n")
    with refused(root / "labelmap.txt", "lacks 'ant'"):
        documents(root)
    shutil.rmtree(root / "JPEGImages")
    with refused(root, "XML files", "no images"):
        documents(root)


def test_xml_of_another_encoding(root, parts):
    write_voc(root, parts, ("Bär", "ant"))
    for file in (root / "Annotations").iterdir():
        file.write_bytes(b'<?xml version="1.0" encoding="latin-1"?>' + file.read_text("utf-8").encode("latin-1"))
    assert boxes(documents(root)["train"])[0][1] == "Bär"


# ------------------------------------------------------------------------------------------------------------- folder


def test_unknown_folders(root, parts, refused, tmp_path):
    with refused(root, "data.root", "does not exist"):
        documents(root)
    root.write_text("")
    with refused(root, "data.root", "is a file"):
        documents(root)
    root.unlink()
    root.mkdir()
    with refused(root, "data.root", "no known layout: it is empty", "COCO", "Roboflow", "YOLO", "PASCAL VOC"):
        documents(root)
    for number in range(12):
        (root / f"photo{number:02d}.jpg").touch()
    (root / "notes").mkdir()
    with refused("it holds notes/, photo00.jpg", "photo06.jpg and 5 more"):
        documents(root)
    write_json(root / "a.json", {"shapes": [], "imagePath": "x"})
    with refused("a.json is labelme's own", "labelme2coco"):
        documents(root)
    write_json(root / "a.json", {"_via_settings": {}})
    with refused("a.json is VIA's own", "COCO"):
        documents(root)
    value = {"from_name": "label", "to_name": "image", "type": "rectanglelabels", "value": {"x": 1}}
    write_json(root / "a.json", [{"data": {"image": "x.jpg"}, "annotations": [{"result": [value]}]}])
    with refused("a.json is Label Studio's own file: export COCO or YOLO, with images"):
        documents(root)
    write_json(root / "a.json", {"classes": [{"title": "cat", "shape": "rectangle"}], "tags": []})
    with refused("a.json is Supervisely's own"):
        documents(root)
    box = {"label": "cat", "coordinates": {"x": 1, "y": 2, "width": 3, "height": 4}}
    write_json(root / "a.json", [{"image": "x.jpg", "annotations": [box]}])
    with refused("a.json is CreateML's own"):
        documents(root)
    (root / "a.json").unlink()
    write_yolo(root / "notes", parts, CLASSES)
    with refused("the folder notes in it is a YOLO data set"):
        documents(root)
    (root / "VOC2007" / "ImageSets").mkdir(parents=True)
    with refused("development kit", "data.layout: voc0712"):
        documents(root)


def test_a_folder_of_two_layouts_is_the_first(root, parts, said):
    write_yolo(root, parts, CLASSES)
    write_json(root / "annotations" / "instances_train.json", coco(parts["train"], CLASSES))
    write_json(root / "annotations" / "instances_val.json", coco(parts["val"], CLASSES))
    documents(root)
    assert "is a COCO data set" in said()


def test_a_half_may_be_named_by_its_paths(root, parts, tmp_path, refused):
    write_yolo(root, parts, CLASSES)
    own = tmp_path / "own"
    copy(parts["val"], own)
    write_json(own / "mine.json", coco(parts["val"], CLASSES))
    given = {"val_ann": own / "mine.json", "val_images": own}
    data = DataSettings(root=root, **given)
    assert split_source(data, 0, "val") == (own / "mine.json", own)
    assert boxes(documents(root, **given)["train"]) == made_boxes(parts["train"])
    given = {"train_ann": own / "mine.json", "train_images": own}
    assert boxes(documents(root, **given)["val"]) == made_boxes(parts["val"])
    write_yolo(root, {"train": parts["train"]}, CLASSES)
    shutil.rmtree(root / "images" / "val")
    with refused(root, "no validation part", "data.val_ann"):
        documents(root, **given)


# -------------------------------------------------------------------------------------------------------------- split


def test_split_of_every_class_its_share():
    classes = {number: {number % 10 and 1, 2} for number in range(200)} | {number: set() for number in range(200, 230)}
    train, val = split_off(classes, 0.2, 0, image_classes=classes)
    assert set(train) | set(val) == set(classes)
    assert not set(train) & set(val)
    assert len(val) == 46
    counts = [sum(each in classes[number] for number in val) for each in (0, 1, 2)]
    assert counts == [4, 36, 40]
    assert split_off(reversed(list(classes)), 0.2, 0, image_classes=classes) == (train, val)
    assert split_off(classes, 0.2, 1, image_classes=classes) != (train, val)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_split_of_few(share, count, refused):
    """Both parts have an image, and a class of one image is learned."""
    classes = {number: {min(number, 1)} for number in range(count)}
    train, val = split_off(classes, share, 0, image_classes=classes)
    assert train
    assert val
    assert count == 2 or 0 in train
    with refused("cannot split 1"):
        split_off([3], share, 0, image_classes={})


def test_the_split_is_the_same_every_time(root, tmp_path, refused):
    write_yolo(root, {"train": shots(tmp_path / "made", 20)}, CLASSES)
    first = {split: files(document) for split, document in documents(root).items()}
    data = DataSettings(root=root)
    for seed in (0, 3):  # retrainings of a study have a seed each
        opened = open_data(data, seed)
        assert [Path(name).name for name in opened.val.file_names] == first["val"]
    other = documents(root, val_seed=1)
    assert files(other["val"]) != first["val"]
    assert len(files(documents(root, val_share=0.4)["val"])) == 8
    (tmp_path / "ids.txt").write_text("1")
    with refused("data.train_ids", "no validation part"):
        documents(root, train_ids=tmp_path / "ids.txt")


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_corrected_files_of_a_folder(kind, root, tmp_path, capsys):
    """`--fix` names the options that take the place of the folder, its split included."""
    made = shots(tmp_path / "made", 10)
    WRITERS[kind](root, {"train": made}, CLASSES)
    config = tmp_path / "c.yml"
    config.write_text("extends: tiny\ndata: {root: my_images}")
    assert main(["check-data", "--config", str(config), "--fix", str(tmp_path / "fixed")]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    overrides = [word for word in shlex.split(line.partition("use them with ")[2]) if word != "--set"]
    assert load_settings("tiny", parse_overrides(overrides)).data.builtin is None  # whose images the folder replaced
    settings = load_settings("tiny", {"data.root": str(root), "data.layout": "coco2017"}).data
    assert "--set data.builtin=null" in settings_of([], settings)
    before, after = (open_data(load_settings(config, parse_overrides(given)).data, 0) for given in ([], overrides))
    for one, other in ((before.train, after.train), (before.val, after.val)):
        assert (one.file_names, one.summary) == (other.file_names, other.summary)
    assert len(after.val.file_names) == 2
    assert main(["check-data", "--config", str(config), "--fix", str(tmp_path / "fixed")]) == 2


@pytest.mark.parametrize("kind", WRITERS)
def test_boxes_of_each_layout_can_be_classified(kind, root, parts):
    WRITERS[kind](root, parts, CLASSES)
    settings = load_settings("tiny", {"data.root": str(root), "pretrain.boxes": True})
    boxes = open_boxes(open_data(settings.data, 0), settings)
    assert boxes.classes == CLASSES
    for split, made in ((boxes.train, parts["train"]), (boxes.val, parts["val"])):
        assert [Path(file).name for file in split.files] == [shot.file.name for shot in made]
        assert list(split.labels) == [shot.boxes[0][0] for shot in made]
        lefts = [round(shot.boxes[0][1]) - 5 for shot in made]  # squares of 30 around boxes of 20 x 16
        assert split.squares.tolist() == [[left, -1, left + 30, 29] for left in lefts]


# ----------------------------------------------------------------------------------------------------------- settings


def test_a_folder_takes_the_place_of_the_embedded_set(tmp_path, said, refused):
    (tmp_path / "mine.yml").write_text("extends: tiny\ndata: {root: my_images}")
    data = load_settings(tmp_path / "mine.yml").data
    assert (data.builtin, data.root) == (None, tmp_path / "my_images")
    assert said() == "data.root is given: it takes the place of data.builtin digits"
    assert load_settings("tiny", {"data.root": "/x"}).data.builtin is None
    assert load_settings(tmp_path / "mine.yml", {"data.root": None, "data.builtin": "digits"}).data.root is None
    with refused("'digits'", "root is given"):
        load_settings("tiny", {"data.root": "/x", "data.builtin": "digits"})


def test_home_folder_in_paths(tmp_path, monkeypatch, refused):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yml").write_text("extends: tiny\nspace: ~/mine.yml\nretrain: {pretrained: ~/w.pth}")
    config = tmp_path / "elsewhere" / "a.yml"
    config.parent.mkdir()
    config.write_text(
        "extends: ~/base.yml\ndata: {builtin: null, train_ann: [~/a.json], train_images: [~/a], "
        "val_ann: ~/b.json, val_images: ~/b}\npretrain: {train_images: ~/c}"
    )
    settings = load_settings(config, parse_overrides(["pretrain.val_images=~/d"]))
    data = settings.data
    assert data.train_sources == ((tmp_path / "a.json", tmp_path / "a"),)
    assert (data.val_ann, data.val_images) == (tmp_path / "b.json", tmp_path / "b")
    assert (settings.pretrain.train_images, settings.pretrain.val_images) == (tmp_path / "c", tmp_path / "d")
    assert (settings.space, settings.retrain.pretrained) == (str(tmp_path / "mine.yml"), tmp_path / "w.pth")
    assert load_settings("~/base.yml").space == settings.space
    with refused("~nosuchuser", "home"):
        load_settings("tiny", {"data.root": "~nosuchuser/x"})


# -------------------------------------------------------------------------------------------------------------- cards


@pytest.fixture(scope="module")
def card_forms(shared_data, tmp_path_factory):
    """The cards in four forms: COCO as they are, the others written from them."""
    folder = tmp_path_factory.mktemp("cards")
    parts, classes = {}, ()
    for split in ("train", "val"):
        content = json.loads((shared_data / "cards" / "annotations" / f"instances_{split}.json").read_text())
        classes = tuple(each["name"] for each in content["categories"])
        numbers = {each["id"]: number for number, each in enumerate(content["categories"])}
        of = {image["id"]: [] for image in content["images"]}
        for box in content["annotations"]:
            of[box["image_id"]].append((numbers[box["category_id"]], *box["bbox"]))
        parts[split] = [
            Shot(shared_data / "cards" / split / image["file_name"], (image["width"], image["height"]), of[image["id"]])
            for image in content["images"]
        ]
    for kind in ("roboflow", "yolo", "voc"):
        WRITERS[kind](folder / kind, parts, classes)
    (folder / "coco").symlink_to(shared_data / "cards")
    return folder


def test_cards_in_four_forms_are_the_same(card_forms):
    """The same boxes, the same counts, and the same first batch."""
    from hitdet_nni.data.loaders import search_loaders

    settings = load_settings("tiny", {"data.root": str(card_forms), "data.workers": 0, "data.flip": True})
    tables, batches, pairs = [], [], []
    for kind in WRITERS:
        data = settings.data.model_copy(update={"root": card_forms / kind})
        inspected = inspect_detection(data, settings.skeleton, settings.seed)
        assert not [defect for each in inspected.values() for defect in each.defects]
        tables.append({split: each.counts for split, each in inspected.items()})
        opened = open_data(data, settings.seed)
        batches.append(
            [next(iter(loader)) for loader in search_loaders(opened, data, settings.skeleton, settings.seed)]
        )
        content = documents(card_forms / kind)
        pairs.append(content)
    for kind, table, batch, pair in zip(WRITERS, tables, batches, pairs, strict=True):
        assert table == tables[0], kind
        for split in ("train", "val"):
            ours, first = boxes(pair[split]), boxes(pairs[0][split])
            assert [each[:2] for each in ours] == [each[:2] for each in first]
            np.testing.assert_allclose([each[2:] for each in ours], [each[2:] for each in first], atol=0.01)
        for one, other in zip(batch, batches[0], strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one["inputs"], other["inputs"], strict=True)), kind
            for a, b in zip(one["data_samples"], other["data_samples"], strict=True):
                assert a.gt_instances.labels.tolist() == b.gt_instances.labels.tolist()
                np.testing.assert_allclose(a.gt_instances.bboxes.tensor, b.gt_instances.bboxes.tensor, atol=0.01)


def test_check_data_of_cards_in_four_forms(card_forms, tmp_path):
    """The command itself prints one table."""
    tables = []
    for kind in WRITERS:
        config = tmp_path / f"{kind}.yml"
        config.write_text(f"extends: digits\ndata: {{root: {card_forms / kind}}}\n")
        command = [sys.executable, "-m", "hitdet_nni", "check-data", "--config", config]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert f"data.root: {card_forms / kind} is a " in done.stderr
        tables.append(done.stdout)
    assert "296" in tables[0]
    assert tables == [tables[0]] * len(tables)
