"""The whole pipeline as the README and the pages tell it, on the `tiny` config."""

import ast
import csv
import io
import json
import os
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from pages import DOCS, ROOT, blocks, commands

from hitdet_nni import cli
from hitdet_nni.config.skeleton import COMPONENTS

COMMAND = [str(Path(sys.executable).with_name("hitdet-nni"))]


class Done(NamedTuple):
    """What a command ended with."""

    returncode: int
    stdout: str
    stderr: str


def in_new_process(arguments, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def in_this_process(arguments, folder):
    """The same command without the seconds that its imports take."""
    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            return Done(cli.main(arguments), out.getvalue(), err.getvalue())
    finally:
        os.chdir(before)


def hitdet(*arguments, folder, check=True):
    done = in_this_process([str(argument) for argument in arguments], folder)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def stages(folder):
    """The stages by hand of the quickstart, run as they stand there; the README has the same."""
    commands_by_hand = [
        line for line in commands(DOCS / "quickstart.md", starting="hitdet-nni") if "--resume" not in line
    ]
    others = commands(ROOT / "README.md", starting="hitdet-nni")
    first = others.index(commands_by_hand[0])
    assert others[first : first + len(commands_by_hand)] == commands_by_hand
    first, *others = (shlex.split(command)[1:] for command in commands_by_hand)
    done = in_new_process([*COMMAND, *first], folder)
    assert done.returncode == 0, done.stderr
    assert "memory of a step: about" in done.stdout
    for arguments in others:
        hitdet(*arguments, folder=folder)


@pytest.fixture(scope="module")
def found(folder, stages):
    """A finished search: its run directory."""
    return folder / "runs" / "mine"


@pytest.fixture(scope="module")
def retrained(folder, stages):
    """The found architecture, retrained: its run directory."""
    return folder / "runs" / "mine-retrained"


def test_search_leaves_every_file_of_a_run(found):
    files = {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file() and path.suffix != ".lock"}
    screening = {
        f"screening/{component}{part}" for component in COMPONENTS for part in (".csv", "_halves.json", "_notes.json")
    }
    assert files == screening | {
        "screening/sub_spaces.yml",
        "config.yml",
        "metadata.json",
        "search/alphas.csv",
        "search/halves.json",
        "search/metrics.csv",
        "search/supernet.pth",
        "report.html",
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


def test_evaluate_repeats_the_figures_of_the_retraining(folder, found, retrained):
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
    done = hitdet("profile", "runs/mine", "--json", folder=folder)
    figures = json.loads(done.stdout)
    recorded = json.loads((found / "architecture.json").read_text())["provenance"]["cost"][0]
    assert figures == recorded
    table = hitdet("profile", "runs/mine", "--layers", folder=folder).stdout
    assert "backbone/l01" in table
    assert "total" in table


def test_export_decodes_the_last_epoch_to_the_same_sample(folder, found):
    hitdet("export", "runs/mine", "--out", "copy.json", folder=folder)
    hitdet("export", "runs/mine", "--epoch", 1, "--out", "decoded.json", folder=folder)
    original = json.loads((found / "architecture.json").read_text())
    assert json.loads((folder / "copy.json").read_text()) == original
    assert json.loads((folder / "decoded.json").read_text())["sample"] == original["sample"]
    refused = hitdet("export", "runs/mine", "--out", "copy.json", folder=folder, check=False)
    assert refused.returncode == 2
    assert "--force" in refused.stderr


def test_a_finished_run_is_not_overwritten(folder, found):
    before = (found / "architecture.json").read_bytes()
    refused = hitdet("search", "--config", "tiny", "--out", "runs/mine", folder=folder, check=False)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    (resume,) = (line for line in commands(DOCS / "quickstart.md", starting="hitdet-nni") if "--resume" in line)
    resumed = hitdet(*shlex.split(resume)[1:], folder=folder)
    assert "epoch" not in resumed.stdout
    assert (found / "architecture.json").read_bytes() == before


def test_plain_mmdet_trains_the_exported_config(folder, stages):
    program = """
from mmengine.config import Config
from mmengine.runner import Runner
config = Config.fromfile("hit.py")
config.train_cfg.max_epochs = 1
Runner.from_cfg(config).train()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "work_dir" / "epoch_1.pth").is_file()


def test_nni_code_of_the_readme_runs(folder):
    (block,) = (one for one in blocks(ROOT / "README.md", "python") if "NasExperiment" in one.text)
    done = subprocess.run([sys.executable, "-c", block.text], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    printed = next(line for line in done.stdout.splitlines() if line.startswith("[{"))  # amid NNI's log
    sample = ast.literal_eval(printed)[0]
    assert len(sample) == 12
    assert sample["backbone/l01"] in ("ir_k3_d1_e1", "sep_k3_d1")


@pytest.mark.slow
def test_cards_by_the_page_s_config(folder, shared_data):
    own = folder / "own"
    own.mkdir()
    (own / "my_images").symlink_to(shared_data / "cards")
    page = DOCS / "your_data.md"
    config = next(block for block in blocks(page, "yaml") if block.name == "my_data.yml")
    (own / config.name).write_text(config.text)
    check, search = (shlex.split(command)[1:] for command in commands(page, starting="hitdet-nni")[:2])
    assert "296" in hitdet(*check, folder=own).stdout
    # The same command in little: fewer operators, channels, pixels and epochs.
    names = ["sep_k3_d1", "ir_k3_d1_e1"]
    (own / "spaces.yml").write_text(yaml.safe_dump(dict.fromkeys(("backbone", "neck", "head"), names)))
    little = ["skeleton.input_size=[96, 96]", "search.epochs=2", "retrain.epochs=1", "data.batch_size=16"]
    little += ["search.warmup_epochs=1", "precision=fp32", "skeleton.widths=[8, 12, 16, 24]", "skeleton.neck_width=16"]
    little += ["skeleton.depths=[1, 1, 1, 1]", "skeleton.head_width=16", "skeleton.head_fc=32"]
    overrides = [part for setting in little for part in ("--set", setting)]
    hitdet(*search, "--sub-spaces", "spaces.yml", *overrides, folder=own)
    architecture = own / "runs" / "mine" / "architecture.json"
    trained = own / "runs" / "trained"
    command = ("retrain", "--architecture", architecture, "--config", config.name, *overrides, "--out", trained)
    hitdet(*command, folder=own)
    assert json.loads((trained / "metrics.json").read_text())["metrics"]["mAP"] >= 0
    classes = json.loads(architecture.read_text())["provenance"]["classes"]
    assert classes == ["nine", "ten", "jack", "queen", "king", "ace"]
