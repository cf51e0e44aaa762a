"""Weights of a found detector out of the supernet that it was found in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hitdet_nni.config.skeleton import COMPONENTS, component_of
from hitdet_nni.errors import InputError
from hitdet_nni.model.searchable import ALPHA

_ALPHA = f".{ALPHA}"
"""End of the key of a mixed layer's architecture parameters in a state dict."""


def inherit_weights(detector: nn.Module, sample: Mapping[str, str], supernet_state: Mapping[str, Any]) -> None:
    """Give a found detector the supernet's weights of the chosen operators, and all that was not searched.

    Args:
        detector: The decided detector.
        sample: Operator name of each searched layer by its label.
        supernet_state: State of the supernet's detector, whose searched layers hold one child a candidate.

    Raises:
        InputError: If the supernet has another number of layers, or a parameter or buffer of the detector, among them
            those of an operator that was not searched, is missing there or has another shape.
    """
    chosen = _chosen_candidates(sample, supernet_state)
    inherited: dict[str, Tensor] = {}
    for key, own in detector.state_dict().items():
        layer = next((layer for layer in chosen if key.startswith(f"{layer}.")), None)
        source = key if layer is None else f"{chosen[layer]}{key[len(layer) :]}"
        value = supernet_state.get(source)
        if not isinstance(value, Tensor):
            raise InputError("is not in the supernet", key=source, allowed="the supernet that the sample was found in")
        if value.shape != own.shape:
            raise InputError(f"has the shape {list(value.shape)} in the supernet", key=source, allowed=list(own.shape))
        inherited[key] = value
    detector.load_state_dict(inherited)


def _chosen_candidates(sample: Mapping[str, str], supernet_state: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of the chosen candidate's module by that of its layer's, for each mixed layer."""
    # Registered in the order of the labels, and a state dict keeps the order of registration.
    mixed = [key.removesuffix(_ALPHA) for key in supernet_state if key.endswith(_ALPHA)]
    chosen: dict[str, str] = {}
    for component in COMPONENTS:
        labels = sorted(label for label in sample if component_of(label) == component)
        layers = [layer for layer in mixed if _component(layer) == component]
        if layers and len(layers) != len(labels):  # without mixed layers the component is fixed at one operator
            raise InputError(
                f"the sample has {len(labels)} layers", key=component, allowed=f"{len(layers)}, as the supernet has"
            )
        chosen.update({layer: f"{layer}.{sample[label]}" for label, layer in zip(labels, layers, strict=False)})
    return chosen


def _component(layer: str) -> str:
    root = layer.partition(".")[0]
    return root if root in COMPONENTS else "head"  # mmdet's roi_head or bbox_head
