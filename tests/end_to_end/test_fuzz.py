"""Mutated and random inputs for every reader: done or refused in one line, no traceback, no hang, no partial result.

An mmdet config in Python, which ``profile`` and the baselines take, is a program of the user's and not an input in this
sense: whatever it does, it was asked to.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
import sqlite3
import time
import zipfile

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from report_runs import write_run

from hitdet_nni.cli import main
from hitdet_nni.config.architecture import load_architecture
from hitdet_nni.config.search_space import load_search_space, save_search_space
from hitdet_nni.config.settings import PretrainSettings, load_settings
from hitdet_nni.config.shipped import shipped
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.data.annotations.coco import read_annotations
from hitdet_nni.data.class_folders import open_folders
from hitdet_nni.data.datasets.classification import FolderImages, collate, sound, validation_transform
from hitdet_nni.data.halves import load_or_create_split
from hitdet_nni.engine.backbone_weights import load_backbone, save_backbone
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.weights_file import load_weights, read_state, save_weights
from hitdet_nni.errors import InputError
from hitdet_nni.integration.launcher.experiment_config import load_config, load_stopped
from hitdet_nni.loggers.tensorboard import write_scalars
from hitdet_nni.model.detector import build_detector
from hitdet_nni.paper_tables.measured import load_measured
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.training.inherit import inherit_weights

SECONDS = 10
"""An input takes no longer than this of a processor's time, whatever else the machine does."""

EXAMPLES = [15, pytest.param(200, marks=pytest.mark.slow)]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1, 2, 7, 10**9, 10**30, -(2**63)])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "conv_k3_d1", "ir_k3_d1_e3", "ir_k99_d1_e1", "../../etc/passwd", "\x00", "\ud800", "1e400"])
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


def places(tree, path=()):
    """Paths of all values inside a tree of lists and dicts."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield (*path, key)
            yield from places(value, (*path, key))


@st.composite
def changed_trees(draw, tree):
    """The tree with one to three values replaced, removed, doubled or renamed."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        paths = list(places(tree))
        if not paths:
            break
        *parents, key = draw(st.sampled_from(paths))
        holder = tree
        for step in parents:
            holder = holder[step]
        change = draw(st.sampled_from(["replace", "replace", "remove", "double", "rename"]))
        if change == "replace":
            holder[key] = draw(VALUES)
        elif change == "remove":
            del holder[key]
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[draw(st.text(max_size=6))] = copy.deepcopy(holder[key]) if change == "double" else holder.pop(key)
    return tree


@st.composite
def changed_bytes(draw, content):
    """The content cut short, with bytes replaced, put in or taken out; or something else altogether."""
    kind = draw(st.sampled_from(["cut", "flip", "insert", "remove", "other"]))
    if kind == "other":
        return draw(st.binary(max_size=200))
    at = draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        return content[:at]
    piece = draw(st.binary(min_size=1, max_size=20))
    end = at + (0 if kind == "insert" else len(piece))
    return content[:at] + (b"" if kind == "remove" else piece) + content[end:]


def as_json(tree):
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def as_yaml(tree):
    return yaml.safe_dump(tree, sort_keys=False).encode("utf-8", "surrogatepass")


def changed_files(content, tree, dump):
    return changed_bytes(content) | changed_trees(tree).map(dump)


def fuzz(examples, strategy, check):
    """Run a check on so many inputs, each within :data:`SECONDS`."""

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def run(value):
        started = time.process_time()
        check(value)
        assert time.process_time() - started < SECONDS

    run()


def one_line(call, *arguments, **keywords):
    """The result of a call, or ``None`` where it refused its input in one line."""
    try:
        return call(*arguments, **keywords)
    except InputError as error:
        (_,) = str(error).splitlines()
        return None


def command(*arguments):
    """Whether a command did its work; otherwise it said why in one line."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = main([str(argument) for argument in arguments])
    assert code in (0, 2), stderr.getvalue()
    if code == 2:
        (line,) = stderr.getvalue().splitlines()
        assert line.startswith("hitdet-nni: ")
    return code == 0


@pytest.mark.parametrize("examples", EXAMPLES)
def test_config(examples, tmp_path, tiny_settings):
    file = tmp_path / "config.yml"
    tree = tiny_settings.model_dump(mode="json")
    file.write_bytes(as_yaml(tree))
    assert load_settings(file) == tiny_settings

    def check(content):
        file.write_bytes(content)
        found = one_line(load_settings, file)
        assert found is None or type(found) is type(tiny_settings)

    fuzz(examples, changed_files(as_yaml(tree), tree, as_yaml), check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_override(examples, tmp_path):
    def check(assignment):
        out = tmp_path / "hit.py"
        assert not command("check-data", "--config", "tiny", "--set=data.builtin=null", f"--set={assignment}")
        assert not out.exists()

    keys = st.sampled_from(["data.train", "search.budget", "screening.keep", "retrain.milestones", "alphas.betas"])
    fuzz(examples, st.builds("{}={}".format, keys | st.text(max_size=5), SCALARS), check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_search_space(examples, tmp_path):
    file = tmp_path / "space.yml"
    content = shipped("search_spaces", "hit_detector.yml").read_bytes()

    def check(content):
        file.write_bytes(content)
        found = one_line(load_search_space, file)
        assert found is None or list(found) == list(COMPONENTS)

    fuzz(examples, changed_files(content, yaml.safe_load(content), as_yaml), check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_architecture(examples, tmp_path):
    file = tmp_path / "architecture.json"
    content = shipped("search_spaces/architectures", "hit_detector.json").read_bytes()

    def check(content):
        file.write_bytes(content)
        if one_line(load_architecture, file) is not None:
            command("profile", file)

    fuzz(examples, changed_files(content, json.loads(content), as_json), check)


def image(side=32):
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture
def coco(tmp_path):
    """A small COCO-format set and a config that names it."""
    images = tmp_path / "images"
    images.mkdir()
    for number in (1, 2):
        image().save(images / f"{number}.jpg")
    tree = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 32, "height": 32} for n in (1, 2)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 3 * n, "bbox": [2, 3, 10, 12.5], "area": 125.0, "iscrowd": 0}
            for n in (1, 2)
        ],
    }
    tree["annotations"][1]["category_id"] = 9
    ann = tmp_path / "ann.json"
    ann.write_bytes(as_json(tree))
    data = {
        f"{split}_{kind}": str(path) for split in ("train", "val") for kind, path in (("ann", ann), ("images", images))
    }
    config = tmp_path / "config.yml"
    config.write_bytes(as_yaml({"extends": "tiny", "data": {"builtin": None, **data}}))
    assert command("check-data", "--config", config)
    return tree, ann, images, config


@pytest.mark.parametrize("examples", EXAMPLES)
def test_annotations(examples, coco):
    tree, ann, images, config = coco

    def check(content):
        ann.write_bytes(content)
        found = one_line(read_annotations, ann, images, key="data.train_ann", allow_empty_boxes=True)
        assert command("check-data", "--config", config) or found is None or found.summary

    fuzz(examples, changed_files(as_json(tree), tree, as_json), check)


@pytest.mark.parametrize("form", ["jpeg", "png"])
@pytest.mark.parametrize("examples", EXAMPLES)
def test_images(examples, form, coco):
    _, _, images, config = coco
    stream = io.BytesIO()
    image().save(stream, form)

    def check(content):
        (images / "1.jpg").write_bytes(content)
        command("check-data", "--config", config)

    fuzz(examples, changed_bytes(stream.getvalue()), check)


@pytest.fixture(scope="module")
def detector(tiny, draw, published):
    return build_detector(tiny, draw(tiny, published, 0), 10)


def parts_changed(content):
    """The content of one file inside a zip archive changed, so that the archive itself is sound."""

    @st.composite
    def archives(draw):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        name = draw(st.sampled_from(sorted(name for name in files if files[name])))
        files[name] = draw(changed_bytes(files[name]))
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for key, value in files.items():
                archive.writestr(key, value)
        return stream.getvalue()

    return archives()


@pytest.mark.parametrize("examples", EXAMPLES)
def test_weights(examples, detector, tmp_path):
    file = tmp_path / "weights.pth"
    save_weights(detector, file)
    content = file.read_bytes()

    def check(changed):
        file.write_bytes(changed)
        one_line(load_weights, detector, file)

    fuzz(examples, changed_bytes(content) | parts_changed(content), check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_checkpoints(examples, tmp_path):
    """A damaged checkpoint is passed over for the one before it."""
    folder = CheckpointFolder(tmp_path)
    folder.save(1, {"step": 1, "values": torch.arange(50)})
    last = folder.save(2, {"step": 2, "values": torch.arange(60)})
    content = last.read_bytes()

    def check(changed):
        last.write_bytes(changed)
        assert folder.load()["step"] == (2 if changed == content else 1)

    fuzz(examples, changed_bytes(content), check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_run_directory(examples, tmp_path, tiny_settings, draw):
    run = RunDirectory(tmp_path / "run")
    run.open(tiny_settings)
    space = {component: ["ir_k3_d1_e3", "conv_k3_d1"] for component in COMPONENTS}
    save_search_space(space, run.sub_spaces)
    architecture = json.loads(shipped("search_spaces/architectures", "hit_detector.json").read_text())
    run.architecture.write_bytes(as_json(architecture))
    run.alphas.parent.mkdir(exist_ok=True)
    labels = [layer.label for layer in tiny_settings.skeleton.searched_layers()]
    rows = [f"0,{label},{name},0.25,0.5" for label in labels for name in space["head"]]
    run.alphas.write_text("\n".join(["epoch,label,operator,alpha,probability", *rows]) + "\n")
    out = tmp_path / "out.json"
    assert command("export", run.path, "--epoch", "0", "--out", out, "--force")
    files = [run.config, run.metadata, run.sub_spaces, run.architecture, run.alphas]
    whole = {file: file.read_bytes() for file in files}
    strategy = st.one_of([st.tuples(st.just(file), changed_bytes(content)) for file, content in whole.items()])

    def check(change):
        file, content = change
        file.write_bytes(content)
        for options in (["export", run.path, "--epoch", "0", "--out", out], ["profile", run.path]):
            out.unlink(missing_ok=True)
            if command(*options) and options[0] == "export":
                assert load_architecture(out)
            else:
                assert not out.exists()
        file.write_bytes(whole[file])

    fuzz(examples, strategy, check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_pages_and_tables_of_a_run(examples, tmp_path):
    """Everything that pages show: every table, the log, the metadata; a run in its last state."""
    run = RunDirectory(write_run(tmp_path / "run", epochs=2))
    page = tmp_path / "page.html"
    (log,) = run.retrain.rglob("*.log")
    tables = [run.scores("neck"), run.search_metrics, run.alphas, log]
    trees = [run.metadata, run.metrics, run.architecture]
    whole = {file: file.read_bytes() for file in [*tables, *trees, run.config, run.sub_spaces]}
    changes = [st.tuples(st.just(file), changed_bytes(whole[file])) for file in whole]
    changes += [st.tuples(st.just(file), changed_trees(json.loads(whole[file])).map(as_json)) for file in trees]
    changes += [st.tuples(st.just(file), changed_cells(whole[file])) for file in tables[:3]]
    whole[run.baseline] = None  # as in a run of a baseline
    changes.append(st.tuples(st.just(run.baseline), changed_trees({"baseline": "fpn", "config": ""}).map(as_json)))

    def check(change):
        file, content = change
        file.write_bytes(content)
        for options in (["report", run.path, "--images", "0", "--force"], ["compare", run.path]):
            page.unlink(missing_ok=True)
            assert command(*options, "--out", page) == page.exists()
        one_line(load_measured, run.path)
        one_line(write_scalars, run.path, tmp_path / "events")
        if whole[file] is None:
            file.unlink()
        else:
            file.write_bytes(whole[file])

    fuzz(examples, st.one_of(changes), check)


@st.composite
def changed_cells(draw, table):
    """A table of which a row has another cell, or is there twice, or is not there."""
    rows = [line.split(b",") for line in table.splitlines()]
    row = draw(st.integers(0, len(rows) - 1))
    change = draw(st.sampled_from(["cell", "cell", "twice", "gone"]))
    if change == "cell":
        text = draw(SCALARS.map(str)) if draw(st.booleans()) else draw(st.text(max_size=8))
        rows[row][draw(st.integers(0, len(rows[row]) - 1))] = text.encode("utf-8", "surrogatepass")
    rows[row : row + 1] = {"cell": [rows[row]], "twice": [rows[row]] * 2, "gone": []}[change]
    return b"\n".join(b",".join(each) for each in rows) + b"\n"


@pytest.mark.parametrize("examples", EXAMPLES)
def test_backbone_and_supernet_weights(examples, detector, tmp_path, tiny, published, draw):
    file = tmp_path / "weights.pth"
    sample = draw(tiny, published, 0)
    save_backbone(detector.backbone, file, sample)
    load_backbone(detector.backbone, file, sample)
    content = file.read_bytes()

    def check(changed):
        file.write_bytes(changed)
        one_line(load_backbone, detector.backbone, file, sample)
        state = one_line(read_state, file)
        if state is not None:
            one_line(inherit_weights, detector, sample, state)

    fuzz(examples, changed_bytes(content) | parts_changed(content), check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_the_split_of_a_search(examples, tmp_path):
    file = tmp_path / "halves.json"
    ids = list(range(10))
    first = load_or_create_split(file, ids, 0)
    content = file.read_bytes()

    def check(changed):
        file.write_bytes(changed)
        found = one_line(load_or_create_split, file, ids, 0)
        assert found is None or sorted(sum(found, ())) == ids

    assert load_or_create_split(file, ids, 0) == first
    fuzz(examples, changed_files(content, json.loads(content), as_json), check)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_class_folders(examples, tmp_path):
    """Folders and files of any names, among them links that lead nowhere or in a circle."""
    root = tmp_path / "images"
    stream = io.BytesIO()
    image().save(stream, "jpeg")
    images = changed_bytes(stream.getvalue()) | st.just(stream.getvalue())
    names = st.builds("{}{}".format, NAMES, st.sampled_from([".jpg", ".PNG", ".jpeg", "", ".txt"]))
    entries = images | st.sampled_from(["folder", "link", "loop"])
    settings = PretrainSettings(train_images=root, val_images=root, size=32, batch_size=2)

    def check(tree):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for name, files in tree.items():
            (root / name).mkdir()
            for file, content in files.items():
                path = root / name / file
                if isinstance(content, bytes):
                    path.write_bytes(content)
                elif content == "folder":
                    path.mkdir()
                else:
                    path.symlink_to(file if content == "loop" else "nothing")
        found = one_line(open_folders, settings)
        if found is not None:
            assert len(found.train.files) == len(found.train.labels) >= len(found.classes)
            split = FolderImages(found.train, validation_transform(settings))
            for index in range(min(3, len(split))):
                one_line(sound, collate([split[index]]))

    trees = st.dictionaries(NAMES, st.dictionaries(names, entries, max_size=3), max_size=3)
    fuzz(examples, trees, check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_experiment(examples, tmp_path):
    """What the launcher reads of an experiment; NNI judges the rest."""
    file = tmp_path / "search.yml"
    content = (
        shipped("experiments", "search_remote.yml").read_bytes().replace(b"<host>", b"box").replace(b"<user>", b"me")
    )
    tree = yaml.safe_load(content)

    def check(content):
        file.write_bytes(content)
        one_line(load_config, file)

    fuzz(examples, changed_files(content, tree, as_yaml), check)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_index_of_experiments(examples, tmp_path, monkeypatch):
    """NNI's own list of a user's experiments, and the database of one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    index = tmp_path / "nni-experiments" / ".experiment"
    database = tmp_path / "abc" / "db" / "nni.sqlite"
    for file in (index, database):
        file.parent.mkdir(parents=True)
    tree = {"abc": {"id": "abc", "status": "STOPPED", "pid": 0, "logDir": str(tmp_path), "port": 8080}}
    index.write_bytes(as_json(tree))
    config = {"searchSpace": {}, "trialCommand": "true", "trainingService": {"platform": "local"}}
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("create table ExperimentProfile (id text, params text, revision integer)")
        connection.execute("insert into ExperimentProfile values ('abc', ?, 1)", (json.dumps(config),))
        connection.commit()
    assert load_stopped("abc").arguments == ("resume", "abc")
    whole = {file: file.read_bytes() for file in (index, database)}
    changes = st.tuples(st.just(index), changed_files(whole[index], tree, as_json))
    changes |= st.tuples(st.just(database), changed_bytes(whole[database]))

    def check(change):
        file, content = change
        file.write_bytes(content)
        one_line(load_stopped, "abc")
        file.write_bytes(whole[file])

    fuzz(examples, changes, check)
