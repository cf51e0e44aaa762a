"""What `check-data` passes every later stage survives and reads the same; what it refuses no training begins with.

Little sets are drawn as real ones differ: formats and modes of images, orientations in all the places where they may
stand, strips and single pixels, files cut short, sizes that are wrong or written as floats, keys missing, strange or of
other types, and encodings of the annotation file. Nothing is assumed about which of these are accepted.
"""

import gc
import io
import json
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from mmengine.dataset import pseudo_collate
from PIL import Image

from hitdet_nni.config.settings import DataSettings
from hitdet_nni.data.checks.inspection import inspect_detection
from hitdet_nni.data.datasets.detection import CachedDataset, build_dataset
from hitdet_nni.data.sources import SPLITS, open_data
from hitdet_nni.errors import InputError
from hitdet_nni.model.detector import build_detector

EXAMPLES = [10, pytest.param(300, marks=pytest.mark.slow)]
CLASSES = ("cat", "dog")
ORIENTATION = 0x0112

MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "RGB", "RGBA", "P", "I;16"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("L", "LA", "RGB", "RGBA", "P", "CMYK", "I;16", "F"),
    "PPM": ("1", "L", "RGB"),
    "GIF": ("P",),
}
SUFFIXES = ("jpg", "png", "JPG", "tif", "bmp", "dat")
ORIENTED_BY = ("nothing", "nothing", "EXIF", "XMP", "raw profile")


@dataclass(frozen=True)
class DrawnImage:
    """A drawn image: the bytes of its file, what its annotations say of it, and its boxes as (corners, kind)."""

    name: str
    content: bytes
    entry: dict[str, Any]
    annotations: tuple[dict[str, Any], ...]


def with_orientation(image: Image.Image, form: str, by: str, number: int) -> bytes:
    """The file of an image with an orientation in one of the places where readers look for it, or do not."""
    exif = Image.Exif()
    exif[ORIENTATION] = number
    options: dict[str, Any] = {}
    if by == "EXIF" and form in ("JPEG", "PNG", "WEBP", "TIFF"):
        options["exif"] = exif
    if by == "XMP" and form in ("JPEG", "WEBP"):
        options["xmp"] = (
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{number}"/>'
            "</rdf:RDF></x:xmpmeta>"
        ).encode()
    stream = io.BytesIO()
    image.save(stream, form, **options)
    content = stream.getvalue()
    if by == "raw profile" and form == "PNG":
        data = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
        text = f"\nexif\n{len(data):8}\n{data.hex()}\n".encode()
        body = b"zTXtRaw profile type exif\0\0" + zlib.compress(text)
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        content = content[:33] + chunk + content[33:]
    return content


ODDITIES = (
    "cut short",
    "wrong size",
    "float size",
    "thin",
    "no key",
    "odd key",
    "odd box",
    "ignore",
    "crowd",
    "id 0",
    "encoding",
    "values",
)
"""What may be odd about a set; up to three of them at once, each where it is drawn."""

SIDES = st.tuples(st.integers(1, 70), st.integers(1, 70))
STRIPS = st.tuples(st.sampled_from([100, 191, 192, 193, 400, 2000]), st.integers(1, 9))
ODD_KEYS = st.dictionaries(
    st.sampled_from(["attributes", "Größe", "", "license", "score", "id ", "area "]), st.none() | st.text()
)


@st.composite
def contents(draw: Any, odd: frozenset[str]) -> tuple[bytes, tuple[int, int]]:
    """A file, and the width and height that its reader sees if it reads the whole of it."""
    form = draw(st.sampled_from(sorted(MODES)))
    mode = draw(st.sampled_from([each for each in MODES[form] if each != "F" or "values" in odd]))
    width, height = draw(SIDES | STRIPS | STRIPS.map(lambda size: size[::-1]) if "thin" in odd else SIDES)
    noise = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if mode == "I;16":
        bits = draw(st.sampled_from([8, 12, 16]))
        image = Image.fromarray(noise[..., 0].astype(np.uint16) << (bits - 8))
    else:
        image = Image.fromarray(noise).convert(mode)
    whole = with_orientation(image, form, draw(st.sampled_from(ORIENTED_BY)), draw(st.integers(1, 8)))
    decoded = cv2.imdecode(np.frombuffer(whole, np.uint8), cv2.IMREAD_COLOR)
    size = (width, height) if decoded is None else decoded.shape[1::-1]
    share = draw(st.sampled_from([1.0, 1.0, 0.0, 0.3, 0.7, 0.95])) if "cut short" in odd else 1.0
    return whole[: int(len(whole) * share)], size


@st.composite
def told_sizes(draw: Any, odd: frozenset[str], width: int, height: int) -> tuple[Any, Any]:
    """Width and height as the annotations say them."""
    sizes: list[tuple[Any, Any]] = [(width, height)]
    if "float size" in odd:
        sizes += [(float(width), float(height)), (width, height + 0.5)]
    if "wrong size" in odd:
        sizes += [(height, width), (width + 1, height), (str(width), height)]
    chosen: tuple[Any, Any] = draw(st.sampled_from(sizes))
    return chosen


@st.composite
def boxes(draw: Any, odd: frozenset[str], width: int, height: int) -> dict[str, Any]:
    """An annotation of an image, without its ids."""
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    box: list[Any] = [left, top, draw(st.integers(1, width - left)), draw(st.integers(1, height - top))]
    if "odd box" in odd:
        around = [-1, *box[1:]]
        box = draw(st.sampled_from([box, [float(each) for each in box], [*box[:2], 0, box[3]], around, box[:3]]))
    annotation = {"category_id": draw(st.integers(1, 2)), "bbox": box, "area": box[2] * box[-1], "iscrowd": 0}
    if "odd key" in odd:
        annotation = draw(ODD_KEYS) | annotation
    if "crowd" in odd:
        annotation["iscrowd"] = draw(st.sampled_from([0, 1, False, True, 0.0, 1.0]))
    if "ignore" in odd:
        annotation["ignore"] = draw(st.sampled_from([0, 1, False, True]))
    if "no key" in odd:
        for key in draw(st.sampled_from([(), ("area",), ("iscrowd",), ("area", "iscrowd")])):
            del annotation[key]
    return annotation


@st.composite
def images(draw: Any, odd: frozenset[str], number: int) -> DrawnImage:
    """An image with an id, and one to three boxes in it."""
    content, (width, height) = draw(contents(odd))
    name = f"{draw(st.sampled_from(['', 'ä ', 'Ω', 'a/b/']))}{number}.{draw(st.sampled_from(SUFFIXES))}"
    told = draw(told_sizes(odd, width, height))
    more = draw(ODD_KEYS) if "odd key" in odd else {}
    entry = {"id": number, "file_name": name, "width": told[0], "height": told[1], **more}
    found = draw(st.lists(boxes(odd, width, height), min_size=1, max_size=3))
    return DrawnImage(name, content, entry, tuple({"image_id": number, **each} for each in found))


@st.composite
def halves(draw: Any, odd: frozenset[str]) -> tuple[tuple[DrawnImage, ...], bytes]:
    """The images of a split and its annotation file."""
    first, start = draw(st.sampled_from([(1, 1), (7, 0), (0, 1)])) if "id 0" in odd else (1, 1)
    found = tuple(draw(images(odd, first + number)) for number in range(draw(st.integers(2, 4))))
    annotations = [annotation for image in found for annotation in image.annotations]
    document = {
        "images": [image.entry for image in found],
        "annotations": [{"id": start + number, **each} for number, each in enumerate(annotations)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)],
    }
    encodings = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1")
    encoding = draw(st.sampled_from(encodings)) if "encoding" in odd else "utf-8"
    text = json.dumps(document, ensure_ascii=draw(st.booleans()))
    return found, text.encode(encoding, "replace")


SETS = st.frozensets(st.sampled_from(ODDITIES), max_size=3).flatmap(lambda odd: st.tuples(halves(odd), halves(odd)))


@pytest.fixture(scope="module")
def detector(tiny, published, draw):
    """A small detector of two classes, which is never told what it learns."""
    torch.manual_seed(0)
    return build_detector(tiny, draw(tiny, published, 0), len(CLASSES))


def written(folder: Path, drawn: Any) -> DataSettings:
    """Write a drawn set, and the settings that name it."""
    paths = {}
    for split, (found, document) in zip(SPLITS, drawn, strict=True):
        for image in found:
            file = folder / split / image.name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image.content)
        (folder / f"{split}.json").write_bytes(document)
        paths |= {f"{split}_ann": folder / f"{split}.json", f"{split}_images": folder / split}
    return DataSettings(builtin=None, batch_size=2, workers=0, cache_mb=0, **paths)


def is_plain(annotation: dict[str, Any]) -> bool:
    """Whether a box is one to be found: neither a crowd, nor ignored, nor without an area inside its image."""
    width, height = annotation["bbox"][2:]
    set_aside = annotation.get("iscrowd") or annotation.get("ignore")
    return not set_aside and width >= 1 and height >= 1


def corners(annotation: dict[str, Any]) -> list[float]:
    x, y, width, height = annotation["bbox"]
    return [x, y, x + width, y + height]


def check_split(dataset: Any, loaded: CachedDataset, found: tuple[DrawnImage, ...]) -> list[Any]:
    """Load every image and compare it with what was drawn; the packed images."""
    by_name = {str(dataset.images / image.name): image for image in found}
    packed = [loaded[index] for index in range(len(loaded))]
    for index, each in enumerate(packed):
        information = loaded.dataset.get_data_info(index)
        image = by_name.pop(information["img_path"])
        sample = each["data_samples"]
        assert sample.ori_shape == (int(image.entry["height"]), int(image.entry["width"]))
        assert each["inputs"].shape[1:] == sample.img_shape
        plain = [one["bbox"] for one in information["instances"] if not one["ignore_flag"]]
        assert sorted(map(list, plain)) == sorted(corners(one) for one in image.annotations if is_plain(one))
        scaled = torch.tensor(plain, dtype=torch.float32).reshape(-1, 4) * torch.tensor(sample.scale_factor).repeat(2)
        width, height = sample.img_shape[1], sample.img_shape[0]
        scaled[:, 0::2] = scaled[:, 0::2].clamp(0, width)
        scaled[:, 1::2] = scaled[:, 1::2].clamp(0, height)
        assert torch.allclose(sample.gt_instances.bboxes.tensor, scaled, atol=1e-3)
    return packed


def train_a_step(detector: Any, packed: list[Any]) -> None:
    """A forward and a backward pass."""
    detector.train()
    batch = detector.data_preprocessor(pseudo_collate(packed), True)
    loss, _ = detector.parse_losses(detector.loss(batch["inputs"], batch["data_samples"]))
    assert torch.isfinite(loss)
    loss.backward()
    detector.zero_grad(set_to_none=True)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_checks_and_training_agree(examples, detector, tiny, figure):
    passed = []

    def check(drawn: Any) -> None:
        with tempfile.TemporaryDirectory() as name:
            data = written(Path(name), drawn)
            found = inspect_detection(data, tiny, 0)
            defects = [defect for inspection in found.values() for defect in inspection.defects]
            note(f"defects: {defects}")
            passed.append(not defects)
            if defects:
                with pytest.raises(InputError) as caught:
                    open_data(data, 0, tiny.input_size)
                assert "\n" not in str(caught.value)
                return
            opened = open_data(data, 0, tiny.input_size)
            for split, dataset, training in (("train", opened.train, True), ("val", opened.val, False)):
                loaded = CachedDataset(build_dataset(dataset, tiny, training=training), 0)
                packed = check_split(dataset, loaded, drawn[split == "val"][0])
                if training and packed:
                    train_a_step(detector, packed)
                if not training:
                    assert len(packed) == len(drawn[1][0])

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(SETS)
    def run(drawn: Any) -> None:
        check(drawn)

    gc.freeze()  # mmengine collects garbage for every data set: not to look through what was there before
    run()
    figure(f"{sum(passed)} of {len(passed)} drawn sets were passed, loaded and trained on; the others were refused")
