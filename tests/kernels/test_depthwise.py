"""The convolutions' gradients, whatever algorithm computes them: equal to autograd's of the plain convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hitdet_nni.kernels import dense, depthwise, layout, spectral

KERNELS = [(3, 1), (3, 2), (3, 3), (5, 1), (5, 2), (5, 3), (7, 1)]  # kernel size, dilation: those of the operators
# Odd and uneven sizes, that no dilation divides, one map and several.
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


def by_rows(x):
    """The same maps, their pixels ordered row by row."""
    shape = layout.MapShape(len(x), *x.shape[2:], by_rows=True)
    return shape.images(shape.matrix(x).contiguous())


@pytest.mark.parametrize("order", [by_rows, layout.channels_last], ids=["by rows", "by maps"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kernel_size", "dilation"), [*KERNELS, (7, 2), (9, 3)])
def test_depthwise_equals_autograd(kernel_size, dilation, shape, stride, order):
    channels = shape[1]
    x, weight, grad = draw(shape, (channels, 1, kernel_size, kernel_size), stride)
    expected = by_autograd(x, weight, grad, stride, dilation, channels)
    x, grad = order(x), order(grad)
    computed = (
        depthwise.convolve(x, weight, stride, dilation),
        depthwise.input_gradient(grad, x, weight, stride, dilation),
        depthwise.weight_gradient(grad, x, weight, stride, dilation),
    )
    for one, other in zip(computed, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("kernel_size", "dilation"), KERNELS)
def test_weight_gradient_in_pieces(kernel_size, dilation, monkeypatch):
    """Nine channels in pieces of four, the last of one."""
    monkeypatch.setattr(depthwise, "MANY_PIXELS", 1)
    monkeypatch.setattr(depthwise, "PIECE_CHANNELS", 4)
    x, weight, grad = draw((2, 9, 8, 7), (9, 1, kernel_size, kernel_size), 1)
    expected = by_autograd(x, weight, grad, 1, dilation, 9)[2]
    computed = depthwise._correlate_rows(by_rows(grad), by_rows(x), kernel_size, dilation)
    torch.testing.assert_close(computed, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", [*SHAPES, (5, 4, 6, 2)])
def test_orders_of_pixels(shape):
    x = torch.randn(shape)
    for order, rows in ((layout.channels_last(x), False), (by_rows(x), True)):
        assert torch.equal(order, x)
        assert layout.goes_by_rows(order) == (rows and len(x) > 1)
        assert torch.equal(layout.several_maps(layout.one_map(order), len(x)), x)
    ordered = by_rows(x)
    stacked = layout.one_map(ordered)
    assert torch.equal(stacked[0, :, len(x) - 1 :: len(x)], x[-1])
    assert stacked.data_ptr() == ordered.data_ptr()  # not a copy


@pytest.mark.parametrize("function", [depthwise._correlate_maps, depthwise._toeplitz_weight_gradient])
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


@pytest.fixture
def gain(monkeypatch):
    """Set how many times fewer products the convolution theorem must need, and forget what was chosen before."""

    def choose(value):
        monkeypatch.setattr(spectral, "GAIN", value)
        spectral.choose_tiling.cache_clear()

    yield choose
    spectral.choose_tiling.cache_clear()


ALGORITHMS = {"by lines": (1e9, 1e9), "ATen where undilated": (0, 1e9), "convolution theorem": (0, 0)}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 9, 20)])
@pytest.mark.parametrize(("kernel_size", "dilation"), KERNELS[:-1])
def test_dense_equals_autograd(kernel_size, dilation, shape, stride, algorithm, monkeypatch, gain):
    few_pixels, least_gain = ALGORITHMS[algorithm]
    monkeypatch.setattr(dense, "FEW_PIXELS", few_pixels)
    gain(least_gain)
    x, weight, grad = draw(shape, (5, shape[1], kernel_size, kernel_size), stride)
    expected = by_autograd(x, weight, grad, stride, dilation, 1)
    grad_input, grad_weight = dense.gradients(grad, x, weight, stride, dilation, of_input=True, of_weight=True)
    computed = (dense.convolve(x, weight, stride, dilation), grad_input, grad_weight)
    for one, other in zip(computed, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_only_wanted_dense_gradients_are_computed():
    x, weight, grad = draw((2, 3, 6, 6), (4, 3, 3, 3), 1)
    nothing = dense.gradients(grad, x, weight, 1, 1, of_input=False, of_weight=False)
    assert nothing == (None, None)
    assert dense.gradients(grad, x, weight, 1, 1, of_input=True, of_weight=False)[1] is None
    assert dense.gradients(grad, x, weight, 1, 1, of_input=False, of_weight=True)[0] is None


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize("side", spectral.TILES)
def test_convolution_theorem_on_tiles_of_any_side(side, kernel_size):
    """Tiles that do not divide the map, and overlap by the kernel's reach."""
    x, weight, grad = draw((2, 3, 13, 17), (5, 3, kernel_size, kernel_size), 1)
    tiling = spectral.Tiling(side, side, -(-13 // side), -(-17 // side), kernel_size // 2)
    convolution = spectral.SpectralConvolution(tiling, weight)
    computed = (convolution.convolve(x), *convolution.gradients(grad, x, of_input=True, of_weight=True))
    for one, other in zip(computed, by_autograd(x, weight, grad, 1, 1, 1), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("piece_bytes", [1, 2**30])
def test_convolution_theorem_in_pieces(piece_bytes, monkeypatch):
    monkeypatch.setattr(spectral, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(spectral, "PIECE_ROWS", 7)
    x, weight, grad = draw((2, 3, 7, 7), (5, 3, 5, 5), 1)
    convolution = spectral.SpectralConvolution(spectral.Tiling(7, 7, 1, 1, 0), weight)
    computed = (convolution.convolve(x), *convolution.gradients(grad, x, of_input=True, of_weight=True))
    for one, other in zip(computed, by_autograd(x, weight, grad, 1, 1, 1), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_convolution_theorem_keeps_single_precision():
    """Its error stays within a few units of rounding, also where a mean of 100 is convolved."""
    x, weight, grad = draw((4, 16, 7, 7), (16, 16, 5, 5), 1, torch.float32)
    x += 100
    expected = by_autograd(x.double(), weight.double(), grad.double(), 1, 1, 1)
    convolution = spectral.SpectralConvolution(spectral.Tiling(7, 7, 1, 1, 0), weight)
    computed = (convolution.convolve(x), *convolution.gradients(grad, x, of_input=True, of_weight=True))
    for one, other in zip(computed, expected, strict=True):
        assert (one - other).abs().max() < 3e-6 * other.abs().max()


def test_products_of_the_convolution_theorem():
    """One for a real frequency, three for a pair of conjugate ones: 1 + 3 * 40 of 9 x 9, 4 + 3 * 30 of 8 x 8."""
    whole = spectral.Tiling(7, 7, 1, 1, 0)
    assert len(spectral._matrices(whole, 5, torch.float64)[0]) == 121
    assert len(spectral._matrices(whole, 3, torch.float64)[0]) == 94


def test_convolution_theorem_is_left_to_large_products_of_exact_types():
    weight = torch.empty(128, 128, 5, 5)
    head = torch.empty(64, 128, 7, 7)
    assert dense._tiling(head, weight, 1, 1) == spectral.Tiling(7, 7, 1, 1, 0)
    wide = torch.empty(128, 256, 7, 7), torch.empty(256, 256, 5, 5)
    assert dense._tiling(*wide, 1, 2) == spectral.Tiling(4, 4, 1, 1, 0)
    assert dense._tiling(head, weight, 1, 3) is None  # of 35 products a direction 18 are with pixels over the edge
    assert dense._tiling(head, weight, 2, 1) is None
    assert dense._tiling(head.bfloat16(), weight.bfloat16(), 1, 1) is None
    assert dense._tiling(head[:1], weight, 1, 1) is None  # one map does not pay for transforming the kernels


@pytest.mark.parametrize("dilation", [2, 3])
def test_subsampled_maps_go_back_in_place(dilation):
    x, _, _ = draw((2, 3, 7, 11), (1, 3, 1, 1), 1)
    parts = layout.space_to_batch(x, dilation)
    assert parts.shape[0] == 2 * dilation**2
    assert torch.equal(parts[1, :, 0, 0], x[0, :, 0, 1])
    assert torch.equal(layout.batch_to_space(parts, dilation, 7, 11), x)
