"""A task whose answer is known: one operator hands on what it sees, the others add noise. The search must find it."""

from __future__ import annotations

import warnings

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
from torch import nn
from torchvision.ops import roi_align

from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.model import searchable
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer
from hitdet_nni.nas.strategy import AlphaOptimizer, ColumnSparseDARTS
from hitdet_nni.operators.registry import build_operator

# One family: a residual block would pass on its input's noise, and be rejected for that where a dense one is not.
OPERATORS = ("conv_k3_d1", "conv_k3_d2", "conv_k3_d3", "conv_k5_d1", "conv_k5_d2")
SIZE, BATCH, STEPS = 32, 4, 15
ROIS = torch.tensor([(image, x, x, x + 16.0, x + 16.0) for image in range(BATCH) for x in (0.0, 8.0, 16.0)])


class Noisy(nn.Module):
    """An operator whose every channel gets new noise in each quarter of the map: too coarse to be averaged out."""

    def __init__(self, operator):
        super().__init__()
        self.operator = operator

    def forward(self, x):
        y = self.operator(x)
        return y + 2 * F.interpolate(torch.randn(*y.shape[:2], 2, 2), size=y.shape[-2:])


class Reconstruction(LightningModule):
    """Every searched layer is to hand on the image: a 1x1 convolution on its output is to give its colours."""

    def __init__(self, layers):
        super().__init__()
        self.readouts = nn.ModuleDict({self.key(layer.label): nn.Conv2d(layer.out_channels, 3, 1) for layer in layers})

    @staticmethod
    def key(label):
        return label.replace("/", "_")

    def training_step(self, images, batch_idx):
        outputs = {}
        hooks = [
            module.register_forward_hook(lambda layer, _, output: outputs.update({layer.label: output}))
            for module in self.model.modules()
            if isinstance(module, ColumnSparseMixedLayer)
        ]
        detector = self.model.detector
        pyramid = detector.extract_feat(images)
        head = detector.roi_head
        head.bbox_head(head.bbox_roi_extractor(pyramid[: head.bbox_roi_extractor.num_inputs], ROIS))
        for hook in hooks:
            hook.remove()
        crops = roi_align(images, ROIS, outputs["head/l01"].shape[-2:])
        losses = [
            F.mse_loss(
                self.readouts[self.key(label)](output),
                crops if label.startswith("head/") else F.adaptive_avg_pool2d(images, output.shape[-2:]),
            )
            for label, output in outputs.items()
        ]
        return torch.stack(losses).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


def search(skeleton, seed):
    """Search the real detector space."""
    pl.seed_everything(seed, verbose=False)
    space = HitDetectorSpace(skeleton, dict.fromkeys(COMPONENTS, OPERATORS), num_classes=3)
    strategy = ColumnSparseDARTS(alpha_optimizer=AlphaOptimizer(lr=0.2), gradient_clip_val=5.0)
    strategy.mutate_model(space)
    loaders = [
        DataLoader(list(F.interpolate(torch.randn(BATCH * STEPS, 3, 8, 8), size=SIZE)), batch_size=BATCH)
        for _ in range(2)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
            enable_model_summary=False,
        )  # fmt: skip
        module = Reconstruction(skeleton.searched_layers())
        evaluator = Lightning(module, trainer, train_dataloaders=loaders[0], val_dataloaders=loaders[1])
        mutated = strategy.mutate_evaluator(evaluator)
        mutated.evaluate(space)
    return mutated.module.export()


@pytest.fixture
def plant(monkeypatch):
    """Make all operators but one noisy."""

    def build(planted):
        monkeypatch.setattr(
            searchable,
            "build_operator",
            lambda name, *shape: (
                build_operator(name, *shape) if name == planted else Noisy(build_operator(name, *shape))
            ),
        )

    return build


@pytest.mark.parametrize(
    ("seed", "planted"),
    [pytest.param(seed, name, marks=[pytest.mark.slow] if seed else []) for seed, name in enumerate(OPERATORS)],
)
def test_the_planted_operator_is_found_in_every_layer(plant, tiny, seed, planted):
    plant(planted)
    found = search(tiny, seed)
    assert found == {layer.label: planted for layer in tiny.searched_layers()}


def test_nothing_planted_nothing_found(plant, tiny):
    plant(None)
    found = search(tiny, 0)
    assert len(found) == len(tiny.searched_layers())
    assert max(list(found.values()).count(name) for name in OPERATORS) < len(found) / 2
