"""The progress of trainings: what stages tell, the file between processes, and what people see of it."""

import io
import json
import logging
import os
import pty
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from hitdet_nni.engine import progress as told
from hitdet_nni.engine import progress_view
from hitdet_nni.engine.progress import (
    PROGRESS_FILE,
    Progress,
    ProgressFile,
    Stage,
    listening,
    named,
    read_progress,
    written,
)
from hitdet_nni.engine.progress_view import LineView, TableView, ViewHandler, clock, progress_table, view_on
from hitdet_nni.integration.launcher.trial_progress import trial_progress
from hitdet_nni.integration.launcher.trial_table import Trial


@pytest.fixture
def now(monkeypatch):
    """A clock that the test sets, in seconds."""
    times = [100.0]
    monkeypatch.setattr(told.time, "monotonic", lambda: times[0])
    return times


def heard(action):
    found = []
    with listening(found.append):
        action()
    return found


# ---------------------------------------------------------------------------------------------------------- stages


def test_a_stage_tells_rate_and_time_left(now):
    def go():
        stage = Stage("search", 2, 4)
        for loss in (4.0, 2.0, 3.0, 3.0):
            now[0] += 2
            stage.step(loss)
        stage.evaluate()
        now[0] += 10
        stage.end_epoch({"loss": 3.0, "val_loss": 2.5})
        now[0] += 2
        stage.step(1.0)

    steps = heard(go)
    assert [(one.epoch, one.step, one.doing) for one in steps[:3]] == [
        (0, 0, "training"),
        (0, 1, "training"),
        (0, 2, "training"),
    ]
    assert steps[2].loss == 3.0
    assert steps[2].rate == 0.5
    assert steps[2].left == 6 / 0.5  # no evaluation has been seen yet
    evaluating, ended, next_step = steps[5:]
    assert evaluating.doing == "evaluating"
    assert ended.results == {"seconds": 18.0, "loss": 3.0, "val_loss": 2.5}
    assert (ended.epoch, ended.step, ended.left) == (1, 0, 4 / 0.5 + 10)
    assert (next_step.step, next_step.rate, next_step.left) == (1, 0.5, 3 / 0.5 + 10)
    assert next_step.share == 5 / 8


@pytest.mark.parametrize(
    ("epoch", "step", "lines"),
    [
        (0, 2, ["search: going on after step 2 of epoch 1/3"]),
        (1, 0, ["search: going on after epoch 1/3"]),
        (0, 0, []),
    ],
)
def test_a_stage_says_where_it_goes_on(caplog, epoch, step, lines):
    with caplog.at_level(logging.INFO, "hitdet_nni"):
        Stage("search", 3, 4, epoch=epoch, step=step)
    assert caplog.messages == lines


def test_a_stage_goes_on_where_its_checkpoint_was():
    def go():
        stage = Stage("retrain", 2, 4, epoch=1, step=3)
        stage.step(1.0)
        stage.end_epoch({})

    first, step, last = heard(go)
    assert (first.epoch, first.step, first.share) == (1, 3, 7 / 8)
    assert step.step == 4
    assert (last.doing, last.epoch, last.share) == ("ended", 2, 1.0)


def test_an_evaluation_before_the_first_epoch_is_none():
    def go():
        stage = Stage("retrain", 1, 4)
        stage.evaluate()
        stage.end_epoch({"mAP": 0.0}, first=True)

    *_, last = heard(go)
    assert (last.doing, last.epoch, last.results["mAP"]) == ("training", 0, 0.0)


def test_names_and_listeners_last_as_long_as_their_contexts():
    with named("seed-1"):
        (inside,) = heard(lambda: Stage("retrain", 1, 1))
    (outside,) = heard(lambda: Stage("retrain", 1, 1))
    assert (inside.who, outside.who) == ("seed-1", "")
    assert told._listeners == []


def test_telling_draws_no_random_numbers(tmp_path):
    torch.manual_seed(0)
    states = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with TableView(console) as view, listening(view), listening(LineView(print)), written(tmp_path):
        stage = Stage("search", 1, 2)
        stage.step(1.0)
        stage.end_epoch({"loss": 1.0})
    assert states == [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


# ------------------------------------------------------------------------------------------------------------ file


def test_a_file_tells_another_process(tmp_path, now):
    path = tmp_path / PROGRESS_FILE
    with written(tmp_path), named("a"):
        stage = Stage("search", 2, 9)
        assert read_progress(path) == Progress("search", epochs=2, steps=9, who="a")
        stage.step(1.0)
        assert read_progress(path).step == 0  # written a moment ago
        now[0] += told.WRITE_INTERVAL
        stage.step(2.0)
        assert read_progress(path).step == 2
        stage.end_epoch({"gflops": 0.5})
        assert read_progress(path).results["gflops"] == 0.5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"stage": 1, "no": 2}', '{"stage": "a", "doing": "b"}', "\xff"]
)
def test_a_file_that_is_not_ours_tells_nothing(tmp_path, text):
    path = tmp_path / PROGRESS_FILE
    path.write_text(text, encoding="latin-1")
    assert read_progress(path) is None
    assert read_progress(tmp_path / "none") is None


def test_a_file_that_cannot_be_written_does_not_end_a_training(tmp_path):
    file = ProgressFile(tmp_path / "gone" / PROGRESS_FILE)
    file(Progress("search"))
    file.remove()
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------- lines


def test_a_line_an_epoch(now):
    lines = []
    with listening(LineView(lines.append)):
        stage = Stage("search", 2, 3)
        for epoch in range(2):
            for _ in range(3):
                now[0] += 1
                stage.step(1.5)
            stage.evaluate()
            now[0] += 2
            stage.end_epoch({"loss": 1.5, "val_loss": 1.23456, "gflops": 0.0375 + epoch})
    assert lines == [
        "search  epoch 1/2  loss 1.5  val loss 1.235  0.0375 GFLOPs expected  5.0 s  left 0:05",
        "search  epoch 2/2  loss 1.5  val loss 1.235  1.038 GFLOPs expected  5.0 s",
    ]


def test_a_long_epoch_has_lines_within_but_not_too_many(now):
    lines = []
    with listening(LineView(lines.append)):
        stage = Stage("retrain", 12, 7200)
        for _ in range(7200):  # ten hours
            now[0] += 5
            stage.step(2.0)
    assert 15 <= len(lines) <= progress_view.LINES_AN_EPOCH
    assert re.fullmatch(r"retrain  epoch 1/12  step \d+/7200  loss 2  0.2 steps/s  left 4 d 23:\d\d:\d\d", lines[0])
    lines.clear()
    with listening(LineView(lines.append)):
        stage = Stage("search", 1, 100)
        for _ in range(100):  # 500 seconds
            now[0] += 5
            stage.step(2.0)
    assert len(lines) == 2


def test_of_several_trainings_each_has_its_lines(now):
    lines = []
    view = LineView(lines.append)
    for who in ("trial 0", "trial 1"):
        view(Progress("search", epochs=3, steps=2, who=who))
    for epoch, who in ((1, "trial 0"), (1, "trial 1"), (1, "trial 1"), (3, "trial 0")):
        view(Progress("search", epoch=epoch, epochs=3, steps=2, results={"loss": 1.0}, who=who))
    assert lines == [f"trial {who}  search  epoch {epoch}/3  loss 1" for who, epoch in ((0, 1), (1, 1), (0, 3))]
    view(Progress("search", "waiting", who="trial 2"))
    view(Progress("retrain", "ended", results={"mAP": 0.5}, who="trial 2"))
    assert len(lines) == 3


def test_durations():
    assert [clock(value) for value in (0, 7.4, 61, 3723, 90061)] == ["0:00", "0:07", "1:01", "1:02:03", "1 d 01:01:01"]


# ----------------------------------------------------------------------------------------------------------- table

ROWS = [
    Progress("screening backbone", "ended", 12, 12, 0, 15000, results={"loss": 1.25, "val_loss": 1.5, "gflops": 0.25}),
    Progress("search", "training", 3, 12, 120, 15000, 1.25, 98765.0, 0.98765, {"val_loss": 1.125, "gflops": 0.125}),
    Progress("retrain", "evaluating", 3, 12, 50, 50, 1.25, 65.0, 0.98765, {"mAP": 0.375}, who="random-01-seed-2"),
]


def drawn(rows, width):
    stream = io.StringIO()
    console = Console(file=stream, width=width, no_color=True)
    console.print(progress_table(rows, width))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_each_row_is_one_line_that_fits(width):
    lines = drawn(ROWS, width)
    assert len(lines) == 1 + len(ROWS)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines[1:])
    assert all("epoch" not in line for line in lines[1:])
    assert "epoch" in lines[0]


def test_what_a_row_says():
    header, done, search, retrain = drawn(ROWS, 140)
    assert header.split() == ["stage", "epoch", "step", "steps/s", "left", "loss", "val", "GFLOPs"]
    assert re.search(r"screening backbone +━+ +12/12 +done +1.250 +1.500 +0.25$", done)
    assert re.search(r"search +━+\S* +4/12 +120/15000 +1.2 +1 d 03:26:05 +0.988 +1.125 +0.125$", search)
    assert re.search(
        r"random-01-seed-2 +retrain +━+\S* +4/12 +evaluating +1.2 +1:05 +0.988 +mAP 0.375$", retrain.rstrip()
    )
    bars = [line.count("━") for line in (done, search)]
    assert bars[1] / bars[0] == pytest.approx(ROWS[1].share, abs=0.05)


def test_a_narrow_terminal_keeps_what_is_needed_most():
    assert len(drawn(ROWS, 20)) == 1 + len(ROWS)
    header = drawn(ROWS, 60)[0].split()
    assert "GFLOPs" not in header
    assert {"stage", "epoch"} <= set(header)


def on_terminal(height=24):
    stream = io.StringIO()
    return stream, TableView(Console(file=stream, force_terminal=True, width=100, height=height, no_color=True))


def plain(stream):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


def test_lines_and_log_records_go_above_the_table():
    stream, view = on_terminal()
    log = logging.getLogger("hitdet_nni.test_progress")
    handler = ViewHandler(view)
    log.addHandler(handler)
    try:
        with view, listening(view):
            stage = Stage("search", 2, 2)
            log.warning("weights are %s", "[bold]odd")
            sys.stdout.write("from a library\n")
            stage.step(1.0)
    finally:
        log.removeHandler(handler)
    lines = [line for line in plain(stream).replace("\r", "\n").splitlines() if line.strip()]
    assert "weights are [bold]odd" in lines
    assert "from a library" in lines
    assert re.match(r"search +━* .*1/2 +1/2", lines[-1])


def test_the_table_keeps_to_the_terminal_s_height():
    _, view = on_terminal(height=10)
    with view:
        for number in range(30):
            view(Progress("retrain", "ended", 1, 1, results={"mAP": 0.1}, who=f"seed-{number}"))
        view(Progress("retrain", "training", 0, 1, 1, 2, who="seed-30"))
        table = view._render()
        console = Console(file=io.StringIO(), width=100)
        console.print(table)
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= 10
    assert lines[0] == "25 done"
    assert lines[-1].startswith("seed-30")


def test_what_is_waited_for_goes_when_progress_comes():
    stream, view = on_terminal()
    with view:
        view.waiting("loading torch")
        assert "loading torch" in plain(stream)
        stream.truncate(0)
        view(Progress("search"))
        assert "loading torch" not in plain(stream)


def test_a_forked_process_leaves_the_table_alone(tmp_path):
    stream, view = on_terminal()
    with view:
        view(Progress("search"))
        child = os.fork()
        if child == 0:  # as a loader's process that warns
            before = stream.tell()
            view.echo("a plain line")
            same = stream.getvalue()[before:] == "a plain line\n"
            (tmp_path / "told").write_text(json.dumps([same, progress_view._on_terminal == []]))
            os._exit(0)
        os.waitpid(child, 0)
    assert json.loads((tmp_path / "told").read_text()) == [True, True]


@pytest.mark.parametrize(
    ("terminal", "term", "kind"), [(True, "xterm", TableView), (True, "dumb", LineView), (False, "xterm", LineView)]
)
def test_the_table_is_for_terminals_that_can_show_it(monkeypatch, terminal, term, kind):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", term)
    assert isinstance(view_on(stream, print), kind)


# ---------------------------------------------------------------------------------------------------------- trials


def test_progress_of_trials(tmp_path):
    running = Trial(1, "b", "RUNNING", latest={"stage": 2, "epoch": 3, "train_loss": 1.5, "gflops": 0.5}, reports=4)
    assert trial_progress(Trial(0, "a", "WAITING"), tmp_path) == Progress("waiting", "waiting", who="trial 0")
    assert trial_progress(Trial(0, "a", "RUNNING"), tmp_path) == Progress("starting", "waiting", who="trial 0")
    reported = Progress("search", epoch=3, results={"loss": 1.5, "gflops": 0.5}, who="trial 1")
    assert trial_progress(running, tmp_path) == reported
    (tmp_path / "b").mkdir()
    ProgressFile(tmp_path / "b" / PROGRESS_FILE)(Progress("retrain", epochs=4, epoch=2, steps=5, step=1))
    known = trial_progress(running, tmp_path)
    assert known == Progress("retrain", epochs=4, epoch=2, steps=5, step=1, who="trial 1")
    ProgressFile(tmp_path / "b" / PROGRESS_FILE)(Progress("search", "ended", epochs=4, epoch=4, steps=5))
    assert trial_progress(running, tmp_path).doing == "training"  # its next stage is being built
    Path(tmp_path, "b", PROGRESS_FILE).unlink()
    assert trial_progress(running, tmp_path, known) == known
    done = Trial(1, "b", "SUCCEEDED", final={"default": 0.25, "gflops": 2})
    assert trial_progress(done, tmp_path, known) == Progress("succeeded", "ended", results={"mAP": 0.25}, who="trial 1")
    foreign = Trial(2, "c", "RUNNING", latest={"default": 0.1, "val_loss": 1.0}, reports=1)
    assert trial_progress(foreign, tmp_path) == Progress("1 report", results={"val_loss": 1.0}, who="trial 2")
    elsewhere = Trial(1, "b", "RUNNING", place="box:~/x")
    ProgressFile(tmp_path / "b" / PROGRESS_FILE)(Progress("retrain"))
    assert trial_progress(elsewhere, tmp_path).stage == "starting"


# -------------------------------------------------------------------------------------------------------- a command


@pytest.mark.slow
def test_a_search_on_a_terminal_until_ctrl_c(tmp_path):
    """The table is drawn, the interruption is told, and the cursor is there again."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "24", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "hitdet_nni", "search", "--config", "tiny", "--out", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text, interrupted = b"", False
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not read:
            break
        text += read
        if re.search(rb"screening backbone +.*1/2 +1/\d", text) and not interrupted:
            interrupted = True
            process.send_signal(signal.SIGINT)
    os.close(ours)
    assert process.wait(60) == 130
    assert b"hitdet-nni: interrupted; the same command with --resume goes on from there" in text.splitlines()[-1]
    assert text.rindex(b"\x1b[?25h") > text.rindex(b"\x1b[?25l")
    assert b"loading torch, mmdet and NNI" in text
    assert b"Traceback" not in text
