import pytest
import torch
import torch.nn.functional as F
from mmcv import ops


@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), ((1, 5), (0, 2)), (1, 0), (3, 2)])
def test_masked_conv_is_the_convolution_where_the_mask_is_positive(kernel, padding):
    layer = ops.MaskedConv2d(3, 4, kernel, padding=padding).double()
    x, mask = torch.randn(1, 3, 5, 6, dtype=torch.double), torch.rand(1, 5, 6) - 0.4
    dense = F.conv2d(x, layer.weight, layer.bias, padding=padding)
    kept = F.pad(mask > 0, (0, dense.size(3) - 6, 0, dense.size(2) - 5))
    torch.testing.assert_close(layer(x, mask), dense * kept)
    torch.testing.assert_close(layer(x, mask > 0), dense * kept)
    torch.testing.assert_close(layer(x), dense)
    torch.testing.assert_close(ops.masked_conv2d(x, mask, layer.weight, layer.bias, padding), dense * kept)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)  # not contiguous
    torch.testing.assert_close(layer(turned, mask), dense * kept)
    assert not layer(x, torch.zeros(1, 5, 6)).any()


def test_masked_conv_has_gradients():
    x = torch.randn(1, 2, 3, 4, dtype=torch.double, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.double, requires_grad=True)
    bias, mask = torch.randn(2, dtype=torch.double, requires_grad=True), torch.rand(1, 3, 4) > 0.5
    assert torch.autograd.gradcheck(lambda x, *rest: ops.masked_conv2d(x, mask, *rest, 1), (x, weight, bias))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, m, w: ops.masked_conv2d(x, m, w, None, 1, 2), "stride=2; allowed: 1"),
        (lambda x, m, w: ops.masked_conv2d(x, m[:, 1:], w, None, 1), r"mask \(1, 4, 5\).*allowed: one image, a mask"),
        (lambda x, m, w: ops.masked_conv2d(x.expand(2, -1, -1, -1), m, w, None, 1), r"features \(2, 2, 5, 5\)"),
        (lambda x, m, w: ops.masked_conv2d(x, m, w[:, :1], None, 1), "as many input channels"),
        (lambda x, m, w: ops.masked_conv2d(x, m, w, None), "positions outside the output of 3 x 3 that padding=0"),
        (lambda x, m, w: ops.MaskedConv2d(2, 2, 3, padding=2, dilation=2)(x, m), r"dilation=\(2, 2\), groups=1"),
    ],
)
def test_masked_conv_refuses_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 2, 5, 5), torch.ones(1, 5, 5), torch.zeros(2, 2, 3, 3))
