"""From settings to batches."""

import json

import pytest
import torch

from hitdet_nni.config.settings import DataSettings
from hitdet_nni.data.pipeline import build_dataset, search_loaders
from hitdet_nni.data.sources import open_data
from hitdet_nni.errors import InputError


def image_ids(loader):
    return [sample.img_id for batch in loader for sample in batch["data_samples"]]


def test_halves_are_disjoint_and_batches_full(tiny_settings, tiny_data):
    data = tiny_settings.data
    weights, alphas, val = search_loaders(tiny_data, data, tiny_settings.skeleton, seed=0)
    first, second = image_ids(weights), image_ids(alphas)
    assert len(first) == len(second) == data.train // 2
    assert not set(first) & set(second)
    assert set(image_ids(val)) == set(tiny_data.val.image_ids)
    for batch in weights:
        assert len(batch["inputs"]) == data.batch_size
        assert batch["inputs"][0].dtype == torch.uint8
        assert max(batch["inputs"][0].shape[1:]) == max(tiny_settings.skeleton.input_size)


def test_labels_follow_the_annotation_file(tiny_settings, tiny_data):
    dataset = build_dataset(tiny_data.train, tiny_settings.skeleton, training=True)
    annotations = json.loads(tiny_data.train.ann.read_text())
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    sample = dataset[0]["data_samples"]
    wanted = [names[a["category_id"]] for a in annotations["annotations"] if a["image_id"] == sample.img_id]
    assert [tiny_data.classes[label] for label in sample.gt_instances.labels] == wanted


def test_embedded_set_is_made_once(tiny_settings, tiny_data):
    stamp = tiny_data.train.ann.stat().st_mtime_ns
    assert open_data(tiny_settings.data, tiny_settings.seed).train.ann.stat().st_mtime_ns == stamp


def test_broken_picture_is_refused_before_training(tmp_path, tiny_data):
    images = tmp_path / "train"
    images.mkdir()
    for name in tiny_data.train.file_names:
        (images / name).write_bytes((tiny_data.train.images / name).read_bytes())
    broken = images / tiny_data.train.file_names[3]
    broken.write_bytes(broken.read_bytes()[:200])
    settings = DataSettings(
        train_ann=tiny_data.train.ann,
        train_images=images,
        val_ann=tiny_data.val.ann,
        val_images=tiny_data.val.images,
    )
    with pytest.raises(InputError, match=broken.name):
        open_data(settings, 0)
