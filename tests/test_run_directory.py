"""Run directories: what may be opened, resumed and overwritten."""

import json

import pytest
import yaml

from hitdet_nni.run_directory import RunDirectory, find_run, plain
from hitdet_nni.settings import load_settings


def test_a_new_run_holds_settings_and_environment(tmp_path, tiny_settings):
    run = RunDirectory(tmp_path / "a" / "run")
    run.open(tiny_settings)
    assert yaml.safe_load(run.config.read_text()) == plain(tiny_settings)
    assert load_settings(run.config) == tiny_settings
    metadata = json.loads(run.metadata.read_text())
    assert metadata["seed"] == tiny_settings.seed
    assert {"torch", "nni", "mmdet"} <= set(metadata["versions"])
    assert find_run(run.path) == run


def test_time_adds_up_by_stage(tmp_path, tiny_settings):
    run = RunDirectory(tmp_path / "run")
    run.open(tiny_settings)
    for _ in range(2):
        with run.timed("search"):
            pass
    assert set(json.loads(run.metadata.read_text())["seconds"]) == {"search"}


def test_results_are_kept_unless_forced(tmp_path, tiny_settings, refused):
    run = RunDirectory(tmp_path / "run")
    run.open(tiny_settings)
    result = run.path / "architecture.json"
    result.write_text("{}")
    with refused(run.path, "--force"):
        run.open(tiny_settings)
    run.open(tiny_settings, resume=True)
    assert result.exists()
    other = tiny_settings.model_copy(update={"seed": 1})
    with refused(run.path, "settings"):
        run.open(other, resume=True)
    run.open(other, force=True)
    assert not result.exists()


def test_force_never_removes_what_is_not_a_run(tmp_path, tiny_settings, refused):
    (tmp_path / "thesis.tex").write_text("years of work")
    with refused(tmp_path, "no run"):
        RunDirectory(tmp_path).open(tiny_settings, force=True)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("content", ["", "epoch,operator\n0,a\n", "epoch,operator,score,rank,removed\nx,a,1,1,0\n"])
def test_broken_scores_are_refused(tmp_path, content, refused):
    run = RunDirectory(tmp_path)
    run.screening.mkdir()
    run.scores("neck").write_text(content)
    with refused(run.scores("neck")):
        run.kept_operators("neck")
