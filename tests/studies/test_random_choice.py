"""``retrain --random``: what is drawn, that it is the same side by side and after an interruption, what is refused."""

import csv
import shutil

import pytest

from hitdet_nni import cli
from hitdet_nni.config.architecture import load_architecture, save_architecture
from hitdet_nni.config.search_space import save_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.data.sources import open_data
from hitdet_nni.engine.mmengine_resume import ResumableTrainLoop
from hitdet_nni.nas.checks import whole_space
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.studies.random_architectures import RandomDraw
from hitdet_nni.studies.search_study import random_competitors, searches

BUDGET = {"search.budget.gflops": 0.075}


def drawn(count, **changed):
    settings = load_settings("tiny", changed)
    data = open_data(settings.data, settings.seed, settings.skeleton.input_size)
    return settings, data, RandomDraw(count).drawn(settings, data)


def test_they_fill_the_budget_and_are_those_of_the_study(tmp_path):
    settings, data, found = drawn(12, **BUDGET)
    model = CostModel(settings.skeleton, 10)
    flops = [model.architecture(one.sample)["total"].flops for one in found]
    assert all(0.9 * 75e6 <= cost <= 75e6 for cost in flops)
    assert len({tuple(one.sample.values()) for one in found}) == 12
    (study,) = searches(settings, whole_space(settings), 1, 8, tmp_path)
    assert [one.sample for one in random_competitors(study, data, 12).values()] == [one.sample for one in found]
    assert [one.name for one in found[:2]] == ["random-01", "random-02"]
    assert {one.provenance.source for one in found} == {"random"}


def test_fewer_are_the_first_ones_and_another_seed_draws_others():
    *_, found = drawn(6, **BUDGET)
    assert drawn(3, **BUDGET)[-1] == found[:3]
    others = drawn(6, **BUDGET, seed=1)[-1]
    assert not [one for one in others if one.sample in [each.sample for each in found]]


def test_without_a_budget_they_have_any_cost():
    settings, _, found = drawn(40)
    costs = [CostModel(settings.skeleton, 10).architecture(one.sample)["total"].flops for one in found]
    assert max(costs) > 1.3 * min(costs)


@pytest.mark.slow
def test_side_by_side_as_one_by_one_and_nothing_is_trained_twice(tmp_path, capsys):
    small = ["--set", "data.train=16", "--set", "data.val=4", "--set", "search.budget.gflops=0.075"]
    command = ["retrain", "--config", "tiny", "--random", "2", *small]
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli.main([*command, "--out", str(one)]) == 0
    printed = capsys.readouterr().out
    assert f"retrain: tiny, 2 random architectures, files in {one}" in printed
    assert "2 to epoch 1, the best one to 2; as many epochs as 1.5 whole trainings have" in printed
    with (one / "rungs" / "rungs.csv").open() as stream:
        kept = [row["architecture"] for row in csv.DictReader(stream) if row["kept"] == "1"]
    assert kept == [load_architecture(RunDirectory(one).architecture).name]
    assert not list(one.rglob("*.pt"))  # neither what was out nor what has ended can go on
    shutil.copytree(one, two)
    for gone in ("metrics.json", "architecture.json", "rungs", "retrain"):
        path = two / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert cli.main([*command, "--jobs", "2", "--resume", "--out", str(two)]) == 0
    for file in ("rungs/rungs.csv", "metrics.json", "retrain/weights.pth"):
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
    written = (two / "rungs" / "rungs.csv").stat().st_mtime_ns
    assert cli.main([*command, "--resume", "--out", str(two)]) == 0
    assert (two / "rungs" / "rungs.csv").stat().st_mtime_ns == written
    (two / "rungs" / "rungs.csv").unlink()  # of what has ended nothing is chosen again
    assert cli.main([*command, "--resume", "--out", str(two)]) == 0
    assert not (two / "rungs" / "rungs.csv").exists()
    capsys.readouterr()
    more = ["3" if word == "2" else word for word in command]
    assert cli.main([*more, "--resume", "--out", str(two)]) == 2
    assert "the choice there is among 2 architectures, not these 3; allowed: as many" in capsys.readouterr().err


def test_what_is_interrupted_at_any_step_ends_the_same(tmp_path, monkeypatch, capsys):
    changed = {"data.train": 12, "data.val": 4, "retrain.epochs": 4, "checkpoint.every_steps": 1} | BUDGET
    options = [part for key, value in changed.items() for part in ("--set", f"{key}={value}")]
    command = ["retrain", "--config", "tiny", "--random", "3", *options, "--out"]
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert cli.main([*command, str(whole)]) == 0
    original, made = ResumableTrainLoop.run_iter, []

    def interrupted(loop, *arguments):
        original(loop, *arguments)
        made.append(loop._step)
        if len(made) in (8, 17):  # the third to the first pause; the last epochs
            raise KeyboardInterrupt

    monkeypatch.setattr(ResumableTrainLoop, "run_iter", interrupted)
    statuses = [cli.main([*command, str(again), "--resume"]) for _ in range(3)]
    assert statuses == [130, 130, 0]
    assert len(made) == 3 * (3 * 1 + 2 * 1 + 2)  # three steps an epoch, none twice
    for file in ("rungs/rungs.csv", "metrics.json", "retrain/weights.pth", "architecture.json"):
        assert (whole / file).read_bytes() == (again / file).read_bytes(), file
    assert not list(again.rglob("*.pt"))


def test_a_run_of_another_architecture_is_not_chosen_for(tmp_path, capsys):
    command = [
        "retrain",
        "--config",
        "tiny",
        "--random",
        "2",
        *(f"--set={key}={value}" for key, value in BUDGET.items()),
    ]
    settings, _, found = drawn(3, **BUDGET)
    run = RunDirectory(tmp_path / "run")
    run.open(settings)
    save_architecture(found[2], run.architecture)
    assert cli.main([*command, "--resume", "--out", str(run.path)]) == 2
    assert "the run there is of one architecture; allowed: another folder, or --force" in capsys.readouterr().err
    assert not (run.path / "rungs").exists()
    (run.path / "rungs").mkdir()
    (run.path / "rungs" / "candidates.json").write_text("{}")
    assert cli.main([*command, "--resume", "--out", str(run.path)]) == 2
    assert "the run there is of another architecture" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--random", "0"], "--random: got 0; allowed: 1 or more"),
        (["--random", "3", "--architecture", "x"], "--architecture: is given beside --random; allowed: one of them"),
        (["--random", "3", "--inherit", "x"], "--inherit: is given beside --random; allowed: one of them"),
        (["--random", "3", "--jobs", "0"], "--jobs: got 0; allowed: 1 or more"),
        (["--random", "3", "--top", "2"], "--top: is given beside --random; allowed: one of them"),
        (["--random", "1", "--jobs", "2"], "--jobs: has no meaning for one training"),
        (["--architecture", "x", "--jobs", "2"], "--jobs: has no meaning for one training"),
        (["--random", "3", "--set", "search.budget.gflops=0.001"], "is less than any architecture of the space has"),
        (["--random", "300", "--set", "space=few.yml"], "--random: 4 of 300 random architectures were found"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = {"backbone": ["sep_k3_d1"], "neck": ["sep_k3_d1"], "head": ["sep_k3_d1", "conv_k3_d1"]}
    save_search_space(few, tmp_path / "few.yml")
    assert cli.main(["retrain", "--config", "tiny", *options, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yml").exists()


def test_processes_of_torchrun_share_each_training_instead(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["retrain", "--config", "tiny", "--random", "3", "--jobs", "2", "--out", str(tmp_path / "x")]) == 2
    assert "allowed: 1 with torchrun, which shares each training" in capsys.readouterr().err
