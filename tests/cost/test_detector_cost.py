"""Costs of detectors of any parts: torch's own counter, closed forms, two ways of running, published figures."""

import copy
import logging

import mmdet.models  # noqa: F401  registers the detectors
import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import ModulatedDeformConv2d, MultiScaleDeformableAttention, SAConv2d
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hitdet_nni import cli
from hitdet_nni.cost.detector_cost import _Run, _with_values, detector_cost
from hitdet_nni.cost.matrix_products import products
from hitdet_nni.cost.mmdet_config import load_config, profile_config
from hitdet_nni.cost.module_cost import FlopCount, build_on_meta
from hitdet_nni.model.detector import build_initialised


def write_config(folder, text):
    path = folder / "mine.py"
    path.write_text(text)
    return str(path)


def counted_products(call):
    found = []
    with torch.no_grad(), products(found.append):
        result = call()
    return sum(found), result


# ---------------------------------------------------------------------------------------------------------- products


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_attention_is_counted_whole(device):
    """Four projections of L rows, and the two products of L x L maps; the fast path of torch hides none of them."""
    rows, channels = 7, 12
    attention = nn.MultiheadAttention(channels, 3, batch_first=True).to(device).eval()
    x = torch.zeros(2, rows, channels, device=device)
    with torch.no_grad(), FlopCount("macs").of(attention) as counted:
        attention(x, x, x)
    assert counted.flops == 2 * (4 * rows * channels**2 + 2 * rows**2 * channels)
    layer = nn.TransformerEncoderLayer(channels, 3, 20, batch_first=True).to(device).eval()
    with torch.no_grad(), FlopCount("macs").of(layer) as counted:
        layer(x)
    assert counted.flops == 2 * (4 * rows * channels**2 + 2 * rows**2 * channels + 2 * rows * channels * 20)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: torch.randn(2, 3, 4) @ torch.randn(2, 4, 5), 2 * 3 * 4 * 5),
        (lambda: torch.einsum("nc,ck->nk", torch.randn(3, 4), torch.randn(4, 5)), 3 * 4 * 5),
        (lambda: F.conv2d(torch.randn(1, 4, 6, 6), torch.randn(2, 4, 3, 3)), 2 * 4 * 9 * 16),
        (lambda: F.scaled_dot_product_attention(*torch.randn(3, 1, 2, 6, 4).unbind()), 2 * 2 * 6 * 6 * 4),
        (lambda: F.grid_sample(torch.randn(1, 2, 4, 4), torch.zeros(1, 3, 3, 2), align_corners=False), 0),
    ],
)
def test_products_of_functions(call, expected):
    flops, result = counted_products(call)
    assert flops == expected
    assert result.shape == call().shape
    assert not result.any()


def test_what_is_no_product_is_computed():
    flops, result = counted_products(lambda: torch.arange(4.0).cumsum(0) * 2)
    assert flops == 0
    assert result.tolist() == [0, 2, 6, 12]


def test_a_deformable_convolution_counts_once():
    """Within its module by the module's formula, as a function by its operation."""
    conv = ModulatedDeformConv2d(4, 6, 3, padding=1, bias=False)
    x, offset, mask = torch.zeros(1, 4, 5, 7), torch.zeros(1, 18, 5, 7), torch.zeros(1, 9, 5, 7)
    with torch.no_grad(), FlopCount("macs").of(conv) as counted:
        conv(x, offset, mask)
    assert counted.flops == 6 * 4 * 9 * 35
    assert counted_products(lambda: conv(x, offset, mask))[0] == 6 * 4 * 9 * 35


def test_deformable_attention_and_switchable_convolution():
    """The projections and the weighted sum of 2 levels x 3 points; both dilations and what chooses between them."""
    attention = MultiScaleDeformableAttention(8, 2, num_levels=2, num_points=3, batch_first=True).eval()
    shapes = torch.tensor([[4, 5], [2, 3]])
    query, value, points = torch.zeros(1, 7, 8), torch.zeros(1, 26, 8), torch.rand(1, 7, 2, 2)
    with torch.no_grad(), FlopCount("macs").of(attention) as counted:
        attention(query, value=value, reference_points=points, spatial_shapes=shapes)
    assert counted.flops == 26 * 64 + 7 * (8 * 2 * 2 * 3 * 2 + 8 * 2 * 2 * 3 + 64) + 7 * 8 * 2 * 3
    conv = SAConv2d(4, 6, 3, padding=1)
    with torch.no_grad(), FlopCount("macs").of(conv) as counted:
        conv(torch.zeros(1, 4, 8, 8))
    assert counted.flops == 2 * 6 * 4 * 9 * 64 + 4 * 64 + 4 * 4 + 6 * 6


# --------------------------------------------------------------------------------------------------------- detectors


DETR = """
_base_ = "mmdet::detr/detr_r18_8xb2-500e_coco.py"
model = dict(num_queries=9, encoder=dict(num_layers=1), decoder=dict(num_layers=2))
"""
DINO = """
_base_ = "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"
model = dict(
    num_queries=9,
    backbone=dict(depth=18, init_cfg=None),
    neck=dict(in_channels=[128, 256, 512]),
    encoder=dict(num_layers=1),
    decoder=dict(num_layers=2),
    bbox_head=dict(num_classes=3),
)
"""


@pytest.mark.parametrize(("text", "sums"), [(DETR, 0), (DINO, (340 + 2 * 9) * 256 * 4 * 4)], ids=["DETR", "DINO"])
def test_a_transformer_costs_what_torch_s_counter_says_of_a_computation(text, sums, tmp_path):
    """Of products; what torch's counter does not see are the weighted sums of deformable attention."""
    path = write_config(tmp_path, text)
    model = load_config(path).model
    model.backbone.init_cfg = None
    found = detector_cost(build_on_meta(model, path), (128, 128), 0, "macs", path)
    detector = build_initialised({"_scope_": "mmdet", **model.to_dict()}).eval()
    run = _Run(detector, (128, 128), "macs", "cpu")
    with torch.no_grad(), FlopCounterMode(display=False) as theirs:
        detector(run.image, run.samples, mode="tensor")
    assert found["total"].flops == theirs.get_total_flops() // 2 + sums
    assert found["total"].params == sum(each.numel() for each in detector.parameters())
    assert found["rpn"].flops == 0


@pytest.mark.parametrize(
    "base",
    [
        "_base_/models/faster-rcnn_r50_fpn.py",
        "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
        "retinanet/retinanet_r18_fpn_1x_coco.py",
    ],
)
def test_parts_one_by_one_cost_what_mmdet_s_forward_does(base, tmp_path, caplog):
    path = write_config(tmp_path, f"_base_ = 'mmdet::{base}'\n")
    detector = build_on_meta(load_config(path).model, path)
    parts = _Run(copy.deepcopy(detector).to("meta"), (64, 96), "paper", "meta").by_parts(120)
    whole = _Run(_with_values(copy.deepcopy(detector)), (64, 96), "paper", "cpu").as_mmdet_runs_it(120)
    assert parts == whole
    assert not caplog.records


def test_learned_proposals_are_those_of_the_config(tmp_path, capsys):
    path = write_config(
        tmp_path,
        "_base_ = 'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py'\nmodel = dict(rpn_head=dict(num_proposals=7))\n",
    )
    assert cli.main(["profile", path, "--shape", "64", "64", "--proposals", "9"]) == 0
    found = capsys.readouterr()
    assert "its 7 RoIs are learned: --proposals changes nothing" in found.err
    assert "7 proposals" in found.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "shape", "convention", "published", "digits"),
    [
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", (800, 1280), "paper", 207.07, 2),
        ("retinanet/retinanet_r50_fpn_1x_coco.py", (800, 1280), "paper", 239.32, 2),
        ("rtmdet/rtmdet_tiny_8xb32-300e_coco.py", (640, 640), "paper", 8.1, 1),
        ("rtmdet/rtmdet_s_8xb32-300e_coco.py", (640, 640), "macs", 14.8, 1),
        ("yolox/yolox_s_8xb8-300e_coco.py", (640, 640), "paper", 26.8 / 2, 1),
    ],
)
def test_published_figures(config, shape, convention, published, digits, tmp_path):
    """GFLOPs that mmdet's counter gave; YOLOX's authors count multiplications and additions apart."""
    path = write_config(tmp_path, f"_base_ = 'mmdet::{config}'\n")
    found = profile_config(path, shape, convention=convention).costs["total"].flops / 1e9
    assert round(found, digits) == pytest.approx(published)


@pytest.mark.slow
def test_dino_costs_what_its_authors_say():
    """279 G at 1280 x 800, Zhang et al. 2022, Table 1, whose counter adds normalisations."""
    cost = profile_config("dino_r50", (800, 1280)).costs["total"]
    assert cost.flops / 1e9 == pytest.approx(279, rel=0.005)
    assert round(cost.params / 1e6) == 48


def test_what_needs_values_is_told_to_the_log_alone(tmp_path, caplog):
    """A convolution at chosen positions."""
    path = write_config(tmp_path, "_base_ = 'mmdet::guided_anchoring/ga-rpn_r50-caffe_fpn_1x_coco.py'\n")
    with caplog.at_level(logging.INFO, logger="hitdet_nni.cost.detector_cost"):
        assert profile_config(path, (64, 64)).costs["head"].flops > 0
    assert "does not run on shapes alone" in caplog.text
