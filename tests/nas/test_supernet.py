"""Screening and search on the embedded digits, a few steps each."""

import math

import pytest
import torch

from hitdet_nni.config.search_space import load_search_space, save_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.nas import supernet
from hitdet_nni.nas.screening import screen_components, screening_groups, screening_seed
from hitdet_nni.nas.supernet import Phase, train_supernet
from hitdet_nni.pipeline.screening import screen
from hitdet_nni.report.page import write_report
from hitdet_nni.runs.run_directory import RunDirectory

SPACE = {
    "backbone": ["ir_k3_d1_e1", "sep_k3_d1", "conv_k3_d1"],
    "neck": ["sep_k3_d1", "sep_k5_d1"],
    "head": ["ir_k3_d1_e1", "sep_k3_d1"],
}


TELL_MEMORY = supernet._tell_memory  # which tests are spared

SETTINGS = {
    "data.train": 16,
    "data.val": 4,
    "screening.keep.backbone": 2,
    "screening.keep.neck": 1,
    "screening.keep.head": 1,
}


@pytest.fixture(scope="module")
def settings():
    return load_settings("tiny", SETTINGS)


def train(settings, data, records, *, seed=0, **phase):
    return train_supernet(
        Phase(skeleton=settings.skeleton, space=SPACE, epochs=2, warmup_epochs=1, **phase),
        settings,
        data,
        seed,
        records.append,
    )


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_search_reports_every_epoch_and_decodes_the_argmax(kind, tiny_data):
    settings = load_settings("tiny", {**SETTINGS, "skeleton.detector": kind})
    records = []
    trained = train(settings, tiny_data, records, flops_weight=1.0)
    assert [record.epoch for record in records] == [0, 1]
    assert set(trained.sample) == {layer.label for layer in settings.skeleton.searched_layers()}
    last = records[-1]
    for label, row in last.alphas.items():
        assert trained.sample[label] == max(row, key=row.get)
        assert math.isclose(sum(last.probabilities[label].values()), 1.0, rel_tol=1e-6)
    assert set(last.entropy) == set(COMPONENTS)
    assert all(math.isfinite(value) for value in last.metrics().values())
    assert records[0].entropy["neck"] > last.entropy["neck"]


def test_a_search_gives_its_memory_back_before_samples_are_evaluated(settings, tiny_data, monkeypatch):
    done = []
    for name in ("forget_mixtures", "release_memory"):
        monkeypatch.setattr(supernet, name, lambda what, name=name: done.append((name, what)))
    trained = train(settings, tiny_data, [])
    assert done == [("forget_mixtures", trained.module.model), ("release_memory", torch.device("cpu"))]


def test_alphas_rest_in_warm_up_and_move_after_it(settings, tiny_data):
    records = []
    train(settings, tiny_data, records)
    moved = [
        abs(records[1].alphas[label][name] - value)
        for label, row in records[0].alphas.items()
        for name, value in row.items()
    ]
    assert all(abs(value) < 0.01 for row in records[0].alphas.values() for value in row.values())
    assert min(moved) > 0.001


@pytest.mark.slow
def test_same_seed_same_search(settings, tiny_data, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(supernet, "_tell_memory", TELL_MEMORY)
    first, second = [], []
    one = train(settings, tiny_data, first)
    assert "memory of a step: about" in caplog.text
    assert "are free" not in caplog.text
    monkeypatch.setattr(supernet, "free_memory", lambda device: 10**6)
    two = train(settings, tiny_data, second)
    assert "0.00 GB are free; try a smaller data.batch_size" in caplog.text
    assert [record.alphas for record in first] == [record.alphas for record in second]
    assert [record.val_loss for record in first] == [record.val_loss for record in second]
    for (name, a), (other, b) in zip(one.module.state_dict().items(), two.module.state_dict().items(), strict=True):
        assert name == other
        assert not isinstance(a, torch.Tensor) or torch.equal(a, b)


def test_a_heavy_cost_weight_finds_the_cheapest_network(settings, tiny_data):
    strong = settings.model_copy(update={"alphas": settings.alphas.model_copy(update={"lr": 1.0})})
    sample = train(strong, tiny_data, [], flops_weight=1e5).sample
    cheapest = {"backbone": "sep_k3_d1", "neck": "sep_k3_d1", "head": "sep_k3_d1"}
    assert sample == {label: cheapest[label.split("/")[0]] for label in sample}


def test_screening_keeps_the_best_ranked(settings, tiny_data):
    records = []
    screened = screen_components(["backbone"], SPACE, settings, tiny_data, records.append)
    kept = screened.kept["backbone"]
    assert len(kept) == 2
    scores = records[-1].scores["backbone"]
    assert set(kept) == set(sorted(scores, key=scores.get)[1:])
    assert set(records[-1].entropy) == {"backbone"}
    removed = [score.operator for score in screened.scores("backbone") if score.removed]
    assert set(removed) == set(SPACE["backbone"]) - set(kept)


def test_joint_screening_trains_one_supernet(settings, tiny_data, tmp_path):
    joint = settings.model_copy(update={"screening": settings.screening.model_copy(update={"joint": True})})
    run, stages = RunDirectory(tmp_path), []
    space = screen(run, SPACE, joint, tiny_data, lambda stage, record: stages.append((stage, set(record.scores))))
    assert stages == [("screening backbone+neck+head", set(COMPONENTS))] * settings.screening.epochs
    for component, kept in space.items():
        assert len(kept) == getattr(settings.screening.keep, component)
        assert kept == run.kept_operators(component)
    assert load_search_space(run.sub_spaces) == {component: list(kept) for component, kept in space.items()}
    assert screen(run, SPACE, joint, tiny_data, lambda stage, record: pytest.fail(stage)) == space


@pytest.mark.parametrize(
    ("rank_by", "joint"), [("samples", True), pytest.param("probability", False, marks=pytest.mark.slow)]
)
def test_a_component_of_one_operator_is_not_screened(rank_by, joint, settings, tiny_data, tmp_path):
    save_search_space({**SPACE, "head": ["sep_k3_d1"]}, tmp_path / "space.yml")
    settings = settings.model_copy(update={"space": str(tmp_path / "space.yml")})
    update = {"joint": joint, "rank_by": rank_by, "samples": 3, "sample_images": 4}
    settings = settings.model_copy(update={"screening": settings.screening.model_copy(update=update)})
    run, stages = RunDirectory(tmp_path / "run"), []
    run.open(settings)
    space = screen(run, {**SPACE, "head": ["sep_k3_d1"]}, settings, tiny_data, lambda stage, _: stages.append(stage))
    expected = ["screening backbone+neck"] if joint else ["screening backbone", "screening neck"]
    assert list(dict.fromkeys(stages)) == expected
    assert {component: len(names) for component, names in space.items()} == {"backbone": 2, "neck": 1, "head": 1}
    assert space["head"] == ["sep_k3_d1"]
    assert not run.scores("head").exists()
    page = write_report(run.path, images=0).read_text()
    assert "The head needs no screening: it has no more operators than are kept." in page


def test_screenings_have_seeds_of_their_own():
    screening, full = load_settings("tiny").screening, load_search_space("full")
    joint = screening.model_copy(update={"joint": True})
    groups = [*screening_groups(screening, full), *screening_groups(joint, full)]
    assert groups == [("backbone",), ("neck",), ("head",), COMPONENTS]
    assert len({screening_seed(0, components) for components in groups}) == 4


def test_what_is_kept_whole_needs_no_screening():
    screening, full = load_settings("tiny").screening, load_search_space("full")
    joint = screening.model_copy(update={"joint": True})
    few = {**full, "neck": full["neck"][:8], "head": full["head"][:1]}
    assert screening_groups(screening, few) == screening_groups(joint, few) == [("backbone",)]
    assert screening_groups(joint, {**full, "head": full["head"][:8]}) == [("backbone", "neck")]
    none = {component: names[:8] for component, names in full.items()}
    assert screening_groups(screening, none) == screening_groups(joint, none) == []


def test_a_space_of_one_operator_a_component_is_refused(settings, tiny_data, refused):
    phase = Phase(settings.skeleton, {name: row[:1] for name, row in SPACE.items()}, epochs=2, warmup_epochs=1)
    with refused("search", "nothing to search"):
        train_supernet(phase, settings, tiny_data, 0, lambda record: None)
