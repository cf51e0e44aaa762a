"""What detectors share that a runtime of its own runs: what their files say, and whole images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hitdet_nni.deployment import OUTPUTS
from hitdet_nni.deployment.images import Found, Pixels
from hitdet_nni.deployment.prediction import THRESHOLD, Prediction, Source, predict
from hitdet_nni.errors import InputError


class RuntimeDetector(ABC):
    """A whole detector, decoding and suppression included, in a file.

    Args:
        file: The file.
        about: Its metadata; none where it has none.
        allowed: Which files are, for messages.
        package: What runs it.

    Attributes:
        classes: Class names in the order of the labels.
        weights: SHA-256 of the file of weights that it was made of; ``None`` of files that do not say it.
        precision: What its layers compute in; ``None`` of files that do not say it.
        input_size: Height and width that images are resized to fit.
        runtime: What runs it, and its version.

    Raises:
        InputError: If it is no file of a whole detector.
    """

    def __init__(self, file: Path, about: Mapping[str, Any], allowed: str, package: str) -> None:
        if about.get("outputs") != list(OUTPUTS):
            problem = "ends at the heads" if "outputs" in about else "says nothing of its classes and outputs"
            raise InputError(problem, source=file, allowed=f"{allowed}, without --raw-heads")
        self.runtime = f"{package} {version(package)}"
        self.weights: str | None = about.get("weights")
        self.precision: str | None = about.get("precision")
        self.classes = tuple(about["classes"])
        height, width = about["input_size"]
        self.input_size = (int(height), int(width))

    def predict(self, source: Source, threshold: float = THRESHOLD) -> Prediction:
        """Find objects in an image; for arguments and errors see :func:`hitdet_nni.deployment.prediction.predict`."""
        return predict(self, source, threshold)

    def run(self, images: Pixels) -> list[Found]:
        """Map resized images ``[B, 3, H', W']``, one after the other, to what is found in each."""
        return [self.run_one(image[None]) for image in images]

    @abstractmethod
    def run_one(self, image: Pixels) -> Found:
        """Map one image ``[1, 3, H', W']`` to what is found in it."""


def require_file(file: Path, allowed: str) -> None:
    """Refuse a file that is not there.

    Raises:
        InputError: If it is not.
    """
    if not file.is_file():
        raise InputError("no such file", source=file, allowed=allowed)


def cannot_be_opened(file: Path, error: Exception, allowed: str) -> InputError:
    """Return an error that has the first words of a runtime's own."""
    return InputError(f"cannot be opened: {' '.join(str(error).split()[:20])}", source=file, allowed=allowed)
