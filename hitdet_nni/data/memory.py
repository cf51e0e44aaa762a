"""Pictures of small sets decoded and resized once and kept in memory, and how many processes load those of others."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hitdet_nni.config.settings import DataSettings
from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.data.coco import CocoDataset
from hitdet_nni.data.pictures import readable
from hitdet_nni.engine import distributed
from hitdet_nni.engine.machine import available_cores

logger = logging.getLogger(__name__)

RANDOM_TRANSFORMS = ("RandomFlip",)
"""Transforms of our pipelines that come out differently each time; what stands before them does not."""

MOST_WORKERS = 4
"""Loader processes of a loader at most, where the machine chooses."""


class KeptPictures(Dataset[Any]):
    """An mmdet data set whose pictures are read, decoded and resized once.

    What each picture becomes before the first random transform is kept; random transforms run every time, on a copy,
    and draw the same random numbers as without this. Loader processes keep pictures of their own.

    Args:
        pictures: An mmdet data set, of which no transform gives a picture up.
        room: Bytes of pixels to keep; pictures beyond are transformed anew each time.

    Attributes:
        metainfo: The data set's, which mmengine asks for.
    """

    def __init__(self, pictures: Any, room: int) -> None:
        transforms = pictures.pipeline.transforms
        names = [type(transform).__name__ for transform in transforms]
        # Packing stays outside: it makes the tensors that become the batch's.
        first = next(i for i, name in enumerate(names) if name in (*RANDOM_TRANSFORMS, "PackDetInputs"))
        self.pictures = pictures
        self.metainfo = pictures.metainfo
        self._steady, self._varying = transforms[:first], transforms[first:]
        self._input_size = next((tuple(each.scale[::-1]) for each in transforms if getattr(each, "scale", None)), None)
        self._room = room
        self._kept: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.pictures)

    def __getitem__(self, index: int) -> Any:
        """The packed picture: ``{"inputs": tensor, "data_samples": DetDataSample}``.

        Raises:
            PictureError: If its file has gone or was damaged since it was checked.
        """
        results = self._kept.get(index)
        if results is None:
            results = self.pictures.get_data_info(index)
            with readable(Path(results["img_path"]), self._input_size):
                for transform in self._steady:
                    results = transform(results)
            if self._room >= results["img"].nbytes:
                self._room -= results["img"].nbytes
                self._kept[index] = results
        packed: Any = _copy(results)
        for transform in self._varying:
            packed = transform(packed)
        return packed


def _copy(results: Mapping[str, Any]) -> dict[str, Any]:
    """The same values in arrays and boxes of their own."""
    return {
        key: value.copy() if isinstance(value, np.ndarray) else value.clone() if hasattr(value, "clone") else value
        for key, value in results.items()
    }


def settle_loading(settings: DataSettings, skeleton: Skeleton, *datasets: CocoDataset) -> DataSettings:
    """The settings with a number of loader processes; says in a line what was chosen.

    Where the settings leave the number to the machine, it is 0 if all pictures fit into ``cache_mb``, because a loader
    process would only copy what is there. Otherwise it is the cores that this process has to itself, less one, and
    at most :data:`MOST_WORKERS`. The order and augmentation of pictures do not depend on it.

    Args:
        settings: The ``data`` section.
        skeleton: Gives the size to which pictures are resized.
        datasets: The splits to be loaded.
    """
    rows, columns = skeleton.input_size
    needed = 3 * rows * columns * sum(len(dataset.image_ids) for dataset in datasets)
    fit = needed <= settings.cache_mb * 10**6
    workers = settings.workers
    cores = available_cores()
    if workers is None:
        workers = 0 if fit else max(0, min(MOST_WORKERS, cores // distributed.local_processes() - 1))
    logger.info(
        "pictures: %s, %d loader processes, %d torch thread(s), %d core(s)",
        f"{needed / 1e6:.0f} MB kept in memory" if fit else f"{settings.cache_mb} MB of up to {needed / 1e6:.0f} kept",
        workers,
        torch.get_num_threads(),
        cores,
    )
    return settings.model_copy(update={"workers": workers})


def kept(pictures: Any, settings: DataSettings) -> KeptPictures:
    """An mmdet data set with the memory that settled settings give to it; loader processes share the room."""
    return KeptPictures(pictures, settings.cache_mb * 10**6 // max(1, settings.workers or 0))
