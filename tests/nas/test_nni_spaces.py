"""ColumnSparseDARTS on every kind of model space that NNI's DARTS runs, against NNI's DARTS."""

from __future__ import annotations

import logging

import nni
import nni.nas.nn.pytorch as searchable
import pytest
import torch
from nni.mutable.annotation import ExpressionConstraint
from nni.nas.nn.pytorch import LayerChoice
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.profiler.pytorch.flops import FlopsProfiler
from nni.nas.strategy import DARTS
from nni_spaces import (
    CLASSES,
    FORM,
    HUB,
    OURS,
    Cells,
    Classifier,
    Depths,
    Dicts,
    Inputs,
    Lists,
    Nested,
    Net,
    Values,
    conv,
    named_alphas,
    search,
    train,
)
from torch import nn

from hitdet_nni.data.loaders import search_loaders
from hitdet_nni.engine import distributed
from hitdet_nni.engine.optimizers import WeightOptimizer
from hitdet_nni.integration.multi_trial import InheritedWeights, retrain_sample
from hitdet_nni.integration.nni_results import complete_sample, strongest_sample
from hitdet_nni.nas import one_shot
from hitdet_nni.nas.cost_term import CostTerm
from hitdet_nni.nas.evaluator import detection_evaluator
from hitdet_nni.nas.one_shot import SeededRandomOneShot
from hitdet_nni.nas.pruning import PruningSchedule
from hitdet_nni.nas.strategy import AlphaOptimizer, ColumnSparseDARTS

STEPS = 10
ALPHA_LR = 0.01


def theirs(**options):
    return DARTS(arc_learning_rate=ALPHA_LR, gradient_clip_val=5.0, **options)


def ours(**options):
    """NNI's decay of the architecture parameters, which neither Eq. 4 nor Eq. 6 has."""
    return ColumnSparseDARTS(
        alpha_optimizer=AlphaOptimizer(ALPHA_LR, weight_decay=1e-3), gradient_clip_val=5.0, **options
    )


def module_of(make, **options):
    """The Lightning module around a space, and nothing trained."""
    strategy = ColumnSparseDARTS(**options)
    torch.manual_seed(0)
    classifier = Classifier()
    classifier.set_model(strategy.mutate_model(make()))
    return strategy.configure_oneshot_module(classifier)


def set_alphas(module, seed=0):
    torch.manual_seed(seed)
    for parameter in module.arch_parameters():
        nn.init.normal_(parameter)


@pytest.mark.parametrize("make", OURS)
def test_ten_steps_equal_those_of_nni(make):
    strategies = theirs(), ours()
    supernets = [train(make, strategy, STEPS, dtype=torch.float64) for strategy in strategies]
    expected, found = map(named_alphas, supernets)
    assert expected.keys() == found.keys()
    start = strategies[1].oneshot_module.training_module.start
    for name, alpha in expected.items():
        assert (found[name] - alpha).abs().max() <= 1e-6
        assert (found[name] - start[name]).abs().min() > 0  # every one was trained
    weights = [supernet.state_dict() for supernet in supernets]
    for name, value in weights[0].items():
        if value.is_floating_point():
            torch.testing.assert_close(weights[1][name], value, rtol=1e-6, atol=1e-6)
    samples = [strategy.oneshot_module.export() for strategy in strategies]
    assert samples[0] == samples[1]


@pytest.mark.parametrize("make", OURS)
def test_what_is_exported_is_a_model(make):
    strategy = ours()
    supernet = train(make, strategy, 2)
    sample = strategy.oneshot_module.export()
    decided, x = make().freeze(sample).eval(), torch.randn(2, *FORM)
    assert not named_alphas(decided)
    if make is not Cells:  # which NNI freezes in a space alone
        inherited = supernet.freeze(sample).eval()
        decided.load_state_dict(inherited.state_dict())
        torch.testing.assert_close(decided(x), inherited(x))
    assert decided(x).shape == (2, CLASSES)


def test_the_precision_of_the_trainer_holds():
    supernets = [train(Dicts, strategy, 4, precision="bf16-mixed") for strategy in (theirs(), ours())]
    plain = named_alphas(train(Dicts, ours(), 4))
    for (name, alpha), found in zip(
        named_alphas(supernets[0]).items(), named_alphas(supernets[1]).values(), strict=True
    ):
        assert (found - alpha).abs().max() <= 1e-3
        assert not torch.equal(found, plain[name])


class Shapes(Net, label_prefix="net"):
    """Outputs that broadcast."""

    def searched(self):
        yield LayerChoice([nn.AdaptiveAvgPool2d(1), conv(3)])


class Gate(BaseSuperNetModule):
    """A module of the user's own, with parameters that it shares with others."""

    def __init__(self, vector, scalar):
        super().__init__()
        self.vector, self.scalar = vector, scalar

    def forward(self, x):
        return x * self.scalar + self.vector.softmax(0)[0]

    def arch_parameters(self):
        return [self.vector, self.scalar]

    def resample(self, memo):
        return {}

    def export(self, memo):
        return {}

    def export_probs(self, memo):
        return {}


class Gates(Net, label_prefix="net"):
    def searched(self):
        vector, scalar = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(()))
        yield from (Gate(vector, scalar), conv(3), Gate(vector, scalar), LayerChoice([conv(1), conv(3)]))


@pytest.mark.parametrize("make", [Shapes, Gates])
def test_unusual_spaces_equal_nni(make):
    strategies = theirs(), ours()
    expected, found = (dict(train(make, each, 4, dtype=torch.float64).named_parameters()) for each in strategies)
    assert expected.keys() == found.keys()
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name], parameter, rtol=1e-6, atol=1e-8)
    assert len(strategies[1].oneshot_module.arch_parameters()) == (3 if make is Gates else 1)


class Gradients(Classifier):
    """Notes the gradients of the first step on the architecture parameters."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def training_step(self, batch, batch_idx):
        if batch_idx == 0:
            for name, alpha in named_alphas(self.model).items():
                self.found[name] = None
                alpha.register_hook(lambda gradient, name=name: self.note(name, gradient))
        return super().training_step(batch, batch_idx)

    def note(self, name, gradient):
        if self.found[name] is None:
            self.found[name] = gradient.clone()


def nothing_slow(name):
    return pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])


SLOW = {"ProxylessNAS", "DARTS", "MobileNetV3", "ShuffleNet", "ShuffleNet, channels too", "NASNet"}


@pytest.mark.parametrize("name", [*map(nothing_slow, HUB)])
def test_spaces_of_the_hub(name):
    """A step of each phase: gradients equal to those of NNI's DARTS, what is exported frozen."""
    notes = Gradients(), Gradients()
    strategies = theirs(), ours()
    for note, strategy in zip(notes, strategies, strict=True):
        train(HUB[name], strategy, 1, form=(3, 32, 32), module=note)
    assert notes[0].found.keys() == notes[1].found.keys()
    for alpha, gradient in notes[0].found.items():
        assert gradient is not None
        torch.testing.assert_close(notes[1].found[alpha], gradient, rtol=1e-4, atol=1e-7)
    moved = sum(bool(gradient.any()) for gradient in notes[1].found.values())
    assert moved >= 0.8 * len(notes[1].found)  # small widths that round to one number of channels have none
    module = strategies[1].oneshot_module
    assert {*map(id, module.arch_parameters())} == {*map(id, named_alphas(module.model).values())}
    decided = HUB[name]().freeze(module.export()).eval()
    assert not named_alphas(decided)
    decided(torch.randn(2, 3, 32, 32))


# --------------------------------------------------------------------------------------------------- terms of the loss


def sparsity_of(make):
    module = module_of(make, sparsity_weight=0.5)
    set_alphas(module)
    return module, {label: choice.alpha for label, choice in module.choices().items()}


def test_layers_of_the_same_candidates_form_one_matrix():
    module, alphas = sparsity_of(Dicts)
    unnamed = next(label for label in alphas if label not in ("net/first", "net/last"))
    matrix = torch.stack([alphas["net/first"], alphas[unnamed]])
    expected = 0.5 * (matrix.square().sum(0).sqrt().sum() + alphas["net/last"].abs().sum())
    torch.testing.assert_close(module.regularization(), expected)
    module.regularization().backward()
    torch.testing.assert_close(alphas["net/last"].grad, 0.5 * alphas["net/last"].detach().sign())
    torch.testing.assert_close(alphas["net/first"].grad, 0.5 * (alphas["net/first"] / matrix.norm(dim=0)).detach())


def test_unnamed_candidates_are_told_apart_by_their_types():
    module, alphas = sparsity_of(Lists)
    groups = [[choice.label for choice in group.choices] for group in module.column_groups()]
    convs = sorted(label for label, alpha in alphas.items() if len(alpha) == 2)
    assert sorted(groups) == sorted([convs, [label for label in alphas if label not in convs]])
    assert "net/shared" in convs
    assert len(module.column_groups()[groups.index(convs)].layers()) == 3  # two of them share a row


class Orders(Net, label_prefix="net"):
    """The same names in another order; the same outer types around others."""

    def searched(self):
        yield LayerChoice({"a": conv(1), "b": conv(3)}, label="one")
        yield LayerChoice({"b": conv(3), "a": conv(1)}, label="two")
        yield LayerChoice([nn.Sequential(conv(1)), nn.Sequential(conv(3))], label="three")
        yield LayerChoice([nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh())], label="four")


def test_names_count_and_not_their_order():
    module, alphas = sparsity_of(Orders)
    groups = {tuple(choice.label for choice in group.choices) for group in module.column_groups()}
    assert groups == {("net/one", "net/two"), ("net/three",), ("net/four",)}
    matrix = torch.stack([alphas["net/one"], alphas["net/two"].flip(0)])
    expected = matrix.norm(dim=0).sum() + alphas["net/three"].abs().sum() + alphas["net/four"].abs().sum()
    torch.testing.assert_close(module.regularization(), 0.5 * expected)


class Prefixed(Net, label_prefix="head"):
    """A prefix that is a component's name in our detectors."""

    def searched(self):
        yield LayerChoice({"a": conv(1), "b": conv(3)}, label="one")
        yield LayerChoice({"c": conv(1), "d": conv(3)}, label="two")


def test_groups_have_titles_of_their_own():
    assert set(module_of(Prefixed).scores()) == {"head/one", "head/two"}


def test_edges_of_a_cell_are_rows_of_operators():
    module, alphas = sparsity_of(Cells)
    rows = torch.stack([alpha[:3] for alpha in alphas.values()])  # the last entry says that no operator is taken
    assert len(rows) == 5
    torch.testing.assert_close(module.regularization(), 0.5 * rows.square().sum(0).sqrt().sum())


@pytest.mark.parametrize("make", [Values, Inputs])
def test_what_has_no_columns_is_refused_a_column_sparse_term(make, refused):
    module = module_of(make, sparsity_weight=0.1)
    with refused("ColumnSparseDARTS", "sparsity_weight", "column-sparse"):
        module.configure_architecture_optimizers()


class Expected(CostTerm):
    """A user's own: the expected value of one choice of numbers."""

    weight = 1.0

    def __init__(self, label, values):
        self.label, self.values = label, torch.tensor(values)

    def loss(self, probabilities):
        return 100.0 * probabilities[self.label] @ self.values.to(probabilities[self.label])


@pytest.mark.parametrize(("make", "label", "values"), [(Depths, "net/depth", (1, 3)), (Values, "net/width", (2, 4, 6))])
def test_a_cost_of_values_leads_to_the_least(make, label, values):
    strategy = ours(cost=Expected(label, values))
    train(make, strategy, STEPS)
    module = strategy.oneshot_module
    assert module.export()[label] == min(values)
    alphas = module.alphas()[label]
    assert tuple(alphas) == values
    assert max(alphas, key=alphas.get) == min(values)


# ------------------------------------------------------------------------------------------------------------- removal


def test_unnamed_candidates_are_removed():
    strategy = ours(pruning=PruningSchedule(keep=1))
    supernet = train(Lists, strategy, 1, epochs=2)
    module = strategy.oneshot_module
    for choice in module.choices().values():
        assert [layer.active_names for layer in choice.layers] == [[module.export()[choice.label]]] * len(choice.layers)
    state = supernet.state_dict()
    other = module_of(Lists)
    other.model.load_state_dict(state)
    assert other.export() == module.export()


class CellAndLayer(Cells, label_prefix="net"):
    """A cell, and a layer of operators of the same names."""

    def __init__(self):
        super().__init__()
        operators = {"conv": conv(3), "pool": nn.AvgPool2d(3, 1, 1), "skip": nn.Identity()}
        self.stem = nn.Sequential(self.stem, LayerChoice(operators, label="layer"))


def test_a_cell_keeps_what_a_layer_of_the_same_names_loses():
    strategy = ours(pruning=PruningSchedule(keep=1), sparsity_weight=0.1)
    train(CellAndLayer, strategy, 2, epochs=4)
    left = {label: len(choice.active_options()) for label, choice in strategy.oneshot_module.choices().items()}
    assert left.pop("net/layer") == 1
    assert set(left.values()) == {4}


def test_removal_ranks_the_groups_apart():
    strategy = ours(pruning=PruningSchedule(keep={"net/1": 2, "net/last": 1}))
    train(Dicts, strategy, 1)
    left = {label: len(choice.active_options()) for label, choice in strategy.oneshot_module.choices().items()}
    assert sorted(left.values()) == [1, 2, 2]
    assert left["net/last"] == 1


def test_removal_says_what_it_leaves_alone(caplog):
    strategy = ours(pruning=PruningSchedule(keep=1))
    with caplog.at_level(logging.WARNING, logger="hitdet_nni"):
        train(Depths, strategy, 1)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("hitdet_nni")] == [
        "operators are removed from LayerChoice only; what net/depth can choose stays"
    ]
    assert len(strategy.oneshot_module.choices()["net/depth"].active_options()) == 2
    assert len(strategy.oneshot_module.choices()["net/block0"].active_options()) == 1


def test_a_choice_inside_a_removed_candidate_gets_no_gradient():
    module = module_of(Nested)
    choices = module.choices()
    choices["net/outer"].layers[0].prune_to([1])
    nn.functional.cross_entropy(module.model(torch.randn(2, *FORM)), torch.tensor([0, 1])).backward()
    assert choices["net/inner"].alpha.grad is None
    assert choices["net/outer"].alpha.grad is not None
    assert module.export()["net/outer"] == 1


@pytest.mark.parametrize("make", [Values, Cells, Inputs])
def test_a_removal_without_layers_is_refused(make, refused):
    module = module_of(make, pruning=PruningSchedule(keep=1))
    with refused("ColumnSparseDARTS", "pruning", "no LayerChoice", "None"):
        module.configure_architecture_optimizers()


def test_a_removal_that_forgets_a_group_is_refused(refused):
    module = module_of(Dicts, pruning=PruningSchedule(keep={"net/1": 1}))
    with refused("pruning.keep", "no number for net/last", "net/1"):
        module.configure_architecture_optimizers()


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ({}, {"epochs": -1, "max_steps": 2}),
        ({"warmup_epochs": 1}, {"epochs": 1}),
        ({"warmup_epochs": 3}, {"epochs": 2}),
    ],
)
def test_a_removal_without_epochs_is_refused(strategy, options, refused):
    with refused("ColumnSparseDARTS", "max_epochs", f"got {options['epochs']}"):
        train(Dicts, ours(pruning=PruningSchedule(keep=1), **strategy), 1, **options)


@pytest.mark.parametrize("keep", [0, {"net/1": 1, "net/last": -1}])
def test_a_removal_of_everything_is_refused(keep, refused):
    module = module_of(Dicts, pruning=PruningSchedule(keep=keep))
    with refused("pruning.keep", "1 or more"):
        module.configure_architecture_optimizers()


# ----------------------------------------------------------------------------------------------------------- bad input


class Fixed(Net, label_prefix="net"):
    def searched(self):
        yield conv(3)


def test_a_space_with_nothing_to_search_is_refused(refused):
    with refused("ColumnSparseDARTS", "nothing to search", "LayerChoice"):
        module_of(Fixed).configure_architecture_optimizers()


class TwoOptimizers(Classifier):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.model.stem.parameters(), 0.1), torch.optim.SGD(self.model.head.parameters(), 0.1)]


class NoOptimizer(Classifier):
    def configure_optimizers(self):
        return None


class ByHand(Classifier):
    automatic_optimization = False


class OwnStep(Classifier):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer.step()


@pytest.mark.parametrize(
    ("evaluator", "named"),
    [
        (TwoOptimizers, "one optimiser"),
        (NoOptimizer, "one optimiser"),
        (ByHand, "one optimiser"),
        (OwnStep, "optimizer_step"),
    ],
)
def test_evaluators_that_step_by_themselves_are_refused(evaluator, named, refused):
    with refused("ColumnSparseDARTS", evaluator.__name__, named):
        train(Dicts, ours(), 1, module=evaluator())


def test_processes_that_have_not_joined_are_refused(monkeypatch, refused):
    monkeypatch.setattr(distributed, "launched", lambda: True)
    with refused("ColumnSparseDARTS", "several processes", "distributed.init()"):
        train(Dicts, ours(), 1)


def test_a_penalty_of_nni_is_refused(refused):
    penalty = {"profiler": FlopsProfiler(Dicts(), torch.zeros(1, *FORM)), "baseline": 1.0}
    with refused("ColumnSparseDARTS", "penalty", "cost"):
        ColumnSparseDARTS(penalty=penalty)


def test_candidates_of_other_forms_are_an_error():
    class Mismatch(Net, label_prefix="net"):
        def searched(self):
            yield LayerChoice([conv(3), nn.Conv2d(4, 5, 3, padding=1)])

    with pytest.raises(RuntimeError):
        train(Mismatch, ours(), 1)


# ------------------------------------------------------------------------- the other promises of docs/nni_strategies.md


@pytest.mark.parametrize("make", OURS)
def test_a_seed_decides_the_paths_of_any_space(make):
    paths = []
    for _ in range(2):
        strategy = SeededRandomOneShot()
        train(make, strategy, 1)
        torch.manual_seed(3)
        paths.append([strategy.oneshot_module.resample() for _ in range(5)])
        for module in strategy.oneshot_module.supernet_modules():
            assert module.resample(memo=paths[-1][-1]).items() <= paths[-1][-1].items()
    assert paths[0] == paths[1]
    assert any(path != paths[0][0] for path in paths[0])


class Constrained(Net, label_prefix="net"):
    """Two widths, the second at least the first."""

    def searched(self):
        first, second = nni.choice("first", [2, 4, 6]), nni.choice("second", [2, 4, 6])
        self.add_mutable(ExpressionConstraint(first <= second, label="order"))
        yield searchable.MutableConv2d(4, first, 1)
        yield searchable.MutableConv2d(first, second, 1)
        yield searchable.MutableConv2d(second, 4, 1)


def test_paths_keep_the_constraints_of_the_space(refused, monkeypatch):
    strategy = SeededRandomOneShot()
    train(Constrained, strategy, 1)
    paths = [strategy.oneshot_module.resample() for _ in range(50)]
    assert all(path["net/first"] <= path["net/second"] for path in paths)
    assert len({tuple(path.values()) for path in paths}) == 6
    monkeypatch.setattr(one_shot, "MOST_DRAWS", 0)
    with refused("SeededRandomOneShot", "constraints"):
        strategy.oneshot_module.resample()


def test_what_only_detector_spaces_have_is_refused(refused, tiny_settings, tiny_data):
    strategy = theirs()
    supernet = train(Dicts, strategy, 1)
    for source, call in {
        "strongest_sample": lambda: strongest_sample(strategy),
        "complete_sample": lambda: complete_sample(supernet, {}),
        "retrain_sample": lambda: retrain_sample(Dicts(), config="tiny", folder="."),
        "InheritedWeights": lambda: InheritedWeights(supernet, tiny_settings, tiny_data),
    }.items():
        with refused(source, "Dicts", "HitDetectorSpace", "export_top_models"):
            call()


def test_the_detection_evaluator_refuses_other_spaces(refused, tiny_settings, tiny_data):
    loaders = search_loaders(tiny_data, tiny_settings.data, tiny_settings.skeleton, 0)[:2]
    evaluator = detection_evaluator(*loaders, WeightOptimizer(lr=0.1), epochs=1)
    strategy = ours()
    with refused("detection_evaluator", "Dicts", "HitDetectorSpace"):
        search(Dicts(), evaluator, strategy)
