"""Weights of torchvision by their names."""

from pathlib import Path

import pytest
import torch
from torchvision.models import ResNet18_Weights, ResNet50_Weights

from hitdet_nni.config.settings import load_settings


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder where torch keeps what it has downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_a_name_is_the_file_that_torch_has_kept(kept, tmp_path):
    for weights in (ResNet18_Weights.DEFAULT, ResNet50_Weights.IMAGENET1K_V1):
        torch.save({}, kept / Path(weights.url).name)
    named = load_settings("tiny", {"retrain.pretrained": "torchvision:resnet18"})
    assert named.retrain.pretrained == kept / "resnet18-f37072fd.pth"
    older = load_settings("tiny", {"retrain.pretrained": "torchvision:resnet50:IMAGENET1K_V1"})
    assert older.retrain.pretrained == kept / "resnet50-0676ba61.pth"
    file = tmp_path / "mine.yml"
    file.write_text("extends: tiny\nretrain: {pretrained: 'torchvision:resnet18'}\n")
    assert load_settings(file).retrain.pretrained == named.retrain.pretrained


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("torchvision:resnet50", ["is not on this machine", "https://", "resnet50-11ad3fa6.pth", "checkpoints"]),
        ("torchvision:resnot", ["no model 'resnot'"]),
        ("torchvision:resnet50:V9", ["no weights 'V9'", "IMAGENET1K_V1"]),
    ],
)
def test_a_name_without_a_file_says_where_it_is_to_be_had(kept, refused, name, parts):
    with refused(name, *parts):
        load_settings("tiny", {"retrain.pretrained": name})
