"""Detectors of both kinds, with weights."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from trained_detectors import KINDS, enliven

from hitdet_nni.config.architecture import Architecture, Provenance, save_architecture
from hitdet_nni.config.settings import load_settings
from hitdet_nni.deployment.loading import load_detector
from hitdet_nni.engine.weights_file import save_weights
from hitdet_nni.model.detector import build_detector


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """For each kind the architecture, its trained weights, mmdet's detector and ours."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        overrides = {"skeleton.detector": kind, "skeleton.head_blocks": 1 if kind == "retinanet" else 2}
        skeleton = load_settings("tiny", overrides).skeleton
        labels = [layer.label for layer in skeleton.searched_layers()]
        sample = dict(zip(labels, itertools.cycle(("conv_k3_d1", "ir_k3_d2_e3", "conv_k5_d1", "sep_k5_d2"))))
        provenance = Provenance(classes=tuple("abcdefghij"))
        architecture = Architecture(
            schema_version=1, name=f"tiny {kind}", skeleton=skeleton, sample=sample, provenance=provenance
        )
        torch.manual_seed(0)
        detector = enliven(build_detector(skeleton, sample, 10))
        save_weights(detector, folder / "weights.pth")
        save_architecture(architecture, folder / "found.json")
        plain = load_detector(architecture, folder / "weights.pth")
        found[kind] = SimpleNamespace(folder=folder, architecture=architecture, mmdet=detector, plain=plain)
    return found
