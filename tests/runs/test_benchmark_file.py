"""``benchmark.json``: an entry a file, and what older versions have written."""

import json

import pytest

from hitdet_nni.runs.benchmark import FileBenchmark, Percentiles, add_benchmark, read_benchmark
from hitdet_nni.runs.result import PRECISIONS


def measured(file, median=4.0):
    how = {"runtime": "onnxruntime 1.0", "threads": 1, "machine": "a phone", "rounds": 7, "pause_ms": 500, "runs": 28}
    about = {"file": file, "precision": "fp32", "sha256": "0" * 64, "images": 4, **how}
    times = Percentiles(p50=median, p90=5.5, p99=9.0)
    return FileBenchmark(**about, metrics=dict.fromkeys(PRECISIONS, 0.5), latency_ms=times)


def test_files_stand_beside_each_other_and_one_measured_again_takes_its_own_place(tmp_path):
    path = tmp_path / "benchmark.json"
    for one in (measured("a.onnx"), measured("b.onnx"), measured("a.onnx", 3.0)):
        add_benchmark(path, one)
    found = read_benchmark(path)
    assert found.files == (measured("a.onnx", 3.0), measured("b.onnx"))
    assert found.of("b.onnx") == measured("b.onnx")
    assert found.of("c.onnx") is None


def test_a_file_of_one_entry_is_read_and_added_to(tmp_path):
    path = tmp_path / "benchmark.json"
    old = measured("a.onnx").model_dump(mode="json")
    del old["precision"]
    path.write_text(json.dumps(old))
    assert [(one.name, one.precision) for one in read_benchmark(path).files] == [("a.onnx", None)]
    add_benchmark(path, measured("b.onnx"))
    assert [one.name for one in read_benchmark(path).files] == ["a.onnx", "b.onnx (fp32)"]


@pytest.mark.parametrize("old", [True, False])
def test_what_is_no_benchmark_is_refused(tmp_path, refused, old):
    path = tmp_path / "benchmark.json"
    content = measured("a.onnx").model_dump(mode="json")
    del content["metrics"]["mAP"]
    path.write_text(json.dumps(content if old else {"files": [content]}))
    with refused(path, "metrics.mAP", "missing"):
        read_benchmark(path)
    path.write_text(json.dumps({"figures": []}))
    with refused(path, "files: missing"):
        add_benchmark(path, measured("a.onnx"))
