"""From data settings to mmdet data sets and loaders, the same ones for searching and for retraining."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import mmdet.datasets  # noqa: F401  (registers CocoDataset and the transforms)
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from nni.nas.evaluator.pytorch import DataLoader
from torch.utils.data import Dataset, Subset

from hitdet_nni import __version__
from hitdet_nni.data.coco import CocoDataset, check_same_classes, read_annotations
from hitdet_nni.data.digits import make_digits
from hitdet_nni.data.halves import kept_halves
from hitdet_nni.data.memory import kept, settle_loading
from hitdet_nni.data.pictures import require_sound_pictures
from hitdet_nni.data.sampling import ResumableSampler, SeededPictures, steps_an_epoch
from hitdet_nni.data.subsets import one_annotation_file
from hitdet_nni.data_settings import LAYOUTS, DataSettings
from hitdet_nni.engine import distributed
from hitdet_nni.errors import InputError
from hitdet_nni.files import locked
from hitdet_nni.skeleton import Skeleton

logger = logging.getLogger(__name__)

SMALL_SET = 2000
"""Sets of up to this many pictures are decoded once before training starts; larger ones by ``check-data`` only."""

Half = Literal["train", "val"]
HALVES: tuple[Half, ...] = get_args(Half)


@dataclass(frozen=True)
class DetectionData:
    """Checked training and validation pictures with the same classes.

    Attributes:
        train: Training pictures.
        val: Validation pictures.
        halves: File in which a search keeps how it has split the training pictures; ``None``: nowhere.
    """

    train: CocoDataset
    val: CocoDataset
    halves: Path | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of mmdet's labels."""
        return self.train.classes_in_file_order


def cache_folder() -> Path:
    """Folder in which embedded sets are kept: ``hitdet-nni`` in ``$XDG_CACHE_HOME``, by default ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hitdet-nni"


def open_data(settings: DataSettings, seed: int) -> DetectionData:
    """Read and check the pictures that the settings name; make the embedded set where they ask for it.

    Args:
        settings: The ``data`` section.
        seed: Seed of the embedded set.

    Raises:
        InputError: If a file is missing or has a defect that training would not survive.
    """
    # mmdet skips boxes without area, and COCO itself has two of them.
    train, val = (
        read_annotations(*half_source(settings, seed, half), key=f"data.{half}_ann", allow_empty_boxes=True)
        for half in HALVES
    )
    check_same_classes(train, val)
    for dataset in (train, val):
        if len(dataset.image_ids) <= SMALL_SET:
            require_sound_pictures(dataset)
    return DetectionData(train, val)


def open_validation(settings: DataSettings, seed: int) -> CocoDataset:
    """The validation half of :func:`open_data` alone; its pictures are not decoded.

    Raises:
        InputError: If a file is missing or has a defect.
    """
    return read_annotations(*half_source(settings, seed, "val"), key="data.val_ann", allow_empty_boxes=True)


def half_parts(settings: DataSettings, seed: int) -> dict[Half, tuple[tuple[Path, Path], ...]]:
    """The annotation files, each with its folder of pictures, that each half is made of.

    Args:
        settings: The ``data`` section.
        seed: Seed of the embedded set, which is made where it is asked for.

    Raises:
        InputError: If the settings name no data.
    """
    if settings.builtin is not None:
        root = _embedded_set(settings, seed)
        return {half: ((root / "annotations" / f"instances_{half}.json", root / half),) for half in HALVES}
    if settings.layout is not None and not settings.train_sources:
        allowed = f"the folder of {settings.layout}, which holds {LAYOUTS[settings.layout]['val_ann']}"
        raise InputError("is missing", key="data.root", allowed=allowed)
    if settings.val_ann is None or settings.val_images is None:
        allowed = "data.train_ann, train_images, val_ann and val_images; data.layout with data.root; data.builtin"
        raise InputError("is missing", key="data.train_ann", allowed=allowed)
    return {"train": settings.train_sources, "val": ((settings.val_ann, settings.val_images),)}


def half_source(settings: DataSettings, seed: int, half: Half) -> tuple[Path, Path]:
    """Annotation file and folder of pictures of a half; they are made where it has several parts or lists of ids.

    Args:
        settings: The ``data`` section.
        seed: Seed of the embedded set.
        half: Which half.

    Raises:
        InputError: If the settings name no data, or files that are to be put together do not fit.
    """
    parts = half_parts(settings, seed)[half]
    only, without = (settings.train_ids, settings.train_without) if half == "train" else (settings.val_ids, None)
    if len(parts) == 1 and only is None and without is None:
        return parts[0]
    return one_annotation_file(parts, cache_folder() / "subsets", half=half, only=only, without=without)


def _embedded_set(settings: DataSettings, seed: int) -> Path:
    name = f"digits-{__version__}-{settings.train}-{settings.val}-{settings.size}px-seed{seed}"
    root = cache_folder() / name
    with locked(root.parent / f"{name}.lock"):
        if not root.exists():
            make_digits(root, train=settings.train, val=settings.val, size=settings.size, seed=seed)
    return root


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
