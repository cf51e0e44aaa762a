"""Pictures kept in memory, and the number of loader processes."""

import logging

import numpy as np
import pytest
import torch

from hitdet_nni.data.memory import MOST_WORKERS, KeptPictures, kept, settle_loading
from hitdet_nni.data.pipeline import build_dataset
from hitdet_nni.data.sampling import Draw, SeededPictures
from hitdet_nni.engine.machine import available_cores


@pytest.fixture(scope="module", params=[False, True], ids=["steady", "flipped"])
def pictures(request, tiny_data, tiny_settings):
    return build_dataset(tiny_data.train, tiny_settings.skeleton, training=True, flip=request.param)


def assert_same(one, other):
    assert torch.equal(one["inputs"], other["inputs"])
    ours, theirs = one["data_samples"], other["data_samples"]
    assert ours.metainfo == theirs.metainfo
    assert torch.equal(ours.gt_instances.bboxes.tensor, theirs.gt_instances.bboxes.tensor)
    assert torch.equal(ours.gt_instances.labels, theirs.gt_instances.labels)


def test_a_kept_picture_is_the_one_that_is_read_every_time(pictures):
    plain, memory = SeededPictures(pictures), SeededPictures(KeptPictures(pictures, room=10**9))
    for seed in range(6):  # both sides of the coin
        for picture in range(3):
            assert_same(plain[Draw(picture, seed)], memory[Draw(picture, seed)])


def test_a_picture_is_read_once_and_what_is_done_to_it_later_changes_nothing(pictures, monkeypatch):
    memory, plain = KeptPictures(pictures, room=10**9), pictures
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


def test_room_is_bounded(pictures):
    size = pictures[0]["inputs"].nbytes
    memory = KeptPictures(pictures, room=2 * size + size // 2)
    for index in range(5):
        memory[index]
    assert len(memory._kept) == 2
    assert len(memory) == len(pictures)


def test_loader_processes_share_the_room(pictures, tiny_settings):
    data = tiny_settings.data.model_copy(update={"cache_mb": 6, "workers": 3})
    assert kept(pictures, data)._room == 2 * 10**6


def test_the_machine_chooses_only_where_no_number_is_given(tiny_settings, tiny_data, caplog, monkeypatch):
    def workers(cores=8, processes=1, **changes):
        monkeypatch.setattr("hitdet_nni.data.memory.available_cores", lambda: cores)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        data = tiny_settings.data.model_copy(update=changes)
        return settle_loading(data, tiny_settings.skeleton, tiny_data.train, tiny_data.val).workers

    with caplog.at_level(logging.INFO, "hitdet_nni"):
        assert workers() == 0  # 20 pictures of 96 x 96 fit
    assert "pictures: 1 MB kept in memory, 0 loader processes" in caplog.text
    assert workers(cache_mb=0) == MOST_WORKERS
    assert workers(cache_mb=0, cores=3) == 2
    assert workers(cache_mb=0, cores=8, processes=4) == 1
    assert workers(cache_mb=0, cores=1) == 0
    assert workers(cache_mb=0, workers=7) == 7
    assert workers(workers=2) == 2


def test_there_is_a_core():
    assert available_cores() >= 1
