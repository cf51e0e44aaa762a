"""A trained supernet as a set of architectures that are evaluated one by one with its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hitdet_nni.config.settings import Settings
from hitdet_nni.config.skeleton import Component, Skeleton
from hitdet_nni.engine.synced_batch_norm import apply_batch_norm
from hitdet_nni.engine.weights_file import read_state
from hitdet_nni.errors import InputError
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.nas.choices import find_choices
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer
from hitdet_nni.nas.strategy import ColumnSparseDARTS, ColumnSparseLightningModule


@dataclass(frozen=True)
class SampledSupernet:
    """A supernet whose architectures are evaluated.

    Attributes:
        detector: Its detector.
        layers: Its mixed layers by label.
        skeleton: Its skeleton.
    """

    detector: nn.Module
    layers: Mapping[str, ColumnSparseMixedLayer]
    skeleton: Skeleton

    @property
    def candidates(self) -> dict[str, tuple[str, ...]]:
        """The operators that each mixed layer may have, by label."""
        return {label: tuple(layer.active_names) for label, layer in self.layers.items()}

    @classmethod
    def of(cls, module: ColumnSparseLightningModule) -> SampledSupernet:
        """Return the supernet of a training that has ended."""
        return cls(module.model.detector, module.mixed_layers(), module.model.skeleton)

    @classmethod
    def restore(
        cls, weights: Path, space: Mapping[Component, Sequence[str]], settings: Settings, num_classes: int
    ) -> SampledSupernet:
        """Build the supernet of a search that has ended, with its weights.

        Args:
            weights: The search's ``supernet.pth``; nothing in it is executed.
            space: Sub search space of each component.
            settings: The search's settings.
            num_classes: Object classes, without background.

        Raises:
            InputError: If the file is missing, or is not of such a supernet.
        """
        model = HitDetectorSpace(settings.skeleton, space, num_classes)
        model.to(memory_format=torch.channels_last)
        ColumnSparseDARTS().mutate_model(model)
        apply_batch_norm(model, settings.batch_norm)
        state = read_state(weights, allowed="the supernet that a search has left")
        try:
            model.detector.load_state_dict(state)
        except (RuntimeError, ValueError) as error:  # of shapes and keys, and of names of candidates
            problem = " ".join(str(error).split()[:30])
            raise InputError(f"is not of this search: {problem} ...", source=weights) from None
        found = {label: choice.layers[0] for label, choice in find_choices(model).items() if choice.layers}
        return cls(model.detector, found, settings.skeleton)
