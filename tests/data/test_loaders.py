"""From settings to batches, and the number of loader processes."""

import logging

import torch

from hitdet_nni.data.loaders import (
    MOST_WORKERS,
    evaluation_loader,
    loader_config,
    resolve_num_workers,
    retraining_loaders,
    search_loaders,
)
from hitdet_nni.data.sources import open_data
from hitdet_nni.engine.machine import available_cores


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


def test_the_data_s_seed_fixes_images_and_halves_and_leaves_the_order_to_the_run(tiny_settings, tiny_data):
    """Runs with other seeds have other images in other halves, unless the data has a seed of its own."""
    own = tiny_settings.data.model_copy(update={"seed": tiny_settings.seed})
    assert open_data(own, 1).train.ann == tiny_data.train.ann != open_data(tiny_settings.data, 1).train.ann

    def orders(data, seed):
        return [image_ids(loader) for loader in search_loaders(tiny_data, data, tiny_settings.skeleton, seed)[:2]]

    first, same, other = (orders(*given) for given in ((tiny_settings.data, 0), (own, 1), (tiny_settings.data, 1)))
    assert list(map(set, same)) == list(map(set, first)) != list(map(set, other))
    assert all(one != two for one, two in zip(first, same, strict=True))


def test_an_evaluation_sees_every_image_by_itself(tiny_settings, tiny_data):
    """Beside an image of another shape it would be padded, and its detections would be others."""
    data, skeleton = tiny_settings.data, tiny_settings.skeleton
    assert data.batch_size > 1
    _, val = retraining_loaders(tiny_data, data, skeleton, 0, 1)
    for loader in (val, evaluation_loader(tiny_data.val, data, skeleton, 0)):
        assert [len(batch["inputs"]) for batch in loader] == [1] * len(tiny_data.val.image_ids)
    assert loader_config(tiny_data.val, data, skeleton, training=False)["batch_size"] == 1
    assert loader_config(tiny_data.train, data, skeleton, training=True)["batch_size"] == data.batch_size


def test_loader_processes_share_the_capacity(tiny_settings, tiny_data):
    data = tiny_settings.data.model_copy(update={"cache_mb": 4, "workers": 2})
    train, val = retraining_loaders(tiny_data, data, tiny_settings.skeleton, 0, 1)
    assert train.dataset.images._capacity == val.dataset._capacity == 2 * 10**6


def test_the_machine_chooses_only_where_no_number_is_given(tiny_settings, tiny_data, caplog, monkeypatch):
    def workers(cores=8, processes=1, **changes):
        monkeypatch.setattr("hitdet_nni.data.loaders.available_cores", lambda: cores)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        data = tiny_settings.data.model_copy(update=changes)
        return resolve_num_workers(data, tiny_settings.skeleton, tiny_data.train, tiny_data.val).workers

    with caplog.at_level(logging.INFO, "hitdet_nni"):
        assert workers() == 0  # 20 images of 96 x 96 fit
    assert "images: 1 MB kept in memory, 0 loader processes" in caplog.text
    assert workers(cache_mb=0) == MOST_WORKERS
    assert workers(cache_mb=0, cores=3) == 2
    assert workers(cache_mb=0, cores=8, processes=4) == 1
    assert workers(cache_mb=0, cores=1) == 0
    assert workers(cache_mb=0, workers=7) == 7
    assert workers(workers=2) == 2


def test_larger_images_are_kept_where_parts_of_them_are_cut_out(tiny_settings, tiny_data, caplog):
    """The bytes that are said to be kept are those that are."""
    data = tiny_settings.data.model_copy(update={"augment": "standard"})
    with caplog.at_level(logging.INFO, "hitdet_nni"):
        train, val = retraining_loaders(tiny_data, data, tiny_settings.skeleton, 0, 1)
    for loader in (train, val):
        list(loader)
    kept = sum(each["img"].nbytes for one in (train.dataset.images, val.dataset) for each in one._cached.values())
    assert kept == 3 * 96**2 * (1.5**2 * len(tiny_data.train.image_ids) + len(tiny_data.val.image_ids))
    assert f"images: {kept / 1e6:.0f} MB kept in memory" in caplog.text


def test_there_is_a_core():
    assert available_cores() >= 1
