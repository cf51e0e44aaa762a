"""A table of latencies: sums by hand, what it refuses, and what is read back."""

import json

import pytest
import torch
from tables import made_up_table

from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.cost.cost_model import PARTS, CostModel
from hitdet_nni.cost.cost_table import CostTable
from hitdet_nni.cost.latency_table import LatencyTable, load_latency_table, save_latency_table
from hitdet_nni.operators.costs import Cost


@pytest.fixture(params=["tiny", "digits_retinanet"])
def skeleton(request):
    return load_settings(request.param).skeleton


def by_hand(content, sample):
    """Milliseconds of an architecture, added up."""
    searched = sum(content.layers_ms[label][name] for label, name in sample.items())
    return searched + sum(content.fixed_ms.values()) + content.overhead_ms


def test_time_of_an_architecture_is_the_sum_of_its_layers_and_the_overhead(skeleton, draw, published):
    content = made_up_table(skeleton)
    model, plain = CostModel(skeleton, 10, latency=LatencyTable(content, "t.json")), CostModel(skeleton, 10)
    for seed in range(5):
        sample = draw(skeleton, published, seed)
        costs, counted = model.architecture(sample), plain.architecture(sample)
        assert costs["total"].nanoseconds / 1e6 == pytest.approx(by_hand(content, sample), abs=1e-4)
        parts = sum(costs[part].nanoseconds for part in PARTS)
        assert costs["total"].nanoseconds - parts == round(content.overhead_ms * 1e6)
        neck = sum(ms for name, ms in content.fixed_ms.items() if name.startswith("neck/"))
        neck += sum(content.layers_ms[label][name] for label, name in sample.items() if label.startswith("neck/"))
        assert costs["neck"].nanoseconds / 1e6 == pytest.approx(neck, abs=1e-4)
        # What is counted does not depend on what was measured, and without a table there is no time.
        assert all((costs[key].params, costs[key].flops) == (cost.params, cost.flops) for key, cost in counted.items())
        assert all(cost.nanoseconds == 0 for cost in counted.values())


def test_expected_time_and_its_gradient(skeleton, published):
    content = made_up_table(skeleton)
    costs = CostTable(CostModel(skeleton, 10, latency=LatencyTable(content, "t.json")), published, "latency_ms")
    labels = {layer.label: published[layer.component] for layer in skeleton.searched_layers()}
    torch.manual_seed(0)
    weights = {label: torch.rand(len(names), dtype=torch.float64) for label, names in labels.items()}
    weights = {label: (row / row.sum()).requires_grad_() for label, row in weights.items()}
    expected = costs.expected(weights)
    expected.backward()
    mean = sum(
        sum(w * content.layers_ms[label][name] for w, name in zip(weights[label].tolist(), names, strict=True))
        for label, names in labels.items()
    )
    assert expected.item() == pytest.approx(mean + sum(content.fixed_ms.values()) + content.overhead_ms, abs=1e-4)
    for label, names in labels.items():
        assert weights[label].grad.tolist() == pytest.approx([content.layers_ms[label][n] for n in names], abs=1e-6)


def test_a_layer_that_is_applied_often_takes_its_time_often():
    once = Cost(params=3, flops=5, nanoseconds=7)
    assert once.times(3) == Cost(3, 15, 21)
    assert once + once == Cost(6, 10, 14)
    assert Cost.shared([once, Cost(3, 1, 2)]) == Cost(3, 6, 9)


def test_read_back(tmp_path, skeleton):
    content = made_up_table(skeleton)
    save_latency_table(content, tmp_path / "table.json")
    assert load_latency_table(tmp_path / "table.json").content == content


DAMAGES = {
    "not an object": (lambda table: [1], ["expected a mapping"]),
    "no layers": (lambda table: table.pop("layers_ms") and table, ["layers_ms"]),
    "another version": (lambda table: table | {"schema_version": 2}, ["schema_version"]),
    "NaN": (lambda table: table | {"overhead_ms": float("nan")}, ["overhead_ms"]),
    "negative": (lambda table: table["layers_ms"]["head/l01"].update(ir_k3_d1_e1=-1) or table, ["layers_ms.head/l01"]),
    "text": (lambda table: table["fixed_ms"].update({"backbone/stem": "fast"}) or table, ["fixed_ms.backbone/stem"]),
    "a layer less": (lambda table: table["layers_ms"].pop("neck/l03") and table, ["lacks the layer neck/l03"]),
    "a layer more": (lambda table: table["layers_ms"].update({"neck/l99": {}}) or table, ["unknown layer neck/l99"]),
    "a part less": (lambda table: table["fixed_ms"].pop("rpn/rpn") and table, ["lacks the layer rpn/rpn"]),
    "an unknown key": (lambda table: table | {"mood": "good"}, ["mood"]),
    "a runtime unheard of": (
        lambda table: table["conditions"].update(runtime="abacus") or table,
        ["conditions.runtime"],
    ),
    "no detector": (lambda table: table | {"detectors": []}, ["detectors"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_refused_in_one_line(tmp_path, tiny, refused, damage):
    spoil, named = DAMAGES[damage]
    file = tmp_path / "table.json"
    file.write_text(json.dumps(spoil(made_up_table(tiny).model_dump(mode="json"))))
    with refused(file, *named):
        load_latency_table(file)


@pytest.mark.parametrize("text", ["", "{", "null"])
def test_what_is_no_table_is_refused(tmp_path, refused, text):
    file = tmp_path / "table.json"
    file.write_text(text)
    with refused(file):
        load_latency_table(file)
    with refused(tmp_path / "none.json"):
        load_latency_table(tmp_path / "none.json")


def test_another_detector_is_refused(tiny, refused):
    table = LatencyTable(made_up_table(tiny), "t.json")
    CostModel(tiny.model_copy(update={"proposals_train": 7, "roi_samples": 3}), 10, latency=table)  # training alone
    for change, key in (
        ({"input_size": [64, 128]}, "input_size"),
        ({"neck_width": 4}, "neck_width"),
        ({"proposals_test": 9}, "proposals_test"),
        ({"head_blocks": 3}, "head_blocks"),
    ):
        with refused("t.json", key, *change.values()):
            CostModel(Skeleton(**{**tiny.model_dump(), **change}), 10, latency=table)
    odd = made_up_table(tiny.model_copy(update={"input_size": (65, 90)}))
    padded = LatencyTable(odd.model_copy(update={"shape": (96, 96)}), "t.json")
    assert CostModel(tiny, 10, latency=padded).shape == (96, 96)
    with refused("t.json", "input_size", [65, 90], [96, 96]):  # not as a detector pads it
        CostModel(tiny, 10, latency=LatencyTable(odd, "t.json"))
    with refused("t.json", "num_classes", 10, 11):
        CostModel(tiny, 11, latency=table)
    with refused("t.json", "input_size"):
        CostModel(tiny, 10, shape=(64, 64), latency=table)
    with refused("t.json", "proposals_test", 12):
        CostModel(tiny, 10, proposals=12, latency=table)


def test_an_operator_that_was_not_measured_is_named(tiny, published, refused):
    table = LatencyTable(made_up_table(tiny, space=published), "t.json")
    model = CostModel(tiny, 10, latency=table)
    missing = next(name for name in ("conv_k5_d3", "ir_k7_d1_e1", "conv_k3_d1") if name not in published["backbone"])
    with refused("t.json", missing, "backbone/l01"):
        model.layer_cost(model.layers[0], missing)


def test_another_machine_is_refused(tiny, refused):
    table = LatencyTable(made_up_table(tiny, machine="a phone"), "t.json")
    table.require_machine("a phone", "nothing")
    with refused("t.json", "a phone", "a server", "a table of it"):
        table.require_machine("a server", "a table of it")
