"""What runs a module for its time: onnxruntime, on a file as ``export`` writes it, or torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hitdet_nni.cost.latency_table import Device, Runtime
from hitdet_nni.deployment import OUTPUTS
from hitdet_nni.deployment.detector import Detector
from hitdet_nni.deployment.formats import INPUT, LAYER_INPUT, onnx_file, onnx_program
from hitdet_nni.errors import InputError

if TYPE_CHECKING:
    import onnxruntime

Program = Callable[[], object]
"""Runs a module once, to the end."""

Opener = Callable[[], Program]
"""Loads a program; what it holds is freed with it."""


class ModuleRunner(ABC):
    """Runs modules on one device.

    Args:
        device: What they run on.
        threads: Threads of one operation; on a GPU they launch and do not compute.
    """

    name: Runtime

    def __init__(self, device: Device, threads: int) -> None:
        self.device = device
        self.threads = threads

    @property
    def version(self) -> str:
        """The version of what runs them."""
        return version(self.name)

    @abstractmethod
    def compile(self, module: nn.Module, example: Tensor, folder: Path) -> Opener:
        """Make a program of a module.

        Args:
            module: A module in evaluation mode that takes one tensor.
            example: What it is run on, of any shape that the module takes.
            folder: Where files may lie until the last program is closed.
        """


class OnnxRunner(ModuleRunner):
    """onnxruntime on the CPU, each program in a session of its own.

    Raises:
        InputError: If the packages are missing, or a GPU is asked for: the maps of layers by themselves would be copied
            to it and back, which those of a whole detector are not.
    """

    name: Runtime = "onnxruntime"

    def __init__(self, device: Device, threads: int) -> None:
        super().__init__(device, threads)
        if device != "cpu":
            raise InputError(f"got {device} with onnxruntime", key="--device", allowed="cpu, or --runtime torch")
        for package in ("onnx", "onnxruntime"):
            if find_spec(package) is None:
                raise InputError(
                    f"needs the package {package}", key="--runtime", allowed="pip install hitdet-nni[onnx]"
                )

    def compile(self, module: nn.Module, example: Tensor, folder: Path) -> Opener:
        """Write the module as ``export --format onnx`` does; sessions run the file on ``example``, of any shape."""
        whole = isinstance(module, Detector)
        with NamedTemporaryFile(dir=folder, suffix=".onnx", delete=False) as stream:
            stream.write(onnx_file(module, OUTPUTS, {}) if whole else onnx_program(module, example))
        file = Path(stream.name)
        feed = {INPUT if whole else LAYER_INPUT: example.numpy()}

        def opened() -> Program:
            session = open_session(file, self.threads)
            return lambda: session.run(None, feed)

        return opened


def open_session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    """Open an ONNX file with onnxruntime on the CPU.

    Args:
        file: The file.
        threads: Threads of one operation; operations run one after the other.
    """
    import onnxruntime  # noqa: PLC0415  # an extra of the package

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


class TorchRunner(ModuleRunner):
    """torch, eagerly; on a GPU each run ends when the GPU has.

    Raises:
        InputError: If there is no such device.
    """

    name: Runtime = "torch"

    def __init__(self, device: Device, threads: int) -> None:
        super().__init__(device, threads)
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("torch finds no GPU", key="--device", allowed="cpu")
        torch.set_num_threads(threads)

    def compile(self, module: nn.Module, example: Tensor, folder: Path) -> Opener:
        """Keep the module, and run it on ``example``, of any shape; both move to the device as a program is opened."""

        def opened() -> Program:
            on_device, images = module.to(self.device), example.to(self.device)

            @torch.inference_mode()
            def run() -> None:
                on_device(images)
                if self.device == "cuda":
                    torch.cuda.synchronize()

            return run

        return opened


RUNNERS: dict[Runtime, type[ModuleRunner]] = {runner.name: runner for runner in (OnnxRunner, TorchRunner)}
"""The runners by the names of their runtimes."""
