"""A family of operators that the fused layer does not know: searched, shown, and summed as NNI does."""

import json

import pytest
import torch
from test_activation_choice import CPU, VALUES, KilledError, everything, same
from torch import nn

from hitdet_nni import cli
from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.cost.module_cost import parameter_count
from hitdet_nni.data.loaders import search_loaders
from hitdet_nni.engine.checkpoints import CheckpointFolder
from hitdet_nni.errors import InputError
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.nas.activation_choice import FILE, choose_activations
from hitdet_nni.nas.evaluator import detection_loss
from hitdet_nni.nas.fused.fixed import FusedBlock
from hitdet_nni.nas.memory.estimate import estimate_step_memory
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer, describe_fallback, set_activations
from hitdet_nni.nas.step_timing import StepTimer
from hitdet_nni.nas.strategy import ColumnSparseDARTS
from hitdet_nni.nas.supernet import Phase, train_supernet
from hitdet_nni.operators.costs import conv_cost, halved, norm_relu_cost
from hitdet_nni.operators.family import Family
from hitdet_nni.operators.registry import FAMILIES, build_operator, operator_cost, operator_name, parse_operator
from hitdet_nni.pipeline.search import search
from hitdet_nni.report.operator_text import block_text, family_of, family_titles
from hitdet_nni.runs.run_directory import RunDirectory

SPACE = {
    "backbone": ["ir_k3_d1_e1", "pool_k3"],
    "neck": ["ir_k3_d1_e1", "sep_k3_d1"],
    "head": ["pool_k5", "sep_k3_d1"],
}
PLAIN = ("backbone", "head")
"""Components whose layers have a candidate of the new family."""


def build(operator, in_channels, out_channels, stride):
    pooling = nn.AvgPool2d(operator.kernel_size, stride, operator.kernel_size // 2)
    return nn.Sequential(pooling, nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))


def cost(operator, in_channels, out_channels, stride, size, convention):
    output = halved(size, stride)
    convolution = conv_cost(in_channels, out_channels, 1, output, convention)
    return convolution + norm_relu_cost(out_channels, output, convention, relu=False)


@pytest.fixture(autouse=True)
def _pooling(monkeypatch):
    monkeypatch.setitem(FAMILIES, "pool", Family("pool", "pool_k{kernel_size}", "average pooling (POOL)", build, cost))


@pytest.fixture(scope="module")
def settings():
    return load_settings("tiny", VALUES)


def supernet(settings, space=SPACE):
    torch.manual_seed(0)
    made = HitDetectorSpace(settings.skeleton, space, 10)
    ColumnSparseDARTS().mutate_model(made)
    return made


def layers_of(space):
    """The mixed layers of each component."""
    layers = [module for module in space.modules() if isinstance(module, ColumnSparseMixedLayer)]
    found = {component: [] for component in COMPONENTS}
    for layer in layers:
        found[layer.label.partition("/")[0]].append(layer)
    return found


def test_names_costs_and_titles_are_the_row_s(refused):
    operator = parse_operator("pool_k5")
    assert (operator.family, operator.kernel_size, operator_name(operator)) == ("pool", 5, "pool_k5")
    for in_channels, out_channels, stride in ((4, 8, 2), (6, 6, 1)):
        block = build_operator("pool_k3", in_channels, out_channels, stride)
        assert operator_cost(operator, in_channels, out_channels, stride, (8, 8), "macs").params == parameter_count(
            block
        )
    assert block_text(operator) == "POOL 5×5"
    assert family_of("pool_k5") == "pool"
    assert family_titles()["pool"] == "average pooling (POOL)"
    with refused("'pool_k4'", "pool_k{odd}", "sep_k{odd}_d{dilation}"):
        parse_operator("pool_k4")


@pytest.mark.parametrize("activations", ["fused", "fused-low", "fused-min"])
def test_a_fused_mode_that_is_set_is_refused(settings, activations, refused):
    space = supernet(settings)
    set_activations(space, "checkpoint")
    for mode in (activations, {**dict.fromkeys(COMPONENTS, "all"), "head": activations}):
        with refused("supernet.activations", f"'{activations}'", "pool_k", "auto, all, checkpoint"):
            set_activations(space, mode)
    set_activations(space, {**dict.fromkeys(COMPONENTS, "all"), "neck": activations})
    assert [{layer.activations for layer in layers} for layers in layers_of(space).values()] == [
        {"all"},
        {activations},
        {"all"},
    ]
    assert describe_fallback(space) is None


def test_a_component_that_is_fixed_at_it_computes_itself(settings):
    space = supernet(settings, {**SPACE, "backbone": ["pool_k3"], "head": ["sep_k3_d1"]})
    set_activations(space, "fused-low")
    assert {layer.activations for layer in layers_of(space)["neck"]} == {"fused-low"}
    assert any(isinstance(module, FusedBlock) for module in space.modules())
    assert describe_fallback(space) is None


def step(space, batch):
    """Loss and gradients of a step, and the outputs of the backbone's mixed layers."""
    outputs = []
    hooks = [
        layer.register_forward_hook(lambda module, given, output: outputs.append(output.detach()))
        for layer in layers_of(space)["backbone"]
    ]
    torch.manual_seed(1)
    loss = detection_loss(space.detector, batch)
    loss.backward()
    for hook in hooks:
        hook.remove()
    return loss.detach(), {name: parameter.grad for name, parameter in space.named_parameters()}, outputs


def test_auto_sums_its_layers_one_by_one_and_fuses_the_others(settings, tiny_data, caplog, tmp_path):
    caplog.set_level("INFO")
    loaders = search_loaders(tiny_data, settings.data, settings.skeleton, 0)[:2]
    found = []
    for mode in ("auto", "all"):
        space = supernet(settings).train()
        chosen = load_settings("tiny", {**VALUES, "supernet.activations": mode})
        modes = choose_activations(space, chosen, settings.skeleton, loaders, 9, "search", tmp_path)
        assert modes == dict.fromkeys(COMPONENTS, "fused-low" if mode == "auto" else "all")
        savings = {component: {layer.activations for layer in layers} for component, layers in layers_of(space).items()}
        assert savings == {component: {"all" if component in PLAIN else modes[component]} for component in COMPONENTS}
        batch = next(iter(loaders[0]))
        found.append(step(space, batch))
    (loss, gradients, outputs), (stock_loss, stock_gradients, stock_outputs) = found
    assert len(outputs) == len(stock_outputs) > 1
    assert all(torch.equal(one, two) for one, two in zip(outputs, stock_outputs, strict=True))
    torch.testing.assert_close(loss, stock_loss, rtol=1e-4, atol=0)
    candidates = [name for name in gradients if "_k3" in name or "_k5" in name or name.endswith("_arch_alpha")]
    assert any("pool" in name for name in candidates)
    for each in (gradients, stock_gradients):
        assert [name for name in candidates if not each[name].abs().sum() > 0] == []
    lines = [record.message for record in caplog.records if "all in" in record.message]
    labels = [layer.label for component in PLAIN for layer in layers_of(space)[component]]
    assert lines == [
        f"search: supernet.activations: all in {', '.join(labels)}: "
        "the fused mixed layer cannot compute pool_k3, pool_k5"
    ]
    assert json.loads((tmp_path / FILE).read_text())["modes"] == dict.fromkeys(COMPONENTS, "fused-low")


@pytest.mark.parametrize("trained", ["weights", "alphas"])
def test_its_layers_are_those_of_stock_to_the_bit(settings, trained):
    results = []
    for mode in ("auto", "all"):
        layer = layers_of(supernet(settings))["backbone"][0]
        for parameter in layer.parameters():
            parameter.requires_grad_((parameter is layer._arch_alpha) == (trained == "alphas"))
        set_activations(layer, mode)
        channels = layer["ir_k3_d1_e1"].expand.conv.in_channels
        x = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(5)).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        gradients = [parameter.grad for parameter in layer.parameters() if parameter.requires_grad]
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
        results.append([y, x.grad, *gradients, *layer.buffers()])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_a_layer_stays_stock_when_the_candidate_is_removed(settings):
    space = supernet(settings)
    layer = layers_of(space)["head"][0]
    layer.prune_to(["sep_k3_d1"])
    set_activations(space, "auto")
    assert layer.activations == "all"


def test_steps_are_timed_and_memory_is_estimated_by_the_modes_of_each_layer(settings, tiny_data):
    space = supernet(settings)
    loaders = search_loaders(tiny_data, settings.data, settings.skeleton, 0)[:2]
    before = everything(space, loaders)
    with StepTimer(space, settings, settings.skeleton, loaders, CPU) as timer:
        assert timer(dict.fromkeys(COMPONENTS, "fused-low")).seconds > 0
        assert {layer.activations for layer in layers_of(space)["neck"]} == {"fused-low"}
        assert {layer.activations for layer in layers_of(space)["head"]} == {"all"}
    assert same(everything(space, loaders), before)

    def activations(modes, **fallback):
        set_activations(space, modes, **fallback)
        return estimate_step_memory(space, settings, settings.skeleton, CPU).activations

    stock, checkpoint = (activations(mode) for mode in ("all", "checkpoint"))
    # The backbone also has blocks that are not searched, which a fused mode computes by their own forward pass here.
    mixed = activations(dict.fromkeys(COMPONENTS, "fused-low"), fallback=True)
    assert mixed == activations({**dict.fromkeys(COMPONENTS, "all"), "neck": "fused-low"})
    assert checkpoint < mixed < stock


def train(settings, data, folder, on_epoch=lambda record: None):
    phase = Phase(skeleton=settings.skeleton, space=SPACE, epochs=2, warmup_epochs=1, flops_weight=1.0)
    return train_supernet(phase, settings, data, 0, on_epoch, folder)


def test_a_resumed_training_equals_one_that_was_not_stopped(settings, tiny_data, tmp_path):
    whole = train(settings, tiny_data, CheckpointFolder(tmp_path / "whole"))

    def kill(record):
        raise KilledError

    folder = CheckpointFolder(tmp_path / "killed")
    with pytest.raises(KilledError):
        train(settings, tiny_data, folder, kill)
    assert folder.files()
    resumed = train(settings, tiny_data, folder)
    assert same(dict(resumed.module.state_dict()), dict(whole.module.state_dict()))
    assert resumed.activations == whole.activations == dict.fromkeys(COMPONENTS, "fused-low")


def test_a_run_and_its_page(settings, tiny_data, tmp_path):
    space = {**SPACE, "backbone": ["pool_k3", "pool_k5"]}
    run = RunDirectory(tmp_path / "run")
    with run.held():
        run.open(settings)
        found = search(run, space, settings, tiny_data, lambda stage, record: None)
    assert any(name.startswith("pool_k") for name in found.sample.values())
    assert cli.main(["profile", str(run.path)]) == 0
    assert cli.main(["report", str(run.path)]) == 0
    page = next(run.path.glob("*.html")).read_text()
    assert "average pooling (POOL)" in page
    assert "block fam-pool" in page


def test_without_the_row_the_name_is_refused(monkeypatch):
    monkeypatch.delitem(FAMILIES, "pool")
    with pytest.raises(InputError):
        parse_operator("pool_k3")
