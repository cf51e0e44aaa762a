"""All measurements that need a GPU, in order of value, within a time; start it by gpu.sh.

Each part is a process of its own: one that fails, or that the clock ends, does not keep the next from running. Figures
go into OUT/gpu.json after every part, all output into OUT/log.txt; `python benchmarks/document.py --gpu OUT/gpu.json`
makes the page of them. Tuned block sizes lie in OUT/blocks.json.

    bash benchmarks/gpu.sh OUT                                  # everything, nine minutes
    bash benchmarks/gpu.sh OUT --parts layers,search --minutes 6
    bash benchmarks/gpu.sh OUT --cases 'bf16'                   # these cases; document.py leaves all others as they are
    bash benchmarks/gpu.sh OUT --device cpu --toy               # whether it runs, without a GPU
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from xml.etree import ElementTree

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
RESERVE = 8.0
"""Seconds that are kept for writing what has been found."""

SHORTEST = 15.0
"""Seconds below which a part is not begun."""

ECHO = 3000
"""Characters of a part's output that the terminal shows; the log has all."""

TEST_PROCESSES = 4
"""Processes that share the tests."""

SLOWEST = 15
"""Tests of which the log tells the time, the longest."""

GRACE = 10.0
"""Seconds that a part has to end after it was asked to."""


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        out: Folder of the outcome.
        device: ``"cuda"`` or ``"cpu"``.
        toy: Whether to take sizes that a CPU computes in seconds.
        cards: Folder with annotations, train and val of another data set, or ``None``.
        work: Folder for what is not kept.
        cases: Pattern of the cases that are measured of the parts of gpu_cases.NAMES; empty for all.
    """

    out: Path
    device: str
    toy: bool
    cards: Path | None
    work: Path
    cases: str = ""

    @property
    def sizes(self) -> list[str]:
        """Arguments of the measuring scripts."""
        return ["--device", self.device, *(["--toy"] if self.toy else [])]


@dataclass(frozen=True)
class BenchmarkPart:
    """One part.

    Attributes:
        seconds: Time that it gets; of more time than all parts get, a share like that of these.
        command: Its command, given the options, the file for its figures and the Unix time at which it is to be done;
            or words that say why it is left out.
        figures: Reads its figures.
    """

    seconds: float
    command: Callable[[Options, Path, float], list[str] | str]
    figures: Callable[[Path], Any]


def read_json(path: Path) -> Any:
    """Figures that the part has written itself."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_tests(path: Path) -> dict[str, Any]:
    """Outcome of a test run: numbers, what failed, and what the tests measured."""
    cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    outcome: dict[str, Any] = {"passed": 0, "failed": [], "skipped": 0, "unfinished": 0, "figures": {}}
    for case in cases:
        if case.get("name") is None:  # so pytest writes a test in which it was interrupted
            outcome["unfinished"] += 1
            continue
        name = f"{case.get('classname', '').split('.')[-1]}::{case.get('name')}"
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            outcome["failed"].append(name)
        elif "skipped" in kinds:
            outcome["skipped"] += 1
        else:
            outcome["passed"] += 1
        for entry in case.iter("property"):
            if entry.get("name") == "figure":
                outcome["figures"][name] = entry.get("value")
    return outcome


def tests_command(options: Options, figures: Path, until: float) -> list[str] | str:
    """The tests marked gpu or device, from the files that have any; without a GPU these are only collected."""
    marks = ("mark.gpu", "mark.device")
    found = [
        path for path in (ROOT / "tests").rglob("test_*.py") if any(mark in path.read_text("utf-8") for mark in marks)
    ]
    found.sort(key=lambda path: (path.name == "test_memory.py", path))  # whose tests start a process each
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu or (device and not slow)",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(ROOT),
    ]
    command += [f"--durations={SLOWEST}"]
    if options.device == "cuda":
        command += [f"--junitxml={figures}", "-n", str(TEST_PROCESSES), "--dist", "worksteal"]
    else:
        command += ["--collect-only"]
    return [*command, *map(str, found)]


def measuring_command(part: str) -> Callable[[Options, Path, float], list[str] | str]:
    """A part of gpu_parts.py."""

    def command(options: Options, figures: Path, until: float) -> list[str] | str:
        script = [sys.executable, str(BENCHMARKS / "gpu_parts.py"), part, "--out", str(figures)]
        return [*script, "--until", str(until), "--cases", options.cases, *options.sizes]

    return command


def tune_command(options: Options, figures: Path, until: float) -> list[str] | str:
    """The choice of block sizes."""
    if options.device == "cpu":
        return "block sizes are tuned on a GPU"
    return [sys.executable, "-m", "hitdet_nni.kernels.gpu.tune", str(figures)]


def search_command(options: Options, figures: Path, until: float) -> list[str] | str:
    """A whole search and retraining in two precisions."""
    script = [sys.executable, str(BENCHMARKS / "gpu_search.py"), "--out", str(figures), "--until", str(until)]
    cards = [] if options.cards is None else ["--cards", str(options.cards)]
    return [*script, "--work", str(options.work), *cards, *options.sizes]


PARTS: Mapping[str, BenchmarkPart] = {
    "warm": BenchmarkPart(75, measuring_command("warm"), read_json),
    "tests": BenchmarkPart(75, tests_command, read_tests),
    "layers": BenchmarkPart(80, measuring_command("layers"), read_json),
    "supernets": BenchmarkPart(125, measuring_command("supernets"), read_json),
    "auto": BenchmarkPart(90, measuring_command("auto"), read_json),
    "tune": BenchmarkPart(50, tune_command, read_json),
    "profile": BenchmarkPart(40, measuring_command("profile"), read_json),
    "search": BenchmarkPart(75, search_command, read_json),
    "largest": BenchmarkPart(60, measuring_command("largest"), read_json),
}
"""All parts, in order of value."""


class Log:
    """Writes to the log and to the terminal.

    Args:
        path: The log's file.
        file: The same, open.
    """

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path = path
        self.file = file

    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size

    def echo(self, start: int) -> None:
        """Show the end of what a part has written since ``start``, a number of bytes."""
        text = self.path.read_bytes()[start:].decode("utf-8", "replace")
        sys.stdout.write(text[-ECHO:])
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """Write a line at once."""
        for stream in (self.file, sys.stdout):
            stream.write(text + "\n")
            stream.flush()


def run(command: Sequence[str], seconds: float, log: Log, environment: Mapping[str, str]) -> tuple[int | None, float]:
    """Run a command, its output into the log.

    Args:
        command: The command.
        seconds: When it is interrupted, and somewhat later killed.
        log: Takes its output.
        environment: Its environment variables.

    Returns:
        Its exit status, ``None`` where the clock ended it, and its time in seconds.
    """
    started, before = time.monotonic(), log.size()
    process = subprocess.Popen(
        command,
        stdout=log.file,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env=dict(environment),
        preexec_fn=os.setpgrp,  # a group, to end it whole; in this session, so that it ends with it
    )
    status: int | None = None
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        for ending, patience in ((signal.SIGINT, GRACE), (signal.SIGKILL, None)):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, ending)
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                break
    finally:
        with suppress(ProcessLookupError):  # also what it has left behind, and where this process is interrupted
            os.killpg(process.pid, signal.SIGKILL)
        log.echo(before)
    return status, time.monotonic() - started


def describe(device: str, commit: str | None, environment: Mapping[str, str]) -> dict[str, Any]:
    """Device, versions, date and commit; what cannot be found is said in ``problem``."""
    command = [sys.executable, str(BENCHMARKS / "describe.py"), device]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(environment), cwd=ROOT, check=False)
    if done.returncode:
        return {"commit": commit, "problem": done.stderr.strip().splitlines()[-1:]}
    return {**json.loads(done.stdout.splitlines()[-1]), "commit": commit}


def find_commit(given: str | None) -> str | None:
    """The commit that is measured: as given, as the environment says, or of the checkout."""
    if given or "HITDET_COMMIT" in os.environ:
        return given or os.environ["HITDET_COMMIT"]
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def measure(name: str, options: Options, seconds: float, log: Log, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run one part and read its figures.

    Returns:
        ``status`` (``done``, ``failed``, ``out of time``, ``left out``), ``seconds``, and where there are figures
        ``report``.
    """
    part = PARTS[name]
    path = options.out / ("blocks.json" if name == "tune" else f"{name}.json")
    # What is left for the last case that was begun, and for ending.
    command = part.command(options, path, time.time() + 0.85 * seconds)
    log.line(f"\n== {name}: at most {seconds:.0f} s")
    if isinstance(command, str):
        log.line(f"{name}: left out, {command}")
        return {"status": "left out", "reason": command}
    status, spent = run(command, seconds, log, environment)
    words = "out of time" if status is None else "done" if status == 0 else "failed"
    outcome: dict[str, Any] = {"status": words, "exit_status": status, "seconds": round(spent, 1)}
    try:
        outcome["report"] = part.figures(path)
    except (OSError, ValueError, ElementTree.ParseError):
        if name != "tests" or options.device == "cuda":
            log.line(f"{name}: no figures")
    if name != "tune":
        path.unlink(missing_ok=True)
    log.line(f"{name}: {words} after {spent:.0f} s")
    return outcome


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="gpu.sh")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for gpu.json, log.txt and blocks.json")
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to run, by name (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all of them (default: 9)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--toy", action="store_true", help="sizes that a CPU computes in seconds")
    parser.add_argument("--cards", type=Path, help="folder with annotations, train and val: searched too")
    parser.add_argument(
        "--cases", default="", help="pattern of the cases to measure, e.g. '^(?!trinity, fp32)' (default: all)"
    )
    parser.add_argument("--commit", help="commit that is measured (default: $HITDET_COMMIT, or the checkout's)")
    given = parser.parse_args(arguments)
    given.parts = given.parts.split(",")
    unknown = [name for name in given.parts if name not in PARTS]
    if unknown:
        parser.error(f"--parts: got {', '.join(unknown)}; allowed: {', '.join(PARTS)}")
    try:
        re.compile(given.cases)
    except re.error as error:
        parser.error(f"--cases: {given.cases!r} is not a pattern: {error}")
    if given.cards is not None and not given.cards.is_dir():
        parser.error(f"--cards: {given.cards} is not a folder")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all parts; the exit status is 1 where one failed."""
    given = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as an interrupt: what runs is ended, too
    end = time.monotonic() + 60 * given.minutes - RESERVE
    given.out.mkdir(parents=True, exist_ok=True)
    out, log_path = given.out.resolve(), given.out.resolve() / "log.txt"
    cards = None if given.cards is None else given.cards.resolve()
    with tempfile.TemporaryDirectory() as work, log_path.open("w", encoding="utf-8") as file:
        log = Log(log_path, file)
        environment = {
            **os.environ,
            "XDG_CACHE_HOME": work,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        report = describe(given.device, find_commit(given.commit), environment)
        report |= {"toy": given.toy, "cases": given.cases, "parts": {}}
        log.line(" | ".join(f"{key}: {value}" for key, value in report.items() if key != "parts"))
        options = Options(out, given.device, given.toy, cards, Path(work), given.cases)
        waiting = [name for name in PARTS if name in given.parts]
        while waiting:
            name = waiting[0]
            left = end - time.monotonic()
            share = PARTS[name].seconds / sum(PARTS[other].seconds for other in waiting)
            seconds = min(left, max(PARTS[name].seconds, share * left))  # with little time, the last parts get none
            waiting = waiting[1:]
            if seconds < SHORTEST + GRACE:
                log.line(f"\n== {name}: left out, {left:.0f} s are left")
                report["parts"][name] = {"status": "left out", "reason": "no time left"}
            else:
                report["parts"][name] = measure(name, options, seconds - GRACE, log, environment)
            temporary = out / ".gpu.json"
            temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")
            temporary.replace(out / "gpu.json")
        summary = ", ".join(f"{name}: {part['status']}" for name, part in report["parts"].items())
        log.line(f"\n{summary}")
    return int(any(part["status"] == "failed" for part in report["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
