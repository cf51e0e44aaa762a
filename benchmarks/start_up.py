"""Start-up time: what a user waits for the answer of a ``hitdet-nni`` command, against ``import torch`` alone.

python benchmarks/start_up.py             # two minutes
python benchmarks/start_up.py --json      # the figures, for a document
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measure import echo, surroundings

from hitdet_nni.config.shipped import shipped

REFERENCE = "import torch"
RUN, JSON = "runs/mine", "mine.json"
"""A run directory and an architecture in the folder that the commands run in."""


@dataclass(frozen=True)
class Command:
    """What is started.

    Attributes:
        arguments: Those of this interpreter.
        status: Exit status that it ends with.
        first_line: Whether it is timed up to its first line, and then ended.
    """

    arguments: tuple[str, ...]
    status: int = 0
    first_line: bool = False


def ours(line: str, status: int = 0, *, first_line: bool = False) -> Command:
    """The command of a line of arguments of ``hitdet-nni``."""
    return Command(("-m", "hitdet_nni", *line.split()), status, first_line)


COMMANDS = {
    "python -c pass": Command(("-c", "pass")),
    REFERENCE: Command(("-c", "import torch")),
    "import hitdet_nni": Command(("-c", "import hitdet_nni")),
    "hitdet-nni --help": ours("--help"),
    "search, no such config": ours("search --config nosuch.yml --out runs/new", status=2),
    "search, unknown key": ours("search --config tiny --set search.epoch=1 --out runs/new", status=2),
    "retrain, no such architecture": ours("retrain --config tiny --architecture nosuch.json --out runs/new", status=2),
    "profile of a JSON": ours(f"profile {JSON}"),
    "profile hit_detector": ours("profile hit_detector"),
    "export of an architecture": ours(f"export {RUN} --out exported.json --force"),
    "tables": ours("tables"),
    "check-data --config tiny": ours("check-data --config tiny"),
    "search, first line": ours("search --config tiny --out runs/begun --force", first_line=True),
    "imports of a trial": Command(("-c", "import hitdet_nni.integration.trial")),
}
"""What is started, by its name."""


@dataclass(frozen=True)
class StartUp:
    """Time of a command from its start to its end, or to its first line.

    Attributes:
        command: Its name.
        seconds: Best wall time.
        of_torch: The same over that of ``import torch``.
    """

    command: str
    seconds: float
    of_torch: float


def start(command: Command, folder: Path) -> float:
    """Wall time of a command in a folder, in seconds.

    Raises:
        RuntimeError: If it ends with another status than it should, or without a line.
    """
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *command.arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        if command.first_line:
            line = process.stdout.readline() if process.stdout else ""
            spent = time.perf_counter() - begin
            process.kill()
            if not line:
                raise RuntimeError(f"{' '.join(command.arguments)}: no line")
            return spent
        _, errors = process.communicate()
        spent = time.perf_counter() - begin
    if process.returncode != command.status:
        raise RuntimeError(f"{' '.join(command.arguments)}: status {process.returncode}: {errors[-1000:]}")
    return spent


def prepare(folder: Path) -> None:
    """Put into a folder what the commands read: an architecture, and a run that has found it."""
    run = folder / RUN
    run.mkdir(parents=True)
    architecture = shipped("search_spaces", "architectures/hit_detector.json")
    for copy in (folder / JSON, run / "architecture.json"):
        shutil.copy(architecture, copy)
    (run / "config.yml").write_text("data: {builtin: digits}\n", encoding="utf-8")


def measure(rounds: int, names: Iterable[str]) -> list[StartUp]:
    """Best times of commands, run by turns; a round before them fills the caches of the file system."""
    times: dict[str, list[float]] = {name: [] for name in {REFERENCE: None, **dict.fromkeys(names)}}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for round_number in range(-1, rounds):
            for name, found in times.items():
                spent = start(COMMANDS[name], Path(folder))
                if round_number >= 0:
                    found.append(spent)
    reference = min(times[REFERENCE])
    return [StartUp(name, min(times[name]), min(times[name]) / reference) for name in names]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of which the best counts (default: 3)")
    options = parser.parse_args()
    found = measure(options.rounds, COMMANDS)
    report = surroundings(torch.device("cpu")) | {"clock": "wall"}
    if options.json:
        echo(json.dumps({**report, "figures": [asdict(figures) for figures in found]}, indent=1))
        return
    echo(" | ".join(f"{key}: {value}" for key, value in report.items()))
    echo(f"{'command':30} {'s':>7} {'of import torch':>16}")
    for figures in found:
        echo(f"{figures.command:30} {figures.seconds:7.3f} {figures.of_torch:16.2f}")


if __name__ == "__main__":
    main()
