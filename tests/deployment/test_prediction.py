"""What a detector finds in an image: its boxes, its drawing, and how images come in."""

import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from trained_detectors import KINDS

from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.images.reading import ImageError
from hitdet_nni.data.loaders import loader_config
from hitdet_nni.deployment.drawing import COLOURS, draw_boxes
from hitdet_nni.deployment.formats import export_model
from hitdet_nni.deployment.images import TOGETHER, detect
from hitdet_nni.deployment.onnx_detector import OnnxDetector
from hitdet_nni.deployment.prediction import Prediction, pixels_of, predict_all
from hitdet_nni.errors import InputError

SETTINGS = load_settings("tiny")


def picture(seed, height=120, width=170):
    """A blurred random image, blue, green, red."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def prediction(boxes, scores, labels, image=None):
    image = np.zeros((40, 60, 3), np.uint8) if image is None else image
    parts = np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64)
    return Prediction(image, *parts, ("ace", "king"))


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_those_of_mmdet_in_pixels_of_the_file(made, tmp_path, kind, tiny_data):
    case = made[kind]
    cv2.imwrite(str(tmp_path / "a.png"), picture(1))
    found = case.plain.predict(tmp_path / "a.png", 0)
    loader = loader_config(tiny_data.val, SETTINGS.data, case.architecture.skeleton, training=False)
    case.mmdet.cfg = Config({"test_dataloader": loader, "val_dataloader": loader})
    with DefaultScope.overwrite_default_scope("mmdet"):
        theirs = inference_detector(case.mmdet, str(tmp_path / "a.png")).pred_instances
    assert len(found) == len(theirs.scores) > 3
    assert found.boxes == pytest.approx(theirs.bboxes.numpy(), abs=0.05)
    assert found.scores == pytest.approx(theirs.scores.numpy(), abs=1e-4)
    assert found.labels.tolist() == theirs.labels.tolist()
    assert found.boxes[:, 2].max() > 130  # of the file's 170 columns, not of the 128 that the detector sees


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_run_together_are_found_as_alone(made, kind):
    plain = made[kind].plain
    pictures = [picture(1), picture(2, 90, 90), picture(3), picture(4, 60, 85), picture(5)]  # two sizes once resized
    calls = []

    def run(images):
        calls.append(len(images))
        return plain.run(images)

    together = detect(SimpleNamespace(run=run, input_size=plain.input_size), pictures)
    assert sorted(calls) == [1, 4]
    for image, (boxes, scores, labels) in zip(pictures, together, strict=True):
        alone = plain.predict(image, 0)
        assert alone.boxes == pytest.approx(boxes, abs=1e-2)
        assert alone.scores == pytest.approx(scores, abs=1e-4)
        assert alone.labels.tolist() == labels.tolist()


def test_an_onnx_file_finds_the_same(made, tmp_path):
    case = made["faster_rcnn"]
    export_model(case.architecture, case.folder / "weights.pth", tmp_path / "mine.onnx", "onnx")
    theirs = OnnxDetector(tmp_path / "mine.onnx", 1)
    assert (theirs.classes, theirs.input_size) == (case.plain.classes, case.plain.input_size)
    for ours, file in zip(
        *(predict_all(each, [picture(1), picture(2)], 0.1) for each in (case.plain, theirs)), strict=True
    ):
        assert len(ours) == len(file) > 0
        assert ours.boxes == pytest.approx(file.boxes, abs=0.05)
        assert ours.scores == pytest.approx(file.scores, abs=1e-3)


def test_a_turned_photograph_is_found_as_it_is_seen(made, tmp_path):
    upright = picture(1)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: 90 degrees clockwise to see it upright
    lying = Image.fromarray(np.rot90(upright[..., ::-1]))
    lying.save(tmp_path / "turned.png", exif=exif)
    plain = made["faster_rcnn"].plain
    turned, seen = plain.predict(tmp_path / "turned.png", 0), plain.predict(upright, 0)
    assert turned.image.shape == upright.shape
    assert turned.boxes.tolist() == seen.boxes.tolist()
    by_pillow = plain.predict(Image.fromarray(upright[..., ::-1]), 0)
    assert by_pillow.scores.tolist() == seen.scores.tolist()


def test_an_image_below_the_home_folder(made, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    cv2.imwrite(str(tmp_path / "a.png"), picture(5))
    assert made["faster_rcnn"].plain.predict("~/a.png").image.tolist() == picture(5).tolist()


def test_what_is_no_image_is_refused(made, tmp_path):
    plain = made["faster_rcnn"].plain
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    with pytest.raises(ImageError, match=r"broken.jpg.*cut short"):
        plain.predict(tmp_path / "broken.jpg")
    with pytest.raises(ImageError, match=r"none.jpg.*No such file"):
        plain.predict(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="longer side"):
        plain.predict(np.zeros((1, 900, 3), np.uint8))
    for image in (np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8)):
        with pytest.raises(InputError, match=r"shape .*blue, green, red"):
            plain.predict(image)
    with pytest.raises(InputError, match="threshold"):
        plain.predict(np.zeros((9, 9, 3), np.uint8), 1.5)


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_of_16_bits_the_upper_8_count_as_in_a_file(tmp_path, mode):
    grey = np.random.default_rng(0).integers(0, 2**16, (20, 30)).astype("<u2" if mode == "I;16" else ">u2")
    image = Image.frombytes(mode, (30, 20), grey.tobytes())
    Image.fromarray(grey.astype(np.uint16)).save(tmp_path / "grey.png")
    assert pixels_of(image, (20, 30)).tolist() == pixels_of(tmp_path / "grey.png", (20, 30)).tolist()
    assert pixels_of(image, (20, 30))[..., 2].tolist() == (grey // 256).tolist()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_an_image_whose_range_is_not_known_is_refused(mode, refused):
    with refused(f"image: got an image of Pillow's mode {mode}", 'image.convert("L")'):
        pixels_of(Image.new(mode, (30, 20), 3), (20, 30))


@pytest.mark.parametrize(
    "source", [None, b"a.jpg", 3, True, ["a.jpg", "b.jpg"], torch.zeros(3, 9, 9, dtype=torch.uint8)], ids=type
)
def test_what_is_not_one_image_is_refused(made, source, refused):
    with refused("image: got ", "[H, W, 3] of uint8", "predict_all"):
        made["faster_rcnn"].plain.predict(source)


def test_many_images_are_run_some_at_a_time(made, monkeypatch):
    """What all of them take together would be without bound."""
    plain = made["retinanet"].plain
    pictures = [picture(seed, 60, 85) for seed in range(2 * TOGETHER + 3)]
    sizes, run = [], plain.run
    monkeypatch.setattr(plain, "run", lambda images: sizes.append(len(images)) or run(images))
    found = predict_all(plain, pictures, 0)
    assert sizes == [TOGETHER, TOGETHER, 3]
    assert found[-1].boxes == pytest.approx(plain.predict(pictures[-1], 0).boxes, abs=1e-3)


def test_all_ways_to_name_a_file_and_a_threshold(made, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    cv2.imwrite(str(tmp_path / "a.png"), picture(1))
    plain = made["retinanet"].plain
    (first,) = predict_all(plain, ["~/a.png"], np.float32(0.25))
    assert np.array_equal(first.scores, plain.predict(tmp_path / "a.png", 0.25).scores)
    assert len(first.above(np.int64(1))) == 0


def test_a_drawing_that_is_too_large_for_its_format(tmp_path, capfd, refused):
    image = np.zeros((4, 17000, 3), np.uint8)
    with refused(tmp_path / "big.webp", "17000 x 4 pixels are too many", ".png"):
        prediction([], [], [], image).save(tmp_path / "big.webp")
    with refused(tmp_path / "big.doc", "is no name of an image"):
        prediction([], [], [], image).save(tmp_path / "big.doc")
    assert capfd.readouterr().err == ""


def test_a_threshold_is_a_number(made, refused):
    with refused("threshold: got 'x'", "0 to 1"):
        prediction([], [], []).above("x")
    for threshold in ("0.3", None, True):
        with refused(f"threshold: got {threshold!r}", "0 to 1"):
            made["faster_rcnn"].plain.predict(np.zeros((9, 9, 3), np.uint8), threshold)


def test_each_class_has_a_number_in_coco_s_results(refused):
    for numbers in ([3], [3, 8, 9]):
        with refused(f"category_ids: got {len(numbers)} numbers", "2, one of each class: ace, king"):
            prediction([[1, 2, 11, 22]], [0.9], [0]).coco_results(7, numbers)


def test_a_prediction_by_hand():
    one = prediction([[1, 2, 11, 22], [0, 0, 5, 5], [3, 3, 9, 9]], [0.9, 0.5, 0.25], [1, 0, 1])
    assert (len(one), one.names) == (3, ("king", "ace", "king"))
    assert repr(one) == "Prediction(2 x king, 1 x ace; 60 x 40 pixels)"
    assert repr(prediction([], [], [])) == "Prediction(nothing; 60 x 40 pixels)"
    first, *_ = one
    assert (first.box, first.label, first.name) == ((1, 2, 11, 22), 1, "king")
    assert first.score == pytest.approx(0.9)
    sure = one.above(0.5)
    assert sure.scores.tolist() == [pytest.approx(0.9), 0.5]
    assert sure.coco_results(7, [3, 8]) == [
        {"image_id": 7, "category_id": 8, "bbox": [1, 2, 10, 20], "score": pytest.approx(0.9)},
        {"image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.5},
    ]


def test_a_drawing_shows_box_and_caption_and_leaves_the_image():
    image = np.full((200, 300, 3), 90, np.uint8)
    one = prediction([[50, 80, 150, 180]], [0.9], [1], image)
    drawn = one.drawn()
    assert (image == 90).all()
    colour = list(COLOURS[1][::-1])
    assert drawn[130, 50].tolist() == drawn[180, 100].tolist() == colour
    assert drawn[130, 100].tolist() == [90, 90, 90]  # inside
    above = drawn[60:79, 50:120].reshape(-1, 3).tolist()
    assert above.count(colour) > 100
    assert any(max(pixel) < 60 for pixel in above)  # letters
    assert (drawn[:50] == 90).all()
    assert (drawn[182:] == 90).all()


@pytest.mark.parametrize("box", [[-9, -9, 20, 20], [280, 0, 299, 10], [0, 190, 299, 199], [5, 5, 5, 5]])
def test_captions_stay_inside(box):
    drawn = draw_boxes(np.zeros((200, 300, 3), np.uint8), np.array([box], float), np.array([0]), ["Straße 1.00"])
    assert drawn.shape == (200, 300, 3)
    letters = (drawn > 180).all(axis=2)
    assert letters.sum() > 20
    assert not letters[:, -1].any()


def test_a_drawing_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    one = prediction([[5, 5, 30, 30]], [0.9], [0])
    one.save("~/found/a.png")
    assert cv2.imread(str(tmp_path / "found" / "a.png")).tolist() == one.drawn().tolist()
    assert one._repr_png_().startswith(b"\x89PNG")
    for name in ("a.xyz", "a"):
        with pytest.raises(InputError, match="no name of an image"):
            one.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["found"]


def test_supervision_gets_the_same(monkeypatch):
    one = prediction([[1, 2, 11, 22], [0, 0, 5, 5]], [0.9, 0.5], [1, 0])
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match="pip install supervision"):
        one.to_supervision()
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    theirs = one.to_supervision()
    assert theirs.xyxy.tolist() == [[1, 2, 11, 22], [0, 0, 5, 5]]
    assert theirs.class_id.tolist() == [1, 0]
    assert theirs.data["class_name"].tolist() == ["king", "ace"]
    assert theirs.confidence == pytest.approx([0.9, 0.5])
