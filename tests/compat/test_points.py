import itertools

import torch
from mmcv import ops


def test_point_sample_reads_pixel_centres():
    features = torch.randn(2, 3, 4, 5)
    rows, columns = torch.tensor([0, 3, 2]), torch.tensor([4, 0, 1])
    points = torch.stack([(columns + 0.5) / 5, (rows + 0.5) / 4], dim=1).expand(2, 3, 2)
    expected = features[:, :, rows, columns]
    torch.testing.assert_close(ops.point_sample(features, points), expected)
    torch.testing.assert_close(ops.point_sample(features, points[:, :, None]), expected[..., None])
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).expand(2, 2, 2)
    expected = features[:, :, [0, -1], [0, -1]]
    torch.testing.assert_close(ops.point_sample(features, corners, align_corners=True), expected)
    torch.testing.assert_close(ops.point_sample(features, corners, padding_mode="border"), expected)
    torch.testing.assert_close(
        ops.point_sample(features, corners), expected / 4
    )  # three of four neighbours are outside


def test_point_sample_keeps_dimensions_of_size_one():
    features = torch.randn(1, 1, 4, 5)
    assert ops.point_sample(features, torch.rand(1, 1, 2)).shape == (1, 1, 1)
    assert ops.point_sample(features, torch.rand(1, 3, 1, 2)).shape == (1, 1, 3, 1)


def test_rel_roi_point_to_rel_img_point():
    rois = torch.tensor([[1.0, 10, 20, 30, 60], [0, 4, 8, 12, 40]])
    points = torch.tensor([[[0.0, 0.0], [0.5, 0.25], [1.0, 1.0]], [[0.25, 0.5], [1.0, 0.0], [0.0, 0.75]]])
    pixels = torch.tensor([[[10.0, 20], [20, 30], [30, 60]], [[6, 24], [12, 8], [4, 32]]])
    expected = pixels / 2 / torch.tensor([50.0, 40.0])
    for boxes, img in itertools.product((rois, rois[:, 1:]), ((40, 50), torch.zeros(1, 3, 40, 50))):
        torch.testing.assert_close(ops.rel_roi_point_to_rel_img_point(boxes, points, img, 0.5), expected)
