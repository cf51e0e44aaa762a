import itertools
import math

import pytest
import torch
from mmcv import ops
from references import sample_edge


def plain_roi_align(features, rois, size, scale, ratio, aligned):
    pooled = []
    for image, *box in rois.tolist():
        x1, y1, x2, y2 = (value * scale - (0.5 if aligned else 0.0) for value in box)
        width, height = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
        bin_h, bin_w = height / size[0], width / size[1]
        grid_h, grid_w = ratio or math.ceil(bin_h), ratio or math.ceil(bin_w)
        for i, j in itertools.product(range(size[0]), range(size[1])):
            samples = [
                sample_edge(
                    features[int(image)], y1 + (i + (p + 0.5) / grid_h) * bin_h, x1 + (j + (q + 0.5) / grid_w) * bin_w
                )
                for p, q in itertools.product(range(grid_h), range(grid_w))
            ]
            pooled.append(sum(samples) / len(samples))
    return torch.stack(pooled).view(len(rois), *size, -1).permute(0, 3, 1, 2)


ROIS = torch.tensor([[0, 3.3, 2.1, 19.7, 25.2], [1, -6, 4, 9, 30], [1, 10, 12, 41, 40.5], [0, 8, 8, 8.6, 9.1]]).double()


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_values_and_gradient_equal_the_plain_loop(aligned, ratio):
    features = torch.randn(2, 2, 9, 10, dtype=torch.double, requires_grad=True)
    layer = ops.RoIAlign((2, 3), spatial_scale=0.25, sampling_ratio=ratio, aligned=aligned)
    pooled, expected = layer(features, ROIS), plain_roi_align(features, ROIS, (2, 3), 0.25, ratio, aligned)
    torch.testing.assert_close(pooled, expected)
    cotangent = torch.randn_like(pooled)
    grads = [torch.autograd.grad((out * cotangent).sum(), features)[0] for out in (pooled, expected)]
    torch.testing.assert_close(*grads)
    assert grads[0].abs().sum() > 0


def test_roi_align_attributes_and_refusal():
    layer = ops.RoIAlign(output_size=7, spatial_scale=1 / 4, use_torchvision=True)
    state = (layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.pool_mode, layer.aligned)
    assert state == ((7, 7), 0.25, 0, "avg", True)
    assert layer.use_torchvision
    with pytest.raises(NotImplementedError, match=r"pool_mode='max'; allowed: 'avg' \(a compiled mmcv"):
        ops.RoIAlign(7, pool_mode="max")(torch.zeros(1, 1, 4, 4), ROIS.float()[:1])


def test_roi_align_under_autocast_takes_16_bit_features():
    """torchvision has no 16-bit kernel on CPU: autocast computes in 32 bits and hands back what it was given."""
    features = torch.randn(2, 2, 9, 10).bfloat16().requires_grad_()
    layer, rois = ops.RoIAlign((2, 3), spatial_scale=0.25, sampling_ratio=2), ROIS.float()
    with torch.autocast("cpu", torch.bfloat16):
        pooled = layer(features, rois)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled, layer(features.float(), rois).bfloat16())
    pooled.sum().backward()
    assert features.grad.abs().sum() > 0


def plain_roi_pool(features, rois, size, scale):
    pooled = features.new_zeros(len(rois), features.size(1), *size)
    height, width = features.shape[2:]
    for k, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        for i, j in itertools.product(range(size[0]), range(size[1])):
            rows = range(
                max(math.floor(y1 + i * (y2 - y1) / size[0]), 0),
                min(math.ceil(y1 + (i + 1) * (y2 - y1) / size[0]), height),
            )
            columns = range(
                max(math.floor(x1 + j * (x2 - x1) / size[1]), 0),
                min(math.ceil(x1 + (j + 1) * (x2 - x1) / size[1]), width),
            )
            for c in range(features.size(1)) if x2 > x1 and y2 > y1 else ():
                values = [features[int(image), c, y, x] for y in rows for x in columns]
                pooled[k, c, i, j] = max(values) if values else 0
    return pooled


def test_roi_pool_values_and_gradient_equal_the_plain_loop():
    rois = torch.cat([ROIS, torch.tensor([[0.0, 60, 60, 70, 70], [1, 9, 9, 3, 20]]).double()])  # outside, malformed
    features = torch.randn(2, 2, 9, 10, dtype=torch.double, requires_grad=True)
    pooled, expected = ops.RoIPool((2, 3), 0.25)(features, rois), plain_roi_pool(features, rois, (2, 3), 0.25)
    assert torch.equal(pooled, expected)
    assert not pooled[4:].any()
    cotangent = torch.randn_like(pooled)
    grads = [torch.autograd.grad((out * cotangent).sum(), features)[0] for out in (pooled, expected)]
    torch.testing.assert_close(*grads)
    assert ops.roi_pool(features, rois[:0], 2).shape == (0, 2, 2, 2)
