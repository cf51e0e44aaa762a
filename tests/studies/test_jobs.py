"""Trainings side by side: none goes on where the study was interrupted or killed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from hitdet_nni.config.settings import load_settings
from hitdet_nni.studies.jobs import Job, Work, run_jobs

def sleep(job):
    job.folder.mkdir()
    (job.folder / "pid").write_text(str(os.getpid()))
    (job.folder / "begun").touch()
    try:
        time.sleep(600)
    finally:
        (job.folder / "left").touch()

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    jobs = [Job(load_settings("tiny"), Path(name)) for name in "abcd"]
    try:
        run_jobs(Work("sleep", sleep), jobs, 2, lambda *ended: None)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def is_group(number: int) -> bool:
    """Whether any process of a group is left."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize(
    ("sent", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.slow)],
)
def test_no_training_outlives_its_study(tmp_path, sent, status):
    (tmp_path / "program.py").write_text(PROGRAM)
    study = subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, start_new_session=True)
    try:
        assert until(lambda: all((tmp_path / name / "begun").exists() for name in "ab"))
        pids = [int((tmp_path / name / "pid").read_text()) for name in "ab"]
        assert all(is_running(pid) for pid in pids)
        study.send_signal(sent)  # to the study alone, as a service does; a terminal would reach all
        assert study.wait(30) == status
        assert until(lambda: not any(is_running(pid) for pid in pids), 30)
        assert not (tmp_path / "c").exists()
        assert all((tmp_path / name / "left").exists() == (sent == signal.SIGINT) for name in "ab")
    finally:
        study.kill()


@pytest.mark.parametrize("seconds", [0.3, 2.0])
def test_two_ctrl_c_while_processes_begin_end_all_of_them(tmp_path, seconds):
    """A terminal sends them to all processes at once, whatever these are at."""
    (tmp_path / "study.py").write_text(PROGRAM)
    command = [sys.executable, "study.py"]
    study = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    time.sleep(seconds)
    os.killpg(study.pid, signal.SIGINT)
    time.sleep(0.2)
    with suppress(ProcessLookupError):
        os.killpg(study.pid, signal.SIGINT)
    _, errors = study.communicate(timeout=60)
    assert study.returncode in (130, -signal.SIGINT), errors
    assert until(lambda: not is_group(study.pid), 30)
