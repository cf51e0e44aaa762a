import importlib.util
import itertools

import mmdet.models  # noqa: F401  registers NASFPN
import pytest
import torch
from mmcv import ops
from mmdet.registry import MODELS
from references import mmcv_source


@pytest.fixture(scope="module")
def mmcv_cells():
    """mmcv's own merge cells: they are plain Python."""
    spec = importlib.util.spec_from_file_location("mmcv.reference.merge_cells", mmcv_source("merge_cells"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("cell", ["SumCell", "ConcatCell", "GlobalPoolingCell"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"with_out_conv": False},
        {
            "with_input1_conv": True,
            "with_input2_conv": True,
            "out_norm_cfg": {"type": "BN"},
            "upsample_mode": "bilinear",
        },
        {
            "with_input1_conv": True,
            "input_norm_cfg": {"type": "GN", "num_groups": 2},
            "out_norm_cfg": {"type": "GN", "num_groups": 2},
            "out_conv_order": ("conv", "norm", "act"),
        },
        {"with_input2_conv": True, "input_conv_cfg": {"type": "ConvWS"}, "out_conv_cfg": {"kernel_size": 1}},
    ],
)
def test_merge_cells_equal_mmcvs(mmcv_cells, cell, options):
    theirs, ours = (getattr(module, cell)(4, 4, **options).eval() for module in (mmcv_cells, ops))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    shapes = [(8, 8), (4, 4), (7, 5), (3, 8), (10, 2)]
    for first, second, size in itertools.product(shapes, shapes, [None, (4, 4), (5, 3), (9, 9)]):
        x1, x2 = torch.randn(1, 4, *first), torch.randn(1, 4, *second)
        torch.testing.assert_close(ours(x1, x2, out_size=size), theirs(x1, x2, out_size=size))


def test_merge_cells_by_hand():
    x1, x2 = torch.randn(1, 2, 2, 2), torch.randn(1, 2, 4, 4)
    big = x1.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(ops.SumCell(2, 2, with_out_conv=False)(x1, x2), big + x2)
    gate = x2.mean(dim=(2, 3), keepdim=True).sigmoid()
    torch.testing.assert_close(ops.GlobalPoolingCell(with_out_conv=False)(x1, x2), x2 + gate * big)
    torch.testing.assert_close(ops.ConcatCell(2, 2, with_out_conv=False)(x1, x2), torch.cat([big, x2], dim=1))
    for cell, fused in ((ops.SumCell, 2), (ops.ConcatCell, 4), (ops.GlobalPoolingCell, 2)):
        shapes = {name: tuple(parameter.shape) for name, parameter in cell(2, 3).named_parameters()}
        assert shapes == {"out_conv.conv.weight": (3, fused, 3, 3), "out_conv.conv.bias": (3,)}
        assert cell(2, 3)(x1, x2).shape == (1, 3, 4, 4)
    with pytest.raises(ValueError, match="upsample_mode='area'; allowed: nearest, bilinear"):
        ops.SumCell(2, 2, upsample_mode="area")


def test_nas_fpn_is_built_and_trained():
    neck = MODELS.build(
        {"type": "NASFPN", "in_channels": [4, 8, 16], "out_channels": 8, "num_outs": 5, "stack_times": 2}
    )
    levels = neck([torch.randn(1, c, s, s) for c, s in ((4, 32), (8, 16), (16, 8))])
    assert [tuple(level.shape) for level in levels] == [(1, 8, s, s) for s in (32, 16, 8, 4, 2)]
    sum(level.square().sum() for level in levels).backward()
    assert all(p.grad.abs().sum() > 0 for p in neck.parameters())
