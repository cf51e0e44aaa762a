"""Detectors as files of OpenVINO: its two files made of an ONNX program, and what they find."""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hitdet_nni.deployment import OUTPUTS
from hitdet_nni.deployment.images import Found, Pixels
from hitdet_nni.deployment.runtime_detector import RuntimeDetector, cannot_be_opened, require_file
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


class _SignalStack(ctypes.Structure):
    """The C library's ``stack_t``."""

    _fields_ = (("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Give this thread back the stack that its signals are handled on, which OpenVINO replaces when it compiles.

    OpenVINO's has 11 kB. The end of a data loader's process, which is a signal, can overflow it and end this process.
    """
    library, before = ctypes.CDLL(None), _SignalStack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)


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


class OpenVinoDetector(RuntimeDetector):
    """A whole detector, run by OpenVINO on the CPU in single precision or 8 bits.

    For attributes see :class:`~hitdet_nni.deployment.runtime_detector.RuntimeDetector`.

    Args:
        file: The ``.xml`` file; the ``.bin`` lies beside it.
        threads: Threads of one operation.

    Raises:
        InputError: If it cannot be read, is no such file, or the package openvino is missing.
    """

    def __init__(self, file: Path, threads: int) -> None:
        require_file(file, ALLOWED)
        require_openvino(file)
        core = _openvino().Core()
        try:
            model = core.read_model(str(file))
        except RuntimeError as error:
            raise cannot_be_opened(file, error, ALLOWED) from None
        about = json.loads(model.get_rt_info([SECTION]).astype(str)) if model.has_rt_info([SECTION]) else {}
        super().__init__(file, about, ALLOWED, "openvino")
        # Left to itself OpenVINO computes in bfloat16 where the processor can.
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        with kept_signal_stack():
            self._model = core.compile_model(model, "CPU", settings)

    def run_one(self, image: Pixels) -> Found:
        """Map one image ``[1, 3, H', W']`` to what is found in it."""
        outputs = self._model(image)
        boxes, scores, labels = (outputs[name].copy() for name in OUTPUTS)
        return boxes, scores, labels
