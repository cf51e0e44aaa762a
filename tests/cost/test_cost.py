"""The closed forms against counters that look at the modules themselves, and the expectation of Eq. 7."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hitdet_nni.config.architecture import load_architecture
from hitdet_nni.config.search_space import layer_candidates, load_search_space
from hitdet_nni.config.skeleton import COMPONENTS, Skeleton, Tail
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.cost_table import CostTable
from hitdet_nni.model.detector import build_detector, detector_config
from hitdet_nni.nas.cost_term import WeightedCost
from hitdet_nni.operators.registry import OPERATORS, build_operator, operator_cost, parse_operator

SIZES = ((8, 12), (7, 9), (1, 5))
CHANNELS = ((6, 6), (5, 8), (8, 3))
KINDS = ("faster_rcnn", "retinanet")


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(call, *modules):
    """Multiply-adds of convolutions and linear layers while `call` runs, by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2


def count_paper(call, *modules):
    """The `paper` convention (facts section 5) by hooks on the modules that run."""
    total = 0

    def hook(module, inputs, output):
        nonlocal total
        if isinstance(module, nn.Conv2d):
            rows, columns = output.shape[-2:]
            bias = 0 if module.bias is None else module.out_channels
            total += (module.weight.numel() + bias) * rows * columns * len(output)
        elif isinstance(module, nn.Linear):
            total += module.weight.numel() * len(output)
        elif isinstance(module, nn.BatchNorm2d):
            total += 2 * output.numel()
        elif isinstance(module, (nn.ReLU, nn.MaxPool2d)):
            total += inputs[0].numel()

    handles = [part.register_forward_hook(hook) for module in modules for part in module.modules()]
    call()
    for handle in handles:
        handle.remove()
    return total


COUNTERS = {"macs": count_macs, "paper": count_paper}


def meta_detector(skeleton, sample, num_classes):
    """The real mmdet detector without storage or computation: shapes only."""
    operators = {component: [sample[label] for label in skeleton.labels(component)] for component in COMPONENTS}
    with torch.device("meta"):
        return MODELS.build(ConfigDict(detector_config(skeleton, operators, num_classes)))


def measured(detector, shape, proposals, convention):
    """(params, flops) of each part, counted on the modules."""
    image = torch.empty(1, 3, *shape, device="meta")
    features = detector.backbone(image)
    pyramid = detector.neck(features)
    calls = {"backbone": (detector.backbone, image), "neck": (detector.neck, features)}
    if hasattr(detector, "roi_head"):
        rois = torch.empty(proposals, pyramid[0].shape[1], 7, 7, device="meta")
        calls |= {"rpn": (detector.rpn_head, pyramid), "head": (detector.roi_head.bbox_head, rois)}
    else:
        calls |= {"head": (detector.bbox_head, pyramid)}
    return {"rpn": (0, 0)} | {
        name: (parameters(part), COUNTERS[convention](lambda part=part, given=given: part(given), part))
        for name, (part, given) in calls.items()
    }


def assert_equal_costs(skeleton, sample, num_classes, shape, proposals, convention):
    model = CostModel(skeleton, num_classes, shape=shape, proposals=proposals, convention=convention)
    costs = model.architecture(sample)
    detector = meta_detector(skeleton, sample, num_classes)
    found = measured(detector, shape, proposals, convention)
    assert {part: (costs[part].params, costs[part].flops) for part in found} == found
    assert costs["total"].params == parameters(detector)
    assert costs["total"].flops == sum(flops for _, flops in found.values())


def random_skeleton(seed, kind):
    """Three to eight stages, four of them strided, with or without a tail."""
    rng = random.Random(seed)
    extra = rng.randint(0, 3)
    strides = [2] * 4 + [1] * extra
    rng.shuffle(strides)
    return Skeleton(
        detector=kind,
        stem_channels=rng.randint(2, 6),
        widths=[rng.randint(2, 9) for _ in strides],
        depths=[rng.randint(1, 2) for _ in strides],
        strides=strides,
        tail=rng.choice([None, Tail(width=rng.randint(3, 9), out_channels=rng.randint(3, 9))]),
        neck_width=rng.randint(2, 9),
        head_width=rng.randint(2, 9),
        head_blocks=rng.randint(1, 3),
        head_fc=rng.randint(2, 9),
    )


# ------------------------------------------------------------------------------------------------------ operators


def test_the_counters_count_by_hand():
    conv, fc = nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2), nn.Linear(5, 7)
    x, y = torch.zeros(1, 6, 9, 8), torch.zeros(3, 5)
    assert count_macs(lambda: (conv(x), fc(y))) == 3 * 3 * 3 * 4 * (5 * 4) + 3 * 5 * 7
    assert count_paper(lambda: (conv(x), fc(y)), conv, fc) == (3 * 3 * 3 * 4 + 4) * 5 * 4 + 3 * 5 * 7


@pytest.mark.parametrize("name", OPERATORS)
def test_operator(name):
    for stride, channels in itertools.product((1, 2), CHANNELS):
        block = build_operator(name, *channels, stride).to("meta")
        for size, convention in itertools.product(SIZES, COUNTERS):
            cost = operator_cost(parse_operator(name), *channels, stride, size, convention)
            x = torch.empty(1, channels[0], *size, device="meta")
            flops = COUNTERS[convention](lambda block=block, x=x: block(x), block)
            assert (cost.params, cost.flops) == (parameters(block), flops), (stride, channels, size, convention)


# ------------------------------------------------------------------------------------------------ whole detectors


@pytest.mark.parametrize("count", [6, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("convention", COUNTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_random_architectures(kind, convention, count, draw):
    space = load_search_space("full")
    for seed in range(count):
        rng = random.Random(seed)
        skeleton = random_skeleton(seed, kind)
        shape = (rng.randint(32, 130), rng.randint(32, 130))
        proposals = rng.randint(1, 6) if kind == "faster_rcnn" else None
        assert_equal_costs(skeleton, draw(skeleton, space, seed), rng.randint(1, 5), shape, proposals, convention)


@pytest.mark.parametrize(("convention", "total"), [("paper", 272.3), ("macs", 269.4)])
def test_released_network(convention, total):
    """The published 13.9 / 2.7 / 9.9 / 27.12 M and 272.3 G (facts section 5), and the modules' own count."""
    architecture = load_architecture("hit_detector")
    skeleton, sample = architecture.skeleton, architecture.sample
    costs = CostModel(skeleton, 80, shape=(800, 1216), proposals=1000, convention=convention).architecture(sample)
    millions = [round(costs[part].params / 1e6, 2) for part in ("backbone", "neck", "head", "total")]
    assert millions == [13.88, 2.72, 9.93, 27.12]
    assert round(costs["total"].flops / 1e9, 1) == total
    assert_equal_costs(skeleton, sample, 80, (800, 1216), 1000, convention)


def test_shipped_architecture_states_its_cost(published):
    """Every number of hit_detector.json is recomputed, every name compared with mmdet's and the published spaces."""
    from mmdet.datasets import CocoDataset

    architecture = load_architecture("hit_detector")
    assert architecture.name == "hit_detector"
    assert architecture.skeleton == Skeleton()
    provenance = architecture.provenance
    assert provenance.classes == CocoDataset.METAINFO["classes"]
    assert provenance.space == published
    for label, name in architecture.sample.items():
        assert name in published[label.split("/")[0]]
    blocks = [architecture.sample[label] for label in architecture.skeleton.labels("backbone")]
    assert [blocks[i] for i in (0, 2, 4, 8, 10, 11, 12, 15, 16, 18)] == [
        "ir_k3_d1_e3",
        "ir_k3_d2_e3",
        "ir_k5_d1_e6",
        "ir_k7_d1_e6",
        "ir_k5_d2_e6",
        "ir_k5_d1_e3",
        "ir_k5_d1_e6",
        "ir_k5_d2_e6",
        "ir_k7_d1_e6",
        "ir_k5_d2_e6",
    ]
    neck = [architecture.sample[label] for label in architecture.skeleton.labels("neck")]
    assert neck == [
        "sep_k5_d3",
        "sep_k5_d3",
        "sep_k5_d2",
        "sep_k3_d3",
        "sep_k3_d3",
        "sep_k5_d3",
        "sep_k5_d3",
        "sep_k3_d3",
    ]
    head = [architecture.sample[label] for label in architecture.skeleton.labels("head")]
    assert head == ["ir_k5_d1_e6", "ir_k3_d1_e6", "ir_k5_d1_e6", "ir_k5_d1_e6"]
    assert [record.convention for record in provenance.cost] == ["macs", "paper"]
    for record in provenance.cost:
        model = CostModel(
            architecture.skeleton,
            architecture.num_classes,
            shape=record.shape,
            proposals=record.proposals,
            convention=record.convention,
        )
        assert (record.shape, record.proposals) == ((800, 1216), 1000)
        costs = model.architecture(architecture.sample)
        assert record.params == {part: cost.params for part, cost in costs.items()}
        assert record.flops == {part: cost.flops for part, cost in costs.items()}


def test_a_one_stage_detector_has_no_rois(tiny):
    skeleton = tiny.model_copy(update={"detector": "retinanet"})
    model = CostModel(skeleton, 3)
    assert model.proposals == 0
    costs = model.architecture({layer.label: "sep_k3_d1" for layer in model.layers})
    assert list(costs) == ["backbone", "neck", "rpn", "head", "total"]
    assert (costs["rpn"].params, costs["rpn"].flops) == (0, 0)
    assert CostModel(skeleton, 3, proposals=10).proposals == 0


def test_defaults_are_the_skeletons(tiny):
    model = CostModel(tiny, 3)
    assert (model.shape, model.proposals, model.convention) == ((96, 96), 100, "macs")
    assert CostModel(tiny, 3, proposals=0).proposals == 0


def test_what_a_batch_is_padded_to_is_counted(tiny, published, draw):
    odd, sample = tiny.model_copy(update={"input_size": (97, 130)}), draw(tiny, published, 0)
    assert CostModel(odd, 3).architecture(sample) == CostModel(odd, 3, shape=(128, 160)).architecture(sample)
    image = torch.zeros(3, *odd.input_size, dtype=torch.uint8)
    batch = {"inputs": [image], "data_samples": [DetDataSample(metainfo={"img_shape": odd.input_size})]}
    seen = build_detector(odd, sample, 3).data_preprocessor(batch)["inputs"]
    assert tuple(seen.shape[-2:]) == CostModel(odd, 3).shape == odd.padded_size


def test_rows_sum_to_the_architecture(tiny, published, draw):
    model, sample = CostModel(tiny, 3), draw(tiny, published, 0)
    rows = model.rows(sample)
    assert {name: operator for _, name, operator, _ in rows if operator} == sample
    assert sum(cost.flops for *_, cost in rows) == model.architecture(sample)["total"].flops
    assert [part for part, *_ in rows] == sorted(
        (part for part, *_ in rows), key=["backbone", "neck", "rpn", "head"].index
    )


# -------------------------------------------------------------------------------------------------- expected cost


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    skeleton = Skeleton(
        detector=request.param, input_size=(97, 70), stem_channels=3, widths=[4, 5, 6, 7], depths=[1] * 4,
        strides=[2] * 4, tail=None, neck_width=5, head_width=6, head_blocks=1, head_fc=8, proposals_test=10,
    )  # fmt: skip
    return CostModel(skeleton, 2)


SMALL = {
    "backbone": ["ir_k3_d1_e3", "conv_k5_d1", "sep_k3_d1"],
    "neck": ["sep_k3_d1"],
    "head": ["conv_k3_d1", "ir_k7_d1_e6"],
}


def softmax_alphas(model, space, seed):
    torch.manual_seed(seed)
    return {layer.label: torch.randn(len(space[layer.component]), dtype=torch.float64) for layer in model.layers}


def test_one_hot_expectation_is_the_architecture(model, draw):
    space = load_search_space("full")
    expected = CostTable(model, space).expected
    for seed in range(20):
        sample = draw(model.skeleton, space, seed)
        one_hot = {
            layer.label: torch.tensor([float(name == sample[layer.label]) for name in space[layer.component]])
            for layer in model.layers
        }
        gflops = model.architecture(sample)["total"].flops / 1e9
        assert expected(one_hot).item() == pytest.approx(gflops, rel=1e-12)


def test_expectation_is_the_mean_over_all_architectures(model):
    alphas = softmax_alphas(model, SMALL, 0)
    probabilities = {label: alpha.softmax(0) for label, alpha in alphas.items()}
    mean = 0.0
    for names in itertools.product(*(SMALL[layer.component] for layer in model.layers)):
        chance = 1.0
        for layer, name in zip(model.layers, names, strict=True):
            chance *= probabilities[layer.label][SMALL[layer.component].index(name)].item()
        sample = {layer.label: name for layer, name in zip(model.layers, names, strict=True)}
        mean += chance * model.architecture(sample)["total"].flops / 1e9
    expected = CostTable(model, SMALL).expected
    assert expected(probabilities).item() == pytest.approx(mean, rel=1e-12)
    searched = {label: p for label, p in probabilities.items() if len(p) > 1}
    assert expected(searched).item() == pytest.approx(mean, rel=1e-12)


def test_gradient_is_the_finite_difference(model):
    alphas = softmax_alphas(model, SMALL, 1)
    labels = [label for label, alpha in alphas.items() if len(alpha) > 1]
    expected = CostTable(model, SMALL).expected

    def cost(*values):
        return expected({label: value.softmax(0) for label, value in zip(labels, values, strict=True)})

    values = [alphas[label].requires_grad_() for label in labels]
    assert torch.autograd.gradcheck(cost, values, eps=1e-5, atol=1e-9)
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(cost(*values), values))


def test_expectation_refuses(model, refused):
    alphas = softmax_alphas(model, SMALL, 2)
    alphas.pop("head/l01")
    with pytest.raises(KeyError, match="head/l01"):
        CostTable(model, SMALL).expected({label: alpha.softmax(0) for label, alpha in alphas.items()})
    with refused("neck", "no candidate"):
        CostTable(model, {**SMALL, "neck": []})
    with refused("skip"):
        CostTable(model, {**SMALL, "neck": ["skip"]})
    with pytest.raises(KeyError, match="backbone/l01"):
        model.architecture({})


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        ({}, ()),
        ({"neck": ["conv_k5_d1", "conv_k3_d1"]}, ("neck/l01 is a choice among conv_k5_d1, conv_k3_d1 there",)),
        ({"neck": ["sep_k5_d1", "sep_k3_d1"]}, ("among sep_k5_d1, sep_k3_d1 there", "among sep_k3_d1, sep_k5_d1")),
        ({"neck": ["sep_k3_d1", "sep_k5_d1", "conv_k3_d1"]}, ("neck/l01",)),
        ({"neck": ["sep_k3_d1"]}, ("among sep_k3_d1 there",)),
        ({"head": ["sep_k3_d1", "sep_k5_d1"]}, ("head/l01", "it is among nothing")),
    ],
)
def test_costs_of_another_space_are_refused(change, fragments, tiny, refused):
    space = {"backbone": ["ir_k3_d1_e1", "conv_k3_d1"], "neck": ["sep_k3_d1", "sep_k5_d1"], "head": ["conv_k3_d1"]}
    searched = {label: names for label, names in layer_candidates(tiny, space).items() if len(names) > 1}
    term = WeightedCost(CostTable(CostModel(tiny, 10), space | change), 1.0)
    if not fragments:
        term.check(searched)
    else:
        with refused("cost: is of another space", *fragments):
            term.check(searched)
