"""The benchmarks: how they measure, that they run, and that their page is what they printed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.operators.registry import build_operator

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scripts(benchmark_scripts):
    """The benchmarks' modules by name."""
    return benchmark_scripts("document", "measure")


def test_page_is_what_the_benchmarks_printed(scripts):
    document = scripts["document"]
    assert document.PAGE.read_text(encoding="utf-8") == document.page()


def test_every_layer_and_supernet_is_on_the_page(scripts):
    figures = json.loads((scripts["document"].FIGURES / "supernet_step.json").read_text())["figures"]
    layers = {(row["case"], row["candidates"]) for row in figures if row["saved_mb"] is not None}
    assert layers == {(case, candidates) for case in ("backbone", "neck", "head") for candidates in (8, 32)}
    supernets = {row["case"].split(",")[0] for row in figures if row["saved_mb"] is None}
    assert supernets == {
        "trinity",
        "screening backbone",
        "screening neck",
        "screening head",
        "screening all",
    }


def test_ratio_is_the_median_of_the_rounds_ratios(scripts):
    times = {"slow": [4.0, 9.0, 10.0], "fast": [1.0, 3.0, 5.0]}
    assert scripts["measure"].median_ratio(times, "slow", "fast") == 3.0


def test_interleaved_runs_every_step_once_a_round(scripts):
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = scripts["measure"].interleaved(steps, 2, torch.device("cpu"))
    assert [len(values) for values in times.values()] == [2, 2, 2]
    assert [sorted(calls[i : i + 3]) for i in range(0, 9, 3)] == [["a", "b", "c"]] * 3
    assert len({calls[0], calls[3], calls[6]}) == 3


def test_saved_bytes_are_those_of_what_backward_needs(scripts):
    x, y = (torch.ones(100, 10, requires_grad=True) for _ in range(2))
    measured = scripts["measure"].saved_bytes
    assert measured(lambda: (x * y).exp(), [x, y]) == 100 * 10 * 4
    assert measured(lambda: x * y, []) == 2 * 100 * 10 * 4


def test_peak_is_that_of_a_step_over_idle(scripts):
    peak = scripts["measure"].peak_bytes(lambda: torch.ones(16 * 2**20).sum(), torch.device("cpu"))
    assert peak == pytest.approx(64 * 2**20, rel=0.1)


@pytest.mark.parametrize("real", [2.0, 1.5, 3.0])
def test_climb_ends_at_the_largest_batch_that_is_held(scripts, real):
    """A batch needs 1 GB and 2 GB an image; beyond the two that are known, more or less than they let expect."""
    tried = []

    def held(batch):
        tried.append(batch)
        need = 5 + real * (batch - 2)
        return (need, 0.1) if need <= 20 else None

    largest = int(2 + 15 // real)
    climb, known = scripts["measure"].climb, {1: (3.0, 0.1), 2: (5.0, 0.1)}
    found, certain = climb(held, known, 20.0)
    assert certain
    assert max(found) == largest
    assert found == {batch: (5 + real * (batch - 2), 0.1) for batch in tried if batch <= largest}
    assert tried[0] == 9
    assert len(set(tried)) == len(tried) <= 5
    assert climb(lambda batch: None, {1: (3.0, 0.1), 2: (3.0, 0.1)}, 3.5) == ({}, True)
    left = iter([True, False])
    found, certain = climb(held, known, 20.0, lambda: next(left))  # the clock ends it
    assert (list(found), certain) == ([9] if real <= 2 else [], False)


@pytest.mark.slow
def test_layers_in_two_processes():
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += [str(BENCHMARKS / "synced_layer.py"), "--json", "--quick", "--rounds", "1"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures = json.loads(printed[printed.index("{") :])["figures"]
    exchanges = {(row["case"], row["implementation"]): row["exchanges"] for row in figures}
    assert len(exchanges) == 3 * 4
    published = load_search_space("hit_detector")
    for case in ("backbone", "neck", "head"):
        modules = [build_operator(name, 4, 4, 1) for name in published[case]]
        norms = sum(isinstance(part, torch.nn.BatchNorm2d) for module in modules for part in module.modules())
        assert exchanges[case, "stock"] == 2 * 2 * norms  # once in each pass of each phase
        assert exchanges[case, "fused"] == exchanges[case, "fused-low"] == exchanges[case, "fused-min"]
    assert exchanges["backbone", "fused-low"] < exchanges["backbone", "stock"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["supernet_step.py", "peers.py", "start_up.py", "search_step.py", "largest_batch.py"]
)
def test_script_prints_its_figures(script):
    options = {
        "supernet_step.py": ["--quick"],
        "search_step.py": ["--only", "search", "--steps", "2"],
        "largest_batch.py": ["--config", "tiny", "--only", "trinity"],
    }
    command = [sys.executable, str(BENCHMARKS / script), "--json", *options.get(script, [])]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures = json.loads(printed[printed.index("{") :])["figures"]
    assert figures
