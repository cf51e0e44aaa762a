"""Validation images of choices and of figures: what is chosen by some is not shown by the same ones."""

from __future__ import annotations

from hitdet_nni.data.annotations.coco_annotations import CocoAnnotations
from hitdet_nni.deployment.loading import load_detector
from hitdet_nni.io import WEIGHTS_FILE
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.studies.retrainings import Retraining
from hitdet_nni.training.precisions import Detections


def halves_of(validation: CocoAnnotations) -> tuple[list[int], list[int]]:
    """Return the validation images that choices are made by, and those that figures are of: every other one."""
    return list(validation.image_ids[::2]), list(validation.image_ids[1::2])


def accuracies(one: Retraining, validation: CocoAnnotations) -> tuple[float, float]:
    """Return the mAP of a retrained architecture on the images of choices, and on those of figures."""
    run = RunDirectory(one.folder)
    detector = load_detector(one.architecture, run.retrain / WEIGHTS_FILE)
    found = Detections.of(detector, validation)
    chosen, shown = (found.precisions(images)["mAP"] for images in halves_of(validation))
    return chosen, shown
