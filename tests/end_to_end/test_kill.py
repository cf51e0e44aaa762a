"""The whole pipeline, killed by SIGKILL at random moments, against the pipeline left in peace."""

import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

KILLS = 10

PROGRAM = """
import json, os, signal, sys, threading
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from hitdet_nni import cli

commands, steps, delay = json.loads(sys.argv[1])
made = 0

def count(*_):
    global made
    made += 1
    if made == steps:  # at some moment of this step, or of what follows it
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

register_optimizer_step_pre_hook(count)
for command in commands:
    status = cli.main(command)
    if status:
        sys.exit(status)
print("STEPS", made)
"""


@pytest.fixture
def config(tmp_path):
    """The smallest settings in which every stage has several epochs and steps, with images to pretrain on."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for name, value in (("dark", 60), ("light", 200)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(value, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    names = ["sep_k3_d1", "ir_k3_d1_e1", "conv_k3_d1"]
    space = {"backbone": names, "neck": names[:2], "head": names[:2]}
    (tmp_path / "space.yml").write_text(yaml.safe_dump(space))
    settings = {
        "extends": "tiny",
        "space": "space.yml",
        "data": {"train": 16, "val": 4, "flip": True},
        "screening": {"epochs": 2, "warmup_epochs": 1, "keep": {"backbone": 2, "neck": 2, "head": 2}},
        "search": {"epochs": 3, "warmup_epochs": 1},
        "retrain": {"epochs": 3},
        "pretrain": {
            "train_images": "images/train",
            "val_images": "images/val",
            "size": 32,
            "batch_size": 4,
            "epochs": 2,
        },
        "checkpoint": {"every_steps": 1},
    }
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(settings))
    return path


def commands(config, root):
    """Every stage: pretraining, the screening of each component, the search, the retraining."""
    shared = ("--config", str(config), "--set", f"search.pretrained={root / 'pretrained' / 'weights.pth'}", "--resume")
    found = root / "found" / "architecture.json"
    return [
        ["pretrain", *shared, "--out", str(root / "pretrained")],
        ["search", *shared, "--out", str(root / "found")],
        ["retrain", *shared, "--architecture", str(found), "--out", str(root / "retrained")],
    ]


def run(arguments, steps=0, delay=0.0):
    """Run the stages in a new process; kill it some seconds after a number of optimiser steps, if that is given."""
    program = [sys.executable, "-c", PROGRAM, json.dumps([arguments, steps, delay])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(program, capture_output=True, text=True, check=False, env=environment)


def results(root):
    """What must be equal bit by bit: alphas, architecture, all weights, metrics."""
    weights = {
        str(path.relative_to(root)): torch.load(path, weights_only=True)["state_dict"]
        for path in sorted(root.glob("**/*.pth"))
    }
    architecture = json.loads((root / "found" / "architecture.json").read_text())
    metrics = json.loads((root / "retrained" / "metrics.json").read_text())
    return {
        "alphas": (root / "found" / "search" / "alphas.csv").read_text(),
        "screening": {path.name: path.read_text() for path in sorted((root / "found" / "screening").glob("*.csv"))},
        "architecture": architecture["sample"],
        "metrics": metrics,
        "weights": weights,
    }


def assert_bit_equal(one, other):
    assert one["weights"].keys() == other["weights"].keys()
    assert {"pretrained/weights.pth", "found/search/supernet.pth", "retrained/retrain/weights.pth"} <= set(
        one["weights"]
    )
    for file, state in one["weights"].items():
        for name, value in state.items():
            equal = torch.equal(value, other["weights"][file][name]) if torch.is_tensor(value) else True
            assert equal, (file, name)
    assert {**one, "weights": None} == {**other, "weights": None}


@pytest.mark.slow
def test_ten_kills_change_nothing(config, tmp_path, figure):
    peace = run(commands(config, tmp_path / "peace"))
    assert peace.returncode == 0, peace.stderr[-3000:]
    total = int(peace.stdout.rsplit("STEPS ", 1)[1])

    rng = random.Random(20)
    told = []
    for number in range(KILLS):
        # A tenth of the steps each, in the mean, so that the moments fall into all stages.
        steps, delay = rng.randint(1, max(1, 2 * total // KILLS - 1)), rng.uniform(0, 0.3)
        done = run(commands(config, tmp_path / "killed"), steps, delay)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
        stages = sorted(path.name for path in (tmp_path / "killed").glob("**/checkpoints/*") if path.is_dir())
        told.append(f"{number + 1}: after {steps} more steps and {delay:.2f} s, in {', '.join(stages) or 'between'}")
    assert len(told) == KILLS
    last = run(commands(config, tmp_path / "killed"))
    assert last.returncode == 0, last.stderr[-3000:]
    figure(f"{total} optimiser steps in all; SIGKILL {'; '.join(told)}")
    assert_bit_equal(results(tmp_path / "peace"), results(tmp_path / "killed"))
