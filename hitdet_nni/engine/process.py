"""What every process that computes sets up first: threads, and the noise of libraries that speaks of their innards."""

from __future__ import annotations

import logging
import warnings

import torch


def prepare_process(threads: int) -> None:
    """Set the number of torch threads and silence third-party notices that a user can do nothing about.

    Args:
        threads: Threads of this process. On a small shared machine more than one is many times slower.
    """
    torch.set_num_threads(threads)
    for name in ("pytorch_lightning", "lightning.pytorch", "nni.nas"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for module in ("nni", "mmengine", "mmdet", "mmcv", "pytorch_lightning", "torch"):
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
