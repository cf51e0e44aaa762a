"""Images in two parts, the folder that a test makes of them, and what is told of it."""

import logging

import pytest
from layouts import shots

from hitdet_nni.data.layouts import recognise


@pytest.fixture
def parts(tmp_path):
    """Training and validation images."""
    return {"train": shots(tmp_path / "made", 6), "val": shots(tmp_path / "made", 3, first=6)}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "my_images"


@pytest.fixture
def said(caplog, monkeypatch):
    """The lines that were told since the test began."""
    monkeypatch.setattr(recognise, "_said", set())
    caplog.set_level(logging.WARNING, "hitdet_nni")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)
