"""Files that run without this package (ONNX, TorchScript, torch.export, OpenVINO), with what a user must know."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes

from hitdet_nni import __version__
from hitdet_nni.config.architecture import Architecture
from hitdet_nni.deployment import FILE_PRECISIONS, OUTPUTS, FilePrecision, Format
from hitdet_nni.deployment.detector import RawHeads
from hitdet_nni.deployment.images import Pixels
from hitdet_nni.deployment.loading import load_detector
from hitdet_nni.deployment.one_stage import OneStageDetector
from hitdet_nni.deployment.openvino_files import openvino_files, require_openvino
from hitdet_nni.deployment.quantization import quantized
from hitdet_nni.errors import InputError
from hitdet_nni.io import whole_file
from hitdet_nni.model.preprocessing import PREPROCESSING

INPUT = "images"
"""Name of the model's input."""

LAYER_INPUT = "input"
"""Name of the input of a layer by itself."""

METADATA_FILE = "metadata.json"
"""Name of the metadata inside a TorchScript or torch.export file."""

OPSET = 18
"""Version of ONNX's operators; RoIAlign samples as torchvision's does from 16 on."""

EXAMPLE = (128, 192)
"""Height and width of the image that a model is traced with; files take any."""

_BY_ONNX: tuple[Format, ...] = ("onnx", "openvino")
"""Formats that an ONNX program is or is made into."""

LARGEST_BATCH = 1024
"""Images that a torch.export file of a one-stage detector's heads takes at once."""

SMALLEST, LARGEST = 32, 8192
"""Sides in pixels of the images that a torch.export file takes."""


def export_model(
    architecture: Architecture,
    weights: str | Path,
    path: Path,
    kind: Format,
    *,
    raw_heads: bool = False,
    precision: FilePrecision = "fp32",
    calibration: Iterable[Pixels] = (),
) -> None:
    """Write a trained detector as one file that needs neither this package nor mmdet nor NNI.

    Args:
        architecture: What was trained.
        weights: File of a retraining; nothing in it is executed.
        path: File to write, whole or not at all; OpenVINO's values are written beside it, as ``.bin``.
        kind: Its format.
        raw_heads: Write what the heads say, before boxes are decoded and suppressed.
        precision: What the layers compute in, the last ones left out.
        calibration: For ``int8``: images as the detector takes them, ``[1, 3, H, W]``.

    Raises:
        InputError: If the weights do not fit, the packages of the format are missing, or it has no such precision.
        WriteError: If the file cannot be written.
    """
    if kind in _BY_ONNX and find_spec("onnx") is None:
        raise InputError("needs the package onnx", key="--format", allowed="after pip install hitdet-nni[onnx]")
    if kind == "openvino":
        require_openvino("--format")
    if precision not in FILE_PRECISIONS:
        raise InputError(f"got {precision!r}", key="precision", allowed=FILE_PRECISIONS)
    if precision == "int8":
        _require_quantiser(kind)
    detector = load_detector(architecture, weights)
    if precision == "fp16":
        detector.compute_in_half()
    model: nn.Module = RawHeads(detector) if raw_heads else detector
    outputs = detector.head_names() if raw_heads else OUTPUTS
    metadata = {
        **describe(architecture, outputs, weights_digest(weights)),
        "precision": precision,
        "batch": "any" if takes_batches(model) else 1,
    }
    with torch.no_grad(), _notices_unheard():
        content = WRITERS[kind](model, metadata)
    if precision == "int8":
        content = quantized(content, INPUT, calibration)
    if kind == "openvino":
        content, values = openvino_files(content, metadata)
        with whole_file(path.with_suffix(".bin")) as beside, whole_file(path) as stream:
            beside.write(values)
            stream.write(content)
        return
    with whole_file(path) as stream:
        stream.write(content)


def _require_quantiser(kind: Format) -> None:
    """Refuse 8 bits where there is nothing that makes them.

    Raises:
        InputError: If the format is not made of ONNX, or the package onnxruntime is missing.
    """
    if kind not in _BY_ONNX:
        raise InputError(f"got int8 with {kind}", key="--precision", allowed=f"int8 with {', '.join(_BY_ONNX)}")
    if find_spec("onnxruntime") is None:
        raise InputError("needs the package onnxruntime", key="--precision", allowed="pip install hitdet-nni[onnx]")


def weights_digest(weights: str | Path) -> str:
    """Return the SHA-256 of a file of weights, by which a model file is known to be of them."""
    return hashlib.sha256(Path(weights).read_bytes()).hexdigest()


def example_image() -> Tensor:
    """Return the image that a model is traced with, ``[1, 3, H, W]`` of 8 bits."""
    return torch.randint(0, 256, (1, 3, *EXAMPLE), generator=torch.Generator().manual_seed(0)).byte()


def takes_batches(model: nn.Module) -> bool:
    """Whether a model takes several images at once, as the maps of a one-stage detector's heads are made.

    A whole detector finds another number of boxes in each image, and a two-stage one's head sees the RoIs of one.
    """
    return isinstance(model, RawHeads) and isinstance(model.detector, OneStageDetector)


def describe(architecture: Architecture, outputs: tuple[str, ...], weights: str) -> dict[str, Any]:
    """Return what a user of the file must know: classes, what goes in, what comes out."""
    return {
        "name": architecture.name,
        "detector": architecture.skeleton.detector,
        "classes": list(architecture.provenance.classes),
        "input": INPUT,
        "input_size": list(architecture.skeleton.input_size),
        "input_type": "uint8",
        "color_order": "RGB",
        "mean": PREPROCESSING["mean"],
        "std": PREPROCESSING["std"],
        "normalisation": "inside the model",
        "outputs": list(outputs),
        "weights": weights,
        "written_by": f"hitdet-nni {__version__}, torch {torch.__version__}",
    }


@contextmanager
def _notices_unheard() -> Iterator[None]:
    """Keep off the terminal what the exporters say about themselves; that TorchScript is to be replaced, above all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _onnx(model: nn.Module, metadata: Mapping[str, Any]) -> bytes:
    return onnx_file(model, metadata["outputs"], metadata)


@torch.no_grad()
def onnx_file(model: nn.Module, outputs: Sequence[str], metadata: Mapping[str, Any]) -> bytes:
    """Return the content of an ONNX file of a detector, or of its heads, for images of any size.

    Args:
        model: The detector, or its :class:`~hitdet_nni.deployment.detector.RawHeads`.
        outputs: Names of its outputs.
        metadata: Properties of the file.
    """
    images = example_image()
    batch = {0: "batch"} if takes_batches(model) else {}
    axes = {INPUT: {**batch, 2: "height", 3: "width"}}
    for name, result in zip(outputs, model(images), strict=True):
        of_map = {**batch, 2: f"{name}_rows", 3: f"{name}_columns"}
        axes[name] = of_map if result.dim() == 4 else {0: f"{name}_count"}
    return onnx_program(model, images, INPUT, outputs, axes, metadata)


@torch.no_grad()
def onnx_program(
    model: nn.Module,
    example: Tensor,
    name: str = LAYER_INPUT,
    outputs: Sequence[str] | None = None,
    axes: Mapping[str, Mapping[int, str]] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the content of an ONNX file, by the exporter that traces.

    The one based on torch.export took 40 times as long on the same detector, for the same outputs.

    Args:
        model: A module in evaluation mode that takes one tensor.
        example: The tensor that it is traced with, of any shape that the model takes.
        name: Name of the input.
        outputs: Names of the outputs; chosen by the exporter where none are given.
        axes: Names of the axes whose lengths may differ from the example's, by input or output.
        metadata: Properties of the file, each written as JSON.
    """
    import onnx  # noqa: PLC0415  # an extra of the package

    with TemporaryDirectory() as folder, _notices_unheard():
        file = Path(folder, "model.onnx")
        torch.onnx.export(
            model,
            (example,),
            file,
            input_names=[name],
            output_names=None if outputs is None else list(outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            # Batch normalisation is left as it is: folded into convolutions, levels would not share their parameters.
            training=torch.onnx.TrainingMode.PRESERVE,
            dynamo=False,
        )
        program = onnx.load(file)
    for output in program.graph.output if axes else ():
        first = output.type.tensor_type.shape.dim[0]
        if 0 not in (axes or {}).get(output.name, {}):  # the exporter gives it the name of another output's axis
            first.dim_value = example.shape[0]
    onnx.helper.set_model_props(program, {key: json.dumps(value) for key, value in (metadata or {}).items()})
    onnx.checker.check_model(program)
    content: bytes = program.SerializeToString()
    return content


def _torchscript(model: nn.Module, metadata: Mapping[str, Any]) -> bytes:
    """Export TorchScript with any image size, compiled and not traced."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer, _extra_files={METADATA_FILE: json.dumps(metadata)})
    return buffer.getvalue()


def _torch_export(model: nn.Module, metadata: Mapping[str, Any]) -> bytes:
    """Export a program of torch.export for images with sides from ``SMALLEST`` to ``LARGEST``."""
    if not hasattr(symbolic_shapes, "backed_size_oblivious"):
        raise InputError(
            f"torch {torch.__version__} is too old for it", key="--format", allowed="a newer torch, onnx or torchscript"
        )
    sides = {axis: torch.export.Dim(name, min=SMALLEST, max=LARGEST) for axis, name in ((2, "height"), (3, "width"))}
    example = example_image()
    if takes_batches(model):
        sides[0] = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
        example = torch.cat([example, example])  # of a single one torch would keep the 1
    buffer = io.BytesIO()
    # Otherwise maps of one pixel would be excluded, which the coarsest levels of small images are.
    with symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # installed at run time
        program = torch.export.export(model, (example,), dynamic_shapes=(sides,), strict=False)
        torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(metadata)})
    return buffer.getvalue()


WRITERS: Mapping[Format, Callable[[nn.Module, Mapping[str, Any]], bytes]] = {
    **dict.fromkeys(_BY_ONNX, _onnx),
    "torchscript": _torchscript,
    "torch-export": _torch_export,
}
