"""Folders of label files with several defects: `check-data` lists all of them, `--fix` leaves their images out."""

from __future__ import annotations

import json
import shlex

import pytest
from layouts import WRITERS, shots

from hitdet_nni.cli import main
from hitdet_nni.config.data_settings import DataSettings
from hitdet_nni.config.settings import load_settings, parse_overrides
from hitdet_nni.data.layouts import recognise
from hitdet_nni.data.sources import open_data

CLASSES = ("zebra", "ant")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "pond"


@pytest.fixture
def check(root, capsys):
    """Run `check-data` on the folder; status, standard output and the last line of standard error."""

    def run(*options, root=root):
        arguments = ["check-data", "--config", "nano_cpu", "--set", f"data.root={root}", *map(str, options)]
        status = main(arguments)
        out, err = capsys.readouterr()
        return status, out, err.splitlines()[-1] if err else ""

    return run


def cut(file):
    file.write_bytes(file.read_bytes()[:1500])


def spoil(root, kind, *, with_val=True):
    """Damage label files and images; the places, in the order in which they are to be told."""
    if kind == "yolo":
        labels, images, suffix = root / "labels" / "train", root / "images" / "train", ".txt"
        (labels / "p001.txt").write_text("7 .5 .5 .1 .1\n")
        (labels / "p002.txt").write_text("1 .5 .5 .1 .1\n1 32 24 10 10\n8 .5 .5 .1 .1\n")
        (labels / "lost.txt").write_text("7 .5 .5 .1 .1\n")
        problems = ["line 1: class is 7", "line 2: is not relative to the image"]
    else:
        labels, images, suffix = root / "Annotations", root / "JPEGImages", ".xml"
        (labels / "p001.xml").write_text("<annotation>")
        (labels / "p002.xml").write_text((labels / "p002.xml").read_text().replace("<xmin>", "<xmin>x"))
        problems = ["is not XML", "object[0].bndbox/xmin: is 'x"]
    cut(images / "p003.png")
    cut(images / "p001.png")
    broken = "cannot be decoded"
    told = [
        (labels / f"p001{suffix}", problems[0]),
        (images / "p001.png", broken),
        (labels / f"p002{suffix}", problems[1]),
        (images / "p003.png", broken),
    ]
    if with_val:
        last = images.parent / "val" / "p021.png" if kind == "yolo" else images / "p021.png"
        cut(last)
        told.append((last, broken))
    return told


def write_folder(kind, with_val, root, made):
    parts = {"train": shots(made, 20)}
    if with_val:
        parts["val"] = shots(made, 4, first=20)
    WRITERS[kind](root, parts, CLASSES)
    return parts


def lines(out, kind="defect: "):
    return [line.removeprefix(kind) for line in out.splitlines() if line.startswith(kind)]


@pytest.mark.parametrize("with_val", [True, False])
@pytest.mark.parametrize("kind", ["yolo", "voc"])
def test_labels_and_images_in_one_go(kind, with_val, root, tmp_path, check):
    parts = write_folder(kind, with_val, root, tmp_path / "made")
    told = sorted(spoil(root, kind, with_val=with_val))
    status, out, err = check()
    defects = sorted(lines(out))
    assert len(defects) == len(told)
    for line, (file, problem) in zip(defects, told, strict=True):
        assert line.startswith(f"{file}: ")
        assert problem in line
    assert status == 2
    assert f"(and {len(told) - 1} more)" in err
    found = json.loads(check("--json")[1])
    assert len(found["train"]["defects"] + found["val"]["defects"]) == len(told)
    assert found["train"]["images"] >= 16  # of those without a defect
    status, _, err = check()
    assert status == 2
    for file, _ in told:
        made = next((shot for part in parts.values() for shot in part if shot.file.name == file.name), None)
        if made is not None:
            file.write_bytes(made.file.read_bytes())
    names = {file.stem for file, _ in told if file.suffix != ".png"}
    status, out, _ = check()
    assert {line.split(":")[0].rsplit("/")[-1].split(".")[0] for line in lines(out)} == names


def test_a_training_is_refused_with_the_first_and_a_count(root, tmp_path, refused):
    WRITERS["yolo"](root, {"train": shots(tmp_path / "made", 20), "val": shots(tmp_path / "made", 4)}, CLASSES)
    first = spoil(root, "yolo", with_val=False)[0]
    with refused(*first, "(3 more files have defects)", "a class of 0 to 1"):
        open_data(DataSettings(root=root), 0)


@pytest.mark.parametrize("val", [0, 2])
def test_a_split_of_which_nothing_is_left(val, root, tmp_path, check):
    parts = {"train": shots(tmp_path / "made", 4)}
    if val:
        parts["val"] = shots(tmp_path / "made", val)
    WRITERS["yolo"](root, parts, CLASSES)
    for file in (root / "labels").rglob("*.txt"):
        file.write_text("9 .5 .5 .1 .1\n")
    status, out, _ = check()
    assert (status, len(lines(out))) == (2, 4 + val)
    assert ("note: data.val_ann: is split off once the defects of data.root are mended" in out) == (not val)
    status, _, err = check("--fix", tmp_path / "fixed")
    assert status == 2
    assert "no box of train would be left" in err
    assert not (tmp_path / "fixed").exists()
    # An image without a label file is left: that it holds no box is no defect.
    shots(root / "images" / "train", 1, first=30)
    assert len(lines(check()[1])) == 4 + val


@pytest.mark.parametrize("with_val", [True, False])
@pytest.mark.parametrize("kind", ["yolo", "voc"])
def test_fix_leaves_the_images_out(kind, with_val, root, tmp_path, check):
    parts = write_folder(kind, with_val, root, tmp_path / "made")
    told = spoil(root, kind, with_val=with_val)
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    status, out, _ = check("--fix", tmp_path / "fixed")
    assert status == 0
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before
    for file, problem in told:
        (line,) = (line for line in out.splitlines() if f"{file.name}: " in line or f"{file.name!r} " in line)
        assert problem in line
        # VOC's files say how large an image is: it is decoded as those of a COCO file are.
        assert line.endswith(": the image is left out") == line.startswith(f"{file}: ")
        assert line.startswith(f"{file}: ") or ("left out: " in line and kind == "voc")
    count = 4 if kind == "yolo" else 3
    assert f"{tmp_path / 'fixed' / 'instances_train.json'}: {count} defects left out with their images" in out
    words = shlex.split(out.splitlines()[-1].partition("use them with ")[2])
    data = open_data(load_settings("nano_cpu", parse_overrides([word for word in words if word != "--set"])).data, 0)
    left_out = {file.stem for file, _ in told}
    names = {name.rsplit("/")[-1].removesuffix(".png") for name in (*data.train.file_names, *data.val.file_names)}
    assert names == {shot.file.stem for part in parts.values() for shot in part} - left_out
    facts = json.loads(check("--fix", tmp_path / "again", "--json")[1])
    assert sum(len(each["left_out"] + each["changes"]) for each in facts.values()) >= len(told)


@pytest.mark.parametrize(
    ("kind", "below", "name"),
    [
        ("yolo", "images", "YOLO"),
        ("yolo", "labels", "YOLO"),
        ("yolo", "images/train", "YOLO"),
        ("yolo", "labels/val", "YOLO"),
        ("yolo", "data.yaml", "YOLO"),
        ("voc", "JPEGImages", "PASCAL VOC"),
        ("voc", "Annotations", "PASCAL VOC"),
        ("coco", "train", "COCO"),
    ],
)
def test_a_folder_too_deep(kind, below, name, root, tmp_path, refused):
    WRITERS[kind](root, {"train": shots(tmp_path / "made", 4), "val": shots(tmp_path / "made", 2)}, CLASSES)
    with refused(root / below, f"the folder {root} above it is a {name} data set"):
        recognise.recognise(root / below)


def test_a_part_that_looks_like_a_set_without_names(root, tmp_path, refused):
    """`train/` of Roboflow's YOLO: images and labels, whose names are in the folder above."""
    for folder in ("images", "labels"):
        (root / "train" / folder).mkdir(parents=True)
    made = shots(root / "train" / "images", 2)
    for shot in made:
        (root / "train" / "labels" / f"{shot.file.stem}.txt").write_text("0 .5 .5 .1 .1\n")
    (root / "data.yaml").write_text("train: train/images\nnames: [a]\n")
    with refused("no file with the names of the classes", f"the folder {root} above it is a YOLO data set"):
        recognise.recognise(root / "train")
