"""The found detector outside the framework: what its files say is what mmdet's detector says."""

import ast
import ctypes
import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from mmdet.registry import TRANSFORMS
from mmdet.structures import DetDataSample
from PIL import Image
from scipy.optimize import linear_sum_assignment
from trained_detectors import KINDS, enliven

from hitdet_nni import cli
from hitdet_nni.config.architecture import Architecture, Provenance, load_architecture, save_architecture
from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import Skeleton
from hitdet_nni.deployment import FORMATS, formats, openvino_files
from hitdet_nni.deployment.boxes import base_anchors
from hitdet_nni.deployment.components import Backbone, Neck
from hitdet_nni.deployment.detector import RawHeads
from hitdet_nni.deployment.formats import export_model
from hitdet_nni.deployment.loading import load_detector
from hitdet_nni.engine.weights_file import load_weights, save_weights
from hitdet_nni.model.detector import build_detector, detector_config
from hitdet_nni.model.preprocessing import PREPROCESSING
from hitdet_nni.runs.benchmark import read_benchmark
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.training import file_benchmark
from hitdet_nni.training.exported_file import check_file

SIZES = ((96, 96), (90, 83), (33, 64), (32, 32), (61, 130))
DOCS = Path(__file__).parents[2] / "docs" / "deployment.md"
BLOCKED = "import sys\nsys.modules.update(dict.fromkeys({names}))  # importing one of them fails\n"


def images(count=5):
    """Images of 8 bits with structure, red, green, blue, of several sizes."""
    generator = torch.Generator().manual_seed(3)
    for index in range(count):
        rows, columns = SIZES[index % len(SIZES)]
        coarse = torch.randint(0, 256, (1, 3, rows // 8 + 1, columns // 8 + 1), generator=generator).float()
        yield torch.nn.functional.interpolate(coarse, (rows, columns), mode="bilinear").byte()


@pytest.fixture(scope="module")
def exported(made):
    """Write a model file once, and load it as its users do: a function from an image to its outputs."""
    loaded = {}

    def load(kind, form, raw=False):
        if (kind, form, raw) not in loaded:
            case = made[kind]
            path = case.folder / f"{form}-{raw}{'.xml' if form == 'openvino' else '.pt2'}"
            export_model(case.architecture, case.folder / "weights.pth", path, form, raw_heads=raw)
            loaded[kind, form, raw] = opened(path, form)
        return loaded[kind, form, raw]

    return load


def opened(path, form):
    """A model file as a function, without any code of ours."""
    if form == "openvino":
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        with openvino_files.kept_signal_stack():
            model = openvino.Core().compile_model(str(path), "CPU", settings)
        return lambda image: [torch.from_numpy(value.copy()) for value in model(image.numpy()).values()]
    if form == "onnx":
        session = onnxruntime.InferenceSession(str(path))
        return lambda image: [torch.from_numpy(value) for value in session.run(None, {"images": image.numpy()})]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(str(path)) if form == "torchscript" else torch.export.load(str(path)).module()


@torch.no_grad()
def predicted(detector, image):
    """mmdet's detections on an image, red, green, blue."""
    sample = DetDataSample(metainfo={"img_shape": image.shape[2:], "scale_factor": (1.0, 1.0)})
    found = detector.test_step({"inputs": [image[0].flip(0)], "data_samples": [sample]})[0].pred_instances
    return found.bboxes, found.scores, found.labels


def farthest_pair(distance):
    """Pair the rows with the columns of a matrix of distances, and give the largest distance of a pair."""
    assert distance.shape[0] == distance.shape[1]
    rows, columns = linear_sum_assignment(distance.clamp(max=1e6).numpy())
    return distance[rows, columns].max()


def check_same(ours, theirs):
    """The same boxes to 1e-3 pixels, labels, and scores to 1e-4; the order of equal scores is nobody's."""
    boxes, scores, labels = (torch.as_tensor(part) for part in ours)
    apart = (boxes[:, None] - theirs[0]).abs().amax(dim=2) / 1e-3
    scored = (scores[:, None] - theirs[1]).abs() / (1e-4 * theirs[1])
    distance = torch.maximum(apart, scored).masked_fill(labels[:, None] != theirs[2], torch.inf)
    assert farthest_pair(distance) <= 1


@torch.no_grad()
def mmdet_heads(case, image, rois):
    """What mmdet's heads say; of a second stage, on the given RoIs."""
    x = case.mmdet.data_preprocessor({"inputs": [image[0].flip(0)], "data_samples": None})["inputs"]
    pyramid = case.mmdet.extract_feat(x)
    if not hasattr(case.mmdet, "roi_head"):
        logits, offsets = case.mmdet.bbox_head(pyramid)
        return [*logits, *offsets]
    logits, offsets = case.mmdet.rpn_head(pyramid)
    sample = DetDataSample(metainfo={"img_shape": image.shape[2:], "scale_factor": (1.0, 1.0)})
    proposals = case.mmdet.rpn_head.predict(pyramid, [sample])[0].bboxes
    moved = case.mmdet.roi_head._bbox_forward(pyramid, torch.cat([rois.new_zeros(len(rois), 1), rois], dim=1))
    return [*logits, *offsets, proposals, moved["cls_score"], moved["bbox_pred"]]


def check_heads(case, run):
    """The outputs of a function of an image are mmdet's to 1e-4; it has more than one RoI an image."""
    for image in images():
        with torch.no_grad():
            ours = list(run(image))
        names = case.plain.head_names()
        rois = ours[names.index("rois")] if "rois" in names else None
        theirs = mmdet_heads(case, image, rois)
        for name, mine, reference in zip(names, ours, theirs, strict=True):
            if name == "rois":
                assert len(mine) > 1
                assert farthest_pair((mine[:, None] - reference).abs().amax(dim=2)) < 1e-3
            else:
                torch.testing.assert_close(
                    mine, reference, rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
                )


def check_detections(case, run):
    """The detections of a function of an image are those of mmdet's ``predict``, and there are some."""
    labels = set()
    for image in images():
        with torch.no_grad():
            ours = run(image)
        check_same(ours, predicted(case.mmdet, image))
        assert (ours[1].diff() <= 0).all()
        labels |= set(ours[2].tolist())
    assert len(labels) > 2


@pytest.mark.parametrize("form", ["eager", "torchscript"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_takes_one_image(made, exported, kind, form):
    """Of several it would answer for the first alone."""
    run = made[kind].plain if form == "eager" else exported(kind, form)
    with pytest.raises((AssertionError, torch.jit.Error), match="takes one image"):
        run(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))


def test_images_that_a_program_of_torch_export_does_not_take_are_named(made, tmp_path, tiny_data, refused):
    case = made["retinanet"]
    height, width = case.architecture.skeleton.input_size
    flat = replace(tiny_data.val, sizes=((40 * width, height), *tiny_data.val.sizes[1:]))
    with refused(tiny_data.val.file_names[0], "torch-export does not take", "another --format"):
        check_file(tmp_path / "a.pt2", "torch-export", case.architecture, case.folder / "weights.pth", flat)


def test_maps_of_raw_heads_have_one_image_and_axes_of_their_own(made, tmp_path):
    onnx, case = pytest.importorskip("onnx"), made["faster_rcnn"]
    export_model(case.architecture, case.folder / "weights.pth", tmp_path / "a.onnx", "onnx", raw_heads=True)
    outputs = {one.name: one.type.tensor_type.shape.dim for one in onnx.load(tmp_path / "a.onnx").graph.output}
    maps = {name: axes for name, axes in outputs.items() if len(axes) == 4}
    assert maps
    for name, (first, _, rows, columns) in maps.items():
        assert (first.dim_value, rows.dim_param, columns.dim_param) == (1, f"{name}_rows", f"{name}_columns")


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_detector_is_mmdet_s(made, kind):
    check_heads(made[kind], RawHeads(made[kind].plain))
    check_detections(made[kind], made[kind].plain)


FILES = [
    pytest.param(kind, form, raw, id=f"{kind}-{form}-{'heads' if raw else 'detections'}", marks=marks)
    for kind in KINDS
    for form in FORMATS
    for raw in (False, True)
    # A file of torch.export takes ten seconds.
    # OpenVINO's take half a minute.
    for slow in [form == "openvino" or (form == "torch-export" and not (raw and kind == "retinanet"))]
    for marks in [[pytest.mark.slow] if slow else []]
]


@pytest.mark.parametrize(("kind", "form", "raw"), FILES)
def test_a_file_says_what_mmdet_says(made, exported, kind, form, raw):
    check = check_heads if raw else check_detections
    check(made[kind], exported(kind, form, raw))


OPENVINO = pytest.param("openvino", marks=pytest.mark.slow)


@pytest.mark.parametrize("form", [*(form for form in FORMATS if form != "openvino"), OPENVINO])
def test_heads_of_one_stage_take_several_images_at_once(exported, form):
    """Each image's maps are those that it has alone, to rounding."""
    run = exported("retinanet", form, True)
    batch = torch.cat([image for image in images(20) if image.shape[2:] == SIZES[1]])
    assert len(batch) > 2
    with torch.no_grad():
        together = list(run(batch))
        for number, image in enumerate(batch):
            for whole, own in zip(together, run(image[None]), strict=True):
                torch.testing.assert_close(whole[number], own[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["onnx", "torchscript", OPENVINO])
def test_a_image_may_show_nothing(made, tmp_path, kind, form):
    state = made[kind].mmdet.state_dict()
    bias = "roi_head.bbox_head.fc_cls.bias" if kind == "faster_rcnn" else "bbox_head.retina_cls.bias"
    state[bias] = state[bias] - 200
    if kind == "faster_rcnn":
        state[bias][-1] += 400  # the background's
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    export_model(made[kind].architecture, tmp_path / "w.pth", tmp_path / "file.xml", form)
    run = opened(tmp_path / "file.xml", form)
    for image in images(2):
        assert [tuple(part.shape) for part in run(image)] == [(0, 4), (0,), (0,)]


@pytest.mark.parametrize("kind", KINDS)
def test_no_foreign_class(made, kind):
    classes = {each for part in made[kind].plain.modules() for each in type(part).__mro__}
    homes = {each.__module__ for each in classes if each is not object}
    assert not {home.partition(".")[0] for home in homes} - {"torch", "hitdet_nni"}
    ours = {home for home in homes if home.startswith("hitdet_nni")}
    assert all(home.startswith(("hitdet_nni.deployment.", "hitdet_nni.operators.blocks")) for home in ours), ours
    assert not made[kind].plain.training


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_mmdet_s_and_shared_by_levels(made, kind):
    theirs = dict(made[kind].mmdet.named_parameters())
    ours = list(made[kind].plain.parameters())
    assert sum(each.numel() for each in ours) == sum(each.numel() for each in theirs.values())
    files = {form: made[kind].folder / f"{form}-False.pt2" for form in ("onnx", "torchscript")}
    weights = (made[kind].folder / "weights.pth").stat().st_size
    for form, path in files.items():
        if not path.exists():
            export_model(made[kind].architecture, made[kind].folder / "weights.pth", path, form)
        assert path.stat().st_size < 1.5 * weights + 100_000


def test_backbone_and_neck_alone(made):
    case = made["faster_rcnn"]
    assert isinstance(case.plain.backbone, Backbone)
    assert isinstance(case.plain.neck, Neck)
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, theirs in zip(
            case.plain.neck(case.plain.backbone(x)), case.mmdet.neck(case.mmdet.backbone(x)), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_skeleton_s_tail(tiny, published, draw, tmp_path):
    skeleton = Skeleton(**{**tiny.model_dump(), "tail": {"width": 24, "out_channels": 40}, "depths": (1, 2, 1, 1)})
    architecture = Architecture(
        schema_version=1,
        name="tail",
        skeleton=skeleton,
        sample=draw(skeleton, published, 0),
        provenance=Provenance(classes=("a", "b")),
    )
    detector = build_detector(skeleton, architecture.sample, 2).eval()
    save_weights(detector, tmp_path / "w.pth")
    plain = load_detector(architecture, tmp_path / "w.pth")
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, theirs in zip(plain.backbone(x), detector.backbone(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_retinanet_from_stride_4_on(published, draw, tmp_path):
    skeleton = load_settings("digits_retinanet").skeleton
    sample, provenance = draw(skeleton, published, 0), Provenance(classes=("a", "b"))
    architecture = Architecture(schema_version=1, name="fine", skeleton=skeleton, sample=sample, provenance=provenance)
    torch.manual_seed(0)
    detector = enliven(build_detector(skeleton, sample, 2))
    save_weights(detector, tmp_path / "w.pth")
    plain = load_detector(architecture, tmp_path / "w.pth")
    for image in images():
        with torch.no_grad():
            check_same(plain(image), predicted(detector, image))


def test_nothing_of_nni_or_mmdet_is_needed(made, tmp_path):
    """With these packages out of reach, a process exports and runs the detector."""
    case = made["faster_rcnn"]
    program = BLOCKED.format(names={"nni", "mmdet", "mmengine"}) + (
        "import torch; from hitdet_nni import cli; from hitdet_nni.config.architecture import load_architecture\n"
        "from hitdet_nni.deployment.loading import load_detector\n"
        "_, found, weights, image, out, file = sys.argv\n"
        "detector = load_detector(load_architecture(found), weights)\n"
        "with torch.no_grad(): torch.save(detector(torch.load(image)), out)\n"
        "status = cli.main(['export', found, '--weights', weights, '--format', 'torchscript', '--out', file])\n"
        "sys.exit(status or 'mmcv' in sys.modules)\n"
    )
    image = next(iter(images()))
    torch.save(image, tmp_path / "image.pt")
    names = (case.folder / "found.json", case.folder / "weights.pth", tmp_path / "image.pt", tmp_path / "out.pt")
    command = [sys.executable, "-c", program, *map(str, names), str(tmp_path / "file.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    theirs = predicted(case.mmdet, image)
    check_same(torch.load(tmp_path / "out.pt"), theirs)
    check_same(opened(tmp_path / "file.pt", "torchscript")(image), theirs)


def test_metadata_is_enough_to_use_a_file_alone(made, exported):
    case = made["retinanet"]
    exported("retinanet", "onnx")
    exported("retinanet", "torchscript")
    session = onnxruntime.InferenceSession(str(case.folder / "onnx-False.pt2"))
    of_onnx = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    files = {"metadata.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(str(case.folder / "torchscript-False.pt2"), _extra_files=files)
    assert of_onnx == json.loads(files["metadata.json"])
    assert of_onnx["classes"] == list("abcdefghij")
    assert of_onnx["input_size"] == [96, 96]
    assert of_onnx["outputs"] == [output.name for output in session.get_outputs()] == ["boxes", "scores", "labels"]
    assert (of_onnx["color_order"], of_onnx["mean"]) == ("RGB", PREPROCESSING["mean"])
    assert {(each.name, each.type) for each in session.get_inputs()} == {(of_onnx["input"], "tensor(uint8)")}


def test_images_are_prepared_as_in_training(tiny):
    config = detector_config(tiny, {"backbone": [], "neck": [], "head": []}, 1)
    assert config["data_preprocessor"] == {"type": "DetDataPreprocessor", **PREPROCESSING}


def test_anchors_have_the_ratios_and_areas_asked_for():
    anchors = base_anchors(8, [4, 6], [0.5, 1.0, 2.0])
    width, height = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    torch.testing.assert_close(height / width, torch.tensor([0.5, 0.5, 1, 1, 2, 2]))
    torch.testing.assert_close((width * height).sqrt(), torch.tensor([32.0, 48.0] * 3))
    assert (anchors[:, :2] == -anchors[:, 2:]).all()


def command(capsys, *arguments):
    status = cli.main(["export", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out + err


def test_a_run_directory_brings_its_weights(made, capsys, tmp_path):
    case = made["retinanet"]
    run = tmp_path / "run"
    (run / "retrain").mkdir(parents=True)
    (run / "config.yml").write_text("")
    (run / "architecture.json").write_bytes((case.folder / "found.json").read_bytes())
    out = tmp_path / "out.onnx"
    status, text = command(capsys, run, "--out", out)
    assert (status, text.count("\n")) == (2, 1)
    assert "run: has no retrain/weights.pth; allowed: a run of which hitdet-nni retrain has ended" in text
    (run / "retrain" / "weights.pth").write_bytes((case.folder / "weights.pth").read_bytes())
    assert command(capsys, run, "--out", out) == (0, f"{out}\n")
    image = next(iter(images()))
    check_same(opened(out, "onnx")(image), predicted(case.mmdet, image))
    status, text = command(capsys, run, "--format", "onnx", "--out", out)
    assert (status, text.count("\n")) == (2, 1)
    assert "--force" in text
    before = out.read_bytes()
    assert command(capsys, run, "--format", "onnx", "--out", out, "--force", "--raw-heads")[0] == 0
    assert out.read_bytes() != before
    assert command(capsys, run, "--out", tmp_path / "copy.json")[0] == 0
    assert load_architecture(tmp_path / "copy.json") == case.architecture
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.json", "out.onnx", "run"]


WRONG = [
    (["--format", "onnx"], ["--weights: is missing"]),
    (
        ["--weights", "w.pth", "--out", "out.json"],
        ["--weights", "--format architecture", "onnx, torchscript, torch-export, openvino"],
    ),
    (["--raw-heads", "--out", "out.json"], ["--raw-heads", "--format architecture"]),
    (["--format", "onnx", "--weights", "w.pth", "--epoch", 0], ["--epoch", "--format onnx"]),
    (["--format", "onnx", "--weights", "nothing.pth"], ["nothing.pth", "no such file"]),
    (["--format", "torch-export", "--weights", "w.pth", "--out", "out"], ["--out", ".pt2"]),
    (["--format", "openvino", "--weights", "w.pth", "--out", "out"], ["--out", ".xml"]),
    (["--format", "torchscript", "--weights", "bad.pth", "--out", "out"], ["bad.pth", "cannot be read as weights"]),
    (["--weights", "other.pth", "--out", "out.pt"], ["other.pth", "does not fit the architecture"]),
    (["--out", "out.json"], ["found.json", "not a run directory"]),
    (["--weights", "bad.pth"], ["holds more than tensors"]),
    (
        ["--weights", "w.pth", "--out", "out.onx"],
        ["--out: got out.onx", "ends in .json, .onnx, .pt, .pt2, .xml, or --f"],
    ),
    (
        ["--format", "torchscript", "--weights", "w.pth"],
        ["got out.onnx with --format torchscript", ".pt, or --format o"],
    ),
    (["--format", "architecture"], ["got out.onnx with --format architecture", ".json, or --format onnx"]),
    (["--format", "onnx", "--weights", "w.pth", "--out", "out.xml"], ["got out.xml", ".onnx, or --format openvino"]),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("options", "names"), WRONG)
def test_what_cannot_be_exported(made, capsys, tmp_path, monkeypatch, kind, options, names):
    monkeypatch.chdir(tmp_path)
    other = made[KINDS[1 - KINDS.index(kind)]]
    Path("other.pth").write_bytes((other.folder / "weights.pth").read_bytes())
    Path("bad.pth").write_bytes(b"nothing")
    Path("found.json").write_bytes((made[kind].folder / "found.json").read_bytes())
    before = sorted(path.name for path in tmp_path.iterdir())
    status, text = command(capsys, "found.json", "--out", "out.onnx", *options)
    assert (status, text.count("\n")) == (2, 1)
    for name in names:
        assert name in text
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.fixture(scope="module")
def annotated(made, tmp_path_factory):
    """Photographs of several sizes, annotated with some of what the detector finds, and the config that names them."""
    folder, case = tmp_path_factory.mktemp("annotated"), made["faster_rcnn"]
    (folder / "images").mkdir()
    entries, boxes = [], []
    for number, image in enumerate(images(4), 1):
        photograph = image[0].permute(1, 2, 0).numpy()
        Image.fromarray(photograph).save(folder / "images" / f"{number}.png")
        entries.append({"id": number, "file_name": f"{number}.png", "width": image.size(3), "height": image.size(2)})
        fitting, scale = fitted(photograph)
        found, _, labels = case.plain(fitting)
        for box, label in zip((found[:9:2] / scale).tolist(), labels[:9:2].tolist(), strict=True):
            left, top, right, bottom = box
            corners = {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
            place = {"id": len(boxes) + 1, "image_id": number, "category_id": 10 + label, "iscrowd": 0}
            if min(corners["bbox"][2:]) > 1:
                boxes.append(place | corners)
    categories = [{"id": 10 + label, "name": name} for label, name in enumerate("abcdefghij")]
    document = {"images": entries, "annotations": boxes, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(document))
    paths = {f"data.{split}_{kind}": folder / name for split in ("train", "val") for kind, name in PLACES.items()}
    # Images of a batch are padded to one size, which a detector of such weights hears; a file has one at a time.
    alone = ["--set", "data.builtin=null", "--set", "data.batch_size=1"]
    return ["--config", "tiny", *alone, *(f"--set={key}={path}" for key, path in paths.items())]


PLACES = {"ann": "truth.json", "images": "images"}


def fitted(photograph):
    """A photograph as the page on deployment has it resized, and the scale of its boxes."""
    height, width = photograph.shape[:2]
    scale = min(96 / max(height, width), 96 / min(height, width))
    size = (int(width * scale + 0.5), int(height * scale + 0.5))
    fitting = torch.from_numpy(cv2.resize(photograph, size, interpolation=cv2.INTER_LINEAR)).permute(2, 0, 1)[None]
    return fitting, torch.tensor([size[0] / width, size[1] / height] * 2)


@pytest.mark.parametrize(
    ("form", "name", "runtime"),
    [
        ("onnx", "a.onnx", "onnxruntime"),
        pytest.param("openvino", "a.xml", "openvino", marks=pytest.mark.slow),
    ],
)
def test_the_accuracy_of_a_file_is_that_of_its_weights(made, annotated, capsys, tmp_path, form, name, runtime):
    """By mmdet on the one hand, by the file's runtime and pycocotools on the other."""
    case, file, out = made["faster_rcnn"], tmp_path / name, tmp_path / "benchmark.json"
    weights = ["--architecture", str(case.folder / "found.json"), "--weights", str(case.folder / "weights.pth")]
    assert cli.main(["evaluate", *weights, *annotated, "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    export_model(case.architecture, case.folder / "weights.pth", file, form)
    timing = ["--rounds", "2", "--pause", "0", "--images", "3"]
    assert cli.main(["benchmark", str(file), *annotated, *timing, "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0.1 < expected["mAP"] < 1
    assert found["metrics"] == {name: pytest.approx(value, abs=2e-3) for name, value in expected.items()}
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p90"] <= found["latency_ms"]["p99"]
    assert (found["runs"], found["images"]) == (6, 4)
    assert found["runtime"].startswith(f"{runtime} ")
    assert found["precision"] == "fp32"
    assert read_benchmark(out).of(name).model_dump(mode="json") == found
    assert cli.main(["benchmark", str(file), *annotated, "--out", str(out)]) == 2
    assert "allowed: --force, which replaces them, or another file with --out" in capsys.readouterr().err


def test_what_cannot_be_benchmarked(made, annotated, capsys, tmp_path):
    case, file, heads = made["faster_rcnn"], tmp_path / "found.onnx", tmp_path / "heads.onnx"
    export_model(case.architecture, case.folder / "weights.pth", file, "onnx")
    export_model(case.architecture, case.folder / "weights.pth", heads, "onnx", raw_heads=True)
    (tmp_path / "text.onnx").write_text("no model")
    run = RunDirectory(tmp_path / "run")
    run.open(load_settings("tiny"))
    out = ["--out", str(tmp_path / "out.json")]
    for arguments, names in (
        ([str(tmp_path / "none.onnx"), *annotated, *out], ["none.onnx", "no such file"]),
        ([str(tmp_path / "text.onnx"), *annotated, *out], ["text.onnx", "cannot be opened"]),
        ([str(heads), *annotated, *out], ["heads.onnx", "ends at the heads"]),
        ([str(tmp_path / "none.xml"), *annotated, *out], ["none.xml", "no such file"]),
        ([str(file), "--config", "tiny", *out], ["has the classes a, b", "0, 1"]),
        ([str(file), *annotated], ["--out"]),
        ([str(file), *annotated, *out, "--images", "0"], ["--images"]),
        ([str(file), *annotated, *out, "--rounds", "0"], ["--rounds"]),
        ([str(file), "--run", str(tmp_path / "nowhere")], ["nowhere", "no such run directory"]),
        ([str(tmp_path / "none.onnx"), "--run", str(run.path)], ["none.onnx", "no such file"]),
        ([str(file), "--run", str(run.path)], ["weights.pth", "no such file"]),
        ([str(file), "--run", str(run.path), "--set", "data.val=3"], ["--set", "--out"]),
    ):
        assert cli.main(["benchmark", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert all(name in error for name in names), error
    assert not (tmp_path / "out.json").exists()


@pytest.mark.slow
def test_signals_are_handled_on_the_stack_that_they_were_handled_on(made, tmp_path):
    def stack():
        now = openvino_files._SignalStack()
        ctypes.CDLL(None).sigaltstack(None, ctypes.byref(now))
        return now.place, now.flags, now.size

    case, before = made["retinanet"], stack()
    export_model(case.architecture, case.folder / "weights.pth", tmp_path / "mine.xml", "openvino")
    detector = openvino_files.OpenVinoDetector(tmp_path / "mine.xml", 1)
    detector.run(np.zeros((1, 3, 64, 64), np.uint8))
    assert stack() == before


@pytest.mark.slow
def test_files_of_openvino_that_cannot_be_benchmarked(made, annotated, capsys, tmp_path):
    case = made["faster_rcnn"]
    weights = case.folder / "weights.pth"
    (tmp_path / "text.xml").write_text("<note/>")
    export_model(case.architecture, weights, tmp_path / "alone.xml", "openvino")
    file_benchmark.require_weights(tmp_path / "alone.xml", weights)
    (tmp_path / "alone.bin").unlink()
    export_model(case.architecture, weights, tmp_path / "heads.xml", "openvino", raw_heads=True)
    for name, part in (("text", "cannot be opened"), ("alone", ".bin beside it"), ("heads", "ends at the heads")):
        out = str(tmp_path / "out.json")
        assert cli.main(["benchmark", str(tmp_path / f"{name}.xml"), *annotated, "--out", out]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert part in error
        assert f"{name}.xml" in error
    assert not (tmp_path / "out.json").exists()


def test_a_run_keeps_figures_of_its_own_file_alone(made, tmp_path, refused):
    case, file, other = made["faster_rcnn"], tmp_path / "found.onnx", tmp_path / "other.pth"
    export_model(case.architecture, case.folder / "weights.pth", file, "onnx")
    file_benchmark.require_weights(file, case.folder / "weights.pth")
    other.write_bytes((case.folder / "weights.pth").read_bytes() + b" ")
    with refused(file, "was not made of", other):
        file_benchmark.require_weights(file, other)


def test_percentiles_are_of_the_timed_runs_alone(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter, clock.sleep = lambda: clock.now, lambda seconds: None
    monkeypatch.setattr(file_benchmark, "time", clock)
    durations = iter([9.0, 9.0, 9.0, 1.0, 2.0, 9.0, 9.0, 9.0, 3.0, 4.0])

    def run(image):
        clock.now += next(durations)

    assert file_benchmark._times(SimpleNamespace(run=run), ["a", "b"], 2, 0.0) == [1.0, 2.0, 3.0, 4.0]


def test_statistics_of_too_few_levels_are_refused(made, tmp_path, refused):
    state = made["retinanet"].mmdet.state_dict()
    cut = {
        key: value[:2] if key.endswith(("mean", "var")) and value.dim() == 2 else value for key, value in state.items()
    }
    torch.save({"state_dict": cut}, tmp_path / "w.pth")
    with refused(tmp_path / "w.pth", "does not fit"):
        load_detector(made["retinanet"].architecture, tmp_path / "w.pth")


def test_missing_packages_are_named(made, tmp_path, monkeypatch, refused):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    case = made["faster_rcnn"]
    with refused("onnx", "pip install hitdet-nni[onnx]"):
        export_model(case.architecture, case.folder / "weights.pth", tmp_path / "m.onnx", "onnx")
    monkeypatch.setattr(formats, "find_spec", lambda name: name != "openvino")
    monkeypatch.setattr(openvino_files, "find_spec", lambda name: None)
    with refused("openvino", "pip install 'hitdet-nni[openvino]'"):
        export_model(case.architecture, case.folder / "weights.pth", tmp_path / "m.xml", "openvino")
    assert not list(tmp_path.iterdir())


def test_both_files_of_openvino_are_kept_from_being_overwritten(made, tmp_path, capsys):
    case = made["faster_rcnn"]
    (tmp_path / "mine.bin").write_text("other")
    weights = ["--weights", case.folder / "weights.pth"]
    status, text = command(
        capsys, case.folder / "found.json", "--format", "openvino", "--out", tmp_path / "mine.xml", *weights
    )
    assert status == 2
    assert "mine.bin" in text
    assert [path.name for path in tmp_path.iterdir()] == ["mine.bin"]


def snippets():
    return re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("form", ["as it is", "turned", "16 bits", "resized"])
def test_the_page_s_program_needs_onnxruntime_and_opencv(made, exported, tmp_path, form):
    """It runs without torch, reads and resizes as mmdet's pipeline does, and finds what that finds."""
    case = made["faster_rcnn"]
    exported("faster_rcnn", "onnx")
    (tmp_path / "mine.onnx").write_bytes((case.folder / "onnx-False.pt2").read_bytes())
    image = next(iter(images()))[0, :, :66].permute(1, 2, 0).numpy()  # fits 96 x 96 as it is
    file = tmp_path / "street.png"
    if form == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(image).save(file, exif=exif)
    elif form == "16 bits":
        cv2.imwrite(str(file), image[..., 0].astype(np.uint16) * 257)
    else:
        cv2.imwrite(str(file), cv2.resize(image, (150, 101)) if form == "resized" else image[..., ::-1])
    (program, *_) = [text for text in snippets() if "onnxruntime" in text]
    imported = {
        name.name.partition(".")[0]
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Import)
        for name in node.names
    }
    assert imported <= {"json", "numpy", "onnxruntime", "cv2"}
    after = "\nnp.savez('out.npz', boxes=boxes, scores=scores, labels=labels, fitting=fitting)\n"
    blocked = BLOCKED.format(names={"torch", "torchvision", "hitdet_nni", "nni", "mmdet", "mmcv", "mmengine", "PIL"})
    done = subprocess.run(
        [sys.executable, "-c", blocked + program + after], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "out.npz")
    rows, columns = case.architecture.skeleton.input_size
    steps = [{"type": "LoadImageFromFile"}, {"type": "Resize", "scale": (columns, rows), "keep_ratio": True}]
    theirs = {"img_path": str(file)}
    for step in steps:
        theirs = TRANSFORMS.build({**step, "_scope_": "mmdet"})(theirs)
    assert np.array_equal(found["fitting"], theirs["img"][..., ::-1])
    if form == "turned":
        assert found["fitting"].shape[:2] == image.shape[1::-1]
    fitting = torch.from_numpy(found["fitting"].transpose(2, 0, 1).copy())
    boxes, scores, labels = predicted(case.mmdet, fitting[None])
    height, width = theirs["ori_shape"]
    boxes = boxes * boxes.new_tensor([width / fitting.shape[2], height / fitting.shape[1]] * 2)
    check_same([found[name] for name in ("boxes", "scores", "labels")], (boxes, scores, labels))
    assert len(done.stdout.splitlines()) == (scores > 0.3).sum()
    if form == "as it is":
        assert done.stdout


@pytest.mark.slow
def test_a_detector_trained_on_digits(tmp_path, capsys, figure):
    """Fifty images that it was not trained on, from the file as from mmdet."""
    from hitdet_nni.data.datasets.detection import build_dataset
    from hitdet_nni.data.sources import open_data

    base = load_settings("digits")
    labels = [layer.label for layer in base.skeleton.searched_layers()]
    found = Architecture(
        schema_version=1,
        name="digits",
        skeleton=base.skeleton,
        sample={label: "conv_k3_d1" if label.startswith("neck") else "ir_k3_d1_e3" for label in labels},
        provenance=Provenance(classes=open_data(base.data, base.seed).classes),
    )
    save_architecture(found, tmp_path / "found.json")
    changes = {"data.val": 50, "retrain.epochs": 12, "retrain.milestones": "[9, 11]", "retrain.val_interval": 12}
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    run = tmp_path / "run"
    arguments = ["retrain", "--architecture", tmp_path / "found.json", "--config", "digits", *sets, "--out", run]
    assert cli.main([*map(str, arguments), "--json"]) == 0
    for name, options in (("whole.onnx", []), ("heads.onnx", ["--raw-heads"])):
        assert command(capsys, run, "--format", "onnx", "--out", tmp_path / name, *options)[0] == 0
    detector = build_detector(found.skeleton, found.sample, found.num_classes).eval()
    load_weights(detector, run / "retrain" / "weights.pth")
    case = SimpleNamespace(mmdet=detector, plain=load_detector(found, run / "retrain" / "weights.pth"))
    whole, heads = (opened(tmp_path / name, "onnx") for name in ("whole.onnx", "heads.onnx"))
    settings = load_settings(run / "config.yml")
    validation = build_dataset(open_data(settings.data, settings.seed).val, settings.skeleton, training=False)
    assert len(validation) == 50
    detections, largest = 0, 0.0
    for index in range(len(validation)):
        image = validation[index]["inputs"].flip(0)[None].contiguous()
        theirs = predicted(detector, image)
        check_same(whole(image), theirs)
        detections += len(theirs[1])
        ours = heads(image)
        names = case.plain.head_names()
        for name, mine, reference in zip(names, ours, mmdet_heads(case, image, ours[-3]), strict=True):
            if name != "rois":
                largest = max(largest, (mine - reference).abs().max().item())
    metrics = json.loads((run / "metrics.json").read_text())
    figure(f"{detections} detections on 50 images, heads differ by {largest:.2g} at most, {metrics}")
    assert detections > 100
    assert largest < 1e-4
