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

from hitdet_nni.config.data_settings import Augmentation
from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations
from hitdet_nni.data.images.reading import readable

MIXING_TRANSFORMS = ("Mosaic", "RandomAffine")
"""Transforms that put several images into one; a training's last epochs go without them."""

RANDOM_TRANSFORMS = (*MIXING_TRANSFORMS, "RandomResize", "RandomCrop", "YOLOXHSVRandomAug", "RandomFlip")
"""Transforms that come out differently each time; what stands before them does not."""

SCALES = (0.5, 1.5)
"""Least and largest scale of a training image, where it is drawn."""

GREY = 114.0
"""What stands where no image is, of 255: about the mean of photographs (mmdet's value)."""


FEW_IMAGES = 20_000
"""Images up to which the entries of a data set stay objects. Loader processes share those of more as bytes, for which
mmengine looks through the whole process for garbage, .2 s a data set and more."""


def kept_scale(augment: Augmentation) -> float:
    """Return the size that training images are read at, over the skeleton's: parts are cut out of larger ones."""
    return SCALES[1] if augment == "standard" else 1.0


def image_pipeline(
    skeleton: Skeleton, augment: Augmentation, *, flip: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return mmdet's transforms of an image that always do the same, and those behind them.

    Images are resized, keeping their ratio, to fit the skeleton's input size; the detector pads the batch.

    Args:
        skeleton: Gives the input size.
        augment: What befalls the image.
        flip: Whether half of the images are mirrored.
    """
    height, width = skeleton.input_size
    largest = kept_scale(augment)
    steady: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "Resize", "scale": (round(largest * width), round(largest * height)), "keep_ratio": True},
    ]
    varying = _augmentation(augment, width, height)
    if flip:
        varying.append({"type": "RandomFlip", "prob": 0.5})
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    varying.append({"type": "PackDetInputs", "meta_keys": (*keys, "flip", "flip_direction") if flip else keys})
    return steady, varying


def _augmentation(augment: Augmentation, width: int, height: int) -> list[dict[str, Any]]:
    """Return the random transforms of an augmentation, mirroring left out."""
    colour = {"type": "YOLOXHSVRandomAug"}
    visible = {"type": "FilterAnnotations", "min_gt_bbox_wh": (1, 1), "keep_empty": False}
    if augment == "standard":
        return [
            {
                "type": "RandomResize",
                "scale": (width, height),
                "ratio_range": SCALES,
                "resize_type": "mmdet.Resize",
                "keep_ratio": True,
            },
            {"type": "RandomCrop", "crop_size": (height, width), "allow_negative_crop": True},
            colour,
            visible,
        ]
    if augment == "strong":
        return [
            {"type": "Mosaic", "img_scale": (width, height), "pad_val": GREY},
            {
                "type": "RandomAffine",
                "max_rotate_degree": 0.0,
                "max_shear_degree": 0.0,
                "scaling_ratio_range": SCALES,
                "border": (-(width // 2), -(height // 2)),
                "border_val": (GREY, GREY, GREY),
            },
            colour,
            visible,
        ]
    return []


def dataset_config(
    annotations: CocoAnnotations,
    skeleton: Skeleton,
    *,
    training: bool,
    flip: bool = False,
    augment: Augmentation = "flip",
    filter_empty_gt: bool = True,
) -> dict[str, Any]:
    """Build the mmdet config of one split.

    Args:
        annotations: A checked annotation file.
        skeleton: Gives the input size.
        training: Whether boxes are loaded.
        flip: Whether half of the training images are mirrored, unless nothing is to befall them.
        augment: What else befalls the training images. Several images in one are for :class:`CachedDataset`, or mmdet's
            ``MultiImageMixDataset``.
        filter_empty_gt: Whether images without boxes are left out of training.
    """
    augment = augment if training else "none"
    steady, varying = image_pipeline(skeleton, augment, flip=flip and augment != "none")
    return {
        "type": "CocoDataset",
        "_scope_": "mmdet",
        "ann_file": str(annotations.ann),
        "data_prefix": {"img": str(annotations.images)},
        "metainfo": {"classes": list(annotations.classes_in_file_order)},
        "filter_cfg": {"filter_empty_gt": filter_empty_gt, "min_size": 1} if training else None,
        "test_mode": not training,
        "pipeline": steady + varying,
    }


def build_dataset(
    annotations: CocoAnnotations,
    skeleton: Skeleton,
    *,
    training: bool,
    flip: bool = False,
    augment: Augmentation = "flip",
    filter_empty_gt: bool = True,
) -> Any:
    """Build the mmdet data set of one split; arguments as :func:`dataset_config`."""
    config = dataset_config(
        annotations, skeleton, training=training, flip=flip, augment=augment, filter_empty_gt=filter_empty_gt
    )
    as_bytes = len(annotations.image_ids) > FEW_IMAGES
    with redirect_stdout(None):  # pycocotools prints its progress
        return DATASETS.build(config | {"serialize_data": as_bytes})


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
        """Return the packed image as :meth:`image` does, with others in it where a transform asks for them."""
        return self.image(index)

    def image(self, index: int, *, mix: bool = True) -> Any:
        """Return the packed image: ``{"inputs": tensor, "data_samples": DetDataSample}``.

        Args:
            index: Its place.
            mix: Whether several images may be put into one.

        Raises:
            ImageError: If a file has gone or was damaged since it was checked.
        """
        packed: Any = _copy(self._unvaried(index))
        for transform in self._varying:
            if mix or type(transform).__name__ not in MIXING_TRANSFORMS:
                if hasattr(transform, "get_indexes"):
                    packed["mix_results"] = [_copy(self._unvaried(each)) for each in transform.get_indexes(self)]
                packed = transform(packed)
        return packed

    def _unvaried(self, index: int) -> dict[str, Any]:
        """Return what an image is before the first random transform."""
        results = self._cached.get(index)
        if results is None:
            results = self.dataset.get_data_info(index)
            with readable(Path(results["img_path"]), self._input_size):
                for transform in self._steady:
                    results = transform(results)
            if self._capacity >= results["img"].nbytes:
                self._capacity -= results["img"].nbytes
                self._cached[index] = results
        return results


def _copy(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same values in arrays and boxes of their own."""
    return {
        key: value.copy() if isinstance(value, np.ndarray) else value.clone() if hasattr(value, "clone") else value
        for key, value in results.items()
    }
