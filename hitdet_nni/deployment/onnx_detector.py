"""A detector from an ONNX file of ``export``: onnxruntime finds objects in images, nothing else is needed."""

from __future__ import annotations

import json
from pathlib import Path

from hitdet_nni.deployment.formats import INPUT
from hitdet_nni.deployment.images import Found, Pixels
from hitdet_nni.deployment.runtime_detector import RuntimeDetector, cannot_be_opened, require_file
from hitdet_nni.deployment.timing.runtimes import open_session

ALLOWED = "a file of hitdet-nni export --format onnx"


class OnnxDetector(RuntimeDetector):
    """A whole detector in a session of onnxruntime; for attributes see :class:`RuntimeDetector`.

    Args:
        file: The ONNX file.
        threads: Threads of one operation.

    Raises:
        InputError: If it cannot be read, or is no such file.
    """

    def __init__(self, file: Path, threads: int) -> None:
        require_file(file, ALLOWED)
        try:
            self.session = open_session(file, threads)
            about = {k: json.loads(v) for k, v in self.session.get_modelmeta().custom_metadata_map.items()}
        except Exception as error:  # onnxruntime's exceptions have no common base but this
            raise cannot_be_opened(file, error, ALLOWED) from None
        super().__init__(file, about, ALLOWED, "onnxruntime")

    def run_one(self, image: Pixels) -> Found:
        """Map one image ``[1, 3, H', W']`` to what is found in it."""
        return tuple(self.session.run(None, {INPUT: image}))
