"""The batches that ``mmdet_zoo.py`` tries models on: images of noise, with all that a model may ask to know of them."""

from __future__ import annotations

from typing import Any

import hitdet_nni  # noqa: F401  serves mmcv.ops before mmdet imports it

# isort: split

import numpy as np
import torch
from mmdet.models import FastRCNN, MultiBranchDataPreprocessor, TrackDataPreprocessor
from mmdet.structures import DetDataSample, TrackDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData, PixelData
from torch import nn

IMAGES = 2
"""Images of a batch in training, frames of a video: batch normalisation of a 1 x 1 map needs two."""


def is_tracker(detector: nn.Module) -> bool:
    """Whether a model takes videos."""
    return isinstance(detector.data_preprocessor, TrackDataPreprocessor)


def training_batch(detector: nn.Module, side: int) -> dict[str, Any]:
    """Return preprocessed images with annotations as the model takes them in training."""
    preprocessor = detector.data_preprocessor
    if is_tracker(detector) and not preprocessor.use_det_processor:
        batch: dict[str, Any] = video(side)
    elif isinstance(preprocessor, MultiBranchDataPreprocessor):
        branches = {name: images(side, IMAGES) for name in ("sup", "unsup_teacher", "unsup_student")}
        batch = {key: {name: branch[key] for name, branch in branches.items()} for key in ("inputs", "data_samples")}
    else:
        batch = images(side, IMAGES)
        leave_out(batch, detector)
    return preprocessor(batch, True)


def testing_batch(detector: nn.Module, side: int) -> dict[str, Any]:
    """Return an image, or a video, as the model takes it in testing."""
    if is_tracker(detector):
        return video(side)
    batch = images(side, 1)
    leave_out(batch, detector)
    return batch


def leave_out(batch: dict[str, Any], detector: nn.Module) -> None:
    """Take from the samples what the model would use although its data have none: proposals beside an RPN, masks."""
    for sample in batch["data_samples"]:
        if not isinstance(detector, FastRCNN) or detector.with_rpn:
            del sample.proposals
        if not any("mask" in name for name, _ in detector.named_modules()):
            del sample.gt_instances.masks


def images(side: int, count: int) -> dict[str, Any]:
    """Return square images of noise with two objects each."""
    inputs = [torch.randint(0, 256, (3, side, side), dtype=torch.uint8) for _ in range(count)]
    return {"inputs": inputs, "data_samples": [annotated(side, index) for index in range(count)]}


def video(side: int) -> dict[str, Any]:
    """Return one video, whose first frame is the key and whose second is the reference."""
    frames = images(side, IMAGES)
    sample = TrackDataSample(metainfo={"key_frames_inds": [0], "ref_frames_inds": [1]})
    sample.video_data_samples = frames["data_samples"]
    return {"inputs": [torch.stack(frames["inputs"])], "data_samples": [sample]}


def annotated(side: int, index: int) -> DetDataSample:
    """Return all that a model may ask to know about an image: boxes, masks, segments, identities, proposals."""
    boxes = torch.tensor([[8.0, 8.0, side / 2, side / 2 + 8], [side / 4, side / 3, side - 9.0, side - 16.0]])
    masks = np.zeros((len(boxes), side, side), dtype=np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    meta = {
        "img_id": index,
        "frame_id": index,
        "video_id": 0,
        "video_length": IMAGES,
        "img_shape": (side, side),
        "ori_shape": (side, side),
        "scale_factor": (1.0, 1.0),
        "border": (0, side, 0, side),
        "flip": False,
        "homography_matrix": np.eye(3, dtype=np.float32),
    }
    sample = DetDataSample(metainfo=meta)
    labels = torch.tensor([0, 0])
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=labels, masks=BitmapMasks(masks, side, side), instances_ids=torch.tensor([0, 1])
    )
    sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=labels[:0], masks=BitmapMasks([], side, side))
    sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(masks.max(axis=0, keepdims=True)).long())
    sample.proposals = InstanceData(bboxes=torch.cat([boxes, boxes + 4]), scores=torch.ones(4))
    return sample
