"""A search step on tensors without data: how many bytes it holds, known before any image is read.

The detector runs forward and backward in torch's ``FakeTensorMode``: every operator states shape, type and device of
its result and computes nothing. Mixed layers, which hold nearly all operators, only replay their footprints, and so do
layers fixed at one operator where a GPU's programs compute them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.func import functional_call

from hitdet_nni.config.skeleton import DetectorKind, Skeleton
from hitdet_nni.engine import distributed
from hitdet_nni.model.replacement import replaced
from hitdet_nni.nas.memory.footprint import (
    ONE_BY_ONE,
    Footprint,
    MeasuredFootprint,
    candidate_kind,
    compose,
    measure,
)
from hitdet_nni.nas.memory.gpu_passes import FusedLayer, GpuLayers, layers_of_programs
from hitdet_nni.nas.memory.live_bytes import LiveBytes
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer

CPU = torch.device("cpu")

BOXES = 8
"""Boxes of an image that its anchors are compared with; COCO has 7.3 on average."""

IOU_NUMBERS = 9
"""Numbers that mmdet's ``bbox_overlaps`` holds for an anchor and a box: corners, sides, overlap, union, IoU."""


@dataclass(frozen=True)
class SimulatedStep:
    """Bytes of the tensors that a step makes.

    Attributes:
        held: Kept for the backward pass at the end of the forward pass.
        peak: Most at one time.
        gradients: Those of parameters within ``peak``.
        all_gradients: Those of parameters at the end.
        turnover: Most that one candidate of a mixed layer takes and returns, where they are computed one by one.
        recorded: What recorded passes hold on a GPU, between steps too; beside the others.
    """

    held: int
    peak: int
    gradients: int
    all_gradients: int
    turnover: int
    recorded: int

    @property
    def total(self) -> int:
        """Bytes at the peak, with what recorded passes hold."""
        return self.peak + self.recorded


class StepSimulation:
    """Steps of a detector supernet, on tensors without data.

    Args:
        detector: The mutated mmdet detector. It is left as it was.
        skeleton: Its skeleton.
        batch_size: Images a step.
        dtype: Type of the activations.
        device: Where the fused layers are computed, if not on a CPU.
        upright: Whether images occur in both orientations.
    """

    def __init__(
        self,
        detector: nn.Module,
        skeleton: Skeleton,
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device = CPU,
        *,
        upright: bool = True,
    ) -> None:
        self.detector = detector
        self.upright = upright
        self.skeleton = skeleton
        self.batch_size = batch_size
        self.dtype = dtype
        self.layers = [layer for layer in detector.modules() if isinstance(layer, ColumnSparseMixedLayer)]
        self._gpu_layers = GpuLayers(layers_of_programs(detector, device), dtype)
        self._measured: dict[Any, MeasuredFootprint] = {}
        self._live = LiveBytes()
        self._gradients: dict[nn.Module, Tensor] = {}
        self._turnover = 0

    def run(self, *, alphas: bool) -> SimulatedStep:
        """Simulate a step of the architecture parameters, or of the weights."""
        with (
            _training_only(self.detector, self.layers, alphas),
            distributed.alone(),  # no batch normalisation speaks to other processes
            replaced(self.detector, self._stand_ins()),
            FakeTensorMode() as mode,
        ):
            tensors: dict[str, Tensor] = {
                f"detector.{name}": mode.from_tensor(tensor) for name, tensor in self._outside_layers()
            }
            self._live, self._gradients, self._turnover = LiveBytes(tensors.values()), {}, 0
            for tensor in tensors.values():
                if tensor.requires_grad:
                    tensor.register_post_accumulate_grad_hook(self._count_gradient)  # type: ignore[no-untyped-call]
            result: SimulatedStep = functional_call(_Within(self.detector), tensors, (self._step,))
        return result

    def _stand_ins(self) -> dict[nn.Module, nn.Module]:
        stand_ins: dict[nn.Module, nn.Module] = {layer: _ReplayedLayer(layer, self._replay) for layer in self.layers}
        return stand_ins | {layer: _ReplayedLayer(layer, self._replay_on_gpu) for layer in self._gpu_layers.recordable}

    def _outside_layers(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the parameters and buffers that belong to no layer that is replayed, by name."""
        replayed: Iterable[nn.Module] = (*self.layers, *self._gpu_layers.recordable)
        inside = {id(tensor) for layer in replayed for tensor in (*layer.parameters(), *layer.buffers())}
        for name, tensor in (*self.detector.named_parameters(), *self.detector.named_buffers()):
            if id(tensor) not in inside:
                yield name, tensor

    def _step(self) -> SimulatedStep:
        height, width = image_size(self.skeleton, self.batch_size, upright=self.upright)
        images = torch.empty(self.batch_size, 3, height, width)
        with self._live:
            with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
                loss = LOSSES[self.skeleton.detector](self.detector, self.skeleton, images)
            held = self._live.now
            torch.autograd.backward(loss)
        return SimulatedStep(
            held=held,
            peak=self._live.peak,
            gradients=self._live.gradients_at_peak,
            all_gradients=self._live.gradients,
            turnover=self._turnover,
            recorded=self._gpu_layers.recorded_bytes(),
        )

    def _count_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._live.count_gradient(parameter.grad.nbytes)

    def _replay(self, layer: ColumnSparseMixedLayer, x: Tensor) -> Tensor:
        with self._live.paused(), unset_fake_temporarily():
            turns = [[name] for name in layer.active_names] if layer.activations in ONE_BY_ONE else [layer.active_names]
            measured = [self._measure(layer, names, x) for names in turns]
        places = x.numel() // x.shape[1]
        footprints = [part.footprint(places) for part in measured]
        output = measured[0].output_shape(x.shape)
        sum_size = math.prod(output) * 4  # the sum of Eq. 5 has 32 bits
        footprint = compose(footprints, x.nbytes if x.requires_grad else 0, sum_size)
        if layer.activations in ONE_BY_ONE:  # the others work through memory of a few MB again and again
            self._turnover = max(self._turnover, *(max(part.forward, part.backward) for part in footprints))
        empty = partial(x.new_empty, output, dtype=measured[0].dtype)
        return self._hold(layer, x, empty, footprint, keeps_input=True)

    def _replay_on_gpu(self, layer: FusedLayer, x: Tensor) -> Tensor:
        with self._live.paused():
            passes = self._gpu_layers.passes(layer, x)
        empty = partial(x.new_empty, passes.output_shape, dtype=passes.output_type)
        return self._hold(layer, x, empty, passes.footprint(), keeps_input=not passes.recorded)

    def _hold(
        self, layer: nn.Module, x: Tensor, empty: Callable[[], Tensor], footprint: Footprint, *, keeps_input: bool
    ) -> Tensor:
        """Return a layer's output, and hold what its footprint says until the backward pass is over."""
        inside: Iterable[nn.Module] = layer.children()
        alphas: tuple[nn.Parameter, ...] = ()
        if isinstance(layer, ColumnSparseMixedLayer):
            inside, alphas = layer.active_candidates(), (layer.alpha,)
        trained = (*alphas, *(parameter for module in inside for parameter in module.parameters()))
        gradients = sum(parameter.nbytes for parameter in trained if parameter.requires_grad)
        trigger = torch.empty(0, requires_grad=gradients > 0)  # a layer has gradients even where its input has none
        # A layer that is computed again keeps its input until the whole backward pass is over, and so does ``keep``.
        keep = partial(self._keep, layer, x if keeps_input else x.new_empty(0), gradients)
        result: Tensor = _Replay.apply(x, trigger, empty, footprint, keep, keeps_input)
        return result

    def _measure(self, layer: ColumnSparseMixedLayer, names: Sequence[str], x: Tensor) -> MeasuredFootprint:
        """Measure a layer with some candidates, once for all candidates of the same kinds."""
        kinds = tuple(candidate_kind(layer[name]) for name in names)
        key = (kinds, layer.activations, x.shape[1], x.dtype, x.requires_grad, layer.alpha.requires_grad)
        if key not in self._measured:
            self._measured[key] = measure(layer, names, x, self.dtype)
        return self._measured[key]

    def _keep(self, layer: nn.Module, like: Tensor, size: int) -> None:
        """Hold a layer's gradients from its first backward pass on; those of further maps are added to them."""
        if size and layer not in self._gradients:
            self._gradients[layer] = like.new_empty(size, dtype=torch.uint8)
            self._live.count_gradient(size)


class _Within(nn.Module):
    """Calls a function; ``functional_call`` of it replaces the detector's tensors meanwhile."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


class _ReplayedLayer(nn.Module):
    """Stands in the place of a layer and replays its footprint."""

    def __init__(self, layer: nn.Module, replay: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self.replay = replay

    def forward(self, x: Tensor) -> Tensor:
        return self.replay(self.layer, x)


class _Replay(torch.autograd.Function):
    """Holds as many bytes as a footprint says, when it says so."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        trigger: Tensor,
        output: Callable[[], Tensor],
        footprint: Footprint,
        keep_gradients: Callable[[], None],
        keeps_input: bool,
    ) -> Tensor:
        held = x.new_empty(footprint.held, dtype=torch.uint8)
        ctx.save_for_backward(held, *([x] if keeps_input else []))
        ctx.footprint, ctx.keep_gradients = footprint, keep_gradients
        ctx.shape, ctx.dtype = x.shape, x.dtype
        result = output()
        x.new_empty(max(0, footprint.forward - footprint.held - result.nbytes), dtype=torch.uint8)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_input = gradient.new_empty(ctx.shape, dtype=ctx.dtype) if ctx.needs_input_grad[0] else None
        passing = ctx.footprint.backward - ctx.footprint.held - (0 if of_input is None else of_input.nbytes)
        gradient.new_empty(max(0, passing), dtype=torch.uint8)
        ctx.keep_gradients()
        return of_input, None, None, None, None, None


@contextmanager
def _training_only(detector: nn.Module, layers: list[ColumnSparseMixedLayer], alphas: bool) -> Iterator[None]:
    """Let either the alphas or the weights require gradients within the context."""
    architecture = {id(layer.alpha) for layer in layers}
    frozen = [p for p in detector.parameters() if p.requires_grad and (id(p) in architecture) is not alphas]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_()


def image_size(skeleton: Skeleton, batch_size: int, *, upright: bool = True) -> tuple[int, int]:
    """Return the rows and columns of the largest batch.

    Upright images are resized to the upright input size, so a batch with both kinds is as high as it is wide.

    Args:
        skeleton: Gives the input size.
        batch_size: Images of the batch.
        upright: Whether images occur in both orientations.
    """
    height, width = skeleton.padded_size
    return (max(height, width), max(height, width)) if upright and batch_size > 1 else (height, width)


def _two_stage_loss(detector: Any, skeleton: Skeleton, images: Tensor) -> Tensor:
    features = detector.extract_feat(images)
    loss = _anchor_loss(detector.rpn_head, *detector.rpn_head(features), one_hot=True)
    extractor = detector.roi_head.bbox_roi_extractor
    rois = images.new_empty(len(images) * skeleton.roi_samples, 5).chunk(len(extractor.roi_layers))
    pooled = [layer(feature, part) for layer, feature, part in zip(extractor.roi_layers, features, rois, strict=False)]
    for output in detector.roi_head.bbox_head(torch.cat(pooled)):
        loss = loss + output.float().square().sum()
    return loss


def _one_stage_loss(detector: Any, skeleton: Skeleton, images: Tensor) -> Tensor:
    features = detector.extract_feat(images)
    return _anchor_loss(detector.bbox_head, *detector.bbox_head(features), one_hot=False)


def _anchor_loss(head: Any, scores: list[Tensor], offsets: list[Tensor], *, one_hot: bool) -> Tensor:
    """Return the losses of all anchors, behind their comparison with the boxes of one image after the other."""
    anchors = sum(offset[0].numel() // 4 for offset in offsets)
    offsets[0].new_empty(anchors, BOXES, IOU_NUMBERS, dtype=torch.float32)
    loss = offsets[0].new_zeros((), dtype=torch.float32)
    for level_scores, level_offsets in zip(scores, offsets, strict=True):
        score = level_scores.permute(0, 2, 3, 1).reshape(-1, head.cls_out_channels)
        offset = level_offsets.permute(0, 2, 3, 1).reshape(-1, 4)
        shape = score.shape if one_hot else score.shape[:1]
        labels, weights = score.new_zeros(shape, dtype=torch.long), score.new_ones(shape, dtype=torch.float32)
        loss = loss + head.loss_cls(score, labels, weights, avg_factor=1.0)
        targets = torch.empty_like(offset, dtype=torch.float32)
        loss = loss + head.loss_bbox(offset, targets)  # with weights mmdet looks at their values
    return loss


LOSSES: Mapping[DetectorKind, Callable[[Any, Skeleton, Tensor], Tensor]] = {
    "faster_rcnn": _two_stage_loss,
    "retinanet": _one_stage_loss,
}
"""Losses of each kind of detector on images without data: all sizes are right, no value is."""
