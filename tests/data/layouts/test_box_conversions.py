"""Boxes of label files are torchvision's: no side is a pixel longer or shorter than the file says."""

from pathlib import Path

import numpy as np
import torch
from torchvision.ops import box_area, box_convert

from hitdet_nni.data.layouts.parts import Labelled, Notes
from hitdet_nni.data.layouts.voc_devkit import read_objects
from hitdet_nni.data.layouts.yolo_labels import YoloReader


def test_yolo_s_centres_and_sides(tmp_path):
    generator = np.random.default_rng(0)
    sides = generator.uniform(0, 0.5, (100, 2))
    rows = np.concatenate([sides / 2 + generator.uniform(0, 1, (100, 2)) * (1 - sides), sides], axis=1)
    labels = tmp_path / "image.txt"
    labels.write_text("\n".join(" ".join(["0", *map(repr, row)]) for row in rows.tolist()))
    size, boxes = YoloReader(1).read(Labelled("image", Path("image.png"), labels), lambda: (641, 427), Notes())
    scale = torch.tensor(size * 2, dtype=torch.float64)
    found = torch.tensor([each.box for each in boxes], dtype=torch.float64)
    torch.testing.assert_close(found, box_convert(torch.from_numpy(rows), "cxcywh", "xywh") * scale, rtol=0, atol=0.005)


def test_boxes_of_hundredths_come_back_from_six_decimals(tmp_path):
    """The same boxes in a COCO file, which has hundredths, and in rows of labels are the same numbers."""
    generator = np.random.default_rng(1)
    width, height = 1280, 720
    boxes = np.concatenate([generator.uniform(0, 300, (200, 2)), generator.uniform(5, 300, (200, 2))], axis=1).round(2)
    rows = [((x + w / 2) / width, (y + h / 2) / height, w / width, h / height) for x, y, w, h in boxes.tolist()]
    labels = tmp_path / "image.txt"
    labels.write_text("\n".join(" ".join(["0", *(f"{value:.6f}" for value in row)]) for row in rows))
    _, found = YoloReader(1).read(Labelled("image", Path("image.png"), labels), lambda: (width, height), Notes())
    assert [each.box for each in found] == [tuple(box) for box in boxes.tolist()]


def test_voc_s_pixels_counted_from_one(tmp_path):
    corners = np.random.default_rng(0).integers(1, 300, (50, 2, 2))
    corners.sort(axis=1)
    names = ("xmin", "ymin", "xmax", "ymax")
    objects = [
        "".join(f"<{name}>{value}</{name}>" for name, value in zip(names, box, strict=True))
        for box in corners.reshape(-1, 4).tolist()
    ]
    file = tmp_path / "image.xml"
    boxes = "".join(f"<object><name>cat</name><bndbox>{each}</bndbox></object>" for each in objects)
    file.write_text(f"<annotation>{boxes}</annotation>")
    found = box_convert(torch.tensor([each.box for each in read_objects(file)[1]]), "xywh", "xyxy")
    # The pixels of a box, both ends among them, fill it.
    covered = np.zeros((50, 300, 300), dtype=bool)
    for pixels, ((left, top), (right, bottom)) in zip(covered, corners, strict=True):
        pixels[top - 1 : bottom, left - 1 : right] = True
    assert box_area(found).tolist() == covered.sum(axis=(1, 2)).tolist()
    places = [
        (*np.argwhere(pixels).min(axis=0)[::-1], *(np.argwhere(pixels).max(axis=0)[::-1] + 1)) for pixels in covered
    ]
    assert found.tolist() == [list(map(float, place)) for place in places]
