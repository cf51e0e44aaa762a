"""What files write otherwise than COCO's own: read as meant, told in a line, and seen so by training and evaluation."""

import contextlib
import copy
import io
import json
import logging
import os
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hitdet_nni import cli
from hitdet_nni.config.settings import DataSettings, load_settings
from hitdet_nni.data.annotations.coco import read_annotations
from hitdet_nni.data.annotations.coco_document import CocoDocument, cache_folder
from hitdet_nni.data.annotations.normalization import Changes, normalize
from hitdet_nni.data.checks.box_uses import box_uses
from hitdet_nni.data.datasets.detection import build_dataset
from hitdet_nni.data.images.image_folder import ImageFolder
from hitdet_nni.data.loaders import search_loaders
from hitdet_nni.data.sources import open_data
from hitdet_nni.errors import InputError

SIZE = (48, 32)
SPLITS = ("train", "val")


def box(box_id, image_id, **more):
    entry = {"id": box_id, "image_id": image_id, "category_id": 4, "bbox": [1, 2, 10, 8.5], "area": 85, "iscrowd": 0}
    return entry | more


GOOD = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": SIZE[0], "height": SIZE[1]} for i in range(1, 4)],
    "annotations": [*(box(10 * i, i) for i in range(1, 4)), box(99, 1, category_id=9, bbox=[20, 5, 12, 20], area=240)],
    "categories": [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}],
}


def changed(change):
    content = copy.deepcopy(GOOD)
    change(content)
    return content


def write(folder, split, content=GOOD):
    """A split's annotation file and its images; contents may be bytes."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    for number, entry in enumerate(GOOD["images"]):
        pixels = np.random.default_rng(number).integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / split / entry["file_name"])
    ann = folder / f"{split}.json"
    ann.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return {f"{split}_ann": ann, f"{split}_images": folder / split}


@pytest.fixture
def split_of(tmp_path):
    """Write a split, the other one being good, and open both; the checked split."""

    def opened(split, content, **more):
        paths = {}
        for each in SPLITS:
            paths |= write(tmp_path, each, content if each == split else GOOD)
        dataset = getattr(open_data(DataSettings(**paths, **more), 0), split)
        # What mmdet is given means what it says: read again, nothing in it is taken otherwise.
        again = read_annotations(dataset.ann, dataset.images, key=dataset.key)
        assert again.ann == dataset.ann
        assert again.notes == ()
        assert replace(again, source=dataset.source, notes=dataset.notes, left_out=dataset.left_out) == dataset
        return dataset

    return opened


def told(dataset):
    """The notes, without the file that each names."""
    for note in dataset.notes:
        assert note.startswith(f"{dataset.source}: ")
        assert "\n" not in note
    return [note.removeprefix(f"{dataset.source}: ") for note in dataset.notes]


def instances(dataset):
    """Boxes and flags that mmdet trains with, by image id."""
    images = build_dataset(dataset, load_settings("tiny").skeleton, training=True)
    found = {}
    for index in range(len(images)):
        information = images.get_data_info(index)
        found[information["img_id"]] = [(each["bbox"], each["ignore_flag"]) for each in information["instances"]]
        sample = images[index]["data_samples"]
        assert len(sample.ignored_instances) == sum(each["ignore_flag"] for each in information["instances"])
        assert len(sample.gt_instances) == sum(not each["ignore_flag"] for each in information["instances"])
    return found


def average_precision(dataset, leave_out=()):
    """COCO's mAP of detections that are the boxes themselves, those of some ids left out."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(dataset.ann))
        found = [
            {"image_id": each["image_id"], "category_id": each["category_id"], "bbox": each["bbox"], "score": 0.9}
            for each in truth.dataset["annotations"]
            if each["id"] not in leave_out
        ]
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


@pytest.mark.parametrize("split", SPLITS)
def test_a_file_in_which_nothing_is_to_be_taken_otherwise_is_read_itself(split_of, split, tmp_path):
    dataset = split_of(split, changed(lambda c: c["images"][0].update(score=float("nan"))) | {"info": float("inf")})
    assert dataset.ann == dataset.source == tmp_path / f"{split}.json"
    assert dataset.notes == ()
    assert average_precision(dataset) == 1


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
def test_every_encoding_of_unicode(split_of, split, encoding):
    content = changed(lambda c: c["categories"][0].update(name="cat"))
    dataset = split_of(split, json.dumps(content, ensure_ascii=False).encode(encoding))
    (note,) = told(dataset)
    assert note.startswith("its text is UTF-")
    assert dataset.ann.read_bytes().isascii()
    assert len(instances(dataset)) == 3
    assert average_precision(dataset) == 1


def test_letters_in_a_locale_of_another_encoding(split_of, monkeypatch):
    content = json.dumps(
        changed(lambda c: c["categories"][0].update(name="cat")) | {"info": "Käse"}, ensure_ascii=False
    )
    dataset = split_of("val", content.encode())
    assert dataset.ann == dataset.source
    monkeypatch.setattr("locale.getpreferredencoding", lambda _: "ISO-8859-1")
    dataset = split_of("val", content.encode())
    assert told(dataset) == ["its text is UTF-8: read as that"]
    assert dataset.ann.read_bytes().isascii()


def test_text_in_another_encoding_is_refused(split_of, refused, tmp_path):
    content = changed(lambda c: c["categories"][0].update(name="Käse"))
    with refused(tmp_path / "train.json", "is not JSON: the byte at", "UTF-8, UTF-16 or UTF-32"):
        split_of("train", json.dumps(content, ensure_ascii=False).encode("latin-1"))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("mark", [1, True, 1.0])
def test_boxes_marked_ignore_are_crowds(split_of, split, mark):
    def change(content):
        content["annotations"][0]["ignore"] = mark
        content["annotations"][1] |= {"ignore": mark, "iscrowd": 1}
        content["annotations"][2]["ignore"] = 0

    dataset = split_of(split, changed(change))
    assert told(dataset) == ["2 boxes are marked ignore: taken as crowds, in training and in evaluation"]
    assert box_uses(dataset, (64, 64)).crowds == 2
    assert instances(dataset) == {
        1: [([1, 2, 11, 10.5], 1), ([20, 5, 32, 25], 0)],
        2: [([1, 2, 11, 10.5], 1)],
        3: [([1, 2, 11, 10.5], 0)],
    }
    # A detector that does not find them has missed nothing.
    assert average_precision(dataset, leave_out=(10, 20)) == pytest.approx(1)


@pytest.mark.parametrize("split", SPLITS)
def test_missing_area_and_iscrowd(split_of, split):
    def change(content):
        for entry in content["annotations"][:3]:
            del entry["area"]
        del content["annotations"][0]["iscrowd"]
        content["annotations"][1]["iscrowd"] = None

    dataset = split_of(split, changed(change))
    assert told(dataset) == ["3 boxes without area: width times height is taken", "2 boxes without iscrowd: 0 is taken"]
    assert [(each["area"], each["iscrowd"]) for each in json.loads(dataset.ann.read_text())["annotations"]] == [
        *[(85, 0)] * 3,
        (240, 0),
    ]
    assert average_precision(dataset) == 1


@pytest.mark.parametrize("split", SPLITS)
def test_whole_numbers_with_a_decimal_point_and_flags(split_of, split):
    def change(content):
        content["images"][0] |= {"id": 1.0, "width": 48.0}
        content["categories"][1]["id"] = 9.0
        content["annotations"][0] |= {"id": 10.0, "image_id": 1.0, "category_id": 4.0, "iscrowd": False}
        content["annotations"][1]["iscrowd"] = 0.0
        content["annotations"][2]["iscrowd"] = True

    dataset = split_of(split, changed(change))
    first = "the first of them"
    assert told(dataset) == [
        f"6 whole numbers are written with a decimal point, {first} images[0].id 1.0: taken as integers",
        f"3 values of iscrowd are no integers, {first} annotations[0].iscrowd False: taken as 0 or 1",
    ]
    written = json.loads(dataset.ann.read_text())
    assert written["images"] == GOOD["images"]
    assert [each["iscrowd"] for each in written["annotations"]] == [0, 0, 1, 0]
    assert all(type(each["iscrowd"]) is int for each in written["annotations"])
    assert dataset.image_ids == (1, 2, 3)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("number", [0, -7, 10**30])
def test_ids_that_the_evaluation_cannot_keep_are_renumbered(split_of, split, number, tmp_path):
    content = changed(lambda c: c["annotations"][0].update(id=number))
    dataset = split_of(split, content)
    (note,) = told(dataset)
    assert "renumbered from 1" in note
    assert str(number) in note
    assert [each["id"] for each in json.loads(dataset.ann.read_text())["annotations"]] == [1, 2, 3, 4]
    assert average_precision(dataset) == 1
    assert json.loads(dataset.source.read_text()) == content
    assert dataset.ann.is_relative_to(cache_folder())


def test_an_id_that_comes_twice_is_a_defect_however_it_is_written(split_of, refused):
    for path, value in ((("annotations", 1), 10.0), (("images", 1), 1.0), (("categories", 1), 4.0)):
        with refused(f"{path[0]}[1].id"):
            split_of("train", changed(lambda c, path=path, value=value: c[path[0]][path[1]].update(id=value)))
    # Renumbering hides none.
    content = changed(lambda c: [entry.update(id=0) for entry in c["annotations"][:2]])
    with refused("annotations[1].id", "is 0"):
        split_of("train", content)


ROBOFLOW = [
    {"id": 0, "name": "cards", "supercategory": "none"},
    {"id": 4, "name": "cat", "supercategory": "cards"},
    {"id": 9, "name": "dog", "supercategory": "cards"},
]


def test_the_root_category_of_roboflow_is_left_out(split_of, tmp_path, refused):
    content = {**GOOD, "categories": ROBOFLOW}
    paths = write(tmp_path, "train", content) | write(tmp_path, "val", content)
    data = open_data(DataSettings(**paths), 0)
    for dataset in (data.train, data.val):
        assert told(dataset) == ["the category 'cards' (id 0) has no boxes and only groups the others: left out"]
    assert data.classes == ("cat", "dog")
    assert len(instances(data.train)) == 3
    assert average_precision(data.val) == 1
    # A project of one class that is called as the project.
    single = {
        **GOOD,
        "categories": [{**ROBOFLOW[0], "name": "cat"}, {**ROBOFLOW[1], "supercategory": "cat"}],
        "annotations": GOOD["annotations"][:3],
    }
    paths = write(tmp_path, "train", single) | write(tmp_path, "val", single)
    assert open_data(DataSettings(**paths), 0).classes == ("cat",)
    # With boxes it is a class, and others need not belong to it.
    for change in (
        lambda c: c["annotations"][0].update(category_id=0),
        lambda c: c["categories"].__setitem__(2, {"id": 9, "name": "dog", "supercategory": "animal"}),
    ):
        whole = copy.deepcopy(content)
        change(whole)
        paths = write(tmp_path, "train", whole) | write(tmp_path, "val", whole)
        assert open_data(DataSettings(**paths), 0).classes == ("cards", "cat", "dog")
    whole = {**content, "annotations": [*content["annotations"], box(100, 2, category_id=0)]}
    paths = write(tmp_path, "train", whole) | write(tmp_path, "val", content)
    with refused("'cards' (id 0) has boxes in", "train.json; in", "val.json it has none"):
        open_data(DataSettings(**paths), 0)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("written", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_another_unicode_form(split_of, split, written, stored, tmp_path):
    name = "Bäume/Käse é.png"
    on_disk = tmp_path / split / unicodedata.normalize(stored, name)
    on_disk.parent.mkdir(parents=True)
    Image.new("RGB", SIZE, "teal").save(on_disk)
    content = changed(lambda c: c["images"][0].update(file_name=unicodedata.normalize(written, name)))
    dataset = split_of(split, content)
    assert dataset.file_names[0] == unicodedata.normalize(stored, name)
    (note,) = told(dataset)
    shown = unicodedata.normalize(written, name)
    assert note == f"1 file name has another case or Unicode form than on disk, {shown!r}: taken as on disk"
    assert "Bäume" in unicodedata.normalize("NFC", note)
    assert len(instances(dataset)) == 3


def test_changes_of_names_are_shown_as_they_are(tmp_path):
    """Characters that cannot be printed are escapes, as everywhere."""
    entries = []
    for name in ("größe ñ.png", "größe \x07.png"):
        (tmp_path / unicodedata.normalize("NFD", name)).touch()
        entries.append({"id": 7, "file_name": name})
    changes = Changes(listed=True)
    normalize(CocoDocument(entries, [], []), ImageFolder(tmp_path), changes)
    composed = [unicodedata.normalize("NFC", line) for line in changes.lines]
    assert composed == [
        "images[0] (id 7).file_name: 'größe ñ.png' -> 'größe ñ.png' (its form on disk)",
        "images[1] (id 7).file_name: 'größe \\x07.png' -> 'größe \\x07.png' (its form on disk)",
    ]


@pytest.mark.parametrize("split", SPLITS)
def test_a_name_that_cannot_be_printed(split_of, split, tmp_path, capsys):
    """As `os.listdir` gives a Latin-1 name, and `json.dump` writes it."""
    name = "caf\udce9.png"
    (tmp_path / split).mkdir()
    Image.new("RGB", SIZE, "teal").save(os.fsencode(tmp_path / split / name).decode("utf-8", "surrogateescape"))
    content = changed(lambda c: c["images"][0].update(file_name=name))
    assert len(instances(split_of(split, content))) == 3
    arguments = ["check-data", "--config", "coco_release"]
    for each in SPLITS:
        for key, path in write(tmp_path, each, content if each == split else GOOD).items():
            arguments += ["--set", f"data.{key}={path}"]
    (tmp_path / split / name).write_bytes(b"no image")
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert "caf\\udce9.png" in said.err
    assert all("\udce9" not in text for text in said)
    assert "\udce9" not in str(InputError("is bad", source=tmp_path / name))


def test_the_stages_of_a_search_see_what_was_checked(tmp_path):
    content = changed(lambda c: [entry.update(ignore=1) for entry in c["annotations"][1:3]])
    for entry in content["annotations"]:
        del entry["area"]
    settings = load_settings("tiny")
    sources = write(tmp_path, "train", content) | write(tmp_path, "val", content)
    named = DataSettings(**sources, batch_size=1, workers=0, flip=False)
    data = open_data(named, 0)
    *training, validation = search_loaders(data, named, settings.skeleton, 0)
    found = {
        sample.img_id: (len(sample.gt_instances), len(sample.ignored_instances))
        for loader in (*training, validation)
        for batch in loader
        for sample in batch["data_samples"]
    }
    assert found == {1: (2, 0), 2: (0, 1), 3: (0, 1)}


def test_windows_paths_are_refused_with_the_way_out(split_of, refused):
    for name in ("images\\1.png", "..\\..\\data\\1.png", "C:\\data\\1.png"):
        content = changed(lambda c, name=name: c["images"][0].update(file_name=name))
        with refused("images[0].file_name", "looks like a Windows path", "check-data --fix"):
            split_of("val", content)


def test_changes_are_logged_and_the_file_is_written_once(split_of, caplog, tmp_path):
    content = changed(lambda c: c["annotations"][0].pop("area"))
    with caplog.at_level(logging.INFO):
        dataset = split_of("train", content)
    assert caplog.text.count("1 box without area") == 1
    stamp = dataset.ann.stat().st_mtime_ns
    assert split_of("train", content).ann.stat().st_mtime_ns == stamp
    other = changed(lambda c: c["annotations"][1].pop("area"))
    assert split_of("train", other).ann != dataset.ann


def test_several_files_that_share_ids(tmp_path, refused):
    first, second = (write(tmp_path / part, "train") for part in ("a", "b"))
    del second["train_ann"]
    twice = changed(lambda c: c["annotations"][0].pop("area"))
    second = write(tmp_path / "b", "train", twice)
    sources = {key: (first[key], second[key]) for key in first}
    settings = DataSettings(**sources, **write(tmp_path, "val"))
    train = open_data(settings, 0).train
    assert train.image_ids == (1, 2, 3, 4, 5, 6)
    assert train.file_names[2:4] == ("a/train/3.png", "b/train/1.png")
    assert [note.partition(": ")[2] for note in train.notes] == [
        "1 box without area: width times height is taken",
        "3 ids of images are in several files: all are renumbered from 1",
        "4 ids of annotations are in several files: all are renumbered from 1",
    ]
    assert train.notes == open_data(settings, 0).train.notes
    assert len(instances(train)) == 6
    assert average_precision(train) == 1
    boxes = json.loads(train.ann.read_text())["annotations"]
    assert [each["image_id"] for each in boxes] == [1, 2, 3, 1, 4, 5, 6, 4]
    ids = tmp_path / "ids.txt"
    ids.write_text("2")
    for key in ("train_ids", "train_without"):
        with refused(ids, f"data.{key}", "id 2 is that of several images"):
            open_data(settings.model_copy(update={key: ids}), 0)


def test_after_a_refusal_nothing_untrue_is_said(tmp_path, capsys):
    content = changed(lambda c: [entry.update(category_id="x") for entry in c["annotations"]])
    arguments = ["check-data", "--config", "coco_release", "--json"]
    for key, path in (write(tmp_path, "train", content) | write(tmp_path, "val")).items():
        arguments += ["--set", f"data.{key}={path}"]
    assert cli.main(arguments) == 2
    found = json.loads(capsys.readouterr().out)["train"]
    assert len(found["defects"]) == 4
    assert all("category_id" in line for line in found["defects"])
    assert found["warnings"] == []
