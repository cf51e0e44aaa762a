import itertools

import pytest
import torch
from mmcv import ops
from references import mmcv_python


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


@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear_grid_sample_equals_mmcvs(align_corners):
    features = torch.randn(2, 3, 4, 5, dtype=torch.double, requires_grad=True)
    grid = (3 * torch.rand(2, 3, 4, 2, dtype=torch.double) - 1.5).requires_grad_()  # some of it outside
    results = [
        function(features, grid, align_corners)
        for function in (ops.bilinear_grid_sample, mmcv_python("point_sample").bilinear_grid_sample)
    ]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(each.square().sum(), (features, grid)) for each in results))
    assert torch.autograd.gradcheck(lambda *parts: ops.bilinear_grid_sample(*parts, align_corners), (features, grid))
    corners = torch.tensor([[-1.0, -1], [1, 1]], dtype=torch.double).expand(2, 1, 2, 2)
    sampled = ops.bilinear_grid_sample(features, corners, align_corners)[:, :, 0]
    torch.testing.assert_close(sampled, features[:, :, [0, -1], [0, -1]] / (1 if align_corners else 4))


ROIS = torch.tensor([[0.0, 4, 8, 20, 16], [0, -3, 2.5, 9, 31], [2, 0, 0, 40, 32], [2, 7, 7, 7, 7]])


@pytest.mark.parametrize("aligned", [False, True])
def test_simple_roi_align_equals_mmcvs(aligned):
    features = torch.randn(3, 2, 8, 10, requires_grad=True)
    theirs, ours = (source.SimpleRoIAlign((3, 2), 0.25, aligned) for source in (mmcv_python("point_sample"), ops))
    pooled = ours(features, ROIS)
    torch.testing.assert_close(pooled, theirs(features, ROIS))
    # mmcv gives them back by image.
    order = [2, 0, 3, 1]
    torch.testing.assert_close(ours(features, ROIS[order]), pooled[order])
    assert ours(features, ROIS[:0]).shape == (0, 2, 3, 2)
    pooled.square().sum().backward()
    assert features.grad.flatten(1).any(dim=1).tolist() == [True, False, True]


def test_simple_roi_align_reads_the_middle_of_each_bin():
    columns = torch.arange(10.0).expand(1, 1, 8, 10)
    pooled = ops.SimpleRoIAlign(2, 0.5)(columns, torch.tensor([[0.0, 4, 4, 12, 12]]))
    torch.testing.assert_close(pooled, torch.tensor([[[[2.5, 4.5], [2.5, 4.5]]]]))  # x = 6, 10 of the image
