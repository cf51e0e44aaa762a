"""What the launcher must know of an NNI experiment before it starts: where its trials run, and how they reach NNI.

Everything else in an experiment file is NNI's to judge.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import shlex
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from hitdet_nni.errors import InputError
from hitdet_nni.integration.launcher.parameter_space import check_parameter_file, check_parameters
from hitdet_nni.io import expanded, write_json

LOOPBACK = "127.0.0.1"
PLATFORMS = ("local", "remote")
"""NNI's training services whose trials reach a manager that listens on loopback only."""

OF_A_DETECTOR = ("extends", "data", "skeleton", "search")
"""Keys of a detector's config, of which NNI knows none."""

NAMED = 8
"""Experiments that a refusal names at most."""

OUR_TRIAL = "hitdet_nni.integration.trial"
"""The program of a trial, as commands name it."""

_MOST_PROCESSES = 2**31
_BEGINNING = 60.0  # seconds that NNI may take from a manager's process to the time that it notes of it
_OF_A_SHELL = re.compile(r"[$`*?;&|<>]")  # where the words of a command are not what its program is given
_PLACEHOLDER = re.compile(r"<[^<>]*>")


@dataclass(frozen=True)
class Machine:
    """A machine of NNI's remote training service.

    Args:
        host: Its name or address.
        port: TCP port of its sshd.
        user: Who logs in.
        key: File of the private key; None where the experiment names none.
    """

    host: str
    port: int
    user: str
    key: Path | None

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"


@dataclass(frozen=True)
class ExperimentConfig:
    """An NNI experiment as far as the launcher reads it.

    Args:
        source: The file, or the experiment's id.
        arguments: Arguments of ``nnictl`` that start it.
        machines: Where its trials run; empty for this machine.
        manager: The address at which those machines look for NNI's manager (``nniManagerIp``).
        runs: Folder of this machine that its trials write to; ``None`` where their command does not say so.
    """

    source: str
    arguments: tuple[str, ...]
    machines: tuple[Machine, ...] = ()
    manager: str = LOOPBACK
    runs: Path | None = None

    @property
    def tunnelled(self) -> tuple[Machine, ...]:
        """The machines that do not find the manager, which listens on loopback here, without an ssh tunnel."""
        return tuple(
            m for m in self.machines if not _is_loopback(m.host) or self.manager not in {LOOPBACK, "localhost"}
        )


def load_config(path: Path) -> ExperimentConfig:
    """Read an experiment file.

    Raises:
        InputError: It is not a YAML mapping, or cannot run with a manager on loopback; see `parse`.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", source=path) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"is not YAML ({error})", source=path) from error
    return parse(content, str(path), ("create", "--config", str(path)), path.parent)


def known_experiments() -> tuple[Path, dict[str, Any]]:
    """Return NNI's index of this user's experiments, and what it says of each by id; nothing where there is none."""
    index = Path.home() / "nni-experiments" / ".experiment"
    known: object = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        known = json.loads(index.read_text(encoding="utf-8"))
    return index, known if isinstance(known, dict) else {}


def _latest(known: Mapping[str, Any]) -> list[str]:
    """Return the ids of the experiments that began last, in alphabetical order."""

    def begun(name: str) -> float:
        start = known[name].get("startTime") if isinstance(known[name], dict) else None
        return start if isinstance(start, int | float) else 0

    return sorted(sorted(known, key=begun)[-NAMED:])


def load_stopped(experiment: str) -> ExperimentConfig:
    """Read the config that NNI stored of an experiment that has been stopped or killed.

    Raises:
        InputError: NNI knows no such experiment, or it runs.
    """
    index, known = known_experiments()
    if experiment not in known:
        raise InputError(f"unknown experiment {experiment!r}", source=index, allowed=_latest(known) or "none yet")
    entry = known[experiment] if isinstance(known[experiment], dict) else {}
    status, process, folder = (entry.get(key) for key in ("status", "pid", "logDir"))
    if not isinstance(folder, str) or not isinstance(process, int | None):
        raise InputError(
            "is damaged",
            source=index,
            key=experiment,
            allowed="an experiment with status, pid and logDir, as NNI writes",
        )
    if status != "STOPPED" and _runs(process, entry.get("startTime")):
        raise InputError(f"experiment {experiment} runs", source=index, allowed="one that has been stopped")
    if status != "STOPPED" and 0 < (process or 0) < _MOST_PROCESSES and psutil.pid_exists(process):
        # Another process has the number, as after a restart of the machine; nnictl would take it for the experiment's.
        write_json(index, {**known, experiment: {**entry, "status": "STOPPED"}})
    database = Path(folder, experiment, "db", "nni.sqlite")
    query = "select params from ExperimentProfile where id = ? order by revision desc limit 1"
    try:
        with contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            (params,) = connection.execute(query, (experiment,)).fetchone()
        content = json.loads(params)
    except (sqlite3.Error, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"holds no experiment {experiment} ({error})", source=database) from error
    return parse(content, experiment, ("resume", experiment), Path.cwd())


def _runs(process: int | None, began: object) -> bool:
    """Whether an experiment's process runs; one that began after the experiment did has its number by chance."""
    if not 0 < (process or 0) < _MOST_PROCESSES:
        return False
    try:
        since = psutil.Process(process).create_time()
    except psutil.Error:
        return False
    # NNI notes in milliseconds when its manager was ready, some seconds after the process began.
    return not isinstance(began, int | float) or since <= began / 1000 + _BEGINNING


def parse(content: object, source: str, arguments: tuple[str, ...], folder: Path) -> ExperimentConfig:
    """Read an experiment from the content of its file.

    Args:
        content: What YAML or JSON gave.
        source: What errors name.
        arguments: Arguments of ``nnictl`` that start it.
        folder: Relative paths start there.

    Raises:
        InputError: It is no mapping, a placeholder such as ``<host>`` is still in it, a parameter has no kind or no
            values, trials of ours are to be assessed on the way, it does not say where its trials run, or they could
            not reach a manager that listens on loopback.
    """
    if not isinstance(content, dict):
        raise InputError(
            f"holds a {type(content).__name__}", source=source, allowed="a mapping of NNI's experiment keys"
        )
    if not content.keys().isdisjoint(OF_A_DETECTOR) and _value(content, "trialCommand") is None:
        allowed = "an experiment file of NNI's, such as experiments/search.yml"
        raise InputError("is the config of a detector", source=source, allowed=allowed)
    _refuse_placeholders(content, source, "")
    _check_parameters(content, source, folder)
    _refuse_assessment(content, source)
    service = _value(content, "trainingService")
    if service is None and _value(content, "trainingServicePlatform") is None:  # as NNI's older format has it
        allowed = "{platform: local} for this machine"
        raise InputError("is missing", source=source, key="trainingService", allowed=allowed)
    if not isinstance(service, dict):  # NNI's older formats, or several services at once
        if isinstance(service, list):
            raise InputError("several services", source=source, key="trainingService", allowed="one, local or remote")
        return ExperimentConfig(source, arguments)
    platform = _value(service, "platform")
    if platform is None:
        raise InputError("is missing", source=source, key="trainingService.platform", allowed=", ".join(PLATFORMS))
    if isinstance(platform, str) and platform not in PLATFORMS:
        raise InputError(
            f"trials of {platform!r} reach NNI's manager over the network, and it is kept on loopback here",
            source=source,
            key="trainingService.platform",
            allowed="local, remote; for others see docs/training_services.md",
        )
    if platform != "remote":
        return ExperimentConfig(source, arguments, runs=_runs_of(content, folder))
    manager = _value(service, "nniManagerIp") or _value(content, "nniManagerIp") or LOOPBACK
    if not _is_loopback(manager):
        raise InputError(
            f"got {manager!r}, and NNI's manager is kept on loopback here",
            source=source,
            key="nniManagerIp",
            allowed=f"{LOOPBACK}: remote machines reach it through an ssh tunnel",
        )
    given = _value(service, "machineList")
    machines = given if isinstance(given, list) else []
    known = [_machine(machine, folder) for machine in machines if isinstance(machine, dict)]
    return ExperimentConfig(source, arguments, tuple(machine for machine in known if machine), str(manager))


def _check_parameters(content: Mapping[str, Any], source: str, folder: Path) -> None:
    """Check the parameters for NNI's own tuners, and ours; a tuner of a person's may have them in any form."""
    tuner = _value(content, "tuner")
    named = _value(tuner, "className") if isinstance(tuner, Mapping) else None
    if named is not None and not str(named).startswith("hitdet_nni."):
        return
    file, space = _value(content, "searchSpaceFile"), _value(content, "searchSpace")
    if isinstance(file, str):
        check_parameter_file(file, folder)
    elif space is not None:
        check_parameters(space, source)


def _refuse_assessment(content: Mapping[str, Any], source: str) -> None:
    """Refuse to have trials of ours stopped early: they report losses on the way, of which the lower is the better."""
    for key in ("assessor", "advisor"):
        if OUR_TRIAL in str(_value(content, "trialCommand")) and _value(content, key) is not None:
            raise InputError(
                "would stop trials by what they report on the way, which are losses of several stages",
                source=source,
                key=key,
                allowed="a tuner alone, which has the final mAP",
            )


def _runs_of(content: Mapping[str, Any], folder: Path) -> Path | None:
    """Return the folder that local trials of ours write to."""
    command, code = _value(content, "trialCommand"), _value(content, "trialCodeDirectory")
    if not isinstance(command, str) or OUR_TRIAL not in command or _OF_A_SHELL.search(command):
        return None
    runs = "runs"
    with contextlib.suppress(ValueError):  # quotes that are not closed
        words = shlex.split(command)
        for word, following in zip(words, [*words[1:], ""], strict=True):
            name, equals, value = word.partition("=")
            if name == "--runs":
                runs = value if equals else following
        return folder / expanded(code if isinstance(code, str) else ".") / expanded(runs)
    return None


def _machine(content: Mapping[str, Any], folder: Path) -> Machine | None:
    """Return a machine; None where NNI will refuse it."""
    host, user, key = (_value(content, name) for name in ("host", "user", "sshKeyFile"))
    port = _value(content, "port")
    if not (isinstance(host, str) and isinstance(user, str) and isinstance(port, int | None)):
        return None
    if not isinstance(key, str | None):
        return None
    return Machine(host, 22 if port is None else port, user, folder / expanded(key) if key else None)


def _value(content: Mapping[str, Any], key: str) -> Any:
    """Return a value by its key, which NNI reads without regard to case and underscores."""
    wanted = key.lower()
    return next((value for name, value in content.items() if str(name).lower().replace("_", "") == wanted), None)


def _is_loopback(host: object) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False


def _refuse_placeholders(value: object, source: str, key: str) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_placeholders(inner, source, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            _refuse_placeholders(inner, source, f"{key}[{position}]")
    elif isinstance(value, str) and _PLACEHOLDER.fullmatch(value.strip()):
        raise InputError(f"{value} is still to be filled in", source=source, key=key, allowed="a value of yours")
