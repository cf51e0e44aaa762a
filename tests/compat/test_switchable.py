import pytest
import torch
import torch.nn.functional as F
from mmcv import ops
from mmdet.registry import MODELS
from references import mmcv_python
from torch import nn


def both(**options):
    layers = []
    source = mmcv_python("saconv").SAConv2d
    for make in (source, lambda **given: MODELS.build(given | {"type": "SAC"})):
        torch.manual_seed(3)
        layers.append(make(in_channels=4, out_channels=6, kernel_size=3, **options).double())
    return layers


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"padding": 1, "use_deform": True, "stride": 2, "bias": False},
        {"padding": 2, "dilation": 2, "groups": 2},
        {"padding": 1, "use_deform": True, "groups": 2},
    ],
)
def test_sac_equals_mmcvs(options):
    theirs, ours = both(**options)
    assert type(ours) is ops.SAConv2d
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    x = torch.randn(2, 4, 6, 7, dtype=torch.double)
    torch.testing.assert_close(ours(x), theirs(x))
    for tensor, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        nn.init.normal_(tensor, std=0.3)
        other.copy_(tensor)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("use_deform", [False, True])
def test_sac_starts_as_a_convolution_of_standardised_weights(use_deform):
    layer = ops.SAConv2d(2, 3, 3, padding=1, use_deform=use_deform)
    weight = layer.weight.detach().flatten(1)
    weight = (weight - weight.mean(dim=1, keepdim=True)) / (weight.var(dim=1, keepdim=True) + 1e-5).sqrt()
    x = torch.randn(1, 2, 5, 5)
    torch.testing.assert_close(layer(x), F.conv2d(x, weight.view_as(layer.weight), padding=1))


def test_sac_learns_what_it_adds():
    layer = ops.SAConv2d(2, 3, 3, padding=1, bias=False, use_deform=True)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    layer(torch.randn(1, 2, 5, 5)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


def test_sac_loads_the_weights_of_a_plain_convolution():
    plain, layer = nn.Conv2d(2, 3, 3, padding=1), ops.SAConv2d(2, 3, 3, padding=1)
    missing = layer.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert "weight_gamma" not in missing
    x = torch.randn(1, 2, 5, 5)
    expected = F.conv2d(x, plain.weight, padding=1)  # mmcv's layer does not add its bias
    torch.testing.assert_close(layer(x), expected)
