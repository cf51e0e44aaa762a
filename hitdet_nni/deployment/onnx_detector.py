"""A detector from an ONNX file of ``export``: onnxruntime finds objects in images, nothing else is needed."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from hitdet_nni.deployment import OUTPUTS
from hitdet_nni.deployment.formats import INPUT
from hitdet_nni.deployment.images import Found, Pixels
from hitdet_nni.deployment.prediction import THRESHOLD, Prediction, Source, predict
from hitdet_nni.deployment.timing.runtimes import open_session
from hitdet_nni.errors import InputError

ALLOWED = "a file of hitdet-nni export --format onnx"


class OnnxDetector:
    """A whole detector, decoding and suppression included, in a session of onnxruntime.

    Args:
        file: The ONNX file.
        threads: Threads of one operation.

    Attributes:
        classes: Class names in the order of the labels.
        weights: SHA-256 of the file of weights that it was made of; ``None`` of files that do not say it.
        input_size: Height and width that images are resized to fit.
        runtime: What runs it, and its version.

    Raises:
        InputError: If it cannot be read, or is no such file.
    """

    def __init__(self, file: Path, threads: int) -> None:
        if not file.is_file():
            raise InputError("no such file", source=file, allowed=ALLOWED)
        try:
            self.session = open_session(file, threads)
            about = {k: json.loads(v) for k, v in self.session.get_modelmeta().custom_metadata_map.items()}
        except Exception as error:  # onnxruntime's exceptions have no common base but this
            raise InputError(
                f"cannot be opened: {' '.join(str(error).split()[:20])}", source=file, allowed=ALLOWED
            ) from None
        if about.get("outputs") != list(OUTPUTS):
            problem = "ends at the heads" if "outputs" in about else "says nothing of its classes and outputs"
            raise InputError(problem, source=file, allowed=f"{ALLOWED} without --raw-heads")
        self.runtime = f"onnxruntime {version('onnxruntime')}"
        self.weights: str | None = about.get("weights")
        self.classes = tuple(about["classes"])
        height, width = about["input_size"]
        self.input_size = (int(height), int(width))

    def predict(self, source: Source, threshold: float = THRESHOLD) -> Prediction:
        """Find objects in an image; for arguments and errors see :func:`hitdet_nni.deployment.prediction.predict`."""
        return predict(self, source, threshold)

    def run(self, images: Pixels) -> list[Found]:
        """Map resized images ``[B, 3, H', W']``, one after the other, to what is found in each."""
        return [tuple(self.session.run(None, {INPUT: image[None]})) for image in images]
