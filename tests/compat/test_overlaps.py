import itertools
import math

import pytest
import torch
from mmcv import ops
from references import mmcv_python, random_boxes


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_bbox_overlaps_equal_mmcvs(mode, offset):
    first, second = random_boxes(7), random_boxes(5)
    plain = mmcv_python("bbox")._bbox_overlaps_cpu
    expected = plain(first, second, mode, False, offset)
    torch.testing.assert_close(ops.bbox_overlaps(first, second, mode, offset=offset), expected)
    aligned = ops.bbox_overlaps(first[:5], second, mode, aligned=True, offset=offset)
    torch.testing.assert_close(aligned, expected[:5].diagonal())
    assert 0 < (expected > 0).sum() < expected.numel()


def test_bbox_overlaps_by_hand():
    first = torch.tensor([[0.0, 0, 10, 10], [10, 10, 20, 20], [32, 32, 38, 42]])
    second = torch.tensor([[0.0, 0, 10, 20], [0, 10, 10, 19], [10, 10, 20, 20]])
    assert ops.bbox_overlaps(first, second).tolist() == [[0.5, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert ops.bbox_overlaps(second[:1], first, mode="iof").tolist() == [[0.5, 0, 0]]
    assert ops.bbox_overlaps(first, second, aligned=True).tolist() == [0.5, 0, 0]
    # With an offset of a pixel two boxes that touch share a column of pixels.
    shared = ops.bbox_overlaps(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[1.0, 0, 2, 1]]), offset=1)
    torch.testing.assert_close(shared, torch.tensor([[2 / 6]]))
    columns = first.t().contiguous().t()  # not contiguous
    assert torch.equal(ops.bbox_overlaps(columns, second), ops.bbox_overlaps(first, second))


@pytest.mark.parametrize(("overlaps", "boxes"), [(ops.bbox_overlaps, 4), (ops.box_iou_rotated, 5)])
def test_overlaps_of_no_boxes_and_of_bad_input(overlaps, boxes):
    empty, some = torch.zeros(0), torch.ones(3, boxes)
    assert overlaps(empty, some).shape == (0, 3)
    assert overlaps(some, empty).shape == (3, 0)
    assert overlaps(empty, empty).shape == (0, 0)
    assert overlaps(empty, empty, aligned=True).shape == (0,)
    with pytest.raises(ValueError, match="mode='giou'; allowed: iou, iof"):
        overlaps(some, some, mode="giou")
    with pytest.raises(ValueError, match="3 and 2 boxes with aligned=True"):
        overlaps(some, some[:2], aligned=True)
    with pytest.raises(ValueError, match=rf"boxes \(3, 3\); allowed: \(N, {boxes}\)"):
        overlaps(torch.zeros(3, 3), some)


def test_bbox_overlaps_refuse_another_offset():
    with pytest.raises(ValueError, match="offset=2; allowed: 0, 1"):
        ops.bbox_overlaps(torch.zeros(1, 4), torch.zeros(1, 4), offset=2)


def corners(x, y, width, height, angle):
    cos, sin = math.cos(angle), math.sin(angle)
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return [
        (x + (i * width * cos - j * height * sin) / 2, y + (i * width * sin + j * height * cos) / 2) for i, j in signs
    ]


def plain_rotated_iou(first, second):
    """By clipping one polygon by each edge of the other in turn."""

    def side(start, end, point):
        return (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])

    polygon, clip = corners(*first), corners(*second)
    for start, end in zip(clip, clip[1:] + clip[:1], strict=True):
        clipped = []
        for here, there in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            a, b = side(start, end, here), side(start, end, there)
            if a >= 0:
                clipped.append(here)
            if a * b < 0:
                clipped.append(tuple(p + a / (a - b) * (q - p) for p, q in zip(here, there, strict=True)))
        polygon = clipped
    common = sum(p[0] * q[1] - p[1] * q[0] for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True)) / 2
    return common / (first[2] * first[3] + second[2] * second[3] - common)


def rotated_boxes(count):
    upright = random_boxes(count)
    angles = 8 * torch.rand(count, 1, dtype=torch.double) - 4
    return torch.cat([upright[:, :2], upright[:, 2:] - upright[:, :2], angles], dim=1)


def test_rotated_overlaps_equal_clipped_polygons():
    first, second = rotated_boxes(20), rotated_boxes(25)
    first[:4, 4], second[:6, 4] = 0, math.pi / 2  # parallel edges among them
    expected = torch.tensor([[plain_rotated_iou(a, b) for b in second.tolist()] for a in first.tolist()]).double()
    overlaps = ops.box_iou_rotated(first, second)
    torch.testing.assert_close(overlaps, expected)
    assert 50 < (expected > 0).sum() < 450
    torch.testing.assert_close(ops.box_iou_rotated(first, second[:20], aligned=True), expected[:, :20].diagonal())
    common = expected / (1 + expected) * (first[:, 2] * first[:, 3])[:, None].add(second[:, 2] * second[:, 3])
    over_first = ops.box_iou_rotated(first, second, mode="iof")
    torch.testing.assert_close(over_first, common / (first[:, 2] * first[:, 3])[:, None])
    mirrored = [boxes * torch.tensor([1, 1, 1, 1, -1]) for boxes in (first, second)]
    torch.testing.assert_close(ops.box_iou_rotated(*mirrored, clockwise=False), overlaps)


def test_rotated_overlaps_in_closed_form():
    square = torch.tensor([[3.0, 2, 2, 2, 0]])
    for angle in (0.1, math.pi / 4, 1.2):
        # What two equal squares share is an octagon: a square of the half diagonal less its four corners.
        turned = square + torch.tensor([0, 0, 0, 0, angle])
        common = 8 / (1 + abs(math.cos(angle)) + abs(math.sin(angle)))
        torch.testing.assert_close(ops.box_iou_rotated(square, turned).item(), common / (8 - common), check_dtype=False)
    upright = torch.tensor([[5.0, 5, 10, 10, 0], [5, 10, 10, 20, 0], [40, 5, 10, 10, 0], [15, 5, 10, 10, 0]])
    assert ops.box_iou_rotated(upright[:1], upright).tolist() == [[1, 0.5, 0, 0]]


def test_one_box_described_by_several_angles_overlaps_itself():
    boxes = rotated_boxes(50).float()
    for quarters, repeated in itertools.product((0, 1, 2, 3), (-1, 0, 1)):
        same = boxes.clone()
        same[:, 4] += quarters * math.pi / 2 + repeated * 2 * math.pi
        if quarters % 2:
            same[:, 2:4] = boxes[:, [3, 2]]
        overlaps = ops.box_iou_rotated(boxes, same, aligned=True)
        assert overlaps.dtype == torch.float32
        torch.testing.assert_close(overlaps, torch.ones(50), atol=2e-5, rtol=0)


def test_rotated_boxes_without_area_overlap_nothing():
    boxes = torch.tensor([[1.0, 1, 0, 5, 0.3], [1, 1, 5, 5, 0.3]], requires_grad=True)
    overlaps = ops.box_iou_rotated(boxes, boxes)
    assert overlaps.tolist()[0] == [0, 0]
    assert not overlaps.requires_grad


def test_many_rotated_boxes_are_compared_in_chunks(monkeypatch):
    first, second = rotated_boxes(11), rotated_boxes(4)
    whole = ops.box_iou_rotated(first, second)
    monkeypatch.setattr("hitdet_nni.compat.torchvision_ops.overlaps._PAIRS_AT_ONCE", 9)
    assert torch.equal(ops.box_iou_rotated(first, second), whole)
