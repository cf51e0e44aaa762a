import itertools
import math

import pytest
import torch
from mmcv import ops
from mmdet.registry import MODELS
from references import mmcv_python
from torch import nn

SHAPES = torch.tensor([[3, 4], [2, 3], [1, 2]])
VALUES = 3 * 4 + 2 * 3 + 2


def sampled_attention(points=2, queries=3, heads=2, channels=4):
    value = torch.randn(2, VALUES, heads, channels, dtype=torch.double)
    locations = 1.4 * torch.rand(2, queries, heads, len(SHAPES), points, 2, dtype=torch.double) - 0.2
    weights = torch.rand(2, queries, heads, len(SHAPES), points, dtype=torch.double)
    return value, locations, weights


def plain_attention(value, locations, weights):
    batch, queries, heads, levels, points, _ = locations.shape
    out = value.new_zeros(batch, queries, heads, value.size(3))
    starts = [0, 12, 18]
    for n, q, h, level, p in itertools.product(*map(range, (batch, queries, heads, levels, points))):
        height, width = SHAPES[level].tolist()
        x, y = (
            float(share) * size - 0.5 for share, size in zip(locations[n, q, h, level, p], (width, height), strict=True)
        )
        for yy, xx in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
            if 0 <= yy < height and 0 <= xx < width:
                share = weights[n, q, h, level, p] * (1 - abs(y - yy)) * (1 - abs(x - xx))
                out[n, q, h] += share * value[n, starts[level] + yy * width + xx, h]
    return out.flatten(2)


def test_attention_equals_the_plain_loop():
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch

    value, locations, weights = sampled_attention()
    output = multi_scale_deformable_attn_pytorch(value, SHAPES, locations, weights)
    torch.testing.assert_close(output, plain_attention(value, locations, weights))
    starts = torch.tensor([0, 12, 18])
    assert torch.equal(MultiScaleDeformableAttnFunction.apply(value, SHAPES, starts, locations, weights, 64), output)
    theirs = mmcv_python("multi_scale_deform_attn").multi_scale_deformable_attn_pytorch
    torch.testing.assert_close(output, theirs(value, SHAPES, locations, weights))
    turned = value.transpose(0, 1).contiguous().transpose(0, 1)  # not contiguous
    assert torch.equal(multi_scale_deformable_attn_pytorch(turned, SHAPES, locations, weights), output)
    empty = multi_scale_deformable_attn_pytorch(value, SHAPES, locations[:, :0], weights[:, :0])
    assert empty.shape == (2, 0, 8)


def test_attention_in_half_precision_samples_where_it_is_told():
    value, locations, weights = sampled_attention()
    output = ops.multi_scale_deformable_attn_pytorch(value.bfloat16(), SHAPES, locations, weights)
    assert output.dtype == torch.bfloat16
    expected = ops.multi_scale_deformable_attn_pytorch(value.bfloat16().double(), SHAPES, locations, weights)
    assert torch.equal(output, expected.bfloat16())


def test_attention_gradients():
    parts = [part.requires_grad_() for part in sampled_attention(points=1, queries=2, channels=1)]
    function = ops.multi_scale_deformable_attn_pytorch
    assert torch.autograd.gradcheck(lambda value, *rest: function(value, SHAPES, *rest), parts)


OPTIONS = {"embed_dims": 8, "num_heads": 4, "num_levels": 3, "num_points": 2, "dropout": 0.0}


@pytest.mark.parametrize("extra", [{}, {"batch_first": True, "value_proj_ratio": 2.0}])
@pytest.mark.parametrize("reference_size", [2, 4])
def test_attention_layer_equals_mmcvs(extra, reference_size):
    layers = []
    source = mmcv_python("multi_scale_deform_attn").MultiScaleDeformableAttention
    build = (source, lambda **options: MODELS.build(options | {"type": "MultiScaleDeformableAttention"}))
    for make in build:
        torch.manual_seed(3)
        layers.append(make(**OPTIONS, **extra))
    theirs, ours = layers
    assert type(ours) is ops.MultiScaleDeformableAttention
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, msg=name)
    for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        nn.init.normal_(parameter)
        other.data.copy_(parameter.detach())
    batch_first = bool(extra)
    query, value, identity, position = (
        torch.randn(2, count, 8) if batch_first else torch.randn(count, 2, 8) for count in (5, VALUES, 5, 5)
    )
    common = {"reference_points": torch.rand(2, 5, 3, reference_size), "spatial_shapes": SHAPES}
    padding = torch.rand(2, VALUES) > 0.5
    whole = {"value": value, "identity": identity, "query_pos": position, "key_padding_mask": padding}
    for options in ({"value": value}, whole):
        result = ours(query, **options, **common)
        assert result.shape == query.shape
        torch.testing.assert_close(result, theirs(query, **options, **common))
    with pytest.warns(DeprecationWarning, match="residual"):
        old = ours(query, value=value, residual=identity, **common)
    assert torch.equal(old, ours(query, value=value, identity=identity, **common))
    encoder = torch.randn_like(value)  # attends to itself: neither value nor identity given
    common["reference_points"] = torch.rand(2, VALUES, 3, reference_size)
    torch.testing.assert_close(ours(encoder, **common), theirs(encoder, **common))


def test_attention_starts_with_a_direction_for_each_head():
    layer = ops.MultiScaleDeformableAttention(embed_dims=8, num_heads=4, num_levels=1, num_points=3)
    directions = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    expected = directions[:, None, None] * torch.arange(1, 4)[:, None]
    torch.testing.assert_close(layer.sampling_offsets.bias.view(4, 1, 3, 2), expected)
    assert not layer.sampling_offsets.weight.any()
    assert not layer.attention_weights.weight.any()
    assert not layer.value_proj.bias.any()


def test_attention_learns_and_drops():
    layer = ops.MultiScaleDeformableAttention(**OPTIONS | {"dropout": 1.0}, batch_first=True)
    query, value = torch.randn(2, 5, 8), torch.randn(2, VALUES, 8)
    arguments = {"value": value, "reference_points": torch.rand(2, 5, 3, 2), "spatial_shapes": SHAPES}
    assert torch.equal(layer(query, **arguments), query)
    assert not torch.equal(layer.eval()(query, **arguments), query)
    layer(query, **arguments).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


def test_attention_refuses_bad_input():
    with pytest.raises(ValueError, match="num_heads=3; allowed: a divisor of embed_dims=8"):
        ops.MultiScaleDeformableAttention(embed_dims=8, num_heads=3)
    layer = ops.MultiScaleDeformableAttention(**OPTIONS, batch_first=True)
    query, points = torch.randn(1, 2, 8), torch.rand(1, 2, 3, 2)
    with pytest.raises(ValueError, match=r"reference_points \(1, 2, 3, 3\); allowed: .* 2 or 4"):
        layer(query, reference_points=torch.rand(1, 2, 3, 3), spatial_shapes=SHAPES)
    with pytest.raises(ValueError, match=r"spatial_shapes \[\[3, 4\].*; allowed: as many positions as values, 2"):
        layer(query, reference_points=points, spatial_shapes=SHAPES)
    with pytest.raises(ValueError, match="reference_points None"):
        layer(query, spatial_shapes=SHAPES)
