"""A reverse ssh tunnel: lets a remote machine reach NNI's manager, which listens on loopback only."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping

import psutil

from hitdet_nni.errors import InputError, StoppedError
from hitdet_nni.integration.launcher.experiment_config import LOOPBACK, Machine

TOKEN_VARIABLE = "HITDET_NNI_TUNNEL"

# In seconds.
CONNECT_PATIENCE = 20
OPEN_PATIENCE = 60
KEEP_ALIVE_INTERVAL = 15


class TunnelError(StoppedError):
    """ssh could not log in to a machine, or could not open the port there."""


class ReverseTunnel:
    """The manager's port on a remote machine, served by an ssh process in the background.

    Args:
        machine: The remote machine; its host key must be known to ssh, and its key must need no password.
        address: Loopback address on the remote machine.
        port: TCP port, on the remote machine and here.
        environment: Environment of ssh.

    Raises:
        InputError: There is no ssh.
    """

    def __init__(self, machine: Machine, address: str, port: int, environment: Mapping[str, str]) -> None:
        ssh = shutil.which("ssh", path=environment.get("PATH"))
        if ssh is None:
            raise InputError("there is no ssh for the tunnel", source=str(machine), allowed="an OpenSSH client in PATH")
        self.machine = machine
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": CONNECT_PATIENCE,
            "ControlPath": "none",  # a shared connection would outlive its forwarding
            "ExitOnForwardFailure": "yes",
            "ServerAliveInterval": KEEP_ALIVE_INTERVAL,
        }
        # -f: into the background once the port is open over there.
        command = [ssh, "-f", "-N", *(f"-o{name}={value}" for name, value in options.items())]
        if machine.key is not None:
            command += ["-o", "IdentitiesOnly=yes", "-i", str(machine.key)]
        command += ["-p", str(machine.port), "-l", machine.user, "-R", f"{address}:{port}:{LOOPBACK}:{port}"]
        self._command = [*command, "--", machine.host]
        # In the background ssh is a process that is no child of ours; an environment variable finds it.
        self._token = uuid.uuid4().hex
        self._environment = {**environment, TOKEN_VARIABLE: self._token}

    def open(self, pause: Callable[[float], None]) -> None:
        """Open the tunnel, and return once the port is open on the remote machine.

        Args:
            pause: Waits so many seconds; what it raises ends the attempt.

        Raises:
            TunnelError: It could not be opened.
        """
        # Not a pipe: ssh in the background would keep it open.
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            ssh = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=self._environment,
                start_new_session=True,
            )
            deadline = time.monotonic() + OPEN_PATIENCE
            try:
                while ssh.poll() is None and time.monotonic() < deadline:
                    pause(0.1)
            finally:
                ssh.kill()
                ssh.wait()
            errors.seek(0)
            lines = errors.read().strip().splitlines()
        if ssh.returncode != 0:
            raise TunnelError(f"no tunnel to {self.machine}: {lines[-1].strip() if lines else 'ssh hangs'}")

    def processes(self) -> list[psutil.Process]:
        """Return its living ssh: one process, or none."""
        found = []
        for process in psutil.process_iter():
            # Other users' processes keep their environment to themselves.
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(TOKEN_VARIABLE) == self._token and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def is_open(self) -> bool:
        """Whether its ssh lives."""
        return bool(self.processes())
