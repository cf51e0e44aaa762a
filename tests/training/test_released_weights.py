"""Weights of the public release: renamed, and a network of its names computes the same as ours."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trained_detectors import KINDS, enliven

from hitdet_nni import cli
from hitdet_nni.config.architecture import Architecture, Provenance, load_architecture
from hitdet_nni.config.settings import load_settings
from hitdet_nni.deployment.loading import load_detector
from hitdet_nni.engine.weights_file import read_state, save_weights
from hitdet_nni.errors import InputError
from hitdet_nni.model.detector import build_detector
from hitdet_nni.training.released_weights import ARCHITECTURE, import_weights, read_release, renamed

CLASSES = ("ant", "bee", "cat")


class Unit(nn.Module):
    """A convolution and its normalisation, by the release's names."""

    def __init__(self, inner, outer, kernel=1, *, stride=1, dilation=1, groups=1, bias=False, relu=True):
        super().__init__()
        padding = (kernel - 1) * dilation // 2
        self.conv = nn.Conv2d(inner, outer, kernel, stride, padding, dilation, groups, bias)
        self.bn = nn.BatchNorm2d(outer)
        self.relu = relu

    def forward(self, x):
        x = self.bn(self.conv(x))
        return x.relu() if self.relu else x


class Operator(nn.Module):
    """``conv1``, ``conv2`` and, of an inverted residual, ``conv3``."""

    def __init__(self, name, inner, outer, stride=1):
        super().__init__()
        family, *numbers = name.split("_")
        kernel, dilation, *rest = (int(each[1:]) for each in numbers)
        middle = {"kernel": kernel, "dilation": dilation, "stride": stride}
        if family == "ir":
            wide = inner * rest[0]
            self.conv1 = Unit(inner, wide)
            self.conv2 = Unit(wide, wide, groups=wide, **middle)
            self.conv3 = Unit(wide, outer, relu=False)
        else:
            self.conv1 = Unit(inner, inner, groups=inner, **middle)
            self.conv2 = Unit(inner, outer, relu=False)
        self.adds = inner == outer and stride == 1

    def forward(self, x):
        out = x
        for part in self.children():
            out = part(out)
        return out + x if self.adds else out


class Holder(nn.Module):
    """A module that only gives its children names."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def release(architecture):
    """A network of the release's names for an architecture, with random weights and statistics."""
    skeleton, sample = architecture.skeleton, architecture.sample
    layers = [Unit(3, skeleton.stem_channels, 3, stride=2, bias=True)]
    for layer in skeleton.searched_layers():
        if layer.component == "backbone":
            layers.append(Operator(sample[layer.label], layer.in_channels, layer.out_channels, layer.stride))
    if skeleton.tail is not None:
        layers.append(Operator("ir_k3_d1_e3", skeleton.widths[-1], skeleton.tail.width))
        layers.append(Unit(skeleton.tail.width, skeleton.tail.out_channels))
    width = skeleton.neck_width
    cells = [
        Operator(sample[layer.label], layer.in_channels, width)
        for layer in skeleton.searched_layers()
        if layer.component == "neck"
    ]
    blocks = [Operator(sample[label], width, width) for label in skeleton.labels("head")]
    fc, count = skeleton.head_fc, len(architecture.provenance.classes)
    network = Holder(
        backbone=Holder(layers=nn.ModuleList(layers)),
        neck=Holder(
            SearchNeck=Holder(cells=nn.ModuleList(cells)),
            pa_convs=nn.ModuleList(Holder(conv=nn.Conv2d(width, width, 3, padding=1)) for _ in range(3)),
        ),
        rpn_head=Holder(
            rpn_conv=nn.Conv2d(width, width, 3, padding=1),
            rpn_cls=nn.Conv2d(width, 3, 1),
            rpn_reg=nn.Conv2d(width, 12, 1),
        ),
        bbox_head=Holder(
            SearchHead=Holder(cells=nn.ModuleList(blocks)),
            shared_fcs=nn.ModuleList([nn.Linear(width * 49, fc)]),
            fc_cls=nn.Linear(fc, count + 1),
            fc_reg=nn.Linear(fc, 4 * (count + 1)),
        ),
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1, generator=generator)
                part.running_var.uniform_(0.5, 1.5, generator=generator)
                part.weight.uniform_(0.5, 1.5, generator=generator)
                part.bias.normal_(0, 0.1, generator=generator)
    return network.eval()


def theirs(network, strides, image):
    """What a release's network computes: the pyramid, and the head on pooled RoIs."""
    maps, total = [], 2
    x = network.backbone.layers[0](image)
    outputs = {}
    for layer, stride in zip(network.backbone.layers[1:], strides, strict=True):
        x, total = layer(x), total * stride
        outputs[total] = x
    maps = [outputs[stride] for stride in (4, 8, 16, 32)]
    cells = network.neck.SearchNeck.cells
    laterals = [cell(x) for cell, x in zip(cells[:4], maps, strict=True)]
    for place in (3, 2, 1):
        laterals[place - 1] = laterals[place - 1] + F.interpolate(laterals[place], scale_factor=2)
    middle = [cell(x) for cell, x in zip(cells[4:], laterals, strict=True)]
    pyramid = middle[:1]
    for conv, x in zip(network.neck.pa_convs, middle[1:], strict=True):
        pyramid.append(conv.conv(F.max_pool2d(pyramid[-1], 2) + x))
    return [*pyramid, F.max_pool2d(pyramid[-1], 1, stride=2)]


@pytest.fixture(scope="module", params=[None, {"width": 20, "out_channels": 40}], ids=["stages", "tail"])
def architecture(request):
    values = {"skeleton.boxes": "inclusive", "skeleton.tail": request.param, "skeleton.depths": [2, 1, 1, 1]}
    skeleton = load_settings("tiny", values).skeleton
    operators = {"backbone": "ir_k3_d2_e3", "neck": "sep_k5_d3", "head": "ir_k5_d1_e6"}
    sample = {layer.label: operators[layer.component] for layer in skeleton.searched_layers()}
    return Architecture(
        schema_version=1, name="small", skeleton=skeleton, sample=sample, provenance=Provenance(classes=CLASSES)
    )


def test_a_network_of_the_release_s_names_computes_the_same(architecture, tmp_path):
    network = release(architecture)
    file = tmp_path / "release.pth"
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"meta": {"epoch": 12, "mmdet_version": "1.0rc1"}, "state_dict": state, "optimizer": {}}, file)
    import_weights(file, architecture, tmp_path / "weights.pth")
    ours = build_detector(architecture.skeleton, architecture.sample, 3).eval()
    ours.load_state_dict(read_state(tmp_path / "weights.pth"))
    image, rois = torch.randn(1, 3, 64, 96), torch.randn(5, architecture.skeleton.neck_width, 7, 7)
    layers = [layer for layer in architecture.skeleton.searched_layers() if layer.component == "backbone"]
    strides = [*(layer.stride for layer in layers), *([1, 1] if architecture.skeleton.tail is not None else [])]
    with torch.no_grad():
        for mine, other in zip(ours.extract_feat(image), theirs(network, strides, image), strict=True):
            torch.testing.assert_close(mine, other)
        x = rois
        for cell in network.bbox_head.SearchHead.cells:
            x = cell(x)
        x = network.bbox_head.shared_fcs[0](x.flatten(1)).relu()
        logits, offsets = ours.roi_head.bbox_head(rois)
        classes, boxes = network.bbox_head.fc_cls(x), network.bbox_head.fc_reg(x)
        torch.testing.assert_close(logits, torch.cat([classes[:, 1:], classes[:, :1]], dim=1))  # the background last
        torch.testing.assert_close(offsets, boxes[:, 4:])  # the background has none
        for name in ("rpn_conv", "rpn_cls", "rpn_reg"):
            pair = (getattr(each.rpn_head, name).weight for each in (ours, network))
            torch.testing.assert_close(*pair)


def test_the_released_network_has_these_names():
    """Counts and shapes by the release's configuration: 81 classes, 23 layers of the backbone, 8 cells, 4 blocks."""
    architecture = load_architecture(ARCHITECTURE)
    state = {
        name: torch.zeros(1).expand(value.shape)
        for name, value in release(architecture).state_dict().items()
        if not name.endswith("num_batches_tracked")  # torch 0.4 wrote none
    }
    assert state["bbox_head.fc_cls.weight"].shape == (81, 512)
    assert state["bbox_head.fc_reg.weight"].shape == (324, 512)
    assert {name.split(".")[2] for name in state if name.startswith("backbone.")} == {str(n) for n in range(23)}
    found = renamed(state, architecture, "release.pth")
    assert found["roi_head.bbox_head.fc_reg.weight"].shape == (320, 512)
    assert architecture.sample == load_architecture("hit_detector").sample


def change(state, name, value):
    return {**state, name: value}


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        (lambda state: change(state, "neck.lateral_convs.0.weight", torch.zeros(1)), "neck.lateral_convs.0.weight"),
        (lambda state: change(state, "backbone.layers.1.conv4.conv.weight", torch.zeros(1)), "conv4"),
        (lambda state: change(state, "backbone.layers.99.conv1.conv.weight", torch.zeros(1)), "layers.99"),
        (lambda state: {name: value for name, value in state.items() if "rpn_cls" not in name}, "rpn_head.rpn_cls"),
        (lambda state: change(state, "bbox_head.fc_cls.weight", torch.zeros(9, 64)), "[9, 64]"),
        (lambda state: {}, "no weights"),
        (lambda state: {"a": 3}, "no weights"),
    ],
)
def test_another_checkpoint_is_refused_in_a_line(architecture, tmp_path, wrong, part):
    torch.save({"state_dict": wrong(release(architecture).state_dict())}, tmp_path / "release.pth")
    with pytest.raises(InputError) as error:
        import_weights(tmp_path / "release.pth", architecture, tmp_path / "weights.pth")
    assert part in str(error.value)
    assert "release.pth" in str(error.value)
    assert not (tmp_path / "weights.pth").exists()


def test_files_that_are_no_checkpoint(tmp_path, capsys):
    (tmp_path / "text.pth").write_text("nothing")
    torch.save(print, tmp_path / "code.pth")
    for name in ("none.pth", "text.pth", "code.pth"):
        with pytest.raises(InputError, match=name):
            read_release(tmp_path / name)
    assert cli.main(["import-weights", str(tmp_path / "none.pth"), "--out", str(tmp_path / "w.pth")]) == 2
    assert "none.pth" in capsys.readouterr().err
    assert cli.main(["import-weights", "none.pth", "--out", str(tmp_path / "text.pth")]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    architecture = load_architecture(ARCHITECTURE)
    torch.save({"state_dict": release(architecture).state_dict()}, tmp_path / "release.pth")
    assert cli.main(["import-weights", str(tmp_path / "release.pth"), "--out", str(tmp_path / "weights.pth")]) == 0
    assert ARCHITECTURE in capsys.readouterr().out
    load_detector(architecture, tmp_path / "weights.pth")


def test_boxes_with_both_ends_are_found_as_mmdet_finds_them(tmp_path):
    skeleton = load_settings("tiny", {"skeleton.boxes": "inclusive"}).skeleton
    sample = dict.fromkeys((layer.label for layer in skeleton.searched_layers()), "ir_k3_d1_e3")
    architecture = Architecture(
        schema_version=1, name="old", skeleton=skeleton, sample=sample, provenance=Provenance(classes=CLASSES)
    )
    torch.manual_seed(0)
    mmdet = enliven(build_detector(skeleton, sample, 3))
    save_weights(mmdet, tmp_path / "weights.pth")
    plain = load_detector(architecture, tmp_path / "weights.pth")
    for ours, base in zip(plain.rpn_head.anchors, mmdet.rpn_head.prior_generator.base_anchors, strict=True):
        assert ours.tolist() == base.tolist()
    image = F.interpolate(torch.randint(0, 256, (1, 3, 12, 14)).float(), (90, 110), mode="bilinear").byte()
    packed = mmdet.data_preprocessor(
        {"inputs": [image[0].flip(0)], "data_samples": [data_sample(image.shape[2:])]}, training=False
    )
    with torch.no_grad():
        [found] = mmdet.predict(packed["inputs"], packed["data_samples"], rescale=False)
        boxes, scores, labels = plain(image)
    assert len(scores) == len(found.pred_instances.scores) > 0
    torch.testing.assert_close(scores, found.pred_instances.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(boxes, found.pred_instances.bboxes, atol=1e-2, rtol=0)
    assert labels.tolist() == found.pred_instances.labels.tolist()


def data_sample(shape):
    from mmdet.structures import DetDataSample

    return DetDataSample(metainfo={"img_shape": tuple(shape), "ori_shape": tuple(shape), "scale_factor": (1.0, 1.0)})


def test_a_one_stage_detector_has_none_such():
    assert KINDS[1] == "retinanet"
    with pytest.raises(InputError, match="faster_rcnn alone"):
        load_settings("tiny", {"skeleton.boxes": "inclusive", "skeleton.detector": "retinanet"})
