"""Writers of the layouts that labelling tools leave, from one list of images and boxes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import yaml

from hitdet_nni.config.data_settings import DataSettings
from hitdet_nni.data.sources import split_source


class Shot(NamedTuple):
    """An image with its boxes ``(class, left, top, width, height)`` in pixels."""

    file: Path
    size: tuple[int, int]
    boxes: list[tuple[int, float, float, float, float]]


def shots(folder, count, classes=2, *, first=0, size=(64, 48)):
    """Images made for a test, each with one box, the classes by turns."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(first, first + count):
        file = folder / f"p{number:03d}.png"
        pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), np.uint8)
        cv2.imwrite(str(file), pixels)
        made.append(Shot(file, size, [(number % classes, 4.0 + number % 7, 6.0, 20.0, 16.0)]))
    return made


def coco(made, classes):
    """The content of a COCO file."""
    images = [
        {"id": number, "file_name": shot.file.name, "width": shot.size[0], "height": shot.size[1]}
        for number, shot in enumerate(made, start=1)
    ]
    boxes = [(number, box) for number, shot in enumerate(made, start=1) for box in shot.boxes]
    annotations = [
        {
            "id": index,
            "image_id": number,
            "category_id": label + 1,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for index, (number, (label, *box)) in enumerate(boxes, start=1)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def copy(made, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for shot in made:
        shutil.copy(shot.file, folder / shot.file.name)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_coco(root, parts, classes):
    """COCO's own layout."""
    for name, made in parts.items():
        copy(made, root / name)
        write_json(root / "annotations" / f"instances_{name}.json", coco(made, classes))


def write_roboflow(root, parts, classes):
    """Roboflow's export."""
    for name, made in parts.items():
        folder = root / {"val": "valid"}.get(name, name)
        copy(made, folder)
        write_json(folder / "_annotations.coco.json", coco(made, classes))


def yolo_rows(shot):
    width, height = shot.size
    return "".join(
        f"{label} {(left + w / 2) / width:.9f} {(top + h / 2) / height:.9f} {w / width:.9f} {h / height:.9f}\n"
        for label, left, top, w, h in shot.boxes
    )


def write_rows(made, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for shot in made:
        (folder / f"{shot.file.stem}.txt").write_text(yolo_rows(shot))


def write_yolo(root, parts, classes, **description):
    """Ultralytics' layout."""
    for name, made in parts.items():
        copy(made, root / "images" / name)
        write_rows(made, root / "labels" / name)
    content = {**{name: f"images/{name}" for name in parts}, "names": list(classes), **description}
    (root / "data.yaml").write_text(yaml.safe_dump(content))


def voc_xml(shot, classes, *, difficult=0):
    objects = "".join(
        f"<object><name>{classes[label]}</name><difficult>{difficult}</difficult><bndbox><xmin>{left + 1!r}</xmin>"
        f"<ymin>{top + 1!r}</ymin><xmax>{left + w!r}</xmax><ymax>{top + h!r}</ymax></bndbox></object>"
        for label, left, top, w, h in shot.boxes
    )
    size = f"<size><width>{shot.size[0]}</width><height>{shot.size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{shot.file.name}</filename>{size}{objects}</annotation>"


def write_xml(made, folder, classes, **options):
    folder.mkdir(parents=True, exist_ok=True)
    for shot in made:
        (folder / f"{shot.file.stem}.xml").write_text(voc_xml(shot, classes, **options))


def write_voc(root, parts, classes, *, named=True):
    """PASCAL VOC's layout, with CVAT's list of names."""
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name, made in parts.items():
        copy(made, root / "JPEGImages")
        write_xml(made, root / "Annotations", classes)
        (lists / f"{name}.txt").write_text("".join(f"{shot.file.stem}\n" for shot in made))
    if named:
        lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", *(f"{name}:1,2,3::" for name in classes)]
        (root / "labelmap.txt").write_text("\n".join(lines))


WRITERS = {"coco": write_coco, "roboflow": write_roboflow, "yolo": write_yolo, "voc": write_voc}


def documents(root, **settings):
    """The COCO documents of both halves."""
    data = DataSettings(root=root, **settings)
    return {split: json.loads(split_source(data, 0, split)[0].read_text()) for split in ("train", "val")}
