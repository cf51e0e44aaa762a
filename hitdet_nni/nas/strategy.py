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

from hitdet_nni.config.screening_settings import Gates
from hitdet_nni.engine import distributed
from hitdet_nni.engine.precision import Precision
from hitdet_nni.errors import InputError
from hitdet_nni.nas.choices import Choice, ColumnGroup, find_choices, group_columns
from hitdet_nni.nas.cost_term import NO_COST, CostTerm
from hitdet_nni.nas.decode import log_probabilities
from hitdet_nni.nas.gates import open_gates, shrink_columns
from hitdet_nni.nas.health.stats import GradientNorms
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer, scale_candidate_gradients
from hitdet_nni.nas.one_shot_checks import check_evaluator, refuse_penalty
from hitdet_nni.nas.pruning import (
    PruningSchedule,
    RankBy,
    check_epochs,
    check_removal,
    operator_scores,
    remove_lowest,
)
from hitdet_nni.nas.regularizers import column_sparsity

CandidateGradients = Literal["weighted", "full"]
"""What the candidates' own weights learn from: gradients of the weighted sum, or those times the active candidates."""


@dataclass(frozen=True)
class AlphaOptimizer:
    """Adam's settings for the architecture parameters.

    The learning rate is section 4.2's; the betas are DARTS'; neither Eq. 4 nor Eq. 6 has a decay term.
    """

    lr: float = 4e-4
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 0.0


class ColumnSparseLightningModule(DartsLightningModule):  # type: ignore[misc]
    """The training step of :class:`ColumnSparseDARTS`: alphas on one batch, weights on another, alternating.

    Each phase computes gradients only of what it trains; warm-up epochs have no architecture phase at all.

    Args:
        training_module: The evaluator's Lightning module: gives the detection loss and the weights' optimiser.
        sparsity_weight: mu of Eq. 4.
        cost: The cost term of Eq. 6, which also decides the operators.
        alpha_optimizer: Adam's settings.
        pruning: Operators to remove while screening; ``None`` keeps all.
        warmup_epochs: Epochs before the architecture parameters move, perhaps infinite.
        gradient_clip_val: Largest norm of the weights' gradient, or ``None``.
        precision: What losses and gradients are computed in.
        candidate_gradients: What the weights of candidates learn from.
        gates: What turns architecture parameters into weights; with ``"positive"`` Eq. 4 is a proximal step.
        log_prob_every_n_step: Steps between two logs of the probabilities, where there is a logger.

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
        warmup_epochs: float,
        gradient_clip_val: float | None,
        precision: Precision,
        candidate_gradients: CandidateGradients = "weighted",
        gates: Gates = "softmax",
        log_prob_every_n_step: int = 10,
    ) -> None:
        super().__init__(
            training_module,
            arc_learning_rate=alpha_optimizer.lr,
            warmup_epochs=warmup_epochs,
            gradient_clip_val=gradient_clip_val,
            log_prob_every_n_step=log_prob_every_n_step,
        )
        self.sparsity_weight = sparsity_weight
        self.cost = cost
        self.alpha_optimizer = alpha_optimizer
        self.pruning = pruning
        self.precision = precision
        self.candidate_gradients = candidate_gradients
        self.gates = gates
        self.gradient_norms = GradientNorms()
        self._choices: OrderedDict[str, Choice] | None = None
        self._parameter_list: list[nn.Parameter] | None = None

    def choices(self) -> OrderedDict[str, Choice]:
        """Return what the supernet decides, by label, in label order; looked for once, among thousands of modules."""
        if self._choices is None:
            self._choices = find_choices(self.model)
        return self._choices

    def mixed_layers(self) -> OrderedDict[str, ColumnSparseMixedLayer]:
        """Return the mixed layers by label, in label order; of those that share a label the first."""
        return OrderedDict((label, choice.layers[0]) for label, choice in self.choices().items() if choice.layers)

    def column_groups(self) -> list[ColumnGroup]:
        """Return the matrices of Eq. 4: one a component in a detector space."""
        return group_columns(self.choices().values())

    def probabilities(self) -> dict[str, Tensor]:
        """Return the weights ``[N]`` of each choice's options by label, 0 if removed; gradients reach the alphas."""
        return {label: choice.probabilities() for label, choice in self.choices().items()}

    def alphas(self) -> dict[str, dict[Any, float]]:
        """Return the architecture parameter of every active option (candidate, in a layer), by label."""
        return {label: choice.alphas() for label, choice in self.choices().items()}

    def decode(self, candidates: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Decide one option for each layer and each value, as the cost term does.

        Args:
            candidates: All options of every choice of which a sample has one, by label; labels that are no choice,
                because they have a single option, may be among them.

        Raises:
            InputError: If no architecture that is left is within the budget.
        """
        alphas = {label: choice.alphas() for label, choice in self.choices().items() if choice.is_value}
        return self.cost.decode(log_probabilities(alphas), candidates)

    def export(self) -> dict[str, Any]:
        """Return a sample of the space for NNI: what the cost term decides, and what NNI makes of cells and inputs."""
        sample = self.decode({label: choice.options for label, choice in self.choices().items() if choice.is_value})
        for module in self.supernet_modules():
            sample.update(module.export(memo=sample))
        return sample

    def regularization(self) -> Tensor:
        """Return what the architecture loss adds to the validation loss.

        Returns:
            ``mu * sum_i sqrt(sum_l alpha_{l,i}^2)`` over each component (Eq. 4) plus the cost term (Eq. 6), a scalar.
            In other spaces layers with the same candidates take the place of a component. With positive gates the
            first term is not here but in the step.
        """
        total = torch.zeros((), device=self.arch_parameters()[0].device)
        if self.sparsity_weight and self.gates == "softmax":
            for group in self.column_groups():
                total = total + self.sparsity_weight * column_sparsity(group.rows())
        if self.cost.weight:
            total = total + self.cost.loss(self.probabilities())
        return total

    def arch_parameters(self) -> list[nn.Parameter]:
        """Return the architecture parameters in label order (NNI's own order changes from process to process)."""
        return [choice.alpha for choice in self.choices().values()]

    def configure_architecture_optimizers(self) -> torch.optim.Optimizer:
        """Build Adam over all architecture parameters.

        Raises:
            InputError: If the space has none, nothing that the column-sparse term or the removal can be applied to, or
                the cost is of another space.
        """
        source, groups = "ColumnSparseDARTS", self.column_groups()
        if not self.choices():
            raise InputError("the model space has nothing to search", source=source, allowed="LayerChoice and its kin")
        if self.sparsity_weight and not groups:
            problem = "no choice of the model space is one among operators, which the column-sparse term is about"
            raise InputError(problem, source=source, key="sparsity_weight", allowed="0")
        self.cost.check({label: choice.options for label, choice in self.choices().items() if choice.is_value})
        if self.pruning is not None:
            check_removal(self.pruning, list(self.choices().values()), groups)
        settings = self.alpha_optimizer
        return torch.optim.Adam(
            self.arch_parameters(), settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )

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
        """Let all processes start from the same parameters.

        Raises:
            InputError: If the evaluator or the trainer asks for what the strategy does not do, or several processes
                were launched that do not know of each other.
        """
        super().on_train_start()
        check_evaluator(self.training_module, self.optimizers())
        if self.pruning is not None or math.isfinite(self.warmup_epochs):
            check_epochs(self.warmup_epochs, self.trainer.max_epochs, removes=self.pruning is not None)
        if distributed.launched() and distributed.world_size() == 1 and self.trainer.world_size == 1:
            problem = "several processes were launched, and each would search a supernet of its own"
            allowed = "hitdet_nni.engine.distributed.init() first, or a strategy of Lightning's trainer, as ddp"
            raise InputError(problem, source="ColumnSparseDARTS", allowed=allowed)
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
        if self.trainer.loggers and batch_idx % self.log_prob_every_n_step == 0:
            self.log_probs(self.export_probs())
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
                gradients = ((label, choice.alpha.grad) for label, choice in self.choices().items())
                found = {label: gradient for label, gradient in gradients if gradient is not None}
                self.gradient_norms.add(found, self.precision.scaler.get_scale())
            elif self.candidate_gradients == "full":
                scale_candidate_gradients(layer for choice in self.choices().values() for layer in choice.layers)
            stepped = self.precision.step(optimizer, parameters, None if searching else self.gradient_clip_val)
            if stepped and searching and self.gates == "positive":
                shrink_columns(self.column_groups(), self.alpha_optimizer.lr * self.sparsity_weight)
            optimizer.zero_grad()  # the other phase is not to hold this one's gradients
        return output

    def on_train_epoch_end(self) -> None:
        """Remove the operators that the schedule gives up at the end of this epoch."""
        self.training_module.on_train_epoch_end()
        distributed.require_equal(self.arch_parameters(), "the architecture parameters")
        if self.pruning is not None:
            epoch, epochs = self.trainer.current_epoch, self.trainer.max_epochs
            remove_lowest(self.column_groups(), self.pruning, epoch, self.warmup_epochs, epochs)

    def scores(self) -> dict[str, dict[Any, float]]:
        """Return the score of each active operator, by component or other group; the larger, the better.

        Scores are what operators are removed by: ``pruning.rank_by``, or without a removal the weights.
        """
        rank_by: RankBy = "probability" if self.pruning is None else self.pruning.rank_by
        return {group.title: operator_scores(group, rank_by) for group in self.column_groups()}


class ColumnSparseDARTS(DARTS):  # type: ignore[misc]
    """First-order DARTS whose architecture loss has the column-sparse and a cost term.

    Works where NNI's DARTS works: ``NasExperiment(space, evaluator, ColumnSparseDARTS(...)).run()``.

    Args:
        sparsity_weight: mu of Eq. 4 (0.1 in the paper's screening, 0 in its search).
        cost: What the search does about the detector's cost, in its loss and when it decides the operators:
            :class:`~hitdet_nni.nas.cost_term.WeightedCost` (Eq. 6 with a fixed lambda),
            :class:`~hitdet_nni.nas.cost_term.BudgetedCost`, or by default nothing.
        alpha_optimizer: Adam's settings for the architecture parameters.
        pruning: Operators to remove while screening; ``None`` keeps all.
        warmup_epochs: Epochs before the architecture parameters move (6 of 12 in the paper); infinite where they never
            do.
        gradient_clip_val: Largest norm of the weights' gradient, or ``None``.
        precision: What losses and gradients are computed in; float32 by default.
        candidate_gradients: What the weights of a layer's N active candidates learn from: ``"weighted"``, what Eq. 5
            gives each, about 1/N of what it would get alone, or ``"full"``, N times that. The norm that
            ``gradient_clip_val`` limits is then that of the multiplied gradients.
        gates: What turns the architecture parameters of layers into weights: ``"softmax"``, or ``"positive"``, the
            parameters themselves, which then start at 1 and which the term of Eq. 4 shrinks by a proximal step after
            each step of Adam, of the learning rate times ``sparsity_weight``.
        log_prob_every_n_step: Steps between two logs of the probabilities, where the evaluator's trainer has a logger.
        kwargs: Arguments of NNI's ``OneShotStrategy``.

    Raises:
        ValueError: If ``sparsity_weight`` or ``warmup_epochs`` is negative.
        InputError: If ``cost`` is no cost term, or there is a ``penalty``: NNI's gives the architecture parameters no
            gradient.

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
        warmup_epochs: float = 0,
        gradient_clip_val: float | None = None,
        precision: Precision | None = None,
        candidate_gradients: CandidateGradients = "weighted",
        gates: Gates = "softmax",
        log_prob_every_n_step: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            arc_learning_rate=alpha_optimizer.lr,
            warmup_epochs=warmup_epochs,
            gradient_clip_val=gradient_clip_val,
            log_prob_every_n_step=log_prob_every_n_step,
            **kwargs,
        )
        if self.penalty is not None:
            refuse_penalty("ColumnSparseDARTS")
        if sparsity_weight < 0:
            raise ValueError(f"sparsity_weight must not be negative, got {sparsity_weight}")
        if warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must not be negative, got {warmup_epochs}")
        given: object = cost
        if not isinstance(given, CostTerm):
            allowed = "WeightedCost, BudgetedCost, NO_COST or a CostTerm of your own"
            raise InputError(f"got {given!r}", source="ColumnSparseDARTS", key="cost", allowed=allowed)
        self.sparsity_weight = sparsity_weight
        self.cost = cost
        self.alpha_optimizer = alpha_optimizer
        self.pruning = pruning
        self.precision = precision or Precision("fp32", distributed.device())
        self.candidate_gradients = candidate_gradients
        self.gates = gates

    def mutate_model(self, model: Any) -> Any:
        """Turn a model space into a supernet, as NNI does; with positive gates all of them are then 1.

        Raises:
            InputError: If nothing of the space has gates.
        """
        mutated = super().mutate_model(model)
        if self.gates == "positive":
            open_gates(model)
        return mutated

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
            candidate_gradients=self.candidate_gradients,
            gates=self.gates,
            log_prob_every_n_step=self.log_prob_every_n_step,
        )

    def default_mutation_hooks(self) -> list[Any]:
        """Put our mixed layer before NNI's."""
        return [ColumnSparseMixedLayer.mutate, *super().default_mutation_hooks()]
