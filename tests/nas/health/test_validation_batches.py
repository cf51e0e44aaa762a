"""What is said before a search whose validation images cannot tell whether the detector learns."""

import pytest

from hitdet_nni.config.settings import load_settings
from hitdet_nni.io import read_json
from hitdet_nni.nas.health.validation_batches import tell_too_few_batches, too_few_batches
from hitdet_nni.runs.run_directory import RunDirectory


@pytest.mark.parametrize(
    ("images", "batch_size", "processes", "way"),
    [
        (33, 8, 1, "4 batches of two or more images, threshold 8); data.batch_size=4 gives enough"),
        (32, 1, 1, "0 batches of two or more images, threshold 8); data.batch_size=2 gives enough"),
        (15, 2, 1, "7 batches of two or more images, threshold 8); try 16 validation images or more"),
        (17, 4, 2, "4 batches of two or more images, threshold 8); data.batch_size=2 gives enough"),
    ],
)
def test_too_few_validation_batches_are_said_with_what_gives_enough(images, batch_size, processes, way):
    assert way in too_few_batches(images, batch_size, processes)


def test_enough_validation_batches_are_not_mentioned():
    assert too_few_batches(58, 8, 1) is too_few_batches(33, 4, 1) is None


def test_too_few_batches_are_in_the_metadata_once(tiny_data, tmp_path, caplog):
    run, settings = RunDirectory(tmp_path / "run"), load_settings("tiny")
    run.open(settings)
    tell_too_few_batches(run, settings, tiny_data)
    (line,) = read_json(run.metadata)["warnings"]["validation"]
    assert caplog.messages == [line]
