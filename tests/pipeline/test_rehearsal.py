"""A rehearsal: a few steps of each stage, by which it says how long all will take."""

import json
import re

import pytest

from hitdet_nni.cli import main
from hitdet_nni.config.search_space import save_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.sources import open_images
from hitdet_nni.engine.progress import Progress, listening
from hitdet_nni.pipeline import rehearsal
from hitdet_nni.pipeline.rehearsal import Course, StageClock, _courses, _few_images, _shortened

IMAGES = {"data.train": 40, "data.val": 12}


@pytest.fixture
def at(monkeypatch):
    """Tell a clock of progress at a given second."""
    clock = StageClock()

    def tell(second, **progress):
        monkeypatch.setattr(rehearsal.time, "perf_counter", lambda: second)
        clock(Progress(**{"stage": "search", **progress}))

    tell.clock = clock
    return tell


def test_steps_that_rest_move_and_evaluations_are_counted_apart(at):
    at(0)
    at(50, step=1)  # libraries warm up
    at(52, step=2)
    at(52, step=2, doing="evaluating")
    at(60, epoch=1)
    at(65, epoch=1, step=1)
    at(68, epoch=1, step=2)
    at(68, epoch=1, step=2, doing="evaluating")
    at(72, epoch=2, doing="ended")
    at(100, stage="retrain")  # between two stages
    at(101, stage="retrain", step=1)
    assert at.clock.steps["search"] == {0: [50, 2], 1: [5, 3]}
    # Three epochs of ten steps of 2 s, two of ten of 3 s, and five evaluations of 20 images, where 8 took 4 s.
    assert at.clock.seconds("search", Course(5, 10, 3, 100), 8) == 3 * 10 * 2 + 2 * 10 * 3 + 100 * 4 / 8
    # A stage of which one step was seen, without evaluations.
    assert at.clock.seconds("retrain", Course(2, 10), 8) == 20


@pytest.mark.parametrize("rank_by", ["samples", pytest.param("probability", marks=pytest.mark.slow)])
def test_what_is_foreseen_is_what_a_run_does(rank_by, tmp_path, capsys):
    """Steps, samples and evaluations of a run, the rehearsal's own, are those that are foreseen of its settings."""
    names = ["sep_k3_d1", "conv_k3_d1", "ir_k3_d1_e3"]
    whole = dict.fromkeys(("backbone", "neck", "head"), names)
    save_search_space(whole, tmp_path / "space.yml")
    space = str(tmp_path / "space.yml")
    chosen = {"screening.rank_by": rank_by, "screening.joint": True, "search.decode": "samples", "space": space}
    chosen |= {f"screening.keep.{component}": 2 for component in ("backbone", "neck", "head")}
    options = [f"--set={key}={json.dumps(value)}" for key, value in {**IMAGES, **chosen}.items()]
    clock, out = StageClock(), tmp_path / "runs" / "run"
    with listening(clock):
        assert main(["search", "--config", "tiny", *options, "--rehearse", "--out", str(out)]) == 0
    assert list(out.parent.iterdir()) == []
    printed = capsys.readouterr().out
    assert re.findall(r"│ (\S.*?) +│ +[\d:]+ │", printed) == [
        "screening backbone+neck+head",
        "search",
        "retrain",
        "all",
    ]
    assert re.search(r"a process held \d\.\d\d GB at most", printed)

    settings, data = open_images(load_settings("tiny", {**IMAGES, **chosen}))
    few = _few_images(settings, data, tmp_path)
    assert (len(few.train.image_ids), len(few.val.image_ids)) == (16, 8)
    short = _shortened(settings, data, 3)
    courses = dict(_courses(short, few, 3, whole))
    assert len(courses) == (5 if rank_by == "samples" else 4)
    for stage, course in courses.items():
        assert sum(map(len, clock.steps[stage].values())) == course.epochs * course.steps, stage
        assert len(clock.evaluations[stage]) * 8 == course.evaluated, stage


def test_a_name_that_is_taken_is_refused(tmp_path, capsys, monkeypatch):
    """What lies there is left alone."""
    (tmp_path / "run-rehearsal").mkdir()
    (tmp_path / "run-rehearsal" / "notes").write_text("mine")
    assert main(["search", "--config", "tiny", "--rehearse", "--out", str(tmp_path / "run")]) == 2
    assert "run-rehearsal: --rehearse: is there already" in capsys.readouterr().err
    assert (tmp_path / "run-rehearsal" / "notes").read_text() == "mine"
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert main(["search", "--config", "tiny", "--rehearse", "--out", "."]) == 2
    assert "run-rehearsal: --rehearse: is there already" in capsys.readouterr().err
