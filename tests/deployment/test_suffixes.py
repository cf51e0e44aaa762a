"""Names of exported files: the format that they stand for, and files that are something else than their name says."""

import shutil

import pytest

from hitdet_nni import cli
from hitdet_nni.deployment import FORMATS
from hitdet_nni.deployment.formats import export_model
from hitdet_nni.deployment.suffixes import SUFFIXES, format_of, require_content, require_suffix


def test_every_format_has_a_name_that_stands_for_it(tmp_path):
    assert set(SUFFIXES) == {"architecture", *FORMATS}
    for kind, suffix in SUFFIXES.items():
        file = tmp_path / f"mine{suffix}"
        assert format_of(file) == kind
        require_suffix(file, kind)


def test_another_format_s_name_is_refused(tmp_path, refused):
    for kind, suffix in SUFFIXES.items():
        for other in SUFFIXES.keys() - {kind}:
            with refused(f"--out: got {tmp_path / f'm{suffix}'}", SUFFIXES[other], f"--format {kind}"):
                require_suffix(tmp_path / f"m{suffix}", other)


def test_some_formats_may_have_any_other_name(tmp_path, refused):
    for kind in ("architecture", "onnx", "torchscript"):
        require_suffix(tmp_path / "model", kind)
    for kind in ("torch-export", "openvino"):
        with refused("--out", SUFFIXES[kind]):
            require_suffix(tmp_path / "model", kind)
    with refused("--out", ".json, .onnx, .pt, .pt2, .xml, or --format"):
        format_of(tmp_path / "model.onx")


@pytest.mark.parametrize("form", ["onnx", "torchscript"])
def test_a_file_is_told_by_its_first_bytes(made, tmp_path, refused, form):
    case, file = made["retinanet"], tmp_path / "file"
    export_model(case.architecture, case.folder / "weights.pth", file, form)
    if form == "onnx":
        require_content(file, "onnx")
    with refused(file, "is ", "whatever its name says", "--format openvino"):
        require_content(file, "openvino")


def test_a_file_that_cannot_be_read_is_a_line(tmp_path, refused):
    with refused(tmp_path, "cannot be read"):
        require_content(tmp_path, "onnx")


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("found.onnx", ["found.onnx: is JSON, as an architecture is", "export --format onnx"]),
        ("found.xml", ["found.xml: is JSON", "export --format openvino"]),
        ("found.pt", ["found.pt: is no detector", ".onnx or .xml"]),
    ],
)
def test_what_is_no_such_file_is_named_in_a_line(made, tmp_path, capsys, name, names):
    shutil.copy(made["retinanet"].folder / "found.json", tmp_path / name)
    picture = tmp_path / "a.png"
    picture.write_bytes(b"")
    found = tmp_path / "found"
    assert cli.main(["detect", str(tmp_path / name), str(picture), "--out", str(found)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert all(part in line for part in names), line
    assert not found.exists()


def test_a_folder_with_detections_is_no_file(tmp_path, capsys):
    found, picture = tmp_path / "found", tmp_path / "a.png"
    found.mkdir()
    (found / "detections.json").write_text("[]")
    picture.write_bytes(b"")
    assert cli.main(["detect", "any", str(picture), "--out", str(found)]) == 2
    assert "detections.json: exists already; allowed: another folder, or --force" in capsys.readouterr().err
