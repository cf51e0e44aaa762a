"""Depthwise convolutions of a decided detector against torch's own."""

import copy

import pytest
import torch
from torch import nn

from hitdet_nni.kernels.depthwise_convolution import DepthwiseConv2d, fast_depthwise
from hitdet_nni.model.replacement import replace_modules
from hitdet_nni.operators.registry import OPERATORS, build_operator


def depthwise(kernel_size, dilation, stride):
    padding = (kernel_size - 1) * dilation // 2
    return nn.Conv2d(6, 6, kernel_size, stride, padding, dilation, groups=6, bias=False)


@pytest.mark.parametrize("size", [(7, 7), (24, 17)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 1), (3, 2), (3, 3), (5, 1), (5, 2), (5, 3)])
def test_values_and_gradients_are_those_of_torch(kernel_size, dilation, stride, size):
    plain = depthwise(kernel_size, dilation, stride)
    fast = fast_depthwise(copy.deepcopy(plain))
    assert type(fast) is DepthwiseConv2d
    found = []
    for module in (plain, fast):
        x = torch.randn(3, 6, *size, generator=torch.Generator().manual_seed(1)).requires_grad_()
        output = module(x)
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
        (output * weights).sum().backward()
        found.append((output, x.grad, module.weight.grad))
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert theirs.abs().max() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changed",
    [
        {"padding_mode": "reflect"},
        {"kernel_size": (1, 3), "padding": (0, 1)},
        {"padding": 0},
        {"stride": (1, 2)},
        {"dilation": (1, 2), "padding": (1, 2)},
        {"kernel_size": 4},
        {"padding": "valid"},
        {"bias": True},
        {"groups": 3},
    ],
)
def test_other_convolutions_stay_as_they_are(changed):
    """An operator of a user's own may have any."""
    module = nn.Conv2d(6, 6, **{"kernel_size": 3, "padding": 1, "groups": 6, "bias": False} | changed)
    assert fast_depthwise(module) is module


def test_padding_by_its_name_is_the_same():
    module = nn.Conv2d(6, 6, 5, padding="same", dilation=2, groups=6, bias=False)
    x = torch.randn(2, 6, 9, 11)
    torch.testing.assert_close(fast_depthwise(copy.deepcopy(module))(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kernel_size", "dilation", "stride"), [(3, 1, 1), (3, 2, 1), (5, 1, 1), (5, 3, 2), (3, 2, 2)])
def test_no_images_have_gradients_of_zero(kernel_size, dilation, stride):
    """As of a head without RoIs."""
    module = fast_depthwise(depthwise(kernel_size, dilation, stride))
    x = torch.zeros(0, 6, 8, 8, requires_grad=True)
    output = module(x)
    assert output.shape == (0, 6, 8 // stride, 8 // stride)
    output.sum().backward()
    assert x.grad.shape == x.shape
    assert module.weight.grad.abs().sum() == 0


def test_every_operator_keeps_its_keys_and_only_depthwise_convolutions_change():
    for name in OPERATORS:
        operator = build_operator(name, 8, 8, 1)
        keys, kinds = list(operator.state_dict()), [type(part) for part in operator.modules()]
        parameters = list(operator.parameters())
        assert replace_modules(operator.eval(), fast_depthwise) is operator
        assert list(operator.state_dict()) == keys
        assert all(one is two for one, two in zip(operator.parameters(), parameters, strict=True))
        assert not any(part.training for part in operator.modules())
        changed = [part for part, kind in zip(operator.modules(), kinds, strict=True) if type(part) is not kind]
        grouped = [part for part in operator.modules() if isinstance(part, nn.Conv2d) and part.groups > 1]
        assert changed == grouped
        assert all(type(part) is DepthwiseConv2d for part in changed)


def test_sixteen_bits_are_left_to_torch():
    module = fast_depthwise(depthwise(3, 2, 1))
    with torch.autocast("cpu", torch.bfloat16):
        output = module(torch.randn(1, 6, 8, 8))
    assert output.dtype == torch.bfloat16
    assert output.grad_fn.name() == "ConvolutionBackward0"


def test_frozen_weights_and_inputs_get_no_gradient():
    module = fast_depthwise(depthwise(3, 1, 1))
    module.weight.requires_grad_(False)
    x = torch.randn(1, 6, 8, 8, requires_grad=True)
    module(x).sum().backward()
    assert module.weight.grad is None
    assert x.grad.abs().sum() > 0
