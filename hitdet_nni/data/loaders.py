"""Every loader of images: those of a search, of a retraining, of an evaluation and of a pretraining.

A batch comes about in three steps: a sampler says which images and by which random numbers
(:mod:`hitdet_nni.data.sampling`), a data set reads, resizes and augments them (:mod:`hitdet_nni.data.datasets`), a
loader of this module puts them together, in processes of its own where that pays.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from mmengine.dataset import DefaultSampler, pseudo_collate
from nni.nas.evaluator.pytorch import DataLoader
from torch.utils.data import Dataset, Sampler, Subset

from hitdet_nni.config.data_settings import Augmentation, DataSettings
from hitdet_nni.config.settings import PretrainSettings
from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations
from hitdet_nni.data.class_folders import ClassificationData
from hitdet_nni.data.datasets.classification import build_images, collate
from hitdet_nni.data.datasets.detection import CachedDataset, build_dataset, dataset_config, image_pipeline, kept_scale
from hitdet_nni.data.halves import HALF_NAMES, load_or_create_split
from hitdet_nni.data.sampling import ResumableSampler, SeededImages, steps_an_epoch
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.engine import distributed
from hitdet_nni.engine.machine import available_cores

logger = logging.getLogger(__name__)

LARGER_WITHOUT_GRADIENTS = 4
"""How many times a training batch a batch may be that needs no gradients: its single path keeps no activations."""

MOST_WORKERS = 4
"""Loader processes of a loader at most, where the machine chooses."""

MIXED_SHARE = 0.85
"""Share of a training's epochs in which several images are put into one, where that is asked for: the last ones see
images as those that are detected in."""

EVALUATION_BATCH = 1
"""Images of an evaluation's batch. Images of other shapes are padded to one, and what a detector finds in an image
would depend on its neighbours."""

EXPORTED_WORKERS = 2
"""Loader processes of a config that may be used on any machine: mmdet's own number."""


def search_loaders(data: DetectionData, settings: DataSettings, skeleton: Skeleton, seed: int) -> tuple[Any, Any, Any]:
    """Build the loaders of a search: the half for weights, that for architecture parameters, the validation images.

    Training batches are always full, because batch normalisation would suffer from a short one, and both halves have
    as many of them an epoch. Several processes share each half, and the validation images. The halves are those of
    the file that the data names, where it is there.

    Args:
        data: The images.
        settings: The ``data`` section.
        skeleton: Gives the input size.
        seed: Seed of order and augmentation; that of the halves, unless the settings give them their own.

    Returns:
        Three loaders of batches ``{"inputs": [tensor, ...], "data_samples": [DetDataSample, ...]}``; the ``sampler`` of
        the first two is a :class:`~hitdet_nni.data.sampling.ResumableSampler`.

    Raises:
        InputError: If there are too few images to split, or the file of the halves is that of others.

    Source:
        Section 3.4: weights on 50 % of the training data, architecture parameters on the rest.
    """
    settings = resolve_num_workers(settings, skeleton, data.train, data.val)
    halves = _training_halves(data, settings, skeleton, seed)
    longest = max(map(len, halves))
    training = [_training_loader(half, settings, seed + number, longest=longest) for number, half in enumerate(halves)]
    val = _in_memory(build_dataset(data.val, skeleton, training=False), settings)
    return (*training, detection_loader(Subset(val, _own_share(len(val))), settings))


def architecture_loader(
    data: DetectionData, settings: DataSettings, skeleton: Skeleton, seed: int, images: int, skip: int = 0
) -> Any:
    """Build a loader of some images of the half for architecture parameters, by which architectures are compared.

    Args:
        data: The images.
        settings: The ``data`` section.
        skeleton: Gives the input size.
        seed: Seed of the halves, as :func:`search_loaders` had it, and of the choice and augmentation of the images.
        images: Images at most; there are full batches of them, at least one. A batch is up to
            :data:`LARGER_WITHOUT_GRADIENTS` times as large as in training.
        skip: Images that are left out: those that the loader without this would have if it had so many. At least a
            batch is left.

    Returns:
        A loader of batches as :func:`search_loaders` has them: the same ones each time, in every process.
    """
    half = _training_halves(data, settings, skeleton, seed)[HALF_NAMES.index("alphas")]
    seed += len(HALF_NAMES)
    skip = min(skip, len(half) - settings.batch_size)
    if skip > 0:
        first = ResumableSampler(len(half), len(half), 1, seed)  # goes through the half as one without skip does
        half = Subset(half, [draw.image for draw in first][skip:])
    images = min(images, len(half))
    batch_size = max(settings.batch_size, min(images, LARGER_WITHOUT_GRADIENTS * settings.batch_size))
    larger = settings.model_copy(update={"batch_size": batch_size})
    sampler = ResumableSampler(len(half), batch_size, steps_an_epoch(images, batch_size), seed)
    return detection_loader(SeededImages(half), larger, sampler)


def architecture_half_size(data: DetectionData, settings: DataSettings, skeleton: Skeleton, seed: int) -> int:
    """Return how many images the half for architecture parameters has; arguments as :func:`architecture_loader`."""
    return len(_training_halves(data, settings, skeleton, seed)[HALF_NAMES.index("alphas")])


def weights_half(data: DetectionData, settings: DataSettings, skeleton: Skeleton, seed: int) -> tuple[int, ...]:
    """Return the ids of the training images whose half is for weights; arguments as :func:`search_loaders`.

    Raises:
        InputError: As :func:`search_loaders`.
    """
    train = _training_images(data, settings, skeleton)
    return _split(data, settings, seed, train)[HALF_NAMES.index("weights")]


def retraining_loaders(
    data: DetectionData, settings: DataSettings, skeleton: Skeleton, seed: int, epochs: int
) -> tuple[Any, Any]:
    """Build the loaders of a retraining: the training images, and the validation images as an evaluation has them.

    Args:
        data: The images.
        settings: The ``data`` section.
        skeleton: Gives the input size.
        seed: Seed of order and augmentation.
        epochs: Epochs of the training; the last of them put no images together (:data:`MIXED_SHARE`).

    Returns:
        Two loaders of batches as :func:`search_loaders` has them. The first gives full batches, shared by processes;
        its ``sampler`` is a :class:`~hitdet_nni.data.sampling.ResumableSampler`.
    """
    settings = resolve_num_workers(settings, skeleton, data.train, data.val, augment=settings.augment)
    augmented = _training_images(data, settings, skeleton, settings.augment)
    mix_epochs = math.floor(MIXED_SHARE * epochs) if settings.augment == "strong" else None
    train = _training_loader(_in_memory(augmented, settings), settings, seed, mix_epochs=mix_epochs)
    return train, _evaluation_loader(data.val, settings, skeleton, seed)


def evaluation_loader(annotations: CocoAnnotations, settings: DataSettings, skeleton: Skeleton, seed: int) -> Any:
    """Build the loader of an evaluation: every image by itself, in the order of the file, shared by processes.

    Args:
        annotations: The validation images.
        settings: The ``data`` section.
        skeleton: Gives the input size.
        seed: A number that mmengine's sampler asks for; the order does not depend on it.

    Returns:
        A loader of batches as :func:`search_loaders` has them.
    """
    return _evaluation_loader(annotations, resolve_num_workers(settings, skeleton, annotations), skeleton, seed)


def loader_config(
    annotations: CocoAnnotations, settings: DataSettings, skeleton: Skeleton, *, training: bool
) -> dict[str, Any]:
    """Return what plain mmdet and mmengine build a loader of the same images from.

    Args:
        annotations: The images.
        settings: The ``data`` section; where it leaves the loader processes to the machine, they are
            :data:`EXPORTED_WORKERS`.
        skeleton: Gives the input size.
        training: Whether images are shuffled and augmented, and those without boxes left out where the settings say so.
    """
    workers = EXPORTED_WORKERS if settings.workers is None else settings.workers
    flip = training and settings.flip
    dataset = dataset_config(
        annotations,
        skeleton,
        training=training,
        flip=flip,
        augment=settings.augment,
        filter_empty_gt=settings.filter_empty_gt,
    )
    if training and settings.augment == "strong":
        steady, varying = image_pipeline(skeleton, settings.augment, flip=flip)
        dataset = {
            "type": "MultiImageMixDataset",
            "_scope_": "mmdet",
            "dataset": {**dataset, "pipeline": steady},
            "pipeline": varying,
        }
    return {
        "batch_size": settings.batch_size if training else EVALUATION_BATCH,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "collate_fn": {"type": "pseudo_collate"},
        "sampler": {"type": "DefaultSampler", "shuffle": training},
        "drop_last": training and len(annotations.image_ids) >= settings.batch_size,
        "dataset": dataset,
    }


def pretraining_loaders(data: ClassificationData, settings: PretrainSettings, seed: int) -> tuple[Any, Any]:
    """Build the loaders of a pretraining: full training batches, and every validation image once.

    Processes share both; the last validation batch may be short.

    Args:
        data: The images, or boxes of them.
        settings: The ``pretrain`` section.
        seed: Seed of order and augmentation, which follow from it, the epoch and the step.

    Returns:
        Two loaders of :data:`~hitdet_nni.data.datasets.classification.Batch`; the ``sampler`` of the first is a
        :class:`~hitdet_nni.data.sampling.ResumableSampler`.
    """
    train = build_images(data.train, settings, training=True)
    val = build_images(data.val, settings, training=False)
    sampler = _resumable_sampler(len(train), settings.batch_size, seed)
    return (
        _classification_loader(SeededImages(train), settings, sampler),
        _classification_loader(Subset(val, _own_share(len(val))), settings, None),
    )


def detection_loader(dataset: Dataset[Any], settings: DataSettings, sampler: Sampler[Any] | None = None) -> Any:
    """Build a loader of batches ``{"inputs": [tensor, ...], "data_samples": [DetDataSample, ...]}``.

    Args:
        dataset: The images; with a sampler, of the form that it asks for.
        settings: Gives the batch size and the loader processes, settled by :func:`resolve_num_workers`.
        sampler: Order of the images; without it they come once each, in the data set's order.
    """
    return _loader(dataset, settings.batch_size, settings.workers or 0, pseudo_collate, sampler)


def end_workers(loaders: Iterable[Any]) -> None:
    """End the workers of loaders at once.

    The garbage collector, to which they would be left, closes their queues before it tells them to end, and then
    waits five seconds for each.
    """
    for loader in loaders:
        loader._iterator = None


def resolve_num_workers(
    settings: DataSettings, skeleton: Skeleton, *splits: CocoAnnotations, augment: Augmentation = "flip"
) -> DataSettings:
    """Return the settings with a number of loader processes; say in a line what was chosen.

    Where the settings leave the number to the machine, it is 0 if all images fit into ``cache_mb``, because a loader
    process would only copy what is there. Otherwise it is the cores that this process has to itself, less one, and
    at most :data:`MOST_WORKERS`. The order and augmentation of images do not depend on it.

    Args:
        settings: The ``data`` section.
        skeleton: Gives the size to which images are resized.
        splits: What is to be loaded.
        augment: What befalls the images of the first of them; of the others nothing is cut out.
    """
    height, width = skeleton.input_size
    areas = [kept_scale(augment) ** 2, *(1 for _ in splits[1:])]
    images = sum(area * len(annotations.image_ids) for area, annotations in zip(areas, splits, strict=True))
    needed = 3 * height * width * images
    fit = needed <= settings.cache_mb * 10**6
    workers = settings.workers
    cores = available_cores()
    if workers is None:
        workers = 0 if fit else max(0, min(MOST_WORKERS, cores // distributed.local_world_size() - 1))
    logger.info(
        "images: %s, %d loader processes, %d torch thread(s), %d core(s)",
        f"{needed / 1e6:.0f} MB kept in memory" if fit else f"{settings.cache_mb} MB of up to {needed / 1e6:.0f} kept",
        workers,
        torch.get_num_threads(),
        cores,
    )
    return settings.model_copy(update={"workers": workers})


def _in_memory(dataset: Any, settings: DataSettings) -> CachedDataset:
    """Build an mmdet data set with the memory that settled settings give to it; loader processes share the room."""
    return CachedDataset(dataset, settings.cache_mb * 10**6 // max(1, settings.workers or 0))


def _training_images(
    data: DetectionData, settings: DataSettings, skeleton: Skeleton, augment: Augmentation = "flip"
) -> Any:
    """Build mmdet's data set of the images that are trained on."""
    return build_dataset(
        data.train,
        skeleton,
        training=True,
        flip=settings.flip,
        augment=augment,
        filter_empty_gt=settings.filter_empty_gt,
    )


def _training_halves(data: DetectionData, settings: DataSettings, skeleton: Skeleton, seed: int) -> list[Subset[Any]]:
    """Return the training images of each half, in the order of :data:`HALF_NAMES`."""
    train = _training_images(data, settings, skeleton)
    index = {train.get_data_info(i)["img_id"]: i for i in range(len(train))}
    halves = _split(data, settings, seed, train)
    images = _in_memory(train, settings)
    return [Subset(images, [index[image_id] for image_id in half]) for half in halves]


def _split(data: DetectionData, settings: DataSettings, seed: int, train: Any) -> tuple[tuple[int, ...], ...]:
    """Return the ids of the training images of each half, in the order of :data:`HALF_NAMES`."""
    ids = [train.get_data_info(number)["img_id"] for number in range(len(train))]
    return load_or_create_split(data.halves, ids, settings.seed_of(seed), image_classes=data.train.image_classes)


def _training_loader(
    images: Any, settings: DataSettings, seed: int, *, longest: int | None = None, mix_epochs: int | None = None
) -> Any:
    """Build a loader of as many full batches an epoch as so many images give, by default those there are."""
    sampler = _resumable_sampler(len(images), settings.batch_size, seed, longest=longest, mix_epochs=mix_epochs)
    return detection_loader(SeededImages(images), settings, sampler)


def _evaluation_loader(annotations: CocoAnnotations, settings: DataSettings, skeleton: Skeleton, seed: int) -> Any:
    images = _in_memory(build_dataset(annotations, skeleton, training=False), settings)
    one_by_one = settings.model_copy(update={"batch_size": EVALUATION_BATCH})
    return detection_loader(images, one_by_one, DefaultSampler(images, shuffle=False, seed=seed))


def _classification_loader(dataset: Dataset[Any], settings: PretrainSettings, sampler: Sampler[Any] | None) -> Any:
    pin_memory = torch.cuda.is_available()
    return _loader(dataset, settings.batch_size, settings.workers, collate, sampler, pin_memory=pin_memory)


def _resumable_sampler(
    images: int, batch_size: int, seed: int, *, longest: int | None = None, mix_epochs: int | None = None
) -> ResumableSampler:
    rank, processes = distributed.rank(), distributed.world_size()
    steps = steps_an_epoch(images if longest is None else longest, batch_size, processes)
    return ResumableSampler(images, batch_size, steps, seed, rank=rank, processes=processes, mix_epochs=mix_epochs)


def _own_share(images: int) -> range:
    """Return the numbers of this process's images among so many that all processes share; alone it has all."""
    processes = distributed.world_size()
    return range(distributed.rank() % processes, images, processes)


def _loader(
    dataset: Dataset[Any],
    batch_size: int,
    workers: int,
    collate_fn: Callable[[Sequence[Any]], Any],
    sampler: Sampler[Any] | None,
    *,
    pin_memory: bool = False,
) -> Any:
    """Build NNI's ``DataLoader``, which is torch's with its arguments noted, as NNI's evaluators ask for."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate_fn,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # a loader that starts draws a number: not from the training's generator
    )
