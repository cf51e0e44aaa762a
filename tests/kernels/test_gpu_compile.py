"""The programs of a GPU compile for it, without one, with the types and constants that a layer starts them with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hitdet_nni.operators.registry import OPERATORS

HOPPER, AMPERE = 90, 80

STACK = 64
"""Bytes of a thread's stack, at most: more would be registers spilled in the loops."""

PROGRAMS = {
    *("depthwise.convolve", "depthwise.strided_grad_x", "depthwise.grad_weights"),
    *("moments.columns", "moments.join"),
    *("normalization.normalize_relu", "normalization.sums", "normalization.gradient"),
    *("mixture.add_weighted", "mixture.sums", "mixture.gradient"),
}


def compiled(folder, capability, kind, sizes, names):
    """What compiling gives, a row a program."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_for_gpu.py")
    done = subprocess.run(
        [sys.executable, str(script), str(capability), kind, sizes, *names],
        capture_output=True,
        text=True,
        env={**environment, "TRITON_CACHE_DIR": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(rows):
    assert {row["program"] for row in rows} == PROGRAMS
    assert [row for row in rows if row["stack"] > STACK] == []


def test_programs_compile_for_a_hopper(tmp_path):
    check(compiled(tmp_path, HOPPER, "bf16", "1x40,2x40", ["ir_k3_d1_e3"]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("capability", [HOPPER, AMPERE])
def test_programs_of_all_operators_compile(tmp_path, capability, kind, figure):
    rows = compiled(tmp_path, capability, kind, "1x40,2x40,1x7", OPERATORS)
    registers, stack = (max(row[name] for row in rows) for name in ("registers", "stack"))
    figure(f"sm_{capability}, {kind}: {len(rows)} programs, at most {registers} registers and {stack} bytes of stack")
    check(rows)
