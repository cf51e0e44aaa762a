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
from hitdet_nni.deployment.formats import onnx_program
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
    """onnxruntime, each program in a session of its own.

    Raises:
        InputError: If the packages are missing, or onnxruntime has no such device.
    """

    name: Runtime = "onnxruntime"

    def __init__(self, device: Device, threads: int) -> None:
        super().__init__(device, threads)
        for package in ("onnx", "onnxruntime"):
            if find_spec(package) is None:
                raise InputError(
                    f"needs the package {package}", key="--runtime", allowed="pip install hitdet-nni[onnx]"
                )
        import onnxruntime  # noqa: PLC0415  # an extra of the package

        self._provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
        if self._provider not in onnxruntime.get_available_providers():
            raise InputError(
                f"this onnxruntime has no {self._provider}",
                key="--device",
                allowed="cpu, or pip install onnxruntime-gpu",
            )

    def compile(self, module: nn.Module, example: Tensor, folder: Path) -> Opener:
        """Write the module as ``export --format onnx`` does; sessions run the file on ``example``, of any shape."""
        with NamedTemporaryFile(dir=folder, suffix=".onnx", delete=False) as stream:
            stream.write(onnx_program(module, example))
        file = Path(stream.name)
        feed = {"input": example.numpy()}

        def opened() -> Program:
            session = open_session(file, self.threads, self._provider)
            return lambda: session.run(None, feed)

        return opened


def open_session(file: Path, threads: int, provider: str = "CPUExecutionProvider") -> onnxruntime.InferenceSession:
    """Open an ONNX file with onnxruntime.

    Args:
        file: The file.
        threads: Threads of one operation; operations run one after the other.
        provider: What computes.
    """
    import onnxruntime  # noqa: PLC0415  # an extra of the package

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(str(file), options, providers=[provider])


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
