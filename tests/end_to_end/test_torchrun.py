"""The quickstart's command for several processes, from the command line to the files."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pages import DOCS, commands


@pytest.mark.slow
def test_two_processes_leave_one_run(tmp_path):
    names = ["sep_k3_d1", "ir_k3_d1_e1", "conv_k3_d1"]
    (tmp_path / "space.yml").write_text(yaml.safe_dump(dict.fromkeys(("backbone", "neck", "head"), names)))
    (command,) = commands(DOCS / "quickstart.md", starting="torchrun ")
    program, *arguments = shlex.split(command)
    little = [
        "space=space.yml",
        "data.train=32",
        *(f"screening.keep.{part}=2" for part in ("backbone", "neck", "head")),
    ]
    overrides = [part for setting in little for part in ("--set", setting)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(Path(sys.executable).with_name(program)), *arguments, *overrides],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    # The main process speaks, once; 0.04 for a batch of 4 is 0.08 for two processes' 8.
    assert len([line for line in lines if line.startswith("search  epoch")]) == 2
    assert "learning rate 0.04 x 8 / 4 = 0.08 for a global batch of 8 = 2 x 4" in lines
    run = tmp_path / "runs" / "two"
    architecture = json.loads((run / "architecture.json").read_text())
    assert set(architecture["sample"].values()) <= set(names)
    assert not (run / "checkpoints" / "search").exists()
