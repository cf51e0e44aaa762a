"""The command line: exit status and the one line for bad input. Whole runs are in test_end_to_end."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch

import hitdet_nni
from hitdet_nni import cli
from hitdet_nni.commands import find_commands, find_modules
from hitdet_nni.commands.shared import work
from hitdet_nni.commands.shared.work import tell_of_cpu_presets
from hitdet_nni.config.architecture import save_architecture
from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.cost_model import PARTS
from hitdet_nni.cost.latency_table import load_latency_table
from hitdet_nni.engine.machine import processor
from hitdet_nni.engine.process import require_device
from hitdet_nni.nas.provenance import describe_architecture


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys, *arguments, names=()):
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for name in names:
        assert str(name) in err
    return err


def test_every_command_has_help_with_an_example(capsys):
    parser = cli.build_parser()
    for name, command in find_commands().items():
        example = command.EXAMPLE
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args([name, "--help"])
        assert stopped.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        assert example in text
        words = example.split()[1:]
        assert cli.build_parser(name).parse_args(words) == parser.parse_args(words)


def test_a_module_is_a_command_by_being_there(tmp_path, monkeypatch):
    folder = tmp_path / "some_commands"
    (folder / "shared").mkdir(parents=True)
    for name, place in (("__init__", 0), ("second_one", 2), ("first", 1), ("shared/helper", 3)):
        (folder / f"{name}.py").write_text(f"HELP_ORDER = {place}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(find_modules("some_commands")) == ["first", "second-one"]


def test_commands_have_places_of_their_own():
    for package in ("hitdet_nni.commands", "hitdet_nni.commands.study_kinds"):
        places = [module.HELP_ORDER for module in find_modules(package).values()]
        assert len(set(places)) == len(places)
        assert places == sorted(places)


@pytest.mark.parametrize("kind", ["digits", "digits_dense"])
def test_data_digits(capsys, tmp_path, kind):
    out = tmp_path / "digits"
    arguments = ("data", kind, "--out", out, "--train", 3, "--val", 2, "--size", 64, "--seed", 1)
    assert run(capsys, *arguments)[0] == 0
    written = json.loads((out / "annotations" / "instances_train.json").read_text())
    assert (len(written["images"]), written["info"]["set"]) == (3, kind)
    refused(capsys, *arguments, names=[out])
    assert run(capsys, *arguments, "--force")[0] == 0
    refused(capsys, "data", kind, "--out", tmp_path / "other", "--train", 0, names=["train", "0"])
    assert not (tmp_path / "other").exists()


def test_profile_of_the_released_network(capsys):
    arguments = (
        "profile",
        "hit_detector",
        "--shape",
        800,
        1216,
        "--proposals",
        1000,
        "--convention",
        "paper",
        "--json",
    )
    status, out, _ = run(capsys, *arguments)
    assert status == 0
    figures = json.loads(out)
    assert set(figures) == {"convention", "shape", "proposals", "params", "flops"}
    millions = {part: round(count / 1e6, 2) for part, count in figures["params"].items()}
    assert millions == {"backbone": 13.88, "neck": 2.72, "rpn": 0.59, "head": 9.93, "total": 27.12}
    assert round(figures["flops"]["total"] / 1e9, 1) == 272.3


def test_profile_of_one_stage_says_that_proposals_do_not_matter(capsys):
    status, out, err = run(capsys, "profile", "retinanet_r50", "--proposals", 1000, "--convention", "paper", "--json")
    assert status == 0
    assert round(json.loads(out)["params"]["total"] / 1e6, 2) == 37.97
    assert "--proposals changes nothing" in err
    assert err.count("\n") == 1


def test_profile_refuses(capsys, tmp_path):
    refused(capsys, "profile", tmp_path / "none.json", names=["none.json"])
    refused(capsys, "profile", tmp_path, names=[tmp_path])
    refused(capsys, "profile", "nothing", names=["nothing", "hit_detector", "fpn_r50_2fc"])
    refused(capsys, "profile", "hit_detector", "--proposals", -1, names=["--proposals", "-1"])
    refused(capsys, "profile", "fpn_r50_2fc", "--layers", names=["--layers"])
    refused(capsys, "profile", tmp_path / "none.py", names=["none.py"])


def test_profile_of_an_mmdet_config(capsys, tmp_path):
    status, out, _ = run(capsys, "profile", "fpn_r50_2fc", "--convention", "paper", "--json")
    assert status == 0
    figures = json.loads(out)
    assert set(figures) == {"convention", "shape", "proposals", "params", "flops"}
    assert (figures["shape"], figures["proposals"]) == ([800, 1216], 1000)
    assert round(figures["flops"]["total"] / 1e9, 1) == 197.4
    path = tmp_path / "mine.py"
    path.write_text("_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'\n")
    status, out, _ = run(capsys, "profile", path, "--shape", 320, 320)
    assert status == 0
    assert "mine, 320 x 320, 0 proposals, macs" in out
    assert "37.969" in out


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("search.epoch=3", ["search.epoch", "epochs"]),
        ("nothing=3", ["nothing", "skeleton"]),
        ("search.epochs=many", ["search.epochs", "many"]),
        ("search.epochs", ["--set", "dotted.key=value"]),
        ("seed.deep=1", ["seed", "integer"]),
        ("skeleton.widths=[8, 8]", ["skeleton"]),
        ("space=other", ["other", "full"]),
        ("screening.fixed.neck=pool_k3", ["screening.fixed", "pool_k3"]),
        ("data.builtin=mnist", ["data.builtin", "mnist", "digits"]),
        ("data.builtin=null", ["data", "train_ann"]),
        ("data.train_ann=x.json", ["data", "builtin"]),
        ("screening.keep.head=33", ["screening.keep.head", "33"]),
    ],
)
def test_bad_settings_leave_nothing_behind(capsys, tmp_path, override, names):
    refused(capsys, "search", "--config", "tiny", "--set", override, "--out", tmp_path / "run", names=names)
    assert not (tmp_path / "run").exists()


def test_bad_config_files(capsys, tmp_path):
    missing = tmp_path / "mine.yml"
    refused(capsys, "screen", "--config", missing, "--out", tmp_path / "run", names=[missing])
    refused(capsys, "screen", "--config", "huge", "--out", tmp_path / "run", names=["huge", "tiny"])
    err = refused(capsys, "screen", "--config", "nano-cpu", "--out", tmp_path / "run", names=["nano-cpu"])
    assert "(the nearest is nano_cpu)" in err
    for base in ("nano-cpu", "absent.yml"):
        missing.write_text(f"extends: {base}")
        names = [f"{missing}: extends: '{base}': no such file"]
        refused(capsys, "screen", "--config", missing, "--out", tmp_path / "run", names=names)
    missing.write_text("data: [")
    refused(capsys, "screen", "--config", missing, "--out", tmp_path / "run", names=[missing, "YAML"])
    assert not (tmp_path / "run").exists()


@pytest.fixture
def coco(tmp_path, tiny_data):
    """A config of one's own COCO-format data, to be broken; the annotation file's content and path."""
    annotations = json.loads(tiny_data.val.ann.read_text())
    ann = tmp_path / "ann.json"
    ann.write_text(json.dumps(annotations))
    config = tmp_path / "mine.yml"
    images = tiny_data.val.images
    config.write_text(
        f"extends: tiny\ndata:\n  builtin: null\n  train_ann: ann.json\n  train_images: {images}\n"
        f"  val_ann: ann.json\n  val_images: {images}\n"
    )
    return config, ann, annotations


def test_check_data_counts(capsys, coco):
    config, _, annotations = coco
    status, out, _ = run(capsys, "check-data", "--config", config, "--json")
    assert status == 0
    assert json.loads(out)["val"]["boxes"] == len(annotations["annotations"])
    assert run(capsys, "check-data", "--config", config)[0] == 0


def test_bad_data_leaves_nothing_behind(capsys, tmp_path, coco):
    config, ann, annotations = coco

    def attempt(content, *names):
        ann.write_text(content if isinstance(content, str) else json.dumps(content))
        refused(capsys, "search", "--config", config, "--out", tmp_path / "run", names=[ann, *names])
        refused(capsys, "check-data", "--config", config, names=[ann, *names])
        assert not (tmp_path / "run").exists()

    attempt("{", "JSON")
    attempt({**annotations, "images": [], "annotations": []}, "images")
    absent = json.loads(json.dumps(annotations))
    absent["images"][1]["file_name"] = "absent.png"
    attempt(absent, "absent.png", "images[1].file_name")
    wide = json.loads(json.dumps(annotations))
    wide["annotations"][0]["bbox"] = [1, 2, "three", 4]
    attempt(wide, "annotations[0].bbox")
    ann.unlink()
    refused(capsys, "search", "--config", config, "--out", tmp_path / "run", names=[ann])


def test_out_must_be_free(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refused(capsys, "search", "--config", "tiny", "--out", tmp_path, "--force", names=[tmp_path])
    refused(capsys, "search", "--config", "tiny", "--out", tmp_path / "notes.txt", names=["notes.txt"])
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_evaluate_refuses_what_is_not_weights(capsys, tmp_path):
    weights = tmp_path / "weights.pth"
    arguments = ("evaluate", "--architecture", "hit_detector", "--weights", weights, "--config", "tiny")
    refused(capsys, *arguments, names=["classes"])


@pytest.fixture(scope="module")
def small_table(tmp_path_factory):
    """A table of the smallest space of `tiny`, measured by the command, and the arguments that name both."""
    folder = tmp_path_factory.mktemp("latency")
    space, table = folder / "space.yml", folder / "table.json"
    space.write_text("backbone: [sep_k3_d1, ir_k3_d1_e1]\nneck: [sep_k3_d1]\nhead: [conv_k3_d1, sep_k3_d1]\n")
    chosen = ["--config", "tiny", "--set", f"space={space}", "--set", "data.train=8", "--set", "data.val=2"]
    measured = ["--rounds", "1", "--pause", "0"]
    assert cli.main(["latency", *chosen, *measured, "--detectors", "2", "--out", str(table)]) == 0
    return table, chosen, measured


def test_latency_is_measured_profiled_and_predicted(capsys, tmp_path, small_table):
    table, chosen, measured = small_table
    content = load_latency_table(table).content
    assert (content.conditions.machine, content.conditions.threads, len(content.detectors)) == (processor("cpu"), 1, 2)
    assert {len(row) for row in content.layers_ms.values()} == {1, 2}
    settings = load_settings("tiny")
    sample = {label: next(iter(row)) for label, row in content.layers_ms.items()}
    file = tmp_path / "found.json"
    space = {"backbone": ["sep_k3_d1"], "neck": ["sep_k3_d1"], "head": ["conv_k3_d1"]}
    save_architecture(
        describe_architecture("found", sample, space, settings, tuple("0123456789"), source="search"), file
    )
    status, printed, _ = run(capsys, "profile", file, "--latency", table, "--layers", "--json")
    assert status == 0
    found = json.loads(printed)
    overhead = found["latency_ms"]["total"] - sum(found["latency_ms"][part] for part in PARTS)
    assert overhead == pytest.approx(content.overhead_ms, abs=1e-5)
    layers = {layer["layer"]: layer["latency_ms"] for layer in found["layers"]}
    assert layers["head/l01"] == pytest.approx(content.layers_ms["head/l01"]["conv_k3_d1"], abs=1e-5)
    assert sum(layers.values()) + overhead == pytest.approx(found["latency_ms"]["total"])
    table_text = run(capsys, "profile", file, "--latency", table)[1]
    assert "overhead" in table_text
    assert f"{found['latency_ms']['total']:.3f}" in table_text
    assert "overhead" not in run(capsys, "profile", file)[1]

    out = tmp_path / "study"
    arguments = ("study", "latency", *chosen, *measured, "--table", table, "--architectures", 3, "--out", out, "--json")
    status, printed, _ = run(capsys, *arguments)
    assert status == 0
    report = json.loads(printed)
    assert len(report["rows"]) == 3
    for row in report["rows"]:
        assert row["error"] == pytest.approx(abs(row["predicted_ms"] - row["measured_ms"]) / row["measured_ms"])
    assert 0 <= report["summary"]["median_error"] <= report["summary"]["largest_error"]
    assert (out / "latency.png").stat().st_size > 1000


def test_latency_refuses_in_one_line(capsys, tmp_path, small_table):
    table, chosen, _ = small_table
    for wrong, names in (
        (["--threads", 0], ["--threads", "0"]),
        (["--rounds", 0], ["--rounds", "0"]),
        (["--pause", -1], ["--pause", "-1"]),
        (["--detectors", 0], ["--detectors", "0"]),
        (["--sub-spaces", tmp_path / "none.yml"], ["none.yml"]),
    ):
        refused(capsys, "latency", *chosen, *wrong, "--out", tmp_path / "other.json", names=names)
    refused(capsys, "latency", *chosen, "--out", table, names=[table, "--force"])
    refused(capsys, "profile", "hit_detector", "--latency", table, names=[table, "was measured with"])
    refused(capsys, "profile", "fpn_r50_2fc", "--latency", table, names=["--latency"])
    study = ("study", "latency", *chosen, "--out", tmp_path / "study")
    refused(capsys, *study, "--table", tmp_path / "none.json", names=["none.json"])
    refused(capsys, *study, "--table", table, "--architectures", 2, names=["--architectures", "3 or more"])
    other = tmp_path / "phone.json"
    other.write_text(table.read_text().replace(processor("cpu"), "a phone"))
    refused(capsys, *study, "--table", other, names=["a phone", processor("cpu")])
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(("local_rank", "lines"), [("0", 1), ("1", 0)])
def test_of_several_processes_one_tells_what_is_wrong(monkeypatch, capsys, local_rank, lines):
    """On each machine: the others read other files."""
    for name, value in (("WORLD_SIZE", "4"), ("RANK", f"{2 + int(local_rank)}"), ("LOCAL_RANK", local_rank)):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(logging.getLogger("hitdet_nni"), "level", logging.NOTSET)
    assert cli.main(["search", "--config", "tiny", "--set", "search.epochs=x", "--out", "nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == lines


def test_a_home_that_cannot_be_written(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no such folder")
    assert cli.main(["search", "--config", "tiny", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "/proc/no such folder/hitdet-nni" in error
    assert "a home that can be written, or another XDG_CACHE_HOME" in error
    assert "--resume" not in error


@pytest.mark.parametrize("device", ["meta", "mps", "xpu", "gpu", "cuda:77"])
def test_devices_that_are_none_here(device, refused):
    with refused("device", "cpu"):
        require_device(device)


def test_a_gpu_preset_on_a_machine_without_one(capsys, monkeypatch):
    """Its stages are three times as long as those of the preset that is for such a machine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(work, "logger", SimpleNamespace(warning=lambda line: told.append(line)))
    told = []
    for preset in ("nano", "nano_cpu"):
        tell_of_cpu_presets(load_settings(preset, {"data.builtin": "digits"}))
    (line,) = told
    assert "end in _cpu" in line


def test_public_names_are_completed():
    assert {"search", "load", "Run"} <= set(dir(hitdet_nni)) == {*hitdet_nni.__all__, "__version__"}
