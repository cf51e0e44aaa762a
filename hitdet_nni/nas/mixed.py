"""The mixed layer of the supernet: a weighted sum of the candidates that are still active (Eq. 5)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from nni.nas.oneshot.pytorch.supermodule._expression_utils import weighted_sum
from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedLayer
from torch import Tensor, nn

from hitdet_nni.config.skeleton import Component
from hitdet_nni.errors import InputError
from hitdet_nni.model.searchable import ALPHA
from hitdet_nni.nas.decode import decode, log_probabilities
from hitdet_nni.nas.fused import (
    FUSED_MODES,
    FusedBlock,
    forget_mixture,
    fuse_fixed_blocks,
    fused_weighted_sum,
    unknown_candidates,
)
from hitdet_nni.nas.recompute import recomputed


class ColumnSparseMixedLayer(DifferentiableMixedLayer):  # type: ignore[misc]
    """NNI's differentiable mixed layer, from which candidates can be removed while it is searched.

    A removed candidate leaves the softmax: it has no weight, gets no gradient and is not computed. Its parameters stay
    in place, so state dicts keep their keys.

    Attributes:
        active_names: Names of the candidates still active, in the order of the parameters; numbers where the candidates
            have none.
        activations: What is kept for the gradients, a key of :data:`ACTIVATION_MODES`; see :func:`set_activations`.
        fell_back: Candidates for whose sake the layer is computed as ``all`` instead of fused.

    Args:
        paths: Candidate modules by name, or in a list; all map to outputs of one common form and shape.
        alpha: Architecture parameters, shape ``[len(paths)]``.
        softmax: Module that turns architecture parameters into weights.
        label: Label of the layer.

    Source:
        Eq. 5; the removal is section 3.2's.
    """

    active_names: list[Any]
    activations: str = "all"
    fell_back: tuple[str, ...] = ()
    _active_index: Tensor

    def __init__(
        self, paths: dict[str, nn.Module] | list[nn.Module], alpha: nn.Parameter, softmax: nn.Module, label: str
    ) -> None:
        super().__init__(paths, alpha, softmax, label)
        self._set_active(self.names)

    @property
    def alpha(self) -> nn.Parameter:
        """The architecture parameters of all candidates, removed ones included, shape ``[len(names)]``."""
        alpha: nn.Parameter = getattr(self, ALPHA)
        return alpha

    def _set_active(self, names: Iterable[Hashable]) -> None:
        self.active_names = list(names)
        index = torch.tensor([self.names.index(name) for name in names], device=self.alpha.device)
        self.register_buffer("_active_index", index, persistent=False)

    def use_weights(self, weights: nn.Module) -> None:
        """Let another module than NNI's softmax turn the active architecture parameters into weights."""
        self._softmax = weights

    def get_extra_state(self) -> list[Any]:
        """Return the names of the candidates still active, so that a checkpoint knows what has been removed."""
        return self.active_names

    def set_extra_state(self, state: list[Any]) -> None:
        """Restore the candidates still active from a checkpoint."""
        self._set_active(state)

    def active_candidates(self) -> list[nn.Module]:
        """Return the modules of the candidates still active, in the order of ``active_names``."""
        return [self[name] for name in self.active_names]

    def active_alpha(self) -> Tensor:
        """Return the architecture parameters of the candidates still active, shape ``[len(active_names)]``."""
        if len(self.active_names) == len(self.names):
            return self.alpha
        return self.alpha.index_select(0, self._active_index)

    def probabilities(self) -> Tensor:
        """Return the weights of the candidates still active, shape ``[len(active_names)]``; a softmax's sum to 1."""
        weights: Tensor = self._softmax(self.active_alpha())
        return weights

    def all_probabilities(self) -> Tensor:
        """Return the weights of all candidates, shape ``[len(names)]``; a removed one's is zero."""
        weights = self.probabilities()
        if len(self.active_names) == len(self.names):
            return weights
        return weights.new_zeros(len(self.names)).index_copy(0, self._active_index, weights)

    def distribution(self) -> Tensor:
        """Return each candidate's share of the sum of the weights, shape ``[len(names)]``; uniform if all are 0."""
        weights = self.all_probabilities()
        if isinstance(self._softmax, nn.Softmax):
            return weights
        total = weights.sum()
        return weights / total if total > 0 else torch.full_like(weights, 1 / len(weights))

    def unknown_to_the_fused_layer(self) -> tuple[str, ...]:
        """Return the names of the candidates, removed ones too, that the fused layer cannot compute."""
        return unknown_candidates({name: self[name] for name in self.names})

    def prune_to(self, names: Collection[str]) -> None:
        """Remove every candidate that is not named.

        Raises:
            ValueError: If a name is not active, or none is named.
        """
        unknown = sorted(set(names) - set(self.active_names))
        if unknown or not names:
            raise ValueError(f"{self.label}: cannot keep {unknown or 'nothing'}; active: {self.active_names}")
        self._set_active([name for name in self.names if name in names])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the weighted sum of the outputs of the candidates still active."""
        return ACTIVATION_MODES[self.activations](self, *args, **kwargs)

    def export(self, memo: Mapping[str, Any]) -> dict[str, str]:
        """Return the candidate with the largest architecture parameter, among those still active."""
        if self.label in memo:
            return {}
        alphas = dict(zip(self.active_names, self.active_alpha().tolist(), strict=True))
        return decode(log_probabilities({self.label: alphas}), {self.label: self.names})

    def export_probs(self, memo: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Return the weight of every candidate still active."""
        if self.label in memo:
            return {}
        return {self.label: dict(zip(self.active_names, self.probabilities().tolist(), strict=True))}


def scale_candidate_gradients(layers: Iterable[ColumnSparseMixedLayer]) -> None:
    """Multiply the gradients of every layer's candidates by the number of those that are active, in place.

    In Eq. 5 a candidate's weights get ``p`` times the gradient that they would get alone, and ``p`` is about one by
    that number. The gradients are what a backward pass has left, whatever the layer keeps for it.
    """
    for layer in layers:
        weights = (weight for candidate in layer.active_candidates() for weight in candidate.parameters())
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, float(len(layer.active_names)))


AUTO = "auto"
"""Lets :func:`set_activations` choose."""


def set_activations(
    module: nn.Module, mode: str | Mapping[Component, str], *, fallback: bool = False
) -> str | Mapping[Component, str]:
    """Choose what every mixed layer inside ``module`` keeps for its gradients; the values are the same.

    With a mode of the fused layer the blocks of layers that are fixed at one operator are computed by it too, those
    excepted that it does not know.

    Args:
        module: A mutated model space, its batch normalisation chosen.
        mode: A key of :data:`ACTIVATION_MODES`, one for each component, or ``"auto"``: ``fused-low`` with ``fallback``.
            Nothing is timed here: see :func:`~hitdet_nni.nas.activation_choice.choose_activations`.
        fallback: Whether a mixed layer is computed as ``all`` where the mode is fused and one of its candidates is of
            a family that the fused layer does not know.

    Returns:
        The mode chosen, or those of the components.

    Raises:
        InputError: For an unknown mode, or a fused one of a layer with a candidate that the fused layer does not know.
    """
    if not isinstance(mode, str):
        for part in list(module.modules()):
            component = getattr(part, "component", None)  # of the backbone, the neck and the heads
            if component is not None:
                _set_mode(part, mode[component], fallback)
        return mode
    if mode == AUTO:
        mode, fallback = "fused-low", True
    _set_mode(module, mode, fallback)
    return mode


def _set_mode(module: nn.Module, mode: str, fallback: bool) -> None:
    if mode not in ACTIVATION_MODES:
        raise InputError(f"got {mode!r}", key="supernet.activations", allowed=(AUTO, *ACTIVATION_MODES))
    fused = next((fused for fused in FUSED_MODES if fused == mode), None)
    layers = [part for part in module.modules() if isinstance(part, ColumnSparseMixedLayer)]
    unknown = [() if fused is None else layer.unknown_to_the_fused_layer() for layer in layers]
    for layer, names in zip(layers, unknown, strict=True):
        if names and not fallback:
            problem = f"got {mode!r}: the fused mixed layer cannot compute {', '.join(names)} of {layer.label}"
            plain = (each for each in ACTIVATION_MODES if each not in FUSED_MODES)
            raise InputError(problem, key="supernet.activations", allowed=(AUTO, *plain))
    for layer, names in zip(layers, unknown, strict=True):
        layer.activations, layer.fell_back = "all" if names else mode, names
        forget_mixture(layer)
    fuse_fixed_blocks(module, fused, ColumnSparseMixedLayer)


def forget_mixtures(module: nn.Module) -> None:
    """Give back what the fused layers of a supernet hold beside its parameters, e.g. what was recorded on a GPU."""
    for part in module.modules():
        if isinstance(part, ColumnSparseMixedLayer):
            forget_mixture(part)
        elif isinstance(part, FusedBlock):
            part.forget()


def describe_fallback(module: nn.Module) -> str | None:
    """Return which mixed layers are ``all`` instead of fused, and for which operators; ``None`` where none is."""
    layers = [part for part in module.modules() if isinstance(part, ColumnSparseMixedLayer) and part.fell_back]
    if not layers:
        return None
    names = dict.fromkeys(name for layer in layers for name in layer.fell_back)
    labels = ", ".join(layer.label for layer in layers)
    return f"all in {labels}: the fused mixed layer cannot compute {', '.join(names)}"


def _share(candidate: nn.Module, weight: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, torch.dtype | None]:
    """Compute a candidate's term of Eq. 5; return it and, of a tensor, the type of the candidate's output.

    Terms of 16-bit outputs have 32 bits: else the gradients of the weights, whose differences are what the alphas
    learn from, would be rounded to 16 bits.
    """
    output = candidate(*args, **kwargs)
    if not isinstance(output, Tensor):  # such as the output and the state of a recurrent layer
        return weighted_sum([output], [weight]), None
    if output.dtype != weight.dtype:
        weight = weight.reshape([1] * output.dim())  # a scalar would take the output's type
    return output * weight, output.dtype


def _sum_of_shares(
    share: Callable[..., tuple[Any, torch.dtype | None]], layer: ColumnSparseMixedLayer, *args: Any, **kwargs: Any
) -> Any:
    """Compute Eq. 5 term by term, so that no more than one term and the sum are held."""
    weights = layer.probabilities().unbind()
    (first, *others) = zip(layer.active_candidates(), weights, strict=True)
    total, dtype = share(*first, *args, **kwargs)
    for candidate, weight in others:
        term, other_dtype = share(candidate, weight, *args, **kwargs)
        if dtype is None or other_dtype is None:
            total = weighted_sum([total, term])
        else:
            total = total.add_(term) if term.shape == total.shape else total + term
            dtype = torch.promote_types(dtype, other_dtype)
    return total if dtype is None else total.to(dtype)


ACTIVATION_MODES: Mapping[str, Callable[..., Tensor]] = {
    "all": partial(_sum_of_shares, _share),
    "checkpoint": partial(_sum_of_shares, partial(recomputed, _share)),
    **{mode: partial(fused_weighted_sum, mode) for mode in FUSED_MODES},
}
"""How a mixed layer computes Eq. 5, by what it keeps for its gradients: called with the layer and its arguments.

``all`` keeps what autograd keeps, the activations inside all candidates; ``checkpoint`` keeps the layer's input and
computes one candidate after the other again in backward; the others are those of the fused layer (docs/fused.md).
"""
