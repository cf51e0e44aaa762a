"""A screening that two supernets share: files, interruption, several runs on one directory, the report."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from hitdet_nni.config.settings import load_settings
from hitdet_nni.nas.screening_reliability import mean_scores, reliability_of
from hitdet_nni.pipeline import screening as pipeline
from hitdet_nni.pipeline.screening import screen, screen_group
from hitdet_nni.report.page import render_report
from hitdet_nni.runs.reading import read_run
from hitdet_nni.runs.reliability import Reliability, read_reliability
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.tables import Score, read_scores, write_scores

SPACE = {"backbone": ["ir_k3_d1_e1"], "neck": ["sep_k3_d1"], "head": ["sep_k3_d1", "ir_k3_d1_e1", "conv_k3_d1"]}


class KilledError(Exception):
    """What stands for the end of the process."""


@pytest.fixture(scope="module")
def settings():
    values = {
        "data.train": 16,
        "data.val": 4,
        "screening.epochs": 2,
        "screening.warmup_epochs": 1,
        "screening.supernets": 2,
        "screening.keep": {"backbone": 1, "neck": 1, "head": 2},
    }
    return load_settings("tiny", values)


@pytest.fixture(scope="module")
def screened(settings, tiny_data, tmp_path_factory) -> Path:
    run = RunDirectory(tmp_path_factory.mktemp("screened") / "one")
    run.open(settings)
    screen_group(run, ("head",), SPACE, settings, tiny_data)
    return run.path


@pytest.fixture
def finished(screened, tmp_path) -> RunDirectory:
    shutil.copytree(screened, tmp_path / "one")
    return RunDirectory(tmp_path / "one")


def content(run: RunDirectory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.screening.iterdir()) if not path.name.startswith(".")}


def test_supernets_differ_and_their_mean_is_kept(finished):
    tables = [read_scores(finished.supernet_scores("head", number)) for number in (1, 2)]
    first, second = ({score.operator: score.score for score in one} for one in tables)
    assert first != second
    # Half of two epochs: one each, in which the architecture parameters move.
    assert {score.epoch for one in tables for score in one} == {0}
    assert list(read_scores(finished.scores("head"))) == mean_scores(tables, SPACE["head"], 2)
    assert read_reliability(finished.reliability("head")) == reliability_of(tables, SPACE["head"])
    assert len(finished.kept_operators("head")) == 2


def test_an_interruption_between_supernets_ends_equal(finished, settings, tiny_data, tmp_path):
    run = RunDirectory(tmp_path / "two")
    run.open(settings)
    done = []

    def stopping(stage, record):
        done.append(stage)
        if stage == "screening head 2":
            raise KilledError

    with pytest.raises(KilledError):
        screen_group(run, ("head",), SPACE, settings, tiny_data, stopping)
    assert run.supernet_scores("head", 1).exists()
    assert not run.scores("head").exists()
    again = []
    screen_group(run, ("head",), SPACE, settings, tiny_data, lambda stage, record: again.append(stage))
    assert "screening head 1" not in again  # what is done is not repeated
    assert content(run) == content(finished)


def test_two_runs_share_the_supernets(settings, tiny_data, tmp_path, monkeypatch):
    """Another run holds the first supernet: this one takes the second, waits, and both end with the same files."""
    run = RunDirectory(tmp_path / "shared")
    order = []
    real = pipeline.ScreeningWork.do

    def noted(work, part):
        order.append(part.supernet)
        real(work, part)

    monkeypatch.setattr(pipeline.ScreeningWork, "do", noted)
    locked = pipeline.locked
    held = []

    def other_first(lock, wait):
        if not wait and lock.name == ".screening-head-1.lock" and not held:
            held.append(lock)
            return pipeline.nullcontext(False)
        return locked(lock, wait=wait)

    monkeypatch.setattr(pipeline, "locked", other_first)
    for component, number in itertools.product(("backbone", "neck"), (1, 2)):
        write_scores(run.supernet_scores(component, number), [Score(0, SPACE[component][0], 1.0, 1, False)])
    kept = screen(run, SPACE, settings, tiny_data)
    assert order == [2, 1]
    assert len(kept["head"]) == 2


def test_report_says_how_far_they_agree(finished):
    text = render_report(read_run(finished.path), 0)
    sentence = read_reliability(finished.reliability("head")).sentence("head")
    assert sentence.split("(")[0].strip() in text


def test_noise_is_warned_of_in_log_metadata_and_report(finished, settings, tiny_data, caplog, monkeypatch):
    """The judgement is made of the tables alone: with one that says noise, everybody is told."""
    noise = Reliability(
        supernets=2, operators=32, spearman=-0.1, spearman_p=0.7, common=2, kept=8, chance=2, common_p=0.6
    )
    monkeypatch.setattr(pipeline, "reliability_of", lambda tables, operators: noise)
    screen_group(finished, ("head",), SPACE, settings, tiny_data)
    assert any(
        record.levelname == "WARNING" and "no better alike than chance" in record.getMessage()
        for record in caplog.records
    )
    assert "no better alike than chance" in read_run(finished.path).metadata.warnings["screening head"][0]
    assert "no better alike than chance" in render_report(read_run(finished.path), 0)


def test_one_supernet_leaves_the_files_of_old(settings, tiny_data, tmp_path):
    run = RunDirectory(tmp_path / "single")
    alone = settings.model_copy(update={"screening": settings.screening.model_copy(update={"supernets": 1})})
    screen_group(run, ("head",), SPACE, alone, tiny_data)
    assert set(content(run)) == {"head.csv", "head_halves.json", "head_notes.json"}
    assert {score.epoch for score in read_scores(run.scores("head"))} == {0, 1}
