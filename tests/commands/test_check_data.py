"""`check-data` and `data voc`: everything that is in a set, every defect, and VOC's files as COCO's."""

import copy
import json

import pytest
from PIL import Image
from rich.console import Console

from hitdet_nni import cli
from hitdet_nni.config.settings import DataSettings
from hitdet_nni.data.checks.box_uses import box_uses
from hitdet_nni.data.layouts.voc_devkit import CLASSES
from hitdet_nni.data.sources import open_data


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def paths(**values):
    return [part for key, value in values.items() for part in ("--set", f"data.{key}={value}")]


def box(box_id, image_id, **more):
    entry = {"id": box_id, "image_id": image_id, "category_id": 4, "bbox": [1, 2, 10, 8], "area": 80, "iscrowd": 0}
    return entry | more


GOOD = {
    "images": [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in range(1, 9)],
    "annotations": [box(10 * i, i) for i in range(1, 8)],
    "categories": [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}],
}


@pytest.fixture
def coco(tmp_path):
    """Write annotations for both halves, with all images that they name; the command's arguments."""

    def write(train, val=GOOD):
        overrides = {}
        for split, content in (("train", train), ("val", val)):
            folder = tmp_path / split
            folder.mkdir(exist_ok=True)
            for entry in GOOD["images"]:
                Image.effect_noise((40, 30), 60).convert("RGB").save(folder / entry["file_name"])
            ann = tmp_path / f"{split}.json"
            ann.write_text(content if isinstance(content, str) else json.dumps(content))
            overrides |= {f"{split}_ann": ann, f"{split}_images": folder}
        return ["check-data", "--config", "coco_release", *paths(**overrides)]

    return write


def test_counts_and_warnings(coco, capsys):
    content = copy.deepcopy(GOOD)
    content["annotations"][0] |= {"iscrowd": 1, "area": 32**2}
    content["annotations"][1] |= {"bbox": [-3, 0, 20, 30], "area": 96**2}
    content["annotations"][2] |= {"bbox": [5, 5, 0, 0], "area": 0}
    status, out, _ = run(capsys, *coco(content), "--json")
    assert status == 0
    found = json.loads(out)["train"]
    assert found.pop("defects") == []
    warnings = found.pop("warnings")
    assert (found.pop("notes"), found.pop("hints")) == ([], [])
    area = 1067 / 40 * 800 / 30  # of a pixel at the network's input
    side = round((10 * 8 * area) ** 0.5, 1)
    expected = {"name": "cat", "boxes": 5, "smallest": side, "median": side, "out_of_reach": 0}
    assert found.pop("objects") == [{**expected, "largest": round((17 * 30 * area) ** 0.5, 1)}]
    assert found == {
        "images": 8,
        "image widths": "40 / 40 / 40",
        "image heights": "30 / 30 / 30",
        "classes": 2,
        "boxes": 7,
        "boxes a class": "0 / 7 / 7",
        "small boxes": 5,
        "medium boxes": 1,
        "large boxes": 1,
        "images without boxes": 1,
        "images trained on": 7,
        "images of background only": 2,
        "boxes trained on": 5,
        "boxes dropped": 1,
        "crowds, ignored": 1,
        "boxes clipped at an edge": 1,
        "sides at the input": "239 / 239 / 602",
        "sides of the anchors": "32 / 128 / 512",
        "objects out of reach": 0,
    }
    assert [line.split(": ", 1)[1] for line in warnings] == [
        "1 image without boxes, which training leaves out unless data.filter_empty_gt is false: 8.jpg",
        "2 images whose boxes are all crowds or dropped, which are trained on as background; the first of them: 1.jpg",
        "1 class without boxes: dog",
        "1 box without area or thinner than a pixel, which training leaves out",
        "1 box that reaches over an edge of its image",
        "1 class with fewer than 10 boxes to learn from: cat",
    ]


def test_boxes_that_stand_there_twice_are_told(coco, capsys):
    """Under other ids, of one class and image; crowds, other classes and other boxes are not the same."""
    content = copy.deepcopy(GOOD)
    first = content["annotations"][0]
    others = ({}, {}, {"category_id": 9}, {"iscrowd": 1}, {"bbox": [first["bbox"][0] + 1, *first["bbox"][1:]]})
    content["annotations"] += [{**first, **each, "id": 90 + number} for number, each in enumerate(others)]
    status, out, _ = run(capsys, *coco(content), "--json")
    assert status == 0
    warnings = json.loads(out)["train"]["warnings"]
    assert sum("2 boxes that stand there twice, of one class" in line for line in warnings) == 1
    assert sum("twice" in line for line in warnings) == 1


def test_images_without_boxes_may_be_trained_on(coco, capsys):
    status, out, _ = run(capsys, *coco(GOOD), *paths(filter_empty_gt="false"), "--json")
    found = json.loads(out)
    assert (status, found["train"]["images without boxes"], found["train"]["images trained on"]) == (0, 1, 8)
    assert not any("without boxes, which" in line for line in found["train"]["warnings"])
    assert "data.val_ann: 1 image without boxes: 8.jpg" in found["val"]["warnings"]


def test_every_defect_is_listed(coco, capsys, tmp_path):
    content = copy.deepcopy(GOOD)
    boxes = content["annotations"]
    content["images"][0]["width"] = 41
    content["images"][3]["width"] = 0
    content["images"].append({"id": 2, "file_name": "again.jpg", "width": 40, "height": 30})
    boxes[1]["bbox"] = [1, 2, float("nan"), 4]
    boxes[2]["bbox"] = [40, 2, 5, 5]
    boxes[4]["bbox"] = [1, 2, -5, 5]
    boxes[5]["category_id"] = 5
    boxes.append(box(70, 7))
    boxes.append(box(80, 99))
    arguments = coco(content)
    damaged = tmp_path / "train" / "5.jpg"
    damaged.write_bytes(damaged.read_bytes()[:500])
    (tmp_path / "train" / "6.jpg").unlink()
    status, out, err = run(capsys, *arguments)
    assert status == 2
    defects = [line for line in out.splitlines() if line.startswith("defect: ")]
    places = [
        "images[3].width: is 0",
        "images[8].id: 2 is taken",
        "annotations[1].bbox: is [1, 2, nan, 4]",
        "annotations[2].bbox: is [40, 2, 5, 5]",
        "annotations[4].bbox: is [1, 2, -5, 5]",
        "annotations[5].category_id: is 5",
        "annotations[7].id: is 70",
        "annotations[8].image_id: is 99",
        "images[4].file_name: '6.jpg'",
        "1.jpg: is 40 x 30 pixels, the annotations say 41 x 30",
        "5.jpg: cannot be decoded",
    ]
    for place in places:
        assert [place in line for line in defects].count(True) == 1, (place, defects)
    assert len(defects) == len(places)  # the box of the image of no width is not another one
    assert err.count("\n") == 1
    assert f"(and {len(places) - 1} more)" in err


def test_many_defects_are_counted(coco, capsys):
    content = copy.deepcopy(GOOD)
    content["annotations"] += [box(1000 + number, 99) for number in range(130)]
    arguments = coco(content)
    status, out, err = run(capsys, *arguments)
    assert (status, out.count("defect: ")) == (2, 101)
    assert "defect: and 30 more of train; --json has all" in out.splitlines()
    assert "(and 129 more)" in err
    assert len(json.loads(run(capsys, *arguments, "--json")[1])["train"]["defects"]) == 130


def test_broken_half_and_different_classes(coco, capsys):
    status, out, err = run(capsys, *coco("{"))
    assert (status, out.count("defect: "), err.count("\n")) == (2, 1, 1)
    assert "data.val_ann: 1 image without boxes: " in out
    other = {**GOOD, "categories": [{"id": 4, "name": "cat"}, {"id": 9, "name": "fox"}]}
    status, out, _ = run(capsys, *coco(GOOD, other), "--json")
    assert status == 2
    assert "id 9 is 'fox' here and 'dog'" in json.loads(out)["val"]["defects"][0]


def test_classes_that_differ_in_case_alone_are_warned_of(coco, capsys):
    content = copy.deepcopy(GOOD)
    name = content["categories"][0]["name"]
    content["categories"].append({"id": 77, "name": f" {name.upper()}"})
    status, out, _ = run(capsys, *coco(content, content), "--json")
    warned = [line for line in json.loads(out)["train"]["warnings"] if "learned apart" in line]
    assert status == 0
    assert len(warned) == 1
    assert f"2 classes differ in case or spaces alone, and are learned apart: {name!r} (" in warned[0]
    assert "(0 boxes)" in warned[0]


def test_of_different_classes_nothing_else_is_said(coco, capsys):
    """That they have no boxes in the other half follows."""
    other = {**GOOD, "categories": [{"id": entry["id"], "name": entry["name"].upper()} for entry in GOOD["categories"]]}
    status, out, _ = run(capsys, *coco(GOOD, other), "--json")
    found = json.loads(out)["val"]
    assert status == 2
    assert "check-data --fix OUT` gives both files the same" in found["defects"][0]
    assert not [line for line in found["warnings"] if "no box in" in line]


def test_images_in_both_halves_are_warned_of(coco, capsys, tmp_path):
    arguments = coco(GOOD)
    status, out, _ = run(capsys, *arguments, *paths(val_images=tmp_path / "train"), "--json")
    assert status == 0
    assert "8 images that are trained on as well" in json.loads(out)["val"]["warnings"][-1]


def test_chosen_images_are_what_is_counted(coco, capsys, tmp_path):
    (tmp_path / "ids.txt").write_text("1\n2\n")
    arguments = [*coco(GOOD), *paths(train_without=tmp_path / "ids.txt", val_ids=tmp_path / "ids.txt"), "--json"]
    status, out, _ = run(capsys, *arguments)
    found = json.loads(out)
    assert (status, found["train"]["images"], found["val"]["images"]) == (0, 6, 2)
    broken = copy.deepcopy(GOOD)
    broken["annotations"][0]["iscrowd"] = 3
    coco(broken)
    status, out, _ = run(capsys, *arguments)
    assert status == 2
    assert f"{tmp_path / 'train.json'}: annotations[0].iscrowd" in json.loads(out)["train"]["defects"][0]
    (tmp_path / "ids.txt").write_text("77")
    coco(GOOD)
    assert "none of its 1 ids" in run(capsys, *arguments)[2]


def test_the_embedded_set(capsys):
    status, out, _ = run(
        capsys, "check-data", "--config", "tiny", "--set", "data.train=3", "--set", "data.val=2", "--json"
    )
    found = json.loads(out)
    assert (status, found["train"]["images"], found["val"]["classes"]) == (0, 3, 10)


def test_folders_of_classes(capsys, tmp_path):
    for split, names in (("train", ("ant", "bee")), ("val", ("ant", "bee"))):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            for number, width in enumerate((20, 30)):
                Image.effect_noise((width, 25), 60).save(tmp_path / split / name / f"{number}.jpg")
    arguments = ["check-data", "--config", "imagenet_supernet"]
    for split in ("train", "val"):
        arguments += ["--set", f"pretrain.{split}_images={tmp_path / split}"]
    status, out, _ = run(capsys, *arguments, "--json")
    assert status == 0
    assert json.loads(out)["pretrain.train_images"] == {
        "images": 4,
        "image widths": "20 / 30 / 30",
        "image heights": "25 / 25 / 25",
        "classes": 2,
        "images a class": "2 / 2 / 2",
        "objects": [],
        "notes": [],
        "warnings": [],
        "hints": [],
        "defects": [],
    }
    assert run(capsys, *arguments)[0] == 0
    file = tmp_path / "val" / "bee" / "1.jpg"
    file.write_bytes(file.read_bytes()[:300])
    (tmp_path / "train" / "bee").rename(tmp_path / "train" / "wasp")
    status, out, _ = run(capsys, *arguments)
    assert status == 2
    assert f"defect: {file}: cannot be decoded" in out
    assert "differ in 2 classes, the first of them 'bee'" in out
    (tmp_path / "val" / "ant" / "2.jpg").mkdir()
    assert "no such folder" in run(capsys, *arguments, "--set", "pretrain.val_images=absent")[2]


def write_voc(root, year, lists):
    """A year of the development kit, its annotation files written as VOC's are."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / year / folder).mkdir(parents=True)
    for name, stems in lists.items():
        (root / year / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        for stem in stems:
            Image.effect_noise((50, 40), 60).convert("RGB").save(root / year / "JPEGImages" / f"{stem}.jpg")
            (root / year / "Annotations" / f"{stem}.xml").write_text(
                f"<annotation><folder>{year}</folder><filename>{stem}.jpg</filename>"
                "<size><width>50</width><height>40</height><depth>3</depth></size><segmented>0</segmented>"
                "<object><name>dog</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult>"
                "<bndbox><xmin>1</xmin><ymin>3</ymin><xmax>50</xmax><ymax>12</ymax></bndbox></object>"
                "<object><name>person</name><difficult>1</difficult>"
                "<bndbox><ymin>10.5</ymin><ymax>20.5</ymax><xmin>5</xmin><xmax>6</xmax></bndbox>"
                "<part><name>head</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
                "</object></annotation>"
            )


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOCdevkit"
    write_voc(root, "VOC2007", {"trainval": ["000005", "000007"], "test": ["000001"]})
    write_voc(root, "VOC2012", {"trainval": ["2008_000002"]})
    return root


def test_voc_becomes_coco(voc, capsys):
    status, out, _ = run(capsys, "data", "voc", "--voc", voc)
    assert status == 0
    assert "3 images, 6 boxes, 3 of them difficult" in out
    data = open_data(DataSettings(layout="voc0712", root=voc), 0)
    assert data.classes == CLASSES
    assert data.train.file_names == (
        "VOC2007/JPEGImages/000005.jpg",
        "VOC2007/JPEGImages/000007.jpg",
        "VOC2012/JPEGImages/2008_000002.jpg",
    )
    assert (data.val.file_names, data.val.sizes) == (("VOC2007/JPEGImages/000001.jpg",), ((50, 40),))
    assert (data.train.summary.boxes, box_uses(data.train, (64, 64)).crowds) == (6, 3)
    boxes = json.loads(data.val.ann.read_text())["annotations"]
    assert [entry["bbox"] for entry in boxes] == [[0, 2, 50, 10], [4, 9.5, 2, 11]]
    assert [(CLASSES[entry["category_id"] - 1], entry["iscrowd"]) for entry in boxes] == [("dog", 0), ("person", 1)]
    assert [entry["area"] for entry in boxes] == [500, 22]
    assert run(capsys, "check-data", "--config", "voc0712", *paths(root=voc))[0] == 0


def test_difficult_objects(voc, capsys, tmp_path):
    kept = {}
    for choice in ("keep", "drop"):
        out = tmp_path / choice
        assert run(capsys, "data", "voc", "--voc", voc, "--out", out, "--difficult", choice)[0] == 0
        boxes = json.loads((out / "annotations" / "instances_test07.json").read_text())["annotations"]
        kept[choice] = [entry["iscrowd"] for entry in boxes]
    assert kept == {"keep": [0, 0], "drop": [0]}


def test_voc_that_cannot_be_converted(voc, capsys, tmp_path):
    def attempt(*names, arguments=("--voc", voc)):
        status, _, err = run(capsys, "data", "voc", *arguments, "--out", tmp_path / "out")
        assert (status, err.count("\n")) == (2, 1)
        for name in names:
            assert str(name) in err
        assert not (tmp_path / "out").exists()

    attempt("--voc", "is missing", arguments=())
    attempt("--voc", "absent is no folder", arguments=("--voc", tmp_path / "absent"))
    file = voc / "VOC2012" / "Annotations" / "2008_000002.xml"
    good = file.read_text()
    for old, new, names in [
        ("</annotation>", "", ["is not XML"]),
        ("<width>50</width>", "", ["size/width", "is missing"]),
        ("<height>40</height>", "<height>0</height>", ["size", "50 x 0"]),
        ("<name>dog</name>", "<name>fox</name>", ["object[0].name", "'fox'", "aeroplane"]),
        ("<xmax>6</xmax>", "<xmax>4</xmax>", ["object[1].bndbox", "5 10.5 4 20.5"]),
        ("<xmin>5</xmin>", "<xmin>nan</xmin>", ["object[1].bndbox/xmin", "'nan'"]),
        ("<ymin>3</ymin>", "<ymin>three</ymin>", ["object[0].bndbox/ymin", "'three'"]),
    ]:
        assert old in good
        file.write_text(good.replace(old, new))
        attempt(file, *names)
    file.unlink()
    attempt(file, "no such file")
    file.write_text(good)
    stems = voc / "VOC2007" / "ImageSets" / "Main" / "test.txt"
    stems.write_text("../../secret\n")
    attempt(stems, "../../secret")
    stems.write_text("\n")
    attempt(stems, "is empty")
    stems.write_text("000001  1\n")
    assert run(capsys, "data", "voc", "--voc", voc)[0] == 0
    assert "exists already" in run(capsys, "data", "voc", "--voc", voc)[2]
    assert run(capsys, "data", "voc", "--voc", voc, "--force")[0] == 0
    assert "--out" in run(capsys, "data", "digits")[2]


def test_copies_and_classes_between_the_halves(coco, capsys, tmp_path):
    val = copy.deepcopy(GOOD)
    for entry in val["annotations"]:
        entry["category_id"] = 9
    arguments = [*coco(GOOD, val), "--json"]
    (tmp_path / "val" / "3.jpg").write_bytes((tmp_path / "train" / "7.jpg").read_bytes())
    (tmp_path / "train" / "5.jpg").write_bytes((tmp_path / "train" / "2.jpg").read_bytes())
    status, out, _ = run(capsys, *arguments)
    found = json.loads(out)
    assert status == 0
    first, second = tmp_path / "train" / "2.jpg", tmp_path / "train" / "5.jpg"
    pair = f"1 image is a copy of another; the first pair: {first} and {second}"
    assert found["train"]["warnings"][-1] == f"data.train_ann: {pair}"
    assert [line.split(": ", 1)[1] for line in found["val"]["warnings"][-3:]] == [
        "1 class that is evaluated has no box in training: dog",
        "1 class that is trained on has no box in validation: cat",
        "1 image has the bytes of a training image under another name, so that the figures will flatter; "
        f"the first pair: {tmp_path / 'val' / '3.jpg'} and {tmp_path / 'train' / '7.jpg'}",
    ]


def test_imbalance(coco, capsys):
    content = copy.deepcopy(GOOD)
    content["annotations"] += [box(1000 + number, 2) for number in range(600)]
    content["annotations"] += [box(5000 + number, 3, category_id=9) for number in range(11)]
    status, out, _ = run(capsys, *coco(content), "--json")
    warnings = json.loads(out)["train"]["warnings"]
    assert status == 0
    assert warnings[-1] == "data.train_ann: class 'cat' has 55 times the boxes of 'dog': 607 against 11"
    assert not any("fewer than" in line for line in warnings)


def test_refused_boxes_are_not_judged(coco, capsys):
    content = copy.deepcopy(GOOD)
    for entry in content["annotations"]:
        entry["bbox"] = [1, 2, -10, 8]
    status, out, _ = run(capsys, *coco(content))
    assert status == 2
    lines = [line for line in out.splitlines() if "data.train_ann" in line and not line.startswith("defect: ")]
    assert lines == [
        "note: data.train_ann: counted is what has no defect; the rest is judged once the defects are mended"
    ]


def test_the_tables_of_a_small_terminal(coco, capsys, monkeypatch):
    content = copy.deepcopy(GOOD)
    content["categories"] += [{"id": 20 + number, "name": f"kind [{number}]"} for number in range(30)]
    content["annotations"] += [box(2000 + number, 5, category_id=20 + number) for number in range(30)]
    monkeypatch.setattr("hitdet_nni.commands.shared.console.console", lambda: Console(width=80))
    status, out, _ = run(capsys, *coco(content, content), "--set", "skeleton.input_size=[32, 32]")
    assert status == 0
    table = [line for line in out.splitlines() if line[0] in "┏┃┡│└"]
    assert {len(line) for line in table} <= {len(table[0]), 80}
    assert max(map(len, table)) <= 80
    assert "…" not in "".join(table)
    assert any("kind [7]" in line and line.count("8.5 / 8.5 / 8.5") == 2 for line in table) or "kind [7]" not in out
    assert "the 20 of 31 classes with the smallest objects; --json has all" in out
    assert "hint: data.train_ann: " in out
    names = [line.split()[1:3] for line in table if "kind [" in line]
    numbers = [int(number.strip("[]")) for _, number in names]
    assert numbers == sorted(numbers)  # in the order of the file, whatever the sizes


def test_the_cards(shared_data, capsys):
    root = shared_data / "cards"
    named = {f"{split}_ann": root / "annotations" / f"instances_{split}.json" for split in ("train", "val")}
    named |= {f"{split}_images": root / split for split in ("train", "val")}
    status, out, _ = run(capsys, "check-data", "--config", "coco_release", *paths(**named), "--json")
    found = json.loads(out)
    assert status == 0
    assert {split: inspection["warnings"] + inspection["hints"] for split, inspection in found.items()} == {
        "train": [],
        "val": [],
    }
    assert (found["train"]["boxes trained on"], found["val"]["boxes evaluated"]) == (527, 143)
    assert sum(sizes["boxes"] for sizes in found["train"]["objects"]) == 527


def test_a_folder_called_2017(shared_data, capsys):
    config = shared_data.parent / "cases" / "numeric" / "c.yml"
    if not config.is_file():
        pytest.skip("the cases are not there")
    status, out, _ = run(capsys, "check-data", "--config", config, "--json")
    found = json.loads(out)
    assert (status, found["train"]["boxes trained on"], found["val"]["boxes evaluated"]) == (0, 6, 3)
