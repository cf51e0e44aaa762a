"""The searchable parts and the detector: as a space, as a supernet, frozen, and as a plain mmdet model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from nni.nas.nn.pytorch import LayerChoice
from nni.nas.space import model_context
from nni.nas.strategy import DARTS
from torch import nn

from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import COMPONENTS, Skeleton
from hitdet_nni.errors import InputError
from hitdet_nni.model.backbone import HitBackbone
from hitdet_nni.model.detector import HitDetectorSpace, build_detector, detector_config
from hitdet_nni.model.head import HitBoxHead, HitRetinaHead
from hitdet_nni.model.level_norm import LevelBatchNorm2d, separate_statistics
from hitdet_nni.model.neck import HitNeck
from hitdet_nni.operators.registry import OPERATORS, build_operator

CLASSES = 3
LOSSES = {
    "faster_rcnn": {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "acc"},
    "retinanet": {"loss_cls", "loss_bbox"},
}


@pytest.fixture(scope="module", params=LOSSES)
def tiny(request):
    """The skeleton of the shipped `tiny` config, for each kind of detector."""
    return load_settings("tiny", {"skeleton.detector": request.param}).skeleton


def make_batch():
    """Two images of different sizes with one and two boxes."""
    torch.manual_seed(1)
    sizes = ((96, 96), (80, 90))
    boxes = ([[8.0, 8.0, 60.0, 56.0]], [[4.0, 6.0, 30.0, 34.0], [40.0, 30.0, 84.0, 76.0]])
    samples = []
    for size, corners in zip(sizes, boxes, strict=True):
        sample = DetDataSample(
            metainfo={"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0), "pad_shape": size}
        )
        sample.gt_instances = InstanceData(bboxes=torch.tensor(corners), labels=torch.arange(len(corners)))
        samples.append(sample)
    return {"inputs": [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes], "data_samples": samples}


def loss_of(detector, kind):
    data = detector.data_preprocessor(make_batch(), True)
    losses = detector(data["inputs"], data["data_samples"], mode="loss")
    assert set(losses) == LOSSES[kind]
    return detector.parse_losses(losses)[0]


def head_blocks(detector):
    """The blocks of the head in the order of their labels."""
    if hasattr(detector, "roi_head"):
        return list(detector.roi_head.bbox_head.blocks)
    return [*detector.bbox_head.cls_convs, *detector.bbox_head.reg_convs]


def chosen_modules(detector):
    """What a decided detector holds at its searched layers, by label."""
    backbone = [block for stage in detector.backbone.stages for block in stage]
    neck = [*detector.neck.top_down, *detector.neck.bottom_up]
    head = head_blocks(detector)
    parts = {"backbone": backbone, "neck": neck, "head": head}
    return {f"{part}/l{i:02d}": block for part, blocks in parts.items() for i, block in enumerate(blocks, start=1)}


def assert_holds(detector, skeleton, sample):
    """The detector's searched layers are the sample's operators, of the skeleton's channels, and nothing else."""
    modules = chosen_modules(detector)
    assert sorted(modules) == sorted(sample)
    for layer in skeleton.searched_layers():
        expected = build_operator(sample[layer.label], layer.in_channels, layer.out_channels, layer.stride)
        assert str(modules[layer.label]).replace("LevelBatchNorm2d", "BatchNorm2d") == str(expected)
        assert getattr(modules[layer.label], "residual", None) == getattr(expected, "residual", None)


@pytest.fixture(scope="module")
def space(tiny, published):
    torch.manual_seed(0)
    return HitDetectorSpace(tiny, published, CLASSES)


@pytest.fixture(scope="module")
def sample(tiny, published, draw):
    return draw(tiny, published, seed=0)


@pytest.fixture
def detector(tiny, sample):
    torch.manual_seed(0)
    return build_detector(tiny, sample, CLASSES)


# ------------------------------------------------------------------------------------------------------ the space


def test_labels_and_candidates(space, tiny, published):
    neck, head = {"faster_rcnn": (8, 2), "retinanet": (6, 4)}[tiny.detector]
    labels = {
        **{f"backbone/l{i:02d}": published["backbone"] for i in range(1, 5)},
        **{f"neck/l{i:02d}": published["neck"] for i in range(1, neck + 1)},
        **{f"head/l{i:02d}": published["head"] for i in range(1, head + 1)},
    }
    assert {label: choice.values for label, choice in space.simplify().items()} == labels


@pytest.mark.parametrize(("kind", "layers"), [("faster_rcnn", [20, 8, 4]), ("retinanet", [20, 6, 8])])
def test_released_skeleton_labels(kind, layers):
    skeleton = Skeleton(detector=kind)
    assert [len(skeleton.labels(part)) for part in ("backbone", "neck", "head")] == layers
    assert skeleton.labels("backbone")[19] == "backbone/l20"
    assert skeleton.feature_channels == (48, 96, 256, 2048)


def test_random_sample_freezes_to_its_operators(space, tiny):
    memo = {}
    frozen = space.random(memo)
    assert sorted(memo) == sorted(space.simplify())
    assert_holds(frozen.detector, tiny, memo)


def test_freeze_model_context_and_build_agree(space, tiny, published, sample, detector):
    with model_context(sample):
        direct = HitDetectorSpace(tiny, published, CLASSES)
    frozen = space.freeze(sample)
    assert_holds(direct.detector, tiny, sample)
    assert_holds(frozen.detector, tiny, sample)
    assert_holds(detector, tiny, sample)
    shapes = {name: value.shape for name, value in detector.state_dict().items()}
    for other in (direct.detector, frozen.detector):
        assert {name: value.shape for name, value in other.state_dict().items()} == shapes
    # NNI freezes without copying weights anew: what was trained in the supernet is kept
    source = dict(space.detector.named_parameters())
    assert torch.equal(frozen.detector.neck.fuse[0].weight, source["neck.fuse.0.weight"])


def test_a_decided_detector_has_nothing_of_nni(detector):
    origins = {type(module).__module__.split(".")[0] for module in detector.modules()}
    assert "nni" not in origins
    assert not any(isinstance(module, LayerChoice) for module in detector.modules())


def test_component_with_one_candidate_is_fixed(tiny, published):
    space = HitDetectorSpace(tiny, {**published, "neck": ["sep_k3_d1"], "head": ["ir_k3_d1_e3"]}, CLASSES)
    assert sorted(space.simplify()) == [f"backbone/l0{i}" for i in range(1, 5)]


def test_bad_operators_are_refused(tiny, published, sample, refused):
    with refused("skip"):
        HitDetectorSpace(tiny, {**published, "neck": ["sep_k3_d1", "skip"]}, CLASSES)
    with refused("distinct", "sep_k3_d1"):
        HitDetectorSpace(tiny, {**published, "neck": ["sep_k3_d1", "sep_k3_d1"]}, CLASSES)
    with refused("neck/l01", "[]"):
        HitDetectorSpace(tiny, {**published, "neck": []}, CLASSES)
    for change, key in (
        ({"neck": "sep_k3_d1"}, "neck: got"),
        ({"neck": None}, "neck: got"),
        ({"nek": ["a"]}, "nek: unknown"),
    ):
        with pytest.raises(InputError, match=f"space: {key}"):
            HitDetectorSpace(tiny, {**published, **change}, CLASSES)
    with pytest.raises(InputError, match="space: head: is missing"):
        HitDetectorSpace(tiny, {key: published[key] for key in ("backbone", "neck")}, CLASSES)
    with refused("backbone.operators", "got 3", "4"):
        HitBackbone(["sep_k3_d1"] * 3, tiny.widths, tiny.depths, tiny.strides)
    with refused("neck.operators", "got 4", "allowed: 2"):
        HitNeck(["sep_k3_d1"] * 4, [8])
    with pytest.raises(KeyError, match="head/l02"):
        build_detector(tiny, {label: name for label, name in sample.items() if label != "head/l02"}, CLASSES)


# -------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("tail", [None, (20, 40)])
@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_backbone_maps(tail, size):
    skeleton = {"widths": [4, 6, 8, 10, 12], "depths": [1, 2, 1, 2, 1], "strides": [2, 2, 2, 1, 2]}
    backbone = HitBackbone(["sep_k3_d1"] * 7, **skeleton, stem_channels=4, tail=tail).eval()
    maps = backbone(torch.randn(1, 3, *size))
    channels = [4, 6, 10, 12 if tail is None else 40]
    assert [tuple(m.shape) for m in maps] == [
        (1, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(channels, (4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("sizes", [[(16, 24), (8, 12), (4, 6), (2, 3)], [(25, 17), (13, 9), (7, 5), (4, 3)]])
def test_neck_against_a_plain_reference(sizes, published):
    torch.manual_seed(0)
    channels, width = (6, 8, 12, 10), 8
    neck = HitNeck([published["neck"][i] for i in range(8)], channels, width)
    neck.init_weights()
    neck.eval()
    maps = [torch.randn(2, c, *size) for c, size in zip(channels, sizes, strict=True)]

    def up(x, size):  # nearest neighbour: row i of n comes from row floor(i * m / n) of m
        rows = [i * x.shape[2] // size[0] for i in range(size[0])]
        columns = [i * x.shape[3] // size[1] for i in range(size[1])]
        return x[:, :, rows][:, :, :, columns]

    p = [op(x) for op, x in zip(neck.top_down, maps, strict=True)]
    for i in (2, 1, 0):
        p[i] = p[i] + up(p[i + 1], sizes[i])
    m = [op(x) for op, x in zip(neck.bottom_up, p, strict=True)]
    n = [m[0]]
    for i in (1, 2, 3):
        pooled = F.max_pool2d(F.pad(n[-1], (0, n[-1].shape[3] % 2, 0, n[-1].shape[2] % 2), value=-torch.inf), 2)
        n.append(F.conv2d(pooled + m[i], neck.fuse[i - 1].weight, neck.fuse[i - 1].bias, padding=1))
    n.append(n[-1][:, :, ::2, ::2])

    outputs = neck(maps)
    assert len(outputs) == 5
    for got, expected in zip(outputs, n, strict=True):
        torch.testing.assert_close(got, expected)


def test_neck_doubles_even_maps():
    """On even sizes the general nearest interpolation is the x2 upsampling of the paper."""
    neck = HitNeck(["sep_k3_d1"] * 4, (4, 4), 4).eval()
    fine, coarse = torch.zeros(1, 4, 4, 4), torch.randn(1, 4, 2, 2)
    outputs = []
    neck.bottom_up[0].register_forward_pre_hook(lambda _, args: outputs.append(args[0]))
    neck((fine, coarse))
    added = outputs[0] - neck.top_down[0](fine)
    expected = neck.top_down[1](coarse).repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(added, expected)


def test_neck_of_a_retinanet():
    """Three of four maps in; two strided convolutions behind the coarsest output, a ReLU before the second."""
    torch.manual_seed(0)
    neck = HitNeck(["sep_k3_d1"] * 6, (6, 8, 10), 4, start_level=1, extra_levels=2, extra_convs=True).eval()
    sizes = [(25, 17), (13, 9), (7, 5), (4, 3)]
    maps = [torch.randn(1, c, *size) for c, size in zip((3, 6, 8, 10), sizes, strict=True)]
    outputs = neck(maps)
    assert [tuple(m.shape[1:]) for m in outputs] == [(4, 13, 9), (4, 7, 5), (4, 4, 3), (4, 2, 2), (4, 1, 1)]
    p6, p7 = (conv(x) for conv, x in zip(neck.extra, (outputs[2], outputs[3].relu()), strict=True))
    torch.testing.assert_close((outputs[3], outputs[4]), (p6, p7))
    below = HitNeck(["sep_k3_d1"] * 6, (6, 8, 10), 4).eval()
    below.load_state_dict({name: value for name, value in neck.state_dict().items() if "extra" not in name})
    torch.testing.assert_close(outputs[:3], below(maps[1:])[:3])


def test_box_head():
    head = HitBoxHead(["conv_k3_d1", "ir_k3_d1_e3"], 6, 8, 16, num_classes=5, roi_feat_size=7).eval()
    scores, offsets = head(torch.randn(4, 6, 7, 7))
    assert scores.shape == (4, 6)
    assert offsets.shape == (4, 20)
    assert [tuple(fc.weight.shape) for fc in head.shared_fcs] == [(16, 8 * 49)]


def retina_head(operators, strides=(8, 16, 32)):
    anchors = {
        "type": "AnchorGenerator",
        "octave_base_scale": 4,
        "scales_per_octave": 3,
        "ratios": [0.5, 1.0, 2.0],
        "strides": strides,
    }
    loss = {"type": "FocalLoss", "use_sigmoid": True}
    torch.manual_seed(0)
    return HitRetinaHead(operators, 6, 8, num_classes=5, anchor_generator=anchors, loss_cls=loss)


def test_retina_head(refused):
    """The towers, classification first, are shared by all levels and end in mmdet's output layers."""
    head = retina_head(["conv_k3_d1", "ir_k3_d1_e3", "sep_k5_d1", "sep_k3_d1"]).eval()
    maps = [torch.randn(2, 6, *size) for size in ((6, 5), (3, 3), (2, 2))]
    scores, offsets = head(maps)
    for x, score, offset in zip(maps, scores, offsets, strict=True):
        assert score.shape == (2, 9 * 5, *x.shape[2:])
        assert offset.shape == (2, 9 * 4, *x.shape[2:])
        torch.testing.assert_close(score, head.retina_cls(head.cls_convs[1](head.cls_convs[0](x))))
        torch.testing.assert_close(offset, head.retina_reg(head.reg_convs[1](head.reg_convs[0](x))))
    with refused("head.operators", "got 3", "even"):
        retina_head(["conv_k3_d1"] * 3)


def test_levels_normalise_as_the_block_s_own_normalisation_is_set():
    block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, eps=1e-3, momentum=0.01))
    separate_statistics(block, levels=2)
    assert (block[1].eps, block[1].momentum, len(block[1].running_mean)) == (1e-3, 0.01, 2)
    for missing in ({"affine": False}, {"track_running_stats": False}):
        with pytest.raises(InputError, match=r"BatchNorm2d\(4, .* has no scale and shift, or no running averages"):
            separate_statistics(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4, **missing)), levels=2)


def test_levels_keep_their_own_statistics():
    head = retina_head(["conv_k3_d1", "conv_k3_d1"]).train()
    convolution, norm = head.cls_convs[0].block.conv, head.cls_convs[0].block.bn
    assert isinstance(norm, LevelBatchNorm2d)
    assert sum(p.numel() for p in norm.parameters()) == 2 * 8
    maps = [torch.randn(2, 6, 5, 4), 3 + 2 * torch.randn(2, 6, 3, 3), torch.randn(1, 6, 1, 1)]
    for _ in range(200):
        head(maps)
    for level in (0, 1):
        seen = convolution(maps[level])
        torch.testing.assert_close(norm.running_mean[level], seen.mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var[level], seen.var((0, 2, 3)))
    # a map with one value a channel has no variance: it leaves the statistics as they are
    assert (norm.running_mean[2] == 0).all()
    assert (norm.running_var[2] == 1).all()
    trained = head(maps)[0]
    copy = retina_head(["conv_k3_d1", "conv_k3_d1"]).eval()
    copy.load_state_dict(head.state_dict())
    torch.testing.assert_close(copy(maps)[0][2], trained[2])
    torch.testing.assert_close(copy(maps)[0][0], trained[0], rtol=0.1, atol=0.05)  # biased against unbiased variance


# ----------------------------------------------------------------------------------------------------- training


def test_loss_reaches_every_parameter_and_predict_runs(detector, tiny):
    detector.train()
    loss = loss_of(detector, tiny.detector)
    assert torch.isfinite(loss)
    loss.backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in detector.parameters())

    detector.eval()
    data = detector.data_preprocessor(make_batch(), False)
    with torch.no_grad():
        predictions = detector(data["inputs"], data["data_samples"], mode="predict")
    assert len(predictions) == 2
    for prediction in predictions:
        found = prediction.pred_instances
        assert found.bboxes.shape == (len(found.scores), 4)
        assert len(found.scores) <= 100
        assert set(found.labels.tolist()) <= set(range(CLASSES))


def test_supernet_trains_all_candidates_and_alphas(tiny, published):
    torch.manual_seed(0)
    space = HitDetectorSpace(tiny, published, CLASSES)
    DARTS().mutate_model(space)
    space.train()
    loss_of(space.detector, tiny.detector).backward()
    without = [name for name, p in space.named_parameters() if p.grad is None]
    assert without == []
    alphas = [p for name, p in space.named_parameters() if name.endswith("_arch_alpha")]
    assert len(alphas) == 14
    assert all(p.grad.abs().sum() > 0 for p in alphas)


def test_initialisation(tiny, sample):
    """Kaiming fan-out in backbone and head, Xavier-uniform in the neck, unit normalisations (facts section 4)."""
    torch.manual_seed(0)
    wide = tiny.model_copy(update={"widths": (64, 64, 64, 64), "neck_width": 64, "head_width": 64})
    detector = build_detector(wide, dict.fromkeys(sample, "conv_k3_d1"), CLASSES)
    fan = 64 * 9
    for conv in (detector.backbone.stages[1][0].block.conv, head_blocks(detector)[1].block.conv):
        assert conv.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.05)
    bound = (6 / (2 * fan)) ** 0.5
    for conv in (detector.neck.fuse[0], detector.neck.top_down[0].block.conv, *detector.neck.extra):
        assert conv.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert detector.neck.fuse[0].bias.abs().sum() == 0
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)


def test_initialisation_of_retinanet_s_outputs():
    """Weights of deviation 0.01, and a class bias at which an anchor is an object with probability 0.01."""
    skeleton = load_settings("digits_retinanet").skeleton
    head = build_detector(skeleton, {x.label: "conv_k3_d1" for x in skeleton.searched_layers()}, CLASSES).bbox_head
    for conv in (head.retina_cls, head.retina_reg):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert head.retina_cls.bias.sigmoid().tolist() == pytest.approx([0.01] * 9 * CLASSES)
    assert head.retina_reg.bias.abs().sum() == 0


def test_a_retinanet_from_stride_4_on():
    """The towers see C1 to C4 and nothing behind them, each with anchors of four times its stride."""
    skeleton = load_settings("digits_retinanet").skeleton
    detector = build_detector(skeleton, {x.label: "sep_k3_d1" for x in skeleton.searched_layers()}, CLASSES)
    scores, offsets = detector(torch.zeros(2, 3, 96, 96), mode="tensor")
    assert [tuple(map_.shape[2:]) for map_ in scores] == [(side, side) for side in (24, 12, 6, 3)]
    assert [tuple(map_.shape[2:]) for map_ in offsets] == [(side, side) for side in (24, 12, 6, 3)]
    anchors = detector.bbox_head.prior_generator
    assert anchors.strides == [(side, side) for side in (4, 8, 16, 32)]
    areas = [(base[:, 2:] - base[:, :2]).prod(dim=1).sqrt().min().item() for base in anchors.base_anchors]
    assert areas == pytest.approx([16, 32, 64, 128])
    loss_of(detector, "retinanet").backward()
    assert all(parameter.grad is not None for parameter in detector.bbox_head.parameters())


def test_settings_of_retinanet_are_mmdet_s():
    """All of mmdet's `retinanet_r50_fpn` but backbone, neck and towers."""
    path = Path(mmdet.__file__).parent / ".mim" / "configs" / "_base_" / "models" / "retinanet_r50_fpn.py"
    theirs = Config.fromfile(path).model.to_dict()
    ours = detector_config(Skeleton(detector="retinanet"), {"backbone": [], "neck": [], "head": []}, 80)
    for key in ("type", "data_preprocessor", "train_cfg", "test_cfg"):
        assert ours[key] == theirs[key], key
    for key in ("num_classes", "in_channels", "anchor_generator", "bbox_coder", "loss_cls", "loss_bbox"):
        assert ours["bbox_head"][key] == theirs["bbox_head"][key], key


@pytest.mark.parametrize("tiny", ["faster_rcnn"], indirect=True)
def test_settings_of_the_detector(detector):
    """The released RPN, assigner and test values (facts section 4)."""
    rpn, roi = detector.rpn_head, detector.roi_head
    assert rpn.prior_generator.strides == [(s, s) for s in (4, 8, 16, 32, 64)]
    assert rpn.prior_generator.ratios.tolist() == [0.5, 1.0, 2.0]
    assert rpn.loss_bbox.beta == pytest.approx(1 / 9)
    assert (rpn.assigner.pos_iou_thr, rpn.assigner.neg_iou_thr, rpn.sampler.num) == (0.7, 0.3, 256)
    assert (roi.bbox_assigner.pos_iou_thr, roi.bbox_sampler.pos_fraction) == (0.5, 0.25)
    assert roi.bbox_head.bbox_coder.stds == [0.1, 0.1, 0.2, 0.2]
    assert not roi.bbox_head.reg_class_agnostic
    assert roi.test_cfg == {"score_thr": 0.05, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100}
    default = detector_config(Skeleton(), {"backbone": [], "neck": [], "head": []}, 80)
    assert default["train_cfg"]["rpn_proposal"]["max_per_img"] == 2000
    assert default["test_cfg"]["rpn"]["max_per_img"] == 1000
    assert default["train_cfg"]["rcnn"]["sampler"]["num"] == 512
    assert default["rpn_head"]["anchor_generator"]["scales"] == [8]


@pytest.mark.slow
def test_plain_mmdet_builds_the_config(published, draw, tmp_path):
    """A config file with custom_imports is all that mmdet needs; with the parts' modules not even NNI is loaded."""
    expected = []
    for kind in LOSSES:
        skeleton = load_settings("tiny", {"skeleton.detector": kind}).skeleton
        sample = draw(skeleton, published, seed=0)
        operators = {part: [sample[label] for label in skeleton.labels(part)] for part in COMPONENTS}
        model = detector_config(skeleton, operators, CLASSES)
        parts = [f"hitdet_nni.model.{part}" for part in COMPONENTS]
        for name, imports in (("parts", parts), ("whole", ["hitdet_nni.model.detector"])):
            text = f"custom_imports = dict(imports={imports!r})\nmodel = {model!r}\n"
            (tmp_path / f"{name}_{kind}.py").write_text(text)
        expected.append(sum(p.numel() for p in build_detector(skeleton, sample, CLASSES).parameters()))
    code = """if True:
        import sys
        from mmengine.config import Config
        configs = [Config.fromfile(f"parts_{kind}.py") for kind in sys.argv[1:]]
        from mmdet.registry import MODELS
        detectors = [MODELS.build(config.model) for config in configs]
        assert "nni" not in sys.modules
        for kind, detector in zip(sys.argv[1:], detectors):
            whole = MODELS.build(Config.fromfile(f"whole_{kind}.py").model)
            assert list(whole.state_dict()) == list(detector.state_dict())
            print(sum(p.numel() for p in detector.parameters()))
    """
    command = [sys.executable, "-W", "ignore", "-c", code, *LOSSES]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [int(line) for line in done.stdout.splitlines()[-2:]] == expected


def test_config_is_plain_data(tiny):
    candidates = {part: [OPERATORS] * len(tiny.labels(part)) for part in ("backbone", "neck", "head")}
    config = detector_config(tiny, candidates, CLASSES)
    assert json.loads(json.dumps(config)) == config


def test_all_levels_of_the_pyramid_have_one_type_under_autocast():
    """Sums with a 32-bit input have 32 bits; mmdet's RoI extractor gathers all levels in the type of the first."""
    neck = HitNeck(["ir_k3_d1_e1"] * 4, [8, 8], 8)
    features = [torch.randn(2, 8, size, size) for size in (8, 4)]
    with torch.autocast("cpu", torch.bfloat16):
        assert neck.bottom_up[0](neck.top_down[0](features[0])).dtype == torch.float32
        assert {level.dtype for level in neck(features)} == {torch.bfloat16}
    assert {level.dtype for level in neck(features)} == {torch.float32}
