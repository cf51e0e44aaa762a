"""The whole procedure as a user runs it: the installed command, in processes of their own, on the `tiny` config."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

COMMAND = [str(Path(sys.executable).with_name("hitdet-nni"))]


def hitdet(*arguments, folder, check=True):
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def found(folder):
    """A finished search: its run directory."""
    hitdet("search", "--config", "tiny", "--out", "run", folder=folder)
    return folder / "run"


@pytest.fixture(scope="module")
def retrained(folder, found):
    """The found architecture, retrained: its run directory."""
    hitdet(
        "retrain",
        "--architecture",
        found / "architecture.json",
        "--config",
        "tiny",
        "--out",
        "retrained",
        folder=folder,
    )
    return folder / "retrained"


def test_search_leaves_every_file_of_a_run(found):
    files = {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file() and path.suffix != ".lock"}
    screening = {f"screening/{name}" for name in ("backbone.csv", "neck.csv", "head.csv", "sub_spaces.yml")}
    assert files == screening | {
        "config.yml",
        "metadata.json",
        "search/alphas.csv",
        "search/metrics.csv",
        "architecture.json",
    }
    metadata = json.loads((found / "metadata.json").read_text())
    assert set(metadata["seconds"]) == {"screening", "search"}
    assert metadata["seed"] == 0
    assert metadata["versions"]["nni"] == "3.0"


def test_screening_goes_from_32_operators_to_8(found):
    spaces = yaml.safe_load((found / "screening" / "sub_spaces.yml").read_text())
    for component, names in spaces.items():
        rows = list(csv.DictReader((found / "screening" / f"{component}.csv").open()))
        assert len([row for row in rows if row["epoch"] == "0"]) == 32
        assert len(names) == 8
        removed = {row["operator"] for row in rows if row["removed"] == "1"}
        assert len(removed) == 24
        assert not removed & set(names)


def test_every_choice_comes_from_its_sub_space(found):
    spaces = yaml.safe_load((found / "screening" / "sub_spaces.yml").read_text())
    architecture = json.loads((found / "architecture.json").read_text())
    for label, name in architecture["sample"].items():
        assert name in spaces[label.split("/")[0]]
    assert architecture["provenance"]["space"] == spaces


def test_the_json_builds_a_plain_detector_in_a_new_process(found):
    program = """
import sys
from hitdet_nni import build_detector, load_architecture
found = load_architecture(sys.argv[1])
detector = build_detector(found.skeleton, found.sample, found.num_classes)
assert type(detector).__module__.startswith("mmdet."), type(detector)
assert not [m for m in detector.modules() if any(c.__module__.startswith("nni") for c in type(m).__mro__)]
names = [name for name, _ in detector.named_modules()]
assert not [name for name in names if any(f"{op}_k" in name for op in ("ir", "sep", "conv"))], names
cost = found.provenance.cost[0]
assert sum(p.numel() for p in detector.parameters()) == cost.params["total"]
for part, module in (("backbone", detector.backbone), ("neck", detector.neck), ("rpn", detector.rpn_head)):
    assert sum(p.numel() for p in module.parameters()) == cost.params[part], part
"""
    command = [sys.executable, "-c", program, str(found / "architecture.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_retraining_writes_metrics_and_weights(retrained):
    metrics = json.loads((retrained / "metrics.json").read_text())
    assert metrics["metrics_before_training"]["mAP"] < 0.01
    assert set(metrics["metrics"]) == {"mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"}
    assert (retrained / metrics["weights"]).is_file()


def test_evaluate_repeats_the_retraining_s_figures(folder, found, retrained):
    metrics = json.loads((retrained / "metrics.json").read_text())
    done = hitdet(
        "evaluate",
        "--architecture",
        found / "architecture.json",
        "--weights",
        retrained / metrics["weights"],
        "--config",
        "tiny",
        "--json",
        folder=folder,
    )
    assert json.loads(done.stdout) == metrics["metrics"]


def test_weights_of_another_architecture_are_refused(folder, retrained):
    weights = retrained / "retrain" / "weights.pth"
    command = ("evaluate", "--architecture", "hit_detector", "--weights", weights, "--config", "tiny")
    done = hitdet(*command, folder=folder, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_profile_agrees_with_the_provenance(folder, found):
    done = hitdet("profile", "run", "--json", folder=folder)
    figures = json.loads(done.stdout)
    recorded = json.loads((found / "architecture.json").read_text())["provenance"]["cost"][0]
    assert figures == recorded
    table = hitdet("profile", "run", "--layers", folder=folder).stdout
    assert "backbone/l01" in table
    assert "total" in table


def test_export_decodes_the_last_epoch_to_the_same_sample(folder, found):
    hitdet("export", "run", "--out", "copy.json", folder=folder)
    hitdet("export", "run", "--epoch", 1, "--out", "decoded.json", folder=folder)
    original = json.loads((found / "architecture.json").read_text())
    assert json.loads((folder / "copy.json").read_text()) == original
    assert json.loads((folder / "decoded.json").read_text())["sample"] == original["sample"]
    refused = hitdet("export", "run", "--out", "copy.json", folder=folder, check=False)
    assert refused.returncode == 2
    assert "--force" in refused.stderr


def test_a_finished_run_is_not_overwritten(folder, found):
    before = (found / "architecture.json").read_bytes()
    refused = hitdet("search", "--config", "tiny", "--out", "run", folder=folder, check=False)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    resumed = hitdet("search", "--config", "tiny", "--out", "run", "--resume", folder=folder)
    assert "epoch" not in resumed.stdout
    assert (found / "architecture.json").read_bytes() == before


def test_plain_mmdet_trains_the_exported_config(folder, found):
    hitdet(
        "export-config",
        found / "architecture.json",
        "--config",
        "tiny",
        "--set",
        "retrain.epochs=1",
        "--set",
        "data.train=32",
        "-o",
        "hit.py",
        folder=folder,
    )
    program = """
from mmengine.config import Config
from mmengine.runner import Runner
config = Config.fromfile("hit.py")
config.work_dir = "plain"
Runner.from_cfg(config).train()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "plain" / "epoch_1.pth").is_file()


def test_cards_by_data_keys_alone(folder, shared_data):
    cards = shared_data / "cards"
    keys = {
        "builtin": "null",
        "train_ann": cards / "annotations" / "instances_train.json",
        "train_images": cards / "train",
        "val_ann": cards / "annotations" / "instances_val.json",
        "val_images": cards / "val",
        "batch_size": 16,
    }
    overrides = [part for key, value in keys.items() for part in ("--set", f"data.{key}={value}")]
    # The published sub spaces spare the test the screening, which the digits have shown.
    hitdet("search", "--config", "tiny", *overrides, "--sub-spaces", "spaces.yml", "--out", "cards", folder=folder)
    architecture = folder / "cards" / "architecture.json"
    hitdet("retrain", "--architecture", architecture, "--config", "tiny", *overrides, "--out", "cards2", folder=folder)
    assert json.loads((folder / "cards2" / "metrics.json").read_text())["metrics"]["mAP"] >= 0
    assert json.loads(architecture.read_text())["provenance"]["classes"] == [
        "nine",
        "ten",
        "jack",
        "queen",
        "king",
        "ace",
    ]


@pytest.fixture(scope="module", autouse=True)
def small_space(folder):
    names = ["sep_k3_d1", "ir_k3_d1_e1"]
    (folder / "spaces.yml").write_text(yaml.safe_dump(dict.fromkeys(("backbone", "neck", "head"), names)))
