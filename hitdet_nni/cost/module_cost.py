"""Parameters and FLOPs of any mmdet detector, counted on its modules while they run on shapes alone.

:mod:`hitdet_nni.cost.cost_model` knows our own detectors in closed form; this counter needs only a model and is
therefore how baselines are measured by the same two conventions. Whatever is built and runs is counted, used or not;
attention, and any other product of matrices, wherever it is computed.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mmcv.cnn import Scale
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d, MultiScaleDeformableAttention, SAConv2d
from mmdet.models.backbones.trident_resnet import TridentConv
from mmdet.models.necks.ssd_neck import L2Norm
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.modules.module import register_module_parameter_registration_hook

from hitdet_nni.cost.cost_model import Convention
from hitdet_nni.cost.matrix_products import products
from hitdet_nni.errors import InputError

logger = logging.getLogger(__name__)

Tensors = Sequence[Tensor]
Formula = Callable[[Any, Tensors, Tensors, Convention], int]
"""FLOPs of a module from the tensors that it was given and those that it returned."""


def _places(tensors: Tensors) -> int:
    """Return the positions of channels-first maps: images times rows times columns."""
    return sum(tensor.numel() // tensor.shape[1] for tensor in tensors)


def _elements(tensors: Tensors) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _bias(module: Any, outputs: Tensors, convention: Convention) -> int:
    has_bias = convention == "paper" and getattr(module, "bias", None) is not None
    return _elements(outputs) if has_bias else 0


def conv_flops(module: Any, inputs: Tensors, outputs: Tensors, convention: Convention) -> int:
    """Count every weight once per output position; ``paper`` adds the bias. Sampling at offsets is not counted."""
    return int(module.weight.numel()) * _places(outputs) + _bias(module, outputs, convention)


def switchable_conv_flops(module: Any, inputs: Tensors, outputs: Tensors, convention: Convention) -> int:
    """Count both convolutions between which each position chooses."""
    return 2 * int(module.weight.numel()) * _places(outputs)


def deformable_attention_flops(module: Any, inputs: Tensors, outputs: Tensors, convention: Convention) -> int:
    """Count the weighted sum of the samples, of every channel; sampling is not counted, the projections are modules."""
    return _elements(outputs) * int(module.num_levels) * int(module.num_points)


def transposed_conv_flops(module: Any, inputs: Tensors, outputs: Tensors, convention: Convention) -> int:
    """Count every weight once per input position; ``paper`` adds the bias of every output."""
    return int(module.weight.numel()) * _places(inputs) + _bias(module, outputs, convention)


def linear_flops(module: Any, inputs: Tensors, outputs: Tensors, convention: Convention) -> int:
    """Count every weight once per row; the bias is in neither convention."""
    return int(module.weight.numel()) * (_elements(inputs) // int(module.in_features))


def norm_flops(module: Any, inputs: Tensors, outputs: Tensors, convention: Convention) -> int:
    """Count 2 per output element by ``paper``."""
    return 2 * _elements(outputs) if convention == "paper" else 0


def elementwise_flops(module: Any, inputs: Tensors, outputs: Tensors, convention: Convention) -> int:
    """Count 1 per input element by ``paper``."""
    return _elements(inputs) if convention == "paper" else 0


def no_flops(module: Any, inputs: Tensors, outputs: Tensors, convention: Convention) -> int:
    """Count nothing, in both conventions."""
    return 0


FORMULAS: Mapping[type[nn.Module], Formula] = {
    nn.Conv1d: conv_flops,
    nn.Conv2d: conv_flops,
    nn.Conv3d: conv_flops,
    nn.ConvTranspose1d: transposed_conv_flops,
    nn.ConvTranspose2d: transposed_conv_flops,
    nn.ConvTranspose3d: transposed_conv_flops,
    DeformConv2d: conv_flops,
    ModulatedDeformConv2d: conv_flops,
    TridentConv: conv_flops,
    SAConv2d: switchable_conv_flops,
    MultiScaleDeformableAttention: deformable_attention_flops,
    nn.Linear: linear_flops,
    _BatchNorm: norm_flops,
    nn.ReLU: elementwise_flops,
    nn.ReLU6: elementwise_flops,
    nn.MaxPool2d: elementwise_flops,
    # The counter behind the published figures knows no normalisation but the batch's, and no scaling.
    nn.GroupNorm: no_flops,
    nn.LayerNorm: no_flops,
    L2Norm: no_flops,
    Scale: no_flops,
}
"""The formula of a module is that of the first of its classes that stands here.

What a module without one multiplies as matrices is counted where torch dispatches it.
"""


def formula_of(module: nn.Module) -> Formula | None:
    """Return the formula of a module; ``None`` where it has none: of it only products are counted."""
    return next((FORMULAS[kind] for kind in type(module).__mro__ if kind in FORMULAS), None)


def _tensors(value: object) -> list[Tensor]:
    """Return the tensors in the arguments or the result of a module, however nested."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


@dataclass
class FlopCount:
    """Counts FLOPs while modules run: those of modules by their formulas, and of products outside them.

    Attributes:
        convention: What is counted.
        flops: The sum so far.
    """

    convention: Convention
    flops: int = 0
    _idle: set[nn.Module] = field(default_factory=set)
    _formulas_at_work: int = 0

    @contextmanager
    def of(self, *modules: nn.Module) -> Iterator[FlopCount]:
        """Count what is computed in this context, where ``modules`` and all modules inside them run.

        Convolutions and matrix products are not computed, and result in zeros.
        """
        handles = []
        for module in {each for root in modules for each in root.modules()}:
            formula = formula_of(module)
            if formula is not None:
                handles.append(module.register_forward_pre_hook(self._begin))
                handles.append(module.register_forward_hook(self._hook(formula)))
                has_parameters = next(module.parameters(recurse=False), None) is not None
                if has_parameters and not isinstance(module, NonDynamicallyQuantizableLinear):
                    self._idle.add(module)  # that one's weights are multiplied by the attention around it
        try:
            with products(self._count_product):
                yield self
        finally:
            for handle in handles:
                handle.remove()
        for module in self._idle:
            logger.warning("built but not run, its FLOPs are not counted: %s", module)
        self._idle.clear()

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        self._formulas_at_work += 1

    def _count_product(self, flops: int) -> None:
        if not self._formulas_at_work:
            self.flops += flops

    def _hook(self, formula: Formula) -> Callable[[nn.Module, Any, Any], None]:
        def count(module: nn.Module, inputs: Any, outputs: Any) -> None:
            self._formulas_at_work -= 1
            self.flops += formula(module, _tensors(inputs), _tensors(outputs), self.convention)
            self._idle.discard(module)

        return count


def parameter_count(*modules: nn.Module) -> int:
    """Count the parameters of modules; those that they share count once."""
    return sum(each.numel() for each in {parameter for module in modules for parameter in module.parameters()})


def build_on_meta(model: Mapping[str, Any], source: str) -> nn.Module:
    """Build an mmdet detector for evaluation, whose parameters have shapes but no storage.

    Args:
        model: The ``model`` of an mmdet config.
        source: The file that it comes from, for errors.

    Raises:
        InputError: If mmdet cannot build it.
    """
    hook = register_module_parameter_registration_hook(_without_storage)
    try:
        with warnings.catch_warnings():
            # mmcv on NAS-FPN, whose convolutions have a bias before their normalisation.
            warnings.filterwarnings("ignore", message="Unnecessary conv bias")
            # Some constructors write into what they are given.
            detector: nn.Module = MODELS.build(ConfigDict({"_scope_": "mmdet", **copy.deepcopy(dict(model))}))
    except Exception as error:  # whatever a constructor makes of a wrong argument
        words = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"mmdet cannot build it: {words}", source=source, key="model") from error
    finally:
        hook.remove()
    detector.eval()  # returns nothing in a detector with a teacher
    return detector


def _without_storage(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
    """Replace a parameter that a module is given by one of shapes alone, before anything initialises it.

    All else that a constructor computes, such as the rates of Swin's dropped paths, has values.
    """
    return None if parameter is None else nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
