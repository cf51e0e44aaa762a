import math

import numpy as np
import pytest
import torch
from mmcv import ops
from references import plain_iou, random_boxes


def plain_nms(boxes, scores, threshold, offset=0):
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(plain_iou(boxes[i], boxes[j], offset) <= threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(("score_threshold", "max_num"), [(0, -1), (0.4, -1), (0, 5), (0.4, 3)])
def test_nms_equals_the_plain_loop(offset, score_threshold, max_num):
    boxes, scores = random_boxes(60), torch.rand(60, dtype=torch.double)
    above = [i for i in range(60) if not score_threshold or scores[i] > score_threshold]
    plain = plain_nms(boxes[above].tolist(), scores[above].tolist(), 0.3, offset)
    expected = [above[i] for i in plain][: max_num if max_num > 0 else None]
    dets, keep = ops.nms(boxes, scores, 0.3, offset=offset, score_threshold=score_threshold, max_num=max_num)
    assert keep.tolist() == expected
    assert 3 <= len(expected) < len(above)
    assert torch.equal(dets, torch.cat([boxes[keep], scores[keep, None]], dim=1))


def test_nms_offset_matters():
    boxes, scores = torch.tensor([[0.0, 0, 1, 1], [1, 0, 2, 1]]), torch.tensor([0.9, 0.8])
    assert len(ops.nms(boxes, scores, 0.3)[1]) == 2  # they only touch
    assert len(ops.nms(boxes, scores, 0.3, offset=1)[1]) == 1  # 2 of 6 pixels are common


def test_nms_takes_numpy_and_mmcvs_old_argument_name():
    boxes, scores = random_boxes(30).numpy().astype(np.float32), np.random.default_rng(0).random(30, dtype=np.float32)
    dets, keep = ops.nms(boxes, scores, 0.3)
    assert isinstance(dets, np.ndarray)
    assert isinstance(keep, np.ndarray)
    assert keep.tolist() == plain_nms(boxes.tolist(), scores.tolist(), 0.3)
    assert np.array_equal(dets, np.concatenate([boxes[keep], scores[keep, None]], axis=1))
    with pytest.warns(DeprecationWarning, match="iou_thr"):
        assert np.array_equal(ops.nms(boxes, scores, iou_thr=0.3)[1], keep)


def test_nms_scores_keep_their_gradient():
    scores = torch.rand(9, dtype=torch.double, requires_grad=True)
    dets, keep = ops.nms(random_boxes(9), scores, 0.3)
    dets[:, 4].sum().backward()
    assert scores.grad.nonzero()[:, 0].tolist() == sorted(keep.tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 5), torch.zeros(2), 0.5), r"\(2, 5\)"),
        ((torch.zeros(2, 4), torch.zeros(3), 0.5), r"\(3,\)"),
        ((torch.zeros(2, 4), torch.zeros(2), 0.5, 2), "offset=2; allowed: 0, 1"),
    ],
)
def test_nms_refuses_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.nms(*arguments)


def plain_soft_nms(boxes, scores, threshold, sigma, min_score, method, offset):
    left, result = list(range(len(boxes))), []
    scores = list(scores)
    while left:
        best = max(left, key=lambda i: scores[i])
        result.append((best, scores[best]))
        left.remove(best)
        for i in list(left):
            iou = plain_iou(boxes[best], boxes[i], offset)
            if method == "gaussian":
                scores[i] *= math.exp(-iou * iou / sigma)
            elif iou >= threshold:
                scores[i] *= 1 - iou if method == "linear" else 0
            if scores[i] < min_score:
                left.remove(i)
    return result


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["linear", "gaussian", "naive"])
def test_soft_nms_equals_the_plain_loop(method, offset):
    boxes, scores = random_boxes(40), torch.rand(40, dtype=torch.double)
    expected = plain_soft_nms(boxes.tolist(), scores.tolist(), 0.25, 0.4, 0.1, method, offset)
    dets, keep = ops.soft_nms(boxes, scores, 0.25, sigma=0.4, min_score=0.1, method=method, offset=offset)
    assert keep.tolist() == [index for index, _ in expected]
    torch.testing.assert_close(dets[:, 4], torch.tensor([score for _, score in expected], dtype=torch.double))
    assert torch.equal(dets[:, :4], boxes[keep])
    assert len(expected) < 40
    assert (dets[:, 4] < scores[keep]).any() == (method != "naive")


def test_soft_nms_edges():
    assert [len(part) for part in ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))] == [0, 0]
    dets, keep = ops.soft_nms(np.zeros((2, 4), np.float32), np.array([0.1, 0.9], np.float32))  # no area: 0 / 0
    assert isinstance(dets, np.ndarray)
    assert keep.tolist() == [1, 0]
    with pytest.raises(ValueError, match="method='cubic'; allowed: naive, linear, gaussian"):
        ops.soft_nms(torch.zeros(1, 4), torch.zeros(1), method="cubic")


def test_nms_match_groups_as_the_plain_loop():
    boxes, scores = random_boxes(40), torch.rand(40, dtype=torch.double)
    groups, left = [], scores.argsort(descending=True).tolist()
    while left:
        group = [left[0]] + [i for i in left[1:] if plain_iou(boxes[left[0]], boxes[i]) >= 0.3]
        groups.append(group)
        left = [i for i in left if i not in group]
    dets = torch.cat([boxes, scores[:, None]], dim=1)
    assert [group.tolist() for group in ops.nms_match(dets, 0.3)] == groups
    assert all(isinstance(group, np.ndarray) for group in ops.nms_match(dets.numpy(), 0.3))
    assert max(map(len, groups)) > 1
    assert ops.nms_match(torch.zeros(0, 5), 0.3) == []


def plain_batched(boxes, scores, groups, threshold):
    kept = []
    for group in set(groups):
        members = [i for i in range(len(boxes)) if groups[i] == group]
        kept += [members[i] for i in plain_nms([boxes[i] for i in members], [scores[i] for i in members], threshold)]
    return sorted(kept, key=lambda i: -scores[i])


@pytest.mark.parametrize("split_thr", [10000, 20])
def test_batched_nms_is_per_class(split_thr):
    boxes, scores, classes = random_boxes(60), torch.rand(60, dtype=torch.double), torch.randint(0, 3, (60,))
    expected = plain_batched(boxes.tolist(), scores.tolist(), classes.tolist(), 0.3)
    for max_num in (-1, 7):
        cfg = {"type": "nms", "iou_threshold": 0.3, "split_thr": split_thr, "max_num": max_num}
        dets, keep = ops.batched_nms(boxes, scores, classes, cfg)
        assert keep.tolist() == expected[: max_num if max_num > 0 else None]
        assert torch.equal(dets, torch.cat([boxes[keep], scores[keep, None]], dim=1))
        assert cfg["type"] == "nms", "the caller's configuration must stay as it was"
    assert len(expected) > len(plain_nms(boxes.tolist(), scores.tolist(), 0.3))


def test_batched_nms_class_agnostic():
    boxes, scores, classes = random_boxes(60), torch.rand(60, dtype=torch.double), torch.randint(0, 3, (60,))
    expected = plain_nms(boxes.tolist(), scores.tolist(), 0.3)
    assert ops.batched_nms(boxes, scores, classes, {"iou_threshold": 0.3}, class_agnostic=True)[1].tolist() == expected
    cfg = {"iou_threshold": 0.3, "class_agnostic": True}
    assert ops.batched_nms(boxes, scores, classes, cfg)[1].tolist() == expected
    # mmcv goes through the classes one by one from split_thr boxes on, class-agnostic or not
    per_class = plain_batched(boxes.tolist(), scores.tolist(), classes.tolist(), 0.3)
    assert ops.batched_nms(boxes, scores, classes, cfg | {"split_thr": 60})[1].tolist() == per_class != expected
    assert ops.batched_nms(boxes, scores, classes, cfg | {"split_thr": 61})[1].tolist() == expected


@pytest.mark.parametrize("split_thr", [10000, 20])
def test_batched_soft_nms_lowers_scores_within_a_class(split_thr):
    boxes, scores, classes = random_boxes(40), torch.rand(40, dtype=torch.double), torch.randint(0, 2, (40,))
    expected = {}
    for group in (0, 1):
        members = (classes == group).nonzero()[:, 0].tolist()
        plain = plain_soft_nms(boxes[members].tolist(), scores[members].tolist(), 0.3, 0.5, 0.05, "linear", 0)
        expected |= {members[i]: score for i, score in plain}
    cfg = {"type": "soft_nms", "iou_threshold": 0.3, "min_score": 0.05, "split_thr": split_thr}
    dets, keep = ops.batched_nms(boxes, scores, classes, cfg)
    assert set(keep.tolist()) == expected.keys()
    torch.testing.assert_close(dets[:, 4], torch.tensor([expected[i] for i in keep.tolist()], dtype=torch.double))
    assert dets[:, 4].diff().max() <= 0


def test_batched_soft_nms_max_num_bounds_the_union_of_the_classes():
    boxes, scores, classes = random_boxes(40, size=15.0), torch.rand(40, dtype=torch.double), torch.randint(0, 2, (40,))
    scores[classes == 1] /= 3  # unequal shares: a bound within each class would keep others
    cfg = {"type": "soft_nms", "method": "gaussian", "min_score": 0.05, "split_thr": 20}
    all_dets, all_keep = ops.batched_nms(boxes, scores, classes, cfg)
    dets, keep = ops.batched_nms(boxes, scores, classes, cfg | {"max_num": 12})
    assert keep.tolist() == all_keep[:12].tolist()
    assert torch.equal(dets, all_dets[:12])
    assert dets[:, 4].min() >= all_dets[12:, 4].max()
    assert len(all_keep) > 12
    assert (dets[:, 4] < scores[keep]).any(), "the bound must act on the lowered scores"
    assert len(ops.batched_nms(boxes, scores, classes, cfg | {"max_num": 1000})[1]) == len(all_keep)


def test_batched_nms_edges():
    boxes, scores = random_boxes(5), torch.tensor([0.1, 0.5, 0.3, 0.9, 0.2], dtype=torch.double)
    dets, keep = ops.batched_nms(boxes, scores, torch.zeros(5, dtype=torch.long), None)
    assert keep.tolist() == [3, 1, 2, 4, 0]
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], dim=1)[keep])
    for cfg in ({"type": "nms", "iou_threshold": 0.5}, {"type": "soft_nms"}, None):
        dets, keep = ops.batched_nms(boxes[:0], scores[:0], torch.zeros(0, dtype=torch.long), cfg)
        assert dets.shape == (0, 5)
        assert keep.shape == (0,)
        assert keep.dtype == torch.long
    with pytest.raises(ValueError, match=r"nms type 'nms_quadri'; allowed: nms, nms_rotated, soft_nms \(a compiled"):
        ops.batched_nms(boxes, scores, torch.zeros(5), {"type": "nms_quadri"})


def rotated(count):
    boxes = random_boxes(count)
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2], 3 * torch.rand(count, 1, dtype=torch.double)], dim=1)


def plain_rotated(boxes, scores, groups, threshold):
    overlaps, kept = ops.box_iou_rotated(boxes, boxes), []
    for i in scores.argsort(descending=True).tolist():
        if all(overlaps[i, j] <= threshold or groups[i] != groups[j] for j in kept):
            kept.append(i)
    return kept


def test_nms_rotated_equals_the_plain_loop():
    boxes, scores, classes = rotated(50), torch.rand(50, dtype=torch.double), torch.randint(0, 3, (50,))
    dets, keep = ops.nms_rotated(boxes, scores, 0.2)
    assert keep.tolist() == plain_rotated(boxes, scores, [0] * 50, 0.2)
    assert torch.equal(dets, torch.cat([boxes[keep], scores[keep, None]], dim=1))
    mirrored = boxes * torch.tensor([1, 1, 1, 1, -1])
    dets, mirrored_keep = ops.nms_rotated(mirrored, scores, 0.2, clockwise=False)
    assert torch.equal(mirrored_keep, keep)
    assert torch.equal(dets[:, :5], mirrored[keep])
    per_class = plain_rotated(boxes, scores, classes.tolist(), 0.2)
    assert ops.nms_rotated(boxes, scores, 0.2, labels=classes)[1].tolist() == per_class
    for split_thr in (10000, 20):
        cfg = {"type": "nms_rotated", "iou_threshold": 0.2, "split_thr": split_thr}
        dets, batched_keep = ops.batched_nms(boxes, scores, classes, cfg)
        assert batched_keep.tolist() == per_class
        assert torch.equal(dets, torch.cat([boxes, scores[:, None]], dim=1)[batched_keep])
    assert 5 < len(keep) < len(per_class) < 50


def test_nms_rotated_edges():
    upright = torch.tensor([[5.0, 5, 10, 10, 0], [5, 5, 10, 10, math.pi / 2], [30, 5, 10, 10, 0.7]])
    assert ops.nms_rotated(upright, torch.tensor([0.1, 0.2, 0.15]), 0.9)[1].tolist() == [1, 2]
    dets, keep = ops.nms_rotated(torch.zeros(0, 5), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5)
    assert keep is None
    dets, keep = ops.batched_nms(torch.zeros(0, 5), torch.zeros(0), torch.zeros(0), {"type": "nms_rotated"})
    assert (dets.shape, keep.shape) == ((0, 6), (0,))
    with pytest.raises(ValueError, match=r"dets \(2, 4\) and scores \(2,\); allowed: \(N, 5\) and \(N,\)"):
        ops.nms_rotated(torch.zeros(2, 4), torch.zeros(2), 0.5)
