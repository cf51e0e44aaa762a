"""COCO's average precisions of boxes, as pycocotools gives them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations
from hitdet_nni.data.images.reading import read_image
from hitdet_nni.deployment.images import Found, Pixels, detect
from hitdet_nni.operators.costs import Size
from hitdet_nni.runs.result import PRECISIONS


def box_precisions(
    truth: Any, found: Sequence[dict[str, Any]], category_ids: Sequence[int], image_ids: Sequence[int] | None = None
) -> dict[str, float]:
    """Evaluate detections, at most 100 an image.

    Args:
        truth: The annotations, a ``pycocotools.coco.COCO``.
        found: Detections as COCO's results format has them.
        category_ids: The categories that count.
        image_ids: The images that count; all by default.

    Returns:
        Average precisions in [0, 1] by the names of :data:`~hitdet_nni.runs.result.PRECISIONS`, -1 where a size has no
        boxes.
    """
    # pycocotools loads no empty list of detections, but evaluates one.
    evaluation = COCOeval(truth, truth.loadRes(list(found)) if found else COCO(), "bbox")
    evaluation.params.catIds = list(category_ids)
    if image_ids is not None:
        evaluation.params.imgIds = list(image_ids)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return {name: float(value) for name, value in zip(PRECISIONS, evaluation.stats, strict=False)}


@dataclass(frozen=True)
class Detections:
    """What a detector finds on all validation images.

    Attributes:
        validation: The images.
        found: The detections as COCO's results format has them.
    """

    validation: CocoAnnotations
    found: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, run: Callable[[Pixels], Found], input_size: Size, validation: CocoAnnotations) -> Detections:
        """Run a detector on all validation images.

        Args:
            run: A detector of resized images ``[1, 3, H', W']``.
            input_size: Height and width that it was trained for.
            validation: The images.
        """
        found: list[dict[str, Any]] = []
        for image_id, name in zip(validation.image_ids, validation.file_names, strict=True):
            outputs = detect(run, read_image(validation.images / name), input_size)
            for (left, top, right, bottom), score, label in zip(*(each.tolist() for each in outputs), strict=True):
                category = validation.file_category_ids[label]
                box = [left, top, right - left, bottom - top]
                found.append({"image_id": image_id, "category_id": category, "bbox": box, "score": score})
        return cls(validation, tuple(found))

    def precisions(self, image_ids: Sequence[int] | None = None) -> dict[str, float]:
        """Return the average precisions on some of the images, by default on all."""
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(self.validation.ann))
            return box_precisions(truth, self.found, self.validation.file_category_ids, image_ids)
