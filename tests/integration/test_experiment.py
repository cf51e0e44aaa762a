"""The launcher: NNI's real nnictl, a trial that takes a second, signals, and that nothing is left or reachable."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from launcher import ROOT, Launcher, listening

from hitdet_nni import cli
from hitdet_nni.errors import InputError
from hitdet_nni.integration.launcher import nni_manager
from hitdet_nni.integration.launcher.experiment_config import ExperimentConfig
from hitdet_nni.integration.launcher.nni_manager import node_options
from hitdet_nni.integration.launcher.signals import Signals

CONFIG = """\
searchSpace:
  search.flops_weight: {_type: choice, _value: [0.0, 1.0]}
trialCommand: python trial.py
trialCodeDirectory: .
trialConcurrency: 2
maxTrialNumber: 2
experimentWorkingDirectory: experiments
tuner: {name: GridSearch}
trainingService: {platform: local}
"""
TRIAL = """\
import os, pathlib, subprocess, sys, time
import nni
weight = nni.get_next_parameter()["search.flops_weight"]
for step in range(2):
    nni.report_intermediate_result({"default": 0.1 * step, "val_loss": 2.5 - step, "gflops": 0.25})
if os.environ.get("TRIAL_DOES") == "fail" and weight:
    sys.exit("the weight is too heavy")
if os.environ.get("TRIAL_DOES") == "hang":
    # a child in a session of its own that outlives a plain kill of the trial
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    time.sleep(600)
while os.environ.get("TRIAL_DOES") == "wait" and not pathlib.Path("go on").exists():
    time.sleep(0.05)
folder = pathlib.Path("runs", nni.get_experiment_id(), nni.get_trial_id())
folder.mkdir(parents=True)
(folder / "architecture.json").write_text("{}")
nni.report_final_result({"default": 0.125 + weight / 4, "params_m": 1.5, "gflops": 0.75})
"""


class Launches:
    """Starts launchers, and ends them after the tests."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self.folders = folders
        self.launched: list[Launcher] = []

    def __call__(self, does: str, *options: str, config: str = CONFIG) -> Launcher:
        folder = self.folders.mktemp("launch") / "an experiment"  # with a space in its name
        folder.mkdir()
        (folder / "search.yml").write_text(config)
        (folder / "trial.py").write_text(TRIAL)
        return self._start(folder, does, "search.yml", *options)

    def again(self, launcher: Launcher, does: str, *arguments: str) -> Launcher:
        return self._start(launcher.folder, does, *arguments)

    def _start(self, folder: Path, does: str, *arguments: str) -> Launcher:
        self.launched.append(Launcher(folder, *arguments, "--runs", "runs", TRIAL_DOES=does))
        return self.launched[-1]


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    launches = Launches(tmp_path_factory)
    yield launches
    for launcher in launches.launched:
        launcher.end()


@pytest.fixture(scope="module")
def together(launch):
    """The experiments of the slow tests, run at the same time because NNI mostly waits."""
    return {does: launch(does) for does in ("fail", "hang")}


def test_an_experiment_runs_to_its_table_on_loopback_only_and_leaves_nothing(launch):
    launcher = launch("wait")
    port = int(launcher.wait_for(r"web UI will be http://127\.0\.0\.1:(\d+)")[1])
    launcher.wait_for(r"experiment \w+ runs")
    assert listening(launcher.left()) == {("127.0.0.1", port)}
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    outside = [a.address for every in psutil.net_if_addrs().values() for a in every if a.family == socket.AF_INET]
    for address in outside:
        if not address.startswith("127."):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=5)

    for trial in (0, 1):
        launcher.wait_for(rf"\n[\d:]+  trial {trial}  2 reports  val loss 1.5  0.25 GFLOPs expected\n")
    (launcher.folder / "go on").touch()

    assert launcher.process.wait(120) == 0, launcher.text() + launcher.errors()
    text = launcher.text()
    done = r"^[\d:]+  trial [01] \(\w+\) SUCCEEDED  mAP=0.375 params_m=1.5 gflops=0.75$"
    assert re.search(done, text, re.M)
    assert re.search(r"trial +status +cost weight +params M +GFLOPs +mAP +architecture", text)
    rows = re.findall(r"^ *(\d) \((\w+)\) +SUCCEEDED +(\S+) +1\.50 +0\.750 +(\S+) +(\S+) *$", text, re.M)
    assert [number for number, *_ in rows] == ["0", "1"]
    assert sorted((weight, score) for _, _, weight, score, _ in rows) == [("0", "0.125"), ("1", "0.375")]
    assert all((launcher.folder / path).is_file() and trial in path for _, trial, _, _, path in rows)
    assert f"the web UI was http://127.0.0.1:{port}" in text
    assert launcher.left() == []


@pytest.mark.slow
def test_a_failed_trial_is_named_with_its_log(together):
    launcher = together["fail"]
    assert launcher.process.wait(120) == 1
    (line,) = launcher.errors().splitlines()
    named = re.fullmatch(r"trial [01] \(\w+\) FAILED: the weight is too heavy; see (.+)", line)
    assert named, line
    assert "the weight is too heavy" in Path(named[1]).read_text()
    assert re.search(r"[01] \(\w+\) +FAILED +1 +- +- +- +-", launcher.text())
    assert re.search(r"[01] \(\w+\) +SUCCEEDED +0 +1\.50 +0\.750 +0\.125", launcher.text())
    assert launcher.left() == []


def interrupt(launcher: Launcher, number: signal.Signals) -> list[str]:
    """Send a signal twice; return the lines printed from its name on."""
    launcher.process.send_signal(number)
    time.sleep(1)
    launcher.process.send_signal(number)
    assert launcher.process.wait(120) == 128 + number
    assert launcher.errors() == ""
    assert launcher.left() == []
    text = launcher.text()
    return text[text.index(f"{number.name}: ") :].splitlines()


@pytest.mark.slow
def test_ctrl_c_stops_running_trials_and_their_children_and_they_go_on_later(together, launch):
    launcher = together["hang"]
    started = launcher.wait_for(r"experiment (\w+) runs")[1]
    ids = [launcher.wait_for(rf"trial {trial} \((\w+)\) RUNNING")[1] for trial in (0, 1)]
    for trial in (0, 1):
        launcher.wait_for(rf"trial {trial}  2 reports")
    end = time.monotonic() + 30
    while len(launcher.left()) < 7:  # launcher, manager, dispatcher, two trials with a child each
        assert time.monotonic() < end
        time.sleep(0.1)
    lines = interrupt(launcher, signal.SIGINT)
    assert lines == [
        f"SIGINT: experiment {started} is stopped, no process of it is left",
        f"go on with: hitdet-nni experiment --resume {started} --runs runs",
    ]
    resumed = launch.again(launcher, "succeed", "--resume", started)
    assert resumed.process.wait(240) == 0, resumed.text() + resumed.errors()
    rows = re.findall(r"^ *(\d) \((\w+)\) +SUCCEEDED +(\S+) +1\.50 +0\.750 +(\S+) +(\S+) *$", resumed.text(), re.M)
    assert [trial for _, trial, *_ in rows] == ids
    assert sorted((weight, score) for _, _, weight, score, _ in rows) == [("0", "0.125"), ("1", "0.375")]
    assert resumed.left() == []


@pytest.mark.slow
def test_a_grid_whose_first_trial_was_stopped_is_searched_whole(launch):
    """With one trial at a time NNI's own hands out the point of the resumed trial again, and never the other one."""
    own = "tuner: {className: hitdet_nni.integration.grid_search.GridSearch, codeDirectory: .}"
    config = CONFIG.replace("tuner: {name: GridSearch}", own).replace("trialConcurrency: 2", "trialConcurrency: 1")
    launcher = launch("hang", config=config)
    started = launcher.wait_for(r"experiment (\w+) runs")[1]
    launcher.wait_for(r"trial 0  2 reports")
    interrupt(launcher, signal.SIGINT)
    resumed = launch.again(launcher, "succeed", "--resume", started)
    assert resumed.process.wait(240) == 0, resumed.text() + resumed.errors()
    rows = re.findall(r"^ *\d \(\w+\) +SUCCEEDED +(\S+) +1\.50 +0\.750 +(\S+)", resumed.text(), re.M)
    assert sorted(rows) == [("0", "0.125"), ("1", "0.375")]


@pytest.mark.slow
def test_sigterm_during_the_start_leaves_nothing(launch):
    launcher = launch("hang")
    launcher.wait_for("starting NNI")
    time.sleep(1)
    assert interrupt(launcher, signal.SIGTERM)[0].startswith("SIGTERM: experiment ")


@pytest.mark.slow
def test_nnictl_refusals_are_told_apart(launch):
    launcher = launch("succeed", config=CONFIG.replace("maxTrialNumber: 2", "maxTrialNumber: two"))
    assert launcher.process.wait(120) == 2
    (line,) = launcher.errors().splitlines()
    assert line.startswith("hitdet-nni: search.yml: ")
    assert "max_trial_number ('two')" in line


@pytest.mark.slow
def test_a_port_in_use_fails(launch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        launcher = launch("succeed", "--port", str(port))
        assert launcher.process.wait(120) == 1
    assert launcher.errors().startswith(f"hitdet-nni: nnictl create failed: RuntimeError: Port {port} is not idle")
    assert launcher.left() == []


def test_an_experiment_file_or_an_experiment_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    before = signal.getsignal(signal.SIGINT)
    for arguments in ([], ["search.yml", "--resume", "abc"], ["missing.yml"], ["--resume", "abc"]):
        assert cli.main(["experiment", *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert signal.getsignal(signal.SIGINT) == before


def test_a_port_out_of_range_and_a_missing_nnictl_are_bad_input(tmp_path, capsys, monkeypatch):
    path = tmp_path / "search.yml"
    path.write_text(CONFIG)
    assert cli.main(["experiment", str(path), "--port", "70000"]) == 2
    monkeypatch.setattr(nni_manager.shutil, "which", lambda *_, **__: None)
    assert cli.main(["experiment", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 2


SLOW_START = "requests.exceptions.ConnectionError: Max retries exceeded with url: /api/v1/nni/check-status"


@pytest.mark.parametrize(
    ("outcomes", "error"),
    [
        ([SLOW_START, SLOW_START, ""], None),
        ([SLOW_START] * 3, f"nnictl create failed: {SLOW_START}"),
        ([SLOW_START, "RuntimeError: Port 1 is not idle"], "nnictl create failed: RuntimeError: Port 1 is not idle"),
    ],
)
def test_a_manager_that_comes_up_too_slowly_is_started_again(monkeypatch, outcomes, error):
    left = list(outcomes)
    answers = {"experiment": {"id": "abc", "logDir": "/experiments/abc"}}
    started = nni_manager.NniExperiment(ExperimentConfig("a.yml", ("create",)), None, Signals())
    monkeypatch.setattr(started, "_nnictl_start", lambda: (int(bool(left[0])), f"line\n{left.pop(0)}\n"))
    monkeypatch.setattr(started, "_get", answers.get)
    if error is None:
        started.start()
        assert (started.id, started.folder) == ("abc", Path("/experiments/abc"))
    else:
        with pytest.raises(nni_manager.ExperimentError) as raised:
            started.start()
        assert str(raised.value) == error
    assert left == []


def test_the_reason_that_the_manager_logged_is_told(tmp_path):
    started = nni_manager.NniExperiment(ExperimentConfig("a.yml", ("create",)), None, Signals())
    started.folder = tmp_path
    log = tmp_path / "log" / "nnimanager.log"
    with pytest.raises(nni_manager.ExperimentError, match=f"NNI's manager has ended or hangs: see {log}"):
        started.poll()
    log.parent.mkdir()
    log.write_text(
        "[2023-01-01 00:00:00] ERROR (WsChannelClient.remote-worker1) lost\n"
        "[2023-01-01 00:00:01] ERROR (TrainingServiceCompat) Error: connect ECONNREFUSED 127.0.0.1:22\n"
        "    at TCPConnectWrap.afterConnect {\n[2023-01-01 00:00:02] INFO (RestServer) REST server stopped.\n"
    )
    with pytest.raises(nni_manager.ExperimentError, match=f": Error: connect ECONNREFUSED 127.0.0.1:22; see {log}"):
        started.poll()


RECORD = "[2023-01-01 00:00:00] {} (a.b/Thread-1) {}\n"
TRACEBACK = "Traceback (most recent call last):\n  File x\nKeyError: '_value'\n"


@pytest.mark.parametrize(
    ("requested", "log", "told"),
    [
        (0, RECORD.format("ERROR", "'_value'") + TRACEBACK, "KeyError: '_value'"),
        (0, TRACEBACK, "KeyError: '_value'"),
        (0, RECORD.format("ERROR", "of a check that only warns"), None),
        (0, RECORD.format("ERROR", "'_value'") + TRACEBACK + RECORD.format("INFO", "goes on"), None),
        (1, RECORD.format("ERROR", "of a trial") + TRACEBACK, None),
        (0, "", None),
        (0, None, None),
    ],
)
def test_a_tuner_that_ends_at_its_start_ends_the_experiment(monkeypatch, tmp_path, requested, log, told):
    started = nni_manager.NniExperiment(ExperimentConfig("a.yml", ("create",)), None, Signals())
    started.folder = tmp_path
    file = tmp_path / "log" / "dispatcher.log"
    file.parent.mkdir()
    if log is not None:
        file.write_text(log)
    answers = {"check-status": {"status": "RUNNING", "errors": []}, "experiment": {"nextSequenceId": requested}}
    monkeypatch.setattr(started, "_get", lambda name: answers.get(name, []))
    assert started.poll().status == "RUNNING"  # what is written meanwhile may be of a tuner that goes on
    if told is None:
        assert started.poll().status == "RUNNING"
    else:
        with pytest.raises(nni_manager.ExperimentError, match=f"NNI's tuner has ended: {told}; see {file}"):
            started.poll()


@pytest.mark.parametrize("ended", [True, False])
def test_the_tuner_s_last_words_are_told_with_nni_s(monkeypatch, tmp_path, ended):
    started = nni_manager.NniExperiment(ExperimentConfig("a.yml", ("create",)), None, Signals())
    started.folder = tmp_path
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "dispatcher.log").write_text(TRACEBACK if ended else RECORD.format("INFO", "all is well"))
    answers = {"check-status": {"status": "ERROR", "errors": ["no tuner"]}, "experiment": {"nextSequenceId": 0}}
    monkeypatch.setattr(started, "_get", lambda name: answers.get(name, []))
    (line,) = started.poll().complaints()
    if ended:
        assert line.startswith("NNI ended with ERROR: no tuner; KeyError: '_value'; see ")
    else:
        assert line == "NNI ended with ERROR: no tuner"


def test_what_nni_asserts_is_told(monkeypatch):
    started = nni_manager.NniExperiment(ExperimentConfig("a.yml", ("create",)), None, Signals())
    text = "File nni/experiment/config/base.py\n  assert self.trial_concurrency > 0\nAssertionError\n"
    monkeypatch.setattr(started, "_nnictl_start", lambda: (1, text))
    with pytest.raises(InputError, match=r"^a.yml: AssertionError: assert self.trial_concurrency > 0$"):
        started.start()


def test_importing_the_launcher_imports_neither_torch_nor_nni():
    code = "import sys, hitdet_nni.integration.experiment; print({'torch', 'nni', 'mmdet'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "set()"


def test_node_options_are_appended_once(capsys, monkeypatch):
    ours = node_options("")
    assert ours == f'--require "{nni_manager.LOOPBACK_SCRIPT}"'
    assert node_options("--no-warnings") == f"--no-warnings {ours}"
    assert node_options(f"--no-warnings {ours}") == f"--no-warnings {ours}"
    monkeypatch.setenv("NODE_OPTIONS", "--no-warnings")
    assert cli.main(["experiment", "--node-options"]) == 0
    assert capsys.readouterr().out == f"--no-warnings {ours}\n"


def test_node_listens_on_loopback_unless_told_an_address(tmp_path, monkeypatch):
    script = tmp_path / 'a "quoted" folder' / nni_manager.LOOPBACK_SCRIPT.name
    script.parent.mkdir()
    script.write_text(nni_manager.LOOPBACK_SCRIPT.read_text())
    monkeypatch.setattr(nni_manager, "LOOPBACK_SCRIPT", script)
    forms = [
        "[0]", "['0']", "[0, '0.0.0.0']", "[0, '::', 5]", "[0, undefined, 5]", "[0, null]", "[0, 5]", "[0, () => {}]",
        "[]", "[null]", "[() => {}]", "[{port: 0}]", "[{port: undefined}]", "[{port: 0, host: '::'}, () => {}]",
        "[0, '127.0.0.2']", "[{port: 0, host: '127.0.0.2'}]", "['./pipe']", "[{path: './other'}]",
    ]  # fmt: skip
    code = f"""
        const http = require('http');
        for (const form of [{", ".join(forms)}]) {{
            const server = http.createServer();
            server.on('listening', () => {{
                const address = server.address();
                console.log(JSON.stringify([JSON.stringify(form), address.address ?? address]));
                server.close();
            }});
            server.listen(...form);
        }}"""
    node = Path(importlib.util.find_spec("nni_node").origin).with_name("node")
    done = subprocess.run(
        [node, "-e", code],
        env={**os.environ, "NODE_OPTIONS": node_options("")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    addresses = sorted(json.loads(line)[1] for line in done.stdout.splitlines())
    assert len(addresses) == len(forms)
    assert [a for a in addresses if a != "127.0.0.1"] == ["./other", "./pipe", "127.0.0.2", "127.0.0.2"]
