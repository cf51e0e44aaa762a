import itertools
import math

import mmdet.models  # noqa: F401  registers the extractors
import pytest
import torch
from mmcv import ops
from mmdet.registry import MODELS
from references import mmcv_python, sample_edge
from torch import nn

ROIS = torch.tensor([[1, 3.3, 2.1, 19.7, 25.2], [0, -6, 4, 9, 30], [1, 10, 12, 41, 40.5], [0, 8, 8, 8.6, 9.1]]).double()


def plain_deform_roi_pool(features, rois, offset, size, scale=1.0, ratio=0, gamma=0.1):
    """Every sample by itself."""
    out = features.new_zeros(len(rois), features.size(1), *size)
    for k, i, j in itertools.product(range(len(rois)), *map(range, size)):
        image, *box = rois[k].tolist()
        x1, y1, x2, y2 = (value * scale - 0.5 for value in box)
        bin_h, bin_w = (y2 - y1) / size[0], (x2 - x1) / size[1]
        grid_h, grid_w = ratio or math.ceil(bin_h), ratio or math.ceil(bin_w)
        dx, dy = (gamma * extent * float(by) for extent, by in zip((x2 - x1, y2 - y1), offset[k, :, i, j], strict=True))
        for p, q in itertools.product(range(grid_h), range(grid_w)):
            y, x = y1 + dy + (i + (p + 0.5) / grid_h) * bin_h, x1 + dx + (j + (q + 0.5) / grid_w) * bin_w
            out[k, :, i, j] += sample_edge(features[int(image)], y, x) / (grid_h * grid_w)
    return out


@pytest.mark.parametrize(("scale", "ratio"), [(0.25, 0), (0.5, 2)])
def test_deform_roi_pool_equals_the_plain_loop(scale, ratio):
    features, offset = torch.randn(2, 3, 9, 11).double(), 3 * torch.randn(4, 2, 2, 3).double()
    expected = plain_deform_roi_pool(features, ROIS, offset, (2, 3), scale, ratio, 0.2)
    torch.testing.assert_close(ops.deform_roi_pool(features, ROIS, offset, (2, 3), scale, ratio, 0.2), expected)
    layer = ops.DeformRoIPool((2, 3), scale, ratio, 0.2)
    torch.testing.assert_close(layer(features, ROIS, offset), expected)
    still = ops.roi_align(features, ROIS, (2, 3), scale, ratio)
    for none in (None, offset[:0], 0 * offset):
        torch.testing.assert_close(layer(features, ROIS, none), still)
    turned = features.to(memory_format=torch.channels_last), offset.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(layer(turned[0], ROIS, turned[1]), expected)  # not contiguous
    assert layer(features, ROIS[:0], offset[:0]).shape == (0, 3, 2, 3)
    assert (expected - still).abs().max() > 0.1


def test_deform_roi_pool_gradients():
    features, offset = torch.randn(2, 1, 8, 8).double().requires_grad_(), 0.1 * torch.randn(2, 2, 2, 2).double()
    rois = torch.tensor([[0, 8.3, 9.1, 21.2, 17.7], [1, 10, 12, 23, 20.5]]).double()  # clear of the edges
    function = lambda *parts: ops.deform_roi_pool(parts[0], rois, parts[1], 2, 0.25, 0, 0.1)  # noqa: E731
    assert torch.autograd.gradcheck(function, (features, offset.requires_grad_()))


@pytest.mark.parametrize("name", ["DeformRoIPoolPack", "ModulatedDeformRoIPoolPack"])
def test_packs_equal_mmcvs_but_for_the_op(name):
    source = mmcv_python("deform_roi_pool")
    source.deform_roi_pool = lambda x, rois, offset, size, *rest: (
        ops.roi_align(x, rois, size, *rest[:2])
        if offset is None
        else plain_deform_roi_pool(x, rois, offset.detach(), size, *rest)
    )
    layers = []
    for module in (source, ops):
        torch.manual_seed(3)
        layers.append(getattr(module, name)((2, 3), 4, deform_fc_channels=5, spatial_scale=0.25).double())
    theirs, ours = layers
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        nn.init.normal_(parameter)
        other.data.copy_(parameter.detach())
    features = torch.randn(2, 4, 9, 11).double().requires_grad_()
    torch.testing.assert_close(ours(features, ROIS), theirs(features, ROIS))
    ours(features, ROIS).square().sum().backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in (features, *ours.parameters()))


def test_mmdets_extractor_is_built_with_a_pack():
    layer = {"type": "ModulatedDeformRoIPoolPack", "output_size": 3, "output_channels": 4, "deform_fc_channels": 8}
    config = {"type": "SingleRoIExtractor", "roi_layer": layer, "out_channels": 4, "featmap_strides": [4, 8]}
    extractor = MODELS.build(config)
    levels = [torch.randn(2, 4, size, size) for size in (16, 8)]
    pooled = extractor(levels, ROIS.float())
    # A new pack moves nothing and halves everything.
    aligned = MODELS.build(config | {"roi_layer": {"type": "RoIAlign", "output_size": 3}})(levels, ROIS.float())
    torch.testing.assert_close(pooled, aligned / 2)


def test_deform_roi_pool_refuses_bad_input():
    features, rois = torch.zeros(1, 2, 4, 4), torch.zeros(3, 5)
    with pytest.raises(ValueError, match=r"rois \(3, 4\); allowed: \(K, 5\)"):
        ops.deform_roi_pool(features, rois[:, 1:], None, 2)
    with pytest.raises(ValueError, match=r"offset \(3, 2, 3, 3\); allowed: \(3, 2, 2, 2\)"):
        ops.deform_roi_pool(features, rois, torch.zeros(3, 2, 3, 3), 2)
    with pytest.raises(ValueError, match="input has 2 channels; allowed: output_channels=4"):
        ops.DeformRoIPoolPack(2, 4)(features, rois)
