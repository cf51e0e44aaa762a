"""The images of a detector: labels, and what is kept in memory."""

import json

import numpy as np
import pytest
import torch

from hitdet_nni.data.datasets.detection import CachedDataset, build_dataset
from hitdet_nni.data.sampling import Draw, SeededImages


@pytest.fixture(scope="module", params=[False, True], ids=["steady", "flipped"])
def images(request, tiny_data, tiny_settings):
    return build_dataset(tiny_data.train, tiny_settings.skeleton, training=True, flip=request.param)


def assert_same(one, other):
    assert torch.equal(one["inputs"], other["inputs"])
    ours, theirs = one["data_samples"], other["data_samples"]
    assert ours.metainfo == theirs.metainfo
    assert torch.equal(ours.gt_instances.bboxes.tensor, theirs.gt_instances.bboxes.tensor)
    assert torch.equal(ours.gt_instances.labels, theirs.gt_instances.labels)


def test_a_kept_image_is_the_one_that_is_read_every_time(images):
    plain, memory = SeededImages(images), SeededImages(CachedDataset(images, capacity=10**9))
    for seed in range(6):  # both sides of the coin
        for image in range(3):
            assert_same(plain[Draw(image, seed)], memory[Draw(image, seed)])


def test_a_image_is_read_once_and_what_is_done_to_it_later_changes_nothing(images, monkeypatch):
    memory, plain = CachedDataset(images, capacity=10**9), images
    np.random.seed(0)
    before = plain[0]
    np.random.seed(0)
    first = memory[0]
    reads = []
    monkeypatch.setattr(memory, "_steady", [lambda results: reads.append(results)])
    first["inputs"].zero_()
    first["data_samples"].gt_instances.bboxes.rescale_((2.0, 2.0))
    first["data_samples"].gt_instances.labels.zero_()
    np.random.seed(0)
    assert_same(memory[0], before)
    assert not reads


def test_capacity_is_bounded(images):
    size = images[0]["inputs"].nbytes
    memory = CachedDataset(images, capacity=2 * size + size // 2)
    for index in range(5):
        memory[index]
    assert len(memory._cached) == 2
    assert len(memory) == len(images)


def test_labels_follow_the_annotation_file(tiny_settings, tiny_data):
    dataset = build_dataset(tiny_data.train, tiny_settings.skeleton, training=True)
    annotations = json.loads(tiny_data.train.ann.read_text())
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    sample = dataset[0]["data_samples"]
    wanted = [names[a["category_id"]] for a in annotations["annotations"] if a["image_id"] == sample.img_id]
    assert [tiny_data.classes[label] for label in sample.gt_instances.labels] == wanted
