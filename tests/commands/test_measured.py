"""``benchmark`` of a run: beside what the table predicted, doubted where runs differ, and one file beside another."""

import shutil
from types import SimpleNamespace

import pytest

from hitdet_nni import cli
from hitdet_nni.commands.shared.measured import SPREAD, beside_prediction, doubt
from hitdet_nni.config.architecture import LatencyRecord, load_architecture, save_architecture
from hitdet_nni.config.search_space import save_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.nas.provenance import describe_architecture
from hitdet_nni.runs.benchmark import FileBenchmark, Percentiles, read_benchmark
from hitdet_nni.runs.result import PRECISIONS
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.training import file_benchmark

TABLE = LatencyRecord(milliseconds=8.0, runtime="onnxruntime 1.0", device="cpu", threads=1, machine="a phone")


def measured(file="mine.onnx", median=8.64, tenth=None, **changed):
    how = {"runtime": "onnxruntime 1.0", "threads": 1, "machine": "a phone", "rounds": 7, "pause_ms": 500, "runs": 28}
    about = {"file": file, "precision": "fp32", "sha256": "0" * 64, "images": 4, **how, **changed}
    times = Percentiles(p50=median, p90=tenth or median, p99=2 * median)
    return FileBenchmark(**about, metrics=dict.fromkeys(PRECISIONS, 0.5), latency_ms=times)


def test_the_prediction_and_the_budget_stand_beside_the_measured_time():
    line = "predicted 8 ms by the table; measured 8.64 ms in the median, +8%"
    assert beside_prediction(measured(), TABLE, None) == line
    over = "predicted 8 ms by the table, budget 8.2 ms; measured 8.64 ms in the median, +8%, over the budget"
    assert beside_prediction(measured(), TABLE, 8.2) == over
    assert beside_prediction(measured(median=8.1), TABLE, 8.2).endswith(", within the budget")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"threads": 2}, "(the table is of onnxruntime 1.0, 1 thread, a phone, cpu)"),
        ({"precision": "int8"}, "(the table is of fp32)"),
        ({"precision": "int8", "runtime": "openvino 1"}, "a phone, cpu and fp32)"),
    ],
)
def test_a_table_of_other_conditions_says_so(changed, words):
    assert beside_prediction(measured(**changed), TABLE, None).endswith(words)


def test_runs_that_differ_much_are_doubted():
    assert doubt(measured(tenth=8.64 * (1 + SPREAD))) is None
    assert "took 55% longer than the median" in doubt(measured(tenth=13.4))


@pytest.fixture
def run(tmp_path):
    """A retrained run of a search within 8.2 ms, and a config of that budget."""
    found = RunDirectory(tmp_path / "run")
    table = tmp_path / "table.json"
    table.write_text("{}")
    settings = load_settings("tiny", {"search.budget": {"latency_ms": 8.2, "table": str(table)}, "data.val": 2})
    found.open(settings)
    sample = {layer.label: "sep_k3_d1" for layer in settings.skeleton.searched_layers()}
    space = {component: ["sep_k3_d1"] for component in COMPONENTS}
    architecture = describe_architecture("mine", sample, space, settings, tuple("0123456789"), source="search")
    provenance = architecture.provenance.model_copy(update={"latency": TABLE})
    save_architecture(architecture.model_copy(update={"provenance": provenance}), found.architecture)
    save_search_space(space, found.sub_spaces)
    return found


def benchmark(monkeypatch, capsys, run, found, *words):
    """Benchmark a file of the run, which has measured what is given."""
    monkeypatch.setattr(file_benchmark, "benchmark_file", lambda *_: found)
    monkeypatch.setattr(file_benchmark, "require_weights", lambda *_: None)
    file = run.path.parent / found.file
    file.write_bytes(b"\x08")
    status = cli.main(["benchmark", str(file), "--run", str(run.path), *words])
    return SimpleNamespace(status=status, **capsys.readouterr()._asdict())


def test_files_of_a_run_are_measured_one_after_the_other(run, monkeypatch, capsys):
    first = benchmark(monkeypatch, capsys, run, measured())
    assert first.status == 0
    assert first.out.splitlines()[2] == beside_prediction(measured(), TABLE, 8.2)
    second = measured("mine-int8.onnx", tenth=13.4, precision="int8")
    other = benchmark(monkeypatch, capsys, run, second, "--json")
    assert other.status == 0
    assert "not at rest" in other.err.splitlines()[-1]
    assert read_benchmark(run.benchmark).files == (measured(), second)
    again = benchmark(monkeypatch, capsys, run, second)
    assert again.status == 2
    assert "has figures of mine-int8.onnx already; allowed: --force, which replaces them, or another file" in again.err
    better = measured("mine-int8.onnx", median=7.0, precision="int8")
    assert benchmark(monkeypatch, capsys, run, better, "--force").status == 0
    assert read_benchmark(run.benchmark).files == (measured(), better)


def test_a_retraining_s_config_is_not_taken_for_the_search_s(run, monkeypatch, capsys, tmp_path):
    elsewhere = RunDirectory(tmp_path / "elsewhere")
    elsewhere.open(load_settings(run.config))
    shutil.copy(run.architecture, elsewhere.architecture)
    assert load_architecture(elsewhere.architecture).provenance.latency == TABLE
    printed = benchmark(monkeypatch, capsys, elsewhere, measured()).out.splitlines()
    assert printed[2] == beside_prediction(measured(), TABLE, None)
