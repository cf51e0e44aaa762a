"""Baselines trained as a found detector is: the model alone is the config's, and no weights are downloaded."""

import json

import pytest
import torch

from hitdet_nni import cli
from hitdet_nni.config.settings import load_settings
from hitdet_nni.cost.mmdet_config import profile_config
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.errors import InputError
from hitdet_nni.paper_tables.measured import add_measured, load_measured
from hitdet_nni.paper_tables.tables import Row, RowComparison
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.training import baseline
from hitdet_nni.training.baseline import check_queries, load_backbone_state, model_config, train_baseline


def mentions(value, key):
    """Values of a key anywhere in a config."""
    if isinstance(value, dict):
        return [v for k, v in value.items() if k == key] + [f for v in value.values() for f in mentions(v, key)]
    return [f for v in value for f in mentions(v, key)] if isinstance(value, list | tuple) else []


@pytest.mark.parametrize(
    "name",
    [
        *("dino_r50", "fpn_resnext101_32x4d", "nas_fpn_detnas", "rtmdet_tiny", "searched_head", "ssd512_vgg16"),
        "tridentnet_r50",  # the last stage of its backbone is in its head
    ],
)
def test_baselines_learn_the_data_s_classes_without_a_download(name):
    model = model_config(name, 7, new_weights=True)
    heads = {part: value for part, value in model.items() if part != "backbone"}
    assert set(mentions(heads, "num_classes")) == {7}
    assert "Pretrained" not in json.dumps(model)
    assert not any(mentions(model, "norm_eval"))
    assert model["backbone"].get("frozen_stages", -1) == -1
    assert not model["backbone"].get("norm_eval", False)
    assert model["backbone"].get("norm_cfg", {}).get("requires_grad", True)


@pytest.mark.parametrize(
    ("name", "padded"), [("dino_r50", (230, 250)), ("fpn_r50_2fc", (256, 256)), ("nas_fpn_r50", (256, 256))]
)
def test_costs_are_of_what_the_config_s_own_preprocessor_makes_of_an_image(name, padded):
    cost, _, shape = baseline.baseline_cost(name, 7, (230, 250))
    assert shape == padded
    assert cost == baseline.baseline_cost(name, 7, padded)[0]


def test_what_the_config_freezes_stays_frozen_with_given_weights():
    backbone = model_config("fpn_r50_2fc", 80, new_weights=False)["backbone"]
    assert (backbone["frozen_stages"], backbone["norm_eval"]) == (1, True)


@pytest.mark.parametrize(
    ("base", "names"),
    [
        ("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", ["model.roi_head.mask_head", "boxes"]),
        ("solo/solo_r50_fpn_1x_coco.py", ["model.mask_head", "boxes"]),
        ("maskformer/maskformer_r50_ms-16xb1-75e_coco.py", ["model.panoptic_head", "boxes"]),
        ("qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base.py", ["model.backbone", "QDTrack"]),
    ],
)
def test_what_learns_from_more_than_boxes_is_refused(base, names, tmp_path, refused):
    path = tmp_path / "mine.py"
    path.write_text(f"_base_ = 'mmdet::{base}'\n")
    with refused(path, *names):
        model_config(str(path), 80, new_weights=True)


def test_a_transformer_picks_its_queries_among_enough_positions(refused):
    model = model_config("dino_r50", 10, new_weights=True)
    check_queries(model, (224, 200), "dino_r50")  # 28 x 25 + 14 x 13 + 7 x 7 + 4 x 4 = 947
    with refused("dino_r50", "model.num_queries", "900 queries of 340 positions in 128 x 128"):
        check_queries(model, (128, 128), "dino_r50")
    model["num_queries"] = 340
    check_queries(model, (128, 128), "dino_r50")
    check_queries(model_config("rtmdet_tiny", 10, new_weights=True), (32, 32), "rtmdet_tiny")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side", "params"), [("rtmdet_tiny", 96, 4.876), ("dino_r50", 224, 47.558)])
def test_later_detectors_learn_the_digits_by_command(name, side, params, tmp_path, capsys):
    """Two steps of two images; every trainable weight that has a gradient moves."""
    values = {
        "data.train": 4,
        "data.val": 2,
        "data.batch_size": 2,
        "skeleton.input_size": [side, side],
        "retrain.epochs": 1,
        "retrain.warmup_iterations": 0,
    }
    overrides = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    assert cli.main(["train-baseline", name, "--config", "tiny", *overrides, "--out", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert result["params_m"] == pytest.approx(params, abs=1e-3)
    assert result["gflops"] > 0
    assert set(result["metrics"]) == set(result["metrics_before_training"])
    after = torch.load(tmp_path / "run" / result["weights"], weights_only=True)["state_dict"]
    settings = load_settings("tiny", values)
    before = baseline._detector(name, settings, 10)[0]
    assert {key for key, value in after.items() if not value.isfinite().all()} == set()
    still = {key for key, value in before.named_parameters() if torch.equal(value, after[key].float())}
    assert {key for key in still if key.startswith("backbone.")} == set()
    assert len(still) < 0.1 * len(list(before.parameters())), still


@pytest.fixture
def little(tmp_path):
    """A small RetinaNet as an mmdet config."""
    path = tmp_path / "little.py"
    path.write_text(
        '_base_ = "mmdet::retinanet/retinanet_r18_fpn_1x_coco.py"\n'
        "model = dict(backbone=dict(base_channels=8), neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),\n"
        "    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1))\n"
    )
    return path


OVERRIDES = {"data.train": 8, "data.val": 2, "skeleton.input_size": [64, 64], "retrain.warmup_iterations": 0}


def test_training_by_command_resumes_and_refuses(little, tmp_path, capsys):
    overrides = [part for key, value in OVERRIDES.items() for part in ("--set", f"{key}={value}")]
    arguments = ["train-baseline", str(little), "--config", "tiny", *overrides, "--out", str(tmp_path / "run")]
    assert cli.main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["metrics"]) == set(result["metrics_before_training"])
    total = profile_config(str(little), (64, 64)).costs["total"]  # for 80 classes; the data have 10
    fewer = 9 * 70 * (9 * 16 + 1)
    assert result["params_m"] == pytest.approx((total.params - fewer) / 1e6)
    places = sum(side**2 for side in (8, 4, 2, 1, 1))
    assert result["gflops"] == pytest.approx((total.flops - 9 * 70 * 9 * 16 * places) / 1e9)
    assert (result["shape"], result["proposals"]) == ([64, 64], 0)
    state = torch.load(tmp_path / "run" / result["weights"], weights_only=True)["state_dict"]
    assert state["bbox_head.retina_cls.weight"].shape[0] == 9 * 10  # the data's classes
    assert not (tmp_path / "run" / "checkpoints" / "retrain").exists()
    assert cli.main([*arguments, "--resume"]) == 0  # done already
    other = [part.replace("little", "other") for part in arguments]
    (tmp_path / "other.py").write_text(little.read_text())
    assert cli.main([*other, "--resume"]) == 2
    assert "another config" in capsys.readouterr().err
    assert cli.main(["train-baseline", "mask_rcnn_r50", "--config", "tiny", "--out", str(tmp_path / "masks")]) == 2
    assert not (tmp_path / "masks").exists()


def test_a_baseline_has_a_page_and_a_place_beside_found_detectors(tmp_path, tiny_settings):
    runs, (rows, columns) = [], tiny_settings.skeleton.input_size
    for name, gflops in (("counted", 0.5), ("uncounted", None)):
        run = RunDirectory(tmp_path / name)
        run.open(tiny_settings)
        run.baseline.write_text(json.dumps({"baseline": "fpn_detnas", "config": ""}))
        cost = {"params_m": None if gflops is None else 3.25, "gflops": gflops, "proposals": 100, "shape": [64, 96]}
        run.metrics.write_text(json.dumps({"baseline": "fpn_detnas", "metrics": {"mAP": 0.125}, **cost}))
        runs.append(run.path)
        assert cli.main(["report", str(run.path)]) == 0
        page = (run.path / "report.html").read_text()
        assert "A baseline, trained and evaluated." in page
        assert f"fpn_detnas, input {rows} × {columns}" in page
        assert ("GFLOPs (multiply-adds) at 64 × 96, 100 RoIs" in page) == (gflops is not None)
        assert "λ" not in page.partition("<h2")[0]
    assert cli.main(["compare", *map(str, runs), "--out", str(tmp_path / "both.html")]) == 0
    both = (tmp_path / "both.html").read_text()
    assert "by ascending cost: counted." in both
    assert both.count("<td>baseline</td>") == 2


def test_what_cannot_be_counted_trains_without_a_cost(little, tmp_path, capsys, monkeypatch):
    def refuse(*arguments):
        raise InputError("has no formula", source="little.py")

    monkeypatch.setattr(baseline, "baseline_cost", refuse)
    overrides = [part for key, value in OVERRIDES.items() for part in ("--set", f"{key}={value}")]
    out = tmp_path / "run"
    assert cli.main(["train-baseline", str(little), "--config", "tiny", *overrides, "--out", str(out)]) == 0
    assert "its cost is not counted: little.py: has no formula" in capsys.readouterr().out
    result = json.loads((out / "metrics.json").read_text())
    assert (result["params_m"], result["gflops"], result["shape"]) == (None, None, [64, 64])


def test_a_run_supplies_accuracies_for_its_baseline(tmp_path, tiny_settings):
    run = RunDirectory(tmp_path / "run")
    run.open(tiny_settings)
    metrics = {"mAP": 0.25, "mAP_50": 0.5, "mAP_75": 0.2, "mAP_s": -1.0, "mAP_m": 0.3, "mAP_l": 0.4}
    run.metrics.write_text(json.dumps({"baseline": "fpn_detnas", "metrics": metrics}))
    rows = [
        Row(
            model=name or "Ours",
            published={"accuracy": {"mAP": 1}},
            baseline=name,
            architecture=None if name else "hit_detector",
        )
        for name in ("fpn_r50_2fc", "fpn_detnas", None)
    ]
    comparisons = [RowComparison(row, (800, 1216), {}, {}, "") for row in rows]
    lines = add_measured(comparisons, [load_measured(run.path)])
    assert [line.row.model for line in lines] == ["fpn_r50_2fc", "fpn_detnas", "fpn_detnas", "Ours"]
    assert lines[2].measured["mAP"] == 25.0


def test_given_weights_are_what_training_starts_from(little, tmp_path, tiny_data, monkeypatch, refused):
    settings = load_settings("tiny", {**OVERRIDES, "data.train": 16, "data.val": 4, "seed": 5})
    source, _ = baseline._detector(str(little), settings, 10)
    state = {key: value + 0.25 for key, value in source.backbone.state_dict().items() if value.is_floating_point()}
    weights = tmp_path / "backbone.pth"
    torch.save({**state, "fc.weight": torch.zeros(3)}, weights)
    started = {}

    def keep(build, *arguments, **options):
        detector, started["from"] = build()
        started["state"] = detector.backbone.state_dict()

    monkeypatch.setattr(baseline, "train_detector", keep)
    given = load_settings("tiny", {**OVERRIDES, "retrain.pretrained": str(weights)})
    train_baseline(str(little), given, tiny_data, tmp_path, checkpoints=CheckpointFolder(tmp_path / "c", 2))
    assert all(torch.equal(started["state"][key], value) for key, value in state.items())
    assert "backbone.pth" in started["from"]

    def attempt(content, *fragments):
        torch.save(content, weights)
        with refused(weights, *fragments):
            load_backbone_state(source.backbone, weights)

    attempt({"state_dict": {f"backbone.{key}": value for key, value in list(state.items())[1:]}}, "conv1.weight")
    attempt({**state, "conv1.weight": torch.zeros(2)}, "'conv1.weight' has the shape [2]")
    attempt([1, 2], "holds no tensors by name")
    weights.write_bytes(b"nothing")
    with refused(weights, "cannot be read as weights: it is damaged, of another kind, or holds more than tensors"):
        load_backbone_state(source.backbone, weights)
