"""Our evaluation, pycocotools by itself, and COCO's rules written out once more agree on whatever is drawn.

Annotations are drawn as the reader takes them: sparse category ids in any order, crowds, boxes marked ``ignore``, areas
that are not width times height or missing, boxes of no size, ids from 0 or below, images and classes without boxes.
Detections are drawn near them and elsewhere, with equal scores, and more than a hundred of a class in an image.
All coordinates are multiples of a sixteenth: areas and intersections are exact, so that no rounding decides a match.
"""

import contextlib
import io
import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from mmengine.evaluator import Evaluator
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_area, box_convert, box_iou

from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.annotations.coco import read_annotations
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.training.coco_evaluation import METRICS, coco_metrics, evaluation_config, exact
from hitdet_nni.training.coco_metric import ExactCocoMetric

EXAMPLES = [25, pytest.param(500, marks=pytest.mark.slow)]
WIDTH, HEIGHT = 320, 240
SMALL, LARGE, ALL = 32.0**2, 96.0**2, 1e10

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
RANGES = ((0, ALL), (0, SMALL), (SMALL, LARGE), (LARGE, ALL))
"""Least and largest area of all boxes, of small, medium and large ones; both belong to the range."""
MOST = 100
"""Detections of a class that count in an image."""

Detection = tuple[list[float], float, int]
"""Corners, score and category id."""


@dataclass(frozen=True)
class Found:
    """Detections of an image: corners ``[D, 4]`` and scores ``[D]`` in single precision, category ids ``[D]``."""

    corners: np.ndarray
    scores: np.ndarray
    categories: np.ndarray


@dataclass(frozen=True)
class Drawn:
    """An annotation file, and detections by image id in the order in which the images are evaluated."""

    document: dict[str, Any]
    found: dict[int, Found]


@dataclass(frozen=True)
class Sizes:
    """What hypothesis draws and shrinks; the values themselves come from the seed, so that few examples hold many.

    Attributes:
        images: Number of images.
        classes: Number of classes.
        annotations: Annotations of an image that has any.
        found: Detections, mostly near them, of an image that has any.
        many: Over a hundred more detections in one image, of a class or of all.
        seed: Seed of everything else.
    """

    images: int
    classes: int
    annotations: int
    found: int
    many: Literal["none", "of a class", "of all"]
    seed: int


SIZES = st.builds(
    Sizes,
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(2, 8),
    st.integers(2, 12),
    st.sampled_from(["none", "of a class", "of all"]),
    st.integers(0, 2**32),
)
IDS = (0, 1, 2, 5, 7, 90, 139, 2**40)
SIDES = (0, 0.125, 1, 8, 31.875, 32, 48, 96, 96.125, 150)
SHARES = (0, 0, 0, 0, 0.05, 0.1, 0.2, 0.25, 0.5)
"""By how much of a side a detection misses a box; a quarter and a half give IoUs that are exactly a threshold."""
SCORES = (0.0, 0.25, 0.5, 0.5, 0.75, 1.0)


def sixteenths(length: float) -> float:
    return round(16 * length) / 16


def draw_box(rng: random.Random) -> list[float]:
    """Left, top, width and height of a box that reaches into its image, often beyond it."""
    width, height = (rng.choice([rng.choice(SIDES), sixteenths(rng.uniform(1, 160))]) for _ in range(2))
    left, top = rng.randrange(8 * WIDTH) / 8, rng.randrange(8 * HEIGHT) / 8
    outside = rng.choice([0, 0, 0.5])
    return [left - sixteenths(outside * width), top - sixteenths(outside * height), width, height]


def draw_annotation(rng: random.Random, image_id: int, category_ids: list[int]) -> dict[str, Any]:
    """An annotation without its id, in one of four a crowd or ignored."""
    left, top, width, height = draw_box(rng)
    areas = [width * height, width * height, None, width * height / 2, 0, SMALL - 0.5, SMALL, LARGE, LARGE + 0.5]
    values = {
        "area": rng.choice(areas),
        "iscrowd": rng.choice([None, 0, 0, 0, 0, 0, 0, 1]),
        "ignore": rng.choice([None, None, 0, 0, 0, 0, 0, 1]),
    }
    given_values = {key: value for key, value in values.items() if value is not None}
    annotation = {"image_id": image_id, "category_id": rng.choice(category_ids), "bbox": [left, top, width, height]}
    return annotation | given_values


def draw_detection(rng: random.Random, truth: list[dict[str, Any]], category_ids: list[int]) -> Detection:
    """A detection, mostly of a box of its image, which it misses by some of its sides."""
    left, top, width, height = draw_box(rng)
    category_id = rng.choice(category_ids)
    if truth and rng.random() < 0.8:
        near = rng.choice(truth)
        left, top, width, height = near["bbox"]
        category_id = rng.choice([near["category_id"]] * 4 + [category_id])
        left += sixteenths(rng.choice(SHARES) * width)
        top += sixteenths(rng.choice(SHARES) * height)
        width -= sixteenths(rng.choice(SHARES) * width)
    return [left, top, left + width, top + height], rng.choice([*SCORES, rng.random()]), category_id


def draw_many(rng: random.Random, category_ids: list[int]) -> list[Detection]:
    """Detections of which a class has more than a hundred, or all together have; many have equal scores."""
    count = rng.randint(101, 120) + 50 * (len(category_ids) - 1)
    return [
        ([left, top, left + 90, top + 70], rng.choice(SCORES), rng.choice(category_ids))
        for left, top in ((rng.randrange(100), rng.randrange(100)) for _ in range(count))
    ]


def some(rng: random.Random, count: int) -> int:
    """The count, or for one image in four 0."""
    return rng.choice([0, count, count, count])


def draw(sizes: Sizes) -> Drawn:
    """Annotations and detections of some sizes."""
    rng = random.Random(sizes.seed)
    category_ids, image_ids = rng.sample(IDS, sizes.classes), rng.sample(IDS, sizes.images)
    truth = {
        image_id: [draw_annotation(rng, image_id, category_ids) for _ in range(some(rng, sizes.annotations))]
        for image_id in image_ids
    }
    # A file has at least one box to learn from.
    plain = {"image_id": image_ids[0], "category_id": category_ids[0], "bbox": [8, 16, 40, 30], "area": 600}
    truth[image_ids[0]].append(plain)
    found = {}
    for image_id in rng.sample(image_ids, sizes.images):
        chosen = [draw_detection(rng, truth[image_id], category_ids) for _ in range(some(rng, sizes.found))]
        if sizes.many != "none" and image_id == image_ids[0]:
            chosen += draw_many(rng, category_ids if sizes.many == "of all" else category_ids[:1])
            rng.shuffle(chosen)
        found[image_id] = Found(
            np.array([corners for corners, _, _ in chosen], dtype=np.float32).reshape(-1, 4),
            np.array([score for _, score, _ in chosen], dtype=np.float32),
            np.array([category_id for _, _, category_id in chosen], dtype=np.int64),
        )
    entries = [each for image_id in image_ids for each in truth[image_id]]
    rng.shuffle(entries)
    document = {
        "images": [{"id": each, "file_name": f"{each}.png", "width": WIDTH, "height": HEIGHT} for each in image_ids],
        "annotations": [{"id": number, **each} for number, each in enumerate(entries, rng.choice([-2, 0, 0, 1, 100]))],
        "categories": [{"id": each, "name": f"class {each}"} for each in category_ids],
    }
    return Drawn(document, found)


def ours(drawn: Drawn) -> dict[str, float]:
    """What is reported of a detector that finds what was drawn: from the file through reader, config and metric."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "val.json").write_text(json.dumps(drawn.document))
        for image in drawn.document["images"]:
            (folder / image["file_name"]).touch()
        val = read_annotations(folder / "val.json", folder, key="data.val_ann", allow_empty_boxes=True)
        data = DetectionData(val, val)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator = Evaluator(exact(evaluation_config(load_settings("tiny"), data))["val_evaluator"])
            evaluator.dataset_meta = {"classes": data.classes}
            labels = {category_id: label for label, category_id in enumerate(val.file_category_ids)}
            for image_id, found in drawn.found.items():
                instances = {
                    "bboxes": torch.from_numpy(found.corners),
                    "scores": torch.from_numpy(found.scores),
                    "labels": torch.tensor([labels[each] for each in found.categories.tolist()], dtype=torch.long),
                }
                sample = {"img_id": image_id, "ori_shape": (HEIGHT, WIDTH), "pred_instances": instances}
                evaluator.process([sample])
            return coco_metrics(evaluator.evaluate(len(drawn.found)))


def is_set_aside(annotation: dict[str, Any]) -> bool:
    """Whether a box is a crowd for us, as those are that are marked ``ignore``."""
    return bool(annotation.get("iscrowd") or annotation.get("ignore"))


def area_of(annotation: dict[str, Any]) -> float:
    """The area that decides on the size of a box: one that has sides and no area has theirs."""
    return annotation.get("area") or annotation["bbox"][2] * annotation["bbox"][3]


def pycocotools(drawn: Drawn) -> COCOeval:
    """pycocotools on files in its own form: annotation ids from 1, crowds and areas given."""
    truth = [
        {**each, "id": number, "iscrowd": int(is_set_aside(each)), "area": area_of(each)}
        for number, each in enumerate(drawn.document["annotations"], start=1)
    ]
    results = [
        {
            "image_id": image_id,
            "category_id": int(category_id),
            "bbox": box_convert(torch.from_numpy(box).double(), "xyxy", "xywh").tolist(),
            "score": float(score),
        }
        for image_id, found in drawn.found.items()
        for box, score, category_id in zip(found.corners, found.scores, found.categories, strict=True)
    ]
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        file = Path(name) / "truth.json"
        file.write_text(json.dumps({**drawn.document, "annotations": truth}))
        annotated = COCO(str(file))
        evaluation = COCOeval(annotated, annotated.loadRes(results) if results else COCO(), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def overlaps(found: np.ndarray, truth: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """IoUs of corners ``[D, 4]`` and ``[G, 4]``; of a crowd the detection's share that lies in it; 0 of no area."""
    one, other = torch.from_numpy(found), torch.from_numpy(truth)
    sides = (torch.min(one[:, None, 2:], other[:, 2:]) - torch.max(one[:, None, :2], other[:, :2])).clamp(min=0)
    inside = sides.prod(dim=2) / box_area(one)[:, None]
    return torch.where(torch.from_numpy(crowds), inside, box_iou(one, other)).nan_to_num(0).numpy()


def outcomes(overlap: np.ndarray, crowds: np.ndarray, counts: np.ndarray, found_counts: np.ndarray) -> list[Any]:
    """Whether each detection of a class in an image is right; ``None`` where it is neither right nor wrong.

    The best detection chooses first: of the boxes that count, or else of the others, the one that it overlaps most, the
    later of two. A box is chosen once, a crowd any number of times.

    Args:
        overlap: ``[D, G]``, zero where it is below the threshold; detections in the order of their scores.
        crowds: ``[G]``.
        counts: Whether a box counts, ``[G]``.
        found_counts: Whether a detection that hits nothing counts, ``[D]``.
    """
    free, results = set(range(len(crowds))), []
    for row, alone_counts in zip(overlap, found_counts, strict=True):
        near = [each for each in free if row[each] > 0]
        if not near:
            results.append(False if alone_counts else None)
            continue
        chosen = max([each for each in near if counts[each]] or near, key=lambda each: (row[each], each))
        if not crowds[chosen]:
            free.remove(chosen)
        results.append(True if counts[chosen] else None)
    return results


def precisions(drawn: Drawn) -> np.ndarray:
    """Interpolated precisions by COCO's rules: ``[thresholds, recalls, classes, ranges]``, -1 where no box counts."""
    category_ids = sorted(category["id"] for category in drawn.document["categories"])
    curves = np.full((len(THRESHOLDS), len(RECALLS), len(category_ids), len(RANGES)), -1.0)
    for column, category_id in enumerate(category_ids):
        images = []
        for image_id in sorted(drawn.found):
            truth = [
                each
                for each in drawn.document["annotations"]
                if (each["image_id"], each["category_id"]) == (image_id, category_id)
            ]
            found = drawn.found[image_id]
            of_class = np.flatnonzero(found.categories == category_id)
            best = of_class[np.argsort(-found.scores[of_class], kind="stable")][:MOST]
            corners = found.corners[best].astype(np.float64)
            bounds = np.array([each["bbox"] for each in truth], dtype=np.float64).reshape(-1, 4)
            bounds[:, 2:] += bounds[:, :2]
            crowds = np.array([is_set_aside(each) for each in truth], dtype=bool)
            areas = np.array([area_of(each) for each in truth])
            images.append((corners, found.scores[best], overlaps(corners, bounds, crowds), crowds, areas))
        for place, (least, most) in enumerate(RANGES):
            total = sum(int((~crowds & (least <= areas) & (areas <= most)).sum()) for *_, crowds, areas in images)
            if not total:
                continue
            for row, threshold in enumerate(THRESHOLDS):
                results: list[tuple[float, bool]] = []
                for corners, scores, overlap, crowds, areas in images:
                    own = box_area(torch.from_numpy(corners)).numpy()
                    right = outcomes(
                        np.where(overlap >= threshold, overlap, 0),
                        crowds,
                        ~crowds & (least <= areas) & (areas <= most),
                        (least <= own) & (own <= most),
                    )
                    results += [(score, hit) for score, hit in zip(scores, right, strict=True) if hit is not None]
                results.sort(key=lambda result: -result[0])
                hits = np.cumsum([hit for _, hit in results])
                recall, precision = hits / total, hits / np.arange(1, len(results) + 1)
                reached = recall >= RECALLS[:, None]
                curves[row, :, column, place] = np.where(reached, precision, 0).max(axis=1, initial=0)
    return curves


def means(curves: np.ndarray) -> dict[str, float]:
    """COCO's six average precisions."""
    chosen = [curves[..., 0], curves[0, ..., 0], curves[5, ..., 0], *(curves[..., size] for size in (1, 2, 3))]
    return {
        name: float(each[each > -1].mean()) if (each > -1).any() else -1.0
        for name, each in zip(METRICS, chosen, strict=True)
    }


@pytest.mark.parametrize("examples", EXAMPLES)
def test_three_evaluations_agree(examples, figure):
    seen = []

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(SIZES)
    def run(sizes):
        drawn = draw(sizes)
        reported, evaluation, curves = ours(drawn), pycocotools(drawn), precisions(drawn)
        note(f"{drawn}\nreported: {reported}")
        # Of every class, threshold and size by itself: no mean hides a difference.
        np.testing.assert_allclose(curves, evaluation.eval["precision"][..., -1], rtol=0, atol=1e-9)
        assert means(curves) == pytest.approx(dict(zip(METRICS, evaluation.stats, strict=False)), rel=0, abs=1e-9)
        assert reported == pytest.approx(means(curves), rel=0, abs=1e-9)
        seen.append(reported["mAP"])

    run()
    between = sum(0 < value < 1 for value in seen)
    assert between > examples / 4
    figure(f"{len(seen)} drawn evaluations agree to 1e-9; the mAP of {between} is neither 0 nor 1")


def test_where_nothing_is_detected_sizes_without_boxes_have_no_precision():
    drawn = draw(Sizes(images=1, classes=1, annotations=0, found=0, many="none", seed=0))
    (annotation,) = drawn.document["annotations"]
    assert annotation["area"] < SMALL
    assert ours(drawn) == dict(zip(METRICS, [0, 0, 0, 0, -1, -1], strict=True))


def test_boxes_areas_and_overlaps_are_torchvision_s(tmp_path):
    generator = np.random.default_rng(0)
    near, sides = generator.uniform(-50, 600, (2, 40, 2)), generator.uniform(0, 200, (2, 40, 2))
    sides[:, :3] = 0
    one, other = np.concatenate([near, near + sides], axis=2).astype(np.float32)
    metric = ExactCocoMetric()
    metric.cat_ids = [3]
    found = {"img_id": 1, "bboxes": one, "scores": np.ones(40, np.float32), "labels": np.zeros(40, np.int64)}
    file = metric.results2json([found], str(tmp_path / "found"))["bbox"]
    corners = torch.from_numpy(one).double()
    written = torch.tensor([each["bbox"] for each in json.loads(Path(file).read_text())], dtype=torch.float64)
    assert torch.equal(written, box_convert(corners, "xyxy", "xywh"))

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 3, "name": "class 3"}]}
        truth.createIndex()
        areas = [each["area"] for each in truth.loadRes(file).dataset["annotations"]]
    torch.testing.assert_close(torch.tensor(areas, dtype=torch.float64), box_area(corners), rtol=0, atol=1e-9)

    others = torch.from_numpy(other).double()
    crowds = generator.random(40) < 0.5
    iou = mask.iou(written.tolist(), box_convert(others, "xyxy", "xywh").tolist(), crowds.astype(int).tolist())
    assert 0.05 < (iou > 0).mean() < 1
    np.testing.assert_allclose(iou, overlaps(corners.numpy(), others.numpy(), crowds), rtol=0, atol=1e-9)
