"""Whether the validation images are enough to tell that a detector has learned from its annotations."""

from __future__ import annotations

import logging

from hitdet_nni.config.settings import Settings
from hitdet_nni.data.sources import DetectionData
from hitdet_nni.data.wording import counted
from hitdet_nni.engine import distributed
from hitdet_nni.nas.health.diagnosis import MIN_BATCHES
from hitdet_nni.runs.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def num_comparable(images: int, batch_size: int, processes: int) -> int:
    """Return the batches of validation images in which there are two or more, so that they can exchange annotations.

    Args:
        images: Validation images, which all processes share.
        batch_size: Images of a batch.
        processes: Processes of the training.
    """
    shares = (len(range(process, images, processes)) for process in range(processes))
    return sum(share // batch_size + (share % batch_size > 1) for share in shares) if batch_size > 1 else 0


def too_few_batches(images: int, batch_size: int, processes: int) -> str | None:
    """Return what to do where there are too few batches for a verdict, in a line; arguments as :func:`num_comparable`.

    Returns:
        ``None`` where there are enough.
    """
    found = num_comparable(images, batch_size, processes)
    if found >= MIN_BATCHES:
        return None
    sizes = range(max(batch_size, 2), 1, -1)
    enough = next((size for size in sizes if num_comparable(images, size, processes) >= MIN_BATCHES), None)
    if enough is not None:
        way = f"data.batch_size={enough} gives enough"
    else:
        least = images
        while num_comparable(least, 2, processes) < MIN_BATCHES:
            least += 1
        way = (
            f"try {least} validation images or more with data.batch_size=2, or {MIN_BATCHES} batches of any larger size"
        )
    batches = counted(found, "{batch|batches} of two or more images")
    return (
        f"{images} validation images in batches of {batch_size} are too few to tell whether the detector has learned "
        f"from its annotations ({batches}, threshold {MIN_BATCHES}); {way}"
    )


def tell_too_few_batches(run: RunDirectory, settings: Settings, data: DetectionData) -> None:
    """Log that line at the begin of a command, before all stages that train a supernet, and put it into the metadata.

    Args:
        run: Where they write.
        settings: All settings.
        data: The images.
    """
    line = too_few_batches(len(data.val.image_ids), settings.data.batch_size, distributed.world_size())
    if line is not None and distributed.is_main():
        logger.warning("%s", line)
        run.note_warnings("validation", [line])
