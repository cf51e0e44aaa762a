"""What a command does where nothing takes what it says, and what it makes of ``~`` that no shell has replaced."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hitdet_nni import cli
from hitdet_nni.commands.shared import console, work
from hitdet_nni.engine.output import OutputError, write_out
from hitdet_nni.errors import InputError

COMMANDS = [["tables", "1"], ["profile", "hit_detector", "--json"], ["profile", "hit_detector"]]


def run(words, stdout, **environment):
    command = [sys.executable, "-m", "hitdet_nni", *words]
    ended = subprocess.run(
        command,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
        check=False,
    )
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_reader_that_has_gone_is_told_of_by_the_status_alone(words):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert run(words, writing) == (141, "")
    finally:
        os.close(writing)


@pytest.mark.parametrize("words", [*COMMANDS, ["--help"]], ids=" ".join)
def test_a_full_disk_is_a_line(words):
    with Path("/dev/full").open("w") as full:
        status, error = run(words, full)
    assert (status, error) == (1, "hitdet-nni: standard output cannot be written (No space left on device)\n")


def test_a_stream_without_a_buffer_is_told_of_as_well():
    with Path("/dev/full").open("w") as full:
        status, error = run(COMMANDS[1], full, PYTHONUNBUFFERED="1")
    assert (status, error.count("\n")) == (1, 1)


class Full:
    """A stream on a full disk."""

    def write(self, text):
        raise OSError(28, "No space left on device")

    def isatty(self):
        return False


def test_work_that_cannot_be_told_of_is_not_taken_for_a_run_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OutputError, match="standard output"), work.working(tmp_path / "run", "search", "tiny"):
        pass
    for said in (lambda: console.echo("a"), lambda: console.show("a"), lambda: write_out("a")):
        with pytest.raises(OutputError, match="standard output"):
            said()


def test_home_folders_that_a_shell_leaves_are_put_in_everywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for words in (["--out=~/one"], ["--out", "~/two"]):
        assert cli.main(["data", "digits", "--train", "1", "--val", "1", "--size", "64", *words]) == 0
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"one", "two"}
    assert not (tmp_path / "~").exists()
    words = ["report", "~/run", "--set", "a=~b", "./~", "a~", "--out=~/x y"]
    home = tmp_path / "home"
    assert cli.with_home_folders(words) == [
        "report",
        str(home / "run"),
        "--set",
        "a=~b",
        "./~",
        "a~",
        f"--out={home / 'x y'}",
    ]
    with pytest.raises(InputError, match="no such home folder"):
        cli.with_home_folders(["~nosuchuser/x"])
    assert cli.main(["report", "~nosuchuser/x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
