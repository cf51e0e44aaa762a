"""Folders that lack something: the line names the file or folder that is to be mended, and no file of the cache."""

from __future__ import annotations

import json
import shutil

import pytest
from layouts import WRITERS, coco, copy, shots, voc_xml, write_coco, write_json, write_voc, write_yolo

from hitdet_nni.config.data_settings import DataSettings
from hitdet_nni.data.checks.inspection import inspect_detection
from hitdet_nni.data.checks.repair import repair
from hitdet_nni.data.layouts import recognise
from hitdet_nni.data.sources import open_data, split_source
from hitdet_nni.errors import InputError

CLASSES = ("zebra", "ant")
EMPTY, CUT, OTHER = "", "cut", "[]"


def damage(file, content):
    """Put something in place of an annotation file; `CUT`: its beginning."""
    file.write_text(file.read_text()[:200] if content is CUT else content)


def opened(root, **settings):
    return open_data(DataSettings(root=root, **settings), 0)


def defects(root, tiny):
    """What `check-data` says of the folder."""
    return [line for each in inspect_detection(DataSettings(root=root), tiny, 0).values() for line in each.defects]


# --------------------------------------------------------------------------------------------------- damaged COCO files


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("annotations/instances_train.json", "annotations/instances_val.json"),
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
        ("annotations/train.json", "annotations/valid.json"),
        ("train.json", "validation.json"),
        ("train/labels.json", "valid/labels.json"),
        ("train/_annotations.coco.json", "valid/_annotations.coco.json"),
    ],
)
@pytest.mark.parametrize("content", [EMPTY, " \n", CUT, OTHER, "{}"])
@pytest.mark.parametrize("broken", ["train", "val"])
def test_a_damaged_file_is_named(train, val, content, broken, root, parts, tiny, refused):
    """Whichever part it is of: no other part takes its place."""
    for split, name in (("train", train), ("val", val)):
        folder = (root / name).parent
        copy(parts[split], folder if folder.name in ("train", "valid") else root / split)
        write_json(root / name, coco(parts[split], CLASSES))
    file = root / {"train": train, "val": val}[broken]
    damage(file, content)
    problem = (
        "the top level is []" if content == OTHER else "is missing" if content == "{}" else "is not JSON, or cut off"
    )
    with refused(file, problem):
        opened(root)
    (line,) = defects(root, tiny)
    assert line.startswith(f"{file}: ")
    assert problem in line


@pytest.mark.parametrize("content", [EMPTY, CUT, OTHER])
def test_both_files_are_damaged(content, root, parts, tiny, refused):
    write_coco(root, parts, CLASSES)
    files = [root / "annotations" / f"instances_{split}.json" for split in parts]
    for file in files:
        damage(file, content)
    with refused(files[0]):
        opened(root)
    assert [line.partition(": ")[0] for line in defects(root, tiny)] == list(map(str, files))


@pytest.mark.parametrize("broken", [("train", "val"), ("val", "train")])
def test_a_damaged_file_and_one_of_something_else(broken, root, parts, refused):
    for split in parts:
        copy(parts[split], root / split)
        write_json(root / f"{split}.json", coco(parts[split], CLASSES))
    for split, content in zip(broken, (CUT, OTHER), strict=True):
        damage(root / f"{split}.json", content)
    with refused(root / "train.json", "is not JSON" if broken[0] == "train" else "the top level is []"):
        opened(root)


def test_key_points_do_not_take_the_place_of_damaged_boxes(root, parts, refused):
    write_coco(root, parts, CLASSES)
    for split in parts:
        file = root / "annotations" / f"instances_{split}.json"
        shutil.copy(file, root / "annotations" / f"person_keypoints_{split}.json")
        damage(file, EMPTY)
    with refused(root / "annotations" / "instances_train.json"):
        opened(root)


@pytest.mark.parametrize("name", ["person_keypoints_val.json", "pond_val_boxes.json"])
def test_a_damaged_file_of_a_freer_name(name, root, parts, refused):
    copy(parts["train"] + parts["val"], root / "images")
    write_json(root / "annotations" / name.replace("val", "train"), coco(parts["train"], CLASSES))
    write_json(root / "annotations" / name, coco(parts["val"], CLASSES))
    assert len(opened(root).val.image_ids) == 3
    damage(root / "annotations" / name, CUT)
    with refused(root / "annotations" / name, "is not JSON, or cut off"):
        opened(root)


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        ("annotations/instances_default.json", EMPTY, ["instances_default.json", "is not JSON, or cut off"]),
        ("_annotations.coco.json", CUT, ["_annotations.coco.json", "is not JSON, or cut off"]),
        ("result.json", EMPTY, ["no known layout", "; result.json is empty"]),
        ("result.json", CUT, ["no known layout", "; result.json is cut off"]),
        ("annotations/pond_train_boxes.json", CUT, ["; annotations/pond_train_boxes.json is cut off"]),
        ("annotations/mine.json", CUT, ["no known layout", "; annotations/mine.json is cut off"]),
    ],
)
def test_one_damaged_file_for_all_images(name, content, fragments, root, parts, refused):
    copy(parts["train"], root / "images")
    write_json(root / name, coco(parts["train"], CLASSES))
    damage(root / name, content)
    with refused(*fragments):
        opened(root)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_whole_file_of_another_encoding_is_no_damaged_one(encoding, root, refused):
    root.mkdir()
    (root / "a.json").write_text(json.dumps({"shapes": [], "imagePath": "x"}), encoding=encoding)
    with refused("a.json is labelme's own" if encoding == "utf-8-sig" else "it holds a.json; allowed: COCO"):
        opened(root)


FOREIGN = {
    "annotations/captions_train.json": {"images": [], "annotations": []},
    "annotations/captions_val.json": "",
    "annotations/panoptic_val.json": '{"images": [',
    "annotations/instances_val_results.json": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}],
    "annotations/results.bbox.json": [],
    "annotations/val_loss.json": '{"a": [1,',
    "annotations/README.dataset.json": {"license": "x"},
    "README.json": "",
    "captions/captions_val.json": "",
    "train/p000.json": {"shapes": [], "imagePath": "p000.png"},
    "train/p001.json": "",
    "val/p006.json": '{"shapes": [',
}
"""JSON files that are no annotation files of boxes, some of them damaged; a text stands for the file's."""


OF_NO_LAYOUT = ("README.json", "captions/captions_val.json")


@pytest.mark.parametrize("kind", WRITERS)
def test_other_json_files_do_not_disturb(kind, root, parts):
    WRITERS[kind](root, parts, CLASSES)
    before = {split: split_source(DataSettings(root=root), 0, split)[0].read_bytes() for split in parts}
    for name, content in FOREIGN.items():
        if kind == "coco" or name in OF_NO_LAYOUT:
            write_json(root / name, content)
            if isinstance(content, str):
                (root / name).write_text(content)
    assert {split: split_source(DataSettings(root=root), 0, split)[0].read_bytes() for split in parts} == before


def test_lists_beside_labels_of_another_format_do_not_disturb(root, parts):
    """They are called as COCO's files and hold something else: where there is no COCO file, they are left alone."""
    write_yolo(root, parts, CLASSES)
    for name in ("train.json", "val.json", "train/labels.json"):
        write_json(root / name, ["zebra", "ant"])
    assert recognise.recognise(root).kind == "YOLO"


def test_images_of_a_name_like_a_part(root, tmp_path, refused):
    """labelme's files are called as their images, which may show a train."""
    root.mkdir()
    shutil.copy(shots(tmp_path / "made", 1)[0].file, root / "train.png")
    write_json(root / "train.json", {"shapes": [], "imagePath": "train.png"})
    with refused("train.json is labelme's own"):
        opened(root)
    (root / "train.json").write_text("")
    with refused("train.json is empty"):
        opened(root)


# ---------------------------------------------------------------------------------------------------- a folder too deep


@pytest.mark.parametrize(("train", "images"), [("instances_train2017", "train2017"), ("train", "images/train")])
def test_the_folder_of_annotations_itself(train, images, root, parts, refused):
    for split in parts:
        copy(parts[split], root / images.replace("train", split))
        write_json(root / "annotations" / f"{train.replace('train', split)}.json", coco(parts[split], CLASSES))
    with refused(root / "annotations", "not in it", f"the folder {root} above it is a COCO data set"):
        opened(root / "annotations")
    assert len(opened(root).train.image_ids) == 6
    # Where the images are nowhere, that is said of each.
    for split in parts:
        shutil.rmtree(root / images.replace("train", split))
    with refused("none of the 6 is in", "the first: 'p000.png'"):
        opened(root / "annotations")


# ---------------------------------------------------------------------------------------------------------- label files


@pytest.mark.parametrize("gone", ["labels", "labels/train", "labels/val"])
def test_yolo_images_without_label_files(gone, root, parts, tiny, refused):
    write_yolo(root, parts, CLASSES)
    shutil.rmtree(root / gone)
    split, count, first = ("val", 3, "p006") if gone == "labels/val" else ("train", 6, "p000")
    fragments = [
        f"{root}: data.root: no label file was found for the {count} images of images/{split}",
        f"looked for as labels/{split}/{first}.txt or images/{split}/{first}.txt",
    ]
    with refused(*fragments):
        opened(root)
    lines = defects(root, tiny)
    assert len(lines) == (2 if gone == "labels" else 1)
    assert all(fragment in lines[0] for fragment in fragments)
    with pytest.raises(InputError, match=f"no box of {split} would be left"):
        repair(DataSettings(root=root), 0, root.parent / "fixed")


def test_voc_images_without_label_files(root, parts, refused):
    write_voc(root, parts, CLASSES)
    for shot in parts["val"]:
        (root / "Annotations" / f"{shot.file.stem}.xml").unlink()
    with refused(root, "no label file was found for the 3 images of ImageSets/Main/val.txt; looked for in Annotations"):
        opened(root)


def test_label_files_without_an_object_to_learn(root, parts, tiny, refused):
    write_yolo(root, parts, CLASSES)
    for file in (root / "labels" / "val").iterdir():
        file.write_text("0 .5 .5 .001 .001\n" if file.stem == "p006" else "")
    problem = f"{root}: data.root: nothing is to be learned from the 3 label files of images/val"
    with refused(problem):
        opened(root)
    assert defects(root, tiny)[0].startswith(problem)
    shutil.rmtree(root)
    write_voc(root, parts, CLASSES)
    for shot in parts["train"]:
        (root / "Annotations" / f"{shot.file.stem}.xml").write_text(voc_xml(shot, CLASSES, difficult=1))
    with refused(root, "the 6 label files of ImageSets/Main/train.txt", "not marked difficult"):
        opened(root)


@pytest.mark.parametrize("with_val", [True, False])
@pytest.mark.parametrize("kind", ["yolo", "voc"])
def test_messages_name_the_folder_of_label_files(kind, with_val, root, parts, tmp_path, refused):
    """What was made of the labels lies in the cache, of which the user knows nothing."""
    WRITERS[kind](root, parts if with_val else {"train": parts["train"]}, CLASSES)
    data = opened(root)
    assert (data.train.source, data.val.source) == (root, root)
    shutil.copytree(root, tmp_path / "copy")
    assert opened(tmp_path / "copy").train.source == tmp_path / "copy"
    copy(parts["val"], tmp_path / "own")
    write_json(tmp_path / "own.json", coco(parts["val"], CLASSES[::-1]))
    with refused(tmp_path / "own.json", "id 1 is 'ant' here and 'zebra' in", f" in {root} (named"):
        opened(root, val_ann=tmp_path / "own.json", val_images=tmp_path / "own")


# ---------------------------------------------------------------------------------------------------- path of data.yaml


def test_a_path_of_data_yaml_that_is_not_taken(root, parts, said):
    """Ultralytics' `path`, relative to a folder of its own settings."""
    write_yolo(root, parts, CLASSES, path="../datasets/yolo")
    opened(root)
    for split in parts:
        there = f"where there is no 'images/{split}' ({split}): that in {root} is taken"
        assert f"data.root: data.yaml has path '../datasets/yolo', {there}" in said()
    assert "images/train is taken" not in said()
