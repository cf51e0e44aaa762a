"""NNI's manager as a context: ``nnictl`` starts it on loopback, REST asks it, and all that it started ends with it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import psutil

from hitdet_nni.errors import InputError, StoppedError
from hitdet_nni.integration.launcher.experiment_config import LOOPBACK, ExperimentConfig, known_experiments
from hitdet_nni.integration.launcher.signals import Signals
from hitdet_nni.integration.launcher.ssh_tunnel import ReverseTunnel
from hitdet_nni.integration.launcher.trial_table import FAILED, Snapshot, Trial, parse_trials

LOOPBACK_SCRIPT = Path(__file__).with_name("nni_loopback.js")
TOKEN_VARIABLE = "HITDET_NNI_LAUNCH"

START_ATTEMPTS = 3

# All in seconds.
POLL_INTERVAL = 2.0
REST_PATIENCE = 60.0
STOP_PATIENCE = 45.0  # NNI's manager waits up to 30 for its tuner, then 5 for each trial
KILL_PATIENCE = 5.0

# A proxy from the environment must neither see nor swallow what is meant for loopback.
_WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_LOGGED_ERROR = re.compile(r"^\[[^]]*\] (?:ERROR|CRITICAL) \(\w[\w.]*\) (.*)", re.MULTILINE)
_RECORD = re.compile(r"^\[[^]]*\] (?=[A-Z]+ )", re.MULTILINE)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class ExperimentError(StoppedError):
    """NNI did not start, its manager went away, or something of it could not be ended."""


def node_options(current: str) -> str:
    """Return NODE_OPTIONS that keep NNI's manager on loopback, appended to the current value."""
    path = str(LOOPBACK_SCRIPT).replace("\\", "\\\\").replace('"', '\\"')
    ours = f'--require "{path}"'
    return current if ours in current else f"{current} {ours}".strip()


def child_environment() -> dict[str, str]:
    """Return nnictl's environment: this interpreter's programs first, node on loopback, no proxy for loopback."""
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    environment["NODE_OPTIONS"] = node_options(environment.get("NODE_OPTIONS", ""))
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = ",".join(filter(None, [environment.get(name), "localhost", LOOPBACK]))
    return environment


def free_port() -> int:
    """Return a TCP port of loopback that nothing listens on."""
    with socket.create_server((LOOPBACK, 0)) as probe:
        return int(probe.getsockname()[1])


class NniExperiment:
    """One experiment of nnictl; leaving the context stops it and ends every process that it started.

    Args:
        config: The experiment.
        port: Port of the web UI and REST API; None picks a free one.
        signals: What may cut waits short.

    Raises:
        InputError: There is no nnictl, or no ssh where a tunnel is needed.
    """

    def __init__(self, config: ExperimentConfig, port: int | None, signals: Signals) -> None:
        self.config = config
        self.port = port or free_port()
        self.address = f"http://{LOOPBACK}:{self.port}"
        self.id = ""
        self.folder = Path()
        self._tuner_error = ""
        self._signals = signals
        self._environment = child_environment()
        self._nnictl = shutil.which("nnictl", path=self._environment["PATH"]) or ""
        if not self._nnictl:
            raise InputError("there is no nnictl beside it", source=sys.executable, allowed="a Python with nni 3.0")
        # nnictl detaches its manager, so descent does not lead to it; an environment variable does.
        self._token = uuid.uuid4().hex
        self._environment[TOKEN_VARIABLE] = self._token
        self._tunnels = [
            ReverseTunnel(machine, config.manager, self.port, self._environment) for machine in config.tunnelled
        ]

    def __enter__(self) -> NniExperiment:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start NNI and wait until it answers.

        Raises:
            InputError: NNI refuses the config.
            ExperimentError: NNI did not start for another reason.
            TunnelError: A remote machine could not be given a way to the manager.
            KeyboardInterrupt: A signal arrived.
        """
        for tunnel in self._tunnels:
            tunnel.open(self._signals.pause)
        for attempt in range(START_ATTEMPTS):
            code, text = self._nnictl_start()
            if code == 0:
                break
            message = _reason(text)
            if "nni/experiment/config/" in text or "legacy config" in text:  # the traceback leads through NNI's checks
                raise InputError(message, source=self.config.source)
            # nnictl gives its manager three seconds to come up, which a busy machine may not do.
            if "/check-status" not in message or attempt + 1 == START_ATTEMPTS:
                raise ExperimentError(f"nnictl {self.config.arguments[0]} failed: {message}")
        profile = self._get("experiment")
        self.id, self.folder = profile["id"], Path(profile["logDir"])

    def _nnictl_start(self) -> tuple[int, str]:
        """Make one attempt; return nnictl's exit status and what it printed."""
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            starter = self._run_nnictl(*self.config.arguments, "--port", self.port, output=output)
            try:
                while starter.poll() is None:
                    self._signals.pause(0.1)
            finally:
                starter.kill()  # an unfinished one would go on to set up what stop() ends
                starter.wait()
            output.seek(0)
            return starter.returncode, _ANSI.sub("", output.read())

    def poll(self) -> Snapshot:
        """Ask for the state of the experiment, and open tunnels again that have broken.

        Raises:
            ExperimentError: The manager has gone or stays silent, or the tuner failed before it asked for a trial.
            TunnelError: A tunnel has broken and cannot be opened again.
        """
        for tunnel in self._tunnels:
            if not tunnel.is_open():
                tunnel.open(self._signals.pause)
        state = self._get("check-status")
        trials = parse_trials(self._get("trial-jobs"), self._get("metric-data-latest"))
        requested, errors = self._get("experiment")["nextSequenceId"], list(state["errors"])
        log = self.folder / "log" / "dispatcher.log"
        failed, before = state["status"] == "ERROR", self._tuner_error
        self._tuner_error = _last_exception(log) if failed or not requested else ""
        if self._tuner_error and failed:
            errors.append(f"{self._tuner_error}; see {log}")
        elif self._tuner_error and self._tuner_error == before:  # NNI's manager does not notice it
            raise ExperimentError(f"NNI's tuner has ended: {before}; see {log}")
        return Snapshot(state["status"], tuple(errors), trials, requested)

    def fetch_logs(self, snapshot: Snapshot) -> Snapshot:
        """Have NNI copy the output of failed trials here from the machines where they ran."""
        return replace(snapshot, trials=tuple(map(self._with_log, snapshot.trials)))

    def _with_log(self, trial: Trial) -> Trial:
        if not trial.place or trial.status not in FAILED:
            return trial
        # NNI downloads all files of the trial when asked for one.
        url = f"{self.address}/api/v1/nni/trial-file/{trial.id}/stderr"
        with contextlib.suppress(OSError, http.client.HTTPException):
            _WITHOUT_PROXY.open(url, timeout=REST_PATIENCE).close()
        folder = self.folder / "trials" / trial.id
        return replace(trial, folder=folder) if folder.is_dir() else trial

    def stop(self) -> None:
        """End NNI's manager, then whatever is left.

        Raises:
            ExperimentError: If something of it still lives then.
        """
        known = self._processes()
        # What `nnictl stop` does, without the seconds that another Python with NNI takes to start.
        entry = known_experiments()[1].get(self.id)
        manager = entry.get("pid") if isinstance(entry, dict) else None
        for process in known:
            if process.pid == manager:
                with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                    process.terminate()
                    process.wait(STOP_PATIENCE)
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
            env=self._environment,
            start_new_session=True,
        )

    def _processes(self) -> set[psutil.Process]:
        """Return what nnictl started: the living processes that carry our token, and what descends from them."""
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
                    raise ExperimentError(f"NNI's manager has ended or hangs: {self._last_error()}") from error
            self._signals.pause(POLL_INTERVAL)

    def _last_error(self) -> str:
        """Return the last error that the manager logged, and where its log is."""
        log = self.folder / "log" / "nnimanager.log"
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        errors = _LOGGED_ERROR.findall(text)
        return f"{errors[-1]}; see {log}" if errors else f"see {log}"


def _reason(text: str) -> str:
    """Return the last line that nnictl printed, and what was asserted where that is all it says."""
    lines = [line.strip() for line in text.strip().splitlines()] or ["no message"]
    asserted = next((line for line in reversed(lines) if line.startswith("assert ")), "")
    return f"{lines[-1]}: {asserted}" if lines[-1] == "AssertionError" and asserted else lines[-1]


def _last_exception(log: Path) -> str:
    """Return what the exception says that a log of NNI's ends with; empty where it ends with something else."""
    text = log.read_text(encoding="utf-8", errors="replace").strip() if log.is_file() else ""
    *_, last = _RECORD.split(text)
    return last.splitlines()[-1].strip() if "Traceback (most recent call last)" in last else ""


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
