"""What a trained detector finds on validation images, beside what is there.

Imports mmdet; only pages of runs with weights need it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from mmengine.dataset import pseudo_collate
from PIL import Image

from hitdet_nni.config.architecture import Architecture
from hitdet_nni.config.settings import Settings
from hitdet_nni.data.annotations.class_names import in_one_line
from hitdet_nni.data.datasets.detection import CachedDataset, build_dataset
from hitdet_nni.data.images.reading import read_image
from hitdet_nni.data.sources import open_validation
from hitdet_nni.deployment.captions import place_captions, shortened
from hitdet_nni.deployment.drawing import class_colour, is_bright
from hitdet_nni.deployment.fonts import caption_font, is_drawable
from hitdet_nni.engine import distributed
from hitdet_nni.engine.weights_file import load_weights
from hitdet_nni.errors import InputError
from hitdet_nni.model.detector import build_detector
from hitdet_nni.report import svg

SCORE = 0.3
"""Detections are drawn from this score on."""

MOST = 30
"""Detections drawn of one image, the strongest."""

PIXELS = 320
"""Longer side of an embedded image at most."""

WIDTH, HEIGHT = 270, 400
"""Width and height of its drawing at most, in units that are about a pixel each."""

LETTERS, LINE = 11, 15
"""Size of the letters of a caption, and the height of its ground, in these units."""


@dataclass(frozen=True)
class Box:
    """A box in an image.

    Attributes:
        corners: Left, top, right, bottom in the image's pixels.
        label: Number of the class, which decides on the colour.
        name: Class name.
        score: The detector's score; ``None`` of an annotation.
    """

    corners: tuple[float, ...]
    label: int
    name: str
    score: float | None = None

    @property
    def caption(self) -> str:
        """What stands at the box."""
        name = in_one_line(self.name)
        return name if self.score is None else f"{name} {self.score:.2f}"


@dataclass(frozen=True)
class Shown:
    """One image on the page.

    Attributes:
        name: File name as in the annotations, with the folders in it.
        truth: The image with the annotated boxes.
        found: The image with the detections.
        annotated: Number of annotated boxes.
        detected: Number of detections drawn.
        best: The highest score, if anything was detected at all.
    """

    name: str
    truth: Markup
    found: Markup
    annotated: int
    detected: int
    best: float | None


def show_detections(
    architecture: Architecture, weights: Path, settings: Settings, count: int
) -> tuple[list[Shown], int]:
    """Run a trained detector on validation images, evenly spaced over the set.

    Args:
        architecture: What the weights belong to.
        weights: File of the trained weights; nothing in it is executed.
        settings: The run's settings.
        count: Number of images; of a smaller set all are shown.

    Returns:
        The images, and how many the set has.

    Raises:
        InputError: If the images or the weights cannot be had, or do not belong together.
    """
    validation = open_validation(settings.data, settings.seed)
    classes = validation.classes_in_file_order
    if classes != architecture.provenance.classes:
        raise InputError("has other classes than the architecture was searched for", source=validation.source)
    detector = build_detector(architecture.skeleton, architecture.sample, len(classes)).to(distributed.device()).eval()
    load_weights(detector, weights)
    dataset = build_dataset(validation, architecture.skeleton, training=False)
    images = CachedDataset(dataset, capacity=0)
    names = dict(zip(validation.image_ids, validation.file_names, strict=True))
    count = min(count, len(images))
    shown = []
    for index in (k * len(images) // count for k in range(count)):
        information = dataset.get_data_info(index)
        image = Image.fromarray(read_image(Path(information["img_path"]))[..., ::-1])  # red, green, blue
        found = _detect(detector, images[index], classes)
        truth = [
            Box(tuple(map(float, each["bbox"])), each["bbox_label"], classes[each["bbox_label"]])
            for each in information["instances"]
            if not each["ignore_flag"]
        ]
        shown.append(_show(names[information["img_id"]], image, truth, found))
    return shown, len(images)


@torch.no_grad()
def _detect(detector: Any, packed: dict[str, Any], classes: Sequence[str]) -> list[Box]:
    """Return everything that a detector finds on an image, the strongest first."""
    predictions = detector.test_step(pseudo_collate([packed]))[0].pred_instances
    boxes = [
        Box(tuple(corners), label, classes[label], score)
        for corners, label, score in zip(
            predictions.bboxes.tolist(), predictions.labels.tolist(), predictions.scores.tolist(), strict=True
        )
    ]
    return sorted(boxes, key=lambda box: box.score or 0.0, reverse=True)


def _show(name: str, image: Image.Image, truth: Sequence[Box], found: Sequence[Box]) -> Shown:
    drawn = [box for box in found if (box.score or 0.0) >= SCORE][:MOST]
    source = _embedded(image)
    return Shown(
        name=name,
        truth=_drawn(image.size, source, truth, "truth", f"{name} with {len(truth)} annotated boxes"),
        found=_drawn(image.size, source, drawn, "found", f"{name} with {len(drawn)} detections"),
        annotated=len(truth),
        detected=len(drawn),
        best=found[0].score if found else None,
    )


def _embedded(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((PIXELS, PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _length(text: str) -> float:
    """Return the length of a caption; letters that no font here has, and a reader's may have, are taken for square."""
    return caption_font(LETTERS, text).getlength(text) if is_drawable(text) else float(LETTERS * len(text))


def _drawn(size: tuple[int, int], source: str, boxes: Sequence[Box], look: str, label: str) -> Markup:
    scale = min(WIDTH / size[0], HEIGHT / size[1])
    width, height = size[0] * scale, size[1] * scale
    areas = [tuple(float(value * scale) for value in box.corners) for box in boxes]
    texts = [shortened(box.caption, width - 6, _length) for box in boxes]
    sizes = [(_length(text) + 6, float(LINE)) for text in texts]
    positions = place_captions(areas, sizes, (width, height))
    frames, captions = [], []
    for box, text, (left, top, right, bottom), (x, y), (long, tall) in zip(
        boxes, texts, areas, positions, sizes, strict=True
    ):
        colour = class_colour(box.label)
        ground, title = f"rgb{colour}", svg.element("title", box.caption)
        frame = svg.element(
            "rect", x=left, y=top, width=max(0.0, right - left), height=max(0.0, bottom - top), stroke=ground
        )
        frames.append(svg.element("g", title, frame, class_=f"box {look}"))
        captions.append(
            svg.element(
                "g",
                title,
                svg.element("rect", x=x, y=y, width=long, height=tall, fill=ground),
                svg.text(text, x + 3, y + LETTERS, class_="bright" if is_bright(colour) else None),
                class_="caption",
            )
        )
    image = svg.element("image", href=source, x=0, y=0, width=width, height=height)
    words = ", ".join(box.name for box in boxes)
    # The strongest are drawn last, in front of the others.
    return svg.drawing(
        width, height, f"{label}: {words}" if words else label, image, *frames[::-1], *captions[::-1], class_="image"
    )
