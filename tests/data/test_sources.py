"""From settings to checked annotations."""

import pytest
from layouts import WRITERS, shots, write_coco, write_yolo

from hitdet_nni.config.settings import DataSettings, load_settings
from hitdet_nni.data.sources import open_data, split_parts
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


def test_validation_images_that_are_named_are_not_split_off(tmp_path):
    """Those of training, to measure on them: none is taken from training."""
    root = tmp_path / "my_images"
    write_coco(root, {"train": shots(tmp_path / "made", 10)}, ("zebra", "ant"))
    paths = {"ann": root / "annotations" / "instances_train.json", "images": root / "train"}
    settings = DataSettings(root=root, **{f"val_{key}": path for key, path in paths.items()})
    assert not split_parts(settings, 0).split_off
    data = open_data(settings, 0)
    assert data.train.file_names == data.val.file_names
    assert len(data.val.image_ids) == 10


@pytest.mark.parametrize("kind", WRITERS)
def test_validation_images_that_nothing_names_are_split_off(tmp_path, kind):
    root = tmp_path / "my_images"
    WRITERS[kind](root, {"train": shots(tmp_path / "made", 10)}, ("zebra", "ant"))
    assert split_parts(DataSettings(root=root), 0).split_off
    data = open_data(DataSettings(root=root), 0)
    assert (len(data.train.image_ids), len(data.val.image_ids)) == (8, 2)


def test_a_folder_that_names_its_training_images_twice(tmp_path):
    root = tmp_path / "my_images"
    write_yolo(root, {"train": shots(tmp_path / "made", 10)}, ("zebra", "ant"), val="images/train")
    data = open_data(DataSettings(root=root), 0)
    assert (len(data.train.image_ids), len(data.val.image_ids)) == (10, 10)
