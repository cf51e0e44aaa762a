"""The found detector outside the framework: a module of torch and torchvision alone, and files made of it.

Nothing here imports mmdet, mmcv, mmengine or NNI.
"""

from __future__ import annotations

from typing import Literal, get_args

Format = Literal["onnx", "torchscript", "torch-export", "openvino"]
FORMATS: tuple[Format, ...] = get_args(Format)
"""What a trained detector can be written as."""

OUTPUTS = ("boxes", "scores", "labels")
"""Names of the outputs of a whole detector."""

FilePrecision = Literal["fp32", "fp16", "int8"]
FILE_PRECISIONS: tuple[FilePrecision, ...] = get_args(FilePrecision)
"""What the layers of such a file compute in; boxes are decoded in single precision whatever it is."""
