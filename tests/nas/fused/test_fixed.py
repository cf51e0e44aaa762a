"""Blocks exchanged for modules that compute them fused: the same parameters, by the same names."""

import copy
import gc
import weakref

import pytest
import torch
from nni.mutable import label_scope
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn
from torch.func import functional_call

from hitdet_nni.nas.fused import fuse_fixed_blocks, mixed_layer
from hitdet_nni.nas.fused.fixed import FusedBlock
from hitdet_nni.nas.mixed import forget_mixtures, set_activations
from hitdet_nni.nas.strategy import ColumnSparseDARTS
from hitdet_nni.operators.registry import build_operator

NAMES = ["ir_k3_d1_e3", "sep_k3_d2", "conv_k3_d1"]


@pytest.mark.parametrize("name", NAMES)
def test_names_values_and_gradients_are_the_block_s(name):
    torch.manual_seed(0)
    plain = nn.Sequential(build_operator(name, 6, 6, 1)).double()
    net = copy.deepcopy(plain)
    block, tensors = net[0], dict(net.state_dict(keep_vars=True))
    fuse_fixed_blocks(net, "fused-low", nn.ModuleDict)
    assert type(net[0]) is FusedBlock
    assert {key: id(tensor) for key, tensor in net.state_dict(keep_vars=True).items()} == {
        key: id(tensor) for key, tensor in tensors.items()
    }
    for key, tensor in tensors.items():
        path, _, attribute = key.rpartition(".")
        assert getattr(net.get_submodule(path), attribute) is tensor
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    found = []
    for each in (plain, net):
        given = x.clone().requires_grad_()
        y = each(given)
        y.square().sum().backward()
        found.append([y, given.grad, *(parameter.grad for parameter in each.parameters()), *each.buffers()])
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    replaced = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    torch.testing.assert_close(functional_call(net, replaced, (x,)), functional_call(plain, replaced, (x,)))
    fuse_fixed_blocks(net.eval(), None, nn.ModuleDict)
    assert net[0] is block
    assert not block.training


class Neck(ModelSpace):
    """A searched layer and a fixed one."""

    def __init__(self):
        super().__init__()
        with label_scope("neck"):
            self.searched = LayerChoice({name: build_operator(name, 6, 6, 1) for name in NAMES}, label="l01")
        self.fixed = build_operator("sep_k3_d1", 6, 6, 1)

    def forward(self, x):
        return self.fixed(self.searched(x))


def test_what_mixtures_hold_is_given_back():
    space = Neck()
    ColumnSparseDARTS().mutate_model(space)
    set_activations(space, "fused-low")
    space(torch.randn(1, 6, 5, 5))
    made = [weakref.ref(mixed_layer._MIXTURES[space.searched][2]), weakref.ref(space.fixed._mixture)]
    forget_mixtures(space)
    gc.collect()
    assert [mixture() for mixture in made] == [None, None]
    space(torch.randn(1, 6, 5, 5))


def test_a_child_by_the_name_of_an_attribute_is_refused():
    block = nn.Module()
    block.add_module("activations", nn.ReLU())
    with pytest.raises(KeyError, match="activations"):
        FusedBlock(block, "fused-low")
