"""Images and boxes for a detector: mmdet's data set of a split, its transforms, and what of it stays in memory.

The same transforms serve search, retraining and evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import mmdet.datasets  # noqa: F401  (registers CocoDataset and the transforms)
import numpy as np
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations
from hitdet_nni.data.images.reading import readable

RANDOM_TRANSFORMS = ("RandomFlip",)
"""Transforms that come out differently each time; what stands before them does not."""


def dataset_config(
    annotations: CocoAnnotations, skeleton: Skeleton, *, training: bool, flip: bool = False
) -> dict[str, Any]:
    """Build the mmdet config of one split.

    Images are resized, keeping their ratio, to fit the skeleton's input size; the detector pads the batch.

    Args:
        annotations: A checked annotation file.
        skeleton: Gives the input size.
        training: Whether boxes are loaded and images without boxes left out.
        flip: Whether half of the training images are mirrored.
    """
    height, width = skeleton.input_size
    pipeline: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "Resize", "scale": (width, height), "keep_ratio": True},
    ]
    if flip:
        pipeline.append({"type": "RandomFlip", "prob": 0.5})
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    pipeline.append({"type": "PackDetInputs", "meta_keys": (*keys, "flip", "flip_direction") if flip else keys})
    return {
        "type": "CocoDataset",
        "_scope_": "mmdet",
        "ann_file": str(annotations.ann),
        "data_prefix": {"img": str(annotations.images)},
        "metainfo": {"classes": list(annotations.classes_in_file_order)},
        "filter_cfg": {"filter_empty_gt": True, "min_size": 1} if training else None,
        "test_mode": not training,
        "pipeline": pipeline,
    }


def build_dataset(annotations: CocoAnnotations, skeleton: Skeleton, *, training: bool, flip: bool = False) -> Any:
    """Build the mmdet data set of one split; arguments as :func:`dataset_config`."""
    with redirect_stdout(None):  # pycocotools prints its progress
        return DATASETS.build(dataset_config(annotations, skeleton, training=training, flip=flip))


class CachedDataset(Dataset[Any]):
    """An mmdet data set whose images are read, decoded and resized once.

    What each image becomes before the first random transform is kept; random transforms run every time, on a copy,
    and draw the same random numbers as without this. Loader processes keep images of their own.

    Args:
        dataset: An mmdet data set, of which no transform gives an image up.
        capacity: Bytes of pixels to keep; images beyond are transformed anew each time.

    Attributes:
        metainfo: The data set's, which mmengine asks for.
    """

    def __init__(self, dataset: Any, capacity: int) -> None:
        transforms = dataset.pipeline.transforms
        names = [type(transform).__name__ for transform in transforms]
        # Packing stays outside: it makes the tensors that become the batch's.
        first = next(i for i, name in enumerate(names) if name in (*RANDOM_TRANSFORMS, "PackDetInputs"))
        self.dataset = dataset
        self.metainfo = dataset.metainfo
        self._steady, self._varying = transforms[:first], transforms[first:]
        self._input_size = next((tuple(each.scale[::-1]) for each in transforms if getattr(each, "scale", None)), None)
        self._capacity = capacity
        self._cached: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Return the packed image: ``{"inputs": tensor, "data_samples": DetDataSample}``.

        Raises:
            ImageError: If its file has gone or was damaged since it was checked.
        """
        results = self._cached.get(index)
        if results is None:
            results = self.dataset.get_data_info(index)
            with readable(Path(results["img_path"]), self._input_size):
                for transform in self._steady:
                    results = transform(results)
            if self._capacity >= results["img"].nbytes:
                self._capacity -= results["img"].nbytes
                self._cached[index] = results
        packed: Any = _copy(results)
        for transform in self._varying:
            packed = transform(packed)
        return packed


def _copy(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same values in arrays and boxes of their own."""
    return {
        key: value.copy() if isinstance(value, np.ndarray) else value.clone() if hasattr(value, "clone") else value
        for key, value in results.items()
    }
