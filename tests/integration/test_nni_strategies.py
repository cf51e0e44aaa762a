"""NNI's own strategies on the detector space: each run through NasExperiment, on the embedded digits."""

from __future__ import annotations

import atexit
import json
import os
import random
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nni
import pytest
import pytorch_lightning as pl
import torch
from nni.mutable import frozen_context, label_scope
from nni.nas import strategy as strategies
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.nn.pytorch import LayerChoice
from nni.nas.oneshot.pytorch import sampling
from nni.nas.oneshot.pytorch.profiler import ExpectationProfilerPenalty
from nni.nas.oneshot.pytorch.supermodule.differentiable import DifferentiableMixedLayer, GumbelSoftmax
from nni.nas.oneshot.pytorch.supermodule.proxyless import ProxylessMixedLayer
from nni.nas.profiler import Profiler
from nni.nas.space import RawFormatModelSpace, SimplifiedModelSpace
from torch import nn

from hitdet_nni import HitDetectorSpace
from hitdet_nni.config.architecture import check_sample, load_architecture
from hitdet_nni.config.budget_settings import BudgetSettings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.data.loaders import search_loaders
from hitdet_nni.engine import distributed
from hitdet_nni.engine.optimizers import WeightOptimizer
from hitdet_nni.errors import NonFiniteLossError
from hitdet_nni.integration import multi_trial
from hitdet_nni.integration.launcher.nni_manager import node_options
from hitdet_nni.integration.multi_trial import InheritedWeights, retrain_sample
from hitdet_nni.integration.nni_results import complete_sample, describe_sample, strongest_sample
from hitdet_nni.model.detector import build_detector
from hitdet_nni.nas import evaluator, one_shot
from hitdet_nni.nas.budget import Budget
from hitdet_nni.nas.evaluator import detection_evaluator
from hitdet_nni.nas.one_shot import ControllerENAS, SeededRandomOneShot, refuse_unsupported
from hitdet_nni.nas.strategy import ColumnSparseDARTS
from hitdet_nni.operators.registry import OPERATORS, build_operator

PAGE = (Path(__file__).parents[2] / "docs" / "nni_strategies.md").read_text()
SPACE = {"backbone": ["ir_k3_d1_e1", "sep_k3_d1"], "neck": ["sep_k3_d1", "sep_k5_d1"], "head": ["conv_k3_d1"]}
FIXED = {"head/l01": "conv_k3_d1", "head/l02": "conv_k3_d1"}
LITTLE = {"data.train": 16, "data.val": 4, "retrain.epochs": 1}


@pytest.fixture
def space(tiny_settings, tiny_data):
    """Build a space of the tiny skeleton, always with the same weights."""

    def build(operators=SPACE):
        pl.seed_everything(0, verbose=False)
        return HitDetectorSpace(tiny_settings.skeleton, operators, len(tiny_data.classes))

    return build


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run an experiment; NNI's files go below a temporary home, and its hooks at exit are taken back."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    started = []
    start = NasExperiment.start

    def noted(experiment, *args, **kwargs):
        started.append(experiment)
        experiment.config.experiment_working_directory = str(tmp_path)
        start(experiment, *args, **kwargs)

    monkeypatch.setattr(NasExperiment, "start", noted)

    def call(*args):
        experiment = NasExperiment(*args)
        experiment.run()
        return experiment

    yield call
    for experiment in started:
        atexit.unregister(experiment.stop)  # it would log to a stream that pytest has closed
        experiment.stop()


@pytest.fixture
def one_shot_evaluator(tiny_settings, tiny_data):
    def build(epochs=1):
        loaders = search_loaders(tiny_data, tiny_settings.data, tiny_settings.skeleton, tiny_settings.seed)
        return detection_evaluator(*loaders[:2], WeightOptimizer(lr=0.02), epochs=epochs)

    return build


def multi_trial_config(models, model_format="simplified"):
    return NasExperimentConfig("sequential", model_format, "local", max_trial_number=models)


# ---------------------------------------------------------------------------------------------- one-shot strategies


class Watched:
    """Notes what happens within every detection loss: candidates called, candidates drawn, temperatures."""

    def __init__(self, space, monkeypatch):
        self.steps, self.called, self.space = [], {}, space
        for module in space.modules():
            if isinstance(module, LayerChoice):
                for name in module.names:
                    module[name].register_forward_hook(partial(self._note, module.label, name))
        loss = evaluator.detection_loss

        def watched(detector, batch):
            self.called = {}
            value = loss(detector, batch)
            parts = list(space.modules())
            self.steps.append(
                SimpleNamespace(
                    training=detector.training,
                    gradients=torch.is_grad_enabled(),
                    called={label: list(names) for label, names in self.called.items()},
                    drawn={part.label: part._sampled for part in parts if hasattr(part, "_sampled")},
                    temperatures={part.tau for part in parts if isinstance(part, GumbelSoftmax)},
                    alphas=[part._arch_alpha.detach().clone() for part in parts if hasattr(part, "_arch_alpha")],
                    loss=float(value.detach()),
                )
            )
            return value

        monkeypatch.setattr(evaluator, "detection_loss", watched)

    def _note(self, label, name, *_):
        self.called.setdefault(label, []).append(name)

    @property
    def training(self):
        return [step for step in self.steps if step.training]


def assert_whole_sample(sample, space):
    check_sample(sample, space.skeleton, "test")
    assert all(sample[label] in SPACE[label.split("/")[0]] for label in sample)
    assert FIXED.items() <= sample.items()


def weights_of(space):
    return {name: value.detach().clone() for name, value in space.named_parameters() if "_arch_alpha" not in name}


def test_random_one_shot_trains_the_path_drawn_and_no_other(space, one_shot_evaluator, run, monkeypatch):
    model_space = space()
    before = weights_of(model_space)
    watched = Watched(model_space, monkeypatch)
    lightning = one_shot_evaluator()
    lightning.trainer.gradient_clip_val = 35.0
    clip, norms = torch.nn.utils.clip_grad_norm_, []
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda parameters, norm: (norms.append(norm), clip(parameters, norm))
    )
    experiment = run(model_space, lightning, SeededRandomOneShot())
    assert len(watched.training) == 2
    assert norms == [35.0, 35.0]
    for step in watched.steps:
        assert step.called == {label: [name] for label, name in step.drawn.items()}
    assert watched.steps[0].drawn != watched.steps[1].drawn
    trained = {(label, name) for step in watched.training for label, name in step.drawn.items()}
    layers = {module.label: module for module in model_space.modules() if isinstance(module, LayerChoice)}
    after = weights_of(model_space)
    for label, layer in layers.items():
        for name in layer.names:
            part = next(key for key, module in model_space.named_modules() if module is layer[name])
            moved = any(not torch.equal(before[key], after[key]) for key in before if key.startswith(f"{part}."))
            assert moved == ((label, name) in trained)
    judged = [step for step in watched.steps if not step.training]
    assert not any(step.gradients for step in judged)
    loss = float(lightning.trainer.callback_metrics["val_loss"])
    assert loss == pytest.approx(sum(step.loss for step in judged) / len(judged), rel=1e-5)
    assert_whole_sample(complete_sample(model_space, experiment.export_top_models(formatter="dict")[0]), model_space)


@pytest.mark.parametrize(
    ("kind", "options", "epochs"),
    [
        (strategies.DARTS, {}, 1),
        (strategies.GumbelDARTS, {"temperature": (1.0, 0.5)}, 2),
        (strategies.Proxyless, {}, 1),
    ],
    ids=["DARTS", "GumbelDARTS", "Proxyless"],
)
def test_differentiable_strategies(kind, options, epochs, space, one_shot_evaluator, run, monkeypatch):
    """Alphas and weights move in turn, in the right steps; what is computed is what the strategy says."""
    model_space = space()
    before = weights_of(model_space)
    watched = Watched(model_space, monkeypatch)
    strategy = kind(arc_learning_rate=0.1, gradient_clip_val=35.0, **options)
    experiment = run(model_space, one_shot_evaluator(epochs), strategy)
    assert len(watched.steps) == 4 * epochs  # alphas and weights on two batches each
    for step in watched.steps:
        if kind is strategies.Proxyless:
            assert step.called == {label: [name] for label, name in step.drawn.items()}
        else:
            assert step.called == {label: SPACE[label.split("/")[0]] for label in step.called}
        assert len(step.called) == 12
    first, second, third = (torch.stack(step.alphas) for step in watched.steps[:3])
    moved = (second - first).abs()
    assert ((moved > 0.05) & (moved < 0.1001)).all()  # Adam's first step is the rate, but for tiny gradients
    assert torch.equal(second, third)  # the weights' phase leaves them alone
    after = weights_of(model_space)
    assert not torch.equal(before["detector.backbone.stem.0.weight"], after["detector.backbone.stem.0.weight"])
    temperatures = [{1.0}] * 4 + [{0.75}] * 4 if options else [set()] * 4
    assert [step.temperatures for step in watched.steps] == temperatures
    sample = strongest_sample(strategy)
    assert_whole_sample(sample, model_space)
    (exported,) = experiment.export_top_models(formatter="dict")
    assert_whole_sample(complete_sample(model_space, exported), model_space)
    if kind is not strategies.Proxyless:
        assert complete_sample(model_space, exported) == sample


def choice_of(candidates):
    with label_scope("neck"):
        return LayerChoice(candidates, label="l01")


@pytest.mark.parametrize("sampled", [0, 2])
def test_proxyless_gradients(sampled):
    """The alphas' in closed form, over all candidates; the weights' and the input's are the drawn candidate's."""
    torch.manual_seed(0)
    names = ["sep_k3_d1", "ir_k3_d1_e1", "sep_k5_d1"]
    candidates = {name: build_operator(name, 8, 8, 1).eval() for name in names}
    alpha = nn.Parameter(torch.tensor([0.3, -0.2, 0.5]))
    with frozen_context():
        layer = ProxylessMixedLayer.mutate(choice_of(candidates), "", {"neck/l01": alpha}, {})
    x, gradient = torch.randn(2, 8, 9, 9, requires_grad=True), torch.randn(2, 8, 9, 9)
    layer.resample({"neck/l01": names[sampled]})
    (layer(x) * gradient).sum().backward()
    with torch.no_grad():
        scores = torch.stack([(candidates[name](x) * gradient).sum() for name in names])
        p = alpha.softmax(0)
    torch.testing.assert_close(alpha.grad, p * (scores - p @ scores))
    chosen = candidates[names[sampled]]
    (expected,) = torch.autograd.grad((chosen(x) * gradient).sum(), x)
    torch.testing.assert_close(x.grad, expected)
    trained = {name for name in names if any(p.grad is not None for p in candidates[name].parameters())}
    assert trained == {names[sampled]}


@pytest.mark.parametrize("name", OPERATORS)
def test_candidates_leave_their_input_alone(name):
    """Candidates of one layer share it, and Proxyless computes them once more in backward."""
    x = torch.randn(2, 4, 12, 12)
    copy = x.clone()
    build_operator(name, 4, 4, 1)(x)
    assert torch.equal(x, copy)


def test_a_seed_decides_the_paths(space):
    model_space = space({**SPACE, "head": ["conv_k3_d1", "sep_k3_d1"]})
    strategy = SeededRandomOneShot()
    strategy.mutate_model(model_space)
    trained = pl.LightningModule()
    trained.model = model_space
    module = strategy.configure_oneshot_module(trained)
    layers = {layer.label: layer for layer in module.supernet_modules()}
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append([module.resample() for _ in range(200)])
        assert draws[-1][-1] == {label: layer._sampled for label, layer in layers.items()}
    assert draws[0] == draws[1] != draws[2]
    for label, layer in layers.items():
        drawn = [path[label] for path in draws[0]]
        assert all(abs(drawn.count(name) - 100) < 40 for name in layer.names)  # 5.7 standard deviations
    torch.manual_seed(1)
    assert module.export() == draws[0][0]


def test_random_one_shot_draws_within_a_budget(space):
    """A filter on the cost model, as docs/nni_strategies.md has it."""
    model_space = space()
    cost = CostModel(model_space.skeleton, model_space.num_classes)

    def gflops(sample):
        return cost.architecture(complete_sample(model_space, sample))["total"].flops / 1e9

    rng = random.Random(0)
    labels = model_space.simplify()
    free = [gflops({label: rng.choice(SPACE[label.split("/")[0]]) for label in labels}) for _ in range(50)]
    budget = sorted(free)[25]
    strategy = SeededRandomOneShot(filter=lambda sample: gflops(sample) <= budget)
    strategy.mutate_model(model_space)
    module = strategy.configure_oneshot_module(pl.LightningModule())
    module.training_module.model = model_space
    assert all(gflops(module.resample()) <= budget for _ in range(20))


# --------------------------------------------------------------------------------------------------- what is refused


class Constant(Profiler):
    def profile(self, sample):
        return 1.0


def module_of(strategy, model_space):
    """What Lightning would train, not trained."""
    training_module = evaluator.DetectionModule(WeightOptimizer(), 1, evaluator.EpochLosses())
    training_module.set_model(strategy.mutate_model(model_space))
    return strategy.configure_oneshot_module(training_module)


def test_a_penalty_without_gradient_is_refused(space, refused):
    penalty = ExpectationProfilerPenalty(Constant(space()), baseline=1.0)
    with refused("DartsLightningModule", "penalty", "ColumnSparseDARTS has cost"):
        refuse_unsupported(module_of(strategies.DARTS(penalty=penalty), space()))


def test_a_temperature_of_zero_is_refused(space, refused):
    with refused("GumbelDarts", "temperature", "0.0", "positive"):
        refuse_unsupported(module_of(strategies.GumbelDARTS(temperature=0.0), space()))


def test_several_processes_are_refused_but_for_ours(space, refused, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with refused("DartsLightningModule", "2 processes"):
        refuse_unsupported(module_of(strategies.DARTS(), space()))
    refuse_unsupported(module_of(ColumnSparseDARTS(), space()))


def test_a_space_with_nothing_to_search_is_refused(space, one_shot_evaluator, run, refused):
    fixed = {component: names[:1] for component, names in SPACE.items()}
    with refused("RandomSampling", "fixed at one operator"):
        run(space(fixed), one_shot_evaluator(), strategies.RandomOneShot())


def test_the_one_shot_evaluator_refuses_multi_trial_strategies(space, one_shot_evaluator, run, refused):
    with refused("detection_evaluator", "one-shot", "retrain_sample"):
        run(space(), one_shot_evaluator(), strategies.Random(), multi_trial_config(1))


def test_enas_without_its_packages_is_refused(space, one_shot_evaluator, run, refused, monkeypatch):
    monkeypatch.setattr(one_shot, "has_tianshou", False)
    with refused("ENAS", "tianshou==0.4.11", "gym==0.26.2"):
        ControllerENAS()
    monkeypatch.setattr(sampling, "has_tianshou", False)
    with pytest.raises(ImportError, match="ENAS requires tianshou to be installed"):
        run(space(), one_shot_evaluator(), strategies.ENAS())


def test_nni_s_own_enas_is_refused(space, refused, monkeypatch):
    monkeypatch.setattr(sampling, "has_tianshou", True)
    with refused("EnasLightningModule", "ControllerENAS"):
        refuse_unsupported(module_of(strategies.ENAS(), space()))


def test_what_is_not_a_sample_of_the_space_is_refused(space, refused):
    model_space = space()
    exported = {label: SPACE[label.split("/")[0]][1] for label in model_space.simplify()}
    assert complete_sample(model_space, exported) == {**exported, **FIXED}
    with refused("neck/l03", "None", "sep_k5_d1"):
        complete_sample(model_space, {label: name for label, name in exported.items() if label != "neck/l03"})
    with refused("backbone/l01", "sep_k5_d1", "ir_k3_d1_e1"):
        complete_sample(model_space, {**exported, "backbone/l01": "sep_k5_d1"})
    with refused("backbone/l09"):
        complete_sample(model_space, {**exported, "backbone/l09": "sep_k3_d1"})


def test_the_strongest_sample_is_the_argmax(space, refused):
    model_space, strategy = space(), strategies.Proxyless()
    strategy.mutate_model(model_space)
    strategy._mutated_model_space = SimpleNamespace(model_space=model_space)
    for number, layer in enumerate(m for m in model_space.modules() if isinstance(m, DifferentiableMixedLayer)):
        layer._arch_alpha.data = torch.tensor([0.01, 0.0] if number % 2 else [0.0, 0.01])
    expected = {label: SPACE[label.split("/")[0]][i % 2 == 0] for i, label in enumerate(sorted(model_space.simplify()))}
    assert strongest_sample(strategy) == {**expected, **FIXED}
    model = CostModel(model_space.skeleton, model_space.num_classes)
    cheapest = {}
    for layer in model.layers:
        flops = {name: model.layer_cost(layer, name).flops for name in model_space.space[layer.component]}
        cheapest[layer.label] = min(flops, key=flops.get)
    least = Budget(model, model_space.space, BudgetSettings(gflops=model.architecture(cheapest)["total"].flops / 1e9))
    assert strongest_sample(strategy, least) == cheapest != strongest_sample(strategy)
    without = SeededRandomOneShot()
    without._mutated_model_space = SimpleNamespace(model_space=without.mutate_model(space()))
    with refused("RandomOneShot", "no architecture parameters"):
        strongest_sample(without)


def test_description_of_a_sample(space, tiny_settings, tiny_data, refused):
    model_space = space()
    exported = {label: SPACE[label.split("/")[0]][1] for label in model_space.simplify()}
    found = describe_sample("mine", model_space, exported, tiny_settings, tiny_data, "DARTS of NNI")
    assert found.sample == {**exported, **FIXED}
    assert found.provenance.source == "DARTS of NNI"
    assert found.provenance.flops_weight is None
    detector = build_detector(found.skeleton, found.sample, found.num_classes)
    assert sum(p.numel() for p in detector.parameters()) == found.provenance.cost[0].params["total"]
    model_space.num_classes = 3
    with refused("categories", "10", "3"):
        describe_sample("mine", model_space, exported, tiny_settings, tiny_data, "DARTS of NNI")


# --------------------------------------------------------------------------------------------------------------- ENAS


class Controller:
    """In place of NNI's controller, which needs packages of its own: always the same path, and notes."""

    def __init__(self, space):
        self.path = {label: mutable.values[-1] for label, mutable in space.simplify().items()}
        self.rewards, self.updates, self._deterministic_eval = [], [], False

    def next_sample(self):
        return self.path

    def send_reward(self, reward):
        self.rewards.append(reward)

    def update(self, *args, **kwargs):
        if len(args) == 2:  # the policy's; the replay buffer has one, too
            self.updates.append(len(self.rewards))

    def eval(self):
        return self

    train = eval


def test_enas_alternates_weights_and_rewards(space, one_shot_evaluator, run, monkeypatch):
    monkeypatch.setattr(sampling, "has_tianshou", True)
    monkeypatch.setattr(one_shot, "has_tianshou", True)
    made = []

    def set_model(module, model):
        module._generator = module._policy = module._replay_buffer = Controller(model)
        made.append(module._generator)
        module.training_module.set_model(model)

    monkeypatch.setattr(sampling.EnasLightningModule, "set_model", set_model)
    model_space, rates = space(), []
    watched = Watched(model_space, monkeypatch)
    step = torch.optim.SGD.step

    def noted(optimizer, *args, **kwargs):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    update = {"update_times": 3}
    strategy = ControllerENAS(
        batches_per_update=2, warmup_epochs=1, update_kwargs=update, reward=lambda loss, sample: -loss - len(sample)
    )
    experiment = run(model_space, one_shot_evaluator(epochs=2), strategy)
    (controller,) = made
    assert [step.gradients for step in watched.steps] == [True, True, True, True, False, False]
    assert all(step.drawn == controller.path for step in watched.steps)
    assert controller.rewards == pytest.approx([-step.loss - 12 for step in watched.steps[4:]])
    assert controller.updates == [2, 2, 2]
    assert rates == pytest.approx([WeightOptimizer(lr=0.02).factor(i, 4) * 0.02 for i in range(4)])
    assert experiment.export_top_models(formatter="dict") == [controller.path]
    assert len(made) == 1


@pytest.mark.slow
def test_nni_s_controller_learns_what_is_rewarded(space, one_shot_evaluator, run, monkeypatch):
    """The detection loss replaced by nothing, so that a hundred paths can be judged; the second operator is liked."""
    tianshou = pytest.importorskip("tianshou")
    assert tianshou.__version__ == "0.4.11"
    model_space = space({**SPACE, "neck": ["sep_k3_d1"]})
    parameter = next(model_space.parameters())
    monkeypatch.setattr(evaluator, "detection_loss", lambda detector, batch: parameter.sum() * 0)

    def reward(loss, sample):
        return sum(name == "sep_k3_d1" for name in sample.values())

    strategy = ControllerENAS(batches_per_update=8, reward=reward, policy_fn=partial(policy, lr=1e-2))
    experiment = run(model_space, one_shot_evaluator(epochs=60), strategy)
    exported = [experiment.export_top_models(formatter="dict")[0] for _ in range(2)]
    assert exported[0] == exported[1] == {f"backbone/l{number:02d}": "sep_k3_d1" for number in range(1, 5)}


def policy(env, lr):
    from nni.nas.strategy._rl_impl import default_policy_fn

    return default_policy_fn(env, lr=lr)


# ------------------------------------------------------------------------------------------- multi-trial strategies


@pytest.fixture
def untrained(monkeypatch):
    """Retraining replaced by a number that only the architecture decides; the order of what was evaluated."""
    evaluated = []

    def retrain_architecture(run, architecture, settings, data, on_evaluation, *, resume):
        torch.manual_seed(settings.seed)  # as a training does
        mean_precision = sum(hash_of(item) for item in architecture.sample.items()) % 997 / 997
        on_evaluation(0, {"mAP": 0.0})
        on_evaluation(1, {"mAP": mean_precision})
        evaluated.append((architecture.sample, mean_precision))
        return {"mAP": mean_precision, "params_m": 1.0, "gflops": 2.0}

    def hash_of(item):
        return int.from_bytes("".join(item).encode(), "big")

    monkeypatch.setattr(multi_trial, "retrain_architecture", retrain_architecture)
    return evaluated


@pytest.mark.parametrize(
    "strategy",
    [
        strategies.Random(seed=0),
        strategies.RegularizedEvolution(population_size=2, sample_size=2, mutation_prob=0.3, seed=0),
        strategies.GridSearch(seed=0),
        strategies.TPE(seed=0),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_multi_trial_strategies_evaluate_what_they_name(strategy, space, run, untrained, monkeypatch):
    model_space, sizes = space(), []
    sample_of = multi_trial.current_sample

    def sized(model):
        sizes.append(sum(p.numel() for p in model.detector.parameters()))
        return sample_of(model)

    monkeypatch.setattr(multi_trial, "current_sample", sized)
    function = FunctionalEvaluator(retrain_sample, config="tiny", overrides=LITTLE, folder="runs")
    torch.manual_seed(987)
    experiment = run(model_space, function, strategy, multi_trial_config(3))
    history = list(strategy.list_models(sort=False))
    assert len(history) == 3
    for model, (sample, mean_precision), size in zip(history, untrained, sizes, strict=True):
        assert complete_sample(model_space, model.sample) == sample
        assert_whole_sample(sample, model_space)
        assert model.metric == mean_precision
        assert model.metrics.intermediates == [0.0, mean_precision]
        cost = CostModel(model_space.skeleton, model_space.num_classes).architecture(sample)
        assert size == cost["total"].params
    assert torch.initial_seed() == 987  # strategies draw by these random numbers, which a training sets
    assert len({json.dumps(sample) for sample, _ in untrained}) == 3
    best = max(untrained, key=lambda pair: pair[1])[0]
    assert complete_sample(model_space, experiment.export_top_models(formatter="dict")[0]) == best


@pytest.mark.slow
def test_policy_based_rl_evaluates_what_it_names(space, run, untrained):
    pytest.importorskip("tianshou")
    model_space, strategy = space(), strategies.PolicyBasedRL(samples_per_update=2)
    function = FunctionalEvaluator(retrain_sample, config="tiny", overrides=LITTLE, folder="runs")
    run(model_space, function, strategy, multi_trial_config(5))
    history = [(complete_sample(model_space, model.sample), model.metric) for model in strategy.list_models(sort=False)]
    assert history == untrained
    assert len(history) == 5


@pytest.mark.slow
def test_evolution_keeps_to_the_better(space, run, untrained):
    """A child differs from its parent, the best so far, in some layers only."""
    strategy = strategies.RegularizedEvolution(population_size=4, sample_size=4, mutation_prob=0.1, seed=0)
    function = FunctionalEvaluator(retrain_sample, config="tiny", overrides=LITTLE, folder="runs")
    run(space(), function, strategy, multi_trial_config(5))
    *parents, (child, _) = untrained
    best = max(parents, key=lambda pair: pair[1])[0]
    assert 1 <= sum(child[label] != best[label] for label in child) <= 4


def test_a_diverging_architecture_can_be_left_out(space, run, untrained, monkeypatch):
    retrain_architecture = multi_trial.retrain_architecture

    def diverging(run, architecture, *args, **kwargs):
        if len(untrained) == 1 and not attempts:
            attempts.append(architecture.sample)
            raise NonFiniteLossError("retrain", 3, [7], None)
        return retrain_architecture(run, architecture, *args, **kwargs)

    attempts = []
    monkeypatch.setattr(multi_trial, "retrain_architecture", diverging)
    config = multi_trial_config(3)
    config.execution_engine.continue_on_failure = True
    strategy = strategies.Random(seed=0)
    run(space(), FunctionalEvaluator(retrain_sample, config="tiny", overrides=LITTLE, folder="runs"), strategy, config)
    first, failed, third = strategy.list_models(sort=False)
    assert failed.metric is None
    assert failed.sample.items() <= attempts[0].items()
    assert sorted(model.metric for model in strategy.list_models()) == sorted([first.metric, third.metric])


def frozen(model_space, names):
    """What NNI's engine makes of a sample: the model space and the model that its evaluator is given."""
    sample = {label: names[label.split("/")[0]] for label in model_space.simplify()}
    parameter = SimplifiedModelSpace.from_model(model_space).freeze(sample)
    return parameter, parameter.executable_model()


def test_a_frozen_model_is_the_plain_detector(space):
    parameter, model = frozen(space(), {"backbone": "sep_k3_d1", "neck": "sep_k5_d1"})
    sample = complete_sample(model, parameter.sample)
    plain = build_detector(model.skeleton, sample, model.num_classes)
    assert not [module for module in model.modules() if isinstance(module, LayerChoice)]
    assert repr(model.detector) == repr(plain)
    own, expected = model.detector.state_dict(), plain.state_dict()
    assert {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in expected.items()}


def test_a_model_of_another_sample_is_refused(space, monkeypatch):
    """As after an experiment in the same process, whose last parameter NNI keeps. Dilation alone changes no shape."""
    operators = {**SPACE, "neck": ["sep_k3_d1", "sep_k3_d2"]}
    parameter, _ = frozen(space(operators), {"backbone": "sep_k3_d1", "neck": "sep_k3_d1"})
    _, model = frozen(space(operators), {"backbone": "sep_k3_d1", "neck": "sep_k3_d2"})
    monkeypatch.setattr(nni, "get_current_parameter", lambda: parameter)
    with pytest.raises(RuntimeError, match="not that of the sample"):
        retrain_sample(model, config="tiny", folder="nowhere")


def test_retraining_outside_an_experiment_is_refused(space, refused, monkeypatch):
    monkeypatch.setattr(nni.trial, "_params", None)
    with refused("model_format", "NoneType", "NasExperiment"):
        retrain_sample(space(), config="tiny", folder="nowhere")


def test_the_raw_format_is_refused(space, run, refused):
    function = FunctionalEvaluator(retrain_sample, config="tiny", folder="runs")
    with refused("model_format", RawFormatModelSpace.__name__, "simplified"):
        run(space(), function, strategies.GridSearch(), multi_trial_config(3, "raw"))


def test_a_one_shot_strategy_refuses_the_retraining_function(space, run):
    function = FunctionalEvaluator(retrain_sample, config="tiny", folder="runs")
    with pytest.raises(TypeError, match="lightning evaluator"):
        run(space(), function, strategies.DARTS())


def test_data_of_other_classes_are_refused(tiny_settings, run, refused):
    model_space = HitDetectorSpace(tiny_settings.skeleton, SPACE, 3)
    function = FunctionalEvaluator(retrain_sample, config="tiny", overrides=LITTLE, folder="runs")
    with refused("categories", "10 classes", "3"):
        run(model_space, function, strategies.Random(), multi_trial_config(1))


# ----------------------------------------------------------------------------------------------- a trained supernet


def test_recalibration_needs_a_batch(space, tiny_settings, tiny_data, refused):
    with refused("batches", "got 0", "at least 1"):
        InheritedWeights(space(), tiny_settings, tiny_data, batches=0)


def test_inherited_weights(space, tiny_settings, tiny_data, run, monkeypatch):
    """The chosen candidates' weights, statistics of their own, the mAP of both; the supernet stays as it is.

    NNI makes the judged models anew from the supernet's arguments.
    """
    supernet = SeededRandomOneShot().mutate_model(space())
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.add_(0.01)  # weights that no new detector has
    before = {key: value.clone() for key, value in supernet.state_dict().items() if isinstance(value, torch.Tensor)}
    evaluated = []
    evaluate = multi_trial.evaluate

    def noted(architecture, weights, settings, data):
        metrics = evaluate(architecture, weights, settings, data)
        evaluated.append((architecture, torch.load(weights, weights_only=True)["state_dict"], metrics["mAP"]))
        return metrics

    monkeypatch.setattr(multi_trial, "evaluate", noted)
    strategy = strategies.Random(seed=0)
    judge = InheritedWeights(supernet, tiny_settings, tiny_data, batches=1)
    run(supernet, judge, strategy, multi_trial_config(1))
    (model,) = strategy.list_models(sort=False)
    ((architecture, state, mean_precision),) = evaluated
    assert model.metric == mean_precision
    assert architecture.sample == complete_sample(supernet, model.sample)
    after = supernet.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    expected = supernet.freeze(model.sample).detector.state_dict()
    assert expected.keys() == state.keys()
    statistics = {key for key in state if "running_" in key or "num_batches" in key}
    assert all(torch.equal(state[key], expected[key]) for key in state.keys() - statistics)
    assert not torch.equal(state["backbone.stem.1.running_mean"], expected["backbone.stem.1.running_mean"])


# ------------------------------------------------------------------------------------------------------------ the page


def blocks_of_the_page():
    return re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run_block(block, names=None):
    names = {} if names is None else names
    exec(compile(block, "docs/nni_strategies.md", "exec"), names)
    return names


def test_the_example_of_another_space(run):
    found = run_block(blocks_of_the_page()[3])
    (sample,) = found["experiment"].export_top_models(formatter="dict")
    assert sample["signals/depth"] in (1, 2, 3)
    assert len(sample) == 1 + len(found["strategy"].oneshot_module.mixed_layers())


def test_the_one_shot_example_of_the_page(run):
    first, _, second_stage, _ = blocks_of_the_page()
    found = run_block(first)
    written = load_architecture(Path("darts.json"))
    assert written.sample == found["sample"]
    assert_whole_sample(written.sample, found["model_space"])
    assert written.provenance.source == "DARTS of NNI"

    # Any one-shot strategy's supernet will do.
    for old, new in {"batches=20": "batches=1", "population_size=20": "population_size=5", "=200": "=1"}.items():
        assert old in second_stage
        second_stage = second_stage.replace(old, new)
    run_block(second_stage, found)
    (model,) = found["experiment"].export_top_models()
    assert_whole_sample(complete_sample(found["model_space"], model.sample), found["model_space"])


@pytest.mark.slow
def test_the_multi_trial_example_of_the_page(run, capsys, monkeypatch):
    block = blocks_of_the_page()[1]
    models = list(run_block(block)["strategy"].list_models(sort=False))
    results = [json.loads(path.read_text()) for path in Path("runs/evolution").glob("*/metrics.json")]
    assert len(models) == len(results) == 3
    assert sorted(model.metric for model in models) == sorted(result["mAP"] for result in results)
    for model in models:
        assert model.metrics.intermediates[-1] == model.metric
        (folder,) = (
            path
            for path in Path("runs/evolution").iterdir()
            if model.sample.items() <= load_architecture(path / "architecture.json").sample.items()
        )
        result = json.loads((folder / "metrics.json").read_text())
        assert result["mAP"] == model.metric
        detector = build_detector(*(getattr(load_architecture(folder / "architecture.json"), key) for key in KEYS))
        assert sum(p.numel() for p in detector.parameters()) == result["params_m"] * 1e6
        weights = torch.load(folder / result["weights"], weights_only=True)["state_dict"]
        detector.load_state_dict(weights)

    def again(*args, **kwargs):
        raise AssertionError("a finished architecture was trained again")

    monkeypatch.setattr("hitdet_nni.pipeline.retraining.retrain", again)
    capsys.readouterr()
    repeated = list(run_block(block)["strategy"].list_models(sort=False))
    assert [(model.sample, model.metric) for model in repeated] == [(model.sample, model.metric) for model in models]
    printed = [line for line in capsys.readouterr().out.splitlines() if line.endswith("}") and "Individual" not in line]
    assert sum("head/l02" in line for line in printed) == 2


KEYS = ("skeleton", "sample", "num_classes")


@pytest.mark.slow
def test_the_multi_trial_example_in_trials_of_their_own(tmp_path):
    """The same through NNI's manager: the evaluator and the space travel to processes that NNI starts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    changes = {'"sequential"': '"ts"', "max_trial_number=3": "max_trial_number=2, trial_concurrency=1"}
    block = blocks_of_the_page()[1]
    for old, new in {**changes, "experiment.run()": f"experiment.run({port})"}.items():
        assert old in block
        block = block.replace(old, new)
    environment = {**os.environ, "HOME": str(tmp_path), "NODE_OPTIONS": node_options("")}
    command = [sys.executable, "-c", f"{block}\nexperiment.stop()\n"]
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        if "_check_rest_server" not in done.stderr:
            break  # else NNI has asked its manager before that could answer, as happens on a busy machine
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads(path.read_text()) for path in (tmp_path / "runs/evolution").glob("*/metrics.json")]
    printed = [line.split(" ", 1) for line in done.stdout.splitlines() if line.endswith("'head/l02': 'conv_k3_d1'}")]
    assert sorted(float(metric) for metric, _ in printed) == sorted(result["mAP"] for result in results)
    assert len(results) == 2
