import pytest
import torch

import hitdet_nni  # noqa: F401  serves mmcv.ops before a test module imports it


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
