"""Training a baseline, any mmdet config, by the protocol that a found detector is retrained by.

Images, their size, augmentation, batch, schedule, optimiser, precision and evaluation are those of the settings; the
config gives the model alone. A backbone of weights that are given keeps what the config says of frozen stages and
statistics; one of new weights trains as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hitdet_nni.config.settings import Settings
from hitdet_nni.cost.detector_cost import detector_cost
from hitdet_nni.cost.mmdet_config import load_config, tested_proposals
from hitdet_nni.cost.module_cost import build_on_meta
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.engine.mmengine_resume import OnEvaluation
from hitdet_nni.engine.synced_batch_norm import apply_batch_norm
from hitdet_nni.engine.weights_file import name_of_weights, read_saved
from hitdet_nni.errors import InputError
from hitdet_nni.model.detector import build_initialised
from hitdet_nni.operators.costs import Cost, Size, halved
from hitdet_nni.training.retrain import Retrained, check_start, train_detector

_ORIGIN = "weights of the config's backbone, e.g. torchvision's for a ResNet"


def train_baseline(
    name: str,
    settings: Settings,
    data: DetectionData,
    work_dir: Path,
    on_evaluation: OnEvaluation = lambda epoch, metrics: None,
    *,
    checkpoints: CheckpointFolder,
    resume: bool = False,
) -> Retrained:
    """Train the model of an mmdet config and evaluate it as COCO does.

    Args:
        name: A ``.py`` file, or the bare name of a shipped baseline, e.g. ``"fpn_r50_2fc"``.
        settings: Data, seed, precision, batch normalisation, ``skeleton.input_size`` and the ``retrain`` section, whose
            ``pretrained`` names weights of the backbone.
        data: The images.
        work_dir: Folder for the weights and mmengine's logs.
        on_evaluation: Called with the finished epochs and the metrics after every evaluation, in the main process.
        checkpoints: Where the state is kept.
        resume: Go on from the newest checkpoint, if there is one.

    Raises:
        InputError: If the config cannot be read or built, needs masks, or the weights do not fit its backbone.
        NonFiniteLossError: If the training diverges.
    """
    precision = check_start(settings, None)
    return train_detector(
        lambda: _detector(name, settings, len(data.classes)),
        settings,
        data,
        work_dir,
        on_evaluation,
        precision=precision,
        checkpoints=checkpoints,
        resume=resume,
    )


def model_config(name: str, num_classes: int, *, new_weights: bool) -> dict[str, Any]:
    """Return the model of an mmdet config for other classes, initialised without a download.

    Args:
        name: As :func:`train_baseline`.
        num_classes: Object classes, without background.
        new_weights: Whether the backbone has new weights: nothing that the config would fetch may be frozen then.

    Raises:
        InputError: If the config cannot be read, or its model is no detector that learns from boxes alone.
    """
    model: dict[str, Any] = load_config(name).model.to_dict()
    if "backbone" not in model:
        problem = f"{model.get('type')} is around detectors, or none"
        raise InputError(problem, source=name, key="model.backbone", allowed="a detector with a backbone")
    for place, part in (("model", model), ("model.roi_head", model.get("roi_head") or {})):
        for head in ("mask_head", "panoptic_head", "semantic_head"):
            if head in part:
                raise InputError("learns from masks", source=name, key=f"{place}.{head}", allowed="boxes alone")
    for part, value in model.items():
        if part != "backbone":
            _set_classes(value, num_classes)
    for part in [model["backbone"], *_fetched(model)]:
        part.pop("init_cfg", None)
        if new_weights:
            if "frozen_stages" in part:
                part["frozen_stages"] = -1
            if "norm_eval" in part:
                part["norm_eval"] = False
            if "requires_grad" in (part.get("norm_cfg") or {}):
                part["norm_cfg"]["requires_grad"] = True
    return model


def _fetched(value: Any) -> list[dict[str, Any]]:
    """Return the parts of a model whose weights mmdet would fetch, such as a C4 detector's last stage in its head."""
    if isinstance(value, list | tuple):
        return [part for each in value for part in _fetched(each)]
    if not isinstance(value, dict):
        return []
    init = value.get("init_cfg")
    own = [value] if isinstance(init, dict) and init.get("type") == "Pretrained" else []
    return own + [part for each in value.values() for part in _fetched(each)]


def padded_shape(model: Mapping[str, Any], shape: Size) -> Size:
    """Return the height and width that a model's own preprocessor pads an image of a shape to.

    Args:
        model: Of :func:`model_config`.
        shape: Height and width of the input.
    """
    divisor = (model.get("data_preprocessor") or {}).get("pad_size_divisor", 1)
    height, width = (-(-side // divisor) * divisor for side in shape)
    return height, width


def check_queries(model: Mapping[str, Any], shape: Size, name: str) -> None:
    """Refuse an image that has fewer positions than a two-stage transformer picks as its queries.

    Args:
        model: Of :func:`model_config`.
        shape: Height and width of the input.
        name: Where the model comes from, for errors.

    Raises:
        InputError: If there are fewer.
    """
    if not model.get("as_two_stage"):
        return
    shape = padded_shape(model, shape)
    finest = 2 + min(model["backbone"]["out_indices"])  # stage 0 has stride 4
    positions = sum(math.prod(halved(shape, 2 ** (finest + level))) for level in range(model["neck"]["num_outs"]))
    if positions < model["num_queries"]:
        problem = f"picks {model['num_queries']} queries of {positions} positions in {shape[0]} x {shape[1]}"
        allowed = "larger images (skeleton.input_size), or fewer queries"
        raise InputError(problem, source=name, key="model.num_queries", allowed=allowed)


def baseline_cost(name: str, num_classes: int, shape: Size) -> tuple[Cost, int, Size]:
    """Count a baseline as it is trained, by multiply-adds: its cost, its head's RoIs in testing, and the padded shape.

    Args:
        name: As :func:`train_baseline`.
        num_classes: Object classes, without background.
        shape: Height and width of the input.

    Raises:
        InputError: If the config cannot be read, built or counted.
    """
    model = model_config(name, num_classes, new_weights=True)
    proposals, shape = tested_proposals(model), padded_shape(model, shape)
    return detector_cost(build_on_meta(model, name), shape, proposals, "macs", name)["total"], proposals, shape


def _set_classes(part: Any, num_classes: int) -> None:
    if isinstance(part, dict):
        if "num_classes" in part:
            part["num_classes"] = num_classes
        for value in part.values():
            _set_classes(value, num_classes)
    elif isinstance(part, list):
        for value in part:
            _set_classes(value, num_classes)


def _detector(name: str, settings: Settings, num_classes: int) -> tuple[nn.Module, str]:
    pretrained = settings.retrain.pretrained
    torch.manual_seed(settings.seed)
    model = model_config(name, num_classes, new_weights=pretrained is None)
    try:
        detector = build_initialised({"_scope_": "mmdet", **model})
    except (TypeError, KeyError, AssertionError) as error:
        raise InputError(f"mmdet cannot build it: {error}", source=name, key="model") from error
    if pretrained is not None:
        load_backbone_state(detector.get_submodule("backbone"), pretrained)
    apply_batch_norm(detector, settings.batch_norm)
    if pretrained is None:
        return detector, f"new weights of {name}"
    return detector, f"{name_of_weights(pretrained)} in {name}"


def load_backbone_state(backbone: nn.Module, path: Path) -> None:
    """Load a state dict into a backbone; it may hold more, such as a classifier's last layer.

    Args:
        backbone: mmdet's module.
        path: A file of tensors by name, or with them under ``state_dict``, or with names that begin with ``backbone.``.

    Raises:
        InputError: If the file is unreadable or lacks a tensor; it names the first.
    """
    content = read_saved(path, allowed=_ORIGIN)
    state: Any = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise InputError("holds no tensors by name", source=path, allowed=_ORIGIN)
    named = {str(key).removeprefix("backbone."): value for key, value in state.items()}
    own = backbone.state_dict()
    for key, value in own.items():
        given = named.get(key)
        if not isinstance(given, Tensor):
            if key.endswith("num_batches_tracked"):
                continue
            raise InputError(f"has no tensor {key!r}", source=path, allowed=_ORIGIN)
        if given.shape != value.shape:
            problem = f"{key!r} has the shape {list(given.shape)}"
            raise InputError(problem, source=path, allowed=f"{list(value.shape)}, {_ORIGIN}")
    backbone.load_state_dict({key: named.get(key, value) for key, value in own.items()})
