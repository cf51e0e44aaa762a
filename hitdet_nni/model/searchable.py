"""A searched layer: a choice among candidates while searching, the one candidate itself when decided."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from hitdet_nni.config.skeleton import Component, label_parts, layer_label
from hitdet_nni.errors import InputError
from hitdet_nni.operators.registry import build_operator

Candidates = str | Sequence[str]
"""An operator name where the layer is decided, the candidates' names where it is searched."""

ALPHA = "_arch_alpha"
"""NNI's name of the architecture parameters of a mixed layer: its attribute, and the last part of their key in a state
dict. The layer's public name of them is ``alpha``."""


def searched_layer(
    component: Component, index: int, candidates: Candidates, in_channels: int, out_channels: int, stride: int
) -> nn.Module:
    """Build one layer of a component.

    With one candidate this is that operator's module and nothing else. With several it is an NNI ``LayerChoice``
    labelled ``{component}/l{index + 1:02d}``; under NNI's ``model_context`` that call returns the chosen module.

    Args:
        component: The component that the layer belongs to; the first part of its label.
        index: Place of the layer in its component, from 0.
        candidates: One operator name, or several.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: 1 or 2.

    Raises:
        InputError: If there is no candidate, one occurs twice, or a name is not an operator's.
    """
    names = (candidates,) if isinstance(candidates, str) else tuple(candidates)
    label = layer_label(component, index)
    if not names or len(set(names)) != len(names):
        raise InputError(f"candidates must be distinct and at least one, got {list(names)}", key=label)
    modules = OrderedDict((name, build_operator(name, in_channels, out_channels, stride)) for name in names)
    if len(names) == 1:
        return modules[names[0]]
    # A decided detector must be usable without the search framework, so only a choice imports it.
    from nni.mutable import label_scope  # noqa: PLC0415
    from nni.nas.nn.pytorch import LayerChoice  # noqa: PLC0415

    scope, name = label_parts(label)
    with label_scope(scope):
        choice: nn.Module = LayerChoice(modules, label=name)
    return choice


def check_layer_count(component: Component, operators: Sequence[Candidates], layers: int) -> None:
    """Refuse a component whose ``operators`` do not hold one entry a layer.

    Raises:
        InputError: Naming both numbers.
    """
    if isinstance(operators, str) or len(operators) != layers:
        raise InputError(
            f"got {len(operators)} entries", key=f"{component}.operators", allowed=f"{layers}, one a layer"
        )
