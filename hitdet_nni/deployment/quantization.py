"""ONNX files that compute in 8 bits, calibrated on images."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hitdet_nni.deployment.images import Pixels

LAST_LAYERS = ("fc_cls", "fc_reg", "rpn_cls", "rpn_reg", "retina_cls", "retina_reg")
"""Layers whose outputs are scores and box offsets; they compute in single precision."""

QUANTISED = ("Conv", "Gemm", "MatMul")
"""Operators that compute in 8 bits."""


def quantized(content: bytes, feed: str, calibration: Iterable[Pixels]) -> bytes:
    """Return an ONNX file whose convolutions and matrix products compute in 8 bits, but for the first and last ones.

    It is onnxruntime's static quantisation. Weights have a scale for each channel, and 7 bits, so that processors
    without VNNI do not saturate; activations have one scale for each map, by the least and the largest value on the
    images. Boxes are decoded in single precision.

    Args:
        content: The file in single precision.
        feed: Name of its input.
        calibration: Images as the detector takes them, ``[1, 3, H, W]``.
    """
    import onnx  # noqa: PLC0415  # an extra of the package
    from onnxruntime.quantization import (  # noqa: PLC0415
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    images: Iterator[Pixels] = iter(calibration)

    class Images(CalibrationDataReader):  # type: ignore[misc]
        """The images, as the quantiser asks for them."""

        def get_next(self) -> dict[str, Any] | None:
            """Return the next image by the input's name, ``None`` after the last."""
            image = next(images, None)
            return None if image is None else {feed: image}

    with TemporaryDirectory() as folder, _notices_unheard():
        source, prepared, result = (Path(folder, f"{name}.onnx") for name in ("source", "prepared", "result"))
        source.write_bytes(content)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        nodes = onnx.load(prepared).graph.node
        ends = [next(node.name for node in nodes if node.op_type == "Conv")]  # the stem, which sees the image
        ends += [node.name for node in nodes if any(layer in name for name in node.input for layer in LAST_LAYERS)]
        quantize_static(
            str(prepared),
            str(result),
            Images(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=ends,
        )
        program = onnx.load(result)
    del program.metadata_props[:]  # the quantiser's own are no JSON
    program.metadata_props.extend(onnx.load_from_string(content).metadata_props)
    onnx.checker.check_model(program)
    changed: bytes = program.SerializeToString()
    return changed


@contextmanager
def _notices_unheard() -> Iterator[None]:
    """Keep off the terminal what the quantiser advises; it is done here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
