import pytest
import torch
from mmcv import ops
from references import mmcv_python


def plain_corner_pool(x, mode):
    """The largest value from each position to the edge that its mode starts at."""
    height, width = x.shape[2:]
    pooled = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            rows = {"bottom": slice(0, i + 1), "top": slice(i, height)}.get(mode, slice(i, i + 1))
            columns = {"right": slice(0, j + 1), "left": slice(j, width)}.get(mode, slice(j, j + 1))
            pooled[:, :, i, j] = x[:, :, rows, columns].amax(dim=(2, 3))
    return pooled


@pytest.mark.parametrize("mode", ["bottom", "left", "right", "top"])
def test_corner_pool_takes_the_largest_value_up_to_an_edge(mode):
    x = torch.randn(2, 3, 4, 5, dtype=torch.double, requires_grad=True)
    assert torch.equal(ops.CornerPool(mode)(x), plain_corner_pool(x, mode))
    assert torch.equal(ops.CornerPool(mode)(x), mmcv_python("corner_pool").CornerPool(mode)(x))
    assert torch.autograd.gradcheck(ops.CornerPool(mode), x)
    turned = x.detach().transpose(2, 3)  # not contiguous
    assert torch.equal(ops.CornerPool(mode)(turned), plain_corner_pool(turned, mode))
    assert ops.CornerPool(mode)(x[:0]).shape == (0, 3, 4, 5)


def test_corner_pool_refuses_another_mode():
    with pytest.raises(ValueError, match="mode='middle'; allowed: bottom, left, right, top"):
        ops.CornerPool("middle")
