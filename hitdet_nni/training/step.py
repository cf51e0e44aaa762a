"""One optimiser step of a retraining: in a chosen precision, on the mean gradient of all processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.optim import Optimizer

from hitdet_nni.engine import distributed
from hitdet_nni.engine.precision import Precision


class RetrainStep(OptimWrapper):  # type: ignore[misc]
    """mmengine's optimiser wrapper with our precision and our averaging of gradients.

    mmengine's ``AmpOptimWrapper`` refuses to work without a GPU, and its distributed training wants one a process.

    Args:
        optimizer: The optimiser.
        precision: What losses and gradients are computed in.
        max_norm: Largest norm of the gradient, or ``None``.
    """

    def __init__(self, optimizer: Optimizer, *, precision: Precision, max_norm: float | None = None) -> None:
        super().__init__(optimizer)
        self.precision = precision
        self.max_norm = max_norm

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Compute the losses in the precision."""
        with super().optim_context(model), self.precision.autocast():
            yield

    def update_params(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Make a step, unless the loss, a scalar, is not finite.

        Raises:
            FloatingPointError: Before anything is changed, or exchanged with other processes.
        """
        if not loss.isfinite():
            raise FloatingPointError(f"the loss is {loss.item()}")
        super().update_params(loss, *args, **kwargs)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Compute the gradients of the loss, a scalar, scaled where the precision needs it."""
        self.precision.backward(loss)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        """Average the gradients over the processes while they carry the loss scale, then unscale, clip and step."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        distributed.average_gradients(parameters)
        self.precision.step(self.optimizer, parameters, self.max_norm)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state and the loss scale."""
        return {"optimizer": super().state_dict(), "precision": self.precision.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what :meth:`state_dict` returned."""
        super().load_state_dict(state["optimizer"])
        self.precision.load_state_dict(state["precision"])
