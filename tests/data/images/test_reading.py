"""One reader decides on images: what is checked, shown and said of a file is what training reads."""

import base64
import io
import json
import os
import re
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import mmcv
import mmdet.datasets  # noqa: F401  (registers the transforms)
import numpy as np
import pytest
from mmdet.registry import TRANSFORMS
from PIL import Image

from hitdet_nni import cli
from hitdet_nni.config.settings import DataSettings, load_settings
from hitdet_nni.data.annotations.coco import read_annotations
from hitdet_nni.data.annotations.pixels import check_images, require_sound_images
from hitdet_nni.data.datasets.detection import CachedDataset
from hitdet_nni.data.images.image_files import IMAGE_FORMATS, format_of, structure_problem, tiff_pages
from hitdet_nni.data.images.quiet import quiet, said
from hitdet_nni.data.images.reading import ImageError, decoded_size, read_image, readable, resized, thin_problem
from hitdet_nni.data.sources import open_data
from hitdet_nni.data.wording import counted
from hitdet_nni.errors import InputError

ORIENTATION = 0x0112
SMOOTH = cv2.resize(np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8), (64, 40))


def encoded(form, image=SMOOTH, **options):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, form, **options)
    return stream.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(png, *chunks):
    """A PNG with chunks behind its header."""
    return png[:33] + b"".join(chunks) + png[33:]


def exif(orientation):
    values = Image.Exif()
    values[ORIENTATION] = orientation
    return values


def raw_profile(orientation):
    """The chunk in which ImageMagick writes EXIF into a PNG."""
    content = b"Exif\0\0" + exif(orientation).tobytes().removeprefix(b"Exif\0\0")
    text = f"\nexif\n{len(content):8}\n{content.hex()}\n".encode()
    return chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))


def xmp(orientation):
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


ORIENTED = {
    "JPEG": lambda number: encoded("JPEG", exif=exif(number)),
    "JPEG by XMP": lambda number: encoded("JPEG", xmp=xmp(number)),
    "PNG": lambda number: encoded("PNG", exif=exif(number)),
    "PNG by a raw profile": lambda number: with_chunks(encoded("PNG"), raw_profile(number)),
    "WEBP": lambda number: encoded("WEBP", exif=exif(number)),
    "TIFF": lambda number: encoded("TIFF", exif=exif(number)),
}


@pytest.fixture
def write(tmp_path):
    """Write images and their annotations, each of 64 x 40 unless said otherwise; the data set."""

    def make(sizes=None, **contents):
        images = []
        for number, (name, content) in enumerate(contents.items(), 1):
            file = f"{name}.png" if "." not in name else name
            (tmp_path / file).write_bytes(content)
            width, height = (sizes or {}).get(name, (64, 40))
            images.append({"id": number, "file_name": file, "width": width, "height": height})
        boxes = [
            {"id": each["id"], "image_id": each["id"], "category_id": 1, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0}
            for each in images
        ]
        ann = tmp_path / "ann.json"
        ann.write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}))
        return read_annotations(ann, tmp_path, key="data.train_ann")

    return make


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ORIENTED)
def test_images_are_what_mmdet_loads(kind, orientation, tmp_path, write):
    file = tmp_path / "a.png"
    file.write_bytes(ORIENTED[kind](orientation))
    theirs = TRANSFORMS.build({"type": "LoadImageFromFile", "_scope_": "mmdet"})({"img_path": str(file)})
    assert np.array_equal(read_image(file), theirs["img"])
    assert np.array_equal(read_image(file), mmcv.imread(file))
    size = theirs["ori_shape"][::-1]
    assert decoded_size(file) == size
    dataset = write({"a": size}, a=file.read_bytes())
    assert check_images(dataset).defects == []
    [defect] = check_images(write({"a": size[::-1]}, a=file.read_bytes())).defects
    assert f"is {size[0]} x {size[1]} pixels, the annotations say {size[1]} x {size[0]}" in defect.problem


def test_the_call_is_mmdet_s():
    loading = TRANSFORMS.build({"type": "LoadImageFromFile", "_scope_": "mmdet"})
    assert (loading.imdecode_backend, loading.color_type) == ("cv2", "color")
    assert mmcv.image.io.imread_flags["color"] == cv2.IMREAD_COLOR


@pytest.mark.parametrize("form", IMAGE_FORMATS)
def test_formats(form, tmp_path):
    content = encoded(form)
    assert (format_of(content), structure_problem(content)) == (form, None)
    file = tmp_path / "image"
    file.write_bytes(content)
    assert np.array_equal(read_image(file), mmcv.imread(file))
    for share in (0.1, 0.5, 0.9, 0.99):
        file.write_bytes(content[: int(len(content) * share)])
        assert str(decoded_size(file)).startswith("cannot be decoded: ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the file is empty"),
        (b"no image", "it is no image"),
        (b"%PDF-1.4", "it is PDF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS"),
        (b"\0\0\0\x18ftypheic" + bytes(50), "it is HEIC"),
        (encoded("JPEG")[:-2], "cut short"),
        (encoded("PNG")[:-1], "cut short"),
        (encoded("JPEG")[:100] + encoded("JPEG")[-2:], "cannot be decoded"),
        (b"Pf\n8 6\n-1.0\n" + bytes(8 * 6 * 4), "not to 8 bits in three colours"),
        (encoded("GIF", save_all=True, append_images=[Image.fromarray(SMOOTH[::-1])]), "is an animated GIF"),
        (encoded("PNG", save_all=True, append_images=[Image.fromarray(SMOOTH[::-1])]), "is an animated PNG"),
        (encoded("WEBP", save_all=True, append_images=[Image.fromarray(SMOOTH[::-1])]), "is an animated WEBP"),
    ],
)
def test_what_training_cannot_read(content, problem, write, tmp_path, refused):
    dataset = write(a=content)
    [defect] = check_images(dataset).defects
    assert problem in defect.problem
    with refused(tmp_path / "a.png", problem):
        require_sound_images(dataset)
    with refused(tmp_path / "a.png", problem):
        read_image(tmp_path / "a.png")


def test_a_thumbnail_s_end_is_not_the_image_s():
    thumbnail = encoded("JPEG", SMOOTH[::4, ::4].copy())
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail
    whole = encoded("JPEG")
    whole = whole[:2] + segment + whole[2:]
    assert structure_problem(whole) is None
    assert structure_problem(whole + b"maker's notes") is None
    assert structure_problem(whole[: 2 + len(segment)]) is not None
    for form in ({"progressive": True}, {"restart_marker_blocks": 1}, {"comment": b"\xff\xd9"}):
        assert structure_problem(encoded("JPEG", **form)) is None


@pytest.mark.parametrize("big", [False, True])
def test_pages_of_a_tiff_are_told(big, write):
    others = [Image.fromarray(SMOOTH[::-1]), Image.fromarray(SMOOTH[:, ::-1])]
    pages = encoded("TIFF", save_all=True, append_images=others, big_tiff=big)
    assert tiff_pages(pages) == 3
    assert tiff_pages(encoded("TIFF", big_tiff=big)) == tiff_pages(encoded("PNG")) == 1
    report = check_images(write(a=pages, b=encoded("TIFF", big_tiff=big)))
    assert report.defects == []
    [(what, files)] = [item for item in report.warnings.items() if "pages" in item[0]]
    assert counted(1, what) == "1 TIFF image of several pages, of which the first is read"
    assert [file.name for file in files] == ["a.png"]


def test_smaller_copies_in_a_tiff_are_no_pages():
    """Of a page whose NewSubfileType says so; offsets that lead back or nowhere end the file."""

    def directory(kind, following):
        return struct.pack("<HHHIII", 1, 254, 4, 1, kind, following)

    head = b"II*\0" + struct.pack("<I", 8)
    assert tiff_pages(head + directory(0, 26) + directory(1, 0)) == 1
    assert tiff_pages(head + directory(0, 26) + directory(4, 0)) == 1  # a mask
    assert tiff_pages(head + directory(0, 26) + directory(0, 0)) == 2
    assert tiff_pages(head + directory(0, 26) + directory(0, 8)) == 2
    assert tiff_pages(head + directory(0, 10**6)) == 1
    assert tiff_pages(head + b"\xff\xff") == 1
    assert tiff_pages(head) == 1


def test_images_that_other_readers_refuse_or_turn(write):
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2_000_000)))
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile"))
    dataset = write(text=with_chunks(encoded("PNG"), text), profile=with_chunks(encoded("PNG"), profile))
    report = check_images(dataset)
    assert (report.defects, report.warnings) == ([], {})


def test_more_pixels_than_pillow_reads(write, tmp_path):
    _, content = cv2.imencode(".png", np.full((9000, 20000), 128, np.uint8), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    dataset = write({"large": (20000, 9000)}, large=content.tobytes())
    assert check_images(dataset).defects == []


def test_more_pixels_than_opencv_reads(write, tmp_path, refused):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 30000, 8, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with refused(tmp_path / "a.png", "1 073 741 824 pixels", "OPENCV_IO_MAX_IMAGE_PIXELS raises the limit"):
        require_sound_images(write({"a": (40000, 30000)}, a=content))


@pytest.mark.parametrize("rows_columns", [(96, 96), (64, 128), (600, 1000)])
def test_thin_images(rows_columns):
    rows, columns = rows_columns
    for width in (1, 2, 7, 191, 192, 193, 255, 256, 257, 1999, 2000, 2001):
        for size in ((width, 1), (1, width), (width, 8), (1000, width)):
            assert resized(size, rows_columns) == mmcv.rescale_size(size, (columns, rows))
            thin = 0 in mmcv.rescale_size(size, (columns, rows))
            assert (thin_problem(size, rows_columns) is not None) == thin
            assert thin == (max(size) > 2 * max(rows_columns) * min(size))
    assert thin_problem((2000, 1), None) is None


def test_a_thin_image_is_named_before_training_and_while_it_is_read(write, tmp_path, refused):
    strip = np.full((8, 2000, 3), 99, np.uint8)
    dataset = write({"strip": (2000, 8)}, fine=encoded("PNG"), strip=encoded("PNG", strip))
    named = (tmp_path / "strip.png", "is 2000 x 8 pixels", "192 times the shorter")
    for decode in (True, False):
        with refused(*named):
            require_sound_images(dataset, (96, 96), decode=decode)
        require_sound_images(dataset, (96, 200), decode=decode)
        require_sound_images(dataset, decode=decode)
    resize = TRANSFORMS.build({"type": "Resize", "scale": (96, 96), "keep_ratio": True, "_scope_": "mmdet"})
    with refused(*named), readable(tmp_path / "strip.png", (96, 96)):
        resize({"img": strip})
    named = (tmp_path / "fine.png", "not be made ready for training (ZeroDivisionError)")
    with refused(*named), readable(tmp_path / "fine.png"):
        raise ZeroDivisionError
    with pytest.raises(MemoryError), readable(tmp_path / "fine.png"):
        raise MemoryError


def test_the_loader_names_a_thin_image(tiny_data, tiny, write, tmp_path):
    from hitdet_nni.data.datasets.detection import build_dataset

    dataset = write({"strip": (2000, 8)}, strip=encoded("PNG", np.full((8, 2000, 3), 99, np.uint8)))
    with pytest.raises(ImageError, match=r"strip\.png: is 2000 x 8 pixels, of which"):
        CachedDataset(build_dataset(dataset, tiny, training=False), capacity=0)[0]


@pytest.mark.parametrize("half", ["train", "val"])
def test_commands_name_a_thin_image_of_either_half(write, tmp_path, capsys, half):
    write(fine=encoded("PNG"))
    (tmp_path / "ann.json").rename(tmp_path / "fine.json")
    write({"strip": (2000, 8)}, strip=encoded("PNG", np.full((8, 2000, 3), 99, np.uint8)))
    (tmp_path / "ann.json").rename(tmp_path / "thin.json")
    files = {"train": tmp_path / "fine.json", "val": tmp_path / "fine.json", half: tmp_path / "thin.json"}
    named = [f"data.{name}_ann={file}" for name, file in files.items()]
    named += ["data.builtin=null", f"data.train_images={tmp_path}", f"data.val_images={tmp_path}"]
    overrides = [part for each in named for part in ("--set", each)]
    assert cli.main(["check-data", "--config", "tiny", *overrides]) == 2
    out, err = capsys.readouterr()
    assert f"{tmp_path / 'strip.png'}: is 2000 x 8 pixels" in out
    assert err.count("\n") == 1
    values = {key.split(".", 1)[1]: value for key, _, value in (each.partition("=") for each in named)}
    settings = DataSettings(**{**values, "builtin": None})
    with pytest.raises(InputError, match=rf"data\.{half}_ann: is 2000 x 8 pixels"):
        open_data(settings, 0, (96, 96))


def test_images_that_decode_black_or_white_and_those_of_other_formats(write, tmp_path):
    deep = SMOOTH[..., 0].astype(np.uint16) * 257
    _, sixteen = cv2.imencode(".png", deep)
    _, twelve = cv2.imencode(".png", deep >> 4)
    white = np.full((40, 64), 250, np.uint8)
    contents = {
        "sixteen": sixteen.tobytes(),
        "twelve": twelve.tobytes(),
        "white": encoded("PNG", white),
        "gif.jpg": encoded("GIF"),
        "gif.gif": encoded("GIF"),
        "noname.xyz": encoded("GIF"),
    }
    report = check_images(write(**contents))
    assert report.defects == []
    found = {counted(2, text).split(" (")[0]: [file.name for file in files] for text, files in report.warnings.items()}
    assert found == {
        "2 images that decode nearly black": ["twelve.png"],
        "2 images that decode nearly white": ["white.png"],
        "2 images that are GIF, whatever their names say": ["gif.jpg"],
    }
    assert read_image(tmp_path / "twelve.png").max() < 16


NOISY = {
    "libpng": with_chunks(encoded("PNG"), chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile"))),
    "libjpeg": encoded("JPEG", quality=95)[:-300] + b"\xff\xd9",
    "OpenCV": encoded("PNG")[:-20],
    "libtiff": encoded("TIFF")[:-30],
}


@pytest.mark.parametrize("name", NOISY)
def test_no_library_writes_on_the_terminal(name, write, tmp_path, capfd):
    """And without our care it would."""
    if name != "OpenCV":
        cv2.imdecode(np.frombuffer(NOISY[name], np.uint8), cv2.IMREAD_COLOR)
        assert capfd.readouterr().err
    dataset = write(a=NOISY[name])
    report = check_images(dataset)
    decoded_size(tmp_path / "a.png")
    if not report.defects:
        with readable(tmp_path / "a.png"):
            mmcv.imread(tmp_path / "a.png")
    assert capfd.readouterr() == ("", "")
    damaged = "JPEG {image|images} with damaged data, of which OpenCV makes up a part"
    assert (damaged in report.warnings) == (name == "libjpeg")


def test_bytes_changed_in_the_middle_of_a_jpeg(write):
    whole = encoded("JPEG", np.random.default_rng(0).integers(0, 256, SMOOTH.shape, dtype=np.uint8), quality=75)
    middle = len(whole) // 2
    changed = whole[:middle] + b"\xaa" * 40 + whole[middle + 40 :]
    report = check_images(write(a=changed, b=whole))
    assert report.defects == []
    (files,) = (files for what, files in report.warnings.items() if "which may be damaged" in what)
    assert [file.name for file in files] == ["a.png"]


def test_what_others_say_meanwhile_comes_out(capfd):
    with quiet():
        os.write(2, b"libpng warning: iCCP: too short\n")
        sys.stderr.write("of a thread\n")
        with quiet():
            assert said("too short")
        assert said("iCCP")
        assert not said("JPEG")
    assert not said("iCCP")
    assert capfd.readouterr().err == "of a thread\n"


def test_messages_of_two_threads_may_mix(capfd):
    """Libpng writes a message and the line's end separately."""
    with quiet():
        os.write(2, b"libpng warning: iCCP: too shortlibpng error: Read Error\n\n")
        os.write(2, b"of a thread\n")
    assert capfd.readouterr().err == "of a thread\n"


def test_threads_may_read_at_once(tmp_path, capfd):
    for name, content in NOISY.items():
        (tmp_path / name).write_bytes(content)
    with ThreadPoolExecutor(4) as threads:
        sizes = list(threads.map(decoded_size, [tmp_path / name for name in NOISY] * 20))
    assert sizes.count((64, 40)) == 40
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_the_report_shows_images_as_trained(write, tmp_path, tiny, published, draw):
    from hitdet_nni.config.architecture import Architecture, Provenance
    from hitdet_nni.engine.weights_file import save_weights
    from hitdet_nni.model.detector import build_detector
    from hitdet_nni.report.detections import show_detections

    _, deep = cv2.imencode(".png", SMOOTH[..., 0].astype(np.uint16) * 257)
    _, twelve = cv2.imencode(".png", SMOOTH[..., 0].astype(np.uint16) << 4)
    contents = {"deep": deep.tobytes(), "twelve": twelve.tobytes()}
    contents |= {"turned": ORIENTED["JPEG"](6), "raw": ORIENTED["PNG by a raw profile"](8)}
    contents |= {"xmp": ORIENTED["JPEG by XMP"](6)}
    sizes = {}
    for name, content in contents.items():
        (tmp_path / f"{name}.png").write_bytes(content)
        sizes[name] = decoded_size(tmp_path / f"{name}.png")
    assert sizes["turned"] == (40, 64)
    dataset = write(sizes, **contents)
    paths = {
        f"data.{half}_{kind}": str(value)
        for half in ("train", "val")
        for kind, value in (("ann", dataset.ann), ("images", dataset.images))
    }
    settings = load_settings("tiny", {"data.builtin": None, **paths})
    sample = draw(tiny, published, 0)
    found = Architecture(
        schema_version=1, name="a", skeleton=tiny, sample=sample, provenance=Provenance(classes=dataset.classes)
    )
    save_weights(build_detector(tiny, sample, 1), tmp_path / "weights.pth")
    shown, number = show_detections(found, tmp_path / "weights.pth", settings, len(contents))
    assert number == len(contents)
    assert [each.name for each in shown] == list(dataset.file_names)
    for each in shown:
        embedded = base64.b64decode(re.search(r"base64,([^\"]*)", each.truth)[1])
        image = cv2.imdecode(np.frombuffer(embedded, np.uint8), cv2.IMREAD_COLOR)
        theirs = mmcv.imread(tmp_path / each.name)
        assert image.shape == theirs.shape
        assert np.abs(image.astype(int) - theirs).mean() < 8


def test_the_cases_of_the_shared_data(shared_data):
    cases = shared_data.parent / "cases"
    for case, problems in (("exif_xmp", []), ("bigtext", []), ("thin", ["strip.png"])):
        found = []
        for half in ("train", "val"):
            dataset = read_annotations(cases / case / f"{half}.json", cases / case / half, key=f"data.{half}_ann")
            found += [Path(defect.file).name for defect in check_images(dataset, (96, 96)).defects]
        assert found == problems
