"""The counter that looks at modules: closed forms by hand, torch's own counter, and our closed-form cost model."""

import random

import pytest
import torch
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from mmdet.models.backbones.trident_resnet import TridentConv
from mmdet.models.necks.ssd_neck import L2Norm
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.skeleton import COMPONENTS, Skeleton
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.detector_cost import detector_cost
from hitdet_nni.cost.mmdet_config import load_config, profile_config
from hitdet_nni.cost.module_cost import FlopCount, build_on_meta, formula_of, parameter_count
from hitdet_nni.cost.profile import baseline_names
from hitdet_nni.model.detector import detector_config

# Module, shape of its input, parameters, FLOPs by "macs", FLOPs by "paper"; sizes of outputs stand in the products.
CLOSED_FORMS = {
    "conv": (nn.Conv2d(6, 4, 3, stride=2, padding=1), (2, 6, 9, 8), 220, 216 * 5 * 4 * 2, 220 * 5 * 4 * 2),
    "conv without bias": (nn.Conv2d(6, 4, 3, bias=False), (1, 6, 9, 8), 216, 216 * 7 * 6, 216 * 7 * 6),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2), (1, 6, 9, 8), 112, 108 * 7 * 6, 112 * 7 * 6),
    "dilated": (nn.Conv2d(6, 4, 3, dilation=2), (1, 6, 9, 8), 220, 216 * 5 * 4, 220 * 5 * 4),
    "rectangular": (nn.Conv2d(2, 4, (1, 5)), (1, 2, 9, 8), 44, 40 * 9 * 4, 44 * 9 * 4),
    "one dimension": (nn.Conv1d(2, 4, 3), (1, 2, 9), 28, 24 * 7, 28 * 7),
    "transposed": (
        nn.ConvTranspose2d(6, 4, 2, stride=2), (1, 6, 5, 3), 100, 96 * 5 * 3, 96 * 5 * 3 + 4 * 10 * 6,
    ),
    "transposed, grouped": (
        nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False), (1, 6, 5, 3), 108, 108 * 5 * 3, 108 * 5 * 3,
    ),
    # An offset and a mask are predicted by a convolution with bias; sampling costs nothing.
    "deformable": (
        DeformConv2dPack(6, 4, 3, padding=1), (1, 6, 9, 8), 216 + 18 * 55, (216 + 18 * 54) * 72, (216 + 18 * 55) * 72,
    ),
    "modulated deformable": (
        ModulatedDeformConv2dPack(6, 4, 3, padding=1), (1, 6, 9, 8), 220 + 27 * 55, (216 + 27 * 54) * 72,
        (220 + 27 * 55) * 72,
    ),
    "linear": (nn.Linear(5, 7), (3, 5), 42, 3 * 35, 3 * 35),
    "linear on maps": (nn.Linear(5, 7), (3, 2, 5), 42, 6 * 35, 6 * 35),
    "batch norm": (nn.BatchNorm2d(6), (2, 6, 9, 8), 12, 0, 2 * 6 * 9 * 8 * 2),
    "relu": (nn.ReLU(), (2, 6, 9, 8), 0, 0, 2 * 6 * 9 * 8),
    "relu6": (nn.ReLU6(inplace=True), (1, 6, 9, 8), 0, 0, 6 * 9 * 8),
    "max pool": (nn.MaxPool2d(3, 2), (1, 6, 9, 8), 0, 0, 6 * 9 * 8),
    "average pool": (nn.AdaptiveAvgPool2d(1), (1, 6, 9, 8), 0, 0, 0),
    "group norm": (nn.GroupNorm(2, 6), (1, 6, 9, 8), 12, 0, 0),
    "scale of SSD": (L2Norm(6), (1, 6, 9, 8), 6, 0, 0),
    "sequence": (nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU()), (1, 6, 9, 8), 28, 24 * 72, 28 * 72 + 4 * 72),
}  # fmt: skip


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms(name, caplog):
    module, shape, params, *flops = CLOSED_FORMS[name]
    module = module.to("meta").eval()
    assert parameter_count(module) == params
    for convention, expected in zip(("macs", "paper"), flops, strict=True):
        with FlopCount(convention).of(module) as counted:
            module(torch.empty(*shape, device="meta"))
        assert counted.flops == expected, convention
    assert not caplog.records


@pytest.mark.parametrize("name", [name for name in CLOSED_FORMS if "deformable" not in name])
def test_multiply_adds_are_those_of_torch_s_counter(name):
    module, shape, *_ = CLOSED_FORMS[name]
    module = module.to("meta").eval()
    x = torch.empty(*shape, device="meta")
    with FlopCounterMode(display=False) as theirs, FlopCount("macs").of(module) as ours:
        module(x)
    assert ours.flops == theirs.get_total_flops() // 2


def test_every_branch_that_runs_is_counted():
    conv = TridentConv(6, 4, 3, trident_dilations=(1, 2, 3), test_branch_idx=-1).to("meta")
    x = torch.empty(1, 6, 9, 8, device="meta")
    with FlopCount("paper").of(conv) as counted:
        conv([x, x, x])
    assert counted.flops == 3 * 216 * 72


def test_a_module_that_runs_twice_counts_twice_and_has_its_parameters_once():
    conv = nn.Conv2d(6, 6, 1, bias=False).to("meta")
    twice = nn.Sequential(conv, conv)
    with FlopCount("macs").of(twice) as counted:
        twice(torch.empty(1, 6, 9, 8, device="meta"))
    assert (parameter_count(twice), counted.flops) == (36, 2 * 36 * 72)


def test_hooks_are_gone_after_counting():
    conv = nn.Conv2d(6, 6, 1).to("meta")
    with FlopCount("macs").of(conv) as counted:
        pass
    conv(torch.empty(1, 6, 9, 8, device="meta"))
    assert counted.flops == 0


def test_what_does_not_run_is_told(caplog):
    assert formula_of(nn.Sigmoid()) is None
    with FlopCount("macs").of(nn.Conv2d(3, 7, 1)):
        pass
    assert "not run" in caplog.text
    assert "Conv2d(3, 7" in caplog.text


@pytest.mark.parametrize("convention", ["macs", "paper"])
@pytest.mark.parametrize(
    ("kind", "levels"),
    [
        ("faster_rcnn", {}),
        ("faster_rcnn", {"finest_stride": 8, "extra_levels": 2}),
        ("retinanet", {}),
        ("retinanet", {"finest_stride": 4, "extra_levels": 0}),
    ],
)
def test_equals_the_cost_model(kind, levels, convention, tiny, draw):
    """Random architectures as mmdet configs: this counter and the closed forms know nothing of each other."""
    own = tiny.model_dump(exclude={"finest_stride", "extra_levels"})
    skeleton = Skeleton(**{**own, **levels, "detector": kind})
    for seed in range(3):
        rng = random.Random(seed)
        sample = draw(skeleton, load_search_space("full"), seed)
        classes, shape = rng.randint(1, 9), (rng.randint(40, 130), rng.randint(40, 130))
        proposals = rng.randint(1, 20) if kind == "faster_rcnn" else 0
        operators = {part: [sample[label] for label in skeleton.labels(part)] for part in COMPONENTS}
        detector = build_on_meta(detector_config(skeleton, operators, classes), "tiny")
        model = CostModel(skeleton, classes, shape=shape, proposals=proposals, convention=convention)
        assert detector_cost(detector, shape, proposals, convention, "tiny") == model.architecture(sample)


# ------------------------------------------------------------------------------------------------- mmdet's configs


SLOW = {"dino_r50"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in baseline_names()]
)
def test_every_baseline_builds_and_is_counted_whole(name, caplog):
    profile = profile_config(name, (512, 512), convention="macs")  # SSD512 has no smaller size
    detector = build_on_meta(load_config(name).model, name)
    assert profile.costs["total"].params == parameter_count(detector)
    assert profile.costs["total"].flops > 1e9
    assert profile.proposals == (1000 if hasattr(detector, "roi_head") else 0)
    assert not caplog.records


def write_config(folder, text):
    path = folder / "mine.py"
    path.write_text(text)
    return str(path)


def test_a_config_of_one_s_own(tmp_path):
    path = write_config(
        tmp_path,
        "_base_ = 'mmdet::_base_/models/faster-rcnn_r50_fpn.py'\n"
        "model = dict(roi_head=dict(bbox_head=dict(num_classes=3)), test_cfg=dict(rpn=dict(max_per_img=7)))\n",
    )
    profile = profile_config(path)
    coco = profile_config("fpn_r50_2fc", proposals=7)
    assert (profile.name, profile.proposals, profile.shape) == ("mine", 7, (800, 1216))
    assert coco.costs["head"].params - profile.costs["head"].params == 77 * 5 * 1025
    assert profile.costs["backbone"] == coco.costs["backbone"]


def test_all_heads_of_a_cascade(tmp_path):
    path = write_config(tmp_path, "_base_ = 'mmdet::_base_/models/cascade-rcnn_r50_fpn.py'\n")
    head = profile_config(path, (256, 320), 10).costs["head"]
    one = 12544 * 1024 + 1024 * 1024 + 1024 * (81 + 4)
    assert (head.params, head.flops) == (3 * (one + 1024 + 1024 + 81 + 4), 3 * 10 * one)


def test_a_mask_head_sees_the_detections_only():
    box, both = (profile_config(name, (256, 320)).costs["head"] for name in ("fpn_r50_2fc", "mask_rcnn_r50"))
    convs, up, logits = 4 * 9 * 256 * 256, 4 * 256 * 256, 80 * 256
    assert both.params - box.params == convs + up + logits + 5 * 256 + 80
    assert both.flops - box.flops == 100 * (14 * 14 * (convs + up) + 28 * 28 * logits)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("model = dict(", ["SyntaxError"]),
        ("raise OSError('disk on fire')", ["OSError", "disk on fire"]),
        ("lr = 0.1", ["model", "missing"]),
        ("model = dict(type='Nothing')", ["model", "Nothing"]),
        ("_base_ = './absent.py'", ["absent.py"]),
        ("_base_ = 'mmdet::qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base.py'", ["model.type", "QDTrack", "backbone"]),
        ("_base_ = 'mmdet::fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py'", ["model.rpn_head", "--proposals"]),
        (
            "_base_ = 'mmdet::_base_/models/faster-rcnn_r50_fpn.py'\nmodel = dict(neck=dict(in_channels=[1, 2, 3, 4]))",
            ["does not run"],
        ),
    ],
)
def test_refuses(tmp_path, refused, text, names):
    path = write_config(tmp_path, text + "\n")
    with refused(path, *names):
        profile_config(path)


def test_refuses_names_and_numbers(tmp_path, refused):
    with refused("fpn_r50", "fpn_r50_2fc"):
        profile_config("fpn_r50")
    with refused(tmp_path / "none.py"):
        profile_config(str(tmp_path / "none.py"))


def test_a_one_stage_detector_has_no_rois():
    found = profile_config("retinanet_r50", proposals=5)
    assert found.proposals == 0
    assert found.costs == profile_config("retinanet_r50").costs
