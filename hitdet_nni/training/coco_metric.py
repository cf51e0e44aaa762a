"""COCO's average precisions of boxes as pycocotools gives them: mmdet rounds them to three decimals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmdet.evaluation.metrics import CocoMetric

from hitdet_nni.runs.result import PRECISIONS
from hitdet_nni.training.precisions import box_precisions

STATS = PRECISIONS
"""mmdet's names of the first figures that COCO's evaluation sums up, in its order."""


class ExactCocoMetric(CocoMetric):  # type: ignore[misc]
    """mmdet's COCO metric, for boxes only, at most 100 detections an image, and not rounded."""

    cat_ids: list[int] | None

    def compute_metrics(self, results: Sequence[tuple[Any, dict[str, Any]]]) -> dict[str, float]:
        """Evaluate the detections of all images.

        Args:
            results: For each image what mmdet's :meth:`process` collected.

        Returns:
            Average precisions in [0, 1] by the names of :data:`STATS` behind ``bbox_``, -1 where a size has no boxes,
            also where nothing was detected. (mmdet gives none then, and mmengine's log repeats the last ones.)
        """
        truth = self._coco_api
        if self.cat_ids is None:
            self.cat_ids = truth.get_cat_ids(cat_names=self.dataset_meta["classes"])
        with TemporaryDirectory() as folder:
            files = self.results2json([detections for _, detections in results], str(Path(folder) / "found"))
            found = json.loads(Path(files["bbox"]).read_bytes())
        precisions = box_precisions(truth, found, self.cat_ids)
        return {f"bbox_{name}": value for name, value in precisions.items()}
