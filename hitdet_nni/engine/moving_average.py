"""A moving average of a model's weights, which is evaluated and kept in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.models.layers import ExpMomentumEMA
from torch import nn

from hitdet_nni.engine import distributed
from hitdet_nni.engine.training_state import running_statistics

WARM_UP = 0.2
"""Steps in which the average follows the weights more closely, in units of the steps that it is over."""


class MovingAverage:
    """mmdet's exponential moving average, of parameters and of batch normalisation's statistics.

    Args:
        model: The model.
        share: Share of each step's weights in the average; more in the first steps.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        self._average = ExpMomentumEMA(model, **average_arguments(share))

    def update(self, model: nn.Module) -> None:
        """Take the weights of a step into the average."""
        self._average.update_parameters(model)

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Give a model the averaged weights within the context, and its own back after it; all processes do so.

        Running statistics are each process's own until then; from then on they have their mean.
        """
        distributed.average(running_statistics(self._average.module))
        self._exchange(model)
        try:
            yield
        finally:
            self._exchange(model)

    def give_to(self, model: nn.Module) -> None:
        """Give a model the averaged weights."""
        model.load_state_dict(self._average.module.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights and the number of steps, the same in all processes; all call this.

        Running statistics are each process's own until then; from then on they have their mean.
        """
        distributed.average(running_statistics(self._average.module))
        return {name: tensor.cpu() for name, tensor in self._average.state_dict().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what :meth:`state_dict` returned."""
        self._average.load_state_dict(state)

    @torch.no_grad()
    def _exchange(self, model: nn.Module) -> None:
        own, averaged = model.state_dict(), self._average.module.state_dict()
        for name, tensor in own.items():
            kept = tensor.clone()
            tensor.copy_(averaged[name])
            averaged[name].copy_(kept)


def average_arguments(share: float) -> dict[str, Any]:
    """Return the arguments of mmdet's ``ExpMomentumEMA`` but for the model.

    Args:
        share: Share of each step's weights in the average.
    """
    return {"momentum": share, "gamma": max(1, round(WARM_UP / share)), "update_buffers": True}
