"""The ops of ``mmcv.ops`` that mmdet needs, on torch and torchvision alone.

Names, arguments, defaults, results and state-dict keys are those of mmcv 2.1.0, so that mmdet and checkpoints made
with a compiled mmcv work unchanged; docs/deviations.md lists the few results that differ.
:mod:`hitdet_nni.compat.mmcv_ops` decides whether they are used.
"""

from __future__ import annotations

from hitdet_nni.compat.torchvision_ops.attention import (
    MultiScaleDeformableAttention,
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)
from hitdet_nni.compat.torchvision_ops.corner_pool import CornerPool
from hitdet_nni.compat.torchvision_ops.deformable import (
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
    deform_conv2d,
    modulated_deform_conv2d,
)
from hitdet_nni.compat.torchvision_ops.deformable_roi import (
    DeformRoIPool,
    DeformRoIPoolPack,
    ModulatedDeformRoIPoolPack,
    deform_roi_pool,
)
from hitdet_nni.compat.torchvision_ops.focal import (
    SigmoidFocalLoss,
    SoftmaxFocalLoss,
    sigmoid_focal_loss,
    softmax_focal_loss,
)
from hitdet_nni.compat.torchvision_ops.info import get_compiler_version, get_compiling_cuda_version
from hitdet_nni.compat.torchvision_ops.masked import MaskedConv2d, masked_conv2d
from hitdet_nni.compat.torchvision_ops.merge_cells import BaseMergeCell, ConcatCell, GlobalPoolingCell, SumCell
from hitdet_nni.compat.torchvision_ops.overlaps import bbox_overlaps, box_iou_rotated
from hitdet_nni.compat.torchvision_ops.points import (
    SimpleRoIAlign,
    bilinear_grid_sample,
    point_sample,
    rel_roi_point_to_rel_img_point,
)
from hitdet_nni.compat.torchvision_ops.reassembly import CARAFE, CARAFENaive, CARAFEPack, carafe, carafe_naive
from hitdet_nni.compat.torchvision_ops.roi import RoIAlign, RoIPool, roi_align, roi_pool
from hitdet_nni.compat.torchvision_ops.suppression import batched_nms, nms, nms_match, nms_rotated, soft_nms
from hitdet_nni.compat.torchvision_ops.switchable import SAConv2d
from hitdet_nni.compat.torchvision_ops.sync_bn import SyncBatchNorm

__all__ = [
    "CARAFE",
    "BaseMergeCell",
    "CARAFENaive",
    "CARAFEPack",
    "ConcatCell",
    "CornerPool",
    "DeformConv2d",
    "DeformConv2dPack",
    "DeformRoIPool",
    "DeformRoIPoolPack",
    "GlobalPoolingCell",
    "MaskedConv2d",
    "ModulatedDeformConv2d",
    "ModulatedDeformConv2dPack",
    "ModulatedDeformRoIPoolPack",
    "MultiScaleDeformableAttention",
    "MultiScaleDeformableAttnFunction",
    "RoIAlign",
    "RoIPool",
    "SAConv2d",
    "SigmoidFocalLoss",
    "SimpleRoIAlign",
    "SoftmaxFocalLoss",
    "SumCell",
    "SyncBatchNorm",
    "batched_nms",
    "bbox_overlaps",
    "bilinear_grid_sample",
    "box_iou_rotated",
    "carafe",
    "carafe_naive",
    "deform_conv2d",
    "deform_roi_pool",
    "get_compiler_version",
    "get_compiling_cuda_version",
    "masked_conv2d",
    "modulated_deform_conv2d",
    "multi_scale_deformable_attn_pytorch",
    "nms",
    "nms_match",
    "nms_rotated",
    "point_sample",
    "rel_roi_point_to_rel_img_point",
    "roi_align",
    "roi_pool",
    "sigmoid_focal_loss",
    "soft_nms",
    "softmax_focal_loss",
]
