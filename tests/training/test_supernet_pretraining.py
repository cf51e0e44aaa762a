"""Pretraining in the pipeline: each supernet starts from weights of its own, and an interrupted run ends equal."""

import contextlib
import json
from dataclasses import replace

import pytest
import torch
from group import run_group
from killing import KilledError, kill_in_step

from hitdet_nni import cli
from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.box_crops import open_boxes
from hitdet_nni.data.loaders import weights_half
from hitdet_nni.data.sources import open_data
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.nas import screening as screening_module
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer
from hitdet_nni.nas.screening import screening_seed
from hitdet_nni.pipeline import search as pipeline_search
from hitdet_nni.pipeline.screening import ScreeningWork, screen, screening_key
from hitdet_nni.pipeline.search import search
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.training.pretrain import Backbone, train_classifier

SPACE = {
    "backbone": ["ir_k3_d1_e1", "sep_k3_d1", "conv_k3_d1"],
    "neck": ["sep_k3_d1", "sep_k5_d1"],
    "head": ["ir_k3_d1_e1", "sep_k3_d1"],
}
VALUES = {
    "data.train": 16,
    "data.val": 4,
    "screening.keep.backbone": 2,
    "screening.keep.neck": 1,
    "screening.keep.head": 1,
    "pretrain.boxes": True,
    "pretrain.size": 32,
    "pretrain.batch_size": 8,
    "pretrain.lr_batch_size": None,
    "pretrain.epochs": 2,
    "checkpoint.every_steps": 2,
}


@pytest.fixture(scope="module")
def settings():
    return load_settings("tiny", VALUES)


def files(run):
    """What a run has written, less times and places."""
    tables = {file.name: file.read_text() for file in run.path.rglob("*.csv") if file.parent.name != "search"}
    return tables | {"alphas": run.alphas.read_text(), "sample": json.loads(run.architecture.read_text())["sample"]}


def run_all(folder, settings, data):
    run = RunDirectory(folder)
    run.open(settings, resume=True)
    search(run, screen(run, SPACE, settings, data), settings, data)
    return run


@pytest.mark.slow
def test_an_interrupted_run_ends_equal(settings, tiny_data, tmp_path, monkeypatch):
    """Two pretrainings of six steps, checkpoints after every second one and after every third: killed in each."""
    screening = settings.screening.model_copy(update={"joint": True})
    settings = settings.model_copy(update={"screening": screening})
    one = run_all(tmp_path / "one", settings, tiny_data)
    assert not (one.path / "checkpoints").exists() or not list((one.path / "checkpoints").iterdir())
    seconds = json.loads(one.metadata.read_text())["seconds"]
    assert seconds["pretraining"] > 0
    for step in (3, 5):
        with monkeypatch.context() as context:
            kill_in_step(context, step)
            with pytest.raises(KilledError):
                run_all(tmp_path / "two", settings, tiny_data)
    # Killed behind a pretraining: its weights are there, and are not made again.
    with monkeypatch.context() as context:
        context.setattr(pipeline_search, "train_supernet", lambda *_, **__: _raise())
        with pytest.raises(KilledError):
            run_all(tmp_path / "two", settings, tiny_data)
    weights = tmp_path / "two" / "checkpoints" / "search-pretraining" / "weights.pth"
    stamp = weights.stat().st_mtime_ns
    with monkeypatch.context() as context:
        context.setattr(pipeline_search, "train_supernet", lambda *_, **__: _raise())
        with pytest.raises(KilledError):
            run_all(tmp_path / "two", settings, tiny_data)
    assert weights.stat().st_mtime_ns == stamp
    assert [file.name for file in weights.parent.iterdir()] == ["weights.pth"]
    two = run_all(tmp_path / "two", settings, tiny_data)
    assert files(one) == files(two)
    first, second = (torch.load(run.supernet, weights_only=True)["state_dict"] for run in (one, two))
    assert all(torch.equal(value, second[key]) for key, value in first.items() if isinstance(value, torch.Tensor))
    assert not weights.parent.exists()


def _raise():
    raise KilledError


def test_each_supernet_starts_from_a_pretraining_of_its_own(settings, tiny_data, tmp_path, monkeypatch):
    """Its seed, its half of the images, its candidates; equal to a training by hand."""
    screening = settings.screening.model_copy(update={"supernets": 2})
    settings = settings.model_copy(update={"screening": screening})
    started = {}

    def stop(phase, given, data, seed, *_):
        started[phase.stage] = (phase, given, data, seed, torch.load(phase.pretrained, weights_only=True))
        raise KilledError

    monkeypatch.setattr(screening_module, "train_supernet", stop)
    run = RunDirectory(tmp_path / "run")
    work = ScreeningWork(run, SPACE, settings, tiny_data)
    for part in work.parts(["backbone"]) + work.parts(["neck"])[:1]:
        with pytest.raises(KilledError):
            work.do(part)
    assert list(started) == ["screening backbone 1", "screening backbone 2", "screening neck 1"]
    first, second = (started[f"screening backbone {number}"] for number in (1, 2))
    assert not torch.equal(first[4]["state_dict"]["stem.0.weight"], second[4]["state_dict"]["stem.0.weight"])
    assert set(started["screening neck 1"][4]["sample"].values()) == {"ir_k3_d1_e3"}
    for number, (phase, given, data, seed, weights) in ((1, first), (2, second)):
        assert seed == screening_seed(settings.seed, ["backbone"], number)
        half = weights_half(replace(data, halves=None), given.data, phase.skeleton, seed)
        assert list(half) == json.loads(data.halves.read_text())["weights"]
        boxes = open_boxes(tiny_data, settings, half)
        backbone = Backbone(settings.skeleton, tuple(SPACE["backbone"]))
        own = settings.model_copy(update={"seed": seed})
        classifier, _ = train_classifier(backbone, own, boxes, "x", CheckpointFolder(tmp_path / f"hand{number}"))
        for key, value in classifier.backbone.state_dict().items():
            assert torch.equal(value, weights["state_dict"][key]) if isinstance(value, torch.Tensor) else True, key


def test_named_weights_are_used_instead(settings, tiny_data, tmp_path, monkeypatch):
    named = tmp_path / "weights.pth"
    settings = settings.model_copy(update={"search": settings.search.model_copy(update={"pretrained": named})})
    seen = []

    def stop(phase, *_):
        seen.append(phase.pretrained)
        raise KilledError

    monkeypatch.setattr(pipeline_search, "train_supernet", stop)
    with pytest.raises(KilledError):
        search(RunDirectory(tmp_path / "run"), SPACE, settings, tiny_data)
    assert seen == [named]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_key_of_a_shared_screening(settings):
    def key(**values):
        return screening_key(load_settings("tiny", VALUES | values), SPACE)

    assert key() != key(**{"pretrain.epochs": 3})
    assert key() != key(**{"pretrain.boxes": False})
    off = {"pretrain.boxes": False}
    assert key(**off) == key(**off, **{"pretrain.epochs": 3})


def test_full_gradients_are_those_of_each_candidate(settings, tiny_data, tmp_path, monkeypatch):
    """One step of plain SGD: a candidate's weights move by their number times as much, all others equally."""
    recipe = {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0, "batch_size": 1000, "lr": 1.0}
    settings = settings.model_copy(update={"pretrain": settings.pretrain.model_copy(update=recipe)})
    backbone = Backbone(settings.skeleton, tuple(SPACE["backbone"]))
    boxes = open_boxes(tiny_data, settings)
    built = []
    monkeypatch.setattr(Backbone, "build", lambda self, classes, build=Backbone.build: _noted(build(self, classes)))

    def _noted(classifier):
        built.append({key: value.detach().clone() for key, value in classifier.named_parameters()})
        return classifier

    moved = []
    for gradients in ("weighted", "full"):
        weights = settings.weights.model_copy(update={"candidate_gradients": gradients})
        given = settings.model_copy(update={"weights": weights})
        classifier, _ = train_classifier(backbone, given, boxes, "x", CheckpointFolder(tmp_path / gradients))
        moved.append({key: value.detach() - built[-1][key] for key, value in classifier.named_parameters()})
    layers = [key for key, part in classifier.named_modules() if isinstance(part, ColumnSparseMixedLayer)]
    for key, step in moved[0].items():
        times = 3 if any(key.startswith(f"{layer}.") for layer in layers) else 1
        torch.testing.assert_close(moved[1][key], times * step, rtol=1e-3, atol=1e-6)
    assert any(step.abs().max() > 1e-3 for key, step in moved[0].items() if key.startswith(layers[0]))


def work(folder, settings):
    """What each of two processes does: a search that is killed in its pretraining, and goes on."""
    data = open_data(settings.data, settings.seed)
    for name in ("whole", "killed"):
        run = RunDirectory(folder / name)
        run.open(settings)
        if name == "killed":
            with pytest.MonkeyPatch.context() as context:
                kill_in_step(context, 2)
                with contextlib.suppress(KilledError):
                    search(run, SPACE, settings, data)
        architecture = search(run, SPACE, settings, data)
    return architecture.sample


@pytest.mark.slow
def test_two_processes(settings, tmp_path):
    halves = settings.model_copy(update={"pretrain": settings.pretrain.model_copy(update={"batch_size": 4})})
    first, second = run_group(work, tmp_path, tmp_path, halves)
    assert first == second
    whole, killed = (RunDirectory(tmp_path / name) for name in ("whole", "killed"))
    assert whole.alphas.read_text() == killed.alphas.read_text()
    states = [torch.load(run.supernet, weights_only=True)["state_dict"] for run in (whole, killed)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items() if torch.is_tensor(value))
    assert not list(whole.path.glob("checkpoints/*"))


def test_command(capsys, tmp_path):
    given = [f"--set={key}={json.dumps(value)}" for key, value in VALUES.items()]
    space = tmp_path / "space.yml"
    space.write_text("backbone: [sep_k3_d1, conv_k3_d1]\nneck: [sep_k3_d1]\nhead: [sep_k3_d1]\n")
    arguments = ["pretrain", "--config", "tiny", *given, "--sub-spaces", str(space), "--json"]
    assert cli.main([*arguments, "--out", str(tmp_path / "run")]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == 10
    assert cli.main([*arguments, "--set=pretrain.train_images=x", "--out", str(tmp_path / "other")]) == 2
    err = capsys.readouterr().err
    assert "boxes is true and train_images is given" in err
    assert err.count("\n") == 1
