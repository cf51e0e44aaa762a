import itertools

import pytest
import torch
import torch.nn.functional as F
from mmcv import ops
from mmdet.registry import MODELS
from references import mmcv_python


def plain_carafe(features, masks, kernel, groups, scale):
    batch, channels, height, width = features.shape
    out = features.new_zeros(batch, channels, height * scale, width * scale)
    for n, c, i, j in itertools.product(*map(range, out.shape)):
        for u, v in itertools.product(range(kernel), repeat=2):
            y, x = i // scale + u - kernel // 2, j // scale + v - kernel // 2
            if 0 <= y < height and 0 <= x < width:
                channel = (c // (channels // groups) * kernel + u) * kernel + v
                out[n, c, i, j] += features[n, c, y, x] * masks[n, channel, i, j]
    return out


@pytest.mark.parametrize(("kernel", "groups", "scale"), [(3, 1, 2), (5, 2, 1), (1, 4, 3)])
def test_carafe_equals_the_plain_loop(kernel, groups, scale):
    features = torch.randn(2, 4, 3, 4, dtype=torch.double)
    masks = torch.randn(2, groups * kernel**2, 3 * scale, 4 * scale, dtype=torch.double)
    expected = plain_carafe(features, masks, kernel, groups, scale)
    torch.testing.assert_close(ops.carafe(features, masks, kernel, groups, scale), expected)
    torch.testing.assert_close(ops.carafe_naive(features, masks, kernel, groups, scale), expected)
    for layer in (ops.CARAFE, ops.CARAFENaive):
        torch.testing.assert_close(layer(kernel, groups, scale)(features, masks), expected)
    last = (part.to(memory_format=torch.channels_last) for part in (features, masks))  # not contiguous
    torch.testing.assert_close(ops.carafe(*last, kernel, groups, scale), expected)
    assert ops.carafe(features[:0], masks[:0], kernel, groups, scale).shape == (0, *expected.shape[1:])


def test_carafe_gradients():
    features = torch.randn(1, 4, 2, 3, dtype=torch.double, requires_grad=True)
    masks = torch.randn(1, 2 * 9, 4, 6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *parts: ops.carafe(*parts, 3, 2, 2), (features, masks))


def test_carafe_of_kernels_that_choose_the_centre_is_nearest_upsampling():
    features, masks = torch.randn(1, 2, 3, 3), torch.zeros(1, 9, 6, 6)
    masks[:, 4] = 1
    assert torch.equal(ops.carafe(features, masks, 3, 1, 2), F.interpolate(features, scale_factor=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 2, 2), "kernel_size=4, group_size=2, scale_factor=2; allowed: an odd kernel, a divisor of 4 channels"),
        ((3, 3, 2), "group_size=3"),
        ((3, 1, 0), "scale_factor=0"),
        ((3, 1, 2), r"masks \(1, 18, 6, 6\); allowed for features \(1, 4, 3, 3\): \(1, 9, 6, 6\)"),
    ],
)
def test_carafe_refuses_sizes_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.carafe(torch.zeros(1, 4, 3, 3), torch.zeros(1, 18, 6, 6), *arguments)


def test_carafe_pack_equals_mmcvs_but_for_the_op():
    arguments = {"channels": 6, "scale_factor": 2, "up_kernel": 3, "up_group": 2, "encoder_kernel": 3}
    arguments |= {"encoder_dilation": 2, "compressed_channels": 5}
    source = mmcv_python("carafe")
    source.carafe = lambda x, masks, *sizes: plain_carafe(x, masks, *sizes)
    layers = []
    for build in (source.CARAFEPack, lambda **options: MODELS.build(options | {"type": "carafe"})):
        torch.manual_seed(3)
        layers.append(build(**arguments))
    theirs, ours = layers
    assert type(ours) is ops.CARAFEPack
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.nn.init.normal_(parameter)
        other.data.copy_(parameter.detach())
    x = torch.randn(1, 6, 3, 2)
    torch.testing.assert_close(ours(x), theirs(x))
    prediction = torch.randn(1, 2 * 9 * 4, 2, 3)
    kernels = ours.kernel_normalizer(prediction)
    assert torch.equal(kernels, theirs.kernel_normalizer(prediction))
    torch.testing.assert_close(kernels.view(1, 2, 9, 4, 6).sum(dim=2), torch.ones(1, 2, 4, 6))


def test_carafe_pack_trains_all_its_parameters():
    layer = ops.CARAFEPack(4, 2, compressed_channels=8)
    layer(torch.randn(1, 4, 5, 5)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


def test_mmdets_fpn_carafe_is_built_and_upsamples():
    neck = MODELS.build(
        {"type": "FPN_CARAFE", "in_channels": [4, 8], "out_channels": 8, "num_outs": 2}
        | {"upsample_cfg": {"type": "carafe", "up_kernel": 5, "up_group": 1, "encoder_kernel": 3}}
    )
    neck.init_weights()
    levels = neck([torch.randn(1, 4, 8, 8), torch.randn(1, 8, 4, 4)])
    assert [tuple(level.shape) for level in levels] == [(1, 8, 8, 8), (1, 8, 4, 4)]
