"""Loggers that follow a run: every point once, files at the end, and a training that does not depend on them."""

import contextlib
import json
import logging
import random
import struct
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from google.protobuf.message import DecodeError
from report_runs import records, write_run
from wandb.sdk import wandb_init

from hitdet_nni import cli
from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.engine.progress import Stage, named
from hitdet_nni.engine.randomness import random_state
from hitdet_nni.errors import InputError, StoppedError
from hitdet_nni.io import read_json
from hitdet_nni.loggers import following, mlflow_store, packages
from hitdet_nni.loggers.following import followed
from hitdet_nni.loggers.scalars import Scalar, scalars
from hitdet_nni.loggers.wandb_folder import WandB
from hitdet_nni.pipeline.search import write_epoch
from hitdet_nni.runs.reading import read_run
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.tables import read_metrics

LOGGERS = ("tensorboard", "mlflow", "wandb")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """MLflow's store and the folder of Weights & Biases are in the working folder; nothing of the network is asked."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for name in mlflow_store.SETTINGS:
        monkeypatch.delenv(name, raising=False)


def settings_with(logger):
    return load_settings("tiny", {"logger": logger, "search.epochs": 4})


def search_on(run, settings, epochs, stopped=False):
    """Write epochs of a search and tell of each, as the search does."""
    space = load_search_space("hit_detector")
    model = CostModel(settings.skeleton, 10)
    done = len(read_metrics(run.search_metrics)) if run.search_metrics.is_file() else 0
    found = list(records(settings.skeleton, space, model, 4, random.Random(3)))
    stage = Stage("search", 4, 8, epoch=done)
    for record in found[done : done + epochs]:
        write_epoch(run, record)
        stage.step(1.0)
        stage.end_epoch({"loss": 1.0})
    if stopped:
        raise KeyboardInterrupt


def mlflow_run(identity):
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    run = client.get_run(identity)
    curves = {}
    for tag in run.data.metrics:
        curves[tag] = [(point.step, point.value) for point in client.get_metric_history(identity, tag)]
    files = sorted(one.path for one in client.list_artifacts(identity))
    return curves, files, run.data.params, run.info.status


def wandb_records(file):
    """The records of an offline run: a LevelDB log of blocks of 32 KiB, by the package's own messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, pending = file.read_bytes(), 7, b""
    while position < len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        pending += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(pending)
            pending = b""
            yield record


def wandb_run(folder):
    """Curves, names of artifacts' files, and ids of all offline folders, each of which ends by a record of its own.

    W&B's service writes on for a moment when a run has been closed.
    """
    curves, files, ids = {}, set(), set()
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        until, found = time.monotonic() + 60, []
        while not any(record.HasField("exit") for record in found):
            assert time.monotonic() < until, f"{file} has no end"
            time.sleep(0.02)
            with contextlib.suppress(struct.error, DecodeError):  # a record that is being written
                found = list(wandb_records(file))
        for record in found:
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                row = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                for tag in row:
                    part = tag.rpartition("/")[0]
                    if part and not tag.endswith("/epoch"):
                        curves.setdefault(tag, []).append((row[f"{part}/epoch"], row[tag]))
            request = record.request.log_artifact.artifact if record.HasField("request") else record.artifact
            files |= {entry.path for entry in request.manifest.contents}
    return curves, files, ids


def expected(run):
    curves = {}
    for point in scalars(read_run(run.path)):
        curves.setdefault(point.tag, []).append((point.step, point.value))
    return curves


def same(curves, others):
    assert curves.keys() == others.keys()
    for tag, points in curves.items():
        assert [step for step, _ in points] == [step for step, _ in others[tag]], tag
        assert [value for _, value in points] == pytest.approx([value for _, value in others[tag]])


@pytest.fixture
def begun(tmp_path):
    def make(logger):
        settings = settings_with(logger)
        path = write_run(tmp_path / "run", state="screened", overrides={"logger": logger})
        return RunDirectory(path), settings

    return make


@pytest.mark.parametrize("logger", ["mlflow", "wandb"])
def test_an_interrupted_run_has_every_point_once(begun, tmp_path, logger):
    run, settings = begun(logger)
    with pytest.raises(KeyboardInterrupt), followed(run, settings):
        search_on(run, settings, 2, stopped=True)
    identity = read_json(run.path / "logger.json")["identity"]
    if logger == "mlflow":
        curves, files, parameters, status = mlflow_run(identity)
        same(curves, expected(run))
        assert (files, status) == ([], "KILLED")
        assert parameters["search.epochs"] == "4"
        assert parameters["skeleton.input_size"] == "[96, 96]"
    with followed(run, settings):
        search_on(run, settings, 2)
    write_run(tmp_path / "other", state="retrained")  # a stage that ended: its files
    for name in ("architecture.json", "metrics.json", "retrain"):
        (tmp_path / "other" / name).rename(run.path / name)
    with followed(run, settings):
        Stage("retrain", 1, 1).end_epoch({"mAP": 0.1})
    assert read_json(run.path / "logger.json")["identity"] == identity
    wanted = {"report.html", "config.yml", "architecture.json", "metrics.json"}
    if logger == "mlflow":
        curves, files, _, status = mlflow_run(identity)
        assert status == "FINISHED"
    else:
        curves, files, ids = wandb_run(tmp_path)
        assert ids == {identity}
    same(curves, expected(run))
    assert "retrain/AP" in curves
    assert len(curves["search/val_loss"]) == 4
    assert set(files) == wanted


def test_calls_of_one_second_keep_their_points(tmp_path, monkeypatch):
    """W&B names its folders by the second and the run's id, and tells those of one second apart."""
    now = time.time()
    monkeypatch.setattr(wandb_init, "time", SimpleNamespace(**{**vars(time), "time": lambda: now}))
    identity = None
    for step in (1, 2, 3):
        destination = WandB(RunDirectory(tmp_path / "run"), {}, identity)
        identity = destination.identity
        destination.publish([Scalar("search", "val_loss", 0.5, step)])
        destination.end(finished=True)
    assert len({folder.name[:27] for folder in tmp_path.glob("wandb/offline-run-*")}) == 1
    curves, _, ids = wandb_run(tmp_path)
    assert (curves, ids) == ({"search/val_loss": [(1, 0.5), (2, 0.5), (3, 0.5)]}, {identity})


def test_tensorboard_has_the_curves_after_every_epoch(begun):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, settings = begun("tensorboard")
    with followed(run, settings):
        for epochs in (1, 2):
            search_on(run, settings, 1)
            shown = EventAccumulator(str(run.path / "tensorboard")).Reload()
            assert [event.step for event in shown.Scalars("search/val_loss")] == list(range(1, epochs + 1))


def leave_the_store(tmp_path, monkeypatch, first):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")


def delete_the_run(tmp_path, monkeypatch, first):
    from mlflow.tracking import MlflowClient

    MlflowClient().delete_run(first)


@pytest.mark.parametrize("happens", [leave_the_store, delete_the_run])
def test_a_run_that_has_gone_from_the_store_is_begun_anew_with_all_points(begun, tmp_path, monkeypatch, happens):
    run, settings = begun("mlflow")
    identities = []
    for _ in range(2):
        with followed(run, settings):
            search_on(run, settings, 1)
        identities.append(read_json(run.path / "logger.json")["identity"])
        if len(identities) == 1:
            happens(tmp_path, monkeypatch, identities[0])
    assert identities[0] != identities[1]
    same(mlflow_run(identities[1])[0], expected(run))


def test_an_epoch_that_was_interrupted_is_sent_when_it_has_ended(begun):
    run, settings = begun("mlflow")
    log = run.retrain / "20260101_000000" / "log.log"
    line = "2026/01/01 00:00:00 - mmengine - INFO - Epoch(train)  [{}][{}/16]  lr: 1.0e-02  loss: {}\n"
    log.parent.mkdir(parents=True)
    log.write_text(line.format(1, 16, 3.0) + line.format(2, 8, 2.5))
    with followed(run, settings):
        Stage("retrain", 2, 16, epoch=1)
    identity = read_json(run.path / "logger.json")["identity"]
    assert mlflow_run(identity)[0]["retrain/loss"] == [(1, 3.0)]
    log.write_text(log.read_text() + line.format(2, 16, 2.0))
    with followed(run, settings):
        Stage("retrain", 2, 16, epoch=1).end_epoch({"mAP": 0.1})
    assert mlflow_run(identity)[0]["retrain/loss"] == [(1, 3.0), (2, 2.0)]


def test_trainings_among_which_a_run_chooses_are_not_its_own(begun):
    run, settings = begun("mlflow")
    with followed(run, settings):
        with named("rung-1-point-01"):
            Stage("retrain", 3, 1).end_epoch({"mAP": 0.1})
        assert not (run.path / "logger.json").exists()


def test_a_run_of_the_user_s_own_goes_on_beside_ours(begun, tmp_path):
    import wandb

    run, settings = begun("wandb")
    theirs = wandb.init(mode="offline", project="theirs", settings=wandb.Settings(silent=True, console="off"))
    with followed(run, settings):
        search_on(run, settings, 1)
    theirs.log({"still": 1})
    theirs.finish()
    same(wandb_run(tmp_path)[0], expected(run))


class Failing(following.TensorBoard):
    """Draws random numbers, and fails from its second epoch on."""

    def publish(self, points):
        np.random.rand()
        torch.rand(3)
        self.times = getattr(self, "times", 0) + 1
        if self.times > 1:
            raise OSError("the store is full\nand says more")


def test_a_logger_that_fails_is_told_once_and_changes_nothing(begun, monkeypatch, caplog):
    run, settings = begun("tensorboard")
    monkeypatch.setattr(following, "TensorBoard", Failing)
    before = random_state()
    with caplog.at_level(logging.WARNING, "hitdet_nni"), followed(run, settings):
        search_on(run, settings, 4)
    assert caplog.messages == ["tensorboard has failed and gets nothing more: the store is full"]
    after = random_state()
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["numpy"][1], after["numpy"][1])
    assert before["numpy"][2] == after["numpy"][2]
    assert before["python"] == after["python"]


def test_a_store_that_cannot_be_is_told_before_the_work(begun, monkeypatch):
    run, settings = begun("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://here")
    with pytest.raises(StoppedError, match="mlflow cannot begin"), followed(run, settings):
        pytest.fail("the work has begun")


@pytest.mark.parametrize("logger", LOGGERS)
def test_a_package_that_is_not_there_leaves_nothing(tmp_path, monkeypatch, capsys, logger):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    command = ["search", "--config", "tiny", "--set", f"logger={logger}", "--out", str(tmp_path / "run")]
    assert cli.main(command) == 2
    assert capsys.readouterr().err == (
        f"hitdet-nni: logger: needs the package {logger}; allowed: after pip install 'hitdet-nni[{logger}]'\n"
    )
    assert not (tmp_path / "run").exists()


def test_an_unknown_logger_is_one_line():
    with pytest.raises(InputError, match=r"logger: .*tensorboard.*mlflow.*wandb"):
        load_settings("tiny", {"logger": "clearml"})


def test_a_damaged_record_is_one_line(begun):
    run, settings = begun("tensorboard")
    (run.path / "logger.json").write_text('{"logger": "mlflow"}')
    with pytest.raises(InputError, match=r"logger\.json: identity"), followed(run, settings):
        pytest.fail("the work has begun")
