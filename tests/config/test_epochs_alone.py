"""What goes along where a config changes a stage's epochs alone."""

import pytest

from hitdet_nni.config.settings import load_settings


@pytest.mark.parametrize(
    ("config", "changes", "milestones"),
    [
        ("digits", {"retrain.epochs": 12}, (8, 11)),  # (16, 21) of 24
        ("digits", {"retrain.epochs": 48}, (32, 42)),
        ("digits", {"retrain.epochs": 24}, (16, 21)),
        ("digits", {"retrain": {"epochs": 1}}, (1,)),
        ("small", {"retrain.epochs": 60}, (40, 55)),  # (80, 110) of 120
        ("digits", {"retrain.epochs": 48, "retrain.milestones": [7]}, (7,)),
        ("digits", {"retrain.milestones": [7]}, (7,)),
    ],
)
def test_milestones_stay_at_their_shares(config, changes, milestones):
    assert load_settings(config, changes).retrain.milestones == milestones


def test_several_changes_of_epochs_are_the_last_one(tmp_path):
    shorter = tmp_path / "shorter.yml"
    shorter.write_text("extends: small\nretrain: {epochs: 1}\nsearch: {epochs: 2}\n")
    assert load_settings(shorter).retrain.milestones == (1,)
    again = load_settings(shorter, {"retrain.epochs": 120, "search.epochs": 20})
    assert again.retrain.milestones == (80, 110)
    assert again.search.warmup_epochs == 3
    between = tmp_path / "between.yml"
    between.write_text("extends: shorter.yml\nretrain: {epochs: 10, milestones: [5]}\n")
    assert load_settings(between, {"retrain.epochs": 30}).retrain.milestones == (15,)
    assert load_settings(between, {"retrain.epochs": 10**400}).retrain.milestones == (10**400 // 2,)
    nothing = tmp_path / "nothing.yml"
    nothing.write_text("data: {builtin: digits}\nretrain: null\n")
    assert load_settings(nothing, {"retrain.epochs": 6}).retrain.milestones == (4, 6)


def test_in_files_too(tmp_path):
    """Of what they extend, and of the defaults, which are the 1x schedule."""
    longer = tmp_path / "longer.yml"
    longer.write_text("extends: digits\nretrain: {epochs: 48}\n")
    assert load_settings(longer).retrain.milestones == (32, 42)
    assert load_settings(longer, {"retrain.epochs": 96}).retrain.milestones == (64, 84)
    alone = tmp_path / "alone.yml"
    alone.write_text("data: {builtin: digits}\nretrain: {epochs: 24}\n")
    assert load_settings(alone).retrain.milestones == (16, 22)
    alone.write_text("data: {builtin: digits}\nretrain: {epochs: 24, milestones: [3]}\n")
    assert load_settings(alone).retrain.milestones == (3,)


def test_a_warm_up_leaves_an_epoch(refused):
    assert load_settings("small", {"search.epochs": 3}).search.warmup_epochs == 2  # 3 of 20
    assert load_settings("small", {"search.epochs": 10}).search.warmup_epochs == 3
    assert load_settings("coco2014", {"screening.epochs": 1}).screening.warmup_epochs == 0  # 6 of 12
    with refused("warmup_epochs 3 must be below epochs 3"):
        load_settings("small", {"search.epochs": 3, "search.warmup_epochs": 3})


@pytest.mark.parametrize("epochs", ["ten", 0, -3, 1.5, None, True])
def test_epochs_that_are_none_are_refused(epochs, refused):
    with refused("retrain.epochs"):
        load_settings("digits", {"retrain.epochs": epochs})


def test_what_is_no_milestone_is_refused(tmp_path, refused):
    file = tmp_path / "config.yml"
    file.write_text("extends: digits\nretrain: {milestones: never}\n")
    with refused("retrain.milestones"):
        load_settings(file, {"retrain.epochs": 3})
