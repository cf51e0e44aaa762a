import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from mmcv import ops
from mmdet.registry import MODELS
from torch import nn


def plain_deform_conv(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups):
    def at(image, y, x):
        total = 0.0
        for yy, xx in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
            if 0 <= yy < image.size(0) and 0 <= xx < image.size(1):
                total = total + image[yy, xx] * (1 - abs(y - yy)) * (1 - abs(x - xx))
        return total

    (batch, channels), (out_channels, group_in, kh, kw) = x.shape[:2], weight.shape
    out = x.new_zeros(batch, out_channels, *offset.shape[2:])
    for n, o, i, j in itertools.product(*map(range, out.shape)):
        total = bias[o]
        for c, u, v in itertools.product(range(group_in), range(kh), range(kw)):
            channel = o // (out_channels // groups) * group_in + c
            tap = (channel // (channels // deform_groups) * kh + u) * kw + v
            y = i * stride - padding + u * dilation + float(offset[n, 2 * tap, i, j])
            z = j * stride - padding + v * dilation + float(offset[n, 2 * tap + 1, i, j])
            total = total + weight[o, c, u, v] * mask[n, tap, i, j] * at(x[n, channel], y, z)
        out[n, o, i, j] = total
    return out


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 2, 2)])
def test_modulated_deform_conv_equals_the_plain_loop(stride, padding, dilation):
    x, weight, bias = (torch.randn(*s, dtype=torch.double) for s in ((2, 4, 4, 5), (2, 2, 3, 3), (2,)))
    height, width = F.conv2d(x, weight, None, stride, padding, dilation, 2).shape[2:]
    offset = 2 * torch.randn(2, 2 * 2 * 9, height, width, dtype=torch.double)
    mask = torch.rand(2, 2 * 9, height, width, dtype=torch.double)
    arguments = (stride, padding, dilation, 2, 2)
    out = ops.modulated_deform_conv2d(x, offset, mask, weight, bias, *arguments)
    torch.testing.assert_close(out, plain_deform_conv(x, offset, mask, weight, bias, *arguments))
    ones, zeros = torch.ones_like(mask), torch.zeros_like(bias)
    torch.testing.assert_close(
        ops.deform_conv2d(x, offset, weight, *arguments),
        plain_deform_conv(x, offset, ones, weight, zeros, *arguments),
    )


def test_deform_conv_zero_and_integer_offsets():
    x, conv = torch.randn(2, 4, 7, 8), ops.DeformConv2d(4, 6, 3, padding=1, groups=2, deform_groups=2)
    offset = torch.zeros(2, 2 * 2 * 9, 7, 8)
    torch.testing.assert_close(conv(x, offset), F.conv2d(x, conv.weight, padding=1, groups=2))
    offset[:, 0::2] = 2.0  # two pixels down
    offset[:, 1::2] = -1.0  # one to the left
    shifted = F.pad(x, (1, 0, 0, 2))[:, :, 2:, :8]
    inner = (slice(None), slice(None), slice(1, 4), slice(2, 7))  # clear of both images' borders
    torch.testing.assert_close(conv(x, offset)[inner], F.conv2d(shifted, conv.weight, padding=1, groups=2)[inner])


def test_deform_conv_gradients():
    x, offset = torch.randn(1, 2, 4, 4).double().requires_grad_(), torch.randn(1, 18, 4, 4).double().requires_grad_()
    mask, weight = torch.rand(1, 9, 4, 4).double().requires_grad_(), torch.randn(2, 2, 3, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: ops.modulated_deform_conv2d(*a, None, 1, 1), (x, offset, mask, weight))


@pytest.mark.parametrize("modulated", [False, True])
def test_offsets_of_samples_at_the_first_pixel_outside_have_no_gradient(modulated):
    """As in mmcv: a sample at y <= -1 or y >= H is none, and neither coordinate has a slope there."""
    x, weight = torch.full((1, 1, 3, 4), 7.0, dtype=torch.double), torch.ones(1, 1, 3, 3, dtype=torch.double)
    offset = torch.zeros(1, 18, 3, 4, dtype=torch.double, requires_grad=True)
    mask = [torch.ones(1, 9, 3, 4, dtype=torch.double)] if modulated else []
    function = ops.modulated_deform_conv2d if modulated else ops.deform_conv2d
    function(x, offset, *mask, weight, *([None] if modulated else []), 1, 1).sum().backward()
    for tap, i, j in itertools.product(range(9), range(3), range(4)):
        row, column = i - 1 + tap // 3, j - 1 + tap % 3
        inside = 0 <= row < 3 and 0 <= column < 4
        # The slope is that towards larger coordinates: to the zeros behind the last row and column.
        expected = [-7.0 * (inside and row == 2), -7.0 * (inside and column == 3)]
        assert offset.grad[0, 2 * tap : 2 * tap + 2, i, j].tolist() == expected
    shifted = torch.full_like(offset, 1e-3).requires_grad_()  # a thousandth of a pixel inside, the slope is there
    function(x, shifted, *mask, weight, *([None] if modulated else []), 1, 1).sum().backward()
    assert shifted.grad[0, 0, 0, 1:3].tolist() == pytest.approx([7.0, 7.0])


def test_no_gradient_is_lost_by_strides_and_groups():
    parts = [torch.randn(1, 4, 4, 5).double(), 3 * torch.randn(1, 2 * 2 * 6, 2, 2).double()]
    parts += [torch.rand(1, 2 * 6, 2, 2).double(), torch.randn(2, 2, 2, 3).double(), torch.randn(2).double()]
    parts = [part.requires_grad_() for part in parts]
    arguments = ((2, 3), (1, 1), (2, 1), 2, 2)
    assert torch.autograd.gradcheck(lambda *given: ops.modulated_deform_conv2d(*given, *arguments), parts)


def test_deform_conv_computes_in_the_type_of_the_offsets():
    x, offset, weight, bias = torch.randn(1, 2, 4, 4), torch.zeros(1, 18, 4, 4), torch.randn(3, 2, 3, 3), torch.ones(3)
    out = ops.modulated_deform_conv2d(x, offset.double(), torch.ones(1, 9, 4, 4), weight, bias, 1, 1)
    torch.testing.assert_close(out, F.conv2d(x.double(), weight.double(), bias.double(), padding=1))
    narrow = ops.modulated_deform_conv2d(x, offset.bfloat16(), torch.ones(1, 9, 4, 4), weight, bias, 1, 1)
    torch.testing.assert_close(narrow, out.bfloat16())
    turned = x.to(memory_format=torch.channels_last), offset.to(memory_format=torch.channels_last)  # not contiguous
    torch.testing.assert_close(ops.deform_conv2d(*turned, weight, 1, 1), F.conv2d(x, weight, padding=1))
    assert ops.deform_conv2d(x[:0], offset[:0], weight, 1, 1).shape == (0, 3, 4, 4)


def test_deform_conv_pads_inputs_smaller_than_the_kernel():
    conv = ops.DeformConv2d(2, 3, 3, padding=1).double()
    x, offset = torch.randn(1, 2, 2, 5).double(), torch.randn(1, 18, 2, 5).double()
    torch.testing.assert_close(conv(x, 0 * offset), F.conv2d(x, conv.weight, padding=1))
    ones, zeros = torch.ones(1, 9, 2, 5).double(), torch.zeros(3).double()
    expected = plain_deform_conv(x, offset, ones, conv.weight.detach(), zeros, 1, 1, 1, 1, 1)
    torch.testing.assert_close(conv(x, offset).detach(), expected)


@pytest.mark.parametrize(
    ("layer", "bound"),
    [(ops.DeformConv2d, math.sqrt(6 / (8 * 9))), (ops.ModulatedDeformConv2d, 1 / math.sqrt(16 * 9))],
)
def test_weights_are_drawn_as_in_mmcv(layer, bound):
    largest = layer(16, 32, 3, groups=2).weight.abs().max().item()  # mmcv's modulated layer ignores the groups
    assert 0.98 * bound < largest <= bound


def test_modulated_offsets_of_a_larger_map_are_read_from_their_start():
    """As mmcv's program does, which is not told their size: mmdet's DyHead passes those of another level."""
    x, weight = torch.randn(2, 3, 3, 4).double(), torch.randn(2, 3, 3, 3).double()
    offset, mask = torch.randn(2, 18, 6, 8).double().requires_grad_(), torch.rand(2, 9, 6, 8).double()
    small = offset.detach().flatten(1)[:, : 18 * 12].view(2, 18, 3, 4), mask.flatten(1)[:, : 9 * 12].view(2, 9, 3, 4)
    out = ops.modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1)
    torch.testing.assert_close(out, plain_deform_conv(x, *small, weight, torch.zeros(2), 1, 1, 1, 1, 1))
    out.sum().backward()
    assert [bool(part.any()) for part in offset.grad[0].flatten().split([18 * 12, 18 * 36])] == [True, False]
    with pytest.raises(ValueError, match=r"of \[\(2, 4\), \(3, 4\)\] for an output of \(3, 4\); allowed: its size"):
        ops.modulated_deform_conv2d(x, offset[:, :, :2, :4], mask, weight, None, 1, 1)
    with pytest.raises(ValueError, match=r"of \[\(6, 8\)\] for an output of \(3, 4\); allowed: its size"):
        ops.deform_conv2d(x, offset, weight, 1, 1)  # here mmcv refuses too
    with pytest.raises(ValueError, match=r"an output of \(-1, 0\); allowed: its size, at least 1 x 1"):
        ops.deform_conv2d(x, offset, weight, 1, 0, 2)


@pytest.mark.parametrize(("kind", "per_tap", "share"), [("DCN", 2, 1.0), ("DCNv2", 3, 0.5)])
def test_packs_start_as_plain_convolutions_and_learn_offsets(kind, per_tap, share):
    layer = MODELS.build(
        {"type": kind, "in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2, "padding": 1, "bias": False}
    )
    assert list(layer.state_dict()) == ["weight", "conv_offset.weight", "conv_offset.bias"]
    assert layer.conv_offset.weight.shape == (per_tap * 9, 4, 3, 3)
    x = torch.randn(2, 4, 7, 8)
    torch.testing.assert_close(layer(x), share * F.conv2d(x, layer.weight, stride=2, padding=1))
    layer(x).square().sum().backward()
    assert layer.weight.grad.any()
    assert layer.conv_offset.weight.grad.flatten(1).any(dim=1).all(), "each offset and each mask must learn"


@pytest.mark.parametrize("kind", ["DCN", "DCNv2"])
def test_packs_predict_the_offsets_of_all_groups_then_the_masks(kind):
    config = {"type": kind, "in_channels": 4, "out_channels": 2, "kernel_size": 3, "bias": False}
    layer = MODELS.build(config | {"padding": 1, "dilation": 2, "deform_groups": 2}).double()
    nn.init.normal_(layer.conv_offset.weight, std=0.3)
    nn.init.normal_(layer.conv_offset.bias)
    x, zeros = torch.randn(1, 4, 4, 5).double(), torch.zeros(2).double()
    prediction = F.conv2d(x, layer.conv_offset.weight, layer.conv_offset.bias, padding=1, dilation=2).detach()
    offset, mask = prediction[:, :36], prediction[:, 36:].sigmoid()
    mask = mask if kind == "DCNv2" else torch.ones(1, 18, 2, 3).double()
    expected = plain_deform_conv(x, offset, mask, layer.weight.detach(), zeros, 1, 1, 2, 1, 2)
    torch.testing.assert_close(layer(x).detach(), expected)


def test_dcnv2_old_argument_bias_and_initialisation():
    with pytest.warns(DeprecationWarning, match="deformable_groups"):  # the name in several of mmdet's configurations
        layer = ops.ModulatedDeformConv2dPack(2, 2, 3, padding=1, deformable_groups=1)
    nn.init.normal_(layer.conv_offset.bias)
    nn.init.normal_(layer.bias)
    x, values = torch.randn(1, 2, 4, 4), layer.conv_offset.bias.detach()
    grid = values[:, None, None].expand(27, 4, 4)[None]
    expected = plain_deform_conv(
        x, grid[:, :18], grid[:, 18:].sigmoid(), layer.weight.detach(), layer.bias.detach(), 1, 1, 1, 1, 1
    )
    torch.testing.assert_close(layer(x).detach(), expected)
    nn.init.normal_(layer.conv_offset.weight)
    layer.init_weights()
    assert not layer.conv_offset.weight.any()
    assert not layer.conv_offset.bias.any()
    assert not layer.bias.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.DeformConv2d(2, 2, 3, bias=True), "bias=True; allowed: False"),
        (lambda: ops.DeformConv2d(3, 2, 3, groups=2), "groups=2; allowed: a divisor of 3 and of 2"),
        (
            lambda: ops.deform_conv2d(
                torch.zeros(1, 2, 4, 4), torch.zeros(1, 18, 2, 2), torch.zeros(2, 2, 3, 3), 1, 0, 1, 1, 2
            ),
            "offset has 18 channels.*deform_groups=2, groups=1: 36, 2",
        ),
    ],
)
def test_deform_conv_refuses_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
