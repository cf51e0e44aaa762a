"""Weights of a pretrained backbone: written by the classification training, read into a detector's backbone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hitdet_nni.config.skeleton import layer_label
from hitdet_nni.engine.weights_file import read_content
from hitdet_nni.errors import InputError
from hitdet_nni.io import whole_file
from hitdet_nni.model.backbone import HitBackbone
from hitdet_nni.model.searchable import ALPHA
from hitdet_nni.operators.registry import parse_operator

_ACTIVE = "_extra_state"
_ORIGIN = "a file of `hitdet-nni pretrain` for this skeleton"


def save_backbone(backbone: nn.Module, path: Path, sample: Mapping[str, str] | None = None) -> None:
    """Save a backbone's weights atomically: ``{"state_dict": ...}``, and ``"sample"`` where it is decided.

    The operators of a decided backbone are written too, because some that compute different things, such as
    ``ir_k3_d1_e3`` and ``ir_k3_d2_e3``, have tensors of the same names and shapes.

    Args:
        backbone: A :class:`~hitdet_nni.model.backbone.HitBackbone`, of a supernet or decided.
        path: The file; its folder exists.
        sample: Operator name of each searched layer by its label, for a decided backbone.

    Raises:
        WriteError: If the file cannot be written.
    """
    content: dict[str, Any] = {"state_dict": backbone.state_dict()}
    if sample is not None:
        content["sample"] = dict(sample)
    with whole_file(path) as stream:
        torch.save(content, stream)


def load_backbone(backbone: nn.Module, path: Path, sample: Mapping[str, str] | None = None) -> None:
    """Load a file of :func:`save_backbone` into the backbone of a supernet or of a decided detector.

    Every tensor of the backbone but its architecture parameters must be in the file. A supernet may have fewer
    candidates than the file; a decided layer takes the weights of its operator from among the file's candidates.
    Nothing is changed where the file does not fit.

    Args:
        backbone: A :class:`~hitdet_nni.model.backbone.HitBackbone`, its choices turned into mixed layers or not.
        path: The file.
        sample: Operator name by layer label: needed where a layer is decided and the file holds candidates, and
            compared with the operators of a decided file. Labels of other layers are allowed.

    Raises:
        InputError: If the file is missing or unreadable, or does not fit; it names the first missing tensor.
    """
    state, operators = _read(path)
    for label, name in (sample or {}).items():
        if operators.get(label, name) != name:
            raise InputError(f"was trained with {operators[label]} in layer {label}", source=path, allowed=name)
    layers = _layers(backbone)
    target = backbone.state_dict()
    targets, sources = _candidates(target, layers), _candidates(state, layers)
    loaded: dict[str, Any] = {}
    used: set[str] = set()
    for key, own in target.items():
        if key.endswith((ALPHA, _ACTIVE)):
            loaded[key] = own
            continue
        prefix = _layer_of(key, layers)
        source = key
        if prefix and sources[prefix] and not targets[prefix]:
            source = f"{prefix}{_operator(layers[prefix], sources[prefix], sample, path)}.{key[len(prefix) :]}"
        value = state.get(source)
        if not isinstance(value, Tensor):
            raise InputError(f"has no tensor {source!r}", source=path, allowed=_ORIGIN)
        if value.shape != own.shape:
            raise InputError(
                f"{source!r} has the shape {list(value.shape)}", source=path, allowed=f"{list(own.shape)}, {_ORIGIN}"
            )
        loaded[key] = value
        used.add(source)
    for key in state:
        prefix = _layer_of(key, layers)
        if key not in used and not (prefix and sources[prefix]):
            raise InputError(f"tensor {key!r} has no place in this backbone", source=path, allowed=_ORIGIN)
    backbone.load_state_dict(loaded)


def _read(path: Path) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Return the state dict of a file and the operators of a decided one."""
    content = read_content(path, allowed=_ORIGIN)
    operators = content.get("sample", {})
    if not isinstance(operators, dict):
        raise InputError(f"got {type(operators).__name__}", source=path, key="sample", allowed="operators by layer")
    return content["state_dict"], operators


def _layers(backbone: nn.Module) -> dict[str, str]:
    """Return the label of each searched layer by its tensors' prefix, e.g. ``{"stages.0.0.": "backbone/l01"}``."""
    if not isinstance(backbone, HitBackbone):
        raise TypeError(f"expected a HitBackbone, got {type(backbone).__name__}")
    stages = enumerate(backbone.stages)
    prefixes = [f"stages.{number}.{block}." for number, stage in stages for block, _ in stage.named_children()]
    return {prefix: layer_label("backbone", index) for index, prefix in enumerate(prefixes)}


def _layer_of(key: str, layers: Mapping[str, str]) -> str | None:
    """Return the prefix of the searched layer that a tensor belongs to."""
    prefix = ".".join(key.split(".")[:3]) + "."
    return prefix if prefix in layers else None


def _candidates(keys: Iterable[str], layers: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the operators whose tensors each layer holds apart, by the layer's prefix; none if it is decided."""
    found: dict[str, set[str]] = {prefix: set() for prefix in layers}
    for key in keys:
        prefix = _layer_of(key, layers)
        name = key.split(".")[3] if prefix and key.count(".") > 3 else ""
        if prefix and _is_operator(name):
            found[prefix].add(name)
    return found


def _is_operator(name: str) -> bool:
    try:
        parse_operator(name)
    except InputError:
        return False
    return True


def _operator(label: str, candidates: set[str], sample: Mapping[str, str] | None, path: Path) -> str:
    """Return the operator of a decided layer, which must be among the file's candidates."""
    if sample is None or label not in sample:
        raise InputError(
            f"holds candidates of layer {label}, and which of them the layer is has not been given",
            source=path,
            allowed="weights of a decided backbone",
        )
    if sample[label] not in candidates:
        raise InputError(f"has no {sample[label]!r} in layer {label}", source=path, allowed=sorted(candidates))
    return sample[label]
