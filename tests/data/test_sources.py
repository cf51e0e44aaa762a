"""From settings to checked annotations."""

import pytest

from hitdet_nni.config.settings import DataSettings, load_settings
from hitdet_nni.data.sources import open_data
from hitdet_nni.errors import InputError


def test_data_that_is_left_open(refused):
    with refused("data.root", "coco2017", "instances_val2017.json"):
        open_data(load_settings("coco2017").data, 0)
    with refused("data.root: is missing", "a folder of images", "data.train_ann", "data.layout", "builtin"):
        open_data(load_settings("coco_release").data, 0)


def test_embedded_set_is_made_once(tiny_settings, tiny_data):
    stamp = tiny_data.train.ann.stat().st_mtime_ns
    assert open_data(tiny_settings.data, tiny_settings.seed).train.ann.stat().st_mtime_ns == stamp


def test_broken_image_is_refused_before_training(tmp_path, tiny_data):
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
