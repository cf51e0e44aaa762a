"""Digits on photographs: reproducible, disjoint, exactly boxed, and written whole or not at all."""

import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

from hitdet_nni.data import digits
from hitdet_nni.data.digits import (
    CLASSES,
    DIGITS,
    DIGITS_DENSE,
    EMBEDDED_SETS,
    INK_THRESHOLD,
    digit_samples,
    draw_scene,
    make_digits,
)
from hitdet_nni.errors import InputError, WriteError

SMALL = {"train": 4, "val": 2, "size": 64, "seed": 3}


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("digits") / "set"
    make_digits(out, train=60, val=20, size=96, seed=0)
    return out


def notes_of(made, split):
    return json.loads((made / "annotations" / f"instances_{split}.json").read_text())


def test_layout(made):
    assert sorted(path.name for path in made.iterdir()) == ["annotations", "train", "val"]
    for split, count in (("train", 60), ("val", 20)):
        notes = notes_of(made, split)
        assert {image["file_name"] for image in notes["images"]} == {path.name for path in (made / split).iterdir()}
        assert len(notes["images"]) == count
        assert [(entry["id"], entry["name"]) for entry in notes["categories"]] == [
            (label + 1, name) for label, name in enumerate(CLASSES)
        ]
        assert {entry["category_id"] for entry in notes["annotations"]} == set(range(1, 11))
        for image in notes["images"]:
            with Image.open(made / split / image["file_name"]) as opened:
                assert (opened.mode, opened.size) == ("RGB", (image["width"], image["height"])) == ("RGB", (96, 96))


@pytest.mark.parametrize("name", EMBEDDED_SETS)
def test_same_arguments_give_same_bytes_in_another_process(tmp_path, name):
    make_digits(tmp_path / "here", **SMALL, kind=EMBEDDED_SETS[name])
    code = (
        "import sys; from pathlib import Path; from hitdet_nni.data.digits import EMBEDDED_SETS, make_digits;"
        f"make_digits(Path(sys.argv[1]), **{SMALL}, kind=EMBEDDED_SETS[{name!r}])"
    )
    env = os.environ | {"PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "2"}
    root = Path(digits.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], check=True, env=env, cwd=root)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def test_seed_changes_every_image(tmp_path):
    make_digits(tmp_path / "a", **SMALL)
    make_digits(tmp_path / "b", **SMALL | {"seed": 4})
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert a.keys() == b.keys()
    assert all(a[name] != b[name] for name in a)


def test_longer_set_starts_with_shorter_one(tmp_path):
    make_digits(tmp_path / "short", **SMALL)
    make_digits(tmp_path / "long", **SMALL | {"train": 6})
    short, longer = contents(tmp_path / "short" / "train"), contents(tmp_path / "long" / "train")
    assert len(longer) == 6
    assert short.items() <= longer.items()


def test_splits_share_no_digit(made):
    used = {split: {entry["sample"] for entry in notes_of(made, split)["annotations"]} for split in ("train", "val")}
    for split, samples in used.items():
        assert samples <= set(digit_samples(split, 0))
    train, val = digit_samples("train", 0), digit_samples("val", 0)
    assert sorted(train + val) == list(range(1797))
    assert digit_samples("val", 1) != val


def test_labels_are_those_of_the_samples(made):
    target = load_digits().target
    for entry in notes_of(made, "train")["annotations"]:
        assert entry["category_id"] == target[entry["sample"]] + 1


def test_splits_share_no_photograph_pixel(monkeypatch):
    # Photographs whose pixels tell their column: left of 320 for training, right for validation.
    ink, labels, _ = digits._sources()
    columns = np.where(np.arange(640) < 320, 10, 240).astype(np.uint8)
    marked = np.broadcast_to(columns[None, :, None], (427, 640, 3)).copy()
    monkeypatch.setattr(digits, "_sources", lambda: (ink, labels, (marked,)))
    for index in range(20):
        assert draw_scene("train", index, size=48, seed=0).background.max() < 100
        assert draw_scene("val", index, size=48, seed=0).background.min() > 150


@pytest.mark.parametrize("size", [32, 96, 160])
def test_boxes_are_the_extent_of_changed_pixels(size):
    for index in range(25):
        scene = draw_scene("train", index, size=size, seed=1)
        changed = (scene.render() != scene.background).any(axis=2)
        boxed = np.zeros_like(changed)
        for digit in scene.digits:
            left, top, width, height = digit.box
            boxed[top : top + height, left : left + width] = True
            rows, columns = np.nonzero(changed[top : top + height, left : left + width])
            assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, height - 1, 0, width - 1)
        assert not (changed & ~boxed).any()


def test_annotated_boxes_are_those_of_the_scene(made):
    notes = notes_of(made, "val")
    for index in range(5):
        scene = draw_scene("val", index, size=96, seed=0)
        found = [(e["sample"], tuple(e["bbox"])) for e in notes["annotations"] if e["image_id"] == index + 1]
        assert found == [(digit.sample, digit.box) for digit in scene.digits]
        with Image.open(made / "val" / f"{index:06d}.png") as image:
            assert (np.asarray(image) == scene.render()).all()


def test_number_size_overlap_and_contrast():
    sides = []
    for index in range(100):
        scene = draw_scene("train", index, size=160, seed=2)
        assert DIGITS.digits[0] <= len(scene.digits) <= DIGITS.digits[1]
        covered = np.zeros((160, 160), int)
        for digit in scene.digits:
            left, top, width, height = digit.box
            assert min(left, top) >= 0
            assert max(left + width, top + height) <= 160
            covered[top : top + height, left : left + width] += 1
            sides.append(max(width, height) / 160)
            under = scene.background[top : top + height, left : left + width].mean(axis=(0, 1))
            assert abs((np.array(digit.colour) - under) @ [0.299, 0.587, 0.114]) > 60
        assert covered.max() == 1
    assert 0.15 < min(sides) < 0.22
    assert 0.45 < max(sides) < 0.56


def test_dense_digits_are_many_small_and_apart_by_most_of_their_boxes():
    sides, covered = [], []
    for index in range(40):
        scene = draw_scene("train", index, size=96, seed=2, kind=DIGITS_DENSE)
        assert DIGITS_DENSE.digits[0] <= len(scene.digits) <= DIGITS_DENSE.digits[1]
        boxes = [digit.box for digit in scene.digits]
        inside = np.zeros((len(boxes), 96, 96), bool)
        for mask, (left, top, width, height) in zip(inside, boxes, strict=True):
            mask[top : top + height, left : left + width] = True
            assert mask.sum() == width * height  # no part is outside the image
            sides.append(max(width, height) / 96)
        for one, other in itertools.combinations(inside, 2):
            covered.append((one & other).sum() / min(one.sum(), other.sum()))
    assert max(covered) <= DIGITS_DENSE.overlap
    assert max(covered) > 0.25  # some do cover others
    assert min(sides) < 0.1
    assert 0.18 < max(sides) < 0.3


def test_dense_digits_are_turned_to_both_sides():
    upright = digits._ink(3, 40, 0.0)  # a digit 3
    turned = {angle: digits._ink(3, 40, angle) for angle in (-30.0, 30.0)}
    for angle, opacity in turned.items():
        # SciPy's spline rotation, an independent computation, inks nearly the same pixels.
        expected = rotate(np.pad(upright, 12), angle, reshape=True, order=1)
        expected = expected[digits._extent(expected > INK_THRESHOLD)]
        height, width = min(expected.shape[0], opacity.shape[0]), min(expected.shape[1], opacity.shape[1])
        assert max(abs(np.subtract(expected.shape, opacity.shape))) <= 2
        assert np.abs(expected[:height, :width] - opacity[:height, :width]).mean() < 0.1
    assert np.abs(turned[-30.0][:30, :30] - turned[30.0][:30, :30]).mean() > 0.2


def test_a_set_has_the_name_of_its_character(tmp_path):
    for name, kind in EMBEDDED_SETS.items():
        make_digits(tmp_path / name, **SMALL, kind=kind)
        assert notes_of(tmp_path / name, "val")["info"]["set"] == name
    plain, dense = (contents(tmp_path / name) for name in EMBEDDED_SETS)
    assert plain.keys() == dense.keys()
    assert all(plain[name] != dense[name] for name in plain)


def test_ground_truth_as_detections_gives_average_precision_one(made):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(made / "annotations" / "instances_val.json"))
        found = truth.loadRes([dict(entry, score=1.0) for entry in truth.dataset["annotations"]])
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_existing_folder_is_refused(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match="already exists"):
        make_digits(out, **SMALL)
    assert list(tmp_path.iterdir()) == [out]


def test_force_replaces_a_set_of_digits_and_an_empty_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    make_digits(out, **SMALL, force=True)
    first = contents(out)
    (out / "train" / "stray.png").write_bytes(b"")
    make_digits(out, **SMALL, force=True)
    assert contents(out) == first
    assert list(tmp_path.iterdir()) == [out]


def test_force_spares_everything_else(tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    for path in (folder / "thesis.tex", file):
        path.write_text("precious")
    for out in (folder, file):
        with pytest.raises(InputError, match="is not a data set of digits"):
            make_digits(out, **SMALL, force=True)
    assert (folder / "thesis.tex").read_text() == file.read_text() == "precious"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_interruption_leaves_nothing(tmp_path, monkeypatch, error):
    draw = digits._draw_scene

    def fail_late(split, index, *rest):
        if (split, index) == ("val", 1):
            raise error
        return draw(split, index, *rest)

    monkeypatch.setattr(digits, "_draw_scene", fail_late)
    with pytest.raises((KeyboardInterrupt, WriteError)):
        make_digits(tmp_path / "parent" / "out", **SMALL)
    assert contents(tmp_path) == {}
    assert list((tmp_path / "parent").iterdir()) == []


def test_interruption_with_force_keeps_the_old_set(tmp_path, monkeypatch):
    out = tmp_path / "out"
    make_digits(out, **SMALL)
    before = contents(out)
    rename = Path.rename

    def fail_at_last(self, target):
        if self.name == "built":
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_at_last)
    with pytest.raises(WriteError, match="disk full"):
        make_digits(out, **SMALL | {"seed": 9}, force=True)
    assert contents(out) == before
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(("key", "value"), [("train", 0), ("val", 0), ("size", 31), ("seed", -1)])
def test_bad_argument_is_named(tmp_path, key, value):
    with pytest.raises(InputError) as caught:
        make_digits(tmp_path / "out", **SMALL | {key: value})
    assert key in str(caught.value)
    assert str(value) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_dense_digits_need_more_pixels(tmp_path):
    with pytest.raises(InputError, match="64 or more"):
        make_digits(tmp_path / "out", **SMALL | {"size": 63}, kind=DIGITS_DENSE)


def test_unusable_parent_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write here"):
        make_digits(tmp_path / "file" / "out", **SMALL)
