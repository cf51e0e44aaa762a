"""Parameters and FLOPs of any mmdet detector, counted on its modules while they run on shapes alone.

:mod:`hitdet_nni.cost.cost_model` knows our own detectors in closed form; this counter needs only a model and is
therefore how baselines are measured by the same two conventions. Whatever is built and runs is counted, used or not.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from mmcv.cnn import Scale
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from mmdet.models.backbones.trident_resnet import TridentConv
from mmdet.models.necks.ssd_neck import L2Norm
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hitdet_nni.cost.cost_model import PARTS, Convention, Cost, Size
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
"""The formula of a module is that of the first of its classes that stands here."""


def formula_of(module: nn.Module) -> Formula | None:
    """Return the formula of a module; ``None`` where it has none and needs none, having no parameters of its own.

    Raises:
        InputError: If the module has parameters of its own and no formula, naming its type.
    """
    for kind in type(module).__mro__:
        if kind in FORMULAS:
            return FORMULAS[kind]
    if next(module.parameters(recurse=False), None) is not None:
        allowed = sorted(kind.__name__.removeprefix("_") for kind in FORMULAS)
        raise InputError(f"no formula for the FLOPs of {type(module).__name__}", allowed=allowed)
    return None


def _tensors(value: object) -> list[Tensor]:
    """Return the tensors in the arguments or the result of a module, however nested."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


@dataclass
class FlopCount:
    """Counts FLOPs while modules run.

    Attributes:
        convention: What is counted.
        flops: The sum so far.
    """

    convention: Convention
    flops: int = 0
    _idle: set[nn.Module] = field(default_factory=set)

    @contextmanager
    def of(self, *modules: nn.Module) -> Iterator[FlopCount]:
        """Count what ``modules`` and all modules inside them compute in this context.

        Raises:
            InputError: If one of them has parameters and no formula.
        """
        handles = []
        for module in {each for root in modules for each in root.modules()}:
            formula = formula_of(module)
            if formula is not None:
                handles.append(module.register_forward_hook(self._hook(formula)))
                if next(module.parameters(recurse=False), None) is not None:
                    self._idle.add(module)
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
        for module in self._idle:
            logger.warning("built but not run, its FLOPs are not counted: %s", module)
        self._idle.clear()

    def _hook(self, formula: Formula) -> Callable[[nn.Module, Any, Any], None]:
        def count(module: nn.Module, inputs: Any, outputs: Any) -> None:
            self.flops += formula(module, _tensors(inputs), _tensors(outputs), self.convention)
            self._idle.discard(module)

        return count


def parameter_count(*modules: nn.Module) -> int:
    """Count the parameters of modules; those that they share count once."""
    return sum(each.numel() for each in {parameter for module in modules for parameter in module.parameters()})


def build_on_meta(model: Mapping[str, Any], source: str) -> nn.Module:
    """Build an mmdet detector for evaluation, with shapes but no storage.

    Args:
        model: The ``model`` of an mmdet config.
        source: The file that it comes from, for errors.

    Raises:
        InputError: If mmdet cannot build it.
    """
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # mmcv on NAS-FPN, whose convolutions have a bias before their normalisation.
            warnings.filterwarnings("ignore", message="Unnecessary conv bias")
            detector: nn.Module = MODELS.build(ConfigDict(model))
    except Exception as error:  # whatever a constructor makes of a wrong argument
        raise InputError(f"mmdet cannot build it: {error}", source=source, key="model") from error
    return detector.to("meta").eval()  # torch.Tensor(...) is on the CPU whatever the device of the context


def detector_cost(
    detector: nn.Module, shape: Size, proposals: int, convention: Convention, source: str
) -> dict[str, Cost]:
    """Return the cost of a detector in testing by part, and their ``total``.

    The backbone, the neck and the dense head (``rpn`` where it proposes RoIs, ``head`` in a one-stage detector) see one
    image. Box heads, all of a cascade's, see ``proposals`` RoIs; a mask head, as many as detections are kept.

    Args:
        detector: An mmdet detector on the ``meta`` device, in evaluation mode.
        shape: Height and width of the image, as padded.
        proposals: RoIs that a two-stage detector's head sees.
        convention: How FLOPs are counted.
        source: The file that the detector comes from, for errors.

    Raises:
        InputError: If the detector has a part that is not counted, or a module without a formula.
    """
    known = ("data_preprocessor", "backbone", "neck", "rpn_head", "roi_head", "bbox_head")
    _check_parts(detector, known, source)
    image = torch.empty(1, 3, *shape, device="meta")
    try:
        return _count(detector, image, proposals, convention, source)
    except InputError:
        raise
    except Exception as error:  # whatever a module says to shapes that it cannot take
        raise InputError(f"does not run on {shape[0]} x {shape[1]}: {error}", source=source) from error


def _check_parts(module: nn.Module, known: Sequence[str], source: str) -> None:
    for name, part in module.named_children():
        if name not in known and parameter_count(part):
            allowed = [each for each in known if each != "data_preprocessor"]
            raise InputError(f"cannot count the part {name!r}", source=source, key="model", allowed=allowed)


@torch.no_grad()
def _count(detector: Any, image: Tensor, proposals: int, convention: Convention, source: str) -> dict[str, Cost]:
    costs: dict[str, Cost] = {part: Cost() for part in PARTS}

    def run(part: str, module: nn.Module, inputs: Any) -> Any:
        with FlopCount(convention).of(module) as counted:
            outputs = module(inputs)
        costs[part] += Cost(parameter_count(module), counted.flops)
        return outputs

    features = run("backbone", detector.backbone, image)
    if detector.with_neck:
        features = run("neck", detector.neck, features)
    if hasattr(detector, "roi_head"):
        run("rpn", detector.rpn_head, features)
        _check_parts(detector.roi_head, ("bbox_head", "mask_head", "shared_head"), source)
        for module, rois in _roi_heads(detector.roi_head, proposals):
            run("head", module, rois)
    else:
        run("head", detector.bbox_head, features)
    costs["total"] = sum(costs.values(), Cost())
    return costs


def _roi_heads(roi_head: Any, proposals: int) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield every head behind the RoI extraction, with the RoIs that it sees."""
    detections = min(proposals, roi_head.test_cfg.get("max_per_img", proposals))
    kinds = [("bbox", proposals)] + ([("mask", detections)] if roi_head.with_mask else [])
    for kind, count in kinds:
        for head, extractor in _pairs(getattr(roi_head, f"{kind}_head"), getattr(roi_head, f"{kind}_roi_extractor")):
            rois = torch.empty(count, extractor.out_channels, *extractor.roi_layers[0].output_size, device="meta")
            if not roi_head.with_shared_head:
                yield head, rois
            else:
                yield nn.Sequential(roi_head.shared_head, head), rois


def _pairs(heads: nn.Module, extractors: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Return the heads with their extractors; a cascade has lists of both."""
    if isinstance(heads, nn.ModuleList) and isinstance(extractors, nn.ModuleList):
        yield from zip(heads, extractors, strict=True)
    else:
        yield heads, extractors
