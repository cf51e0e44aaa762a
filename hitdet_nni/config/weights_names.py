"""Names of pretrained weights: torchvision's, where its file is on this machine."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

from hitdet_nni.errors import InputError

PREFIX = "torchvision:"


def is_weights_name(value: object) -> bool:
    """Whether a setting names weights of torchvision and not a file."""
    return isinstance(value, str) and value.startswith(PREFIX)


def weights_file(name: str) -> Path:
    """Return the file of named weights, where torch keeps what it has downloaded.

    Args:
        name: ``torchvision:MODEL``, or ``torchvision:MODEL:VERSION`` such as ``torchvision:resnet50:IMAGENET1K_V1``.

    Raises:
        InputError: If torchvision has no such weights, or the file is not there; it says where it is to be had.
    """
    import torch  # noqa: PLC0415  (both take seconds, and few configs name weights)
    from torchvision.models import get_model_weights  # noqa: PLC0415

    model, _, version = name.removeprefix(PREFIX).partition(":")
    try:
        known = get_model_weights(model)
    except ValueError:
        raise InputError(f"has no model {model!r}", source=name, allowed="a model of torchvision.models") from None
    versions = [one.name for one in known]
    if version not in ("", *versions):
        raise InputError(f"{model} has no weights {version!r}", source=name, allowed=versions)
    weights = known[version] if version else known.DEFAULT
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / Path(urlparse(weights.url).path).name
    if not file.is_file():
        raise InputError("is not on this machine", source=name, allowed=f"{weights.url} in {folder}")
    return file
