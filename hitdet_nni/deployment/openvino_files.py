"""Detectors as files of OpenVINO: its two files made of an ONNX program, and what they find."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hitdet_nni.deployment import OUTPUTS
from hitdet_nni.deployment.images import Found, Pixels
from hitdet_nni.deployment.prediction import THRESHOLD, Prediction, Source, predict
from hitdet_nni.errors import InputError

SECTION = "hitdet_nni"
"""Key of the metadata, a JSON object, in the file's run-time information."""

ALLOWED = "a file of hitdet-nni export --format openvino, with the .bin beside it"


def require_openvino(source: str | Path) -> None:
    """Refuse to go on without the package openvino.

    Args:
        source: The option or file that needs it.

    Raises:
        InputError: If it is not installed.
    """
    if find_spec("openvino") is None:
        raise InputError(
            "needs the package openvino", source=source, allowed="after pip install 'hitdet-nni[openvino]'"
        )


def _openvino() -> Any:
    """Import OpenVINO, an extra of the package, and keep it from sending an event of it to its makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as where it is not installed
    return importlib.import_module("openvino")


def openvino_files(program: bytes, metadata: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Return the contents of OpenVINO's ``.xml`` and ``.bin``.

    Args:
        program: The content of an ONNX file; what it computes in stays.
        metadata: What a user of the file must know, written as JSON.
    """
    openvino = _openvino()
    with TemporaryDirectory() as folder:
        source, written = Path(folder, "model.onnx"), Path(folder, "model.xml")
        source.write_bytes(program)
        model = openvino.convert_model(str(source))
        model.set_rt_info(json.dumps(metadata), [SECTION])
        openvino.save_model(model, str(written), compress_to_fp16=False)
        return written.read_bytes(), written.with_suffix(".bin").read_bytes()


class OpenVinoDetector:
    """A whole detector, decoding and suppression included, run by OpenVINO on the CPU in single precision or 8 bits.

    Args:
        file: The ``.xml`` file; the ``.bin`` lies beside it.
        threads: Threads of one operation.

    Attributes:
        classes: Class names in the order of the labels.
        weights: SHA-256 of the file of weights that it was made of.
        input_size: Height and width that images are resized to fit.
        runtime: What runs it, and its version.

    Raises:
        InputError: If it cannot be read, is no such file, or the package openvino is missing.
    """

    def __init__(self, file: Path, threads: int) -> None:
        if not file.is_file():
            raise InputError("no such file", source=file, allowed=ALLOWED)
        require_openvino(file)
        openvino = _openvino()
        core = openvino.Core()
        try:
            model = core.read_model(str(file))
        except RuntimeError as error:
            problem = f"cannot be opened: {' '.join(str(error).split()[:20])}"
            raise InputError(problem, source=file, allowed=ALLOWED) from None
        if not model.has_rt_info([SECTION]):
            raise InputError("says nothing of its classes and outputs", source=file, allowed=ALLOWED)
        about = json.loads(model.get_rt_info([SECTION]).astype(str))
        if about["outputs"] != list(OUTPUTS):
            raise InputError("ends at the heads", source=file, allowed=f"{ALLOWED}, without --raw-heads")
        # Left to itself OpenVINO computes in bfloat16 where the processor can.
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        self._model = core.compile_model(model, "CPU", settings)
        self.runtime = f"openvino {version('openvino')}"
        self.weights: str | None = about.get("weights")
        self.classes = tuple(about["classes"])
        height, width = about["input_size"]
        self.input_size = (int(height), int(width))

    def predict(self, source: Source, threshold: float = THRESHOLD) -> Prediction:
        """Find objects in an image; for arguments and errors see :func:`hitdet_nni.deployment.prediction.predict`."""
        return predict(self, source, threshold)

    def run(self, images: Pixels) -> list[Found]:
        """Map resized images ``[B, 3, H', W']``, one after the other, to what is found in each."""
        found = []
        for image in images:
            outputs = self._model(image[None])
            boxes, scores, labels = (outputs[name].copy() for name in OUTPUTS)
            found.append((boxes, scores, labels))
        return found
