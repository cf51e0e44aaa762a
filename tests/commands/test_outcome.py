"""What a search ends with, which architecture a command takes, and what is said of its skeleton."""

import shlex

import pytest
from torch.distributed.run import get_args_parser

from hitdet_nni import cli
from hitdet_nni.commands.shared.outcome import config_words, search_outcome, training_outcome
from hitdet_nni.commands.shared.trained import named_architecture
from hitdet_nni.config.architecture import save_architecture
from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.errors import InputError
from hitdet_nni.nas.provenance import describe_architecture, tell_unused_skeleton
from hitdet_nni.runs.run_directory import RunDirectory

SPACE = {component: ["sep_k3_d1"] for component in COMPONENTS}


@pytest.fixture
def found():
    settings = load_settings("tiny")
    sample = {layer.label: "sep_k3_d1" for layer in settings.skeleton.searched_layers()}
    return describe_architecture("mine", sample, SPACE, settings, tuple("0123456789"))


def outcome(found, path, **budget):
    settings = load_settings("tiny", {f"search.budget.{key}": value for key, value in budget.items()})
    words = config_words("my data.yml", ["seed=1"])
    return search_outcome(RunDirectory(path), found, settings.search.budget, words)


def test_a_search_ends_with_what_it_found_and_a_command_that_can_be_called(found, tmp_path):
    figures, file, following = outcome(found, tmp_path / "run")
    cost = found.provenance.cost[0]
    params, flops = cost.params["total"] / 1e6, cost.flops["total"] / 1e9
    assert figures == f"found: {params:.3g} M parameters, {flops:.3g} GFLOPs"
    assert file == str(tmp_path / "run" / "architecture.json")
    words = shlex.split(following.removeprefix("next: "))
    options = cli.build_parser("retrain").parse_args(words[1:])
    assert (options.architecture, options.config, options.overrides) == (file, "my data.yml", ["seed=1"])
    assert options.out == tmp_path / "run-retrained"


@pytest.mark.parametrize(("share", "lines"), [(0.9, 3), (0.5, 5)])
def test_what_is_used_of_a_budget_and_the_front_where_much_is_left(found, tmp_path, share, lines):
    gflops = found.provenance.cost[0].flops["total"] / 1e9
    figures, *others = outcome(found, tmp_path / "run", gflops=gflops / share)
    assert figures.endswith(f"; {share:.0%} of the budget of {gflops / share:g} GFLOPs is used")
    assert len(others) + 1 == lines
    for line, command in zip(others[2:], ("front", "retrain"), strict=False):
        words = shlex.split(line.split(": ", 1)[1])
        options = cli.build_parser(command).parse_args(words[1:])
        budgets = options.budget if command == "front" else [options.budget]
        assert budgets == [pytest.approx(gflops / share, rel=1e-5)]


@pytest.mark.parametrize(
    ("processes", "on_this_machine", "start"),
    [
        (1, 1, "hitdet-nni"),
        (2, 2, "torchrun --nproc-per-node 2 -m hitdet_nni"),
        (
            16,
            8,
            "torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:PORT --nproc-per-node 8 -m hitdet_nni",
        ),
    ],
)
def test_what_follows_starts_as_many_processes(found, tmp_path, monkeypatch, processes, on_this_machine, start):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(on_this_machine))
    gflops = found.provenance.cost[0].flops["total"] / 1e9
    lines = outcome(found, tmp_path / "run", gflops=2 * gflops)[2:]
    for line, command in zip(lines, ("retrain", "front", "retrain"), strict=True):
        assert line.split(": ", 1)[1].startswith(f"{start} {command} ")
    if processes > 1:
        get_args_parser().parse_args(shlex.split(lines[0].split(": ", 1)[1])[1:])


def test_a_baseline_of_unknown_cost_has_no_cost(tmp_path):
    result = {"metrics": {"mAP": 0.25, "mAP_50": 0.5}, "params_m": None, "gflops": None}
    assert training_outcome(RunDirectory(tmp_path), result)[0] == "mAP 0.250, mAP_50 0.500"


def test_an_architecture_is_named_by_its_file_its_run_or_its_name(found, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.open(load_settings("tiny"))
    save_architecture(found, run.architecture)
    assert named_architecture(str(run.path)) == named_architecture(str(run.architecture)) == found
    assert named_architecture("hit_detector").name == "hit_detector"
    with pytest.raises(InputError, match="none/run: no such run directory or file"):
        named_architecture("none/run")
    with pytest.raises(InputError, match="the nearest is hit_detector"):
        named_architecture("hit-detector")


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, []),
        (
            {"input_size": [64, 64]},
            [
                "the skeleton of the architecture mine is used, not the config's: input_size [96, 96] (config: [64, "
                "64]); retrain.transfer=true trains at the config's"
            ],
        ),
        (
            {"head_fc": 32},
            ["the skeleton of the architecture mine is used, not the config's: head_fc 64 (config: 32)"],
        ),
        (
            {"head_fc": 32, "head_width": 8, "neck_width": 8, "stem_channels": 4, "roi_samples": 8, "head_blocks": 1},
            [
                "the skeleton of the architecture mine is used, not the config's: stem_channels 8 (config: 4), "
                "neck_width 24 (config: 8), head_width 24 (config: 8), head_blocks 2 (config: 1) and 2 more"
            ],
        ),
    ],
)
def test_a_skeleton_that_is_not_used_is_said(found, caplog, changes, lines):
    settings = load_settings("tiny", {f"skeleton.{key}": value for key, value in changes.items()})
    tell_unused_skeleton(found, settings, trains=True)
    assert caplog.messages == lines
