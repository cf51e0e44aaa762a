"""`check-data --fix`: what is written passes the checks, each change is told, and the source stays as it is."""

import copy
import json
import shlex

import numpy as np
import pytest
from PIL import Image

from hitdet_nni import cli
from hitdet_nni.config.settings import DataSettings, load_settings, parse_overrides
from hitdet_nni.data.checks.repair import repair
from hitdet_nni.data.checks.repaired_settings import settings_of
from hitdet_nni.data.datasets.detection import build_dataset
from hitdet_nni.data.sources import open_data
from hitdet_nni.errors import InputError

INPUT = (96, 96)


def box(box_id, image_id, **more):
    entry = {"id": box_id, "image_id": image_id, "category_id": 4, "bbox": [1, 2, 10, 8], "area": 80, "iscrowd": 0}
    return entry | more


GOOD = {
    "info": {"year": 2026},
    "images": [{"id": i, "file_name": f"{i}.png", "width": 48, "height": 32, "license": 3} for i in range(1, 5)],
    "annotations": [box(10 * i, i, segmentation=[[1, 2, 11, 2, 11, 10]]) for i in range(1, 5)],
    "categories": [{"id": 4, "name": "cat"}],
}


def write(folder, split, content=GOOD):
    (folder / split).mkdir(parents=True, exist_ok=True)
    for number in range(1, 5):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / split / f"{number}.png")
    ann = folder / f"{split}.json"
    ann.write_text(json.dumps(content))
    return {f"{split}_ann": ann, f"{split}_images": folder / split}


@pytest.fixture
def mended(tmp_path):
    """Mend a split whose content was changed; its changes, the document, and both halves as they are read then."""

    def mend(split, change):
        content = copy.deepcopy(GOOD)
        change(content)
        paths = write(tmp_path, "train") | write(tmp_path, "val") | write(tmp_path, split, content)
        for file, size in (("thin.png", (2000, 8)), ("bad.png", None)):
            if size is None:
                (tmp_path / split / file).write_bytes(b"no image")
            else:
                Image.new("RGB", size, "teal").save(tmp_path / split / file)
        before = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
        repaired = repair(DataSettings(**paths), 0, tmp_path / "out", INPUT)
        assert {path: path.read_bytes() for path in before} == before
        files = {f"{each.split}_ann": each.file for each in repaired}
        data = open_data(DataSettings(**{**paths, **files}), 0, INPUT)
        found = next(each for each in repaired if each.split == split)
        assert all(not each.changes for each in repaired if each.split != split)
        return found.changes, json.loads(found.file.read_text()), getattr(data, split)

    return mend


def spoil(content):
    images, boxes = content["images"], content["annotations"]
    images[0] |= {"width": 40, "height": "32"}
    images[1]["file_name"] = "..\\data\\images\\2.png"
    images += [
        {"id": 5, "file_name": "thin.png", "width": 2000, "height": 8},
        {"id": 6, "file_name": "bad.png", "width": 48, "height": 32},
        {"id": 7, "file_name": "gone.png", "width": 48, "height": 32},
    ]
    boxes[0]["bbox"] = [41, 2, 6, 8]  # outside of what the file says, inside of the image
    boxes[1] |= {"bbox": ["1", "2.5", 10, 8], "area": None, "iscrowd": None}
    boxes[2]["area"] = 0
    boxes += [box(50, 5), box(60, 6), box(70, 7), box(80, 99), box(90, 1, bbox=[1, 2, 0, 5])]
    boxes += [box(100, 1, bbox=[90, 2, 5, 5]), box(110, 1, category_id=5), box(120, 1, bbox=[1, 2, 3])]
    boxes += [box(130, 4, ignore=1), {key: value for key, value in box(140, 4).items() if key != "area"}]


@pytest.mark.parametrize("split", ["train", "val"])
def test_what_can_be_mended_is_and_the_rest_is_left_out(mended, split):
    changes, written, dataset = mended(split, spoil)
    expected = [
        "images[0] (id 1).height: '32' -> 32",
        "annotations[1] (id 20).bbox: ['1', '2.5', 10, 8] -> [1, 2.5, 10, 8]",
        "annotations[1] (id 20).area: None -> 80",
        "annotations[1] (id 20).iscrowd: None -> 0",
        "annotations[2] (id 30).area: 0 -> 80",
        "annotations[12] (id 130).ignore: 1 -> iscrowd 1",
        "annotations[13] (id 140).area: missing -> 80",
        "images[0] (id 1).width: 40 -> 48",
        "images[1] (id 2).file_name: '..\\\\data\\\\images\\\\2.png' -> '2.png'",
        "images[4] (id 5): left out: 'thin.png' is 2000 x 8 pixels",
        "images[5] (id 6): left out: 'bad.png' cannot be decoded",
        "images[6] (id 7): left out: 'gone.png' is not in",
        *[f"annotations[{index}] (id {10 * index + 10}): left out: its image is left out" for index in (4, 5, 6)],
        "annotations[7] (id 80): left out: is 99",
        "annotations[8] (id 90): left out: is [1, 2, 0, 5]",
        "annotations[9] (id 100): left out: is [90, 2, 5, 5]",
        "annotations[10] (id 110): left out: is 5",
        "annotations[11] (id 120): left out: is [1, 2, 3]",
    ]
    for start in expected:
        assert [line.startswith(start) for line in changes].count(True) == 1, (start, changes)
    assert len(changes) == len(expected)
    assert all("\n" not in line and "named by" not in line for line in changes)
    assert dataset.notes == ()
    assert [each["id"] for each in written["annotations"]] == [10, 20, 30, 40, 130, 140]
    # What nobody reads is kept.
    assert written["info"] == GOOD["info"]
    assert written["images"][0]["license"] == 3
    assert "segmentation" in written["annotations"][0]
    images = build_dataset(dataset, load_settings("tiny").skeleton, training=True)
    assert sum(len(images[index]["data_samples"].gt_instances) for index in range(len(images))) == 5


def test_boxes_of_resized_images_are_resized(mended):
    """All of them, where any shows by a box out of its image that they are of the former size."""

    def change(content):
        for image in content["images"][:3]:
            image |= {"width": 96, "height": 64}
        content["images"][3] |= {"width": 60, "height": 40}  # to 0.8 times of which it was resized
        content["annotations"][0] |= {"bbox": [50, 40, 20, 10], "area": 150, "segmentation": [[50, 40, 70, 40, 70, 50]]}

    changes, written, dataset = mended("train", change)
    assert not any("left out" in line for line in changes)
    assert [(image["width"], image["height"]) for image in written["images"]] == [(48, 32)] * 4
    first, second = written["annotations"][:2]
    assert (first["bbox"], first["area"]) == ([25, 20, 10, 5], 37.5)
    assert first["segmentation"] == [[25, 20, 35, 20, 35, 25]]
    assert second["bbox"] == [side / 2 for side in GOOD["annotations"][1]["bbox"]]
    assert written["annotations"][3]["bbox"] == [round(side * 0.8, 2) for side in GOOD["annotations"][3]["bbox"]]
    assert dataset.notes == ()


@pytest.mark.parametrize(
    ("size", "box", "doubt"),
    [
        ((32, 48), [1, 1, 4, 4], "boxes could be of either"),  # turned
        ((32, 48), [1, 30, 8, 8], "boxes reach out of the image"),
        ((24, 16), [1, 1, 4, 4], "boxes could be of either"),  # enlarged
        ((24, 16), [20, 1, 4.4, 4], "boxes could be of either"),  # loosely drawn
        ((96, 64), [1, 1, 4, 4], "boxes could be of either"),  # shrunk to where no box tells
        ((48, 64), [1, 40, 5, 5], "boxes reach out of the image"),  # stretched
        ((48, 99), [1, 1, 4, 4], "boxes could be of either"),
        ((60, 50), [1, 1, 47, 4], "boxes could be of either"),
    ],
)
def test_an_image_whose_boxes_could_be_of_two_sizes_is_left_out(mended, size, box, doubt):

    def change(content):
        content["images"][1] |= {"width": size[0], "height": size[1]}
        content["annotations"][1]["bbox"] = box

    changes, written, _ = mended("train", change)
    assert [image["id"] for image in written["images"]] == [1, 3, 4]
    turned = ", perhaps before it was turned as its EXIF orientation says" if size == (32, 48) else ""
    wrong = f"is 48 x 32 pixels, the annotations say {size[0]} x {size[1]}{turned}, and {doubt}"
    assert list(changes) == [
        f"images[1] (id 2): left out: '2.png' {wrong}",
        "annotations[1] (id 20): left out: its image is left out",
    ]


@pytest.mark.parametrize(
    ("size", "box"),
    [((40, 20), [30, 22, 10, 8]), ((49, 33), [1, 1, 4, 4]), ((0, 7), [1, 1, 4, 4]), ((40, 32), [41, 2, 6, 8])],
)
def test_a_size_that_is_wrong_by_itself_is_mended(mended, size, box):
    def change(content):
        content["images"][1] |= {"width": size[0], "height": size[1]}
        content["annotations"][1]["bbox"] = box

    changes, written, _ = mended("train", change)
    assert {line.partition(":")[0] for line in changes} <= {"images[1] (id 2).width", "images[1] (id 2).height"}
    assert (written["images"][1]["width"], written["images"][1]["height"]) == (48, 32)
    assert written["annotations"][1]["bbox"] == box


@pytest.mark.parametrize("split", ["train", "val"])
def test_ids_are_numbered_anew_where_they_are_no_ids(mended, split):
    def change(content):
        content["annotations"][0]["id"] = 0
        content["annotations"][2]["id"] = 20
        content["annotations"][3]["id"] = "x"

    changes, written, _ = mended(split, change)
    assert [line.partition(".id: ")[2] for line in changes] == ["0 -> 1", "20 -> 2", "20 -> 3", "'x' -> 4"]
    assert [each["id"] for each in written["annotations"]] == [1, 2, 3, 4]


def rename_category(content):
    content["categories"].append({"id": 5, "name": "cat"})


def repeat_image(content):
    content["images"][1]["id"] = 1


def lose_all(content):
    for entry in content["images"]:
        entry["file_name"] = "x" + entry["file_name"]


def mark_all(content):
    for entry in content["annotations"]:
        entry["iscrowd"] = 1


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (rename_category, ("categories[1].name", "'cat'")),
        (repeat_image, ("images[1].id", "1 is taken")),
        (lose_all, ("images", "none of the 4 is in")),
        (mark_all, ("annotations", "4 crowd boxes")),
    ],
)
def test_what_only_a_person_can_mend_is_refused(mended, refused, tmp_path, change, fragments):
    with refused(tmp_path / "val.json", *fragments, "--fix cannot mend it"):
        mended("val", change)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(tmp_path, refused):
    paths = write(tmp_path, "train") | write(tmp_path, "val")
    for name in ("instances_train.json", "instances_val.json"):
        source = tmp_path / "annotations" / name
        source.parent.mkdir(exist_ok=True)
        source.write_text(json.dumps(GOOD))
        with refused(source, "--fix", "exists already"):
            repair(DataSettings(**paths), 0, tmp_path / "annotations")
        assert json.loads(source.read_text()) == GOOD
        source.unlink()
    (tmp_path / "annotations" / "instances_val.json").symlink_to(tmp_path / "nowhere.json")
    with refused("exists already"):
        repair(DataSettings(**paths), 0, tmp_path / "annotations")
    assert not (tmp_path / "nowhere.json").exists()


def test_the_command_says_each_change_and_how_the_files_are_used(tmp_path, capsys):
    content = copy.deepcopy(GOOD)
    content["images"][0]["file_name"] = "images\\1.png"
    paths = write(tmp_path, "train", content) | write(tmp_path, "val")
    arguments = ["check-data", "--config", "coco_release"]
    for key, path in paths.items():
        arguments += ["--set", f"data.{key}={path}"]
    assert cli.main(arguments) == 2
    assert cli.main([*arguments, "--fix", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.splitlines()[-4:]
    out = tmp_path / "out"
    assert said[0] == f"{tmp_path / 'train.json'}: images[0] (id 1).file_name: 'images\\\\1.png' -> '1.png'"
    assert said[1:3] == [
        f"{out / 'instances_train.json'}: 1 change",
        f"{out / 'instances_val.json'}: a copy, nothing to mend",
    ]
    options = said[3].removeprefix("use them with ").split()
    assert options[1] == f"data.train_ann={out / 'instances_train.json'}"
    assert cli.main([*arguments, *options]) == 0
    assert cli.main([*arguments, "--fix", str(tmp_path / "other"), "--json"]) == 0


def test_several_files_of_a_half(tmp_path):
    first, second = write(tmp_path / "a", "train"), write(tmp_path / "b", "train")
    sources = {key: (first[key], second[key]) for key in first}
    settings = DataSettings(**sources, **write(tmp_path, "val"))
    repaired = repair(settings, 0, tmp_path / "an out")
    names = ["instances_train_1.json", "instances_train_2.json", "instances_val.json"]
    assert [each.file.name for each in repaired] == names
    option = shlex.split(settings_of(repaired, settings)[0])[1]
    files = parse_overrides([option])["data.train_ann"]
    mended = DataSettings(**{**sources, "train_ann": files}, **write(tmp_path, "val"))
    assert len(open_data(mended, 0).train.image_ids) == 8


def test_a_folder_without_a_validation_part(tmp_path, capsys):
    content = copy.deepcopy(GOOD)
    content["annotations"].append(box(99, 1, bbox=[1, 2, 0, 5]))
    write(tmp_path / "set", "images", GOOD)
    (tmp_path / "set" / "images.json").write_text(json.dumps(content))
    arguments = ["check-data", "--config", "coco_release", "--set", f"data.root={tmp_path / 'set'}"]
    assert cli.main([*arguments, "--fix", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert sum("annotations[4] (id 99): left out" in line for line in said) == 1
    ids = [
        {entry["id"] for entry in json.loads((tmp_path / "out" / f"instances_{split}.json").read_text())["images"]}
        for split in ("train", "val")
    ]
    assert [len(each) for each in ids] == [3, 1]
    assert ids[0] | ids[1] == {1, 2, 3, 4}
    options = said[-1].removeprefix("use them with ").split()
    assert cli.main([*arguments, *options]) == 0


def test_classes_of_the_parts_become_the_same(tmp_path):
    """Files that were converted apart number their classes apart; both are to have the classes of both."""
    train = copy.deepcopy(GOOD) | {"categories": [{"id": 4, "name": "cat"}, {"id": 2, "name": "dog"}]}
    val = copy.deepcopy(GOOD) | {"categories": [{"id": 4, "name": "dog"}, {"id": 1, "name": "bird"}]}
    paths = write(tmp_path, "train", train) | write(tmp_path, "val", val)
    repaired = repair(DataSettings(**paths), 0, tmp_path / "out")
    files = {f"{each.split}_ann": each.file for each in repaired}
    data = open_data(DataSettings(**{**paths, **files}), 0)
    assert data.train.classes_in_file_order == data.val.classes_in_file_order == ("cat", "dog", "bird")
    assert set(data.val.image_classes.values()) == {frozenset({2})}  # dogs are dogs
    assert set(data.train.image_classes.values()) == {frozenset({4})}
    lines = {each.split: [line for line in each.changes if line.startswith("categories")] for each in repaired}
    source = paths["train_ann"]
    whole = f"['cat', 'dog', 'bird'], with the ids that {source} has"
    assert lines["train"] == [f"categories: ['cat', 'dog'] -> {whole}; added: 'bird'"]
    assert lines["val"] == [f"categories: ['dog', 'bird'] -> {whole}; added: 'cat'"]


def test_names_of_one_class_that_are_written_in_two_ways_become_one(tmp_path):
    """Where they are told apart by case or spaces alone, and each file has one of them."""
    train = copy.deepcopy(GOOD) | {"categories": [{"id": 4, "name": "Cat"}, {"id": 2, "name": "dog"}]}
    val = copy.deepcopy(GOOD) | {"categories": [{"id": 4, "name": " cat "}, {"id": 2, "name": "DOG"}]}
    paths = write(tmp_path, "train", train) | write(tmp_path, "val", val)
    repaired = repair(DataSettings(**paths), 0, tmp_path / "out")
    files = {f"{each.split}_ann": each.file for each in repaired}
    data = open_data(DataSettings(**{**paths, **files}), 0)
    assert data.train.classes_in_file_order == data.val.classes_in_file_order == ("Cat", "dog")
    assert [line for line in repaired[1].changes if "categories" in line] == [
        "categories[0] (id 4).name: ' cat ' -> 'Cat'",
        "categories[1] (id 2).name: 'DOG' -> 'dog'",
    ]
    # One file that has both has two classes.
    both = {**GOOD, "categories": [{"id": 4, "name": "cat"}, {"id": 2, "name": "Cat"}]}
    paths = write(tmp_path, "train2", copy.deepcopy(both)) | write(tmp_path, "val2", copy.deepcopy(both))
    paths = {key.replace("2", ""): value for key, value in paths.items()}
    other = repair(DataSettings(**paths), 0, tmp_path / "other")
    assert not [line for each in other for line in each.changes if "categories" in line]


def test_one_box_over_an_edge_is_no_sign_of_resized_images(mended, refused, tmp_path):
    """The sizes are wrong, and 11 of 12 boxes are right in the images as they are: nothing is resized by one."""

    def wrong(content):
        content["annotations"] = [box(number, 1 + number % 4) for number in range(1, 12)]
        content["annotations"].append(box(12, 1, bbox=[20, 2, 30, 8], area=240))  # to 50 of 48
        for image in content["images"]:
            image |= {"width": 96, "height": 64}

    with refused(tmp_path / "val.json", "boxes reach out of the image"):
        mended("val", wrong)


def test_ids_of_images_that_are_texts_become_numbers(tmp_path):
    content = copy.deepcopy(GOOD)
    texts = {entry["id"]: f"img_{entry['id']}" for entry in content["images"]}
    for entry in content["images"]:
        entry["id"] = texts[entry["id"]]
    for entry in content["annotations"]:
        entry["image_id"] = texts[entry["image_id"]]
    paths = write(tmp_path, "train", content) | write(tmp_path, "val")
    with pytest.raises(InputError, match="fix OUT` numbers"):
        open_data(DataSettings(**paths), 0)
    train, val = repair(DataSettings(**paths), 0, tmp_path / "out")
    assert f"images[0].id: {content['images'][0]['id']!r} -> 1" in train.changes[0]
    data = open_data(DataSettings(**{**paths, "train_ann": train.file, "val_ann": val.file}), 0)
    by_name = [dict(zip(half.file_names, half.image_ids, strict=True)) for half in (data.train, data.val)]
    assert sorted(data.train.image_ids) == list(range(1, len(texts) + 1))
    for name, number in by_name[0].items():
        assert data.train.image_classes[number] == data.val.image_classes[by_name[1][name]]
    for number in (content["images"][0]["id"], True):  # two of one id: which boxes are whose? And what is no id.
        content["images"][1]["id"] = number
        paths["train_ann"].write_text(json.dumps(content))
        with pytest.raises(InputError):
            repair(DataSettings(**paths), 0, tmp_path / "other")


def test_images_that_are_links_are_told(tmp_path):
    paths = write(tmp_path, "train") | write(tmp_path, "val")
    (tmp_path / "elsewhere").mkdir()
    for file in list((tmp_path / "train").iterdir()):
        file.rename(tmp_path / "elsewhere" / file.name)
        file.symlink_to(tmp_path / "elsewhere" / file.name)
    with pytest.raises(
        InputError, match=r"links out of .*train, which are not followed.*allowed: the images themselves"
    ):
        open_data(DataSettings(**paths), 0)
