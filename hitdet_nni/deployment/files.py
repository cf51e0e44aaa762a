"""Exported files as detectors: what a file finds, whatever its format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from hitdet_nni.deployment import Format
from hitdet_nni.deployment.formats import METADATA_FILE
from hitdet_nni.deployment.images import Found, Pixels, Predictor
from hitdet_nni.deployment.onnx_detector import OnnxDetector
from hitdet_nni.deployment.openvino_files import OpenVinoDetector
from hitdet_nni.deployment.suffixes import SUFFIXES, require_content


class TorchFile:
    """A whole detector, decoding and suppression included, in a file of TorchScript or torch.export.

    Args:
        file: The file; a TorchScript is a program, so that only files of one's own are to be opened.
        kind: Its format.

    Attributes:
        classes: Class names in the order of the labels.
        input_size: Height and width that images are resized to fit.
    """

    def __init__(self, file: Path, kind: Format) -> None:
        extra = {METADATA_FILE: ""}
        if kind == "torchscript":
            self._module: Any = torch.jit.load(str(file), _extra_files=extra)  # type: ignore[no-untyped-call]
        else:
            self._module = torch.export.load(str(file), extra_files=extra).module()
        about = json.loads(extra[METADATA_FILE])
        self.classes: tuple[str, ...] = tuple(about["classes"])
        height, width = about["input_size"]
        self.input_size = (int(height), int(width))

    def run(self, images: Pixels) -> list[Found]:
        """Map resized images ``[B, 3, H', W']``, one after the other, to what is found in each."""
        with torch.no_grad():
            outputs = [self._module(torch.from_numpy(image[None])) for image in images]
        return [(boxes.numpy(), scores.numpy(), labels.numpy()) for boxes, scores, labels in outputs]


def open_file(file: Path, kind: Format, threads: int) -> Predictor:
    """Return the detector of an exported file.

    Args:
        file: A whole detector.
        kind: Its format.
        threads: Threads of one operation; torch has those of the process.
    """
    if kind in ("torchscript", "torch-export"):
        return TorchFile(file, kind)
    return (OpenVinoDetector if kind == "openvino" else OnnxDetector)(file, threads)


def open_runtime_file(file: Path, threads: int) -> OnnxDetector | OpenVinoDetector:
    """Return the detector of a file that a runtime of its own runs: ONNX, or by its ending ``.xml`` OpenVINO's.

    Args:
        file: A whole detector.
        threads: Threads of one operation.

    Raises:
        InputError: If it cannot be read, is no such file, or the runtime's package is missing.
    """
    kind: Format = "openvino" if file.suffix == SUFFIXES["openvino"] else "onnx"
    if file.is_file():
        require_content(file, kind)
    return (OpenVinoDetector if kind == "openvino" else OnnxDetector)(file, threads)
