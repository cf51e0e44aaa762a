"""What the launcher reads of an experiment: machines, the way to NNI's manager, and what it refuses in one line."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from pathlib import Path

import psutil
import pytest
import yaml
from nni.experiment.config import ExperimentConfig as NniConfig

from hitdet_nni import cli
from hitdet_nni.integration.launcher.experiment_config import Machine, load_config, load_stopped, parse

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"


def remote(**changes):
    """A remote experiment with one machine; keys are those of the experiment, or of the machine."""
    machine = {"host": "box", "user": "me"}
    machine |= {key: changes.pop(key) for key in list(changes) if key in {"host", "user", "port", "sshKeyFile"}}
    return {"trainingService": {"platform": "remote", "machineList": [machine]}, **changes}


OURS = "python -m hitdet_nni.integration.trial --config tiny --runs ../runs"


def local(command="python trial.py", **keys):
    """An experiment on this machine."""
    return {"trainingService": {"platform": "local"}, "trialCommand": command, **keys}


def read(content):
    return parse(content, "a.yml", ("create",), Path("/folder"))


def test_local_experiments_have_no_machines():
    for name in ("search.yml", "search_retinanet.yml"):
        config = load_config(EXPERIMENTS / name)
        assert (config.machines, config.tunnelled) == ((), ())
        assert config.arguments == ("create", "--config", str(EXPERIMENTS / name))


def test_the_remote_experiment_is_refused_until_it_is_filled_in(capsys):
    path = EXPERIMENTS / "search_remote.yml"
    text = path.read_text()
    for placeholder, key in (("<host>", "host"), ("<user>", "user"), ("<folder of python>", "pythonPath")):
        assert cli.main(["experiment", str(path)]) == 2
        line = f"{path}: trainingService.machineList[0].{key}: {placeholder} is still to be filled in"
        assert capsys.readouterr().err.startswith(f"hitdet-nni: {line}")
        text = text.replace(placeholder, "x")
        path = Path(os.environ["XDG_CACHE_HOME"], "search_remote.yml")
        path.write_text(text)
    assert load_config(path).machines[0].host == "x"


def test_nni_accepts_the_remote_experiment_once_it_is_filled_in(tmp_path):
    key = tmp_path / "id"
    key.touch()
    text = (EXPERIMENTS / "search_remote.yml").read_text()
    for placeholder, value in (("<host>", "box"), ("<user>", "me"), ("<folder of python>", "/venv/bin")):
        text = text.replace(placeholder, value)
    (tmp_path / "filled.yml").write_text(text.replace("~/.ssh/id_ed25519", "id"))
    (tmp_path / "search_space.json").write_bytes((EXPERIMENTS / "search_space.json").read_bytes())
    config = NniConfig.load(tmp_path / "filled.yml")
    config.validate()
    machine = config.json()["trainingService"]["machineList"][0]
    ours = load_config(tmp_path / "filled.yml")
    assert ours.machines == ours.tunnelled == (Machine(machine["host"], machine["port"], machine["user"], key),)
    assert machine["sshKeyFile"] == str(key)
    local = yaml.safe_load((EXPERIMENTS / "search.yml").read_text())["trialCommand"]
    assert config.trial_command == local.replace("../runs", "~/hitdet-runs") != local


def test_machines_with_nnis_spellings_and_defaults():
    config = read(remote(host="box", port=2222, sshKeyFile="keys/id"))
    assert config.machines == (Machine("box", 2222, "me", Path("/folder/keys/id")),)
    assert str(config.machines[0]) == "me@box:2222"
    machine = {"HOST": "box", "user": "me", "ssh_key_file": "~/id"}
    service = {"Platform": "remote", "machine_list": [machine], "nni_manager_ip": "127.0.0.1"}
    config = read({"training_service": service})
    assert config.machines == (Machine("box", 22, "me", Path("~/id").expanduser()),)
    assert read(remote()).machines[0].key is None


@pytest.mark.parametrize(
    ("host", "manager", "tunnelled"),
    [
        ("box", "127.0.0.1", True),
        ("10.0.0.7", None, True),
        ("127.0.0.1", "127.0.0.1", False),
        ("localhost", None, False),
        ("::1", "localhost", False),
        ("127.0.0.1", "127.0.0.2", True),  # nothing listens there until a tunnel does
    ],
)
def test_a_tunnel_is_dug_to_machines_that_do_not_find_the_manager(host, manager, tunnelled):
    assert bool(read(remote(host=host, nniManagerIp=manager)).tunnelled) is tunnelled


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (None, ("holds a NoneType",)),
        (["a"], ("holds a list", "a mapping")),
        (remote(nniManagerIp="10.0.0.1"), ("nniManagerIp", "'10.0.0.1'", "127.0.0.1", "tunnel")),
        ({"trainingService": {"platform": "kubeflow"}}, ("trainingService.platform", "'kubeflow'", "local, remote")),
        ({"trainingService": [{"platform": "local"}]}, ("trainingService", "several services")),
        ({"trialCommand": "python trial.py"}, ("trainingService", "is missing", "{platform: local}")),
        ({"trainingService": {"useActiveGpu": True}}, ("trainingService.platform", "is missing", "local, remote")),
        ({"tuner": {"classArgs": ["<seed>"]}}, ("tuner.classArgs[0]", "<seed>")),
        (local(searchSpace=["a"]), ("searchSpace", "holds a list")),
        (local(searchSpace={"a": [0, 3]}), ("searchSpace.a._type", "is missing", "choice")),
        (local(searchSpace={"a": {"_type": "choise", "_value": [1]}}), ("searchSpace.a._type", "'choise'", "choice")),
        (local(searchSpace={"a": {"_type": "choice"}}), ("searchSpace.a._value", "is missing", "one value or more")),
        (local(searchSpace={"a": {"_type": "choice", "_value": []}}), ("searchSpace.a._value", "got []")),
        (local(search_space={"a": {"_type": "uniform", "_value": [0]}}), ("searchSpace.a._value", "a list of 2")),
        (local(searchSpace={"a": {"_type": ["choice"], "_value": [0]}}), ("searchSpace.a._type", "['choice']")),
        (local(searchSpace={"a": {"_type": "uniform", "_value": ["1e-4", 1]}}), ("searchSpace.a._value", "1.0e-4")),
        (local(searchSpace={"a": {"_type": "randint", "_value": [True, 3]}}), ("searchSpace.a._value", "2 numbers")),
        (local(OURS, assessor={"name": "Medianstop"}), ("assessor", "losses", "a tuner alone")),
        (local(OURS, advisor={"name": "BOHB"}), ("advisor", "losses")),
    ],
)
def test_what_cannot_run_with_a_manager_on_loopback_is_refused(content, fragments, refused):
    with refused("a.yml", *fragments):
        read(content)


@pytest.mark.parametrize("content", [None, "- a\n- list\n", "a: [1\nb: 2\n", "", b"\xff\xfe\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content, refused):
    path = tmp_path / "search.yml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused(path):
        load_config(path)


def test_a_file_of_parameters_is_checked(tmp_path, refused):
    (tmp_path / "space.json").write_text(json.dumps({"search.epochs": {"_type": "randint", "_value": [1, 2, 3]}}))
    (tmp_path / "a.yml").write_text(yaml.safe_dump(local(searchSpaceFile="space.json")))
    with refused(tmp_path / "space.json", "searchSpace.search.epochs._value", "a list of 2 numbers"):
        load_config(tmp_path / "a.yml")
    (tmp_path / "space.json").write_text("{")
    assert load_config(tmp_path / "a.yml")  # NNI says that it is no JSON
    assert read(local(assessor={"name": "Medianstop"}))  # of trials that are not ours nothing is known
    assert read(local(searchSpace=["any"], tuner={"className": "my.Tuner", "codeDirectory": "."}))
    with refused("searchSpace", "holds a list"):
        read(local(searchSpace=["any"], tuner={"className": "hitdet_nni.integration.grid_search.GridSearch"}))


@pytest.mark.parametrize(
    ("command", "keys", "runs"),
    [
        (OURS, {"trialCodeDirectory": "code"}, "/folder/code/../runs"),
        (OURS.replace("--runs ", "--runs="), {}, "/folder/../runs"),
        (OURS.replace("../runs", "/disk/my-runs"), {"trial_code_directory": "code"}, "/disk/my-runs"),
        (OURS.replace("../runs", "'my runs'"), {}, "/folder/my runs"),
        (OURS.replace(" --runs ../runs", ""), {"trialCodeDirectory": "code"}, "/folder/code/runs"),
        (OURS + " --runs last", {}, "/folder/last"),
        (OURS.replace("../runs", "$HOME/x"), {}, None),
        (f"cd sub && {OURS}", {}, None),
        (OURS + " 'open", {}, None),
        ("python trial.py --runs out", {}, None),
    ],
)
def test_where_trials_write_is_read_off_their_command(command, keys, runs):
    assert read(local(command, **keys)).runs == (None if runs is None else Path(runs))


def test_what_nni_refuses_itself_is_left_to_it():
    for machines in (None, "box", ["box"], [{"host": 5, "user": "me"}], [{"host": "box", "user": "me", "port": "22"}]):
        assert read({"trainingService": {"platform": "remote", "machineList": machines}}).machines == ()
    assert read({"trainingService": "local"}).machines == read({"trainingServicePlatform": "local"}).machines == ()


def test_a_detector_s_config_is_no_experiment(refused):
    with refused("is the config of a detector", "experiments/search.yml"):
        read({"extends": "first_try", "data": {"root": "images"}})


def test_few_of_many_experiments_are_named(tmp_path, monkeypatch, refused):
    monkeypatch.setenv("HOME", str(tmp_path))
    index = tmp_path / "nni-experiments" / ".experiment"
    index.parent.mkdir()
    index.write_text(json.dumps({f"of{number:02d}": {"startTime": number} for number in range(30)} | {"odd": None}))
    with refused("unknown experiment 'abc'; allowed: of22, of23, of24, of25, of26, of27, of28, of29"):
        load_stopped("abc")


def test_a_stopped_experiment_is_read_from_nnis_database(tmp_path, monkeypatch, refused):
    monkeypatch.setenv("HOME", str(tmp_path))
    index = tmp_path / "nni-experiments" / ".experiment"
    with refused(index, "'abc'", "none yet"):
        load_stopped("abc")
    index.parent.mkdir()
    folder = tmp_path / "my experiments"
    entry = {"status": "STOPPED", "pid": None, "logDir": str(folder)}
    running = {**entry, "status": "RUNNING", "pid": os.getpid()}
    killed = {**entry, "status": "RUNNING", "pid": 2**22 + 1}  # above any Linux process
    index.write_text(json.dumps({"abc": entry, "run": running, "dead": killed}))
    with refused("unknown experiment 'abd'", "abc, dead, run"):
        load_stopped("abd")
    with refused(index, "experiment run runs"):
        load_stopped("run")
    with refused(folder / "abc" / "db" / "nni.sqlite", "holds no experiment abc"):
        load_stopped("abc")
    # After a restart of the machine another process has the number; nnictl looks at no more than that.
    now = 1000 * time.time()
    index.write_text(json.dumps({"abc": entry, "run": {**running, "startTime": now}, "dead": killed}))
    with refused(index, "experiment run runs"):
        load_stopped("run")
    again = {**running, "startTime": 1000 * (psutil.Process().create_time() - 3600)}
    index.write_text(json.dumps({"abc": entry, "again": again, "dead": killed}))
    for name in ("abc", "dead", "again"):
        (folder / name / "db").mkdir(parents=True)
        with sqlite3.connect(folder / name / "db" / "nni.sqlite") as connection:
            connection.execute("create table ExperimentProfile (params text, id text, revision integer)")
            for revision, host in ((1, "older"), (3, "newest"), (2, "old")):
                row = (json.dumps(remote(host=host)), name, revision)
                connection.execute("insert into ExperimentProfile values (?, ?, ?)", row)
        connection.close()
        config = load_stopped(name)
        assert config.machines[0].host == "newest"
        assert (config.source, config.arguments) == (name, ("resume", name))
    index.write_text(json.dumps({"abc": entry, "dead": {**killed, "pid": 2**40}}))  # no number of a process
    assert load_stopped("dead").source == "dead"
    index.write_text(json.dumps({"abc": entry, "again": again, "dead": killed}))
    load_stopped("again")
    known = json.loads(index.read_text())
    assert {name: each["status"] for name, each in known.items()} == {
        "abc": "STOPPED",
        "again": "STOPPED",
        "dead": "RUNNING",
    }
    with sqlite3.connect(folder / "abc" / "db" / "nni.sqlite") as connection:
        connection.execute("delete from ExperimentProfile")
    connection.close()
    with refused("holds no experiment abc"):
        load_stopped("abc")
