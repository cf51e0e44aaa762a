"""`hitdet-nni experiment` as a process of the tests, in a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


def processes_at(home: Path) -> list[psutil.Process]:
    """Living processes whose HOME is a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def listening(processes: list[psutil.Process]) -> set[tuple[str, int]]:
    """Addresses and TCP ports that processes listen on."""
    return {
        (connection.laddr.ip, connection.laddr.port)
        for process in processes
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }


class Launcher:
    """The launcher on an experiment in a folder that holds its files; with other arguments, once more there.

    A prefix is a command that runs it elsewhere, such as in a network namespace.
    """

    def __init__(self, folder: Path, *arguments: str, prefix: Sequence[str] = (), **environment: str) -> None:
        self.folder = folder
        # NNI lists its experiments below HOME; a proxy must make no difference.
        self.environment = {
            **os.environ,
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "http_proxy": "http://127.0.0.1:9",
            **environment,
        }
        command = [*prefix, sys.executable, "-m", "hitdet_nni", "experiment", *arguments]
        self.output = self.folder / "output.txt"
        with self.output.open("w") as output, (self.folder / "errors.txt").open("w") as errors:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=output, stderr=errors
            )

    def text(self) -> str:
        return self.output.read_text()

    def errors(self) -> str:
        return (self.folder / "errors.txt").read_text()

    def wait_for(self, pattern: str, seconds: float = 240) -> re.Match[str]:
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self.text())):
            assert self.process.poll() is None, self.text() + self.errors()
            assert time.monotonic() < end, self.text() + self.errors()
            time.sleep(0.1)
        return match

    def left(self) -> list[psutil.Process]:
        """Its living processes and those that it started on this machine."""
        return processes_at(self.folder)

    def end(self) -> None:
        for process in [self.process, *self.left()]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()
