"""Signs of health: the figures in closed form, each warning on either side of its threshold, and the real thing."""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData

from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.cost_table import CostTable
from hitdet_nni.data.annotations.coco import read_annotations
from hitdet_nni.data.loaders import search_loaders
from hitdet_nni.data.sources import DetectionData, open_data
from hitdet_nni.errors import NonFiniteLossError
from hitdet_nni.model.detector import HitDetectorSpace, build_detector
from hitdet_nni.nas.evaluator import detection_loss
from hitdet_nni.nas.health.diagnosis import (
    MAX_P_VALUE,
    MIN_BATCHES,
    Setup,
    chance_of_agreement,
    diagnose,
    standing_out_entropy,
)
from hitdet_nni.nas.health.permutation_test import (
    MAX_BATCHES,
    PermutationResult,
    detector_losses,
    held_out_losses,
    permute_annotations,
)
from hitdet_nni.nas.health.stats import GradientNorms, SearchStats, collect_stats
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer
from hitdet_nni.nas.regularizers import column_sparsity, mean_entropy
from hitdet_nni.nas.screening import screen_components
from hitdet_nni.nas.strategy import ColumnSparseDARTS
from hitdet_nni.nas.supernet import Phase, train_supernet

KINDS = ("annotations", "categories")
SPACE = dict.fromkeys(("backbone", "neck", "head"), ("sep_k3_d1", "conv_k3_d1"))


# --------------------------------------------------------------------------------------------------- finite losses


def argmax(layers):
    return {label: layer.export({})[label] for label, layer in layers.items()}


def test_the_error_of_a_loss_that_is_not_finite_says_where_and_from_what_to_go_on(tmp_path):
    error = NonFiniteLossError("screening neck", 41, iter([7, 9]), tmp_path / "step.pt")
    assert (error.stage, error.step, error.image_ids) == ("screening neck", 41, (7, 9))
    assert error.checkpoint == tmp_path / "step.pt"
    assert "\n" not in str(error)
    for part in ("screening neck", "7, 9", str(tmp_path)):
        assert part in str(error)


# ------------------------------------------------------------------------------------------------------- gradients


def gradients(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = {"backbone/l01": 3, "backbone/l02": 3, "neck/l01": 2}
    return {label: torch.randn(size, generator=generator) for label, size in sizes.items()}


def test_gradient_norms_are_the_mean_over_steps():
    norms = GradientNorms()
    for step in range(3):
        norms.add({label: 64 * row for label, row in gradients(step).items()}, scale=64.0)
    expected = {
        component: statistics.mean(
            math.sqrt(sum(float(row @ row) for label, row in gradients(step).items() if label.startswith(component)))
            for step in range(3)
        )
        for component in ("backbone", "neck")
    }
    assert norms.take_means() == pytest.approx(expected)
    assert norms.take_means() == {}  # the next epoch starts with none


def test_a_step_that_fp16_leaves_out_is_left_out():
    norms = GradientNorms()
    norms.add({"neck/l01": torch.tensor([3.0, 4.0])})
    norms.add({"neck/l01": torch.tensor([math.inf, 1.0])})
    norms.add({"neck/l01": torch.tensor([math.nan, 1.0])})
    assert norms.take_means() == {"neck": 5.0}


def test_gradient_norms_go_on_from_a_checkpoint_exactly(tmp_path):
    whole, first, second = GradientNorms(), GradientNorms(), GradientNorms()
    for step in range(4):
        whole.add(gradients(step))
        if step < 2:
            first.add(gradients(step))
    assert all(isinstance(value, float) for values in first.state_dict().values() for value in values.values())
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in (2, 3):
        second.add(gradients(step))
    assert second.take_means() == whole.take_means()


# -------------------------------------------------------------------------------------------------------- examining


@pytest.fixture
def layers(tiny):
    """The mixed layers of a detector space in which every component is searched, with random parameters."""
    torch.manual_seed(0)
    space = ColumnSparseDARTS().mutate_model(HitDetectorSpace(tiny, SPACE, num_classes=3))
    found = {module.label: module for module in space.modules() if isinstance(module, ColumnSparseMixedLayer)}
    for layer in found.values():
        torch.nn.init.normal_(layer.alpha)
    return dict(sorted(found.items()))


def set_winner(layer, name):
    layer.alpha.data = torch.tensor([float(name == other) for other in layer.names])


def test_the_cost_gap_is_that_between_the_decoded_detector_and_the_expectation(tiny, layers):
    model = CostModel(tiny, num_classes=3)
    cost = CostTable(model, SPACE)
    health = collect_stats(0, layers, argmax(layers), cost, {}, {}, None)
    decoded = {label: SPACE["neck"][int(layer.alpha.argmax())] for label, layer in layers.items()}
    assert health.decoded == decoded
    probabilities = {label: layer.all_probabilities().detach() for label, layer in layers.items()}
    assert health.expected_gflops == pytest.approx(float(cost.expected(probabilities)))
    assert health.decoded_gflops == pytest.approx(model.architecture(decoded)["total"].flops / 1e9, rel=1e-9)
    neck = {
        label: torch.tensor([float(name == decoded[label]) for name in layer.names])
        if label.startswith("neck")
        else probabilities[label]
        for label, layer in layers.items()
    }
    assert health.cost_gap["neck"] == pytest.approx(float(cost.expected(neck)) - health.expected_gflops)
    assert all(gap != 0 for gap in health.cost_gap.values())


def test_changed_layers_are_counted_but_not_those_whose_operator_was_removed(tiny, layers):
    cost = CostTable(CostModel(tiny, num_classes=3), SPACE)
    sep, conv = SPACE["neck"]
    for layer in layers.values():
        set_winner(layer, sep)
    first = collect_stats(0, layers, argmax(layers), cost, {}, {}, None)
    assert first.changed == dict.fromkeys(SPACE, 0.0)
    assert (first.searching, first.gradient_norm) == (False, dict.fromkeys(SPACE, 0.0))
    set_winner(layers["backbone/l02"], conv)
    for label in ("neck/l01", "neck/l05"):
        set_winner(layers[label], conv)
    for label, layer in layers.items():
        if label.startswith("head"):
            layer.prune_to([conv])
    second = collect_stats(1, layers, argmax(layers), cost, {"backbone": 2.0, "neck": 3.0, "head": 4.0}, {}, first)
    assert second.changed == {"backbone": 1 / 4, "neck": 2 / 8, "head": 0.0}
    assert second.candidates == {"backbone": 2, "neck": 2, "head": 1}
    assert second.searching
    assert second.gradient_norm == {"backbone": 2.0, "neck": 3.0, "head": 4.0}
    assert second.entropy["head"] == 0
    assert second.entropy["backbone"] == pytest.approx(mean_entropy([torch.tensor([1.0, 0.0]).softmax(0)]))


def test_metrics_are_flat_and_have_the_same_keys_in_every_epoch(tiny, layers):
    cost = CostTable(CostModel(tiny, num_classes=3), SPACE)
    evidence = {"annotations": PermutationResult(0.5, 0.01, 9), "categories": PermutationResult(0.25, 0.5, 9)}
    warm_up = collect_stats(0, layers, argmax(layers), cost, {}, evidence, None)
    searching = collect_stats(
        1, layers, argmax(layers), cost, {"backbone": 0.1, "neck": 0.2, "head": 0.3}, evidence, warm_up
    )
    assert list(warm_up.metrics()) == list(searching.metrics())
    metrics = searching.metrics()
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    assert metrics["alpha_gradient_neck"] == 0.2
    assert metrics["decoded_to_expected"] == pytest.approx(searching.decoded_gflops / searching.expected_gflops)
    assert (metrics["categories_gain"], metrics["categories_p"]) == (0.25, 0.5)


def test_health_survives_a_weights_only_checkpoint(tiny, layers, tmp_path):
    cost = CostTable(CostModel(tiny, num_classes=3), SPACE)
    health = collect_stats(
        2, layers, argmax(layers), cost, {"neck": 0.1}, {"annotations": PermutationResult(0.5, 0.01, 9)}, None
    )
    torch.save(health.state(), tmp_path / "health.pt")
    assert SearchStats.restore(torch.load(tmp_path / "health.pt", weights_only=True)) == health


def test_the_decoded_architecture_is_the_one_given(tiny, layers):
    """With a budget it is not the argmax."""
    model = CostModel(tiny, num_classes=3)
    cheapest = {
        layer.label: min(SPACE[layer.component], key=lambda name, layer=layer: model.layer_cost(layer, name).flops)
        for layer in model.layers
    }
    health = collect_stats(0, layers, cheapest, CostTable(model, SPACE), {}, {}, None)
    assert health.decoded == cheapest != argmax(layers)
    assert health.decoded_gflops == pytest.approx(model.architecture(cheapest)["total"].flops / 1e9, rel=1e-9)


# -------------------------------------------------------------------------------------------------------- warnings


def healthy(epoch, **changes):
    """A search in which nothing is wrong; 8 operators, 20 layers in the backbone and 4 in the head."""
    operators = ["a", "b", "c", "d"]
    layers = {"backbone": 20, "head": 4}
    values = {
        "epoch": epoch,
        "searching": epoch >= 2,
        "candidates": {"backbone": 8, "head": 8},
        "decoded": {f"{name}/l{i:02d}": operators[i % 4] for name, count in layers.items() for i in range(count)},
        "entropy": {"backbone": 0.7, "head": 0.6},
        "changed": {"backbone": 0.1, "head": 0.0},
        "gradient_norm": dict.fromkeys(layers, 0.1 if epoch >= 2 else 0.0),
        "expected_gflops": 100.0,
        "cost_gap": {"backbone": -4.0, "head": 6.0},
        "evidence": {kind: PermutationResult(0.1, 0.001, 20) for kind in KINDS},
    }
    return SearchStats(**{**values, **changes})


SEARCH, SCREENING = Setup(decodes=True), Setup(decodes=False)


def history(**changes):
    """Six epochs, the last two with changes."""
    return [*(healthy(epoch) for epoch in range(4)), healthy(4, **changes), healthy(5, **changes)]


def test_a_healthy_search_has_no_warning():
    assert diagnose(history(), "search", SEARCH) == []


ALL_ONE = {f"backbone/l{i:02d}": "a" if i < 18 else "b" for i in range(20)} | {
    f"head/l{i:02d}": "ab"[i % 2] for i in range(4)
}
CASES = {
    "annotations": (
        {"evidence": {"annotations": PermutationResult(0.004, 0.02, 20)}},
        ["all components", "0.02", "0.01"],
        True,
    ),
    "categories": (
        {"evidence": {"categories": PermutationResult(0.004, 0.5, 20)}},
        ["all components", "categories"],
        True,
    ),
    "uniform": ({"entropy": {"backbone": 0.7, "head": 0.99}}, ["head", "0.9900", "0.9826", "alphas.lr"], True),
    "one operator": ({"decoded": ALL_ONE}, ["backbone", "a took 18 of 20", "0.9"], True),
    "vanished": ({"gradient_norm": {"backbone": 9e-4, "head": 0.1}}, ["backbone", "0.0009", "0.001"], True),
    "no gradient": ({"gradient_norm": {"backbone": 0.1, "head": 0.0}}, ["head", "vanishes"], True),
    "unsettled": ({"changed": {"backbone": 0.3, "head": 0.0}}, ["backbone", "0.30", "0.25"], False),
    "dearer": (
        {"cost_gap": {"backbone": 27.0, "head": 1.0}},
        ["backbone", "128", "1.28", "outside 0.8 to 1.25"],
        False,
    ),
    "cheaper": ({"cost_gap": {"backbone": 1.0, "head": -22.0}}, ["head", "79", "0.79", "outside 0.8 to 1.25"], False),
}


@pytest.mark.parametrize("case", CASES)
def test_each_sign_has_one_warning_that_names_what_is_wrong(case):
    changes, parts, in_screening = CASES[case]
    found = diagnose(history(**changes), "search", SEARCH)
    assert [line for line in found if all(part in line for part in ("search, epoch 6", *parts))] == found != []
    assert "\n" not in found[0]
    assert bool(diagnose(history(**changes), "screening head", SCREENING)) == in_screening


@pytest.mark.parametrize(
    "changes",
    [
        {"evidence": {"annotations": PermutationResult(-0.1, 0.0099, 20)}},  # finding more objects may raise the loss
        {"evidence": {"annotations": PermutationResult(0.5, 0.016, 7)}},  # no verdict, as is said before the training
        {"entropy": {"backbone": 0.98, "head": 0.98}},
        {"decoded": {**ALL_ONE, "backbone/l00": "c"}},
        {"gradient_norm": {"backbone": 1.1e-3, "head": 0.1}},
        {"gradient_norm": {"backbone": 1e-4, "head": 0.1}, "entropy": {"backbone": 0.05, "head": 0.5}},
        {"changed": {"backbone": 0.25, "head": 0.2}},
        {"cost_gap": {"backbone": 24.0, "head": 0.0}},
        {"cost_gap": {"backbone": -19.0, "head": 0.0}},
    ],
)
def test_what_is_within_the_thresholds_is_not_warned_of(changes):
    assert diagnose(history(**changes), "search", SEARCH) == []


@pytest.mark.parametrize(
    ("changes", "setup", "advice"),
    [
        (
            {"evidence": {"annotations": PermutationResult(0, 0.5, 20)}},
            Setup(decodes=True, pretrained=True),
            "pretrained",
        ),
        ({"decoded": ALL_ONE}, Setup(decodes=True, weighs_cost=False), "flops_weight"),
    ],
)
def test_advice_that_is_followed_already_is_left_out(changes, setup, advice):
    (line,) = diagnose(history(**changes), "search", SEARCH)
    assert advice in line
    (line,) = diagnose(history(**changes), "search", setup)
    assert advice not in line


def test_a_short_component_may_agree_by_chance():
    decoded = {"head/l01": "a", "head/l02": "a"}
    short = {"decoded": decoded, "candidates": {"head": 8}, "entropy": {"head": 0.5}, "cost_gap": {"head": 0.0}}
    assert diagnose(history(**short), "search", SEARCH) == []
    longer = {**short, "decoded": {**decoded, "head/l03": "a", "head/l04": "a"}}
    assert len(diagnose(history(**longer), "search", SEARCH)) == 1


def test_a_single_epoch_of_search_can_neither_settle_nor_vanish_against_itself():
    found = [healthy(1), healthy(2, changed={"backbone": 1.0, "head": 1.0})]
    assert diagnose(found, "search", SEARCH) == []
    assert diagnose(found[:1], "search", SEARCH) == []


def test_enough_batches_can_be_significant():
    for kind in KINDS:
        found = [
            PermutationResult.of(kind, rows([(1.0, 1.0)] * count), 0).p_value
            for count in (MIN_BATCHES - 2, MIN_BATCHES)
        ]
        assert found[0] > MAX_P_VALUE > found[1]


@pytest.mark.parametrize("candidates", [2, 8, 32])
def test_standing_out_entropy(candidates):
    weights = torch.ones(candidates, dtype=torch.float64)
    weights[0] = 2
    assert standing_out_entropy(candidates) == pytest.approx(mean_entropy([weights / weights.sum()]))


@pytest.mark.parametrize(("layers", "agreeing", "candidates"), [(4, 4, 3), (5, 4, 2), (5, 3, 3), (2, 2, 8)])
def test_chance_of_agreement_bounds_the_enumerated_probability(layers, agreeing, candidates):
    draws = list(itertools.product(range(candidates), repeat=layers))
    exact = sum(max(map(draw.count, draw)) >= agreeing for draw in draws) / len(draws)
    bound = chance_of_agreement(layers, agreeing, candidates)
    assert exact <= bound + 1e-12
    if 2 * agreeing > layers:  # two operators cannot both agree so much: the bound is exact
        assert bound == pytest.approx(min(1.0, exact))


# -------------------------------------------------------------------------------------------------------- evidence


def rows(values):
    """Differences of two terms and their sum."""
    return [{"loss_cls": a, "loss_bbox": b, "loss": a + b} for a, b in values]


@pytest.mark.parametrize("kind", KINDS)
def test_without_information_the_p_value_is_below_a_level_as_often_as_the_level_says(kind):
    rng = random.Random(0)

    def draw():
        return rng.expovariate(1) * rng.choice([-1, 1]), rng.gauss(0, 2)

    found = [PermutationResult.of(kind, rows([draw() for _ in range(12)]), seed).p_value for seed in range(300)]
    for level in (0.05, 0.2, 0.5):
        share = sum(value <= level for value in found) / len(found)
        assert abs(share - level) < 3 * math.sqrt(level * (1 - level) / len(found))


def test_annotations_are_known_where_terms_differ_though_their_sum_does_not():
    rng = random.Random(0)
    differences = rows([(value := rng.uniform(0.5, 1.5), -value) for _ in range(12)])
    found = PermutationResult.of("annotations", differences, 0)
    assert found.gain == pytest.approx(0)
    assert found.p_value < 0.002
    assert found.batches == 12


def test_categories_are_known_only_where_the_own_ones_have_the_lower_loss():
    worse = rows([(1.0 + i / 9, 0.1) for i in range(12)])
    found = PermutationResult.of("categories", worse, 0)
    assert found.gain == pytest.approx(statistics.mean(row["loss"] for row in worse))
    assert found.p_value < 0.002
    better = [{name: -value for name, value in row.items()} for row in worse]
    assert PermutationResult.of("categories", better, 0).p_value > 0.99
    assert PermutationResult.of("annotations", better, 0).p_value < 0.002


@pytest.mark.parametrize("batches", [1, 2, 4])
def test_few_batches_prove_nothing(batches):
    differences = rows([(1.0, 2.0)] * batches)
    assert PermutationResult.of("annotations", differences, 0).p_value == pytest.approx(2 ** (1 - batches), rel=0.1)
    assert PermutationResult.of("categories", differences, 0).p_value == pytest.approx(2**-batches, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_evidence_of_nothing(kind):
    assert PermutationResult.of(kind, [], 0) == PermutationResult(0.0, 1.0, 0)
    assert PermutationResult.of(kind, rows([(0.0, 0.0)] * 12), 0).p_value == 1
    assert PermutationResult.of(kind, rows([(1.0, math.nan)] * 12), 0).p_value == 1


def sample(boxes, labels, shape):
    data = DetDataSample(metainfo={"img_shape": shape})
    for key, count in (("gt_instances", len(boxes)), ("ignored_instances", 0)):
        tensor = torch.tensor(boxes[:count], dtype=torch.float32).reshape(-1, 4)
        data.set_data(
            {key: InstanceData(bboxes=HorizontalBoxes(tensor), labels=torch.tensor(labels[:count], dtype=torch.long))}
        )
    return data


def contents(samples):
    return [
        (data.gt_instances.bboxes.tensor.tolist(), data.gt_instances.labels.tolist(), data.img_shape)
        for data in samples
    ]


def test_annotations_go_to_the_next_image_and_are_scaled_to_its_size():
    batch = [sample([[0, 0, 4, 8]], [1], (10, 20)), sample([[1, 2, 3, 4], [0, 0, 1, 1]], [2, 5], (20, 20))]
    before = contents(batch)
    first, second = permute_annotations(batch, "annotations", torch.Generator())
    assert contents(batch) == before
    assert contents([first]) == [([[1, 1, 3, 2], [0, 0, 1, 0.5]], [2, 5], (10, 20))]
    assert contents([second]) == [([[0, 0, 4, 16]], [1], (20, 20))]
    assert permute_annotations(batch[:1], "annotations", torch.Generator()) is None


def test_categories_are_dealt_among_the_boxes_of_a_batch():
    labels = [[0, 1, 2], [], [3, 4, 5, 6]]
    batch = [sample([[0, 0, 1, 1]] * len(row), row, (10, 10)) for row in labels]
    before = contents(batch)
    dealt = permute_annotations(batch, "categories", torch.Generator().manual_seed(0))
    assert contents(batch) == before
    after = [data.gt_instances.labels.tolist() for data in dealt]
    flat, flat_before = (list(itertools.chain(*rows)) for rows in (after, labels))
    assert [len(row) for row in after] == [3, 0, 4]
    assert sorted(flat) == sorted(flat_before)
    assert flat != flat_before
    one = [sample([[0, 0, 1, 1]], [4], (10, 10))] * 2
    assert permute_annotations(one, "categories", torch.Generator()) is None


def test_exchanging_leaves_the_held_out_loss_and_its_random_numbers_alone(tiny, tiny_settings, tiny_data):
    torch.manual_seed(0)
    detector = build_detector(tiny, {layer.label: "conv_k3_d1" for layer in tiny.searched_layers()}, 10).eval()
    _, _, loader = search_loaders(tiny_data, tiny_settings.data, tiny, 0)
    batches = [batch for _ in range(2) for batch in loader]

    def run(kinds):
        torch.manual_seed(1)
        with torch.no_grad():
            own, differences = held_out_losses(lambda batch: detector_losses(detector, batch), batches, kinds, 0)
        return own, differences, torch.rand(1).item()

    plain, exchanging = run(()), run(KINDS)
    assert plain[0] == exchanging[0]
    assert plain[2] == exchanging[2]
    torch.manual_seed(1)
    with torch.no_grad():
        assert plain[0] == [float(detection_loss(detector, batch)) for batch in batches]
    for kind in KINDS:
        assert len(exchanging[1][kind]) == len(batches)
        assert all(row["loss"] != 0 for row in exchanging[1][kind])
    # Categories leave what the region proposal network is asked for as it was.
    assert all(row["loss_rpn_cls"] == row["loss_rpn_bbox"] == 0 for row in exchanging[1]["categories"])


def test_a_large_validation_set_is_sampled(monkeypatch):
    batch = {"data_samples": [sample([[0, 0, 1, 1]], [label], (10, 10)) for label in range(4)]}
    own, differences = held_out_losses(lambda batch: {"loss": 1.0}, [batch] * (MAX_BATCHES + 5), KINDS, 0)
    assert len(own) == MAX_BATCHES + 5
    assert {len(found) for found in differences.values()} == {MAX_BATCHES}


# ---------------------------------------------------------------------------------------------------- the real thing


def shuffled(data, what, folder, seed):
    """The same images with the categories dealt among all boxes, or with the boxes of other images."""
    rng = random.Random(seed)
    splits = []
    for name, dataset in (("train", data.train), ("val", data.val)):
        content = json.loads(dataset.ann.read_text())
        entries = content["annotations"]
        if what == "categories":
            categories = [entry["category_id"] for entry in entries]
            rng.shuffle(categories)
            for entry, category in zip(entries, categories, strict=True):
                entry["category_id"] = category
        else:
            ids = [image["id"] for image in content["images"]]
            target = dict(zip(ids, rng.sample(ids, len(ids)), strict=True))
            for entry in entries:
                entry["image_id"] = target[entry["image_id"]]
        file = folder / f"{what}-{name}.json"
        file.write_text(json.dumps(content))
        splits.append(read_annotations(file, dataset.images, key=f"data.{name}_ann", allow_empty_boxes=True))
    return DetectionData(*splits)


def end_of_search(settings, data, epochs, warmup_epochs):
    """The health of a search of all three components at its end, and its warnings."""
    phase = Phase(settings.skeleton, SPACE, epochs=epochs, warmup_epochs=warmup_epochs)
    trained = train_supernet(phase, settings, data, settings.seed, lambda record: None)
    return trained.records[-1].health, trained.warnings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "epochs", "warmup_epochs", "val"), [("annotations", 3, 2, 60), ("categories", 8, 6, 100)]
)
def test_shuffled_labels_are_noticed_and_true_ones_are_not(what, epochs, warmup_epochs, val, tmp_path, figure):
    """Boxes given to other images, or categories dealt among all boxes, of the training and validation images."""
    settings = load_settings("tiny", {"data.train": 240, "data.val": val})
    data = open_data(settings.data, settings.seed)
    healthy, quiet = end_of_search(settings, data, epochs, warmup_epochs)
    ill, warnings = end_of_search(settings, shuffled(data, what, tmp_path, 0), epochs, warmup_epochs)
    for name, health in (("true", healthy), ("shuffled", ill)):
        figure(f"{what}, {name}: {health.evidence[what]}, entropy {health.entropy}")
    exchanging = f"exchanging the {what} of"
    assert not [line for line in quiet if exchanging in line]
    assert [line for line in warnings if exchanging in line]


# ------------------------------------------------------------------------------------------------ the sparse columns


def test_a_column_is_held_at_zero_where_mu_exceeds_the_norm_of_its_gradient():
    """The subgradient condition of Eq. 4, reached by the search's own optimiser from its small random start."""
    torch.manual_seed(0)
    weak, strong, mu = 0.05, 0.2, 0.1
    # Two layers, two operators: the columns' gradients have the norms `weak` and `strong`.
    gradient = torch.tensor([[0.6 * weak, 0.6 * strong], [0.8 * weak, 0.8 * strong]])
    alpha = (1e-3 * torch.randn(2, 2)).requires_grad_()
    optimizer = torch.optim.Adam([alpha], lr=1e-3, betas=(0.5, 0.999))
    for _ in range(1000):
        optimizer.zero_grad()
        ((gradient * alpha).sum() + mu * column_sparsity(list(alpha))).backward()
        optimizer.step()
    norms = alpha.detach().norm(dim=0)
    assert norms[0] < 0.01
    assert norms[1] > 0.3


@pytest.mark.slow
def test_the_spread_of_column_scores_falls_with_mu(figure):
    """Eq. 4 shrinks all columns, so that softmax comes nearer to uniform: the reverse of what section 4.4 reports.

    The validation loss moves an architecture parameter by a gradient of some 0.01 here, a column by less than mu, and
    the term's pull towards zero does not weaken with the column: what it exceeds stays at zero (the test before).
    """
    operators = ("sep_k3_d1", "ir_k3_d1_e1", "conv_k3_d1", "sep_k5_d1", "sep_k3_d2", "ir_k5_d1_e1")
    settings = load_settings(
        "tiny", {"data.train": 64, "data.val": 4, "screening.epochs": 5, "screening.keep.head": len(operators)}
    )
    data = open_data(settings.data, settings.seed)
    spread = {}
    for mu in (0.0, 0.1):
        changed = settings.screening.model_copy(update={"sparsity_weight": mu})
        screened = screen_components(
            ("head",),
            dict.fromkeys(SPACE, operators),
            settings.model_copy(update={"screening": changed}),
            data,
            lambda record: None,
        )
        scores = list(screened.records[-1].scores["head"].values())
        spread[mu] = statistics.pstdev(scores), max(scores) - min(scores)
    for mu, (deviation, width) in spread.items():
        figure(f"mu {mu:g}: standard deviation {deviation:.4f} and range {width:.4f} of the scores")
    assert spread[0.1][0] < spread[0.0][0]
    assert spread[0.1][1] < spread[0.0][1]
