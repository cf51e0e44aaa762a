"""The numbers that a training computes with: autocast, and what 16-bit floats need for backward and step.

Parameters, their gradients and the optimisers' states are float32 whatever is chosen; activations are not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hitdet_nni.errors import InputError

logger = logging.getLogger(__name__)

PrecisionKind = Literal["fp32", "bf16", "fp16"]
DTYPES: Mapping[PrecisionKind, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Type of the activations by the name that the settings give it."""

AMPERE = (8, 0)
"""Compute capability of NVIDIA's first GPUs with bf16 units; AMD's count from 9 on."""

MIN_SCALE = 2.0**-10
"""A loss scale below this means that no scale helps: the loss itself is not finite."""


class Precision:
    """Computes losses in a precision, and makes the steps that belong to it.

    A step is ``with precision.autocast(): loss = ...``, then :meth:`backward`, where there are several processes
    :func:`hitdet_nni.engine.distributed.average_gradients`, and :meth:`step`.

    With fp16 the loss is scaled before backward, so that small gradients of activations do not vanish, and a step whose
    gradients are not finite is left out. One scale serves all optimisers: both phases of a search send the gradient of
    the same loss through the same fp16 activations, so they overflow at about the same scale, and the architecture
    steps, which begin after warm-up, find it settled. Gradients are averaged while they carry the scale; as every
    process then holds the same ones, and what is not finite in one process is in the mean, all leave out the same
    steps and keep the same scale.

    Args:
        kind: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        device: Where the training computes.

    Attributes:
        dtype: Type of the activations.
        scaler: Scales the losses; passes them on unchanged but for fp16.

    Raises:
        InputError: For fp16 on a CPU, which has no fp16 training kernels.

    Source:
        Micikevicius et al., Mixed Precision Training, ICLR 2018, section 3.2.
    """

    def __init__(self, kind: PrecisionKind, device: torch.device) -> None:
        if kind == "fp16" and device.type == "cpu":
            raise InputError(
                "fp16 needs a GPU, and this process computes on the CPU", key="precision", allowed="bf16, fp32"
            )
        if kind == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < AMPERE:
            logger.warning(
                "precision bf16: %s has no bf16 units and computes it slowly; fp16 is what such GPUs are fast in",
                torch.cuda.get_device_name(device),
            )
        self.kind = kind
        self.device = device
        self.dtype = DTYPES[kind]
        self.scaler = torch.amp.GradScaler(device.type, enabled=kind == "fp16")

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context for a forward pass and its losses; backward belongs outside.

        For fp32 it changes nothing: a user's own Lightning trainer may compute in a precision of its own.
        """
        return nullcontext() if self.kind == "fp32" else torch.autocast(self.device.type, self.dtype)

    def backward(self, loss: Tensor, manual_backward: Callable[[Tensor], Any] = Tensor.backward) -> None:
        """Compute the gradients of a loss, scaled where the precision needs it.

        Args:
            loss: A scalar.
            manual_backward: What runs backward, e.g. ``LightningModule.manual_backward``.
        """
        manual_backward(self.scaler.scale(loss))

    def step(
        self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], max_norm: float | None = None
    ) -> bool:
        """Unscale and clip the gradients of an optimiser's parameters and make its step.

        Args:
            optimizer: The optimiser.
            parameters: Its parameters.
            max_norm: Largest norm of their gradient, or ``None``.

        Returns:
            Whether the step was made: always, except with fp16 where a gradient is not finite.

        Raises:
            FloatingPointError: With fp16, where gradients stay non-finite at any scale.
        """
        self.scaler.unscale_(optimizer)
        if max_norm is not None:
            nn.utils.clip_grad_norm_(parameters, max_norm)
        scale = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        lowered = self.scaler.get_scale()
        if lowered >= scale:
            return True
        logger.info("a gradient is not finite: step left out, loss scale lowered to %g", lowered)
        if lowered < MIN_SCALE:
            raise FloatingPointError(
                f"gradients are not finite at any loss scale down to {lowered:g}: the training has diverged"
            )
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact resume needs: plain numbers, none but for fp16."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned in the same precision."""
        self.scaler.load_state_dict(dict(state))
