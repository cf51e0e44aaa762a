"""COCO's average precisions of boxes, as pycocotools gives them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations
from hitdet_nni.deployment.images import Predictor
from hitdet_nni.deployment.prediction import predict
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
    def of(cls, detector: Predictor, validation: CocoAnnotations) -> Detections:
        """Run a detector on all validation images."""
        found: list[dict[str, Any]] = []
        for image_id, name in zip(validation.image_ids, validation.file_names, strict=True):
            prediction = predict(detector, validation.images / name, 0)
            found += prediction.coco_results(image_id, validation.file_category_ids)
        return cls(validation, tuple(found))

    def precisions(self, image_ids: Sequence[int] | None = None) -> dict[str, float]:
        """Return the average precisions on some of the images, by default on all."""
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(self.validation.ann))
            return box_precisions(truth, self.found, self.validation.file_category_ids, image_ids)
