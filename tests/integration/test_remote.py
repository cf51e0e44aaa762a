"""Trials on another machine: NNI's remote service against a real sshd of the tests' own, on loopback.

The "other machine" is this one with another home folder. Its NNI looks for the manager at 127.0.0.2, where nothing but
the end of the launcher's ssh tunnel listens.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from launcher import ROOT, Launcher, listening, processes_at

from hitdet_nni.integration.launcher.experiment_config import ExperimentConfig, Machine
from hitdet_nni.integration.launcher.nni_manager import NniExperiment, free_port, node_options
from hitdet_nni.integration.launcher.signals import Signals
from hitdet_nni.integration.launcher.ssh_tunnel import ReverseTunnel, TunnelError

OTHER_LOOPBACK = "127.0.0.2"
NOT_ON_3_14 = pytest.mark.skipif(sys.version_info >= (3, 14), reason="NNI's runner on the other machine needs 3.13")
TRIAL = """\
import sys, time
import nni
weight = nni.get_next_parameter()["search.flops_weight"]
nni.report_intermediate_result({"default": 0.25})
if weight:
    sys.exit("the weight is too heavy")
time.sleep(2)  # the loopback check needs a moment
nni.report_final_result({"default": 0.125, "params_m": 1.5, "gflops": 0.75})
"""
# A search that is over soon: three operators for each component, of which two are kept, and two epochs a stage.
SPACE = ["ir_k3_d1_e1", "sep_k3_d1", "sep_k5_d2"]
SMALL = {
    "extends": "tiny",
    "data": {"train": 8, "val": 4, "size": 64},
    "skeleton": {"input_size": [64, 64]},
    "space": "space.yml",
    "screening": {"keep": {"backbone": 2, "neck": 2, "head": 2}},
    "retrain": {"epochs": 1, "milestones": []},
}


@dataclass(frozen=True)
class Server:
    """An sshd: its port, the folder of its keys, and the home folder of who logs in."""

    port: int
    folder: Path
    home: Path

    @property
    def machine(self) -> Machine:
        return Machine("127.0.0.1", self.port, getpass.getuser(), self.folder / "user")

    def environment(self) -> dict[str, str]:
        """An environment whose ssh knows the host key, whatever the user's own settings are."""
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        return {**os.environ, "PATH": path}

    def experiment(self, trial: str, concurrency: int) -> dict[str, object]:
        """An experiment on this server."""
        machine = self.machine
        entry = {"host": machine.host, "port": machine.port, "user": machine.user, "sshKeyFile": str(machine.key)}
        return {
            "searchSpace": {"search.flops_weight": {"_type": "choice", "_value": [0.0, 1.0][:concurrency]}},
            "trialCommand": trial,
            "trialCodeDirectory": "code",
            "trialConcurrency": concurrency,
            "maxTrialNumber": concurrency,
            "experimentWorkingDirectory": "experiments",
            "nniManagerIp": OTHER_LOOPBACK,
            "tuner": {"name": "GridSearch"},
            "trainingService": {
                "platform": "remote",
                "machineList": [{**entry, "pythonPath": str(Path(sys.executable).parent)}],
            },
        }


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


def write_ssh(folder: Path, known: Path) -> None:
    """An ssh that knows the host keys of one file and nothing of the user's settings."""
    program = folder / "ssh"
    program.write_text(
        f"#!/bin/sh\nexec {shutil.which('ssh')} -F none -o UserKnownHostsFile={known} "
        '-o GlobalKnownHostsFile=none "$@"\n'
    )
    program.chmod(0o755)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    program = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if program is None:
        assert "HITDET_REQUIRE_SSHD" not in os.environ
        pytest.skip("there is no sshd")
    folder = tmp_path_factory.mktemp("sshd")
    server = Server(free_port(), folder, folder / "home")
    for path in (server.home, folder / "bin"):
        path.mkdir()
    for name in ("host", "user"):
        make_key(folder / name)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd separates privileges there, and makes no folder
    node = node_options("").replace('"', '\\"')
    (folder / "sshd_config").write_text(
        f"""\
ListenAddress 127.0.0.1
Port {server.port}
HostKey {folder / "host"}
AuthorizedKeysFile {folder / "user.pub"}
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
GatewayPorts clientspecified
Subsystem sftp internal-sftp
SetEnv HOME={server.home} PYTHONPATH={ROOT} OMP_NUM_THREADS=1 PIP_NO_INDEX=1 "NODE_OPTIONS={node}"
"""
    )
    (folder / "known").write_text(f"[127.0.0.1]:{server.port} {(folder / 'host.pub').read_text()}")
    write_ssh(folder / "bin", folder / "known")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        wait_until(lambda: process.poll() is not None or listening_at(server.port))
        assert process.poll() is None, (folder / "log").read_text()
        yield server
    finally:
        for left in processes_at(server.home):
            left.kill()
        process.terminate()
        process.wait()


def listening_at(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionError:  # refused, or reset by a server that is just ending
        return False
    return True


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture
def launch(tmp_path, server):
    """Start an experiment of some files; a key of theirs is a path."""
    launched: list[Launcher] = []

    def start(files: dict[str, str], runs: Path) -> Launcher:
        folder = tmp_path / f"launch{len(launched)}"
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        path = server.environment()["PATH"]
        launched.append(Launcher(folder, "search.yml", "--runs", str(runs), PATH=path))
        return launched[-1]

    yield start
    for launcher in launched:
        launcher.end()


@pytest.mark.slow
@NOT_ON_3_14
def test_remote_trials_report_through_a_tunnel_and_leave_nothing(launch, server, tmp_path):
    files = {"search.yml": yaml.safe_dump(server.experiment("python trial.py", 2)), "code/trial.py": TRIAL}
    launcher = launch(files, tmp_path / "runs")
    port = int(launcher.wait_for(r"web UI will be http://127\.0\.0\.1:(\d+)")[1])
    launcher.wait_for(r"trial \d \(\w+\) RUNNING")
    here, there = listening(launcher.left()), listening(processes_at(server.home))
    assert here == {("127.0.0.1", port)}
    assert there
    assert {address for address, _ in there} == {"127.0.0.1"}  # NNI's runner; the tunnel's end is sshd's
    assert listening_at(port, OTHER_LOOPBACK)

    assert launcher.process.wait(240) == 1, launcher.text() + launcher.errors()
    text = launcher.text()
    good = re.search(r"^ *\d \((\w+)\) +SUCCEEDED +0 +1\.50 +0\.750 +0\.125 +on 127\.0\.0\.1 *$", text, re.M)
    assert good
    bad = re.search(r"^ *\d \((\w+)\) +FAILED +1 +- +- +- +- *$", text, re.M)
    assert bad
    (line,) = launcher.errors().splitlines()
    named = re.fullmatch(rf"trial \d \({bad[1]}\) FAILED: the weight is too heavy; see (.+)", line)
    assert "the weight is too heavy" in Path(named[1]).read_text()  # copied here
    assert Path(named[1]).is_relative_to(launcher.folder)
    assert launcher.left() == []
    wait_until(lambda: processes_at(server.home) == [] and not listening_at(port, OTHER_LOOPBACK))


def test_a_tunnel_is_open_until_its_ssh_ends(server):
    with socket.create_server(("127.0.0.1", 0)) as service:
        port = service.getsockname()[1]
        tunnel = ReverseTunnel(server.machine, OTHER_LOOPBACK, port, server.environment())
        assert not tunnel.is_open()
        tunnel.open(time.sleep)
        try:
            assert tunnel.is_open()
            with socket.create_connection((OTHER_LOOPBACK, port), timeout=5) as client:
                client.sendall(b"hello")
                service.settimeout(5)
                answer, _ = service.accept()
                with answer:
                    answer.settimeout(5)
                    assert answer.recv(5) == b"hello"
            second = ReverseTunnel(server.machine, OTHER_LOOPBACK, port, server.environment())
            with pytest.raises(TunnelError, match=f"127.0.0.1:{server.port}: .*port {port}"):
                second.open(time.sleep)
        finally:
            for process in tunnel.processes():
                process.terminate()
        wait_until(lambda: not tunnel.is_open())
        wait_until(lambda: not listening_at(port, OTHER_LOOPBACK))  # the other end takes a moment


def test_a_broken_tunnel_is_opened_again_and_ends_with_the_experiment(server, monkeypatch):
    monkeypatch.setenv("PATH", server.environment()["PATH"])
    config = ExperimentConfig("search.yml", ("create",), (server.machine,), OTHER_LOOPBACK)
    answers = {"check-status": {"status": "RUNNING", "errors": []}, "experiment": {"nextSequenceId": 0}}
    with NniExperiment(config, None, Signals()) as started:
        monkeypatch.setattr(started, "_get", lambda name: answers.get(name, []))
        (tunnel,) = started._tunnels
        for _ in range(2):
            assert not listening_at(started.port, OTHER_LOOPBACK)
            started.poll()
            assert listening_at(started.port, OTHER_LOOPBACK)
            (ssh,) = tunnel.processes()
            ssh.terminate()
            wait_until(lambda: not listening_at(started.port, OTHER_LOOPBACK))
        started.poll()
        assert tunnel.is_open()
    assert not tunnel.is_open()


def test_a_machine_that_does_not_let_us_in_is_named(server, tmp_path, refused):
    make_key(tmp_path / "stranger")
    stranger = Machine("127.0.0.1", server.port, getpass.getuser(), tmp_path / "stranger")
    port = free_port()
    tunnel = ReverseTunnel(stranger, OTHER_LOOPBACK, port, server.environment())
    with pytest.raises(TunnelError, match=rf"{server.port}: .*Permission denied") as caught:
        tunnel.open(time.sleep)
    assert "\n" not in str(caught.value)
    write_ssh(tmp_path, known=tmp_path / "nobody")
    with pytest.raises(TunnelError, match="Host key verification failed"):
        ReverseTunnel(server.machine, OTHER_LOOPBACK, port, {**os.environ, "PATH": str(tmp_path)}).open(time.sleep)
    with refused(server.machine, "ssh"):
        ReverseTunnel(server.machine, OTHER_LOOPBACK, port, {"PATH": str(tmp_path / "empty")})


def trained(runs: Path) -> dict[str, object]:
    """The operators that the only trial below a folder has found, and its figures."""
    (path,) = runs.glob("*/*/architecture.json")
    metrics = json.loads(path.with_name("metrics.json").read_text())
    return {"sample": json.loads(path.read_text())["sample"], "mAP": metrics["mAP"], "params_m": metrics["params_m"]}


@pytest.mark.slow
@NOT_ON_3_14
def test_a_remote_search_finds_what_a_local_one_finds_even_when_it_was_interrupted(launch, server, tmp_path):
    space = dict.fromkeys(("backbone", "neck", "head"), SPACE)
    longer = SMALL | {"search": {**SMALL.get("search", {}), "epochs": 60}}  # than it takes to be interrupted
    code = {"code/small.yml": yaml.safe_dump(longer), "code/space.yml": yaml.safe_dump(space)}
    command = "python -m hitdet_nni.integration.trial --config small.yml --runs {}"
    content = server.experiment(command.format("~/hitdet-runs"), 1)
    remote = launch({**code, "search.yml": yaml.safe_dump(content)}, tmp_path / "none")
    local_runs = tmp_path / "local-runs"
    content = content | {"trialCommand": command.format(local_runs), "trainingService": {"platform": "local"}}
    local = launch({**code, "search.yml": yaml.safe_dump(content)}, local_runs)

    experiment = remote.wait_for(r"experiment (\w+) runs")[1]
    trial = remote.wait_for(r"trial 0 \((\w+)\) RUNNING")[1]
    remote.wait_for(r"trial 0  search  epoch ")
    remote.process.send_signal(signal.SIGINT)
    assert remote.process.wait(240) == 128 + signal.SIGINT
    assert not any((server.home / "hitdet-runs").glob("*/*/metrics.json"))
    wait_until(lambda: processes_at(server.home) == [])
    runs = server.home / "hitdet-runs"
    resumed = Launcher(remote.folder, "--resume", experiment, "--runs", str(runs), PATH=server.environment()["PATH"])
    try:
        assert resumed.process.wait(600) == 0, resumed.text() + resumed.errors()
    finally:
        resumed.end()
    assert local.process.wait(600) == 0, local.text() + local.errors()
    assert trained(runs) == trained(local_runs)
    assert (runs / experiment / trial / "architecture.json").is_file()
    assert (
        f"{experiment}/{trial}/architecture.json" in resumed.text()
    )  # the other machine's home is a folder of this one
