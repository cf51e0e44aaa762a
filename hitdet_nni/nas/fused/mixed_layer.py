"""What a mixed layer of the supernet calls: its fused mixture, made once for each set of candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from hitdet_nni.nas.fused.function import FusedMixture
from hitdet_nni.nas.fused.save_policy import FusedMode


class MixedLayer(Protocol):
    """A mixed layer as :func:`fused_weighted_sum` needs it, e.g. ``ColumnSparseMixedLayer``."""

    active_names: list[str]

    def active_candidates(self) -> list[nn.Module]:
        """Return the modules of the candidates that are still active."""
        ...

    def probabilities(self) -> Tensor:
        """Return their weights, one a candidate: ``[len(active_names)]``."""
        ...


_MIXTURES: WeakKeyDictionary[MixedLayer, tuple[FusedMode, Sequence[str], FusedMixture]] = WeakKeyDictionary()


def forget_mixture(layer: MixedLayer) -> None:
    """Give back what a layer's mixture holds; the next sum makes another one."""
    _MIXTURES.pop(layer, None)


def fused_weighted_sum(activations: FusedMode, layer: MixedLayer, x: Tensor) -> Tensor:
    """Compute Eq. 5 for the candidates that are still active, as one operation.

    Args:
        activations: What is kept for the gradients.
        layer: The mixed layer.
        x: Its input, ``[N, C, H, W]``.

    Raises:
        InputError: As :class:`~hitdet_nni.nas.fused.function.FusedMixture` does.
    """
    made = _MIXTURES.get(layer)
    if made is None or made[0] != activations or made[1] != layer.active_names:
        modules = dict(zip(layer.active_names, layer.active_candidates(), strict=True))
        made = (activations, list(layer.active_names), FusedMixture(modules, activations))
        _MIXTURES[layer] = made
    return made[2](x, layer.probabilities())
