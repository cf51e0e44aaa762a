"""Which format the name of a file stands for, and which names a format may have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from hitdet_nni.deployment import Format
from hitdet_nni.errors import InputError

ExportFormat = Literal["architecture", Format]
"""What a run can be exported as: its architecture as JSON, or a model file."""

SUFFIXES: Mapping[ExportFormat, str] = {
    "architecture": ".json",
    "onnx": ".onnx",
    "torchscript": ".pt",
    "torch-export": ".pt2",
    "openvino": ".xml",
}
"""How the names of each format's files end."""

RUNTIME_SUFFIXES = (SUFFIXES["onnx"], SUFFIXES["openvino"])
"""Endings of the names of files that a runtime of its own runs."""

BY_SUFFIX: Mapping[str, ExportFormat] = {suffix: kind for kind, suffix in SUFFIXES.items()}

_STRICT: tuple[ExportFormat, ...] = ("torch-export", "openvino")
"""Formats whose files are found by their ending alone: torch and OpenVINO ask for it."""

_WORDS: Mapping[ExportFormat, str] = {
    "architecture": "JSON, as an architecture is",
    "onnx": "an ONNX file",
    "torchscript": "a file of torch",
    "openvino": "XML, as OpenVINO's files are",
}
"""What files are; those of both formats of torch look alike."""

_BEGINNINGS: Mapping[bytes, ExportFormat] = {
    b"{": "architecture",
    b"\x08": "onnx",
    b"PK\x03\x04": "torchscript",
    b"<": "openvino",
}
"""First bytes of files."""


def format_of(file: Path) -> ExportFormat:
    """Return the format that the name of a file to write stands for.

    Args:
        file: The file.

    Raises:
        InputError: If it stands for none.
    """
    if file.suffix not in BY_SUFFIX:
        known = ", ".join(BY_SUFFIX)
        raise InputError(f"got {file}", key="--out", allowed=f"a name that ends in {known}, or --format")
    return BY_SUFFIX[file.suffix]


def require_suffix(file: Path, kind: ExportFormat) -> None:
    """Refuse the name of a file to write that stands for another format than the file will have.

    Args:
        file: The file.
        kind: Its format.

    Raises:
        InputError: If the name ends as those of another format, or not as the format's programs ask for.
    """
    suffix = SUFFIXES[kind]
    other = BY_SUFFIX.get(file.suffix, kind)
    if other != kind:
        allowed = f"a name that ends in {suffix}, or --format {other}"
        raise InputError(f"got {file} with --format {kind}", key="--out", allowed=allowed)
    if kind in _STRICT and file.suffix != suffix:
        raise InputError(f"got {file}", key="--out", allowed=f"a name that ends in {suffix}, as {kind} asks for")


def require_content(file: Path, kind: ExportFormat) -> None:
    """Refuse a file that begins as those of another format than its name stands for.

    Args:
        file: A file that is there.
        kind: The format, not one of torch's.

    Raises:
        InputError: If it does, or cannot be read.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(max(map(len, _BEGINNINGS)))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", source=file) from None
    found = next((other for first, other in _BEGINNINGS.items() if start.startswith(first)), kind)
    if found != kind:
        allowed = f"a file of hitdet-nni export --format {kind}"
        raise InputError(f"is {_WORDS[found]}, whatever its name says", source=file, allowed=allowed)
