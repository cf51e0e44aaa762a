"""ColumnSparseDARTS: NNI's DARTS with the architecture losses of Eq. 4 (screening) and Eq. 6 (trinity search)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from nni.nas.oneshot.pytorch.differentiable import DartsLightningModule
from nni.nas.strategy import DARTS
from torch import Tensor, nn

from hitdet_nni.config.skeleton import component_of
from hitdet_nni.engine import distributed
from hitdet_nni.engine.precision import Precision
from hitdet_nni.search.cost_term import NO_COST, CostTerm
from hitdet_nni.search.decode import log_probabilities
from hitdet_nni.search.health.stats import GradientNorms
from hitdet_nni.search.mixed import ColumnSparseMixedLayer, active_alphas
from hitdet_nni.search.regularizers import column_sparsity, group_by_component

RankBy = Literal["probability", "norm"]


@dataclass(frozen=True)
class AlphaOptimizer:
    """Adam's settings for the architecture parameters.

    The learning rate is section 4.2's; the betas are DARTS'; neither Eq. 4 nor Eq. 6 has a decay term.
    """

    lr: float = 4e-4
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 0.0


@dataclass(frozen=True)
class PruningSchedule:
    """How many operators screening leaves active, and by what it ranks them.

    Attributes:
        keep: Operators left of each component at the end (N_b, N_n, N_h).
        rank_by: ``"probability"`` sums the softmax probability over a component's layers; ``"norm"`` is the column
            norm of Eq. 4, which also ranks a column of very negative parameters high.
    """

    keep: Mapping[str, int]
    rank_by: RankBy = "probability"

    def remaining(self, component: str, start: int, epoch: int, warmup_epochs: int, epochs: int) -> int:
        """Return the operators left at the end of an epoch: constant in warm-up, then an even descent to ``keep``.

        Args:
            component: The component screened.
            start: Operators at the outset.
            epoch: The epoch that ends, from 0.
            warmup_epochs: Epochs before the architecture parameters move.
            epochs: Epochs in all.
        """
        keep = min(self.keep[component], start)
        progress = max(0, epoch + 1 - warmup_epochs) / (epochs - warmup_epochs)
        return start - math.floor((start - keep) * min(1.0, progress) + 1e-9)


class ColumnSparseLightningModule(DartsLightningModule):  # type: ignore[misc]
    """The training step of :class:`ColumnSparseDARTS`: alphas on one batch, weights on another, alternating.

    Each phase computes gradients only of what it trains; warm-up epochs have no architecture phase at all.

    Args:
        training_module: The evaluator's Lightning module: gives the detection loss and the weights' optimiser.
        sparsity_weight: mu of Eq. 4.
        cost: The cost term of Eq. 6, which also decides the operators.
        alpha_optimizer: Adam's settings.
        pruning: Operators to remove while screening; ``None`` keeps all.
        warmup_epochs: Epochs before the architecture parameters move.
        gradient_clip_val: Largest norm of the weights' gradient, or ``None``.
        precision: What losses and gradients are computed in.

    Attributes:
        gradient_norms: Takes the gradients of the architecture parameters.
    """

    def __init__(
        self,
        training_module: Any,
        *,
        sparsity_weight: float,
        cost: CostTerm,
        alpha_optimizer: AlphaOptimizer,
        pruning: PruningSchedule | None,
        warmup_epochs: int,
        gradient_clip_val: float | None,
        precision: Precision,
    ) -> None:
        super().__init__(
            training_module,
            arc_learning_rate=alpha_optimizer.lr,
            warmup_epochs=warmup_epochs,
            gradient_clip_val=gradient_clip_val,
        )
        self.sparsity_weight = sparsity_weight
        self.cost = cost
        self.alpha_optimizer = alpha_optimizer
        self.pruning = pruning
        self.precision = precision
        self.gradient_norms = GradientNorms()
        self._mixed_layers: OrderedDict[str, ColumnSparseMixedLayer] | None = None
        self._parameter_list: list[nn.Parameter] | None = None

    def mixed_layers(self) -> OrderedDict[str, ColumnSparseMixedLayer]:
        """Return the mixed layers by label, in label order; looked for once among the thousands of modules."""
        if self._mixed_layers is None:
            layers = (module for module in self.supernet_modules() if isinstance(module, ColumnSparseMixedLayer))
            self._mixed_layers = OrderedDict(sorted((layer.label, layer) for layer in layers))
        return self._mixed_layers

    def probabilities(self) -> dict[str, Tensor]:
        """Return the weights ``[N]`` of each layer's candidates by label, 0 if removed; gradients reach the alphas."""
        return {label: layer.all_probabilities() for label, layer in self.mixed_layers().items()}

    def alphas(self) -> dict[str, dict[str, float]]:
        """Return the architecture parameter of every active candidate, by label."""
        return {label: active_alphas(layer) for label, layer in self.mixed_layers().items()}

    def decode(self, candidates: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """Decide one operator for each layer, as the cost term does.

        Args:
            candidates: Names of all candidates of each layer to decide, by label; those of all mixed layers at least.

        Raises:
            InputError: If no architecture that is left is within the budget.
        """
        return self.cost.decode(log_probabilities(self.alphas()), candidates)

    def export(self) -> dict[str, str]:
        """Return the operator of each mixed layer for NNI, which knows no others."""
        return self.decode({label: layer.names for label, layer in self.mixed_layers().items()})

    def regularization(self) -> Tensor:
        """Return what the architecture loss adds to the validation loss.

        Returns:
            ``mu * sum_i sqrt(sum_l alpha_{l,i}^2)`` over each component (Eq. 4) plus the cost term (Eq. 6), a scalar.
        """
        total = torch.zeros((), device=self.arch_parameters()[0].device)
        if self.sparsity_weight:
            alphas = {label: layer.active_alpha() for label, layer in self.mixed_layers().items()}
            for rows in group_by_component(alphas).values():
                total = total + self.sparsity_weight * column_sparsity(rows)
        if self.cost.weight:
            total = total + self.cost.loss(self.probabilities())
        return total

    def arch_parameters(self) -> list[nn.Parameter]:
        """Return the architecture parameters in label order (NNI's own order changes from process to process)."""
        return [layer.alpha for layer in self.mixed_layers().values()]

    def configure_architecture_optimizers(self) -> torch.optim.Optimizer:
        """Build Adam over all architecture parameters.

        Raises:
            ValueError: If the space has none.
        """
        parameters = self.arch_parameters()
        if not parameters:
            raise ValueError("the model space has no LayerChoice: nothing to search")
        settings = self.alpha_optimizer
        return torch.optim.Adam(parameters, settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)

    @property
    def searching(self) -> bool:
        """Whether warm-up is over, so that the architecture parameters move."""
        return bool(self.trainer.current_epoch >= self.warmup_epochs)

    @contextmanager
    def _training_only(self, alphas: bool) -> Iterator[None]:
        """Let either the alphas or the weights require gradients within the context, never both."""
        architecture = {id(parameter) for parameter in self.arch_parameters()}
        if self._parameter_list is None:
            self._parameter_list = list(self.parameters())
        frozen = [
            parameter
            for parameter in self._parameter_list
            if parameter.requires_grad and (id(parameter) in architecture) is not alphas
        ]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_()

    def on_train_start(self) -> None:
        """Let all processes start from the same parameters."""
        super().on_train_start()
        distributed.broadcast_state(self)

    def on_train_epoch_start(self) -> None:
        """Leave ``requires_grad`` to the phases, unlike NNI, which switches it here."""
        self.training_module.on_train_epoch_start()

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Any:
        """Take one step of first-order DARTS (section 3.4).

        Args:
            batch: ``"train"`` feeds the weights, ``"val"`` the architecture parameters.
            batch_idx: Number of the step in its epoch.

        Returns:
            What the evaluator's training step returned for the weights' batch.
        """
        weights, alphas = self.optimizers()
        if self.searching:
            self.cost.step(self.probabilities())
            self._phase(alphas, batch["val"], 2 * batch_idx, searching=True)
        output = self._phase(weights, batch["train"], 2 * batch_idx + 1, searching=False)
        self.advance_lr_schedulers(batch_idx)
        return output

    def _phase(self, optimizer: Any, batch: Any, batch_idx: int, *, searching: bool) -> Any:
        """Take a step of one optimiser; processes average its gradients, and nothing else is exchanged."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        with self._training_only(alphas=searching):
            with self.precision.autocast():
                output = self.training_module.training_step(batch, batch_idx)
            loss = output["loss"] if isinstance(output, dict) else output
            self.precision.backward(loss + self.regularization() if searching else loss, self.manual_backward)
            distributed.average_gradients(parameters)
            if searching:
                gradients = ((label, layer.alpha.grad) for label, layer in self.mixed_layers().items())
                found = {label: gradient for label, gradient in gradients if gradient is not None}
                self.gradient_norms.add(found, self.precision.scaler.get_scale())
            self.precision.step(optimizer, parameters, None if searching else self.gradient_clip_val)
            optimizer.zero_grad()  # the other phase is not to hold this one's gradients
        return output

    def on_train_epoch_end(self) -> None:
        """Remove the operators that the schedule gives up at the end of this epoch."""
        self.training_module.on_train_epoch_end()
        distributed.require_equal(self.arch_parameters(), "the architecture parameters")
        if self.pruning is not None:
            self.remove_lowest(self.pruning, self.trainer.current_epoch, self.trainer.max_epochs)

    def scores(self, rank_by: RankBy = "probability") -> dict[str, dict[str, float]]:
        """Return the score of each active operator, by component; the larger, the better."""
        columns: dict[str, dict[str, list[Tensor]]] = {}
        for label, layer in self.mixed_layers().items():
            values = layer.probabilities() if rank_by == "probability" else layer.active_alpha()
            component = columns.setdefault(component_of(label), {})
            for name, value in zip(layer.active_names, values.detach(), strict=True):
                component.setdefault(name, []).append(value)

        def score(values: list[Tensor]) -> float:
            column = torch.stack(values)
            return float(column.sum() if rank_by == "probability" else torch.linalg.vector_norm(column))

        return {
            component: {name: score(values) for name, values in column.items()} for component, column in columns.items()
        }

    def remove_lowest(self, pruning: PruningSchedule, epoch: int, epochs: int) -> None:
        """Remove the lowest-ranked operators of each component down to the number that the schedule states.

        Source:
            Section 3.2: "the last several candidates will be removed from search space gradually".
        """
        for component, scores in self.scores(pruning.rank_by).items():
            layers = [layer for label, layer in self.mixed_layers().items() if component_of(label) == component]
            start = len(layers[0].names)
            remaining = pruning.remaining(component, start, epoch, self.warmup_epochs, epochs)
            ranked = sorted(scores, key=lambda name: scores[name], reverse=True)
            kept = distributed.broadcast_object(ranked[:remaining])
            if len(kept) < len(ranked):
                for layer in layers:
                    layer.prune_to(kept)


class ColumnSparseDARTS(DARTS):  # type: ignore[misc]
    """First-order DARTS whose architecture loss has the column-sparse and a cost term.

    Works where NNI's DARTS works: ``NasExperiment(space, evaluator, ColumnSparseDARTS(...)).run()``.

    Args:
        sparsity_weight: mu of Eq. 4 (0.1 in the paper's screening, 0 in its search).
        cost: What the search does about the detector's cost, in its loss and when it decides the operators:
            :class:`~hitdet_nni.search.cost_term.WeightedCost` (Eq. 6 with a fixed lambda),
            :class:`~hitdet_nni.search.cost_term.BudgetedCost`, or by default nothing.
        alpha_optimizer: Adam's settings for the architecture parameters.
        pruning: Operators to remove while screening; ``None`` keeps all.
        warmup_epochs: Epochs before the architecture parameters move (6 of 12 in the paper).
        gradient_clip_val: Largest norm of the weights' gradient, or ``None``.
        precision: What losses and gradients are computed in; float32 by default.
        kwargs: Arguments of NNI's ``OneShotStrategy``.

    Raises:
        ValueError: If ``sparsity_weight`` is negative.

    Source:
        Sections 3.2 to 3.4.
    """

    def __init__(
        self,
        *,
        sparsity_weight: float = 0.0,
        cost: CostTerm = NO_COST,
        alpha_optimizer: AlphaOptimizer = AlphaOptimizer(),
        pruning: PruningSchedule | None = None,
        warmup_epochs: int = 0,
        gradient_clip_val: float | None = None,
        precision: Precision | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            arc_learning_rate=alpha_optimizer.lr,
            warmup_epochs=warmup_epochs,
            gradient_clip_val=gradient_clip_val,
            **kwargs,
        )
        if sparsity_weight < 0:
            raise ValueError(f"sparsity_weight must not be negative, got {sparsity_weight}")
        self.sparsity_weight = sparsity_weight
        self.cost = cost
        self.alpha_optimizer = alpha_optimizer
        self.pruning = pruning
        self.precision = precision or Precision("fp32", distributed.device())

    def configure_oneshot_module(self, training_module: Any) -> ColumnSparseLightningModule:
        """Wrap the evaluator's Lightning module."""
        return ColumnSparseLightningModule(
            training_module,
            sparsity_weight=self.sparsity_weight,
            cost=self.cost,
            alpha_optimizer=self.alpha_optimizer,
            pruning=self.pruning,
            warmup_epochs=self.warmup_epochs,
            gradient_clip_val=self.gradient_clip_val,
            precision=self.precision,
        )

    def default_mutation_hooks(self) -> list[Any]:
        """Put our mixed layer before NNI's."""
        return [ColumnSparseMixedLayer.mutate, *super().default_mutation_hooks()]
