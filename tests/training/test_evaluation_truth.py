"""Evaluation tells the truth: planted detections on real COCO annotations give what pycocotools gives for them.

The annotations have sparse category ids, crowd boxes and polygons; the images are resized before detection.
"""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.data.checks.box_uses import box_uses
from hitdet_nni.data.sources import open_data
from hitdet_nni.engine.weights_file import load_weights
from hitdet_nni.model.detector import build_detector
from hitdet_nni.nas.provenance import describe_architecture
from hitdet_nni.training.coco_evaluation import METRICS, coco_metrics, evaluation_config, exact
from hitdet_nni.training.retrain import _runner, muted, retrain


class Planted(BaseModel):
    """Detects what `plant` makes of the annotated boxes of an image, given as those of the resized one."""

    def __init__(self, plant):
        super().__init__()
        self.plant = plant
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.found = {}

    def forward(self, inputs, data_samples=None, mode="predict"):
        samples = []
        for truth in data_samples:
            scale = torch.tensor(truth.scale_factor).repeat(2)
            boxes, scores, labels = self.plant(truth.gt_instances.bboxes.tensor / scale, truth.gt_instances.labels)
            self.found[truth.img_id] = (boxes, scores, labels)
            sample = DetDataSample(metainfo=truth.metainfo)
            sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
            samples.append(sample)
        return samples


@pytest.fixture(scope="module")
def photographs(shared_data):
    """Settings and data of the real images, evaluated on at 64 x 96 pixels."""
    root = shared_data / "coco_tiny"
    paths = {
        f"data.{half}_{kind}": str(root / place.format(half))
        for half in ("train", "val")
        for kind, place in (("ann", "annotations/instances_{}.json"), ("images", "{}"))
    }
    settings = load_settings(
        "tiny", {"data.builtin": None, "data.workers": 0, "skeleton.input_size": [64, 96], **paths}
    )
    return settings, open_data(settings.data, 0)


def evaluated(plant, photographs, tmp_path):
    """Our metrics of planted detections, and the detections by image id."""
    settings, data = photographs
    model = Planted(plant)
    with muted():
        metrics = coco_metrics(_runner(model, tmp_path, exact(evaluation_config(settings, data))).val())
    return metrics, model.found


def pycocotools(found, photographs):
    """pycocotools called directly on the annotation file."""
    ann = photographs[1].val.ann
    category_ids = [category["id"] for category in json.loads(ann.read_text())["categories"]]
    results = [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "score": score,
        }
        for image_id, detections in found.items()
        for box, score, label in zip(*(values.tolist() for values in detections), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(ann))
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(METRICS, evaluation.stats.tolist(), strict=False))


def test_the_truth_scores_one(photographs, tmp_path):
    data = photographs[1]
    crowds = box_uses(data.val, (64, 64)).crowds
    assert crowds > 0
    assert data.val.file_category_ids[-1] > len(data.classes)  # sparse ids
    metrics, found = evaluated(lambda boxes, labels: (boxes, torch.ones(len(boxes)), labels), photographs, tmp_path)
    assert metrics == pytest.approx(dict.fromkeys(METRICS, 1.0), abs=1e-6)
    # The crowd boxes, which are not among the detections, are no misses.
    assert sum(len(boxes) for boxes, _, _ in found.values()) == data.val.summary.boxes - crowds


def test_labels_of_other_classes_score_nothing(photographs, tmp_path):
    classes = len(photographs[1].classes)
    metrics, _ = evaluated(
        lambda boxes, labels: (boxes, torch.ones(len(boxes)), (labels + 1) % classes), photographs, tmp_path
    )
    assert metrics["mAP"] < 0.1


def test_pycocotools_agrees_on_imperfect_detections(photographs, tmp_path):
    generator = np.random.default_rng(0)

    def plant(boxes, labels):
        """Displaced, missed, doubled and invented boxes, each with a random score."""
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        shifted = boxes + sides * torch.from_numpy(generator.uniform(-0.15, 0.15, sides.shape)).float()
        kept = torch.from_numpy(generator.random(len(boxes)) > 0.3)
        corner = torch.from_numpy(generator.uniform(0, 200, (5, 2))).float()
        invented = torch.cat([corner, corner + 50], dim=1)
        everything = torch.cat([shifted[kept], boxes[kept][:1], invented])
        names = torch.cat([labels[kept], labels[kept][:1], torch.from_numpy(generator.integers(0, 80, 5))])
        return everything, torch.from_numpy(generator.random(len(everything))).float(), names

    metrics, found = evaluated(plant, photographs, tmp_path)
    expected = pycocotools(found, photographs)
    assert 0.05 < metrics["mAP"] < 0.9
    assert metrics == pytest.approx(expected, abs=1e-6)
    # mmdet's own metric is the same, rounded to three decimals.
    assert any(abs(value - round(value, 3)) > 1e-5 for value in metrics.values())


def test_nothing_detected_scores_zero(photographs, tmp_path):
    nothing = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long)
    assert evaluated(lambda boxes, labels: nothing, photographs, tmp_path)[0] == dict.fromkeys(METRICS, 0.0)


@pytest.mark.slow
def test_pycocotools_agrees_on_a_trained_detector(shared_data, tmp_path, figure):
    """Over-fitted to six photographs, two of them with crowds, so that its detections are worth something."""
    root = shared_data / "coco_tiny"
    boxes = json.loads((root / "annotations" / "instances_train.json").read_text())["annotations"]
    single = {box["image_id"] for box in boxes if not box["iscrowd"]}
    crowded = single & {box["image_id"] for box in boxes if box["iscrowd"]}
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(map(str, [*sorted(crowded)[:2], *sorted(single - crowded)[:4]])))
    changes = {
        "data.builtin": None,
        "data.batch_size": 2,
        "skeleton.input_size": [128, 192],
        "retrain.epochs": 100,
        "retrain.milestones": [80],
        "retrain.val_interval": 100,
        "retrain.warmup_iterations": 50,
        "retrain.lr": 0.02,
    }
    for half in ("train", "val"):
        changes[f"data.{half}_ann"] = str(root / "annotations" / "instances_train.json")
        changes[f"data.{half}_images"] = str(root / "train")
        changes[f"data.{half}_ids"] = str(ids)
    settings = load_settings("tiny", changes)
    data = open_data(settings.data, 0)
    sample = {layer.label: "ir_k3_d1_e3" for layer in settings.skeleton.searched_layers()}
    space = {component: ["ir_k3_d1_e3"] for component in COMPONENTS}
    architecture = describe_architecture("over-fitted", sample, space, settings, data.classes, source="search")
    trained = retrain(architecture, settings, data, tmp_path / "run")

    detector = build_detector(architecture.skeleton, architecture.sample, architecture.num_classes)
    load_weights(detector, trained.weights)
    found = {}
    predict = detector.predict

    def recorded(*arguments, **options):
        for sample in (samples := predict(*arguments, **options)):
            kept = sample.pred_instances
            found[sample.img_id] = kept.bboxes, kept.scores, kept.labels
        return samples

    detector.predict = recorded
    with muted():
        metrics = coco_metrics(_runner(detector, tmp_path, exact(evaluation_config(settings, data))).val())
    count = sum(len(boxes) for boxes, _, _ in found.values())
    figure(f"{count} detections on {len(found)} photographs: {metrics}")
    assert metrics["mAP"] > 0.1
    assert metrics == pytest.approx(pycocotools(found, (settings, data)), abs=1e-6)
    assert metrics == pytest.approx(trained.metrics, abs=1e-6)
