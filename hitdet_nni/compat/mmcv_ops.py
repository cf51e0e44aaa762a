"""Serve ``mmcv.ops`` from torchvision where no compiled mmcv is installed.

mmdet imports ``mmcv.ops`` while it is imported, and mmcv-lite has only the Python half of that package. ``install``
puts a finder in front of the import system that answers for ``mmcv.ops`` and its submodules with
:mod:`hitdet_nni.compat.torchvision_ops`. Importing this module loads neither torch nor mmcv.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import NoReturn

PACKAGE = "mmcv.ops"
IMPLEMENTATION = "hitdet_nni.compat.torchvision_ops"

SERVED: dict[str, tuple[str, ...]] = {
    "bbox": ("bbox_overlaps",),
    "box_iou_rotated": ("box_iou_rotated",),
    "carafe": ("CARAFE", "CARAFENaive", "CARAFEPack", "carafe", "carafe_naive"),
    "corner_pool": ("CornerPool",),
    "deform_conv": ("DeformConv2d", "DeformConv2dPack", "deform_conv2d"),
    "deform_roi_pool": ("DeformRoIPool", "DeformRoIPoolPack", "ModulatedDeformRoIPoolPack", "deform_roi_pool"),
    "focal_loss": ("SigmoidFocalLoss", "SoftmaxFocalLoss", "sigmoid_focal_loss", "softmax_focal_loss"),
    "info": ("get_compiler_version", "get_compiling_cuda_version"),
    "masked_conv": ("MaskedConv2d", "masked_conv2d"),
    "merge_cells": ("BaseMergeCell", "ConcatCell", "GlobalPoolingCell", "SumCell"),
    "modulated_deform_conv": ("ModulatedDeformConv2d", "ModulatedDeformConv2dPack", "modulated_deform_conv2d"),
    "multi_scale_deform_attn": (
        "MultiScaleDeformableAttention",
        "MultiScaleDeformableAttnFunction",
        "multi_scale_deformable_attn_pytorch",
    ),
    "nms": ("batched_nms", "nms", "nms_match", "nms_rotated", "soft_nms"),
    "point_sample": ("SimpleRoIAlign", "bilinear_grid_sample", "point_sample", "rel_roi_point_to_rel_img_point"),
    "roi_align": ("RoIAlign", "roi_align"),
    "roi_pool": ("RoIPool", "roi_pool"),
    "saconv": ("SAConv2d",),
    "sync_bn": ("SyncBatchNorm",),
}
"""Submodule of ``mmcv.ops`` -> the names that ``hitdet_nni.compat.torchvision_ops`` implements."""

REFUSED: dict[str, tuple[str, ...]] = {
    "nms": ("nms_quadri",),
}
"""Submodule of ``mmcv.ops`` -> the names that can be imported and subclassed, and fail when used."""

# mmcv 2.1's names in mmengine's MODELS.
REGISTERED: dict[str, str] = {
    "CARAFEPack": "carafe",
    "DeformConv2dPack": "DCN",
    "ModulatedDeformConv2dPack": "DCNv2",
    "MultiScaleDeformableAttention": "MultiScaleDeformableAttention",
    "SAConv2d": "SAC",
    "SyncBatchNorm": "MMSyncBN",
}


class RefusedOp:
    """Stands in for an op that only a compiled mmcv has: construction, or a call of a function, raises.

    Raises:
        NotImplementedError: Always; it names the op.
    """

    def __new__(cls, *args: object, **kwargs: object) -> NoReturn:
        op = next(base.__name__ for base in cls.__mro__ if RefusedOp in base.__bases__)
        raise NotImplementedError(
            f"{PACKAGE}.{op} is not available: {IMPLEMENTATION} replaces {PACKAGE} here and has no such op; "
            "a compiled mmcv (>= 2.0.0rc4, < 2.2.0) provides it"
        )


class _OpsLoader(Loader):
    """Fill ``mmcv.ops`` or one of its submodules."""

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave the creation of the empty module to the import system."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the served and the refused names into ``module``."""
        if module.__name__ == PACKAGE:
            _fill_package(module)
        else:
            _fill_submodule(module, module.__name__.removeprefix(f"{PACKAGE}."))


class _OpsFinder(MetaPathFinder):
    """Answer for ``mmcv.ops`` and for the submodules in the tables above, and for nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for the modules served here, None for all others."""
        submodule = fullname.removeprefix(f"{PACKAGE}.")
        if fullname != PACKAGE and (submodule == fullname or submodule not in SERVED.keys() | REFUSED.keys()):
            return None
        # A package made from this spec has an empty search path: what mmcv-lite ships in mmcv/ops, which imports
        # the missing mmcv._ext, cannot be reached through it.
        return ModuleSpec(fullname, _OpsLoader(), origin=IMPLEMENTATION, is_package=fullname == PACKAGE)


def _fill_submodule(module: ModuleType, submodule: str) -> None:
    implementation = importlib.import_module(IMPLEMENTATION)
    for name in SERVED.get(submodule, ()):
        setattr(module, name, getattr(implementation, name))
    for name in REFUSED.get(submodule, ()):
        setattr(module, name, type(name, (RefusedOp,), {"__module__": module.__name__, "__doc__": RefusedOp.__doc__}))


def _fill_package(package: ModuleType) -> None:
    public: dict[str, object] = {}
    for submodule in sorted(SERVED.keys() | REFUSED.keys()):
        module = importlib.import_module(f"{PACKAGE}.{submodule}")
        for name in (*SERVED.get(submodule, ()), *REFUSED.get(submodule, ())):
            public[name] = getattr(module, name)
    # Only now, with all submodules imported: importing one binds its name in the package, and of nms, roi_align,
    # roi_pool, carafe and point_sample the package must show the function.
    package.__dict__.update(public, __all__=sorted(public))
    models = importlib.import_module("mmengine.registry").MODELS
    for op, registry_name in REGISTERED.items():
        models.register_module(name=registry_name, module=public[op])


def _is_compiled() -> bool:
    """Tell whether the installed mmcv has its extension, without importing mmcv (which would import torch).

    Raises:
        ModuleNotFoundError: No mmcv is installed.
    """
    mmcv = find_spec("mmcv")
    if mmcv is None:
        raise ModuleNotFoundError(
            f"{PACKAGE} cannot be served: mmcv is not installed; install mmcv-lite 2.1.0, or a compiled mmcv",
            name="mmcv",
        )
    return PathFinder.find_spec("mmcv._ext", mmcv.submodule_search_locations) is not None


def _find_loader(fullname: str) -> Loader | None:
    """Return what ``pkgutil.find_loader`` returned."""
    spec = find_spec(fullname)
    return None if spec is None else spec.loader


def install() -> bool:
    """Serve ``mmcv.ops`` from torchvision unless a compiled mmcv is installed; call it before mmdet is imported.

    A second call changes nothing.

    Returns:
        True if ``mmcv.ops`` is served by this project, False if a compiled mmcv is left to serve it.

    Raises:
        ModuleNotFoundError: No mmcv is installed.
        RuntimeError: Something else has already been imported as ``mmcv.ops``.
    """
    # mmengine 0.10.7 asks this whether mmcv is compiled, and Python 3.14 no longer has it.
    vars(pkgutil).setdefault("find_loader", _find_loader)
    if _is_compiled():
        return False
    present = sys.modules.get(PACKAGE)
    if present is not None and not isinstance(getattr(present, "__loader__", None), _OpsLoader):
        origin = getattr(present, "__file__", None) or repr(present)
        raise RuntimeError(f"{PACKAGE} is already imported from {origin}: call install() before anything imports it")
    if not any(isinstance(finder, _OpsFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OpsFinder())
    return True
