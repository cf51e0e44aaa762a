"""What users write and read: search spaces, architectures, settings, and files that are whole or absent."""

from __future__ import annotations

import copy
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hitdet_nni import io as files
from hitdet_nni.config.architecture import check_architecture, load_architecture, save_architecture
from hitdet_nni.config.search_space import check_search_space, load_search_space, save_search_space
from hitdet_nni.config.settings import Settings, load_settings, parse_overrides
from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.errors import WriteError
from hitdet_nni.io import locked, read_json, read_yaml, write_csv, write_json, write_text

ROOT = Path(__file__).parents[2]
SPACE = {"backbone": ["ir_k3_d1_e3"], "neck": ["sep_k3_d1", "conv_k3_d1"], "head": ["ir_k3_d1_e6"]}
DIGITS = {"data": {"builtin": "digits"}}
REMOVE = object()


def altered(value, key, change):
    """A copy in which the value at a dotted key is replaced, added, or removed."""
    value = copy.deepcopy(value)
    node = value
    *parents, last = key.split(".")
    for parent in parents:
        node = node[parent]
    if change is REMOVE:
        del node[last]
    else:
        node[last] = change
    return value


# ---------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("read", [read_yaml, read_json, load_search_space, load_architecture, load_settings])
@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("absent.yml", None, "no such file"),
        ("broken.yml", b"{a: [", "not valid"),
        ("tabs.yml", b"a:\n\t- b\n", "not valid"),
        ("latin.yml", b"a: \xe9\n", "UTF-8"),
        ("digits.yml", b"[" + b"9" * 5000 + b"]", "not valid"),
        ("deep.yml", b"[" * 5000, "not valid"),
    ],
)
def test_unreadable_files(read, name, content, problem, tmp_path, refused):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with refused(path, problem):
        read(path)


def test_invalid_date_in_yaml(tmp_path, refused):
    (tmp_path / "a.yml").write_text("a: 2020-13-45")
    with refused(tmp_path / "a.yml", "not valid YAML", "month"):
        read_yaml(tmp_path / "a.yml")


def test_a_folder_is_not_a_file(tmp_path, refused):
    folder = tmp_path / "folder.yml"
    folder.mkdir()
    with refused(folder, "cannot be read"):
        read_yaml(folder)


def test_yaml_cannot_run_code(tmp_path, refused):
    (tmp_path / "a.yml").write_text("!!python/object/apply:os.system ['true']")
    with refused("a.yml", "line 1"):
        read_yaml(tmp_path / "a.yml")


def test_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_json(path, {"x": 1})
    write_json(path, {"x": [1, 2]})
    assert read_json(path) == {"x": [1, 2]}
    assert path.read_text().endswith("\n")
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("stage", ["write", "replace"])
def test_a_failed_write_leaves_the_old_file_alone(stage, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    if stage == "replace":
        monkeypatch.setattr(files.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        text, error = "new", WriteError
    else:
        monkeypatch.setattr(files.os, "fsync", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        text, error = "x" * 100_000, WriteError
    with pytest.raises(error):
        write_text(path, text)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_csv(tmp_path):
    write_csv(tmp_path / "a.csv", ["x", "y"], [{"x": 1, "y": "a,b"}, {"x": 2, "y": None}])
    with (tmp_path / "a.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [["x", "y"], ["1", "a,b"], ["2", ""]]


def test_lock_among_processes(tmp_path):
    path = tmp_path / "run" / ".lock"
    code = (
        "import sys; from pathlib import Path; from hitdet_nni.io import locked\n"
        "with locked(Path(sys.argv[1]), wait=False) as held:\n"
        "    print(held, flush=True); sys.stdin.readline()\n"
    )

    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return process, process.stdout.readline().strip()

    holder, held = start()
    try:
        assert held == "True"
        with locked(path, wait=False) as mine:
            assert not mine
    finally:
        holder.kill()  # the system frees the lock
        holder.communicate()
    with locked(path, wait=False) as mine:
        assert mine
        other, held = start()
        assert held == "False"
        other.communicate("\n")
    with locked(path) as mine:
        assert mine


# --------------------------------------------------------------------------------------------------- search space


def test_search_space_round_trip(tmp_path):
    path = tmp_path / "sub_spaces.yml"
    save_search_space(SPACE, path)
    assert load_search_space(path) == SPACE
    assert list(yaml.safe_load(path.read_text())) == ["backbone", "neck", "head"]


@pytest.mark.parametrize(
    ("value", "fragments"),
    [
        (None, ["NoneType", "backbone, neck, head"]),
        (["sep_k3_d1"], ["list", "backbone, neck, head"]),
        (altered(SPACE, "neck", REMOVE), ["neck", "None", "list of operator names"]),
        (altered(SPACE, "tail", ["sep_k3_d1"]), ["'tail'", "backbone, neck, head"]),
        ({**SPACE, 3: []}, ["unknown component 3", "backbone, neck, head"]),
        (altered(SPACE, "neck", []), ["neck", "[]"]),
        (altered(SPACE, "neck", "sep_k3_d1"), ["neck", "'sep_k3_d1'", "list"]),
        (altered(SPACE, "neck", ["sep_k3_d1", 3]), ["neck", "3", "list of operator names"]),
        (altered(SPACE, "head", ["sep_k3_d1", "skip"]), ["head", "'skip'", "sep_k{odd}_d{dilation}"]),
        (altered(SPACE, "head", ["sep_k3_d1"] * 2), ["head", "'sep_k3_d1'", "twice"]),
    ],
)
def test_bad_search_spaces(value, fragments, tmp_path, refused):
    path = tmp_path / "space.yml"
    path.write_text(yaml.safe_dump(value))
    with refused(path, *fragments):
        load_search_space(path)
    with refused("elsewhere", *fragments):
        check_search_space(value, "elsewhere")


def test_a_run_that_has_been_screened_is_a_search_space(tmp_path, refused):
    (tmp_path / "run" / "screening").mkdir(parents=True)
    with refused(tmp_path / "run", "has no screening/sub_spaces.yml", "a run that has been screened"):
        load_search_space(tmp_path / "run")
    save_search_space(SPACE, tmp_path / "run" / "screening" / "sub_spaces.yml")
    assert load_search_space(tmp_path / "run") == SPACE
    with refused(f"{tmp_path / 'none'}: no such file or run"):
        load_search_space(tmp_path / "none")


def test_unknown_shipped_names(refused):
    with refused("nonesuch", "full, hit_detector"):
        load_search_space("nonesuch")
    with refused("nonesuch", "hit_detector"):
        load_architecture("nonesuch")
    with refused("nonesuch", "tiny"):
        load_settings("nonesuch")


# --------------------------------------------------------------------------------------------------- architecture

COST = {"convention": "macs", "shape": [64, 96], "proposals": 100, "params": {"total": 12}, "flops": {"total": 34}}


@pytest.fixture
def document(tiny):
    return {
        "schema_version": 1,
        "name": "an example",
        "skeleton": tiny.model_dump(mode="json"),
        "sample": {layer.label: "sep_k3_d1" for layer in tiny.searched_layers()},
        "provenance": {"classes": ["zero", "one"], "flops_weight": 0.01, "seed": 3, "cost": [COST]},
    }


def test_architecture_round_trip(document, tmp_path):
    path = tmp_path / "architecture.json"
    architecture = check_architecture(document, "here")
    save_architecture(architecture, path)
    assert load_architecture(path) == architecture
    assert architecture.num_classes == 2
    written = json.loads(path.read_text())
    assert {key: written[key] for key in document if key != "provenance"} == {
        key: value for key, value in document.items() if key != "provenance"
    }
    assert document["provenance"].items() <= written["provenance"].items()


@pytest.mark.parametrize(
    ("key", "change", "fragments"),
    [
        ("schema_version", REMOVE, ["schema_version", "missing"]),
        ("schema_version", 2, ["schema_version", "2", "1"]),
        ("name", REMOVE, ["name", "missing"]),
        ("name", 3, ["name", "3", "text"]),
        ("note", "x", ["note", "unknown key", "provenance"]),
        ("skeleton", REMOVE, ["skeleton", "missing"]),
        ("skeleton.width", 3, ["skeleton.width", "unknown key", "neck_width"]),
        ("skeleton.neck_width", "wide", ["skeleton.neck_width", "'wide'", "integer"]),
        ("skeleton.neck_width", -4, ["skeleton.neck_width", "-4", "above 0"]),
        ("skeleton.detector", "yolo", ["skeleton.detector", "'yolo'", "faster_rcnn"]),
        ("skeleton.finest_stride", 16, ["skeleton.finest_stride", "16", "4, 8"]),
        ("skeleton.extra_levels", 3, ["skeleton.extra_levels", "3", "at most 2"]),
        ("skeleton.extra_levels", -1, ["skeleton.extra_levels", "-1", "at least 0"]),
        ("skeleton.depths", [1, 1, 1], ["skeleton", "4, 3 and 4"]),
        ("skeleton.depths", [1, 1, 1, 10**9], ["skeleton.depths.3", "1000000000", "99"]),
        ("skeleton.strides", [2, 2, 2, 1], ["skeleton", "four stages", "3"]),
        ("skeleton.strides", [2, 2, 2, 4], ["skeleton.strides.3", "4", "1, 2"]),
        ("skeleton.tail", {"depth": 1}, ["skeleton.tail.depth", "unknown key", "out_channels"]),
        ("sample", REMOVE, ["sample", "missing"]),
        ("sample", ["sep_k3_d1"], ["sample", "mapping"]),
        ("sample.neck/l03", REMOVE, ["sample", "'neck/l03'", "missing"]),
        ("sample.neck/l09", "sep_k3_d1", ["sample", "'neck/l09'", "neck/l08"]),
        ("sample.neck/l03", "skip", ["sample.neck/l03", "'skip'", "sep_k3_d1"]),
        ("sample.neck/l03", 3, ["sample.neck/l03", "3", "text"]),
        ("provenance", None, ["provenance", "null", "mapping"]),
        ("provenance.classes", REMOVE, ["provenance.classes", "missing"]),
        ("provenance.classes", [], ["provenance.classes", "[]", "at least 1"]),
        ("provenance.classes", "zero", ["provenance.classes", "'zero'"]),
        ("provenance.flops_weight", float("nan"), ["provenance.flops_weight", "nan", "finite"]),
        ("provenance.flops_weight", float("inf"), ["provenance.flops_weight", "inf", "finite"]),
        ("provenance.author", "x", ["provenance.author", "unknown key", "git_commit"]),
        ("provenance.cost", [{**COST, "convention": "flops"}], ["provenance.cost.0.convention", "'flops'", "macs"]),
        ("provenance.cost", [{**COST, "shape": [0, 96]}], ["provenance.cost.0.shape.0", "0", "above 0"]),
        ("provenance.cost", [{**COST, "proposals": -1}], ["provenance.cost.0.proposals", "-1"]),
        ("provenance.cost", [{**COST, "flops": {"total": -1}}], ["provenance.cost.0.flops.total", "-1"]),
    ],
)
def test_bad_architectures(key, change, fragments, document, tmp_path, refused):
    path = tmp_path / "architecture.json"
    path.write_text(json.dumps(altered(document, key, change)))
    with refused(path, *fragments):
        load_architecture(path)


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_an_architecture_is_an_object(value, refused):
    with refused("here", type(value).__name__):
        check_architecture(value, "here")


# ------------------------------------------------------------------------------------------------------- settings

# Key, value, and where the paper (or the release, see docs) states it.
PAPER = [
    ("screening.epochs", 12, "4.2"),
    ("screening.warmup_epochs", 6, "4.2"),
    ("screening.sparsity_weight", 0.1, "4.2, mu"),
    ("screening.keep.backbone", 8, "3.3, N_b"),
    ("screening.keep.neck", 8, "3.3, N_n"),
    ("screening.keep.head", 8, "3.3, N_h"),
    ("search.epochs", 12, "4.2"),
    ("search.warmup_epochs", 6, "4.2"),
    ("search.flops_weight", 0.01, "4.2, lambda"),
    ("weights.lr", 0.04, "4.2"),
    ("weights.momentum", 0.9, "4.2"),
    ("weights.weight_decay", 1e-4, "4.2"),
    ("alphas.lr", 4e-4, "4.2"),
    ("alphas.weight_decay", 0.0, "Eq. 4 and 6 have no such term"),
    ("retrain.epochs", 12, "4.2"),
    ("retrain.lr", 0.04, "4.2"),
    ("retrain.momentum", 0.9, "4.2"),
    ("retrain.weight_decay", 1e-4, "4.2"),
    ("retrain.milestones", (8, 11), "4.2"),
    ("retrain.warmup_iterations", 800, "release"),
    ("retrain.grad_clip", 35.0, "release"),
    ("data.batch_size", 4, "4.2"),
    ("skeleton.input_size", (800, 1216), "release"),
    ("skeleton.stem_channels", 16, "release"),
    ("skeleton.widths", (48, 96, 184, 256, 352), "release"),
    ("skeleton.depths", (4, 4, 4, 4, 4), "release"),
    ("skeleton.strides", (2, 2, 2, 1, 2), "release"),
    ("skeleton.tail.width", 1024, "release"),
    ("skeleton.tail.out_channels", 2048, "release"),
    ("skeleton.neck_width", 256, "3.3"),
    ("skeleton.head_width", 256, "3.3"),
    ("skeleton.head_blocks", 4, "3.3"),
    ("skeleton.head_fc", 512, "release"),
    ("skeleton.anchor_scale", 8, "release"),
    ("skeleton.proposals_train", 2000, "release"),
    ("skeleton.proposals_test", 1000, "release"),
    ("skeleton.roi_samples", 512, "release"),
    ("space", "full", "appendix 6.1"),
]


def at(settings, key):
    for part in key.split("."):
        settings = getattr(settings, part)
    return settings


@pytest.mark.parametrize(("key", "value", "source"), PAPER)
def test_defaults_are_the_papers(key, value, source):
    assert at(Settings.model_validate(DIGITS), key) == value, source


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "experiments" / "configs").glob("*.yml")))
def test_shipped_configs_load(name):
    settings = load_settings(name)
    load_search_space(settings.space)
    # Those for one's own images lack nothing but their place.
    assert settings.data.is_named == (name.startswith(("tiny", "digits")) or name == "coco2014_trial")


@pytest.fixture
def config(tmp_path):
    """Write a config file; return its path."""

    def write(value, name="config.yml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(value if isinstance(value, str) else yaml.safe_dump(value))
        return path

    return write


def test_settings_round_trip(config):
    settings = load_settings("digits")
    assert load_settings(config(settings.model_dump(mode="json"))) == settings


def test_a_config_is_a_diff(config):
    config({**DIGITS, "search": {"epochs": 20, "flops_weight": 0.5}, "seed": 1}, "base.yml")
    config({"extends": "base.yml", "search": {"flops_weight": 0.25}}, "middle.yml")
    path = config({"extends": "middle.yml", "seed": 2})
    settings = load_settings(path, {"search.warmup_epochs": 9, "skeleton.tail": None})
    assert (settings.seed, settings.search.epochs, settings.search.flops_weight) == (2, 20, 0.25)
    assert (settings.search.warmup_epochs, settings.skeleton.tail) == (9, None)
    assert settings.skeleton.widths == Skeleton().widths
    assert load_settings(config({"extends": "tiny", "seed": 5})).model_dump(exclude={"seed"}) == load_settings(
        "tiny"
    ).model_dump(exclude={"seed"})


@pytest.mark.parametrize(
    "diff",
    [
        {"retrain": {"epochs": 50}},
        {"skeleton": {"neck_width": 64}},
        {"screening": {"keep": {"backbone": 6}}, "seed": 3},
        {"screening.keep": {"backbone": 6}},
        {"data": {"val_share": 0.3}, "data.root": "/images"},
        {"skeleton.tail": {"width": 512}},
    ],
    ids=str,
)
def test_a_mapping_among_overrides_is_a_diff_of_its_section(config, diff):
    """It does what the same mapping does in a file with ``extends``, and is left as it was."""
    nested = {"extends": "small_cpu"}
    for key, value in diff.items():
        *sections, last = key.split(".")
        node = nested
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = {**node.get(last, {}), **value} if isinstance(value, dict) else value
    before = copy.deepcopy(diff)
    assert load_settings("small_cpu", diff) == load_settings(config(nested))
    assert load_settings("small_cpu", parse_overrides([f"{key}={json.dumps(diff[key])}" for key in diff])) == (
        load_settings("small_cpu", diff)
    )
    assert diff == before


def test_a_section_keeps_what_a_mapping_does_not_say():
    retrain = load_settings("small_cpu", {"retrain": {"epochs": 50}}).retrain
    assert (retrain.epochs, retrain.epochs_images) == (50, None)
    changed = {"epochs": 0, "epochs_images": 0, "milestones": ()}
    assert retrain.model_copy(update=changed) == load_settings("small_cpu").retrain.model_copy(update=changed)


@pytest.mark.parametrize("overrides", [["search.epochs=2"], {1: 2}, "search.epochs=2"], ids=str)
def test_overrides_of_another_kind(overrides, refused):
    with refused("--set: got", "dotted key"):
        load_settings("tiny", overrides)


def test_overrides_win(config):
    path = config({**DIGITS, "seed": 1, "retrain": {"milestones": [3]}})
    overrides = parse_overrides(["seed=7", "retrain.milestones=[1, 2]", "weights.grad_clip=null", "alphas.lr=1e-3"])
    settings = load_settings(path, overrides)
    assert (settings.seed, settings.retrain.milestones, settings.weights.grad_clip) == (7, (1, 2), None)
    assert settings.alphas.lr == 1e-3
    assert parse_overrides(["space=a=b.yml", "data.builtin="]) == {"space": "a=b.yml", "data.builtin": None}


def test_relative_paths_are_the_configs(config, tmp_path):
    """Of the file that states them, also where another one extends it; an override's are the working folder's."""
    paths = {"train_ann": "a.json", "train_images": "a", "val_ann": "/abs/b.json", "val_images": "../b"}
    budget = {"latency_ms": 5, "table": "latency.json"}
    config({"data": paths, "space": "my_space.yml", "search": {"budget": budget}}, "sub/base.yml")
    settings = load_settings(config({"extends": "sub/base.yml"}), {"data.train_images": "elsewhere"})
    assert settings.data.train_ann == tmp_path / "sub" / "a.json"
    assert settings.data.val_ann == Path("/abs/b.json")
    assert settings.data.val_images == tmp_path / "sub" / "../b"
    assert settings.data.train_images == Path.cwd() / "elsewhere"
    assert settings.search.budget.table == tmp_path / "sub" / "latency.json"
    assert settings.space == str(tmp_path / "sub" / "my_space.yml")
    assert load_settings(config(settings.model_dump(mode="json"), "another/place.yml")) == settings
    for space, found in (("hit_detector", "hit_detector"), ("./x", str(tmp_path / "sub/x"))):
        assert load_settings(config({**DIGITS, "space": space}, "sub/own.yml")).space == found
    assert load_settings(config({**DIGITS, "space": "~/screened"})).space == str(Path.home() / "screened")


def test_a_layout_names_the_files_below_its_root(config, tmp_path):
    path = config({"data": {"layout": "coco2014", "root": "coco"}})
    settings = load_settings(path)
    data, root = settings.data, tmp_path / "coco"
    files = [root / "annotations" / f"instances_{name}2014.json" for name in ("train", "val", "minival")]
    assert data.train_sources == ((files[0], root / "train2014"), (files[1], root / "val2014"))
    assert (data.train_ids, data.train_without) == (None, files[2])
    assert (data.val_ann, data.val_images, data.val_ids) == (files[1], root / "val2014", files[2])
    assert load_settings(config(settings.model_dump(mode="json"), "elsewhere/copy.yml")) == settings
    # A list may come from elsewhere; a half whose images are named is not the layout's.
    given = {"data.val_ids": "/mine.txt", "data.train_ann": ["/a", "/b"], "data.train_images": ["/c", "/d"]}
    data = load_settings(path, given).data
    assert (data.val_ids, data.val_ann) == (Path("/mine.txt"), files[1])
    assert (data.train_sources, data.train_without) == (((Path("/a"), Path("/c")), (Path("/b"), Path("/d"))), None)
    open_ended = load_settings(path, {"data.root": None}).data
    assert not open_ended.is_named
    assert open_ended.train_sources == ()


PATHS = {"train_ann": "a", "train_images": "b", "val_ann": "c", "val_images": "d"}


@pytest.mark.parametrize(
    ("value", "fragments"),
    [
        ("", ["is empty", "extends: small"]),
        ("- seed", ["mapping", "list"]),
        ("3: 4", ["mapping"]),
        ({}, ["data", "missing"]),
        ({"data": {"builtin": "digits", "layout": "coco2017"}}, ["data", "'digits'", "layout"]),
        ({"data": {"layout": "coco"}}, ["data.layout", "'coco'", "coco2017"]),
        ({"data": {"root": "here", "builtin": "digits"}}, ["data", "'digits'", "root is given"]),
        ({"data": {"root": "here", "train_ann": "a"}}, ["data", "train_images is missing"]),
        ({"data": {"root": "here", **PATHS}}, ["data", "root is given", "null"]),
        ({"data": {"root": "here", "val_share": 1}}, ["data.val_share", "1", "below 1"]),
        ({"data": {**PATHS, "train_ann": ["a", "b"]}}, ["data", "2 files", "1 folders"]),
        ({"data": {**PATHS, "train_ann": [], "train_images": []}}, ["data", "0 files"]),
        ({"data": {**PATHS, "val_ann": ["a", "b"]}}, ["data.val_ann", "['/"]),
        ({"data": {**PATHS, "train_ann": [3.5], "train_images": [4.5]}}, ["data.train_ann"]),
        ({"data": {**PATHS, "val_ann": None}}, ["data", "val_ann is missing"]),
        ({"data": {**PATHS, "builtin": "digits"}}, ["data", "'digits'", "train_ann"]),
        ({"data": {"builtin": "coco"}}, ["data.builtin", "'coco'", "digits"]),
        ({"data": {"builtin": "digits", "size": 16}}, ["data.size", "16", "32"]),
        ({"data": {"builtin": "digits", "workers": -1}}, ["data.workers", "-1"]),
        ({**DIGITS, "sed": 1}, ["sed", "unknown key", "seed"]),
        ({**DIGITS, "search": {"lambda": 1}}, ["search.lambda", "unknown key", "flops_weight"]),
        ({**DIGITS, "screening": {"keep": {"body": 3}}}, ["screening.keep.body", "unknown key", "backbone"]),
        ({**DIGITS, "skeleton": {"tail": {"x": 1}}}, ["skeleton.tail.x", "unknown key", "width"]),
        ({**DIGITS, "search": 3}, ["search", "got 3"]),
        ({**DIGITS, "search": None}, ["search", "null"]),
        ({**DIGITS, "seed": "one"}, ["seed", "'one'", "integer"]),
        ({**DIGITS, "seed": 1.5}, ["seed", "1.5", "integer"]),
        ({**DIGITS, "seed": -1}, ["seed", "-1"]),
        ({**DIGITS, "seed": 2**32}, ["seed", str(2**32)]),
        ({**DIGITS, "threads": 0}, ["threads", "0", "above 0"]),
        ({**DIGITS, "search": {"flops_weight": -0.1}}, ["search.flops_weight", "-0.1"]),
        ({**DIGITS, "search": {"flops_weight": float("nan")}}, ["search.flops_weight", "nan"]),
        ({**DIGITS, "weights": {"lr": float("inf")}}, ["weights.lr", "inf", "finite"]),
        ({**DIGITS, "weights": {"momentum": 1}}, ["weights.momentum", "1", "below 1"]),
        ({**DIGITS, "search": {"epochs": 3, "warmup_epochs": 6}}, ["search", "warmup_epochs 6", "epochs 3"]),
        ({**DIGITS, "screening": {"epochs": 4, "warmup_epochs": 4}}, ["screening", "warmup_epochs 4", "epochs 4"]),
        ({**DIGITS, "screening": {"depths": [2, 2]}}, ["screening.depths", "2", "5"]),
        ({**DIGITS, "screening": {"keep": {"neck": 0}}}, ["screening.keep.neck", "0"]),
        ({**DIGITS, "screening": {"fixed": {"neck": "skip"}}}, ["screening.fixed", "'skip'", "sep_k{odd}"]),
        ({**DIGITS, "screening": {"rank_by": "luck"}}, ["screening.rank_by", "'luck'", "norm"]),
        ({**DIGITS, "skeleton": {"input_size": [96]}}, ["skeleton.input_size", "a list of 2"]),
        ({**DIGITS, "alphas": {"betas": [0.5, 0.9, 0.9]}}, ["alphas.betas"]),
        ({**DIGITS, "extends": 3}, ["extends", "3", "shipped config"]),
        ({**DIGITS, "extends": "nonesuch"}, None),
        ({**DIGITS, "extends": "config.yml"}, ["extends", "itself"]),
        ({**DIGITS, "a": 1, "b": 2}, ["a: unknown key (and 1 more)"]),
    ],
)
def test_bad_configs(value, fragments, config, refused):
    path = config(value)
    with refused(*([path, *fragments] if fragments is not None else ["nonesuch", "digits", "tiny"])):
        load_settings(path)


def test_extends_in_a_circle(config, refused):
    config({"extends": "b.yml"}, "a.yml")
    with refused("b.yml", "extends", "itself"):
        load_settings(config({"extends": "a.yml"}, "b.yml"))


@pytest.mark.parametrize(
    ("argument", "fragments"),
    [
        ("seed", ["--set", "'seed'", "dotted.key=value"]),
        ("=3", ["--set", "'=3'", "dotted.key=value"]),
        ("seed=[", ["--set", "seed", "'['", "YAML"]),
        ("seed=2020-13-45", ["--set", "seed", "2020-13-45"]),
        ("sed=3", ["--set: ", "sed", "unknown key", "seed"]),
        ("search.lambda=3", ["--set: ", "search.lambda", "unknown key", "flops_weight"]),
        ("no.such.key=3", ["--set: ", "no", "unknown key", "search"]),
        ("search=3", ["--set: ", "search", "got 3"]),
        ("space.x=3", ["--set: ", "space"]),
        ("seed.x=3", ["--set: ", "seed: got {'x': 3}", "integer"]),
        ("search={epoch: 3}", ["--set: ", "search.epoch", "unknown key"]),
        ("search.budget={latency_ms: 5}", ["--set: ", "search.budget", "latency_ms needs a table"]),
        ("search.flops_weight=.inf", ["--set: ", "search.flops_weight", "inf", "finite"]),
        ("search.warmup_epochs=2", ["tiny.yml", "search", "warmup_epochs 2"]),
        ("data.val_ann=x.json", ["tiny.yml", "data", "'digits'", "val_ann"]),
    ],
)
def test_bad_overrides(argument, fragments, refused):
    with refused(*fragments):
        load_settings("tiny", parse_overrides([argument]))


def test_settings_are_immutable():
    settings = load_settings("tiny")
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 3


# ------------------------------------------------------------------------------------------------------- skeleton


def test_released_skeleton_matches_the_papers_figures():
    skeleton = Skeleton()
    layers = skeleton.searched_layers()
    assert [(x.in_channels, x.out_channels, x.stride, *x.input_strides) for x in layers[::4][:5]] == [
        (16, 48, 2, 2), (48, 96, 2, 4), (96, 184, 2, 8), (184, 256, 1, 16), (256, 352, 2, 16),
    ]  # fmt: skip
    neck = [(x.in_channels, *x.input_strides) for x in layers if x.component == "neck"]
    assert neck == [(48, 4), (96, 8), (256, 16), (2048, 32), (256, 4), (256, 8), (256, 16), (256, 32)]
    assert {x.input_strides for x in layers if x.component == "head"} == {()}


def test_retinanet_skeleton():
    """Levels of stride 8 to 128; the towers see all of them; only an anchor scale that is not given is the kind's."""
    skeleton = Skeleton(detector="retinanet", head_width=64)
    layers = skeleton.searched_layers()
    neck = [(x.in_channels, *x.input_strides) for x in layers if x.component == "neck"]
    assert neck == [(96, 8), (256, 16), (2048, 32), (256, 8), (256, 16), (256, 32)]
    head = [(x.label, x.in_channels, x.out_channels) for x in layers if x.component == "head"]
    assert head == [(f"head/l{i:02d}", 256 if i in (1, 5) else 64, 64) for i in range(1, 9)]
    assert {x.input_strides for x in layers if x.component == "head"} == {(8, 16, 32, 64, 128)}
    assert skeleton.anchor_scale == 4
    assert Skeleton(detector="retinanet", anchor_scale=8).anchor_scale == 8
    assert Skeleton.model_validate(skeleton.model_dump(mode="json")) == skeleton


def test_levels_of_the_pyramid():
    """From the finest stride on; what is not given is the kind's."""
    assert Skeleton().pyramid_strides == (4, 8, 16, 32, 64)
    assert Skeleton(finest_stride=8, extra_levels=0).pyramid_strides == (8, 16, 32)
    assert Skeleton(detector="retinanet", finest_stride=4).pyramid_strides == (4, 8, 16, 32, 64, 128)
    skeleton = Skeleton(detector="retinanet", finest_stride=4, extra_levels=0)
    assert skeleton.pyramid_strides == (4, 8, 16, 32)
    assert (skeleton.start_level, skeleton.neck_channels) == (0, (48, 96, 256, 2048))
    assert len(skeleton.labels("neck")) == 8
    assert skeleton.anchor_sides[0] == 16
    assert Skeleton.model_validate(skeleton.model_dump(mode="json")) == skeleton


@pytest.mark.parametrize("strides", [(1, 2, 2, 2, 2), (1, 1, 2, 2, 2, 2, 1), (2, 1, 1, 2, 2, 2)])
def test_pyramid_levels_of_any_strides(strides):
    """Four levels, also where stages stand before the first stride."""
    ones = tuple(range(1, len(strides) + 1))
    skeleton = Skeleton(widths=ones, depths=(1,) * len(strides), strides=strides, tail=None)
    assert len(skeleton.feature_channels) == len(skeleton.feature_strides) == 4
    totals = [2]
    for stride in strides:
        totals.append(totals[-1] * stride)
    last_of = dict(zip(totals[1:], ones, strict=True))
    assert skeleton.feature_channels == tuple(last_of[total] for total in (4, 8, 16, 32))


def test_a_single_value_a_channel_is_refused(refused):
    one = {"data.batch_size": 1, "skeleton.input_size": [32, 32]}
    with refused("data.batch_size is 1", "one pixel at stride 32", "frozen"):
        load_settings("tiny", one)
    for other in ({"data.batch_size": 2}, {"skeleton.input_size": [32, 40]}, {"batch_norm": "frozen"}):
        assert load_settings("tiny", one | other)


def test_what_a_file_and_an_override_have_together_is_blamed_on_both(refused):
    with refused("tiny.yml, search.warmup_epochs by --set: search: warmup_epochs 5 must be below epochs 2"):
        load_settings("tiny", {"search.warmup_epochs": 5, "retrain.epochs": 9})
    with refused("tiny.yml, pretrain.boxes, batch_norm by --set: ", "needs statistics"):
        load_settings("tiny", {"pretrain.boxes": True, "batch_norm": "frozen", "threads": 2})
    with refused("by the tuner's parameters: search: warmup_epochs 5"):
        load_settings("tiny", {"search.warmup_epochs": 5}, called="the tuner's parameters")


def test_what_a_file_has_wrong_by_itself_is_its_own(tmp_path, refused):
    file = tmp_path / "bad.yml"
    file.write_text("extends: tiny\nsearch: {epochs: 2, warmup_epochs: 5}\n")
    with refused(f"{file}: search: warmup_epochs 5 must be below epochs 2"):
        load_settings(file, {"search.samples": 16, "seed": 1})
    file.write_text("extends: tiny\npretrain: {boxes: true}\nbatch_norm: frozen\n")
    with refused(f"{file}: pretrain.boxes is true"):
        load_settings(file, {"seed": 1, "threads": 1})
