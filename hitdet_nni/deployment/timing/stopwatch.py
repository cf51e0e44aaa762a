"""Times of many programs, in turns, so that what else the machine does meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from hitdet_nni.deployment.timing.runtimes import Opener, Program

Key = TypeVar("Key", bound=Hashable)

WARM_UP = 3
"""Runs of a program that has just been opened, before any is timed."""

BURST_SECONDS = 0.004
"""What the timed runs of one burst take together, about."""

FEWEST, MOST = 3, 100
"""Timed runs of a burst."""


def burst(program: Program) -> float:
    """Return the median time of a program's runs, in seconds, a few runs after it was opened."""
    for _ in range(WARM_UP):
        program()
    times: list[float] = []
    while len(times) < FEWEST or (sum(times) < BURST_SECONDS and len(times) < MOST):
        started = time.perf_counter()
        program()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@dataclass(frozen=True)
class Times(Generic[Key]):
    """Times of programs.

    Attributes:
        bursts: Median time of each burst of each program, in seconds.
    """

    bursts: Mapping[Key, Sequence[float]]

    def milliseconds(self, key: Key) -> float:
        """Return the time of a program: the median of its bursts."""
        return 1000 * statistics.median(self.bursts[key])

    @property
    def unrest(self) -> float:
        """By which share a program's median burst takes longer than its fastest: the median over programs."""
        return statistics.median(statistics.median(row) / min(row) - 1 for row in self.bursts.values())


def time_in_turns(
    programs: Mapping[Key, Opener],
    rounds: int,
    pause: float,
    on_burst: Callable[[float], None] = lambda seconds: None,
    on_round: Callable[[], None] = lambda: None,
) -> Times[Key]:
    """Time programs in turns.

    Args:
        programs: What opens each program; one is open at a time.
        rounds: Bursts of each.
        pause: Seconds between rounds, in which the processor cools down.
        on_burst: Called with the time of each burst, in seconds.
        on_round: Called at the end of each round.
    """
    bursts: dict[Key, list[float]] = {key: [] for key in programs}
    for number in range(rounds):
        if number:
            time.sleep(pause)
        for key, opened in programs.items():
            bursts[key].append(burst(opened()))
            on_burst(bursts[key][-1])
        on_round()
    return Times(bursts)
