"""ColumnSparseDARTS on a space of three linear layers, run as any NNI user would run it."""

from __future__ import annotations

import atexit
import itertools
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from nni.mutable import label_scope
from nni.nas.evaluator.pytorch import DataLoader, Lightning, LightningModule, Trainer
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn

from hitdet_nni.config.budget_settings import BudgetSettings
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.cost.cost_table import CostTable
from hitdet_nni.engine.precision import Precision
from hitdet_nni.errors import InputError
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.nas.budget import Budget
from hitdet_nni.nas.cost_term import BudgetedCost, WeightedCost
from hitdet_nni.nas.pruning import PruningSchedule, remove_lowest
from hitdet_nni.nas.strategy import AlphaOptimizer, ColumnSparseDARTS

LAYERS = ("backbone/l01", "backbone/l02", "neck/l01")
NAMES = ("a", "b", "c", "d")
STEPS = 2


def toy_cost(probabilities):
    """A stand-in for CostTable.expected: the candidates of the layer of index l cost l + 1, l + 2, ..."""
    costs = [torch.arange(len(NAMES)) + 1.0 + layer for layer in range(len(LAYERS))]
    return sum(probabilities[label].double() @ cost.double() for label, cost in zip(LAYERS, costs, strict=True))


def weighted(weight):
    return WeightedCost(SimpleNamespace(expected=toy_cost, check=lambda candidates: None), weight)


class Toy(ModelSpace):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList()
        for label in LAYERS:
            scope, _, name = label.partition("/")
            with label_scope(scope):
                self.layers.append(LayerChoice({name: nn.Linear(3, 3) for name in NAMES}, label=name))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        return x


class Stemmed(Toy):
    """The same behind a layer that is not searched."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 3)

    def forward(self, x):
        return super().forward(self.stem(x).tanh())


class Recorder(LightningModule):
    """Plain regression that writes down the state it meets in every step."""

    def __init__(self, record):
        super().__init__()
        self.record = record

    def training_step(self, batch, batch_idx):
        named = dict(self.model.named_parameters())
        alphas = {name: p for name, p in named.items() if "_arch_alpha" in name}
        weights = {name: p for name, p in named.items() if name not in alphas}
        self.record.append(
            SimpleNamespace(
                phase="alphas" if batch[0].mean() > 0 else "weights",
                epoch=self.trainer.current_epoch,
                trains_alphas={p.requires_grad for p in alphas.values()},
                trains_weights={p.requires_grad for p in weights.values()},
                alphas=torch.stack([p.detach().clone() for p in alphas.values()]),
                weights=torch.cat([p.detach().clone().flatten() for p in weights.values()]),
            )
        )
        return (self.model(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def loaders():
    """The weights' batches are all -1, the alphas' all +1, so that a step knows which it was given."""
    torch.manual_seed(1)
    return [
        DataLoader([(torch.full((3,), sign), torch.randn(3)) for _ in range(2 * STEPS)], batch_size=2)
        for sign in (-1.0, 1.0)
    ]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a strategy through NasExperiment; return the experiment and the record of its steps."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    experiments = []

    def call(strategy, epochs=3):
        record, (train, val) = [], loaders()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = Trainer(
                max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
                enable_checkpointing=False, enable_model_summary=False, limit_val_batches=0,
            )  # fmt: skip
            evaluator = Lightning(Recorder(record), trainer, train_dataloaders=train, val_dataloaders=val)
            experiment = NasExperiment(Toy(), evaluator, strategy)
            assert experiment.config.execution_engine.name == "sequential"
            experiment.config.experiment_working_directory = str(tmp_path)
            experiments.append(experiment)
            experiment.run()
        return experiment, record

    yield call
    for experiment in experiments:
        atexit.unregister(experiment.stop)  # NNI's, which would log to a stream that pytest has closed
        experiment.stop()


def search_module(space=Toy, **kwargs):
    """The Lightning module of the strategy around a mutated space, without a trainer."""
    strategy = ColumnSparseDARTS(**kwargs)
    recorder = Recorder([])
    recorder.set_model(strategy.mutate_model(space()))
    module = strategy.configure_oneshot_module(recorder)
    torch.manual_seed(2)
    for layer in module.mixed_layers().values():
        nn.init.normal_(layer.alpha)
    return module


# ------------------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize(("start", "keep"), [(32, 8), (8, 8), (5, 8), (9, 1), (7, 2)])
def test_pruning_schedule(start, keep):
    pruning = PruningSchedule({"backbone": keep})
    for epochs in range(1, 14):
        for warmup in range(epochs):
            left = [pruning.remaining("backbone", start, epoch, warmup, epochs) for epoch in range(epochs)]
            assert left[:warmup] == [start] * warmup
            assert left == sorted(left, reverse=True)
            assert left[-1] == min(keep, start)
            falls = [a - b for a, b in itertools.pairwise([start, *left[warmup:]])]
            assert max(falls) - min(falls) <= 1  # an even descent


def test_pruning_of_the_paper():
    """32 to 8 in epochs 6 to 11 (section 4.2): four operators an epoch."""
    pruning = PruningSchedule({"neck": 8})
    assert [pruning.remaining("neck", 32, epoch, 6, 12) for epoch in range(12)] == [32] * 6 + [28, 24, 20, 16, 12, 8]


# ----------------------------------------------------------------------------------------------------- the terms


def test_regularization_and_its_gradient():
    """mu * column norms of each component + lambda * expected cost, both in closed form."""
    mu, weight = 0.3, 0.7
    module = search_module(sparsity_weight=mu, cost=weighted(weight))
    value = module.regularization()
    value.backward()
    parameters = module.arch_parameters()
    alpha = torch.stack([p.detach() for p in parameters])
    backbone = (alpha[0] ** 2 + alpha[1] ** 2).sqrt()
    p = alpha.softmax(1)
    costs = torch.stack([torch.arange(4) + 1.0 + layer for layer in range(3)])
    mean = (p * costs).sum(1, keepdim=True)
    expected = mu * (backbone.sum() + alpha[2].abs().sum()) + weight * mean.sum()
    torch.testing.assert_close(value.detach(), expected)

    sparse = torch.stack([alpha[0] / backbone, alpha[1] / backbone, alpha[2].sign()])
    gradient = mu * sparse + weight * p * (costs - mean)
    torch.testing.assert_close(torch.stack([p.grad for p in parameters]), gradient)


def test_terms_of_weight_zero_are_absent():
    module = search_module()
    assert module.regularization().item() == 0
    assert not module.regularization().requires_grad


def test_removed_columns_leave_the_regularization():
    module = search_module(sparsity_weight=1.0, cost=weighted(1.0))
    for layer in module.mixed_layers().values():
        layer.prune_to(["a", "d"])
    module.regularization().backward()
    gradients = torch.stack([p.grad for p in module.arch_parameters()])
    assert (gradients[:, 1:3] == 0).all()
    assert (gradients[:, [0, 3]] != 0).all()


def test_architecture_optimizer():
    settings = AlphaOptimizer(lr=0.02, betas=(0.6, 0.8), weight_decay=0.01)
    (group,) = search_module(alpha_optimizer=settings).configure_architecture_optimizers().param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.02, (0.6, 0.8), 0.01)
    assert len(group["params"]) == len(LAYERS)


@pytest.mark.parametrize(("rank_by", "left"), [("probability", ["a", "c"]), ("norm", ["a", "b"])])
def test_ranking(rank_by, left):
    """A column of very negative alphas has a large norm and a small probability."""
    pruning = PruningSchedule({"backbone": 2, "neck": 2}, rank_by)
    module = search_module(pruning=pruning)
    for layer in module.mixed_layers().values():
        layer.alpha.data = torch.tensor([2.0, -3.0, 1.0, 0.5])
    scores = module.scores()  # what a run keeps is what decides
    assert scores.keys() == {"backbone", "neck"}
    if rank_by == "norm":
        assert scores["backbone"]["b"] == pytest.approx(3 * math.sqrt(2))
    else:
        assert sum(scores["backbone"].values()) == pytest.approx(2)  # two layers
    remove_lowest(module.column_groups(), pruning, epoch=0, warmup_epochs=0, epochs=1)
    assert all(layer.active_names == left for layer in module.mixed_layers().values())


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: ColumnSparseDARTS(sparsity_weight=-0.1), "sparsity_weight.*-0.1"),
        (lambda: weighted(-1), "weight of the cost.*-1"),
        (lambda: ColumnSparseDARTS(warmup_epochs=-1), "warmup_epochs.*-1"),
        (lambda: ColumnSparseDARTS(cost=None), "cost: got None; allowed: WeightedCost"),
        (lambda: ColumnSparseDARTS(cost=0.01), "cost: got 0.01; allowed: WeightedCost"),
    ],
)
def test_bad_weights_are_refused(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


# ------------------------------------------------------------------------------------------------------- the run


def test_costs_of_another_space_are_refused_before_a_step(tiny):
    """By the module that trains, of whichever kind the cost term is."""
    space = {"backbone": ["sep_k3_d1"], "neck": ["sep_k3_d1", "sep_k5_d1"], "head": ["sep_k3_d1"]}
    model = CostModel(tiny, 10)
    for searched in (space, {**space, "neck": ["sep_k5_d1", "sep_k3_d1"]}):
        terms = [
            WeightedCost(CostTable(model, space), 1.0),
            BudgetedCost(Budget(model, space, BudgetSettings(gflops=1.0)), 1.0, 0.1),
        ]
        for term in terms:
            module = search_module(lambda: HitDetectorSpace(tiny, searched, 10), cost=term)  # noqa: B023
            if searched is space:
                assert module.configure_architecture_optimizers()
            else:
                with pytest.raises(InputError, match="cost: is of another space: neck/l01 is a choice among sep_k3_d1"):
                    module.configure_architecture_optimizers()


def test_each_phase_trains_its_own(run):
    """Warm-up: weights only, the alphas' batch is not computed. Then alphas and weights in turn, never both."""
    strategy = ColumnSparseDARTS(sparsity_weight=0.1, alpha_optimizer=AlphaOptimizer(lr=0.05), warmup_epochs=1)
    _, record = run(strategy, epochs=2)
    assert [(step.epoch, step.phase) for step in record] == [(0, "weights")] * STEPS + [
        (1, "alphas"),
        (1, "weights"),
    ] * STEPS
    for step in record:
        assert step.trains_alphas == {step.phase == "alphas"}
        assert step.trains_weights == {step.phase == "weights"}
    for before, after in itertools.pairwise(record):
        assert torch.equal(before.alphas, after.alphas) == (before.phase == "weights")
        assert torch.equal(before.weights, after.weights) == (before.phase == "alphas")


def test_a_search_that_is_over_before_it_begins_is_refused(run):
    """Its outcome would be the random beginning of the architecture parameters."""
    for warmup_epochs in (2, 5):
        with pytest.raises(InputError, match=f"max_epochs above warmup_epochs, {warmup_epochs}: until then nothing"):
            run(ColumnSparseDARTS(warmup_epochs=warmup_epochs), epochs=2)
    _, record = run(ColumnSparseDARTS(warmup_epochs=math.inf), epochs=2)
    assert {step.phase for step in record} == {"weights"}


class Overflowing(Precision):
    """Leaves out every step, as fp16 does where a gradient is not finite."""

    def step(self, optimizer, parameters, max_norm=None):
        return False


def test_gates_rest_where_their_step_is_left_out(run):
    precision = Overflowing("fp32", torch.device("cpu"))
    strategy = ColumnSparseDARTS(sparsity_weight=0.1, gates="positive", precision=precision)
    _, record = run(strategy, epochs=1)
    assert all(torch.equal(step.alphas, record[0].alphas) for step in record)
    strategy = ColumnSparseDARTS(sparsity_weight=0.1, gates="positive")
    _, record = run(strategy, epochs=1)
    assert not torch.equal(record[-1].alphas, record[0].alphas)


def test_alphas_follow_the_flops_term(run):
    """With a heavy FLOPs term the cheapest candidate wins everywhere."""
    strategy = ColumnSparseDARTS(cost=weighted(100.0), alpha_optimizer=AlphaOptimizer(lr=0.1))
    experiment, record = run(strategy)
    assert all(step.phase == phase for step, phase in zip(record, itertools.cycle(["alphas", "weights"]), strict=False))
    assert experiment.export_top_models(formatter="dict") == [dict.fromkeys(LAYERS, "a")]


def test_screening_removes_down_to_keep(run):
    pruning = PruningSchedule({"backbone": 2, "neck": 1})
    strategy = ColumnSparseDARTS(
        sparsity_weight=0.1, pruning=pruning, warmup_epochs=1, alpha_optimizer=AlphaOptimizer(lr=0.1)
    )
    experiment, record = run(strategy, epochs=3)
    layers = {layer.label: layer for layer in strategy._mutated_model_space.model_space.layers}
    assert layers["backbone/l01"].active_names == layers["backbone/l02"].active_names
    assert [len(layers[label].active_names) for label in LAYERS] == [2, 2, 1]
    (top,) = experiment.export_top_models(formatter="dict")
    assert all(top[label] in layers[label].active_names for label in LAYERS)
    assert len(record) == STEPS + 2 * 2 * STEPS


def weight_step(module, batch):
    """Take a weight step of plain SGD with rate 1; return by name what it took from each parameter."""
    named = {name: p for name, p in module.named_parameters() if "_arch_alpha" not in name}
    module.manual_backward = lambda value: value.backward()
    module.training_module._trainer = SimpleNamespace(current_epoch=0)
    module.training_module.training_step = lambda batch, _: (
        (module.training_module.model(batch[0]) - batch[1]).square().mean()
    )
    before = {name: p.detach().clone() for name, p in named.items()}
    module._phase(torch.optim.SGD(named.values(), lr=1.0), batch, 0, searching=False)
    return {name: before[name] - p.detach() for name, p in named.items()}


def test_full_gradients_are_of_the_candidates_and_what_is_clipped():
    """Times the active candidates of its layer, the stem's as they are; the limit is that of the whole step."""
    batch = next(iter(loaders()[0]))
    steps = {}
    for kind, clip in (("weighted", None), ("full", None), ("full", 0.01)):
        module = search_module(Stemmed, candidate_gradients=kind, gradient_clip_val=clip)
        module.mixed_layers()["neck/l01"].prune_to(["a", "c"])
        steps[kind, clip] = weight_step(module, batch)
    moved = 0
    for name, step in steps["weighted", None].items():
        factor = 1 if "stem" in name else 2 if ".layers.2." in name else 4
        torch.testing.assert_close(steps["full", None][name], factor * step)
        moved += bool(step.abs().max() > 0)
    assert moved == 2 * (1 + 4 + 4 + 2)
    full, clipped = (torch.cat([s.flatten() for s in steps["full", clip].values()]) for clip in (None, 0.01))
    assert full.norm() > 0.02
    torch.testing.assert_close(clipped, full * 0.01 / full.norm(), rtol=1e-3, atol=1e-7)


def test_gradients_are_those_of_the_sum(run):
    """One alpha step of plain SGD moves the alphas by the gradient of validation loss + regularisation."""
    module = search_module(sparsity_weight=0.3, cost=weighted(0.2))
    _, val = loaders()
    x, y = next(iter(val))
    parameters = module.arch_parameters()
    loss = (module.training_module.model(x) - y).square().mean()
    expected = torch.autograd.grad(loss + module.regularization(), parameters)

    optimizer = torch.optim.SGD(parameters, lr=1.0)
    module.manual_backward = lambda value: value.backward()
    module.training_module._trainer = SimpleNamespace(current_epoch=0)
    before = [p.detach().clone() for p in parameters]
    module.training_module.training_step = lambda batch, _: (
        (module.training_module.model(batch[0]) - batch[1]).square().mean()
    )
    module._phase(optimizer, (x, y), 0, searching=True)
    for old, new, gradient in zip(before, parameters, expected, strict=True):
        torch.testing.assert_close(old - new, gradient)
    weights = [p for name, p in module.named_parameters() if "_arch_alpha" not in name]
    assert all(p.grad is None and p.requires_grad for p in weights)
