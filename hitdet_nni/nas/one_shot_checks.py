"""What our strategies refuse before they train: what NNI would ignore, and what would train in another way."""

from __future__ import annotations

from typing import Any, NoReturn

from pytorch_lightning.utilities.model_helpers import is_overridden

from hitdet_nni.errors import InputError


def refuse_penalty(source: str) -> NoReturn:
    """Refuse NNI's penalty for a cost.

    Raises:
        InputError: Always: NNI computes the penalty from exported numbers.
    """
    problem = "NNI's penalty gives the architecture parameters no gradient"
    raise InputError(problem, source=source, key="penalty", allowed="None; ColumnSparseDARTS has cost")


def check_evaluator(module: Any, optimizers: Any) -> None:
    """Refuse an evaluator that the strategy would train in another way than it asks for.

    Args:
        module: The evaluator's Lightning module.
        optimizers: All optimisers, that of the architecture parameters included.

    Raises:
        InputError: Naming what of the evaluator would have no effect.
    """
    source = f"ColumnSparseDARTS: {type(module).__name__}"
    count = len(optimizers) if isinstance(optimizers, list) else 1
    if not module.automatic_optimization or count != 2:
        allowed = "one optimiser, which the strategy steps"
        raise InputError(f"brings {count - 1} optimisers, or steps by itself", source=source, allowed=allowed)
    for hook in ("configure_gradient_clipping", "optimizer_step", "optimizer_zero_grad"):
        if is_overridden(hook, module):
            allowed = "the strategy's own, as gradient_clip_val"
            raise InputError("would not be called", source=source, key=hook, allowed=allowed)
