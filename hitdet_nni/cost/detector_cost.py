"""What an mmdet detector costs in testing, by part: counted on its modules, on shapes alone where these suffice."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.models import BaseDetector
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from hitdet_nni.cost.cost_model import PARTS, Convention, Cost, DetectorPart, Size
from hitdet_nni.cost.module_cost import FlopCount, parameter_count
from hitdet_nni.errors import InputError

logger = logging.getLogger(__name__)

_IMAGE_PARTS: tuple[str, ...] = ("data_preprocessor", "backbone", "neck", "rpn_head", "roi_head", "bbox_head")
_ROI_PARTS: tuple[str, ...] = ("bbox_head", "mask_head", "shared_head")


def detector_cost(
    detector: nn.Module, shape: Size, proposals: int, convention: Convention, source: str
) -> dict[str, Cost]:
    """Return the cost of a detector in testing by part, and their ``total``.

    The backbone, the neck and the dense head (``rpn`` where it proposes RoIs, ``head`` in a one-stage detector) see one
    image. Box heads, all of a cascade's, see ``proposals`` RoIs; a mask head, as many as detections are kept. A
    detector of other parts, such as a transformer, runs as mmdet's ``forward`` has it, and what is neither backbone,
    neck nor RPN is ``head``.

    Args:
        detector: An mmdet detector of :func:`~hitdet_nni.cost.module_cost.build_on_meta`.
        shape: Height and width of the image, as padded.
        proposals: RoIs that a two-stage detector's head sees.
        convention: How FLOPs are counted.
        source: The file that the detector comes from, for errors.

    Raises:
        InputError: If it is no detector of single images, or does not run on the shape.
    """
    if not hasattr(detector, "backbone") or not isinstance(detector, BaseDetector):
        problem = f"{type(detector).__name__} is around detectors, or none"
        raise InputError(problem, source=source, key="model.type", allowed="a detector with a backbone")
    roi_head = getattr(detector, "roi_head", None)
    if roi_head is not None and not proposals and not hasattr(detector, "rpn_head"):
        problem = "has no RPN: how many proposals it is given is not said"
        raise InputError(problem, source=source, key="model.rpn_head", allowed="--proposals")
    if _is_plain(detector):
        try:
            return _Run(copy.deepcopy(detector).to("meta"), shape, convention, "meta").by_parts(proposals)
        except Exception as error:  # what asks for values, or cannot take the shape, which is then said below
            logger.info("%s does not run on shapes alone: %s", source, error)
    try:
        return _Run(_with_values(copy.deepcopy(detector)), shape, convention, "cpu").as_mmdet_runs_it(proposals)
    except Exception as error:  # whatever a module says to shapes that it cannot take
        words = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"does not run on {shape[0]} x {shape[1]}: {words}", source=source) from error


def _is_plain(detector: nn.Module) -> bool:
    """Whether a detector has parts that take the maps, or the RoIs, that the one before gives, and no other."""
    pairs: list[tuple[nn.Module, tuple[str, ...]]] = [(detector, _IMAGE_PARTS)]
    roi_head = getattr(detector, "roi_head", None)
    if roi_head is not None:
        pairs.append((roi_head, _ROI_PARTS))
        if type(roi_head).__name__ not in ("StandardRoIHead", "CascadeRoIHead", "TridentRoIHead"):
            return False
    return all(
        name in known or not parameter_count(part) for module, known in pairs for name, part in module.named_children()
    )


def _with_values(detector: nn.Module) -> nn.Module:
    """Give the parameters zeros: no product is computed of them, but mmdet's code asks for values elsewhere."""
    for module in detector.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(torch.zeros_like(parameter, device="cpu")))
    return detector


class _Run:
    """Runs the parts of a detector one after another.

    Args:
        detector: In evaluation mode, on the device.
        shape: Height and width of the image.
        convention: How FLOPs are counted.
        device: ``"meta"``, or ``"cpu"`` where values are asked for.
    """

    def __init__(self, detector: nn.Module, shape: Size, convention: Convention, device: str) -> None:
        self.detector: Any = detector
        self.convention: Convention = convention
        self.costs: dict[str, Cost] = {part: Cost() for part in PARTS}
        self.image = torch.zeros(1, 3, *shape, device=device)
        meta = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), shape)
        sample = DetDataSample(metainfo={**meta, "scale_factor": (1.0, 1.0)})
        sample.gt_instances = InstanceData(bboxes=self.image.new_zeros(0, 4), labels=self.image.new_zeros(0).long())
        self.samples = [sample]

    def _call(self, part: DetectorPart, modules: Sequence[nn.Module], call: Callable[[], Any]) -> Any:
        with self._counted(*modules) as counted:
            outputs = call()
        self.costs[part] += Cost(parameter_count(*modules), counted.flops)
        return outputs

    def _run(self, part: DetectorPart, module: nn.Module, inputs: Any) -> Any:
        return self._call(part, [module], lambda: module(inputs))

    def _features(self) -> Any:
        features = self._run("backbone", self.detector.backbone, self.image)
        return self._run("neck", self.detector.neck, features) if self.detector.with_neck else features

    def by_parts(self, proposals: int) -> dict[str, Cost]:
        """Return the cost of a detector whose parts follow each other."""
        features = self._features()
        if hasattr(self.detector, "roi_head"):
            if self.detector.with_rpn:
                self._run("rpn", self.detector.rpn_head, features)
            for module, rois in _roi_heads(self.detector.roi_head, proposals):
                self._run("head", module, rois)
        else:
            self._run("head", self.detector.bbox_head, features)
        return self._with_total()

    def as_mmdet_runs_it(self, proposals: int) -> dict[str, Cost]:
        """Return the cost of any other detector: the heads run as in mmdet's ``forward``."""
        detector, features = self.detector, self._features()
        if hasattr(detector, "roi_head"):
            found = [InstanceData(bboxes=_boxes(proposals, self.image))]
            if detector.with_rpn:
                rpn = detector.rpn_head
                proposed = self._call("rpn", [rpn], lambda: rpn.predict(features, self.samples))
                found = proposed if "features" in proposed[0] else found  # learned proposals come with features
            flops = self._roi_head_flops(features, found[0])
        else:
            mode = "predict" if detector.with_bbox and detector.with_mask else "tensor"  # masks are of predicted boxes
            with self._counted(detector) as counted:
                detector(self.image, self.samples, mode=mode)
            flops = counted.flops - self.costs["backbone"].flops - self.costs["neck"].flops
        counted_elsewhere = sum(cost.params for cost in self.costs.values())
        self.costs["head"] += Cost(parameter_count(detector) - counted_elsewhere, flops)
        return self._with_total()

    def _roi_head_flops(self, features: Any, found: InstanceData) -> int:
        """Return the FLOPs of a head for all RoIs, of its masks for as many as are kept, and of a semantic head."""
        roi_head = self.detector.roi_head
        masks = roi_head.mask_head if roi_head.with_mask else None
        kept = found[: _detections(roi_head, len(found))]
        heads = [part for name, part in self.detector.named_children() if name in ("roi_head", "semantic_head")]
        with self._counted(*heads) as counted:
            if hasattr(self.detector, "semantic_head"):
                self.detector.semantic_head(features)
            if masks is not None:
                roi_head.mask_head = None
            roi_head.forward(features, [found], self.samples)
            all_boxes = counted.flops
            if masks is None:
                return all_boxes
            roi_head.forward(features, [kept], self.samples)
            boxes_of_kept = counted.flops - all_boxes
            roi_head.mask_head = masks
            roi_head.forward(features, [kept], self.samples)
            return counted.flops - 2 * boxes_of_kept

    @contextmanager
    def _counted(self, *modules: nn.Module) -> Iterator[FlopCount]:
        with torch.no_grad(), FlopCount(self.convention).of(*modules) as counted:
            yield counted

    def _with_total(self) -> dict[str, Cost]:
        return {**self.costs, "total": sum(self.costs.values(), Cost())}


def _boxes(count: int, image: Tensor) -> Tensor:
    """Return boxes inside an image [N, 3, H, W], of half its sides: [count, 4]."""
    height, width = image.shape[-2:]
    return torch.tensor([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]]).repeat(count, 1)


def _detections(roi_head: Any, proposals: int) -> int:
    """Return how many of its proposals a detector keeps at most."""
    kept: int = min(proposals, roi_head.test_cfg.get("max_per_img", proposals))
    return kept


def _roi_heads(roi_head: Any, proposals: int) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield every head behind the RoI extraction, with the RoIs that it sees."""
    masks = [("mask", _detections(roi_head, proposals))] if roi_head.with_mask else []
    kinds = [("bbox", proposals), *masks]
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
