"""Weights of a found detector out of the supernet that it was found in."""

import json

import pytest
import torch

from hitdet_nni.cli import main
from hitdet_nni.config.architecture import Architecture, Provenance, load_architecture, save_architecture
from hitdet_nni.config.search_space import save_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.engine.backbone_weights import save_backbone
from hitdet_nni.engine.weights_file import read_state, save_weights
from hitdet_nni.model.detector import HitDetectorSpace, build_detector
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer
from hitdet_nni.nas.strategy import ColumnSparseDARTS
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.training.inherit import inherit_weights
from hitdet_nni.training.retrain import retrain

SPACE = {
    "backbone": ["ir_k3_d1_e3", "ir_k3_d2_e3", "sep_k5_d1"],  # the first two have the same tensors
    "neck": ["sep_k3_d1"],  # fixed: no mixed layers
    "head": ["sep_k3_d2", "ir_k3_d1_e1"],
}
STILL = {
    "data.train": 16,
    "data.val": 4,
    "batch_norm": "frozen",
    "retrain.epochs": 1,
    "retrain.lr": 1e-30,
    "retrain.weight_decay": 0,
}
"""A training that leaves parameters and running statistics as they are."""


def supernet_of(skeleton, classes=10):
    """A supernet as the search has it, every tensor of it different."""
    space = HitDetectorSpace(skeleton, SPACE, classes)
    ColumnSparseDARTS().mutate_model(space)
    generator = torch.Generator().manual_seed(0)
    for tensor in space.detector.state_dict().values():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif isinstance(tensor, torch.Tensor):
            tensor.fill_(int(torch.randint(1000, (), generator=generator)))
    return space.detector


@pytest.fixture(scope="module", params=["faster_rcnn", "retinanet"])
def skeleton(request):
    return load_settings("tiny", {"skeleton.detector": request.param, "skeleton.depths": [1, 2, 1, 1]}).skeleton


@pytest.fixture(scope="module")
def supernet(skeleton):
    return supernet_of(skeleton)


def test_every_tensor_is_the_chosen_candidate_s(skeleton, supernet, draw, tmp_path):
    save_weights(supernet, tmp_path / "supernet.pth")
    state = read_state(tmp_path / "supernet.pth")
    for seed in range(3):
        sample = draw(skeleton, SPACE, seed)
        found = build_detector(skeleton, sample, 10)
        inherit_weights(found, sample, state)
        layers = {name: layer for name, layer in supernet.named_modules() if isinstance(layer, ColumnSparseMixedLayer)}
        assert {layer.label.split("/")[0] for layer in layers.values()} == {"backbone", "head"}
        compared = set()
        for name, layer in layers.items():
            own = found.get_submodule(name).state_dict()
            chosen = layer[sample[layer.label]].state_dict()
            assert own.keys() == chosen.keys()
            assert all(torch.equal(own[key], chosen[key]) for key in own)
            compared |= {f"{name}.{key}" for key in own}
        rest = found.state_dict().keys() - compared
        assert any(key.startswith("neck.") for key in rest)
        assert all(torch.equal(found.state_dict()[key], supernet.state_dict()[key]) for key in rest)


def test_the_found_detector_computes_what_the_decided_supernet_does(skeleton, supernet, draw):
    sample = draw(skeleton, SPACE, 5)
    found = build_detector(skeleton, sample, 10)
    inherit_weights(found, sample, supernet.state_dict())
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    for layer in supernet.modules():
        if isinstance(layer, ColumnSparseMixedLayer):
            layer.alpha.data = torch.tensor([1e4 * (name == sample[layer.label]) for name in layer.names])
    with torch.no_grad():
        one, two = (detector.eval().extract_feat(image) for detector in (found, supernet))
    for level, other in zip(one, two, strict=True):
        torch.testing.assert_close(level, other, rtol=1e-5, atol=0)


def test_what_does_not_fit_is_refused(skeleton, supernet, draw, refused):
    sample = draw(skeleton, SPACE, 0)
    found = build_detector(skeleton, sample, 10)
    before = {key: value.clone() for key, value in found.state_dict().items()}
    state = dict(supernet.state_dict())
    sample_of_others = {**sample, "backbone/l01": "ir_k5_d1_e3"}
    with refused("backbone.stages.0.0.ir_k5_d1_e3.", "is not in the supernet"):
        inherit_weights(build_detector(skeleton, sample_of_others, 10), sample_of_others, state)
    deeper = skeleton.model_copy(update={"depths": (1, 2, 2, 1)})
    sample_of_deeper = draw(deeper, SPACE, 0)
    with refused("backbone", "6 layers", "allowed: 5"):
        inherit_weights(build_detector(deeper, sample_of_deeper, 10), sample_of_deeper, state)
    key = "backbone.stem.1.running_mean"
    with refused(key, "[9]", "allowed: 8"):
        inherit_weights(found, sample, {**state, key: torch.zeros(9)})
    del state[key]
    with refused(key, "is not in the supernet"):
        inherit_weights(found, sample, state)
    assert all(torch.equal(before[name], value) for name, value in found.state_dict().items())


@pytest.fixture
def searched(tmp_path, tiny_data, draw):
    """What a search leaves."""
    settings = load_settings("tiny", STILL)
    run = RunDirectory(tmp_path / "searched")
    run.open(settings)
    save_search_space({name: list(operators) for name, operators in SPACE.items()}, run.sub_spaces)
    architecture = Architecture(
        schema_version=1,
        name="found",
        skeleton=settings.skeleton,
        sample=draw(settings.skeleton, SPACE, 0),
        provenance=Provenance(classes=tiny_data.classes),
    )
    save_architecture(architecture, run.architecture)
    run.supernet.parent.mkdir(exist_ok=True)
    save_weights(supernet_of(settings.skeleton), run.supernet)
    return run


def overrides(**more):
    return [part for key, value in {**STILL, **more}.items() for part in ("--set", f"{key}={value}")]


def test_a_retraining_starts_from_the_supernet(searched, tmp_path, capsys, tiny_data):
    out = tmp_path / "retrained"
    arguments = ["retrain", "--inherit", str(searched.path), "--config", "tiny", *overrides(), "--out", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "retrain: learning rate 1e-30 x 4 / 4 = 1e-30 for a global batch of 4 = 1 x 4" in printed
    assert [line.split()[2] for line in printed if line.startswith("retrain  epoch")] == ["0/1", "1/1"]
    architecture = load_architecture(out / "architecture.json")
    assert architecture == load_architecture(searched.architecture)
    result = json.loads((out / "metrics.json").read_text())
    assert printed[-4] == (
        f"mAP {result['mAP']:.3f}, mAP_50 {result['metrics']['mAP_50']:.3f}, "
        f"{result['params_m']:.3g} M parameters, {result['gflops']:.3g} GFLOPs"
    )
    assert printed[-3] == str(out / "metrics.json")
    assert [line.split(" ", 3)[1:3] for line in printed[-2:]] == [["hitdet-nni", "detect"], ["hitdet-nni", "export"]]
    state = read_state(out / result["weights"])
    expected = build_detector(architecture.skeleton, architecture.sample, architecture.num_classes)
    inherit_weights(expected, architecture.sample, read_state(searched.supernet))
    assert all(torch.equal(state[key], value) for key, value in expected.state_dict().items())

    # Resumed, it must be the same architecture.
    other = {
        **architecture.sample,
        "head/l01": {"sep_k3_d2": "ir_k3_d1_e1"}.get(architecture.sample["head/l01"], "sep_k3_d2"),
    }
    save_architecture(architecture.model_copy(update={"sample": other}), tmp_path / "other.json")
    assert main([*arguments, "--architecture", str(tmp_path / "other.json"), "--resume"]) == 2
    assert "another architecture" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result


def test_bad_options_are_one_line(searched, tmp_path, capsys):
    def refuses(*options, **more):
        out = str(tmp_path / "new")
        assert main(["retrain", "--config", "tiny", *overrides(**more), "--out", out, *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "--architecture: is missing" in refuses()
    architecture = load_architecture(searched.architecture)
    foreign = {**architecture.sample, "neck/l02": "sep_k3_d2"}  # the supernet's neck has the same tensors
    save_architecture(architecture.model_copy(update={"sample": foreign}), tmp_path / "foreign.json")
    line = refuses("--inherit", str(searched.path), "--architecture", str(tmp_path / "foreign.json"))
    assert "neck/l02 is sep_k3_d2" in line
    assert str(searched.sub_spaces) in line
    assert "precision: fp16" in refuses("--inherit", str(searched.path), precision="fp16")
    line = refuses("--inherit", str(searched.path), **{"retrain.pretrained": str(searched.supernet)})
    assert "retrain.pretrained" in line
    searched.supernet.unlink()
    assert str(searched.supernet) in refuses("--inherit", str(searched.path))
    assert not (tmp_path / "new").exists()


def test_a_retraining_starts_from_a_pretrained_backbone(searched, tmp_path, tiny_data):
    architecture = load_architecture(searched.architecture)
    pretrained = build_detector(architecture.skeleton, architecture.sample, 10).backbone
    for tensor in pretrained.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 0.5 if tensor.is_floating_point() else tensor + 3)
    save_backbone(pretrained, tmp_path / "backbone.pth", architecture.sample)
    settings = load_settings("tiny", {**STILL, "retrain.pretrained": str(tmp_path / "backbone.pth")})
    outcome = retrain(architecture, settings, tiny_data, tmp_path / "retrain")
    state = read_state(outcome.weights)
    assert all(torch.equal(state[f"backbone.{key}"], value) for key, value in pretrained.state_dict().items())
