"""The convolutions' gradients, whatever algorithm computes them: equal to autograd's of the plain convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hitdet_nni.search.fused import dense, depthwise

KERNELS = [(3, 1), (3, 2), (3, 3), (5, 1), (5, 2), (5, 3), (7, 1)]  # kernel size, dilation: those of the operators
# One shape an algorithm: a map small enough for Toeplitz matrices, one beyond, sizes that no dilation divides.
SHAPES = [(3, 4, 7, 7), (2, 3, 13, 11), (1, 4, 3, 5), (2, 2, 1, 9)]


def by_autograd(x, weight, grad, stride, dilation, groups):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    reach = (weight.shape[-1] - 1) * dilation // 2
    y = F.conv2d(x, weight, None, stride, reach, dilation, groups)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad)


def draw(shape, weight_shape, stride, dtype=torch.float64):
    torch.manual_seed(4)
    count, _, height, width = shape
    size = (count, weight_shape[0], -(-height // stride), -(-width // stride))
    x, grad = (torch.randn(s, dtype=dtype).to(memory_format=torch.channels_last) for s in (shape, size))
    return x, torch.randn(weight_shape, dtype=dtype), grad


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kernel_size", "dilation"), [*KERNELS, (7, 2), (9, 3)])
def test_depthwise_equals_autograd(kernel_size, dilation, shape, stride):
    channels = shape[1]
    x, weight, grad = draw(shape, (channels, 1, kernel_size, kernel_size), stride)
    expected = by_autograd(x, weight, grad, stride, dilation, channels)
    computed = (
        depthwise.convolve(x, weight, stride, dilation),
        depthwise.input_gradient(grad, x, weight, stride, dilation),
        depthwise.weight_gradient(grad, x, weight, stride, dilation),
    )
    for one, other in zip(computed, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("function", [depthwise._correlate, depthwise._toeplitz_weight_gradient])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel_size", "dilation"), KERNELS)
def test_weight_gradient_algorithms_agree(function, kernel_size, dilation, stride):
    """Each algorithm is exact for every kernel, also for those that the rule gives to another."""
    x, weight, grad = draw((2, 3, 8, 7), (3, 1, kernel_size, kernel_size), stride)
    expected = by_autograd(x, weight, grad, stride, dilation, 3)[2]
    torch.testing.assert_close(function(grad, x, kernel_size, stride, dilation), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("kernel_size", "dilation"), KERNELS)
def test_depthwise_is_bitwise_repeatable(kernel_size, dilation):
    for shape in ((8, 32, 7, 7), (2, 32, 20, 20)):
        x, weight, grad = draw(shape, (32, 1, kernel_size, kernel_size), 1, torch.float32)
        first = depthwise.weight_gradient(grad, x, weight, 1, dilation)
        assert torch.equal(first, depthwise.weight_gradient(grad, x, weight, 1, dilation))


@pytest.mark.parametrize("smallest_product", [0, 2**62])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kernel_size", "dilation"), KERNELS[:-1])
def test_dense_equals_autograd(kernel_size, dilation, shape, stride, smallest_product, monkeypatch):
    monkeypatch.setattr(dense, "TAP_PRODUCTS", smallest_product)
    x, weight, grad = draw(shape, (5, shape[1], kernel_size, kernel_size), stride)
    expected = by_autograd(x, weight, grad, stride, dilation, 1)
    by_input, by_weight = dense.gradients(grad, x, weight, stride, dilation, of_input=True, of_weight=True)
    computed = (dense.convolve(x, weight, stride, dilation), by_input, by_weight)
    for one, other in zip(computed, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_only_wanted_dense_gradients_are_computed():
    x, weight, grad = draw((2, 3, 6, 6), (4, 3, 3, 3), 1)
    nothing = dense.gradients(grad, x, weight, 1, 1, of_input=False, of_weight=False)
    assert nothing == (None, None)
    assert dense.gradients(grad, x, weight, 1, 1, of_input=True, of_weight=False)[1] is None
    assert dense.gradients(grad, x, weight, 1, 1, of_input=False, of_weight=True)[0] is None
