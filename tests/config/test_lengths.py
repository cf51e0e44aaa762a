"""Epochs as functions of the number of images, and the presets that use them."""

import math

import pytest
import yaml

from hitdet_nni.config.lengths import for_images
from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import STAGES, load_settings, parse_overrides
from hitdet_nni.cost.cost_model import CostModel
from hitdet_nni.data.sources import open_images
from hitdet_nni.errors import InputError
from hitdet_nni.nas.outlook import Outlook

MEANT = {f"{stage}.epochs_images": 1000 for stage in STAGES}
LONG = {
    "screening.epochs": 12,
    "screening.warmup_epochs": 4,
    "search.epochs": 20,
    "search.warmup_epochs": 4,
    "retrain.epochs": 120,
    "retrain.milestones": [80, 110],
    "retrain.val_interval": 10,
}


def lengths(settings):
    """All keys of :data:`LONG`, in order."""
    return [getattr(getattr(settings, key.split(".")[0]), key.split(".")[1]) for key in LONG]


def test_four_times_the_images_are_half_the_epochs():
    settings = load_settings("tiny", LONG | MEANT)
    assert lengths(for_images(settings, 1000)) == [12, 4, 20, 4, 120, (80, 110), 10]
    assert lengths(for_images(settings, 4000)) == [6, 2, 10, 2, 60, (40, 55), 5]
    assert lengths(for_images(settings, 250)) == [24, 8, 40, 8, 240, (160, 220), 20]
    assert lengths(for_images(settings, 90_000)) == [1, 0, 2, 0, 13, (8, 12), 1]


@pytest.mark.parametrize("images", [1, 7, 296, 1000, 118_287, 10**9])
def test_the_same_images_are_the_same_epochs_ever_after(images):
    once = for_images(load_settings("tiny", LONG | MEANT), images)
    assert for_images(once, images) == once
    assert once.screening.warmup_epochs < once.screening.epochs
    assert once.search.warmup_epochs < once.search.epochs
    assert once.retrain.val_interval <= once.retrain.epochs
    assert once.retrain.epochs == max(1, round(120 * math.sqrt(1000 / images)))


def test_each_stage_has_an_epoch_for_each_of_its_supernets():
    settings = load_settings("tiny", LONG | MEANT | {"screening.supernets": 3})
    assert for_images(settings, 10**8).screening.epochs == 3


def test_epochs_alone_are_exact(tmp_path):
    """A diff that gives them, a file's or an option's, does not mean the images that its base means."""
    settings = load_settings("small", {"data.builtin": "digits", "retrain.epochs": 3})
    assert settings.retrain.epochs_images is None
    assert settings.search.epochs_images == 1000
    assert for_images(settings, 10).retrain.epochs == 3
    file = tmp_path / "mine.yml"
    file.write_text("extends: small\ndata: {builtin: digits}\nsearch: {epochs: 6}\n")
    assert load_settings(file).search.epochs_images is None
    both = load_settings("small", {"data.builtin": "digits", "retrain.epochs": 3, "retrain.epochs_images": 10})
    assert for_images(both, 40).retrain.epochs == 2


def test_settings_without_images_are_as_they_were(tiny_settings):
    assert for_images(tiny_settings, 123456) == tiny_settings


def test_the_images_that_are_opened_say_how_long(tiny_settings):
    settings = load_settings("tiny", LONG | MEANT | {"data.train": 16, "data.val": 4})
    opened, images = open_images(settings)
    assert opened == for_images(settings, 16)
    assert len(images.train.image_ids) == 16


def test_no_images_are_one_line():
    with pytest.raises(InputError, match=r"retrain\.epochs_images: .*0"):
        load_settings("tiny", parse_overrides(["retrain.epochs_images=0"]))


@pytest.mark.parametrize(("preset", "params"), [("nano", 0.5), ("small", 3), ("medium", 10)])
def test_presets_have_the_size_that_they_are_named_for(preset, params):
    skeleton = load_settings(preset, {"data.builtin": "digits"}).skeleton
    costs = Outlook.of(CostModel(skeleton, 20), load_search_space("full")).costs
    assert costs["params_m"].uniform == pytest.approx(params, rel=0.12)
    on_cpu = load_settings(f"{preset}_cpu", {"data.builtin": "digits"})
    assert on_cpu.skeleton == skeleton
    assert on_cpu.precision == "fp32"


@pytest.mark.parametrize("preset", ["nano", "small", "medium", "nano_cpu", "small_cpu", "medium_cpu"])
def test_a_preset_and_a_folder_are_a_whole_config(preset, tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text(yaml.safe_dump({"extends": preset, "data": {"root": "images"}}))
    settings = load_settings(file)
    assert str(settings.data.root) == str(tmp_path / "images")
    assert all(getattr(settings, stage).epochs_images == 1000 for stage in STAGES)


def test_a_first_try_is_as_short_whatever_the_images(tmp_path):
    file = tmp_path / "mine.yml"
    file.write_text(yaml.safe_dump({"extends": "first_try", "data": {"root": "images"}}))
    settings = load_settings(file)
    assert [getattr(settings, stage).epochs_images for stage in STAGES] == [None, None, None]
    assert (settings.screening.epochs, settings.search.epochs, settings.retrain.epochs) == (2, 3, 20)
    assert settings.precision == "fp32"
