"""The weights of the public Hit-Detector release, renamed to those of this package's detector.

Source:
    Names and shapes: the release's model code (mmdet 1), which numbers the classes from 1, behind the background.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.engine.weights_file import read_saved, save_state
from hitdet_nni.errors import InputError
from hitdet_nni.model.detector import build_detector
from hitdet_nni.operators.registry import parse_operator

ARCHITECTURE = "hit_detector_mmdet1"
"""The shipped architecture that the weights are of: the released network, with boxes as mmdet 1 has them."""

ALLOWED = "a checkpoint of the released Hit-Detector, as mmdet 1 saves them"

_LAYERS = {"ir": ("expand", "depthwise", "project"), "sep": ("depthwise", "project")}
"""Parts of an operator, in the order of the release's ``conv1``, ``conv2``, ``conv3``."""

_RENAMED = (
    (re.compile(r"backbone\.layers\.0\.conv\."), "backbone.stem.0."),
    (re.compile(r"backbone\.layers\.0\.bn\."), "backbone.stem.1."),
    (re.compile(r"neck\.pa_convs\.(\d+)\.conv\."), r"neck.fuse.\1."),
    (re.compile(r"bbox_head\.(shared_fcs|fc_cls|fc_reg)\b"), r"roi_head.bbox_head.\1"),
)


def import_weights(checkpoint: Path, architecture: Architecture, out: Path) -> None:
    """Write a checkpoint of the release as weights of this package's detector.

    Args:
        checkpoint: The file; nothing in it is executed.
        architecture: What the weights are of.
        out: File to write, whole or not at all.

    Raises:
        InputError: If the file cannot be read, or has other names or shapes.
        WriteError: If the file cannot be written.
    """
    save_state(renamed(read_release(checkpoint), architecture, checkpoint), out)


def read_release(checkpoint: Path) -> dict[str, Tensor]:
    """Return a checkpoint's tensors, of whatever shapes, by the release's names; a parallel training's prefix is gone.

    Raises:
        InputError: If it cannot be read, or holds no tensors.
    """
    content = read_saved(checkpoint, allowed=ALLOWED)
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError("holds no weights", source=checkpoint, allowed=ALLOWED)
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def renamed(state: Mapping[str, Tensor], architecture: Architecture, source: Path) -> dict[str, Tensor]:
    """Return the release's tensors by this package's names, the classes numbered from 0, before the background.

    Args:
        state: The tensors by the release's names.
        architecture: What they are of.
        source: Where they come from, for messages.

    Raises:
        InputError: If a tensor is missing, unknown or of another shape.
    """
    wanted = build_detector(architecture.skeleton, architecture.sample, architecture.num_classes).state_dict()
    operators = dict(_operators(architecture))
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        own = _name(name, operators)
        if own is None or own not in wanted:
            raise InputError(f"has {name}, which the released network has not", source=source, allowed=ALLOWED)
        found[own] = value
    for name, size in (("fc_cls", 1), ("fc_reg", 4)):
        for kind in ("weight", "bias"):
            key = f"roi_head.bbox_head.{name}.{kind}"
            if key in found and len(found[key]) == size * (architecture.num_classes + 1):
                background, objects = found[key][:size], found[key][size:]
                found[key] = torch.cat([objects, background]) if name == "fc_cls" else objects
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            found.setdefault(name, tensor)  # checkpoints of torch 0.4 have none
        elif name not in found:
            raise InputError(f"lacks what {name} is made of", source=source, allowed=ALLOWED)
        if found[name].shape != tensor.shape:
            problem = f"{name} would be {list(found[name].shape)}, not {list(tensor.shape)}"
            raise InputError(problem, source=source, allowed=ALLOWED)
    return {name: found[name].to(tensor.dtype) for name, tensor in wanted.items()}


def _operators(architecture: Architecture) -> Iterator[tuple[str, tuple[str, tuple[str, ...]]]]:
    """Yield the release's prefix of each operator with ours, and the names of its parts."""
    skeleton, sample = architecture.skeleton, architecture.sample
    blocks = iter(skeleton.labels("backbone"))
    number = 0
    for stage, depth in enumerate(skeleton.depths):
        for block in range(depth):
            number += 1
            yield f"backbone.layers.{number}.", (f"backbone.stages.{stage}.{block}.", _parts(sample[next(blocks)]))
    if skeleton.tail is not None:
        yield f"backbone.layers.{number + 1}.", ("backbone.tail.0.", _LAYERS["ir"])
    rows = len(skeleton.neck_channels)
    for place, label in enumerate(skeleton.labels("neck")):
        row = "top_down" if place < rows else "bottom_up"
        yield f"neck.SearchNeck.cells.{place}.", (f"neck.{row}.{place % rows}.", _parts(sample[label]))
    for place, label in enumerate(skeleton.labels("head")):
        yield f"bbox_head.SearchHead.cells.{place}.", (f"roi_head.bbox_head.blocks.{place}.", _parts(sample[label]))


def _parts(operator: str) -> tuple[str, ...]:
    return _LAYERS[parse_operator(operator).family]


def _name(name: str, operators: Mapping[str, Any]) -> str | None:
    """Return our name of a tensor of the release; ``None`` of one that belongs to no part of the network."""
    for theirs, (ours, parts) in operators.items():
        match = re.fullmatch(rf"{re.escape(theirs)}conv(\d)\.(conv|bn)\.(.+)", name)
        if match:
            part = int(match[1]) - 1
            return f"{ours}{parts[part]}.{match[2]}.{match[3]}" if part < len(parts) else None
    last = max(int(match[1]) for theirs in operators if (match := re.fullmatch(r"backbone\.layers\.(\d+)\.", theirs)))
    tail = re.fullmatch(rf"backbone\.layers\.{last + 1}\.(conv|bn)\.(.+)", name)
    if tail:
        return f"backbone.tail.{1 if tail[1] == 'conv' else 2}.{tail[2]}"
    for pattern, ours in _RENAMED:
        if pattern.match(name):
            return pattern.sub(ours, name)
    return name if name.startswith("rpn_head.") else None
