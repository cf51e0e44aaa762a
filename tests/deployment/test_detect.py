"""The command that finds objects in images."""

import json
import shutil
from pathlib import Path, PurePath

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from hitdet_nni import cli
from hitdet_nni.config.architecture import load_architecture, save_architecture
from hitdet_nni.config.settings import load_settings
from hitdet_nni.deployment.coco_numbers import CocoNumbers
from hitdet_nni.deployment.formats import export_model
from hitdet_nni.deployment.image_list import list_images, unread_images
from hitdet_nni.errors import InputError
from hitdet_nni.io import read_json
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.training.precisions import box_precisions
from hitdet_nni.training.retrain import evaluate


@pytest.fixture(scope="module")
def retrained(made, tmp_path_factory):
    """A run directory with an architecture and weights."""
    case = made["faster_rcnn"]
    run = RunDirectory(tmp_path_factory.mktemp("run") / "mine")
    run.open(load_settings("tiny"))
    save_architecture(case.architecture, run.architecture)
    run.retrain.mkdir()
    shutil.copy(case.folder / "weights.pth", run.retrain)
    return run


@pytest.fixture
def photographs(tmp_path, tiny_data):
    """Ten images, one of them lying on its side with an EXIF orientation, and a broken one in the middle."""
    folder = tmp_path / "photos"
    folder.mkdir()
    names = tiny_data.train.file_names[:10]
    for number, name in enumerate(names):
        if number == 3:
            exif = Image.Exif()
            exif[0x0112] = 6
            upright = Image.open(tiny_data.train.images / name).convert("RGB")
            upright.transpose(Image.Transpose.ROTATE_90).save(folder / name, exif=exif, quality=100)
        else:
            shutil.copy(tiny_data.train.images / name, folder)
    return folder


def detect(*words):
    return cli.main(["detect", *map(str, words)])


def test_ten_photographs_one_turned_and_one_broken(retrained, photographs, tmp_path, capsys):
    (photographs / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    (photographs / "notes.txt").write_text("no image")
    out = tmp_path / "found"
    assert detect(retrained.path, photographs, "--out", out, "--threshold", 0.4) == 2
    said = capsys.readouterr()
    broken, end = said.err.splitlines()
    assert "broken.jpg" in broken
    assert "cut short" in broken
    assert end == "hitdet-nni: 1 of 11 images could not be read"
    assert len(said.out.splitlines()) == 11
    assert said.out.splitlines()[-1] == str(out / "detections.json")
    results = read_json(out / "detections.json")
    drawings = sorted(path.name for path in out.iterdir() if path.suffix != ".json")
    assert drawings == sorted(
        path.name for path in photographs.iterdir() if path.name not in ("broken.jpg", "notes.txt")
    )
    assert results
    assert min(result["score"] for result in results) >= 0.4
    numbered = sorted(path.name for path in photographs.iterdir() if path.suffix != ".txt")
    assert all(numbered[result["image_id"] - 1] == result["file_name"] for result in results)
    assert all("abcdefghij"[result["category_id"] - 1] == result["category"] for result in results)
    for name in drawings:
        drawn, image = cv2.imread(str(out / name)), cv2.imread(str(photographs / name))
        assert drawn.shape == image.shape
        seen = sum(result["file_name"] == name for result in results)
        assert bool(np.abs(drawn.astype(int) - image).max() > 60) == bool(seen)
    assert detect(retrained.path, photographs, "--out", out) == 2
    assert "detections.json" in capsys.readouterr().err


def test_nothing_is_written_where_nothing_could_be_read(retrained, photographs, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    out = tmp_path / "found"
    for words in ([], ["--json"]):
        assert detect(retrained.path, tmp_path / "broken.jpg", "--out", out, *words) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.splitlines()[-1] == "hitdet-nni: 1 of 1 images could not be read; nothing is written"
        assert not out.exists()
    first = sorted(photographs.iterdir())[0]
    assert detect(retrained.path, first, "--out", out) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert detect(retrained.path, tmp_path / "broken.jpg", "--out", out, "--force") == 2
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_the_results_are_what_evaluate_counts(retrained, tiny_data, tmp_path, capsys):
    ann = tmp_path / "named.json"
    document = read_json(tiny_data.val.ann)
    for category in document["categories"]:  # by the architecture's classes
        category["name"] = "abcdefghij"[tiny_data.val.file_category_ids.index(category["id"])]
    ann.write_text(json.dumps(document))
    options = ["--threshold", 0, "--no-draw", "--ann", ann]
    assert detect(retrained.path, tiny_data.val.images, "--out", tmp_path / "a", *options) == 0
    results = read_json(tmp_path / "a" / "detections.json")
    assert {result["image_id"] for result in results} == set(tiny_data.val.image_ids)
    ours = box_precisions(COCO(str(tiny_data.val.ann)), results, tiny_data.val.file_category_ids)
    weights, settings = retrained.retrain / "weights.pth", load_settings(retrained.config)
    architecture = load_architecture(retrained.architecture)
    provenance = architecture.provenance.model_copy(update={"classes": tiny_data.classes})
    theirs = evaluate(architecture.model_copy(update={"provenance": provenance}), weights, settings, tiny_data)
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["detections.json"]


def test_a_file_an_architecture_and_a_run_say_the_same(made, retrained, photographs, tmp_path, capsys):
    case = made["faster_rcnn"]
    export_model(case.architecture, case.folder / "weights.pth", tmp_path / "mine.onnx", "onnx")
    architecture = [case.folder / "found.json", "--weights", case.folder / "weights.pth"]
    found = []
    for number, source in enumerate(([retrained.path, "--batch", 4], architecture, [tmp_path / "mine.onnx"])):
        options = ["--out", tmp_path / str(number), "--no-draw", "--json"]
        assert detect(source[0], photographs, *source[1:], *options) == 0
        found.append(json.loads(capsys.readouterr().out))
        assert found[-1] == read_json(tmp_path / str(number) / "detections.json")
    assert len(found[0]) > 10
    for other in found[1:]:
        assert len(other) == len(found[0])
        for one, same in zip(found[0], other, strict=True):
            assert one["bbox"] == pytest.approx(same["bbox"], abs=0.1)
            assert (one["file_name"], one["category"]) == (same["file_name"], same["category"])


@pytest.mark.slow
def test_a_file_of_openvino_says_the_same(made, photographs, tmp_path, capsys):
    case, found = made["faster_rcnn"], []
    for name, form in (("mine.onnx", "onnx"), ("mine.xml", "openvino")):
        export_model(case.architecture, case.folder / "weights.pth", tmp_path / name, form)
        assert detect(tmp_path / name, photographs, "--out", tmp_path / form, "--no-draw", "--json") == 0
        found.append(json.loads(capsys.readouterr().out))
    assert len(found[0]) == len(found[1]) > 10
    for one, same in zip(*found, strict=True):
        assert one["bbox"] == pytest.approx(same["bbox"], abs=0.1)
        assert (one["file_name"], one["category"]) == (same["file_name"], same["category"])


def test_files_folders_and_patterns(tmp_path, monkeypatch):
    for name in ("b.jpg", "a.PNG", "deep/c.webp", ".hidden/d.jpg", "deep/e.txt", "other/a.PNG", "frame.data"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
    monkeypatch.chdir(tmp_path)

    def names(*words):
        return [str(one.name) for one in list_images(words)]

    assert names(".") == ["a.PNG", "b.jpg", "deep/c.webp", "other/a.PNG"]
    assert names("b.jpg", ".") == ["b.jpg", "a.PNG", "deep/c.webp", "other/a.PNG"]
    assert names("*.jpg", tmp_path / "b.jpg") == ["b.jpg"]
    two = list_images([str(tmp_path / "**" / "*.PNG")])  # of one name
    assert [str(one.name) for one in two] == [str(tmp_path / "a.PNG"), str(tmp_path / "other" / "a.PNG")]
    assert [str(one.drawing) for one in two] == ["a.PNG", "a-2.PNG"]
    assert names("deep", "other/a.PNG", "a.PNG") == ["c.webp", "other/a.PNG", "a.PNG"]
    assert names("frame.data") == ["frame.data"]  # named by its own name it is tried
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "photos").symlink_to(tmp_path / "deep")
    (tmp_path / "linked" / "photos" / "back").symlink_to(tmp_path / "linked")
    assert names("linked") == ["photos/c.webp"]
    (tmp_path / "deep" / "back").unlink()
    for word, part in (
        ("none.jpg", "no such file"),
        ("*.gif", "no such file"),
        ("deep/none", "no such"),
        (".hidden/x", "no"),
    ):
        with pytest.raises(InputError, match=part):
            list_images([word])
    for name in ("phone/a.heic", "phone/b.HEIC", "phone/x.jpg", "raw/c.CR2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert names("phone") == ["x.jpg"]
    assert [str(file) for file in unread_images(["phone", "raw/c.CR2", "phone/."])] == ["phone/a.heic", "phone/b.HEIC"]
    (tmp_path / "set" / "other").mkdir(parents=True)
    (tmp_path / "set" / "other" / "a.PNG").touch()
    clash = names("set", "other/a.PNG", "a.PNG")  # a path that another one has below its folder
    assert len(set(clash)) == 3
    assert [Path(name).samefile(file) for name, file in zip(clash[:2], ["set/other/a.PNG", "other/a.PNG"], strict=True)]
    with pytest.raises(InputError, match="raw: holds 1 image of formats that are not read, and no other; allowed: im"):
        list_images(["raw"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds no image; allowed: files that end in .*\.jpg"):
        list_images(["empty"])


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--threshold", "2"], ["--threshold", "0 to 1"]),
        (["--batch", "0"], ["--batch", "1 or more"]),
        (["--threads", "0"], ["--threads"]),
        (["--device", "cuda"], ["GPU", "cpu"]),
        (["--weights", "none.pth"], ["none.pth"]),
        (["--ann", "none.json"], ["none.json"]),
        (["--ann", "other.json"], ["other.json", "no category 'a'"]),
        (["--ann", "few.json"], ["few.json", "has no image"]),
        (["--ann", "bad.json"], ["bad.json", "categories[0]"]),
        (["none.jpg"], ["none.jpg"]),
    ],
)
def test_bad_input_is_one_line(retrained, photographs, tmp_path, monkeypatch, capsys, words, names):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    categories = [{"id": number, "name": name} for number, name in enumerate("abcdefghij")]
    images = [{"id": 1, "file_name": "x.jpg"}]
    other = {"images": images, "categories": [{"id": 1, "name": "z"}]}
    few = {"images": images, "categories": categories}
    bad = {"images": images, "categories": [{"id": "1", "name": "a"}]}
    for name, content in (("other", other), ("few", few), ("bad", bad)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert detect(retrained.path, photographs, *words, "--out", tmp_path / "found") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert all(name in line for name in names), line
    assert not (tmp_path / "found").exists()


@pytest.mark.parametrize(
    ("source", "words", "part"),
    [
        ("mine.onnx", [], "no such file"),
        ("folder", [], "not a run directory"),
        ("nowhere/run", [], "nowhere/run: no such run directory or file"),
        ("found.json", [], "--weights"),
        ("text.onnx", [], "cannot be opened"),
        ("text.onnx", ["--weights", "w.pth"], "--weights"),
        ("text.onnx", ["--device", "cuda"], "--device"),
    ],
)
def test_what_is_no_detector_is_refused(photographs, tmp_path, monkeypatch, capsys, source, words, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("text.onnx", "found.json"):
        (tmp_path / name).write_text("nothing")
    assert detect(source, photographs, *words, "--out", "found") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert part in line
    assert not (tmp_path / "found").exists()


def test_no_image_is_drawn_over(retrained, photographs, tmp_path, capsys):
    before = {path: path.read_bytes() for path in photographs.iterdir()}
    name = sorted(path.name for path in photographs.iterdir())[0]
    out = tmp_path / "found"
    for words in ([photographs, "--out", photographs], [photographs / name, "--out", photographs, "--force"]):
        assert detect(retrained.path, *words) == 2
        assert "overwritten by its drawing" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in photographs.iterdir()} == before
    assert detect(retrained.path, photographs / name, "--out", out) == 0
    (out / "detections.json").unlink()
    assert detect(retrained.path, photographs / name, "--out", out) == 2  # the drawing is there
    assert name in capsys.readouterr().err
    shutil.copy(photographs / name, photographs / "a.bmp")
    shutil.copy(photographs / name, photographs / "a.bmp.png")
    assert detect(retrained.path, photographs / "a.bmp", photographs / "a.bmp.png", "--out", tmp_path / "two") == 2
    assert "two drawings" in capsys.readouterr().err
    assert not (tmp_path / "two").exists()


def test_images_that_the_annotations_do_not_have_are_left_out_with_a_line(retrained, photographs, tmp_path, capsys):
    names = sorted(path.name for path in photographs.iterdir())
    categories = [{"id": number, "name": name} for number, name in enumerate("abcdefghij")]
    images = [{"id": number, "file_name": name} for number, name in enumerate(names[2:], 40)]
    (tmp_path / "some.json").write_text(json.dumps({"images": images, "categories": categories}))
    out = tmp_path / "found"
    options = ["--ann", tmp_path / "some.json", "--threshold", 0, "--out", out]
    assert detect(retrained.path, photographs, *options) == 0
    said = capsys.readouterr()
    [line] = said.err.splitlines()
    assert f"2 of {len(names)} images, {photographs / names[0]}, ..." in line
    assert [line.split(":")[0] for line in said.out.splitlines()[:-1]] == names[2:]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names[2:], "detections.json"])
    numbers = {one["file_name"]: one["id"] for one in images}
    assert all(one["image_id"] == numbers[one["file_name"]] for one in read_json(out / "detections.json"))


def test_two_images_have_not_one_number(tmp_path):
    ann = tmp_path / "all.json"
    images = [{"id": 4, "file_name": "a/x.jpg"}, {"id": 7, "file_name": "b/x.jpg"}, {"id": 9, "file_name": "y.jpg"}]
    ann.write_text(json.dumps({"images": images, "categories": [{"id": 3, "name": "ant"}]}))
    numbers = CocoNumbers.of_file(ann, ("ant",))
    assert numbers.of_images([PurePath("b/x.jpg"), PurePath("y.jpg"), PurePath("a/x.jpg")]) == [7, 9, 4]
    assert numbers.of_images([PurePath("z.jpg"), PurePath("y.jpg")]) == [None, 9]
    with pytest.raises(InputError, match=r"several images that are called x\.jpg"):
        numbers.of_images([PurePath("x.jpg")])
    with pytest.raises(InputError, match=r"no image z\.jpg, nor another"):
        numbers.of_images([PurePath("z.jpg")])
    with pytest.raises(InputError, match=r"one image for p/y\.jpg and q/y\.jpg"):
        numbers.of_images([PurePath("p/y.jpg"), PurePath("q/y.jpg")])


def test_numbers_and_letters_that_tools_write_otherwise_are_those_that_are_meant(tmp_path):
    """As an evaluation takes them."""
    ann = tmp_path / "all.json"
    images = [{"id": 4.0, "file_name": "cafe\u0301.jpg"}, {"id": 7, "file_name": "ma\u00df.jpg"}]
    ann.write_text(json.dumps({"images": images, "categories": [{"id": 3.0, "name": "ant"}]}))
    numbers = CocoNumbers.of_file(ann, ("ant",))
    assert numbers.categories == (3,)
    found = numbers.of_images([PurePath("caf\u00e9.jpg"), PurePath("ma\u00df.jpg")])
    assert found == [4, 7]
    assert all(type(number) is int for number in (*numbers.categories, *found))
    for bad in (4.5, "4", None, True):
        ann.write_text(json.dumps({"images": [{**images[0], "id": bad}], "categories": [{"id": 3, "name": "ant"}]}))
        with pytest.raises(InputError, match=r"images\[0\]\.id"):
            CocoNumbers.of_file(ann, ("ant",))
