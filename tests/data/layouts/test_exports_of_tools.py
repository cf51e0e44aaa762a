"""Folders as tools of today leave them, with their images where those tools put them."""

from __future__ import annotations

import json
import shutil
from unicodedata import normalize

import pytest
import yaml
from layouts import (
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

from hitdet_nni.config.data_settings import DataSettings
from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.checks.inspection import inspect_detection
from hitdet_nni.data.sources import open_data

CLASSES = ("zebra", "ant")


def names(root):
    """The images of both halves together, and those of each."""
    found = {split: sorted(image["file_name"] for image in each["images"]) for split, each in documents(root).items()}
    return sorted(found["train"] + found["val"]), found


def objects(root):
    return sum(len(each["annotations"]) for each in documents(root).values())


# -------------------------------------------------------------------------------------------------------------- COCO


@pytest.mark.parametrize(
    ("ann", "images"),
    [
        ("annotations/instances_default.json", "images/default"),  # CVAT
        ("annotations/instances_default.json", "images/2024/camera 1"),
        ("train.json", "train_images"),  # Kaggle
        ("train/labels.json", "train/data"),  # FiftyOne
        ("boxes.json", "pictures"),
    ],
)
def test_the_images_of_a_coco_file_are_found(ann, images, root, tmp_path, said):
    made = shots(tmp_path / "made", 10)
    copy(made, root / images)
    (root / "images").mkdir(exist_ok=True)  # another one, which has none of them
    write_json(root / ann, coco(made, CLASSES))
    (root / images / made[0].file.name).rename(root / images / "lost")  # the first is not all that is asked for
    found = inspect_detection(DataSettings(root=root), load_settings("tiny").skeleton, 0)
    assert f"(images in {images})" in said()
    (defect,) = found["train"].defects
    assert "images[0].file_name: 'p000.png' is not in" in defect
    (root / images / "lost").rename(root / images / made[0].file.name)
    (root / "around").symlink_to("around")  # a link that leads to itself is passed over
    assert len(names(root)[0]) == 10


def test_images_that_are_nowhere_are_told_in_one_line(root, parts):
    write_coco(root, parts, CLASSES)
    shutil.rmtree(root / "train")
    (root / "train").mkdir()
    found = inspect_detection(DataSettings(root=root), load_settings("tiny").skeleton, 0)
    (defect,) = found["train"].defects
    assert f"none of the 6 is in {root / 'train'}; the first: 'p000.png'" in defect


def test_names_in_another_case_than_on_disk(root, parts, caplog):
    write_coco(root, parts, CLASSES)
    for file in (root / "train").iterdir():
        file.rename(file.with_suffix(".PNG"))
    caplog.set_level("INFO", "hitdet_nni")
    data = open_data(DataSettings(root=root), 0)
    assert {name[-4:] for name in data.train.file_names} == {".PNG"}
    assert "6 file names have another case or Unicode form than on disk" in caplog.text


@pytest.mark.parametrize("area", [0, None])
def test_boxes_of_no_area_that_have_one(area, root, parts, caplog):
    write_coco(root, parts, CLASSES)
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    for entry in content["annotations"][:2]:
        entry["area"] = area
    file.write_text(json.dumps(content))
    caplog.set_level("INFO", "hitdet_nni")
    data = open_data(DataSettings(root=root), 0)
    areas = [entry["area"] for entry in json.loads(data.train.ann.read_text())["annotations"]]
    assert areas == [320] * 6
    assert "2 boxes without area: width times height is taken" in caplog.text


def test_objects_that_are_exported_as_crowds(root, parts):
    """CVAT writes what was drawn as a mask so."""
    write_coco(root, parts, CLASSES)
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    for entry in content["annotations"][:2]:
        entry["iscrowd"] = 1
    file.write_text(json.dumps(content))
    found = inspect_detection(DataSettings(root=root), load_settings("tiny").skeleton, 0)
    assert any("2 boxes are crowds" in line and "iscrowd 0" in line for line in found["train"].warnings)
    assert not any("crowd" in line for line in found["val"].warnings)


def test_a_coco_file_to_evaluate_by_beside_a_yolo_set(root, parts, said):
    write_yolo(root, parts, CLASSES)
    write_json(root / "annotations" / "instances_val.json", coco(parts["val"], CLASSES))
    assert names(root)[1]["train"] == [f"p{number:03d}.png" for number in range(6)]
    assert "is a YOLO data set" in said()
    assert "it has annotations/instances_val.json; that is not used" in said()


def test_a_single_file_whose_project_is_called_a_test(root, tmp_path, refused):
    made = shots(tmp_path / "made", 10)
    copy(made, root)
    write_json(root / "labels_test-project_2024-05-01.json", coco(made, CLASSES))
    assert len(names(root)[0]) == 10
    (root / "labels_test-project_2024-05-01.json").rename(root / "instances_test.json")
    with refused(root, "without a training part"):
        documents(root)


# -------------------------------------------------------------------------------------------------------------- YOLO


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "validation"])
@pytest.mark.parametrize("train", ["train", "Train"])
def test_cvat_s_parts(train, val, root, parts):
    for name, made in zip((train, val), parts.values(), strict=True):
        copy(made, root / f"obj_{name}_data")
        write_rows(made, root / f"obj_{name}_data")
    (root / "obj.names").write_text("zebra\nant\n")
    assert names(root)[1] == {split: [shot.file.name for shot in made] for split, made in parts.items()}


def test_parts_in_capitals_in_data_yaml(root, parts):
    write_yolo(root, parts, CLASSES)
    for name, made in parts.items():
        (root / f"{name}.txt").write_text("".join(f"images/{name}/{shot.file.name}\n" for shot in made))
    (root / "data.yaml").write_text(
        yaml.safe_dump({"Train": "train.txt", "Validation": "val.txt", "names": list(CLASSES)})
    )
    assert names(root)[1] == {split: [shot.file.name for shot in made] for split, made in parts.items()}


@pytest.mark.parametrize("labels", ["classes.txt", "train/_darknet.labels"])
def test_labels_beside_the_images_of_each_part(labels, root, parts, said):
    for name, made in zip(("train", "valid"), parts.values(), strict=True):
        copy(made, root / name)
        write_rows(made, root / name)
    (root / labels).write_text("zebra\nant\n")
    assert names(root)[1] == {split: [shot.file.name for shot in made] for split, made in parts.items()}
    assert f"{labels}, 2 classes" in said()


@pytest.mark.parametrize("place", ["/content/datasets/Hard-Hat-2/", "Hard-Hat-2/", "C:\\Users\\me\\Hard-Hat-2\\"])
def test_paths_of_another_machine(place, root, parts, said):
    for name, made in zip(("train", "valid"), parts.values(), strict=True):
        copy(made, root / name / "images")
        write_rows(made, root / name / "labels")
    slash = "\\" if "\\" in place else "/"
    content = {"train": f"{place}train{slash}images", "val": f"{place}valid{slash}images", "names": list(CLASSES)}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    assert names(root)[1] == {split: [shot.file.name for shot in made] for split, made in parts.items()}
    assert "for val: valid/images is taken" in said()


def test_a_path_s_part_is_not_taken_for_another(root, parts, refused):
    """Where validation's folder is gone, ``images`` of the training's is not its end."""
    write_yolo(root, {"train": parts["train"]}, CLASSES, train="images", val="/other/valid/images")
    with refused(root / "data.yaml", "val", "does not exist", "a part of the training images is split off then"):
        documents(root)


def test_lists_of_paths_of_another_machine(root, parts, said):
    write_yolo(root, parts, CLASSES, train="train.txt")
    lines = [f"/home/other/x/images/train/{shot.file.name}\n" for shot in parts["train"]]
    (root / "train.txt").write_text("".join(lines))
    assert names(root)[1]["train"] == [shot.file.name for shot in parts["train"]]
    assert f"train.txt: 6 images are listed in a folder that is not there, and taken from the one in {root}" in said()


def test_a_line_of_a_list_that_names_no_file(root, parts, refused):
    write_yolo(root, parts, CLASSES, train="train.txt")
    for line in (".", "/", ".."):
        (root / "train.txt").write_text(f"images/train/p000.png\n{line}\n")
        with refused(root / "train.txt", "line 2", "does not exist"):
            documents(root)


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".mpo", ".JPG"])
def test_endings_of_images(ending, root, tmp_path):
    made = shots(tmp_path / "made", 10)
    copy(made, root / "images")
    write_rows(made, root / "labels")
    (root / "classes.txt").write_text("zebra\nant\n")
    for file in list((root / "images").iterdir())[:4]:
        file.rename(file.with_suffix(ending))
    assert sum(name.endswith(ending) for name in names(root)[0]) == 4
    assert objects(root) == 10


@pytest.mark.parametrize(
    ("row", "kept"),
    [
        ("0 1.0 0.5 0.0 0.1", True),  # without area, at the edge: it is dropped, as in the middle
        ("0 0.999999 0.5 0.000002 0.1", True),  # rounded onto the edge
        ("0 1.005 0.5 0.005 0.1", False),
        ("0 0.5 -0.005 0.1 0.005", False),
        ("0 0.5 0.0 0.1 0.1", True),
        ("0 -0.00499 0.5 0.01 0.1", True),  # ends five millionths of a side within the image
    ],
)
def test_boxes_at_an_edge(row, kept, root, parts, refused):
    write_yolo(root, parts, CLASSES)
    file = root / "labels" / "train" / "p002.txt"
    with file.open("a") as stream:
        stream.write(f"{row}\n")
    if kept:
        assert open_data(DataSettings(root=root), 0).train.summary.boxes == 7
    else:
        with refused(file, "line 2", "lies outside of the image", row):
            open_data(DataSettings(root=root), 0)


# --------------------------------------------------------------------------------------------------------------- VOC


@pytest.mark.parametrize("listed", [True, False])
def test_voc_in_folders(listed, root, tmp_path):
    """Datumaro mirrors the folders of the images; files of one name in two of them are two."""
    for number, folder in enumerate(("a", "b", ".")):
        made = shots(tmp_path / folder, 4, first=2 * number)  # some names come in two folders
        copy(made, root / "JPEGImages" / folder)
        write_xml(made, root / "Annotations" / folder, CLASSES)
    everything = sorted(
        path.relative_to(root / "JPEGImages").as_posix() for path in (root / "JPEGImages").rglob("*.png")
    )
    if listed:
        lists = root / "ImageSets" / "Main"
        lists.mkdir(parents=True)
        (lists / "default.txt").write_text("".join(f"{name.removesuffix('.png')}\n" for name in everything))
    assert names(root)[0] == everything
    assert objects(root) == 12


def test_voc_parts_within_the_folders(root, parts):
    for name, made in parts.items():
        copy(made, root / "images" / name)
        write_xml(made, root / "annotations" / name, CLASSES)
    assert names(root)[1] == {split: [shot.file.name for shot in made] for split, made in parts.items()}


@pytest.mark.parametrize("quotes", ["", '"'])
def test_spaces_in_voc_lists(quotes, root, parts, refused):
    write_voc(root, parts, CLASSES)
    for file in list(root.rglob("p*.*")):
        file.rename(file.with_name(f"my {file.name}"))
    lists = root / "ImageSets" / "Main"
    for name, made in parts.items():
        lines = [f"{quotes}my {shot.file.stem}{quotes}{' 1' * (number % 2)}\n" for number, shot in enumerate(made)]
        (lists / f"{name}.txt").write_text("".join(lines))
    assert names(root)[1] == {split: [f"my {shot.file.name}" for shot in made] for split, made in parts.items()}
    (lists / "val.txt").write_text("my\n")
    with refused(lists / "val.txt", "line 1", "'my' is no image"):
        documents(root)


@pytest.mark.parametrize("name", ["data", "images", "labels", "img"])
def test_a_voc_set_whose_folder_is_called_as_one_in_it(name, parts, tmp_path):
    root = tmp_path / name
    for part, made in zip(("train", "valid"), parts.values(), strict=True):
        copy(made, root / part)
        write_xml(made, root / part, CLASSES)
    assert names(root)[1] == {split: [shot.file.name for shot in made] for split, made in parts.items()}


@pytest.mark.parametrize("images", ["images", "data"])
def test_xml_files_in_labels(images, root, tmp_path, said):
    """FiftyOne's VOC export has ``data`` for the images."""
    made = shots(tmp_path / "made", 10)
    copy(made, root / images)
    write_xml(made, root / "labels", CLASSES)
    assert len(names(root)[0]) == 10
    assert "is a PASCAL VOC data set" in said()


def test_xml_files_in_another_unicode_form(root, tmp_path):
    made = shots(tmp_path / "made", 10)
    copy(made, root / "JPEGImages")
    write_xml(made, root / "Annotations", CLASSES)
    for file in (root / "JPEGImages").iterdir():
        file.rename(file.with_name(normalize("NFD", f"é{file.name}")))
    for file in (root / "Annotations").iterdir():
        file.rename(file.with_name(normalize("NFC", f"é{file.name}")))
    assert objects(root) == 10


def test_a_box_outside_of_its_image_is_told_with_its_file(root, parts, refused):
    write_voc(root, parts, CLASSES)
    file = root / "Annotations" / "p001.xml"
    shot = parts["train"][1]
    file.write_text(voc_xml(shot._replace(boxes=[(0, 70.0, 5.0, 10.0, 10.0)]), CLASSES))
    with refused(file, "object[0].bndbox", "lies outside of the image", "64 x 48 pixels"):
        open_data(DataSettings(root=root), 0)


def test_cvat_s_own_file(root, tmp_path, refused):
    made = shots(tmp_path / "made", 2)
    copy(made, root / "images")
    (root / "annotations.xml").write_text("<annotations><image id='0' name='p000.png'/></annotations>")
    with refused(root, "annotations.xml is CVAT's own file: export COCO 1.0 with images"):
        documents(root)
