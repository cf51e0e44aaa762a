"""Operators ranked by evaluated samples: the draw, the fit, the losses, and a screening that is interrupted."""

from __future__ import annotations

import copy
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from group import run_group
from killing import KilledError, kill_in_sample
from torch import nn

from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.loaders import architecture_loader, search_loaders
from hitdet_nni.engine import distributed
from hitdet_nni.engine.randomness import random_state
from hitdet_nni.errors import StoppedError
from hitdet_nni.model.detector import HitDetectorSpace
from hitdet_nni.nas import sample_evaluation
from hitdet_nni.nas.checks import whole_space
from hitdet_nni.nas.evaluator import detection_loss
from hitdet_nni.nas.mixed import ColumnSparseMixedLayer
from hitdet_nni.nas.operator_samples import (
    RIDGE,
    draw_architectures,
    effect_scores,
    loss_places,
    operator_effects,
    score_operators,
)
from hitdet_nni.nas.sample_evaluation import architecture_losses, shared_losses
from hitdet_nni.nas.strategy import ColumnSparseDARTS
from hitdet_nni.pipeline.screening import screen_group
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.tables import read_scores

CANDIDATES = {
    "backbone/l01": ("a", "b", "c", "d"),
    "backbone/l02": ("a", "b", "c", "d"),
    "head/l01": ("a", "e", "f"),
}


def planted(seed):
    """Effects with mean zero in each layer."""
    generator = np.random.default_rng(seed)
    effects = {}
    for label, names in CANDIDATES.items():
        row = generator.normal(size=len(names))
        effects[label] = dict(zip(names, row - row.mean(), strict=True))
    return effects


def additive(samples, effects):
    return [3.0 + sum(effects[label][name] for label, name in sample.items()) for sample in samples]


# --------------------------------------------------------------------------------------------------------- the draw


def test_every_block_of_samples_has_each_operator_once_in_each_layer():
    samples = draw_architectures(CANDIDATES, 26, seed=3)
    assert len(samples) == 26
    assert all(sample.keys() == CANDIDATES.keys() for sample in samples)
    for label, names in CANDIDATES.items():
        for start in range(0, 26 - len(names), len(names)):
            assert {sample[label] for sample in samples[start : start + len(names)]} == set(names)
        counts = Counter(sample[label] for sample in samples)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_first_round_is_uniform_and_later_ones_are_pairs_and_their_exchanges():
    candidates = {f"neck/l0{number}": tuple("abcdefg") for number in range(1, 6)} | {"head/l01": ("x", "y")}
    samples = draw_architectures(candidates, 21, seed=2)
    necks = [[sample[f"neck/l0{number}"] for number in range(1, 6)] for sample in samples]
    assert sorted(map("".join, necks[:7])) == [name * 5 for name in "abcdefg"]
    for start in (7, 14):
        for first, second in zip(necks[start : start + 6 : 2], necks[start + 1 : start + 7 : 2], strict=True):
            assert sorted(Counter(first).values()) == [2, 3]
            assert Counter(second) == {name: 5 - count for name, count in Counter(first).items()}
            assert all(one != other for one, other in zip(first, second, strict=True))
        assert len(set(necks[start + 6])) == 1  # of seven operators one has no other
    assert necks[7:14] != necks[14:]


def test_the_seed_decides_and_layers_have_orders_of_their_own():
    assert draw_architectures(CANDIDATES, 8, seed=0) == draw_architectures(CANDIDATES, 8, seed=0)
    assert draw_architectures(CANDIDATES, 8, seed=0) != draw_architectures(CANDIDATES, 8, seed=1)
    pairs = Counter((s["backbone/l01"], s["backbone/l02"]) for s in draw_architectures(CANDIDATES, 400, seed=0))
    assert len(pairs) == 16  # each operator of one layer meets each of the other


# ---------------------------------------------------------------------------------------------------------- the fit


def test_planted_effects_are_found_exactly():
    effects = planted(0)
    samples = draw_architectures(CANDIDATES, 40, seed=1)
    found = operator_effects(samples, additive(samples, effects), CANDIDATES, ridge=0.0)
    for label, row in effects.items():
        assert found[label] == pytest.approx(row, abs=1e-10)
    scores = effect_scores(found)
    assert scores.keys() == {"backbone", "head"}
    for name, score in scores["backbone"].items():
        assert score == pytest.approx(-(effects["backbone/l01"][name] + effects["backbone/l02"][name]) / 2, abs=1e-10)
    assert scores["head"] == pytest.approx({name: -effect for name, effect in effects["head/l01"].items()}, abs=1e-10)


@pytest.mark.parametrize("ridge", [0.5, 2.0])
def test_the_penalty_shrinks_by_the_samples_of_an_operator(ridge):
    """In the full factorial design the columns of a layer are orthogonal to those of others but for the mean."""
    effects = planted(1)
    samples = [dict(zip(CANDIDATES, names, strict=True)) for names in itertools.product(*CANDIDATES.values())]
    found = operator_effects(samples, additive(samples, effects), CANDIDATES, ridge)
    for label, row in effects.items():
        count = len(samples) / len(row)
        assert found[label] == pytest.approx({n: e * count / (count + ridge) for n, e in row.items()}, abs=1e-10)


def test_the_fit_against_the_normal_equations():
    samples, losses = draw_architectures(CANDIDATES, 20, seed=2), np.random.default_rng(0).normal(size=20)
    columns = [(label, name) for label, names in CANDIDATES.items() for name in names]
    x = np.array([[sample[label] == name for label, name in columns] for sample in samples], dtype=float)
    solved = np.linalg.solve(x.T @ x + RIDGE * np.eye(len(columns)), x.T @ (losses - losses.mean()))
    found = operator_effects(samples, losses, CANDIDATES)
    for label, row in found.items():
        expected = np.array([w for (other, _), w in zip(columns, solved, strict=True) if other == label])
        np.testing.assert_allclose(list(row.values()), expected - expected.mean(), atol=1e-12)


def test_equal_losses_prefer_nothing_and_noise_nothing_in_particular():
    samples = draw_architectures(CANDIDATES, 24, seed=0)
    assert all(abs(e) < 1e-12 for r in operator_effects(samples, [2.0] * 24, CANDIDATES).values() for e in r.values())
    generator, best, total = np.random.default_rng(0), Counter(), Counter()
    for seed in range(400):
        samples = draw_architectures(CANDIDATES, 24, seed)
        scores = effect_scores(operator_effects(samples, generator.normal(size=24), CANDIDATES))["backbone"]
        best[max(scores, key=scores.get)] += 1
        total.update(scores)
    assert all(abs(count - 100) < 4 * np.sqrt(75) for count in best.values())  # of a binomial of 400 at 1/4
    assert all(abs(value / 400) < 0.05 for value in total.values())


# ------------------------------------------------------------------------------------------------------- the losses

SPACE = {
    "backbone": ["ir_k3_d1_e1"],
    "neck": ["sep_k3_d1"],
    "head": ["ir_k3_d1_e1", "sep_k3_d1", "conv_k3_d1"],
}


@pytest.fixture(scope="module")
def supernet(tiny_settings, tiny_data):
    """A supernet whose head is mixed, untrained, and two batches to compare its architectures on."""
    torch.manual_seed(0)
    space = ColumnSparseDARTS().mutate_model(HitDetectorSpace(tiny_settings.skeleton, SPACE, len(tiny_data.classes)))
    layers = {part.label: part for part in space.modules() if isinstance(part, ColumnSparseMixedLayer)}
    batches = list(architecture_loader(tiny_data, tiny_settings.data, tiny_settings.skeleton, 0, 8))
    return space.detector, dict(sorted(layers.items())), batches


def drawn(layers, count=4):
    return draw_architectures({label: layer.names for label, layer in layers.items()}, count, 0)


def image_ids(batches):
    return [sample.img_id for batch in batches for sample in batch["data_samples"]]


def test_images_are_of_the_half_for_alphas_and_the_same_in_every_process(
    supernet, tiny_settings, tiny_data, monkeypatch
):
    one_batch = image_ids(supernet[2])
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    second = architecture_loader(tiny_data, tiny_settings.data, tiny_settings.skeleton, 0, 7)
    monkeypatch.undo()
    weights, alphas, _ = search_loaders(tiny_data, tiny_settings.data, tiny_settings.skeleton, 0)
    # Seven images make one batch, where training has batches of four; asked for eight, they are one batch of eight.
    assert len(second) == len(supernet[2]) == 1
    assert image_ids(second) == one_batch[:7]
    assert len(set(one_batch)) == 8
    assert set(one_batch) == set(image_ids(alphas))
    assert not set(one_batch) & set(image_ids(weights))


def test_losses_are_those_of_the_decided_detectors_and_leave_no_trace(supernet):
    detector, layers, batches = supernet
    samples = drawn(layers)
    state, random = copy.deepcopy(detector.state_dict()), random_state()
    heard = []
    found = architecture_losses(detector, layers, samples, batches, 7, heard.append)
    assert len(heard) == len(samples) * len(batches)
    for name, value in detector.state_dict().items():
        assert torch.equal(value, state[name]) if isinstance(value, torch.Tensor) else value == state[name], name
    assert torch.equal(random_state()["torch"], random["torch"])
    assert len(set(found)) == len(samples)
    for sample, loss in zip(samples, found, strict=True):
        decided = copy.deepcopy(detector).train()
        for path, part in list(decided.named_modules()):
            if isinstance(part, ColumnSparseMixedLayer):
                decided.set_submodule(path, part[sample[part.label]])
        assert not any(isinstance(part, ColumnSparseMixedLayer) for part in decided.modules())
        expected = []
        for number, batch in enumerate(batches):
            torch.manual_seed(7 + number)
            expected.append(detection_loss(decided, batch).item())
        assert loss == pytest.approx(sum(expected) / len(expected), rel=1e-6)


def test_what_stands_before_the_component_is_computed_once_a_batch(supernet):
    detector, layers, batches = supernet
    calls = Counter()
    hooks = [
        part.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, part in {
            "backbone": next(p for p in detector.backbone.modules() if isinstance(p, nn.Conv2d)),
            "head": next(p for p in detector.roi_head.bbox_head.modules() if isinstance(p, nn.Linear)),
        }.items()
    ]
    architecture_losses(detector, layers, drawn(layers), batches, 0)
    for hook in hooks:
        hook.remove()
    assert calls["backbone"] == len(batches)
    assert calls["head"] == 4 * len(batches)


def test_a_loss_that_is_not_finite_is_named(supernet, monkeypatch):
    detector, layers, batches = supernet
    monkeypatch.setattr(sample_evaluation, "detection_loss", lambda detector, batch: torch.tensor(torch.inf))
    with pytest.raises(StoppedError, match=r"^the loss of a sampled architecture is inf \(head/l01 .*weights\.lr"):
        architecture_losses(detector, layers, drawn(layers), batches, 0)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_samples(processes, monkeypatch):
    """Each computes its share by itself; what they gather is in the order of the samples."""
    samples = draw_architectures(CANDIDATES, 7, seed=0)
    shares = [samples[rank::processes] for rank in range(processes)]
    monkeypatch.setattr(distributed, "gather", lambda own: [[float(samples.index(s)) for s in s_] for s_ in shares])
    monkeypatch.setattr(distributed, "_joined", True)
    for rank in range(processes):
        collectives = type("Group", (), {"get_rank": lambda rank=rank: rank, "get_world_size": lambda: processes})
        monkeypatch.setattr(distributed, "_collectives", lambda group=collectives: group)
        asked = []

        def losses(share, asked=asked):
            assert distributed.world_size() == 1
            asked.extend(share)
            return [0.0] * len(share)

        assert shared_losses(losses, samples) == [float(samples.index(sample)) for sample in samples]
        assert asked == shares[rank]


def scores_in_a_group():
    settings = load_settings("tiny", {"data.train": 16, "data.val": 4})
    from hitdet_nni.data.sources import open_data

    data = open_data(settings.data, settings.seed)
    torch.manual_seed(0)
    space = ColumnSparseDARTS().mutate_model(HitDetectorSpace(settings.skeleton, SPACE, len(data.classes)))
    layers = {part.label: part for part in space.modules() if isinstance(part, ColumnSparseMixedLayer)}
    batches = architecture_loader(data, settings.data, settings.skeleton, 0, 8)
    candidates = {label: tuple(layer.active_names) for label, layer in sorted(layers.items())}

    def losses(samples):
        return shared_losses(lambda share: architecture_losses(space.detector, layers, share, batches, 0), samples)

    return score_operators(losses, candidates, 5, 0)


def test_places_are_shares_of_what_is_below():
    assert loss_places([3.0, 1.0, 2.0, 5.0, 4.0]) == [0.5, 0.0, 0.25, 1.0, 0.75]
    assert loss_places([1.0, 2.0, 2.0]) == [0.0, 0.75, 0.75]
    assert loss_places([2.0]) == [0.0]


def test_a_single_diverged_sample_does_not_decide_the_order():
    """By places the planted order is found, whatever the worst loss; by the losses themselves it is not."""
    samples = draw_architectures(CANDIDATES, 96, seed=5)
    effects = planted(5)
    losses = additive(samples, effects)
    worst = int(np.argmax(losses))
    losses[worst] = 1e4

    def order(fitted):
        return [sorted(row, key=row.__getitem__) for row in fitted.values()]

    expected = order(effects)
    assert order(operator_effects(samples, loss_places(losses), CANDIDATES)) == expected
    assert order(operator_effects(samples, losses, CANDIDATES)) != expected


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path):
    first, second = run_group(scores_in_a_group, tmp_path)
    assert first == second
    assert first["head"] == pytest.approx(scores_in_a_group()["head"], abs=1e-6)


# -------------------------------------------------------------------------------------------------------- screening


def test_an_interrupted_screening_by_samples_ends_equal(tiny_data, tmp_path, monkeypatch, caplog):
    """Killed among the samples: the training is not repeated, and the table is the same to the letter."""
    values = {
        "data.train": 16,
        "data.val": 4,
        "screening.epochs": 1,
        "screening.warmup_epochs": 0,
        "screening.rank_by": "samples",
        "screening.samples": 6,
        "screening.sample_images": 8,
        "screening.keep.head": 2,
        "weights.candidate_gradients": "full",
    }
    settings = load_settings("tiny", values)
    one, two = RunDirectory(tmp_path / "one"), RunDirectory(tmp_path / "two")
    epochs = []

    def screen(run):
        screen_group(run, ("head",), SPACE, settings, tiny_data, lambda stage, record: epochs.append(record))

    screen(one)
    with monkeypatch.context() as context:
        kill_in_sample(context, 6)
        with pytest.raises(KilledError):
            screen(two)
    assert not two.scores("head").exists()
    assert len(epochs) == 2
    screen(two)
    assert len(epochs) == 2
    assert two.scores("head").read_bytes() == one.scores("head").read_bytes()

    rows = read_scores(one.scores("head"))
    assert [(row.epoch, row.rank, row.removed) for row in rows] == [(0, 1, False), (0, 2, False), (0, 3, True)]
    assert sum(row.score for row in rows) == pytest.approx(0, abs=1e-9)
    assert {row.operator for row in rows} == set(SPACE["head"])
    # The alphas stayed where they began: nothing was removed and no sign of theirs is warned of.
    assert all(len(row) == 3 and max(map(abs, row.values())) < 0.01 for row in epochs[0].alphas.values())
    assert not epochs[0].health.searching
    assert "entropy" not in caplog.text


def test_bad_settings_are_refused(refused):
    for key, value in {
        "screening.rank_by": "alphas",
        "screening.samples": 0,
        "screening.sample_images": 0,
        "weights.candidate_gradients": "half",
    }.items():
        with refused(key, value):
            load_settings("tiny", {key: value})
    few = load_settings("tiny", {"screening.rank_by": "samples", "screening.samples": 31})
    with refused("screening.samples", "got 31", "32 or more"):
        whole_space(few)
    assert whole_space(load_settings("tiny", {"screening.samples": 31}))
