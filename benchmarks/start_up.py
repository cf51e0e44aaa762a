"""Start-up time: what a user waits before ``hitdet-nni`` does anything, against Python itself.

python benchmarks/start_up.py             # about a minute
python benchmarks/start_up.py --json      # the figures, for a document
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

import torch
from measure import say, surroundings

COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "import hitdet_nni": ("-c", "import hitdet_nni"),
    "hitdet-nni --help": ("-m", "hitdet_nni", "--help"),
    "imports of a trial": ("-c", "import hitdet_nni.trial"),
}
"""What is started, by its name: arguments of this interpreter."""


@dataclass(frozen=True)
class StartUp:
    """Time of a command from its start to its end.

    Attributes:
        command: Its name.
        seconds: Median of wall time.
        over_python: The same less that of Python itself.
    """

    command: str
    seconds: float
    over_python: float


def start(name: str) -> float:
    """Wall time of a command of :data:`COMMANDS`, in seconds."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *COMMANDS[name]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def measure(rounds: int) -> list[StartUp]:
    """Medians of all commands, run by turns; a round before them fills the caches of the file system."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_number in range(-1, rounds):
        for name in COMMANDS:
            spent = start(name)
            if round_number >= 0:
                times[name].append(spent)
    bare = statistics.median(times["python -c pass"])
    return [StartUp(name, statistics.median(found), statistics.median(found) - bare) for name, found in times.items()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default: 5)")
    options = parser.parse_args()
    found = measure(options.rounds)
    report = surroundings(torch.device("cpu")) | {"clock": "wall"}
    if options.json:
        say(json.dumps({**report, "figures": [asdict(figures) for figures in found]}, indent=1))
        return
    say(" | ".join(f"{key}: {value}" for key, value in report.items()))
    say(f"{'command':20} {'s':>7} {'over python':>12}")
    for figures in found:
        say(f"{figures.command:20} {figures.seconds:7.3f} {figures.over_python:12.3f}")


if __name__ == "__main__":
    main()
