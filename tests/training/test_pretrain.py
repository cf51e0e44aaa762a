"""Pretraining: it learns, its alphas stand still, it resumes exactly, and its weights arrive in detectors."""

import contextlib
import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from group import run_group
from killing import KilledError, kill_in_step

from hitdet_nni import cli
from hitdet_nni.config.architecture import Architecture, Provenance, save_architecture
from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.class_folders import open_folders
from hitdet_nni.engine.backbone_weights import load_backbone, save_backbone
from hitdet_nni.engine.precision import Precision
from hitdet_nni.errors import NonFiniteLossError
from hitdet_nni.model.detector import HitDetectorSpace, build_detector
from hitdet_nni.nas.mixed import ACTIVATION_MODES, ColumnSparseMixedLayer, set_activations
from hitdet_nni.nas.strategy import ColumnSparseDARTS
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.tables import read_metrics
from hitdet_nni.training import classification
from hitdet_nni.training.pretrain import Backbone, found_backbone, open_run, pretrain, weights_file

CANDIDATES = ("ir_k3_d1_e1", "sep_k3_d1", "conv_k3_d1")
CLASSES = ("blue", "green", "red", "white")
COLOURS = ((220, 40, 40), (40, 220, 40), (40, 40, 220), (220, 220, 220))
STEPS = 3  # an epoch, of batches of 8


def draw_images(root, per_class, seed):
    """Discs of a class's colour at random places on a dark, noisy ground."""
    rng = np.random.default_rng(seed)
    for name, colour in zip(CLASSES, COLOURS, strict=True):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            image = rng.integers(0, 60, (48, 48, 3)).astype(np.uint8)
            centre = tuple(int(place) for place in rng.integers(16, 32, 2))
            cv2.circle(image, centre, int(rng.integers(8, 16)), colour, -1)
            assert cv2.imwrite(str(root / name / f"{number}.png"), image)


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    draw_images(root / "train", 6, 0)
    draw_images(root / "val", 4, 1)
    section = {
        "train_images": str(root / "train"),
        "val_images": str(root / "val"),
        "size": 32,
        "batch_size": 8,
        "lr_batch_size": None,
        "min_crop": 0.5,
        "epochs": 2,
    }
    return {f"pretrain.{key}": value for key, value in section.items()} | {"checkpoint.every_steps": 2}


@pytest.fixture(scope="module")
def settings(overrides):
    return load_settings("tiny", overrides)


@pytest.fixture(scope="module")
def data(settings):
    return open_folders(settings.pretrain)


@pytest.fixture(scope="module")
def architecture(tiny):
    sample = {layer.label: "sep_k3_d1" for layer in tiny.searched_layers()}
    sample["backbone/l02"] = "ir_k3_d1_e1"
    provenance = Provenance(classes=("one", "two"))
    return Architecture(schema_version=1, name="plain", skeleton=tiny, sample=sample, provenance=provenance)


def run_in(folder, backbone, settings, data, resume=False, **arguments):
    run = RunDirectory(folder)
    open_run(run, backbone, settings, force=False, resume=resume)
    return run, pretrain(run, backbone, settings, data, **arguments)


def saved(run):
    return torch.load(weights_file(run), weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def supernet_run(tmp_path_factory, settings, data, tiny):
    return run_in(tmp_path_factory.mktemp("supernet") / "run", Backbone(tiny, CANDIDATES), settings, data)[0]


@pytest.fixture(scope="module")
def found_run(tmp_path_factory, settings, data, architecture):
    return run_in(tmp_path_factory.mktemp("found") / "run", found_backbone(architecture), settings, data)[0]


def detector_space(skeleton, backbone_candidates):
    """A detector's supernet as the search makes it."""
    space = {"backbone": backbone_candidates, "neck": ["sep_k3_d1"], "head": ["sep_k3_d1"]}
    model = HitDetectorSpace(skeleton, space, 2)
    ColumnSparseDARTS().mutate_model(model)
    return model.detector.backbone


def mixed_layers(module):
    return [layer for layer in module.modules() if isinstance(layer, ColumnSparseMixedLayer)]


def test_it_learns(tmp_path, settings, data, architecture):
    recipe = settings.pretrain.model_copy(update={"epochs": 10, "lr": 0.1})
    backbone = found_backbone(architecture)
    run, result = run_in(tmp_path / "run", backbone, settings.model_copy(update={"pretrain": recipe}), data)
    assert result["val_top1"] > 0.6  # chance is .25
    assert result["val_top5"] == 1.0
    assert result == json.loads(run.metrics.read_text())
    rows = read_metrics(run.path / "metrics.csv")
    assert [row["epoch"] for row in rows] == list(range(10))
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["val_top1"] == result["val_top1"]


def test_supernet_is_the_mean_of_its_candidates(tiny):
    classifier = Backbone(tiny, CANDIDATES).build(4).eval()
    layers = mixed_layers(classifier)
    assert [layer.label for layer in layers] == list(tiny.labels("backbone"))
    with torch.no_grad():
        for layer, block in zip(layers, tiny.searched_layers(), strict=False):
            x = torch.randn(2, block.in_channels, 8, 8)
            mean = sum(layer[name](x) for name in CANDIDATES) / len(CANDIDATES)
            torch.testing.assert_close(layer(x), mean)


def test_alphas_get_no_gradient_and_stay(supernet_run, settings, tiny):
    state = saved(supernet_run)
    alphas = [value for key, value in state.items() if key.endswith("_arch_alpha")]
    assert len(alphas) == len(tiny.labels("backbone"))
    assert all(torch.equal(alpha, torch.zeros(len(CANDIDATES))) for alpha in alphas)
    torch.manual_seed(0)
    classifier = Backbone(tiny, CANDIDATES).build(4)
    classifier(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).square().sum().backward()
    for name, parameter in classifier.named_parameters():
        assert (parameter.grad is None) is name.endswith("_arch_alpha"), name
    for layer in mixed_layers(classifier):  # every candidate has moved
        prefix = next(key for key, module in classifier.backbone.named_modules() if module is layer)
        for name in CANDIDATES:
            moved = [key for key in state if key.startswith(f"{prefix}.{name}.") and key.endswith("running_mean")]
            assert moved
            assert all(state[key].abs().sum() > 0 for key in moved)


@pytest.mark.parametrize("mode", sorted(ACTIVATION_MODES))
def test_what_layers_keep_changes_no_gradient(mode, tiny):
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    gradients = []
    for activations in ("all", mode):
        torch.manual_seed(0)
        classifier = Backbone(tiny, CANDIDATES).build(4).double()
        set_activations(classifier, activations)
        F.cross_entropy(classifier(images), torch.arange(4)).backward()
        gradients.append({key: value.grad for key, value in classifier.named_parameters() if value.requires_grad})
    assert len(gradients[0]) > 20
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-7, atol=1e-10)


def test_weights_arrive_in_a_supernet(supernet_run, tiny):
    state = saved(supernet_run)
    assert state.keys() == detector_space(tiny, CANDIDATES).state_dict().keys()
    subset = ("conv_k3_d1", "ir_k3_d1_e1")
    for candidates in (CANDIDATES, subset):
        backbone = detector_space(tiny, candidates)
        before = {key: value.clone() for key, value in backbone.state_dict().items() if key.endswith("_arch_alpha")}
        load_backbone(backbone, weights_file(supernet_run))
        after = backbone.state_dict()
        for key, value in after.items():
            if key.endswith("_arch_alpha"):
                assert torch.equal(value, before[key])
            elif key.endswith("_extra_state"):
                assert value == list(candidates)
            else:
                assert torch.equal(value, state[key]), key


def test_weights_arrive_in_a_found_detector(found_run, architecture, data, settings):
    backbone = build_detector(architecture.skeleton, architecture.sample, 2).backbone
    load_backbone(backbone, weights_file(found_run), architecture.sample)
    state = saved(found_run)
    assert state.keys() == backbone.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())


def test_a_found_detector_takes_its_operators_from_a_supernet(supernet_run, architecture):
    backbone = build_detector(architecture.skeleton, architecture.sample, 2).backbone
    load_backbone(backbone, weights_file(supernet_run), architecture.sample)
    state = saved(supernet_run)
    labels = dict(zip(("0", "1", "2", "3"), architecture.skeleton.labels("backbone"), strict=True))
    for key, value in backbone.state_dict().items():
        part, _, rest = key.partition(".")
        if part == "stages":
            stage, _, inner = rest.partition(".0.")
            key = f"stages.{stage}.0.{architecture.sample[labels[stage]]}.{inner}"
        assert torch.equal(value, state[key]), key


def test_weights_that_do_not_fit_are_refused(supernet_run, found_run, architecture, tmp_path, refused):
    skeleton, sample = architecture.skeleton, architecture.sample

    def attempt(path, *names, backbone=None, given=None):
        backbone = backbone or build_detector(skeleton, sample, 2).backbone
        before = {key: value.clone() for key, value in backbone.state_dict().items() if isinstance(value, torch.Tensor)}
        with refused(path, *names):
            load_backbone(backbone, path, given)
        assert all(torch.equal(value, backbone.state_dict()[key]) for key, value in before.items())

    found, supernet = weights_file(found_run), weights_file(supernet_run)
    attempt(tmp_path / "absent.pth", "no such file")
    (tmp_path / "text.pth").write_text("text")
    attempt(tmp_path / "text.pth", "cannot be read")
    torch.save({"weights": 1}, tmp_path / "other.pth")
    attempt(tmp_path / "other.pth", "state_dict")
    attempt(found, "stages.0.0.ir_k3_d1_e1.", backbone=detector_space(skeleton, CANDIDATES))
    attempt(supernet, "stages.0.0.conv_k5_d1.", backbone=detector_space(skeleton, ("sep_k3_d1", "conv_k5_d1")))
    attempt(supernet, "backbone/l01")  # which operator?
    attempt(supernet, "backbone/l01", "conv_k5_d1", given={**sample, "backbone/l01": "conv_k5_d1"})
    # The same tensors, another dilation.
    attempt(found, "backbone/l03", "sep_k3_d1", given={**sample, "backbone/l03": "sep_k3_d2"})
    for change, key in (({"widths": (12, 16, 24, 40)}, "stages.3"), ({"depths": (1, 1, 2, 1)}, "stages.2.1")):
        other = skeleton.model_copy(update=change)
        ops = ["sep_k3_d1", "ir_k3_d1_e1", *["sep_k3_d1"] * 3]
        labels = other.labels("backbone")
        grown = build_detector(other, {**sample, **dict(zip(labels, ops, strict=False))}, 2).backbone
        attempt(found, key, backbone=grown)
        save_backbone(grown, tmp_path / "grown.pth")
        attempt(tmp_path / "grown.pth", key)


def assert_same_result(one, two):
    first, second = saved(one), saved(two)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key], key
    for name in ("metrics.csv", "metrics.json"):
        assert (one.path / name).read_text() == (two.path / name).read_text()


# Two epochs of three steps; checkpoints after steps 2, 3, 4 and 6.
@pytest.mark.parametrize("kills", [[1], [3], [5], [2, 1, 1]])
def test_an_interrupted_pretraining_ends_bit_equal(
    found_run, settings, data, architecture, kills, tmp_path, monkeypatch
):
    backbone = found_backbone(architecture)
    for number, step in enumerate(kills):
        with monkeypatch.context() as context:
            kill_in_step(context, step)
            with pytest.raises(KilledError):
                run_in(tmp_path / "run", backbone, settings, data, resume=number > 0)
    run, _ = run_in(tmp_path / "run", backbone, settings, data, resume=True)
    assert_same_result(run, found_run)
    assert not list(run.path.rglob("*.pt"))


def test_interruption_at_the_end_of_an_epoch_and_a_damaged_checkpoint(supernet_run, settings, data, tiny, tmp_path):
    def stop(record):
        if record.epoch == 1:
            raise KilledError

    backbone = Backbone(tiny, CANDIDATES)
    with pytest.raises(KilledError):
        run_in(tmp_path / "run", backbone, settings, data, on_epoch=stop)
    files = sorted((tmp_path / "run").rglob("*.pt"))
    assert [file.name[:14] for file in files] == ["step-000000003", "step-000000004"]
    files[-1].write_bytes(files[-1].read_bytes()[:-100])
    run, _ = run_in(tmp_path / "run", backbone, settings, data, resume=True)
    assert_same_result(run, supernet_run)


def test_what_has_ended_is_only_read(found_run, settings, data, architecture, tmp_path, refused):
    before = weights_file(found_run).stat().st_mtime_ns
    _, result = run_in(found_run.path, found_backbone(architecture), settings, data, resume=True)
    assert result == json.loads(found_run.metrics.read_text())
    assert weights_file(found_run).stat().st_mtime_ns == before
    other = found_backbone(
        architecture.model_copy(update={"sample": {**architecture.sample, "backbone/l01": "sep_k5_d1"}})
    )
    with refused(found_run.path, "another backbone"):
        run_in(found_run.path, other, settings, data, resume=True)


def test_a_loss_that_is_not_finite_ends_it(settings, data, architecture, tmp_path, monkeypatch):
    real, count = F.cross_entropy, 0

    def broken(*arguments, **keywords):
        nonlocal count
        count += 1
        return real(*arguments, **keywords) * (float("nan") if count == 4 else 1)

    monkeypatch.setattr(classification.F, "cross_entropy", broken)
    with pytest.raises(NonFiniteLossError) as caught:
        run_in(tmp_path / "run", found_backbone(architecture), settings, data)
    error = caught.value
    assert (error.stage, error.step) == ("pretrain", 3)
    assert len(error.image_ids) == 8
    assert set(error.image_ids) <= set(data.train.files)
    assert error.checkpoint is not None
    assert error.checkpoint.name.startswith("step-000000003")


def test_an_overflow_that_no_loss_scale_ends_is_named(settings, data, architecture, tmp_path, monkeypatch):
    original, count = Precision.step, 0

    def endless(precision, *arguments):
        nonlocal count
        count += 1
        if count == 3:
            raise FloatingPointError("gradients are not finite at any loss scale")
        return original(precision, *arguments)

    monkeypatch.setattr(Precision, "step", endless)
    with pytest.raises(NonFiniteLossError, match=r"pretrain: gradients .* loss scale after step 2; the last good"):
        run_in(tmp_path / "run", found_backbone(architecture), settings, data)


def test_an_unreadable_image_ends_it(settings, data, architecture, tmp_path, refused):
    root = tmp_path / "images"
    shutil.copytree(data.train.root, root)
    (root / "red" / "3.png").write_text("not an image")
    broken = replace(data, train=replace(data.train, root=root))
    with refused(root / "red" / "3.png", "cannot be decoded"):
        run_in(tmp_path / "run", found_backbone(architecture), settings, broken)


def test_bf16_trains_float32_weights(settings, data, architecture, tmp_path):
    short = settings.model_copy(
        update={"precision": "bf16", "pretrain": settings.pretrain.model_copy(update={"epochs": 1})}
    )
    run, result = run_in(tmp_path / "run", found_backbone(architecture), short, data)
    assert all(value.dtype in (torch.float32, torch.int64) for value in saved(run).values())
    assert np.isfinite(result["train_loss"])


def test_frozen_statistics_are_refused(settings, architecture, tmp_path, refused):
    with refused("batch_norm", "frozen", "local"):
        run_in(
            tmp_path / "run", found_backbone(architecture), settings.model_copy(update={"batch_norm": "frozen"}), None
        )
    assert not (tmp_path / "run").exists()


def command(capsys, *arguments):
    status = cli.main(["pretrain", "--config", "tiny", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_command(capsys, tmp_path, overrides, architecture):
    given = [f"--set={key}={json.dumps(value)}" for key, value in {**overrides, "pretrain.epochs": 1}.items()]
    file, out = tmp_path / "a.json", tmp_path / "run"
    save_architecture(architecture, file)
    arguments = (*given, "--architecture", file, "--out", out)
    status, printed, _ = command(capsys, *arguments, "--json")
    assert status == 0
    assert json.loads(printed)["kind"] == "found"
    assert (out / "weights.pth").is_file()
    status, _, err = command(capsys, *arguments)
    assert status == 2
    assert str(out) in err
    assert err.count("\n") == 1
    assert command(capsys, *arguments, "--resume")[0] == 0
    space = tmp_path / "space.yml"
    space.write_text("backbone: [sep_k3_d1, conv_k3_d1]\nneck: [sep_k3_d1]\nhead: [sep_k3_d1]\n")
    status, printed, _ = command(capsys, *given, "--sub-spaces", space, "--out", tmp_path / "other")
    assert status == 0
    assert "top-1" in printed
    assert json.loads((tmp_path / "other" / "backbone.json").read_text())["operators"] == ["sep_k3_d1", "conv_k3_d1"]


def test_command_without_images(capsys, tmp_path):
    status, _, err = command(capsys, "--out", tmp_path / "run")
    assert status == 2
    assert "pretrain.train_images: is missing" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def work(folder, backbone, settings):
    """What each of two processes does."""
    data = open_folders(settings.pretrain)
    run_in(folder / "synced", backbone, settings.model_copy(update={"batch_norm": "synced"}), data)
    run_in(folder / "whole", backbone, settings, data)
    with pytest.MonkeyPatch.context() as context:
        kill_in_step(context, 4)
        with contextlib.suppress(KilledError):
            run_in(folder / "killed", backbone, settings, data)
    _, result = run_in(folder / "killed", backbone, settings, data, resume=True)
    return {"top1": result["val_top1"]}


@pytest.mark.slow
def test_two_processes(settings, data, architecture, tmp_path):
    backbone = found_backbone(architecture)
    alone, _ = run_in(tmp_path / "alone", backbone, settings, data)
    halves = settings.model_copy(update={"pretrain": settings.pretrain.model_copy(update={"batch_size": 4})})
    first, second = run_group(work, tmp_path, tmp_path, backbone, halves)
    whole, killed, synced = (RunDirectory(tmp_path / name) for name in ("whole", "killed", "synced"))
    assert first == second == {"top1": json.loads(whole.metrics.read_text())["val_top1"]}
    assert_same_result(killed, whole)
    # With synced statistics, two half batches are one batch.
    expected = saved(alone)
    for key, value in saved(synced).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4)
    assert not torch.equal(saved(whole)["stem.0.weight"], expected["stem.0.weight"])
