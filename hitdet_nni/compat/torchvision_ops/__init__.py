"""The ops of ``mmcv.ops`` that mmdet needs, on torch and torchvision alone.

Names, arguments, defaults, results and state-dict keys are those of mmcv 2.1.0, so that mmdet and checkpoints made
with a compiled mmcv work unchanged; :mod:`hitdet_nni.compat.mmcv_ops` decides whether they are used.
"""

from __future__ import annotations

from hitdet_nni.compat.torchvision_ops.deformable import (
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
    deform_conv2d,
    modulated_deform_conv2d,
)
from hitdet_nni.compat.torchvision_ops.focal import SigmoidFocalLoss, sigmoid_focal_loss
from hitdet_nni.compat.torchvision_ops.info import get_compiler_version, get_compiling_cuda_version
from hitdet_nni.compat.torchvision_ops.merge_cells import BaseMergeCell, ConcatCell, GlobalPoolingCell, SumCell
from hitdet_nni.compat.torchvision_ops.points import point_sample, rel_roi_point_to_rel_img_point
from hitdet_nni.compat.torchvision_ops.roi import RoIAlign, RoIPool, roi_align, roi_pool
from hitdet_nni.compat.torchvision_ops.suppression import batched_nms, nms, nms_match, soft_nms

__all__ = [
    "BaseMergeCell",
    "ConcatCell",
    "DeformConv2d",
    "DeformConv2dPack",
    "GlobalPoolingCell",
    "ModulatedDeformConv2d",
    "ModulatedDeformConv2dPack",
    "RoIAlign",
    "RoIPool",
    "SigmoidFocalLoss",
    "SumCell",
    "batched_nms",
    "deform_conv2d",
    "get_compiler_version",
    "get_compiling_cuda_version",
    "modulated_deform_conv2d",
    "nms",
    "nms_match",
    "point_sample",
    "rel_roi_point_to_rel_img_point",
    "roi_align",
    "roi_pool",
    "sigmoid_focal_loss",
    "soft_nms",
]
