"""What becomes of boxes, against mmdet's own data set; objects against the anchors that it makes; copies of files."""

import json

import numpy as np
import pytest
from mmdet.registry import TASK_UTILS
from PIL import Image

from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.data.annotations.coco import read_annotations
from hitdet_nni.data.checks import copies
from hitdet_nni.data.checks.box_uses import box_uses
from hitdet_nni.data.checks.copies import same_files
from hitdet_nni.data.checks.object_sizes import best_overlaps, object_sizes, size_hints
from hitdet_nni.data.datasets.detection import build_dataset
from hitdet_nni.model.one_stage import retinanet
from hitdet_nni.model.two_stage import faster_rcnn

TINY = load_settings("tiny").skeleton


def anchor_generator(skeleton):
    """The detector's, with its assigner's thresholds."""
    if skeleton.detector == "retinanet":
        config = retinanet(skeleton, [], 3)
        head, assigner = config["bbox_head"], config["train_cfg"]["assigner"]
    else:
        config = faster_rcnn(skeleton, [], 3)
        head, assigner = config["rpn_head"], config["train_cfg"]["rpn"]["assigner"]
    return TASK_UTILS.build({**head["anchor_generator"], "_scope_": "mmdet"}), assigner


def write(folder, boxes_of, sizes):
    """An annotation file with the boxes of each image, ``(class, box, more)``; and its images."""
    (folder / "images").mkdir()
    images, annotations = [], []
    for number, (boxes, (width, height)) in enumerate(zip(boxes_of, sizes, strict=True), start=1):
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        Image.new("RGB", (width, height), (number, 90, 30)).save(folder / "images" / f"{number}.png")
        for category_id, box, more in boxes:
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": category_id, "bbox": box}
            annotations.append({**entry, "area": box[2] * box[3], "iscrowd": 0, **more})
    categories = [{"id": 2, "name": "cat"}, {"id": 5, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "ann.json").write_text(json.dumps(content))
    return read_annotations(folder / "ann.json", folder / "images", key="data.train_ann", allow_empty_boxes=True)


def random_boxes(random, width, height):
    for _ in range(random.integers(0, 6)):
        left, top = random.uniform(-10, width - 1), random.uniform(-10, height - 1)
        size = random.uniform(0, 1.5, 2) if random.random() < 0.3 else random.uniform(0, 60, 2)
        across, down = max(size[0], 1.1 - left), max(size[1], 1.1 - top)  # so that it reaches into the image
        if random.random() < 0.5:
            across, down = size[0] * (left >= 0) or across, size[1] * (top >= 0) or down
        more = {"iscrowd": int(random.random() < 0.2)} | ({"area": -1} if random.random() < 0.1 else {})
        yield int(random.choice([2, 5])), [float(left), float(top), float(across), float(down)], more


@pytest.mark.parametrize("seed", range(3))
def test_uses_are_those_of_mmdet(tmp_path, seed):
    random = np.random.default_rng(seed)
    sizes = [tuple(map(int, random.integers(12, 90, 2))) for _ in range(30)]
    dataset = write(tmp_path, [list(random_boxes(random, *size)) for size in sizes], sizes)
    skeleton = TINY.model_copy(update={"input_size": (64, 96)})
    uses = box_uses(dataset, skeleton.input_size)
    trained = build_dataset(dataset, skeleton, training=True)
    samples = [trained[place]["data_samples"] for place in range(len(trained))]
    names = dict(zip(dataset.image_ids, dataset.file_names, strict=True))
    left_out = set(names) - {sample.img_id for sample in samples}
    background = [names[sample.img_id] for sample in samples if not len(sample.gt_instances)]
    assert {names[image_id] for image_id in left_out} == set(uses.unlabelled)
    assert set(background) == set(uses.background)
    assert (len(uses.unlabelled) > 0, len(background) > 0, uses.dropped > 0, uses.clipped > 0) == (True,) * 4
    boxes = np.concatenate([sample.gt_instances.bboxes.tensor.numpy() for sample in samples])
    labels = np.concatenate([sample.gt_instances.labels.numpy() for sample in samples])
    ours = {2: 0, 5: 1}
    assert len(boxes) == uses.trained
    for category_id, label in ours.items():
        theirs = (boxes[:, 2:] - boxes[:, :2])[labels == label]
        mine = uses.sides[uses.labels == category_id]
        np.testing.assert_allclose(np.sort(mine, axis=0), np.sort(theirs, axis=0), atol=1e-3)
    assert uses.trained + uses.crowds + uses.dropped == dataset.summary.boxes
    assert uses.evaluated == uses.trained + uses.dropped
    ignored = sum(len(sample.ignored_instances) for sample in samples)
    assert 0 < ignored <= uses.crowds


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_anchors_are_the_detector_s(detector):
    skeleton = Skeleton(detector=detector)
    generator, assigner = anchor_generator(skeleton)
    bases = np.concatenate([base.numpy() for base in generator.base_anchors])
    theirs = bases[:, 2:] - bases[:, :2]
    np.testing.assert_allclose(
        np.repeat(sorted(skeleton.anchor_sides), 3), np.sort(np.sqrt(theirs.prod(axis=1))), rtol=1e-5
    )
    assert (assigner["pos_iou_thr"], assigner["neg_iou_thr"]) == (
        skeleton.layout.positive_iou,
        skeleton.layout.negative_iou,
    )
    objects = np.random.default_rng(0).uniform(1, 900, (200, 2))
    shared = np.minimum(objects[:, None], theirs).prod(axis=2)
    union = objects.prod(axis=1)[:, None] + theirs.prod(axis=1) - shared
    np.testing.assert_allclose(best_overlaps(objects, skeleton), (shared / union).max(axis=1), rtol=1e-5)


def test_no_anchor_of_the_grid_overlaps_more_than_a_centred_one():
    skeleton = Skeleton(input_size=(128, 128), anchor_scale=4)
    generator, assigner = anchor_generator(skeleton)
    grid = [(128 // stride, 128 // stride) for stride in skeleton.pyramid_strides]
    anchors = np.concatenate([level.numpy() for level in generator.grid_priors(grid, device="cpu")])
    random = np.random.default_rng(1)
    sides, corners = random.uniform(1, 60, (50, 2)), random.uniform(0, 60, (50, 2))
    low, high = np.maximum(corners[:, None], anchors[:, :2]), np.minimum((corners + sides)[:, None], anchors[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    union = sides.prod(axis=1)[:, None] + (anchors[:, 2:] - anchors[:, :2]).prod(axis=1) - shared
    best = best_overlaps(sides, skeleton)
    assert (best >= (shared / union).max(axis=1) - 1e-6).all()
    assert (best < assigner["neg_iou_thr"]).any()


@pytest.mark.parametrize(
    ("box", "scale", "hint"),
    [
        ([5, 5, 20, 20], 4, None),
        ([5, 5, 7, 7], 4, "the smallest anchor is 16 pixels; try skeleton.anchor_scale 2"),
        ([5, 5, 2, 2], 4, "the finest stride is 4 pixels; try skeleton.input_size [192, 192], or cut"),
        ([5, 5, 1, 3], 4, "the finest stride is 4 pixels; try skeleton.input_size [384, 384], or cut"),
        ([5, 5, 6, 90], 8, "height to width of the anchors is 0.5 to 2, which no setting changes"),
        ([0, 0, 96, 96], 1, None),
    ],
)
def test_hints(tmp_path, box, scale, hint):
    dataset = write(tmp_path, [[(2, box, {})] * 3 + [(5, [1, 1, 30, 30], {})]], [(96, 96)])
    skeleton = TINY.model_copy(update={"input_size": (96, 96), "anchor_scale": scale})
    uses = box_uses(dataset, skeleton.input_size)
    names = {2: "cat", 5: "dog"}
    hints = list(size_hints(uses, names, skeleton))
    cats, dogs = object_sizes(uses, names, skeleton)
    assert (cats.boxes, cats.out_of_reach, dogs.out_of_reach) == (3, 3 if hint else 0, 0)
    if hint is None:
        assert hints == []
        return
    assert len(hints) == 1
    size = f"{box[2]} x {box[3]}"
    assert hints[0].startswith(f"class 'cat': 3 of its 3 objects, about {size} pixels at the network's input, cannot")
    assert hint in hints[0]


def test_objects_that_the_resize_leaves_nothing_of(tmp_path):
    dataset = write(tmp_path, [[(2, [5, 1, 9, 2], {})]], [(2000, 4)])
    (hint,) = size_hints(box_uses(dataset, (96, 96)), {2: "cat"}, TINY)
    assert "about 0 x 0 pixels" in hint
    assert hint.endswith("the finest stride is 4 pixels; cut the images into tiles")


def test_a_pyramid_from_stride_8_on_may_be_too_coarse(tmp_path):
    dataset = write(tmp_path, [[(2, [5, 5, 7, 9], {})]], [(96, 96)])
    coarse, fine = (Skeleton(detector="retinanet", anchor_scale=2, finest_stride=stride) for stride in (8, 4))
    (hint,) = size_hints(box_uses(dataset, (96, 96)), {2: "cat"}, coarse)
    assert hint.endswith("the finest stride is 8 pixels; try skeleton.finest_stride 4")
    assert not list(size_hints(box_uses(dataset, (96, 96)), {2: "cat"}, fine))


def test_following_the_hint_helps(tmp_path):
    dataset = write(tmp_path, [[(2, [5, 5, 7, 7], {}), (5, [1, 1, 150, 150], {})]], [(600, 600)])
    names = {2: "cat", 5: "dog"}
    for anchor_scale, count in ((4, 1), (2, 0)):
        skeleton = TINY.model_copy(update={"input_size": (600, 600), "anchor_scale": anchor_scale})
        assert len(list(size_hints(box_uses(dataset, (600, 600)), names, skeleton))) == count
    skeleton = TINY.model_copy(update={"input_size": (600, 600), "anchor_scale": 1})
    hints = list(size_hints(box_uses(dataset, (600, 600)), names, skeleton))
    assert len(hints) == 1
    assert "the largest anchor is 64 pixels; try skeleton.anchor_scale 3" in hints[0]


def test_copies(tmp_path):
    for name, content in (("a", b"x" * 9), ("b", b"y" * 9), ("c", b"x" * 9), ("d", b"x"), ("e", b"y" * 9)):
        (tmp_path / name).write_bytes(content)
    a, b, c, d, e = (tmp_path / name for name in "abcde")
    assert same_files([d, b, a, tmp_path / "absent", a, c, e]) == [(b, e), (a, c)]
    assert same_files([]) == same_files([a, a]) == []


def test_a_file_is_read_once(tmp_path, monkeypatch):
    for name, content in (("a", b"x"), ("b", b"x"), ("c", b"x")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (tmp_path / name for name in "abc")
    digests: copies.Digests = {}
    assert same_files([a, b], digests) == [(a, b)]
    read = []
    monkeypatch.setattr(copies, "digest", lambda file: read.append(file) or digests[a])
    monkeypatch.chdir(tmp_path)
    assert same_files([b, c.relative_to(tmp_path), a], digests) == [(b, c.relative_to(tmp_path), a)]
    assert read == [c.relative_to(tmp_path)]
