"""What a search ends with, which architecture a command takes, and what is said of its skeleton."""

import os
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed.run import get_args_parser

from hitdet_nni import cli
from hitdet_nni.commands.shared.console import refuse_existing
from hitdet_nni.commands.shared.outcome import config_words, search_outcome, training_outcome
from hitdet_nni.commands.shared.trained import named_architecture
from hitdet_nni.config.architecture import save_architecture
from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.errors import InputError
from hitdet_nni.nas.checks import check_classes
from hitdet_nni.nas.provenance import describe_architecture, tell_unused_skeleton
from hitdet_nni.runs.run_directory import RunDirectory

SPACE = {component: ["sep_k3_d1", "conv_k5_d1"] for component in COMPONENTS}


@pytest.fixture
def found():
    settings = load_settings("tiny")
    sample = {layer.label: "sep_k3_d1" for layer in settings.skeleton.searched_layers()}
    return describe_architecture("mine", sample, SPACE, settings, tuple("0123456789"), source="search")


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


def test_no_front_uses_more_of_a_budget_than_the_dearest_detector_costs(found, tmp_path):
    assert len(outcome(found, tmp_path / "run", gflops=1000)) == 5  # here are dearer ones
    space = {component: ["sep_k3_d1"] for component in COMPONENTS}
    alone = found.model_copy(update={"provenance": found.provenance.model_copy(update={"space": space})})
    assert len(outcome(alone, tmp_path / "run", gflops=1000)) == 3


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


IMAGE = Path(__file__).parents[2] / "docs" / "detection.png"
UNFINISHED = [
    ("retrain --front {run} --budget 1 --config tiny --out {new}", "has no front/front.csv", "front"),
    ("retrain --architecture {run} --config tiny --out {new}", "has no architecture.json", "search"),
    ("retrain --inherit {searched} --config tiny --out {new}", "has no screening/sub_spaces.yml", "search"),
    ("detect {searched} {image} --out {new}", "has no retrain/weights.pth", "retrain"),
    ("export {searched} --format onnx --out {new}", "has no retrain/weights.pth", "retrain"),
]


@pytest.mark.parametrize(("line", "missing", "command"), UNFINISHED)
def test_a_run_without_what_a_command_needs(found, tmp_path, capsys, line, missing, command):
    runs = {name: RunDirectory(tmp_path / name) for name in ("run", "searched")}
    for run in runs.values():
        run.open(load_settings("tiny"))
    save_architecture(found, runs["searched"].architecture)
    words = line.format(**{name: run.path for name, run in runs.items()}, image=IMAGE, new=tmp_path / "new").split()
    assert cli.main(words) == 2
    run = next(run for run in runs.values() if str(run.path) in words)
    told = f"hitdet-nni: {run.path}: {missing}; allowed: a run of which hitdet-nni {command} has ended\n"
    assert capsys.readouterr().err == told
    assert not (tmp_path / "new").exists()


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, refused):
    refuse_existing(tmp_path / "new" / "table.json", force=False)
    (tmp_path / "file").touch()
    with refused(f"{tmp_path / 'file'} is a file"):
        refuse_existing(tmp_path / "file" / "table.json", force=True)
    monkeypatch.setattr(os, "access", lambda folder, mode: False)  # a superuser may write anywhere
    with refused(tmp_path / "table.json", f"{tmp_path} is read-only"):
        refuse_existing(tmp_path / "table.json", force=True)


def data_of(*classes):
    source = Path("instances_train.json")
    return SimpleNamespace(classes=classes, train=SimpleNamespace(source=source))


def test_classes_of_the_data_are_those_of_the_architecture_in_their_order(found, refused):
    check_classes(found, data_of(*"0123456789"))
    with refused("instances_train.json: categories: the data has 2 classes; allowed: 10, as the architecture 'mine'"):
        check_classes(found, data_of("0", "1"))
    with refused("class 3 of the data is '3'; allowed: '2', as the architecture 'mine' was searched for"):
        check_classes(found, data_of(*"0132456789"))
    with refused("class 1 of the data is 'a'; allowed: '0', as ", "; retrain.transfer=true trains it for the data's"):
        check_classes(found, data_of(*"abcdefghij"), trains=True)


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
