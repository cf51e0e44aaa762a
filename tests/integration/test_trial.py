"""A trial as NNI would run it, with NNI's trial functions replaced by recorders."""

import json
import logging
from types import SimpleNamespace

import nni
import pytest
import torch
import yaml
from mmdet.models import RetinaNet
from mmdet.registry import MODELS
from mmengine.config import Config
from report_runs import write_run

from hitdet_nni.config.architecture import load_architecture
from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.data.sources import open_data
from hitdet_nni.errors import InputError
from hitdet_nni.integration import trial
from hitdet_nni.loggers import packages
from hitdet_nni.model.detector import build_detector
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.training.retrain import export_config

SPACE = {"backbone": ["sep_k3_d1", "ir_k3_d1_e1", "conv_k3_d1"], "neck": ["sep_k3_d1", "sep_k5_d1"]}


@pytest.fixture
def config(tmp_path):
    (tmp_path / "space.yml").write_text(yaml.safe_dump({**SPACE, "head": SPACE["neck"]}))
    settings = {
        "extends": "tiny",
        "space": "space.yml",
        "data": {"train": 16, "val": 4},
        "screening": {"keep": {"backbone": 2, "neck": 1, "head": 2}},
        "retrain": {"epochs": 1},
    }
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(settings))
    return path


class Recorder:
    """Stands where NNI's manager would: gives parameters, takes reports."""

    def __init__(self, monkeypatch, trial_id, parameters):
        self.intermediate, self.final, self.first = [], [], []
        monkeypatch.setattr(nni, "get_next_parameter", lambda: parameters)
        monkeypatch.setattr(nni, "get_experiment_id", lambda: "exp")
        monkeypatch.setattr(nni, "get_trial_id", lambda: trial_id)
        monkeypatch.setattr(nni, "report_intermediate_result", self.intermediate.append)
        monkeypatch.setattr(nni, "report_final_result", self.final.append)
        monkeypatch.setattr(nni.trial, "overwrite_intermediate_seq", self.first.append)


def test_trials_report_every_epoch_and_share_the_screening(tmp_path, monkeypatch, config):
    runs = tmp_path / "runs"
    first = Recorder(monkeypatch, "one", {"search.flops_weight": 0.0})
    trial.run_trial(str(config), runs)
    second = Recorder(monkeypatch, "two", {"search.flops_weight": 10.0})
    trial.run_trial(str(config), runs)

    stages = [[report["stage"] for report in recorder.intermediate] for recorder in (first, second)]
    assert stages == [[1] * 4 + [2] * 2, [2] * 2]
    for report in first.intermediate + second.intermediate:
        keys = {"default", "val_loss", "train_loss", "gflops", "cost_weight", "seconds", "stage", "epoch"}
        keys |= {"decoded_gflops", "decoded_to_expected"}
        keys |= {f"{kind}_{value}" for kind in ("annotations", "categories") for value in ("gain", "p")}
        signs = ("entropy", "changed", "alpha_gradient")
        assert set(report) == keys | {f"{sign}_{name}" for sign in signs for name in COMPONENTS}
        assert report["default"] == report["val_loss"]

    for name, recorder, weight in (("one", first, 0.0), ("two", second, 10.0)):
        run = runs / "exp" / name
        architecture = json.loads((run / "architecture.json").read_text())
        assert architecture["provenance"]["flops_weight"] == weight
        metrics = json.loads((run / "metrics.json").read_text())
        (final,) = recorder.final
        assert final["default"] == final["mAP"] == metrics["mAP"]
        assert final["params_m"] * 1e6 == architecture["provenance"]["cost"][0]["params"]["total"]
        assert final["gflops"] * 1e9 == architecture["provenance"]["cost"][0]["flops"]["total"]
        assert yaml.safe_load((run / "config.yml").read_text())["search"]["flops_weight"] == weight
        noted = json.loads((run / "metadata.json").read_text())
        stages = {
            *(f"screening {component}" for component in ("backbone", "neck")),
            "search",
        }  # both are told of what they share
        assert set(noted["activations"]) == stages
        assert stages <= set(noted["warnings"])
    spaces = [(runs / "exp" / name / "screening" / "sub_spaces.yml").read_bytes() for name in ("one", "two")]
    assert spaces[0] == spaces[1]


@pytest.mark.slow
def test_a_one_stage_trial_ends_in_a_plain_retinanet(tmp_path, monkeypatch, config):
    recorder = Recorder(monkeypatch, "one", {"skeleton.detector": "retinanet", "screening.warmup_epochs": 0})
    trial.run_trial(str(config), tmp_path)
    run = tmp_path / "exp" / "one"
    found = load_architecture(run / "architecture.json")
    assert recorder.final[0]["gflops"] * 1e9 == found.provenance.cost[0].flops["total"]
    settings = load_settings(run / "config.yml")
    text = export_config(found, settings, open_data(settings.data, settings.seed))
    model = Config.fromstring(text, ".py").model
    assert model.bbox_head.type == "HitRetinaHead"
    built = build_detector(found.skeleton, found.sample, found.num_classes)
    plain = MODELS.build(model)
    assert type(plain) is type(built) is RetinaNet
    assert not [part for part in plain.modules() if type(part).__module__.startswith("nni.")]
    plain.load_state_dict(torch.load(run / "retrain" / "weights.pth", weights_only=True)["state_dict"])
    params = found.provenance.cost[0].params
    parts = {"backbone": plain.backbone, "neck": plain.neck, "head": plain.bbox_head, "total": plain}
    assert {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()} | {"rpn": 0} == params


def test_a_trial_that_goes_on_counts_its_reports_on(tmp_path, monkeypatch, config, tiny_settings):
    """NNI keeps a report under its number: those of before would be overwritten."""
    run = RunDirectory(tmp_path / "exp" / "one")
    run.open(tiny_settings)
    record = SimpleNamespace(val_loss=1.0, epoch=0, metrics=lambda: {"entropy_neck": 0.5})
    recorder = Recorder(monkeypatch, "one", {})
    for life, epochs in enumerate((2, 1, 3)):
        reports = trial.Reports(run)
        for _ in range(epochs):
            reports.epoch("search", record)
        assert recorder.first == [0, 2, 3][: life + 1]
    assert len(recorder.intermediate) == run.reports == 6
    (tmp_path / "exp" / "two").parent.mkdir(exist_ok=True)
    trial.adopt(RunDirectory(tmp_path / "exp" / "two"), tiny_settings)
    assert RunDirectory(tmp_path / "exp" / "two").reports == 0  # NNI has none of this id


def test_a_bad_parameter_is_one_line(tmp_path, monkeypatch, config, capsys):
    Recorder(monkeypatch, "bad", {"search.flops_wait": 0.0})
    for name, value in (("handlers", []), ("level", logging.WARNING)):  # the trial sets up logging for its process
        monkeypatch.setattr(logging.getLogger(), name, value)
    monkeypatch.setattr("sys.argv", ["trial", "--config", str(config), "--runs", str(tmp_path / "runs")])
    assert trial.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("the tuner's parameters: search.flops_wait: unknown key")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_failed_trial_is_gone_on_with_under_its_new_id(tmp_path, monkeypatch, config):
    joint = {"screening.joint": True}  # one screening instead of three

    def fail(*arguments, **keywords):
        raise OSError("power failure")

    Recorder(monkeypatch, "one", {**joint, "search.flops_weight": 1.0})
    with monkeypatch.context() as context:
        context.setattr(trial, "retrain_architecture", fail)
        with pytest.raises(OSError, match="power"):
            trial.run_trial(str(config), tmp_path)
    before = (tmp_path / "exp" / "one" / "architecture.json").read_bytes()

    other = Recorder(monkeypatch, "two", {**joint, "search.flops_weight": 2.0})
    trial.run_trial(str(config), tmp_path)
    assert other.intermediate  # other settings: a search of its own

    again = Recorder(monkeypatch, "three", {**joint, "search.flops_weight": 1.0})
    trial.run_trial(str(config), tmp_path)
    assert not again.intermediate
    assert (tmp_path / "exp" / "three" / "architecture.json").read_bytes() == before
    assert not (tmp_path / "exp" / "one").exists()
    assert again.final[0]["mAP"] == json.loads((tmp_path / "exp" / "three" / "metrics.json").read_text())["mAP"]

    # A finished trial started again reports what it had found; one with other settings is not overwritten.
    repeated = Recorder(monkeypatch, "three", {**joint, "search.flops_weight": 1.0})
    trial.run_trial(str(config), tmp_path)
    assert repeated.final == again.final
    Recorder(monkeypatch, "three", {**joint, "search.flops_weight": 3.0})
    with pytest.raises(InputError, match=r"other settings.*; allowed: the config as it was, a new experiment, or --"):
        trial.run_trial(str(config), tmp_path)


def test_two_runs_in_one_directory(tmp_path, tiny_settings, refused):
    run = RunDirectory(tmp_path / "run")
    with run.held():
        run.open(tiny_settings)
        with refused("another process works in it", tmp_path / "run"), RunDirectory(tmp_path / "run").held():
            pass
    assert run.metadata.is_file()
    with RunDirectory(tmp_path / "unused").held():
        pass
    assert not (tmp_path / "unused").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    other = RunDirectory(tmp_path / "photos")
    with refused("is not empty and holds no run"), other.held():
        other.open(tiny_settings)
    assert [file.name for file in other.path.iterdir()] == ["a.png"]


def test_curves_are_written_where_nni_looks_for_them(tmp_path, monkeypatch, caplog):
    run = RunDirectory(write_run(tmp_path / "run", state="searched"))
    monkeypatch.delenv("NNI_OUTPUT_DIR", raising=False)
    trial.write_curves(run)
    monkeypatch.setenv("NNI_OUTPUT_DIR", str(tmp_path / "output"))
    with monkeypatch.context() as context, caplog.at_level(logging.INFO):
        context.setattr(packages, "find_spec", lambda name: None)
        trial.write_curves(run)
    assert "pip install 'hitdet-nni[tensorboard]'" in caplog.text
    assert not (tmp_path / "output").exists()
    trial.write_curves(run)
    (file,) = (tmp_path / "output" / "tensorboard").iterdir()
    assert "tfevents" in file.name


@pytest.mark.parametrize("ended", [SystemExit(), KeyboardInterrupt()])
def test_a_trial_that_a_signal_ends_is_no_success(tmp_path, monkeypatch, config, capsys, ended):
    """Lightning exits without a word and with status 0, which NNI would take for a success without a result."""

    def stop(*_, **__):
        raise ended

    for name, value in (("handlers", []), ("level", logging.WARNING)):  # the trial sets up logging for its process
        monkeypatch.setattr(logging.getLogger(), name, value)
    monkeypatch.setattr(trial, "run_trial", stop)
    monkeypatch.setattr("sys.argv", ["trial", "--config", str(config), "--runs", str(tmp_path / "runs")])
    assert trial.main() == 130
    assert capsys.readouterr().err == "interrupted; the same trial goes on from there\n"


def test_a_damaged_trial_is_not_gone_on_with(tmp_path, tiny_settings):
    """What lies beside a new trial does not end it."""
    other = RunDirectory(tmp_path / "exp" / "other")
    other.open(tiny_settings)
    other.config.write_text("search: [")
    trial.adopt(RunDirectory(tmp_path / "exp" / "new"), tiny_settings)
    assert [folder.name for folder in (tmp_path / "exp").iterdir()] == ["other"]
