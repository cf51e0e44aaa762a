"""Signals that end a program in order: noted when they come, acted upon where it waits."""

from __future__ import annotations

import signal
import time
from typing import Any


class Signals:
    """Notes SIGINT, SIGTERM and SIGHUP, and lets waits be left by them.

    The handler only records: an exception from inside it could lose a process that is just being started or stopped. So
    a second Ctrl-C changes nothing: stopping goes on, and is bounded in time.
    """

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # under nohup
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.first = self.first or signal.Signals(number)

    def pause(self, seconds: float) -> None:
        """Wait, and raise KeyboardInterrupt where a signal arrived before or meanwhile."""
        end = time.monotonic() + seconds
        while self.first is None and time.monotonic() < end:
            time.sleep(0.1)
        if self.first is not None:
            raise KeyboardInterrupt
