"""Hit-Detector: backbone, neck and head of an object detector searched together, on NNI and mmdet.

Source: Guo et al., "Hit-Detector: Hierarchical Trinity Architecture Search for Object Detection", CVPR 2020.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from hitdet_nni.compat import import_guard, mmcv_ops

if TYPE_CHECKING:
    from hitdet_nni.api import Run, load, search
    from hitdet_nni.config.architecture import Architecture, load_architecture
    from hitdet_nni.config.skeleton import Skeleton
    from hitdet_nni.errors import InputError
    from hitdet_nni.model.detector import HitDetectorSpace, build_detector
    from hitdet_nni.nas.strategy import ColumnSparseDARTS
    from hitdet_nni.operators.registry import OPERATORS

__version__ = "0.1.0"

__all__ = [
    "OPERATORS",
    "Architecture",
    "ColumnSparseDARTS",
    "HitDetectorSpace",
    "InputError",
    "Run",
    "Skeleton",
    "build_detector",
    "load",
    "load_architecture",
    "search",
]

# NNI 3.0 warns of every torch.nn class that is newer than itself.
warnings.filterwarnings("ignore", message=".*is found to be not a nn.Module", category=RuntimeWarning)

# mmdet imports mmcv.ops and cv2 when it is imported, so the finders stand before that. They cost no heavy import.
mmcv_ops.install()
import_guard.install()

_HOMES = {
    "search": "api",
    "load": "api",
    "Run": "api",
    "Architecture": "config.architecture",
    "load_architecture": "config.architecture",
    "InputError": "errors",
    "HitDetectorSpace": "model.detector",
    "build_detector": "model.detector",
    "OPERATORS": "operators.registry",
    "ColumnSparseDARTS": "nas.strategy",
    "Skeleton": "config.skeleton",
}


def __dir__() -> list[str]:
    """Return the public names, which Tab completes whether they were imported yet or not."""
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import hitdet_nni`` loads neither torch nor mmdet."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
