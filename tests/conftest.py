"""What several test modules share: one thread, the small skeleton, random samples, the one-line error check."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import random
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # programs for a GPU are interpreted; read when Triton is imported

from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.sources import open_data
from hitdet_nni.errors import InputError

# No package tells its makers of a test: OpenVINO would start a process for that, from a thread.
sys.modules["openvino_telemetry"] = None
os.environ["MLFLOW_DISABLE_TELEMETRY"], os.environ["WANDB_ERROR_REPORTING"] = "true", "false"
torch.set_num_threads(1)


def pytest_collection():
    """Collect no garbage while test modules are imported, with all that they import."""
    gc.disable()


def pytest_collection_finish():
    """Leave what the test modules have imported out of later collections: mmengine asks for one for every data set."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Embedded data sets of the tests do not go into the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _no_step_estimates():
    """Spare the estimate of a step's memory, which takes longer than many a training here and is for a log line."""
    supernet = sys.modules.get("hitdet_nni.nas.supernet")
    with pytest.MonkeyPatch.context() as context:
        if supernet is not None:
            context.setattr(supernet, "_tell_memory", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def tiny_settings():
    """The shipped `tiny` config with fewer images."""
    return load_settings("tiny", {"data.train": 16, "data.val": 4})


@pytest.fixture(scope="session")
def tiny_data(tiny_settings, _own_cache):
    """The embedded digits of `tiny_settings`."""
    return open_data(tiny_settings.data, tiny_settings.seed)


@pytest.fixture(scope="session")
def shared_data():
    """Folder of real photographs, where the machine has them."""
    folder = os.environ.get("HITDET_SHARED_DATA")
    if folder is None:
        assert "HITDET_REQUIRE_SHARED_DATA" not in os.environ
        pytest.skip("HITDET_SHARED_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def tiny():
    """The skeleton of the shipped `tiny` config."""
    return load_settings("tiny").skeleton


@pytest.fixture(scope="session")
def published():
    """The published sub search spaces."""
    return load_search_space("hit_detector")


@pytest.fixture(scope="session")
def draw():
    """Draw a sample of a skeleton: one operator a label, from a space, by a seed."""

    def sample(skeleton, space, seed):
        rng = random.Random(seed)
        return {layer.label: rng.choice(space[layer.component]) for layer in skeleton.searched_layers()}

    return sample


@pytest.fixture
def figure(record_property):
    """Write a line that the summary of the test run shows, whether the test passes or fails."""
    return lambda text: record_property("figure", text)


def pytest_terminal_summary(terminalreporter):
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    figures = [(report.nodeid, text) for report in reports for name, text in report.user_properties if name == "figure"]
    if figures:
        terminalreporter.section("figures")
        for test, text in figures:
            terminalreporter.line(f"{test.rsplit('/')[-1]}: {text}")


@pytest.fixture(scope="session")
def refused():
    """Context in which an `InputError` must be raised: one line that contains every fragment."""

    @contextmanager
    def check(*fragments):
        with pytest.raises(InputError) as caught:
            yield
        text = str(caught.value)
        assert "\n" not in text
        for fragment in fragments:
            assert str(fragment) in text

    return check
