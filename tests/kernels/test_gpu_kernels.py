"""Triton's programs against ATen in double precision, run by Triton's interpreter: no GPU is needed.

Where there is one, the programs run on it instead.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from hitdet_nni.kernels.gpu import depthwise, launch, mixture, normalization
from hitdet_nni.kernels.gpu.launch import Block
from hitdet_nni.kernels.gpu.moments import Moments

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KERNELS = ((3, 1), (3, 2), (3, 3), (5, 1), (5, 2), (5, 3), (7, 1))
"""Kernel size and dilation of all depthwise operators."""
MAPS = {"small": (2, 7, 7, 10), "large": (1, 9, 8, 10), "several": (2, 11, 10, 24)}
"""N, H, W, C: taken flat; cut into rectangles; the same with several blocks of channels."""
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
EPS = 1e-5

pytestmark = pytest.mark.device


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several tiles and parts of the little maps, and channels that fill no block."""
    blocks = {
        **dict.fromkeys(("forward", "grad_x"), Block(32, 16, 4, columns=2, rows=4)),
        "grad_weights": Block(32, 16, 4, columns=4, rows=4),
        **dict.fromkeys(("columns", "mixture"), Block(16, 16, 4)),
    }
    monkeypatch.setattr(launch, "DEFAULTS", blocks)
    monkeypatch.setattr(launch, "tuned", dict)
    monkeypatch.setattr(depthwise, "PROGRAMS", 6)
    monkeypatch.setattr(depthwise, "FLAT_PIXELS", 49)
    launch.choose_block.cache_clear()
    yield
    launch.choose_block.cache_clear()


def as_matrix(x):
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).contiguous()


def near(found, expected, kind):
    found, expected = (tensor.detach().double().cpu() for tensor in (found, expected))
    scale, error = float(expected.abs().max()), float((found - expected).abs().max())
    assert error <= TOLERANCE[kind] * max(scale, 1.0), (error, scale)


def convolution(maps, kernel_size, stride, dilation, kind, relu):
    """Inputs, rounded to a type, and ATen's convolution and gradients of them in double precision."""
    torch.manual_seed(kernel_size + dilation)
    count, height, width, channels = MAPS[maps]
    geometry = depthwise.Geometry(count, height, width, kernel_size, stride, dilation)
    x = torch.randn(count, channels, height, width, dtype=kind).double().requires_grad_()
    weight = torch.randn(channels, 1, kernel_size, kernel_size, dtype=kind).double().requires_grad_()
    source = x.relu() if relu else x
    y = F.conv2d(source, weight, None, stride, geometry.reach, dilation, channels)
    grad = torch.randn(y.shape, dtype=kind).double()
    y.backward(grad)
    given = [as_matrix(tensor.detach()).to(kind).to(DEVICE) for tensor in (x, grad)]
    taps = depthwise.taps_outermost(weight.detach()).to(kind).to(DEVICE)
    return geometry, given, taps, (as_matrix(y.detach()), as_matrix(x.grad), weight.grad)


def check_convolution(maps, kernel_size, stride, dilation, kind, relu):
    geometry, (x, grad), taps, (y, grad_x, grad_weight) = convolution(maps, kernel_size, stride, dilation, kind, relu)
    found, moments = depthwise.forward(x, taps, geometry, relu=relu, moments=True)
    near(found, y, kind)
    mean, variance, inverse = moments.join(EPS)
    near(mean, y.mean(0), kind)
    near(variance, y.var(0, unbiased=False), kind)
    near(inverse, (y.var(0, unbiased=False) + EPS).rsqrt(), kind)
    plainly, none = depthwise.forward(x, taps, geometry, relu=relu, moments=False)
    assert none is None
    assert torch.equal(plainly, found)
    found, sums = depthwise.grad_x(grad, taps, x if relu else None, geometry, sums=True)
    near(found, grad_x, kind)
    near(sums, found.double().sum(0), torch.float32 if kind != torch.float64 else kind)
    near(depthwise.grad_weights(grad, x, geometry, relu=relu), grad_weight, kind)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel_size", "dilation"), KERNELS)
def test_depthwise_convolution_of_all_operators(kernel_size, dilation, stride, kind):
    maps = "small" if (dilation + stride) % 2 else "large"
    check_convolution(maps, kernel_size, stride, dilation, kind, relu=True)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("kernel_size", "dilation", "maps"), [(3, 1, "small"), (3, 2, "large")])
def test_sixteen_bits_with_sums_in_single_precision(kernel_size, dilation, maps, kind):
    check_convolution(maps, kernel_size, 1, dilation, kind, relu=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    list(itertools.product(MAPS, KERNELS, (1, 2), (torch.float64, torch.float32, torch.bfloat16), (True, False))),
)
def test_every_case(case):
    maps, (kernel_size, dilation), stride, kind, relu = case
    check_convolution(maps, kernel_size, stride, dilation, kind, relu)


def test_a_separable_block_reads_its_input_without_a_relu():
    check_convolution("small", 3, 1, 2, torch.float64, relu=False)


def test_several_blocks_of_channels():
    check_convolution("several", 3, 1, 1, torch.float64, relu=True)


def test_not_a_number_comes_through():
    geometry, (x, grad), taps, _ = convolution("small", 3, 1, 1, torch.float32, True)
    x[0, 0] = grad[0, 1] = float("nan")
    assert depthwise.forward(x, taps, geometry, relu=True, moments=False)[0][:, 0].isnan().any()
    assert depthwise.grad_x(grad, taps, x, geometry, sums=False)[0][:, 1].isnan().any()
    ones = torch.ones(x.shape[1], device=DEVICE)
    assert normalization.normalize_relu(x, ones, ones, ones, ones)[0, 0].isnan()


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_moments_do_not_suffer_from_a_large_mean(kind):
    torch.manual_seed(0)
    matrices = (torch.randn(3, 150, 24, dtype=torch.float64) + 1000).to(kind)
    mean, variance, _ = Moments.of(matrices.to(DEVICE)).join(EPS)
    exact = matrices.double()
    near(mean / 1000, exact.mean(1) / 1000, kind)
    near(variance, exact.var(1, unbiased=False), kind)


@pytest.mark.parametrize("use_batch_stats", [True, False])
def test_normalization_and_its_gradient(use_batch_stats):
    torch.manual_seed(1)
    y = torch.randn(150, 20, dtype=torch.float64, requires_grad=True)
    scale, shift = (torch.randn(20, dtype=torch.float64, requires_grad=True) for _ in range(2))
    running = torch.randn(20, dtype=torch.float64), torch.rand(20, dtype=torch.float64) + 0.5
    if use_batch_stats:
        running = y.detach().mean(0), y.detach().var(0, unbiased=False)
    expected = F.batch_norm(
        y, *(None, None) if use_batch_stats else running, scale, shift, use_batch_stats, 0.0, EPS
    ).relu()
    grad = torch.randn_like(expected)
    expected.backward(grad)
    inverse = (running[1] + EPS).rsqrt()
    given = [tensor.detach().to(DEVICE) for tensor in (y, running[0], inverse, scale, shift)]
    near(normalization.normalize_relu(*given), expected, torch.float64)
    found = grad.clone().to(DEVICE)
    weighted_scale = (2 * scale).detach().to(DEVICE)
    grad_scale, grad_shift = normalization.normalize_relu_gradient_(
        found, *given, weighted_scale, use_batch_stats=use_batch_stats
    )
    near(found, 2 * y.grad, torch.float64)
    near(grad_scale, scale.grad, torch.float64)
    near(grad_shift, shift.grad, torch.float64)
    shared = grad.clone().to(DEVICE)  # as of one process among several
    normalization.normalize_relu_gradient_(
        shared, *given, weighted_scale, use_batch_stats=use_batch_stats, joint_means=lambda sums: [sums / 150]
    )
    near(shared, 2 * y.grad, torch.float64)


def test_weighted_sum_and_its_gradient():
    torch.manual_seed(2)
    matrices = torch.randn(3, 50, 20, dtype=torch.float64, requires_grad=True)
    scales = torch.randn(3, 20, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, dtype=torch.float64)
    use_batch_stats = torch.tensor([[1.0], [1.0], [0.0]], dtype=torch.float64)
    mean, variance = matrices.detach().mean(1), matrices.detach().var(1, unbiased=False)
    inverse = (variance + EPS).rsqrt()
    candidates = []
    for index in range(3):
        if use_batch_stats[index]:
            candidates.append(F.batch_norm(matrices[index], None, None, scales[index], None, True, 0.0, EPS))
        else:
            candidates.append((matrices[index] - mean[index]) * inverse[index] * scales[index])
    expected = sum(weight * candidate for weight, candidate in zip(weights, candidates, strict=True))
    grad = torch.randn_like(expected)
    expected.backward(grad)
    weighted_scales = weights[:, None] * scales.detach()
    given = [tensor.detach().to(DEVICE) for tensor in (matrices, mean, inverse, weighted_scales, use_batch_stats)]
    total = torch.zeros(50, 20, dtype=torch.float64, device=DEVICE)
    mixture.add_weighted_(total, *given[:4])
    near(total, expected.detach(), torch.float64)
    grad_matrices, grad_scales, grad_shift = mixture.last_gradient(grad.to(DEVICE), *given, of_matrices=True)
    near(grad_matrices, matrices.grad, torch.float64)
    near(weights[:, None] * grad_scales.cpu(), scales.grad, torch.float64)
    near(grad_shift, grad.sum(0), torch.float64)
    assert mixture.last_gradient(grad.to(DEVICE), *given, of_matrices=False)[0] is None
    shared = mixture.last_gradient(grad.to(DEVICE), *given, of_matrices=True, joint_means=lambda sums: [sums / 50])
    near(shared[0], matrices.grad, torch.float64)  # as of one process among several
