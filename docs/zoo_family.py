"""One family of mmdet's shipped configs: which build, and whether the smallest that builds predicts and trains.

python docs/zoo_family.py dino
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hitdet_nni  # noqa: F401  serves mmcv.ops before mmdet imports it

# isort: split

import mmdet
import mmdet.models  # noqa: F401  registers the detectors
import numpy as np
import torch
from mmdet.structures import DetDataSample, TrackDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import nn

from hitdet_nni.cost.module_cost import build_on_meta, parameter_count
from hitdet_nni.model.detector import build_initialised

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"
"""Folders of the families, each with configs, and ``_base_`` with what they share."""

PACKAGES: Mapping[str, str] = {
    "detectron2": "detectron2",
    "fairscale": "fairscale",
    "lap": "lap",
    "mmpretrain": "mmpretrain",
    "motmetrics": "motmetrics",
    "skimage": "scikit-image",
    "transformers": "transformers",
}
"""Packages that configs need and mmdet does not bring: name of the import -> name to install."""

FAULTS: Mapping[str, str] = {
    "'SSDHead' object has no attribute 'loss_cls'": "SSDHead cannot predict",
    "CascadeRPNHead.__init__() missing 1 required positional argument": "RPN cannot build a CascadeRPNHead",
    "unexpected keyword argument 'force_grad_on_level'": "FPN has no such setting as the config's",
}
"""Faults of mmdet 3.3.0 itself: what its error says -> what is wrong."""

DECLARED: Mapping[str, str] = {
    "dcn/faster-rcnn_r50_fpn_dpool_1x_coco.py": "op DeformRoIPoolPack",
    "dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco.py": "op ModulatedDeformRoIPoolPack",
}
"""What keeps a config from being built where its error does not say; nothing here may build."""

SIDE = 128
"""Height and width of the images, in pixels."""

LARGE_SIDE = 320
"""The same for what takes no smaller ones: see :func:`side_of`."""

IMAGES = 2
"""Images of a batch in training, frames of a video: batch normalisation of a 1 x 1 map needs two."""


@dataclass(frozen=True)
class Row:
    """What became of a family.

    Attributes:
        family: Its folder.
        configs: Files that hold a model; others are parts, such as a schedule.
        built: Those that build.
        config: The smallest of them that predicts and learns; the smallest where none does, empty where none builds.
        params: Parameters of its model.
        runs: Whether it predicts, and learns from finite losses.
        needs: What keeps others from being built, and smaller ones from running, each by its kind: ``package lap``,
            ``op CARAFE``, ``file PATH``, ``fault WORDS``.
    """

    family: str
    configs: int
    built: int
    config: str
    params: int
    runs: bool
    needs: tuple[str, ...]


def families() -> list[str]:
    """Return the families that mmdet ships."""
    return sorted(each.name for each in CONFIGS.iterdir() if each.is_dir() and each.name != "_base_")


def reason(error: BaseException, config: str) -> str:
    """Return what kept a config from being built or run: an op of mmcv, a package, a file, or a fault of mmdet.

    Raises:
        BaseException: The error itself, if it names nothing of these.
    """
    if config in DECLARED:
        return DECLARED[config]
    text = str(error)
    for words, fault in FAULTS.items():
        if words in text:
            return f"fault {fault}"
    op = re.search(r"mmcv\.ops\.(\w+) is not available", text)
    if op:
        return f"op {op[1]}"
    for module, package in PACKAGES.items():
        if re.search(rf"\b{module}\b", text, re.IGNORECASE) and find_spec(module) is None:
            return f"package {package}"
    if isinstance(error, FileNotFoundError):
        file = error.filename or text.split('"')[1]
        return f"file {os.path.relpath(file, CONFIGS)}"
    raise error


def without_downloads(part: Any) -> Any:
    """Return a config without the weights that it would load."""
    if isinstance(part, Mapping):
        kept = {key: without_downloads(value) for key, value in part.items()}
        if "teacher_config" in kept:  # relative to the folder above
            kept["teacher_config"] = str(CONFIGS.parent / kept["teacher_config"])
        return kept | {key: None for key in ("init_cfg", "teacher_ckpt", "pretrained") if loads(kept.get(key))}
    return type(part)(map(without_downloads, part)) if isinstance(part, list | tuple) else part


def loads(value: Any) -> bool:
    """Whether the value of a key that may name weights does."""
    if isinstance(value, Mapping):
        return "checkpoint" in value
    return isinstance(value, str)


def model_of(config: Path) -> dict[str, Any] | None:
    """Return the model of a config, ``None`` where it has none."""
    model = Config.fromfile(config).get("model")
    return without_downloads(model.to_dict()) if isinstance(model, dict) else None


def survey(family: str) -> Row:
    """Build every config of a family, then run those that build, from the smallest, until one predicts and learns."""
    built: list[tuple[int, str, dict[str, Any]]] = []
    failed: list[str] = []
    needs = set()
    for path in sorted((CONFIGS / family).rglob("*.py")):
        name = path.relative_to(CONFIGS).as_posix()
        try:
            model = model_of(path)
            if model is not None:
                built.append((parameter_count(build_on_meta(model, name)), name, model))
        except Exception as error:  # the file is a program, the model anything
            failed.append(name)
            needs.add(reason(error.__cause__ or error, name))
        else:
            assert name not in DECLARED, f"{name} builds"
    count = len(built) + len(failed)
    for params, name, model in sorted(built, key=lambda each: each[:2]):
        try:
            exercise(model)
        except Exception as error:  # whatever a model raises
            needs.add(reason(error, name))
        else:
            return Row(family, count, len(built), name, params, True, tuple(sorted(needs)))
        finally:
            gc.collect()
    params, name, _ = min(built, key=lambda each: each[:2], default=(0, "", {}))
    return Row(family, count, len(built), name, params, False, tuple(sorted(needs)))


# ------------------------------------------------------------------------------------------------------ one config


def exercise(model: Mapping[str, Any]) -> None:
    """Have the model of a config learn from two images with two objects in each, and predict on one.

    Raises:
        AssertionError: If a loss, a gradient or a prediction is not finite, or no gradient differs from zero.
        Exception: Whatever the model raises.
    """
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        MessageHub.get_current_instance().update_info("iter", 0)  # what a training loop tells augmentations
        detector = build_initialised({"_scope_": "mmdet", **model})
        side = side_of(model)
        total, _ = detector.parse_losses(detector(**training_batch(detector, side), mode="loss"))
        assert math.isfinite(total.item()), f"the loss is {total.item()}"
        total.backward()
        gradients = [each.grad for each in detector.parameters() if each.grad is not None]
        assert all(bool(each.isfinite().all()) for each in gradients), "a gradient is not finite"
        assert any(bool(each.any()) for each in gradients), "all gradients are zero"
        detector.zero_grad()
        detector.eval()
        with torch.no_grad():
            batch = detector.data_preprocessor(testing_batch(detector, side), False)
            found = detector(**batch, mode="predict")
    assert len(found) == len(batch["inputs"])
    for tensor in (each for result in found for each in predicted(result)):
        assert tensor.isfinite().all(), "a prediction is not finite"


def side_of(model: Mapping[str, Any]) -> int:
    """Return the height and width of the images that a model is tried on.

    The last maps of SSD would have no pixel in small ones, and DINO chooses its queries among the positions of all maps.
    """
    return LARGE_SIDE if "SSD" in str(model) or model["type"] == "DINO" else SIDE


def predicted(result: DetDataSample | TrackDataSample) -> Iterator[torch.Tensor]:
    """Yield the tensors of what was predicted of an image, or of the frames of a video."""
    frames = result.video_data_samples if isinstance(result, TrackDataSample) else [result]
    for frame in frames:
        fields = [value for key, value in frame.items() if key.startswith("pred_")]
        assert fields, "nothing was predicted"
        yield from (value for field in fields for value in field.values() if isinstance(value, torch.Tensor))


def is_tracker(detector: nn.Module) -> bool:
    """Whether a model takes videos."""
    return type(detector.data_preprocessor).__name__ == "TrackDataPreprocessor"


def training_batch(detector: nn.Module, side: int) -> dict[str, Any]:
    """Return preprocessed images with annotations as the model takes them in training."""
    if is_tracker(detector) and not detector.data_preprocessor.use_det_processor:
        batch: dict[str, Any] = video(side)
    elif type(detector.data_preprocessor).__name__ == "MultiBranchDataPreprocessor":
        branches = {name: images(side) for name in ("sup", "unsup_teacher", "unsup_student")}
        batch = {key: {name: branch[key] for name, branch in branches.items()} for key in ("inputs", "data_samples")}
    else:
        batch = images(side)
    return detector.data_preprocessor(batch, True)


def testing_batch(detector: nn.Module, side: int) -> dict[str, Any]:
    """Return images as the model takes them in testing."""
    return video(side) if is_tracker(detector) else images(side, 1)


def images(side: int, count: int = IMAGES) -> dict[str, Any]:
    """Return square images of noise with two objects each."""
    inputs = [torch.randint(0, 256, (3, side, side), dtype=torch.uint8) for _ in range(count)]
    return {"inputs": inputs, "data_samples": [annotated(side, index) for index in range(count)]}


def video(side: int) -> dict[str, Any]:
    """Return one video, whose first frame is the key and whose second is the reference."""
    frames = images(side)
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


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=families())
    print(json.dumps(asdict(survey(parser.parse_args().family)), indent=1))  # noqa: T201
