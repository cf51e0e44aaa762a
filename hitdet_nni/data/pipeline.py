"""From checked annotations to mmdet data sets and loaders, the same ones for searching and for retraining."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import mmdet.datasets  # noqa: F401  (registers CocoDataset and the transforms)
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from nni.nas.evaluator.pytorch import DataLoader
from torch.utils.data import Dataset, Subset

from hitdet_nni.config.data_settings import DataSettings
from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.data.coco import CocoDataset
from hitdet_nni.data.halves import kept_halves
from hitdet_nni.data.memory import kept, settle_loading
from hitdet_nni.data.sampling import ResumableSampler, SeededPictures, steps_an_epoch
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine import distributed


def dataset_config(dataset: CocoDataset, skeleton: Skeleton, *, training: bool, flip: bool = False) -> dict[str, Any]:
    """The mmdet config of one split.

    Pictures are resized, keeping their ratio, to fit the skeleton's input size; the detector pads the batch.

    Args:
        dataset: A checked annotation file.
        skeleton: Gives the input size.
        training: Whether boxes are loaded and pictures without boxes left out.
        flip: Whether half of the training pictures are mirrored.
    """
    rows, columns = skeleton.input_size
    pipeline: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "Resize", "scale": (columns, rows), "keep_ratio": True},
    ]
    if flip:
        pipeline.append({"type": "RandomFlip", "prob": 0.5})
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    pipeline.append({"type": "PackDetInputs", "meta_keys": (*keys, "flip", "flip_direction") if flip else keys})
    return {
        "type": "CocoDataset",
        "_scope_": "mmdet",
        "ann_file": str(dataset.ann),
        "data_prefix": {"img": str(dataset.images)},
        "metainfo": {"classes": list(dataset.classes_in_file_order)},
        "filter_cfg": {"filter_empty_gt": True, "min_size": 1} if training else None,
        "test_mode": not training,
        "pipeline": pipeline,
    }


def build_dataset(dataset: CocoDataset, skeleton: Skeleton, *, training: bool, flip: bool = False) -> Any:
    """Build the mmdet data set of one split; arguments as :func:`dataset_config`."""
    with redirect_stdout(None):  # pycocotools prints its progress
        return DATASETS.build(dataset_config(dataset, skeleton, training=training, flip=flip))


def loader(dataset: Dataset[Any], settings: DataSettings, sampler: ResumableSampler | None = None) -> Any:
    """A data loader of batches ``{"inputs": [tensor, ...], "data_samples": [DetDataSample, ...]}``.

    Args:
        dataset: The pictures; with a sampler, of the form that it asks for.
        settings: Gives the batch size and the loader processes, settled by :func:`settle_loading`.
        sampler: Order of training pictures; without it they come once each, in the data set's order.
    """
    return DataLoader(
        dataset,
        batch_size=settings.batch_size,
        sampler=sampler,
        num_workers=settings.workers or 0,
        persistent_workers=bool(settings.workers),
        collate_fn=pseudo_collate,
        generator=torch.Generator(),  # a loader that starts draws a number: not from the training's generator
    )


def search_loaders(data: DetectionData, settings: DataSettings, skeleton: Skeleton, seed: int) -> tuple[Any, Any, Any]:
    """Loaders of a search: the half for weights, the half for architecture parameters, the validation pictures.

    Training batches are always full, because batch normalisation would suffer from a short one, and both halves have
    as many of them an epoch. Several processes share each half, and the validation pictures. The halves are those of
    the file that the data names, where it is there.

    Source:
        Section 3.4: weights on 50 % of the training data, architecture parameters on the rest.
    """
    settings = settle_loading(settings, skeleton, data.train, data.val)
    train = build_dataset(data.train, skeleton, training=True, flip=settings.flip)
    index = {train.get_data_info(i)["img_id"]: i for i in range(len(train))}
    halves = kept_halves(data.halves, index, seed, image_classes=data.train.image_classes)
    rank, processes = distributed.rank(), distributed.processes()
    steps = steps_an_epoch(max(map(len, halves)), settings.batch_size, processes)
    pictures = kept(train, settings)
    training = [
        loader(
            SeededPictures(Subset(pictures, _indices(index, half))),
            settings,
            ResumableSampler(len(half), settings.batch_size, steps, seed + number, rank=rank, processes=processes),
        )
        for number, half in enumerate(halves)
    ]
    val = kept(build_dataset(data.val, skeleton, training=False), settings)
    return (*training, loader(Subset(val, range(rank, len(val), processes)), settings))


def _indices(index: dict[int, int], image_ids: Sequence[int]) -> list[int]:
    return [index[image_id] for image_id in image_ids]
