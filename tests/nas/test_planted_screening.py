"""Screening where the answer is known: among 32 operators k are of use, and the others give noise.

The strategy is the screening's own: its architecture loss, its alternation, mu of section 4.2, its gradual removal.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from nni.mutable import label_scope
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni_spaces import search
from torch import Tensor, nn

from hitdet_nni.config.screening_settings import ScreeningSettings
from hitdet_nni.nas.health.rank_agreement import Agreement, Preferences
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer
from hitdet_nni.nas.pruning import PruningSchedule
from hitdet_nni.nas.strategy import AlphaOptimizer, ColumnSparseDARTS

OPERATORS = [f"o{number:02}" for number in range(32)]
LAYERS, WIDTH, KEEP, STEPS = 2, 8, 8, 12
MU = ScreeningSettings().sparsity_weight


class Noise(nn.Module):
    """What says nothing of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.randn_like(x)


class Useful(nn.Linear):
    """What can learn the task."""

    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)


class Planted(ModelSpace):
    """Layers of 32 operators, the planted ones useful."""

    def __init__(self, planted: frozenset[str]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for number in range(LAYERS):
            candidates = {name: Useful() if name in planted else Noise() for name in OPERATORS}
            with label_scope("neck"):
                self.layers.append(LayerChoice(candidates, label=f"l{number}"))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Regression(LightningModule):
    """Mean squared error."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return (self.model(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.02)


def screened(planted: frozenset[str], seed: int, gates: str = ScreeningSettings().gates, epochs: int = 6) -> set[str]:
    """Screen by the whole schedule and return the operators that are kept."""
    torch.manual_seed(seed)
    mixing = torch.randn(WIDTH, WIDTH) / WIDTH**0.5
    x = torch.randn(2 * STEPS * 16, WIDTH)
    halves = torch.utils.data.TensorDataset(x, x @ mixing).tensors
    loaders = [
        DataLoader(list(zip(*(part[half::2] for part in halves), strict=True)), batch_size=16, shuffle=True)
        for half in (0, 1)
    ]
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    evaluator = Lightning(Regression(), trainer, train_dataloaders=loaders[0], val_dataloaders=loaders[1])
    strategy = ColumnSparseDARTS(
        sparsity_weight=MU,
        gates=gates,
        alpha_optimizer=AlphaOptimizer(lr=0.05),
        pruning=PruningSchedule(KEEP),
        warmup_epochs=1,
        candidate_gradients="full",
    )
    space = Planted(planted)
    search(space, evaluator, strategy)
    layers = [part for part in strategy.supernet.modules() if isinstance(part, ColumnSparseMixedLayer)]
    (kept,) = {tuple(layer.active_names) for layer in layers}
    return set(kept)


@pytest.mark.parametrize("seed", range(5))
def test_planted_operators_are_kept(seed):
    """All of them, by positive gates, the default reading of Eq. 4.

    With the term on the logits of a softmax none to two of the eight are kept, where chance keeps two.
    """
    planted = frozenset(random.Random(seed).sample(OPERATORS, KEEP))
    assert screened(planted, seed) == planted


def test_where_nothing_is_planted_nothing_is_preferred():
    """All operators are useful: what four seeds keep has no more in common than chance gives."""
    kept = [screened(frozenset(OPERATORS), seed) for seed in range(4)]
    rows = [np.array([[name in one for name in OPERATORS]]) for one in kept]
    found = Agreement.of([Preferences(row.astype(float), row) for row in rows])
    assert found.chance == pytest.approx(2)
    assert found.common_p > 0.01
