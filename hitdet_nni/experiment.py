"""Run one NNI experiment from start to end, with NNI's manager kept on loopback, and leave no process behind.

``python -m hitdet_nni.experiment experiments/search.yml --runs runs`` starts the real ``nnictl create``, follows the
trials over NNI's REST API, prints a table of them and stops the experiment.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import psutil
import yaml

from hitdet_nni.errors import InputError
from hitdet_nni.trial_table import Snapshot, Trial, parse_trials, print_table, progress_line, results_table

LOOPBACK = "127.0.0.1"
LOOPBACK_SCRIPT = Path(__file__).with_name("nni_loopback.js")
TOKEN_VARIABLE = "HITDET_NNI_LAUNCH"

# All in seconds.
POLL_INTERVAL = 2.0
REST_PATIENCE = 60.0
STOP_PATIENCE = 45.0  # NNI's manager waits up to 30 for its tuner, then 5 for each trial
KILL_PATIENCE = 5.0

# A proxy from the environment must neither see nor swallow what is meant for loopback.
_WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class ExperimentError(RuntimeError):
    """NNI did not start, its manager went away, or something of it could not be ended."""


def node_options(current: str) -> str:
    """NODE_OPTIONS that keep NNI's manager on loopback, appended to the current value."""
    path = str(LOOPBACK_SCRIPT).replace("\\", "\\\\").replace('"', '\\"')
    ours = f'--require "{path}"'
    return current if ours in current else f"{current} {ours}".strip()


def child_environment() -> dict[str, str]:
    """The environment of nnictl: this interpreter's programs first, node on loopback, loopback without a proxy."""
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    environment["NODE_OPTIONS"] = node_options(environment.get("NODE_OPTIONS", ""))
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = ",".join(filter(None, [environment.get(name), "localhost", LOOPBACK]))
    return environment


def check_config(path: Path) -> None:
    """Refuse, with an InputError, what is not a YAML mapping; its content is NNI's to judge."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", source=path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"is not YAML ({error})", source=path) from error
    if not isinstance(content, dict):
        raise InputError(f"holds a {type(content).__name__}", source=path, allowed="a mapping of NNI's experiment keys")


def free_port() -> int:
    """A TCP port of loopback that nothing listens on."""
    with socket.create_server((LOOPBACK, 0)) as probe:
        return int(probe.getsockname()[1])


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
        """Wait; KeyboardInterrupt where a signal arrived before or meanwhile."""
        end = time.monotonic() + seconds
        while self.first is None and time.monotonic() < end:
            time.sleep(0.1)
        if self.first is not None:
            raise KeyboardInterrupt


class NniExperiment:
    """One experiment of nnictl; leaving the context stops it and ends every process that it started.

    Args:
        config: NNI's experiment file.
        port: Port of the web UI and REST API; None picks a free one.
        signals: What may cut waits short.

    Raises:
        InputError: The config is not a YAML mapping, or there is no nnictl.
    """

    def __init__(self, config: Path, port: int | None, signals: Signals) -> None:
        check_config(config)
        self.config = config
        self.port = port or free_port()
        self.address = f"http://{LOOPBACK}:{self.port}"
        self.id = ""
        self.folder = Path()
        self._signals = signals
        self._environment = child_environment()
        self._nnictl = shutil.which("nnictl", path=self._environment["PATH"]) or ""
        if not self._nnictl:
            raise InputError("there is no nnictl beside it", source=sys.executable, allowed="a Python with nni 3.0")
        # nnictl detaches its manager, so descent does not lead to it; an environment variable does.
        self._token = uuid.uuid4().hex

    def __enter__(self) -> NniExperiment:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start NNI and wait until it answers.

        Raises:
            InputError: NNI refuses the config.
            ExperimentError: NNI did not start for another reason.
            KeyboardInterrupt: A signal arrived.
        """
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            creation = self._run_nnictl("create", "--config", self.config, "--port", self.port, output=output)
            try:
                while creation.poll() is None:
                    self._signals.pause(0.1)
            finally:
                creation.kill()  # an unfinished one would go on to set up what stop() ends
                creation.wait()
            output.seek(0)
            text = _ANSI.sub("", output.read())
        if creation.returncode != 0:
            message = (text.strip().splitlines() or ["no message"])[-1].strip()
            if "nni/experiment/config/" in text or "legacy config" in text:  # the traceback leads through NNI's checks
                raise InputError(message, source=self.config)
            raise ExperimentError(f"nnictl create failed: {message}")
        profile = self._get("experiment")
        self.id, self.folder = profile["id"], Path(profile["logDir"])

    def poll(self) -> Snapshot:
        """Ask for the state of the experiment; an ExperimentError where the manager has gone or stays silent."""
        state = self._get("check-status")
        trials = parse_trials(self._get("trial-jobs"), self._get("metric-data-latest"))
        return Snapshot(state["status"], tuple(state["errors"]), trials, self._get("experiment")["nextSequenceId"])

    def stop(self) -> None:
        """``nnictl stop``, then the end of whatever is left; an ExperimentError where that did not succeed."""
        known = self._processes()
        if self.id and known:
            stopper = self._run_nnictl("stop", self.id, output=subprocess.DEVNULL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                stopper.wait(STOP_PATIENCE)
            stopper.kill()
            stopper.wait()
        for end in (psutil.Process.terminate, psutil.Process.kill, psutil.Process.kill):
            # Listed again each time: what is being ended may have started something meanwhile.
            known = {process for process in known | self._processes() if _is_alive(process)}
            for process in known:
                with contextlib.suppress(psutil.NoSuchProcess):
                    end(process)
            deadline = time.monotonic() + KILL_PATIENCE
            while any(map(_is_alive, known)) and time.monotonic() < deadline:
                time.sleep(0.05)
        if left := sorted(process.pid for process in known | self._processes() if _is_alive(process)):
            raise ExperimentError(f"processes of experiment {self.id} could not be ended: {left}")

    def _run_nnictl(self, *arguments: object, output: IO[str] | int) -> subprocess.Popen[bytes]:
        """Start nnictl, in a session of its own so that Ctrl-C reaches only us and things stop in order."""
        return subprocess.Popen(
            [self._nnictl, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**self._environment, TOKEN_VARIABLE: self._token},
            start_new_session=True,
        )

    def _processes(self) -> set[psutil.Process]:
        """What nnictl started: the living processes that carry our token, and what descends from them."""
        found: set[psutil.Process] = set()
        for process in psutil.process_iter():
            # Other users' processes keep their environment to themselves.
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(TOKEN_VARIABLE) == self._token:
                    found.update([process, *process.children(recursive=True)])
        return {process for process in found if _is_alive(process)}

    def _get(self, name: str) -> Any:
        deadline = time.monotonic() + REST_PATIENCE
        while True:
            try:
                with _WITHOUT_PROXY.open(f"{self.address}/api/v1/nni/{name}", timeout=10) as response:
                    return json.load(response)
            except (OSError, http.client.HTTPException) as error:
                gone = isinstance(getattr(error, "reason", error), ConnectionRefusedError)
                if gone or time.monotonic() > deadline:
                    raise ExperimentError(f"NNI's manager has ended or hangs; see {self.folder / 'log'}") from error
            self._signals.pause(POLL_INTERVAL)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _say(text: str, stream: IO[str] | None = None) -> None:
    print(text, file=stream or sys.stdout, flush=True)


def watch(experiment: NniExperiment, signals: Signals) -> Snapshot:
    """Follow an experiment to its end, with a line for every change of a trial."""
    started = time.monotonic()
    shown: dict[str, Trial] = {}
    while True:
        snapshot = experiment.poll()
        for trial in snapshot.trials:
            if shown.get(trial.id) != trial:
                _say(progress_line(trial, time.monotonic() - started))
        if snapshot.finished:
            return snapshot
        shown = {trial.id: trial for trial in snapshot.trials}
        signals.pause(POLL_INTERVAL)


def run(config: Path, runs: Path, port: int | None) -> int:
    """Run an experiment from start to end.

    Args:
        config: NNI's experiment file.
        runs: The folder that holds ``<experiment id>/<trial id>/architecture.json``.
        port: Port of the web UI; None picks a free one.

    Returns:
        The exit status: 0, 1 where a trial or the experiment failed, 128 + the signal's number after a signal.
    """
    snapshot = Snapshot("INTERRUPTED")
    with Signals() as signals:
        with contextlib.suppress(KeyboardInterrupt), NniExperiment(config, port, signals) as experiment:
            _say(f"starting NNI; its web UI will be {experiment.address}")
            experiment.start()
            _say(f"experiment {experiment.id} runs, files in {experiment.folder}")
            snapshot = watch(experiment, signals)
            print_table(results_table(snapshot.trials, runs / experiment.id), sys.stdout)
        if signals.first is not None:
            name = experiment.id or "(not set up yet)"
            _say(f"{signals.first.name}: experiment {name} is stopped, no process of it is left")
            return 128 + signals.first
    _say(f"the web UI was {experiment.address}; experiment {experiment.id} is stopped")
    complaints = snapshot.complaints()
    for complaint in complaints:
        _say(complaint, sys.stderr)
    return 1 if complaints else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run. Returns the exit status: as `run`, 2 for input that the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m hitdet_nni.experiment",
        description="Run one NNI experiment on loopback from start to end.",
        epilog="example: python -m hitdet_nni.experiment experiments/search.yml --runs runs",
    )
    parser.add_argument("config", type=Path, nargs="?", help="NNI's experiment file")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where trials write results (default: runs)")
    parser.add_argument("--port", type=int, help="port of the web UI (default: a free one)")
    parser.add_argument("--node-options", action="store_true", help="print NODE_OPTIONS for a nnictl called by hand")
    options = parser.parse_args(arguments)
    if options.node_options:
        _say(node_options(os.environ.get("NODE_OPTIONS", "")))
        return 0
    if options.config is None:
        parser.error("name an experiment file")
    try:
        if options.port is not None and not 0 < options.port < 65536:
            raise InputError(f"{options.port} is not a TCP port", source="--port", allowed="1 to 65535")
        return run(options.config, options.runs, options.port)
    except (InputError, ExperimentError) as error:
        _say(str(error), sys.stderr)
        return 2 if isinstance(error, InputError) else 1


if __name__ == "__main__":
    sys.exit(main())
