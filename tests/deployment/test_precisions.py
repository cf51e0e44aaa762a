"""Files that compute in half precision or in 8 bits: near the detector, last layers and boxes in single precision."""

import json

import numpy as np
import onnx
import pytest
import torch
from trained_detectors import KINDS

from hitdet_nni import cli
from hitdet_nni.commands.shared import stages
from hitdet_nni.deployment.detector import RawHeads
from hitdet_nni.deployment.files import open_file
from hitdet_nni.deployment.formats import export_model
from hitdet_nni.deployment.images import detect
from hitdet_nni.deployment.loading import load_detector
from hitdet_nni.deployment.onnx_detector import OnnxDetector
from hitdet_nni.deployment.quantization import LAST_LAYERS
from hitdet_nni.deployment.timing.runtimes import open_session
from hitdet_nni.errors import InputError
from hitdet_nni.training.exported_file import FileCheck, calibration_images, check_file


def image(seed=1):
    coarse = torch.randint(0, 256, (1, 3, 12, 12), generator=torch.Generator().manual_seed(seed)).float()
    return torch.nn.functional.interpolate(coarse, (96, 96), mode="bilinear").byte().numpy()


def maps(outputs):
    """The outputs whose places do not depend on what is found: those by stride."""
    return [np.asarray(part) for part in outputs if part.ndim == 4]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_heads_say_nearly_the_same(made, tmp_path, kind, precision):
    case = made[kind]
    file = tmp_path / "mine.onnx"
    calibration = [image(seed) for seed in range(4)]
    weights = case.folder / "weights.pth"
    export_model(case.architecture, weights, file, "onnx", raw_heads=True, precision=precision, calibration=calibration)
    found = maps(open_session(file, 1).run(None, {"images": image(9)}))
    with torch.no_grad():
        exact = maps(RawHeads(case.plain)(torch.from_numpy(image(9))))
    assert len(found) == len(exact) > 3
    pairs = [(one.ravel(), other.ravel()) for one, other in zip(found, exact, strict=True) if one.size > 50]
    differs = [np.abs(one - other).max() / other.std() for one, other in pairs]
    assert max(differs) < {"fp16": 0.05, "int8": 1.5}[precision]
    assert max(differs) > 1e-6  # it does compute otherwise
    assert min(np.corrcoef(one, other)[0, 1] for one, other in pairs) > {"fp16": 0.9999, "int8": 0.97}[precision]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_whole_file_says_what_it_is_and_is_small(made, tmp_path, precision):
    case, weights = made["faster_rcnn"], made["faster_rcnn"].folder / "weights.pth"
    sizes = {}
    for each in ("fp32", precision):
        file = tmp_path / f"{each}.onnx"
        export_model(
            case.architecture, weights, file, "onnx", precision=each, calibration=[image(seed) for seed in range(2)]
        )
        sizes[each] = file.stat().st_size
    assert sizes[precision] < 0.75 * sizes["fp32"]
    program = onnx.load(tmp_path / f"{precision}.onnx")
    about = {each.key: json.loads(each.value) for each in program.metadata_props}
    assert about["precision"] == precision
    detector = OnnxDetector(tmp_path / f"{precision}.onnx", 1)
    assert detector.classes == case.plain.classes
    assert len(detector.run(image())[0][1]) > 0
    # The last layers' weights are there as they were.
    single = {each.name for each in program.graph.initializer if each.data_type == onnx.TensorProto.FLOAT}
    for layer in LAST_LAYERS[:4]:
        assert [name for name in single if layer in name and "weight" in name], layer
    assert not [name for name in single if "blocks.0" in name and name.endswith("weight")]
    # With 8 bits the first convolution's, too.
    nodes = [node for node in program.graph.node if node.op_type == "Conv"]
    in_single = [node.input[1] in single for node in nodes]
    assert in_single[0] == (precision == "int8")
    assert not any(in_single[1:6])


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("faster_rcnn", "torchscript"),
        ("retinanet", "torchscript"),
        pytest.param("faster_rcnn", "torch-export", marks=pytest.mark.slow),
    ],
)
def test_torch_files_find_what_the_module_in_half_finds(made, tmp_path, kind, form):
    case, weights = made[kind], made[kind].folder / "weights.pth"
    export_model(case.architecture, weights, tmp_path / "mine.pt2", form, precision="fp16")
    module = load_detector(case.architecture, weights)
    module.compute_in_half()
    opened = open_file(tmp_path / "mine.pt2", form, 1)
    assert (opened.classes, opened.input_size) == (module.classes, module.input_size)
    pictures = [image(seed)[0].transpose(1, 2, 0) for seed in (3, 4)]
    for ours, theirs in zip(detect(opened, pictures), detect(module, pictures), strict=True):
        assert len(ours[1]) > 0
        np.testing.assert_allclose(ours[1], theirs[1], atol=2e-3)


def test_a_check_by_hand(made, tiny_data, tmp_path):
    assert FileCheck(0.5, 0.49, 7).sentence() == "mAP on 7 images: 0.5000 eager, 0.4900 of the file (-0.0100)"
    case, weights = made["faster_rcnn"], made["faster_rcnn"].folder / "weights.pth"
    export_model(case.architecture, weights, tmp_path / "mine.pt", "torchscript")
    found = check_file(tmp_path / "mine.pt", "torchscript", case.architecture, weights, tiny_data.val)
    assert found.images == len(tiny_data.val.image_ids)
    assert found.file == pytest.approx(found.eager, abs=1e-6)


def test_calibration_images_are_spread_over_the_set(tiny_data):
    few, more = (list(calibration_images(tiny_data.train, (96, 96), count)) for count in (4, 1000))
    assert (len(few), len(more)) == (4, len(tiny_data.train.file_names))
    step = len(more) // 4
    assert all(np.array_equal(one, more[step * place]) for place, one in enumerate(few))


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--precision", "int8", "--format", "torchscript", "--out", "mine.pt"], ["--precision", "int8 with onnx"]),
        (["--precision", "int8", "--format", "onnx", "--calibration", "0"], ["--calibration", "1 or more"]),
        (["--precision", "fp16", "--out", "mine.json"], ["--precision", "--format"]),
        (["--verify", "--out", "mine.json"], ["--verify", "--format"]),
        (["--verify", "--format", "onnx", "--raw-heads"], ["--verify", "--raw-heads"]),
        (["--verify", "--format", "onnx"], ["--config"]),
        (["--precision", "int8", "--format", "onnx"], ["--config"]),
    ],
)
def test_what_cannot_be_written(made, tmp_path, capsys, monkeypatch, words, names):
    case = made["faster_rcnn"]
    source = [str(case.folder / "found.json"), "--weights", str(case.folder / "weights.pth")]
    if "torchscript" in words:
        words = [*words, "--config", "tiny"]
        monkeypatch.setattr(stages, "check_classes", lambda *_: None)  # the detector has classes of its own
    arguments = source if "--format" in words else source[:1]
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", *arguments, "--out", "mine.onnx", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert all(name in line for name in names), line
    assert not list(tmp_path.iterdir())


def test_eight_bits_need_the_quantiser(made, tmp_path, monkeypatch):
    case = made["faster_rcnn"]
    monkeypatch.setattr("hitdet_nni.deployment.formats.find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(InputError, match=r"onnxruntime.*hitdet-nni\[onnx\]"):
        export_model(case.architecture, case.folder / "weights.pth", tmp_path / "a.onnx", "onnx", precision="int8")
    assert not list(tmp_path.iterdir())
