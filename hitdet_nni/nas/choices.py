"""The choices of a supernet: all of its architecture parameters, whichever of NNI's modules they belong to."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.oneshot.pytorch.supermodule.differentiable import (
    DifferentiableMixedCell,
    DifferentiableMixedInput,
    DifferentiableMixedLayer,
    DifferentiableMixedRepeat,
)
from nni.nas.oneshot.pytorch.supermodule.operation import MixedOperation
from torch import Tensor, nn

from hitdet_nni.config.skeleton import COMPONENTS, component_of
from hitdet_nni.model.searchable import ALPHA
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer

NOT_CHOSEN = "none"
"""What the last architecture parameter of a cell's edge stands for."""


class Choice:
    """A vector of architecture parameters, and what its entries stand for.

    Args:
        label: NNI's label; what has the same label shares the parameters.
        alpha: The parameters, shape ``[N]``.
        options: What they stand for, N values.
        softmax: Turns them into weights.
        is_value: Whether NNI's sample takes one of the options under this label. What cells and input choices sample
            follows from several vectors, or is several options.
        columns: The options that are operators: columns of the matrix of Eq. 4, if there are any. They come first.
        kinds: What tells operators apart that have no names: their types and those of the modules inside them.
    """

    def __init__(
        self,
        label: str,
        alpha: nn.Parameter,
        options: Sequence[Hashable],
        softmax: nn.Module,
        *,
        is_value: bool,
        columns: Sequence[Hashable] = (),
        kinds: Sequence[Hashable] = (),
    ) -> None:
        self.label = label
        self.alpha = alpha
        self.options = tuple(options)
        self.is_value = is_value
        self.columns = tuple(columns)
        self.kinds = tuple(kinds)
        self._softmax = softmax
        self.layers: list[ColumnSparseMixedLayer] = []

    def active_options(self) -> tuple[Hashable, ...]:
        """Return the options that have not been removed."""
        return tuple(self.layers[0].active_names) if self.layers else self.options

    @property
    def removable(self) -> bool:
        """Whether options can be removed: candidates of layers can."""
        return bool(self.layers)

    def active_alpha(self) -> Tensor:
        """Return the parameters of the options that have not been removed, shape ``[len(active_options())]``."""
        return self.layers[0].active_alpha() if self.layers else self.alpha.flatten()

    def alphas(self) -> dict[Any, float]:
        """Return the parameter of each option that has not been removed."""
        return dict(zip(self.active_options(), self.active_alpha().tolist(), strict=True))

    def active_columns(self) -> tuple[Hashable, ...]:
        """Return the operators that have not been removed; they come first among the active options."""
        return self.active_options()[: len(self.columns)]

    def active_row(self) -> Tensor:
        """Return the parameters of :meth:`active_columns`, shape ``[len(active_columns())]``."""
        return self.active_alpha()[: len(self.columns)]

    def active_probabilities(self) -> Tensor:
        """Return the weights of :meth:`active_options`, shape ``[len(active_options())]``.

        They sum to 1, but with positive gates only as they start.
        """
        weights: Tensor = self.layers[0].probabilities() if self.layers else self._softmax(self.alpha.flatten())
        return weights

    def probabilities(self) -> Tensor:
        """Return the weights of all options, shape ``[N]``; a removed one's is zero."""
        return self.layers[0].all_probabilities() if self.layers else self.active_probabilities()


@dataclass(frozen=True)
class ColumnGroup:
    """Choices among the same operators: the rows of one matrix of Eq. 4.

    Attributes:
        title: The component's name; outside of our detectors the label of the first choice.
        choices: One a row, in label order.
    """

    title: str
    choices: tuple[Choice, ...]

    @property
    def removable(self) -> bool:
        """Whether operators can be removed: those of layers, not those of cells."""
        return self.choices[0].removable

    def rows(self) -> list[Tensor]:
        """Return the parameters of the active operators of each choice, shape ``[N]``, all in one order."""
        order = self.choices[0].active_columns()
        return [_in_order(choice, order) for choice in self.choices]

    def layers(self) -> list[ColumnSparseMixedLayer]:
        """Return the layers of the group, those that share a label included."""
        return [layer for choice in self.choices for layer in choice.layers]


def find_choices(model: nn.Module) -> OrderedDict[str, Choice]:
    """Find all choices of a supernet of NNI's differentiable modules, in label order.

    Args:
        model: The supernet.

    Raises:
        ValueError: If two modules have different parameters under one label.
    """
    found: dict[str, Choice] = {}
    supernet = {name: module for name, module in model.named_modules() if isinstance(module, BaseSuperNetModule)}
    seen: set[int] = set()
    for name, module in supernet.items():
        for choice in _choices_of(name, module):
            if choice.label not in found and id(choice.alpha) in seen:
                continue  # modules of the user's own that share a parameter
            known = found.setdefault(choice.label, choice)
            seen.add(id(choice.alpha))
            if known.alpha is not choice.alpha:
                raise ValueError(f"{choice.label}: {type(module).__name__} {name} has parameters of its own")
            if isinstance(module, ColumnSparseMixedLayer):
                known.layers.append(module)
    return OrderedDict(sorted(found.items()))


def group_columns(choices: Iterable[Choice]) -> list[ColumnGroup]:
    """Group the choices that have columns, in label order.

    Choices form one matrix where their operators have the same names, or where they have none and are modules of the
    same types, inner modules included, in the same order; in our detectors only within a component. Layers and the
    edges of cells are apart, because operators can be removed from layers only.
    """
    groups: dict[Hashable, list[Choice]] = {}
    for choice in choices:
        if choice.columns:
            key = (_component(choice.label), frozenset(choice.columns), choice.kinds, choice.removable)
            groups.setdefault(key, []).append(choice)
    components = Counter(_component(rows[0].label) for rows in groups.values())

    def title(label: str) -> str:
        component = _component(label)
        return component if component is not None and components[component] == 1 else label

    return [ColumnGroup(title(rows[0].label), tuple(rows)) for rows in groups.values()]


def _in_order(choice: Choice, order: Sequence[Hashable]) -> Tensor:
    """Return the parameters of a choice's active operators in a given order."""
    own = choice.active_columns()
    if own == order:
        return choice.active_row()
    return choice.active_row()[[own.index(option) for option in order]]


def _component(label: str) -> str | None:
    component = component_of(label)
    return component if component in COMPONENTS else None


def _choices_of(name: str, module: BaseSuperNetModule) -> Iterator[Choice]:
    """Yield the choices of one module, not of those inside it."""
    softmax = getattr(module, "_softmax", nn.Softmax(-1))
    alphas: Any = getattr(module, ALPHA, None)  # one vector, or several by label
    if isinstance(module, DifferentiableMixedLayer):
        named = not isinstance(module.names[0], int)
        inside = () if named else (module[option].modules() for option in module.names)
        kinds = [tuple(type(part) for part in parts) for parts in inside]
        yield Choice(module.label, alphas, module.names, softmax, is_value=True, columns=module.names, kinds=kinds)
    elif isinstance(module, DifferentiableMixedInput):
        yield Choice(module.label, alphas, range(module.n_candidates), softmax, is_value=False)
    elif isinstance(module, DifferentiableMixedCell):
        operators = module.op_names
        for label, alpha in alphas.items():
            options = (*operators, NOT_CHOSEN)[: len(alpha)]
            # A choice of operators inside the cell may have the label of the edge.
            yield Choice(f"{label}/in_cell", alpha, options, softmax, is_value=False, columns=operators)
    elif isinstance(module, (DifferentiableMixedRepeat, MixedOperation)):
        mutable = module.depth_choice if isinstance(module, DifferentiableMixedRepeat) else module
        values = mutable.simplify()
        for label, alpha in alphas.items():
            yield Choice(label, alpha, values[label].values, softmax, is_value=True)
    elif hasattr(module, "arch_parameters"):
        parameters: Iterable[nn.Parameter] = module.arch_parameters()  # of a module that the user brings
        for index, alpha in enumerate(parameters):
            yield Choice(f"{name}/{index}", alpha, range(alpha.numel()), softmax, is_value=False)
