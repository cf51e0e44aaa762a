"""The one command that measures on a GPU: that it runs, keeps to its time, and that its page has what it wrote."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scripts():
    """The modules by name."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import document
        import gpu
        import gpu_search
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return {"document": document, "gpu": gpu, "search": gpu_search}


@pytest.fixture
def instant(scripts, monkeypatch):
    """Replace the parts by commands: a map of a name to code that may write its figures to ``out``."""
    gpu = scripts["gpu"]
    for name, value in (("SHORTEST", 0.5), ("GRACE", 0.5), ("RESERVE", 0.0)):
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "describe", lambda *_: {"device": "cpu", "commit": None})

    def replace(**parts):
        def command(code):
            prefix = "import json, pathlib, sys, time; out = pathlib.Path(sys.argv[1]); "
            return lambda options, figures, until: [sys.executable, "-c", prefix + code, str(figures)]

        made = {
            name: gpu.BenchmarkPart(seconds, command(code), gpu.read_json) for name, (seconds, code) in parts.items()
        }
        monkeypatch.setattr(gpu, "PARTS", made)

    return replace


def written(folder):
    return json.loads((folder / "gpu.json").read_text())


def start(folder, *options):
    environment = {**os.environ, "PYTHON": sys.executable, "HITDET_COMMIT": "0123456789abcdef"}
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(folder), "--device", "cpu", "--toy", *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder.parent, check=False)


def test_runs_from_anywhere_at_toy_sizes(scripts, tmp_path):
    done = start(tmp_path / "out", "--parts", "layers,profile")
    assert done.returncode == 0, done.stdout + done.stderr
    report = written(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gpu.json", "log.txt"}
    assert report["commit"]
    assert report["nni"] == "3.0"
    rows = report["parts"]["layers"]["report"]["figures"]
    expected = {
        (mode, precision) for mode in ("stock", "fused", "fused-low", "fused-min") for precision in ("fp32", "bf16")
    }
    assert {(row["implementation"], row["precision"]) for row in rows} == expected
    (profile,) = report["parts"]["profile"]["report"]["figures"]
    assert profile["launches"] > 100
    assert profile["device_s"] > 0
    assert len(profile["kernels"]) == 25
    log = (tmp_path / "out" / "log.txt").read_text()
    assert all(text in log for text in ("== layers", "== profile", "layers: done, profile: done"))


@pytest.mark.slow
def test_all_parts_run_at_toy_sizes(scripts, tmp_path):
    done = start(tmp_path / "out", "--minutes", "30")
    assert done.returncode == 0, done.stdout + done.stderr
    parts = written(tmp_path / "out")["parts"]
    assert list(parts) == ["warm", "tests", "layers", "supernets", "auto", "tune", "profile", "search", "largest"]
    assert {name for name, part in parts.items() if part["status"] != "done"} <= {"tune"}
    supernets = parts["supernets"]["report"]["figures"]
    assert {(row["implementation"], row["batch"]) for row in supernets} >= {("NNI", 1), ("fused-low", 1), ("NNI", 2)}
    assert all(row["seconds"] > 0 and row["speedup"] > 0 for row in supernets)
    (chosen,) = parts["auto"]["report"]["figures"]
    assert set(chosen["modes"]) == {"backbone", "neck", "head"}
    assert chosen["speedup"] > 0
    (searched,) = parts["search"]["report"]["figures"]
    assert searched["problem"] is None
    assert searched["map"] >= 0
    assert len(searched["sample"]) == 14


def test_a_part_that_fails_does_not_end_the_others(scripts, instant, tmp_path, capfd):
    instant(
        broken=(5, "sys.exit('no such luck')"),
        sound=(5, "out.write_text(json.dumps({'figures': [1]})); print('measured')"),
    )
    assert scripts["gpu"].main([str(tmp_path), "--parts", "broken,sound"]) == 1
    parts = written(tmp_path)["parts"]
    assert parts["broken"]["status"] == "failed"
    assert parts["sound"] | {"seconds": 0} == {
        "status": "done",
        "exit_status": 0,
        "seconds": 0,
        "report": {"figures": [1]},
    }
    shown = capfd.readouterr().out
    assert "no such luck" in shown
    assert "measured" in shown
    assert "no such luck" in (tmp_path / "log.txt").read_text()


def test_the_clock_ends_a_part_whose_figures_so_far_are_kept(scripts, instant, tmp_path):
    instant(
        long=(2, "out.write_text(json.dumps({'figures': [1]})); time.sleep(60)"),
        short=(2, "out.write_text(json.dumps({'figures': [2]}))"),
    )
    started = time.monotonic()
    assert scripts["gpu"].main([str(tmp_path), "--parts", "long,short", "--minutes", "0.1"]) == 0
    assert time.monotonic() - started < 6
    parts = written(tmp_path)["parts"]
    assert parts["long"]["status"] == "out of time"
    assert parts["long"]["report"] == {"figures": [1]}
    assert parts["short"]["report"] == {"figures": [2]}


def test_what_runs_ends_with_the_script(tmp_path):
    """However it is ended, nothing goes on computing on the GPU."""
    out = tmp_path / "out"
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(out), "--device", "cpu", "--toy", "--parts", "layers"]
    script = subprocess.Popen(command, env={**os.environ, "PYTHON": sys.executable}, stdout=subprocess.DEVNULL)

    def measuring():
        commands = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
        return [command for command in commands if "gpu_parts.py" in command and str(out) in command]

    waited = time.monotonic() + 60
    while not measuring() and time.monotonic() < waited:
        time.sleep(0.1)
    assert measuring()
    script.terminate()
    assert script.wait(20) != 0
    assert not measuring()


def test_with_little_time_the_first_parts_run(scripts, instant, tmp_path):
    instant(first=(60, "out.write_text('{}')"), second=(60, "time.sleep(60)"), third=(60, "out.write_text('{}')"))
    assert scripts["gpu"].main([str(tmp_path), "--parts", "first,second,third", "--minutes", "0.05"]) == 0
    assert {name: part["status"] for name, part in written(tmp_path)["parts"].items()} == {
        "first": "done",
        "second": "out of time",
        "third": "left out",
    }


@pytest.mark.parametrize("options", [["--parts", "layers,lyaers"], ["--cards", "/nowhere/cards"]])
def test_refuses_what_is_not_there(scripts, tmp_path, options, capsys):
    with pytest.raises(SystemExit):
        scripts["gpu"].main([str(tmp_path), *options])
    assert options[1].split(",")[-1] in capsys.readouterr().err


def test_tests_part_reads_what_pytest_writes(scripts, tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(record_property):\n    record_property('figure', '3 ms')\n"
        "def test_bad():\n    assert False\n"
        "def test_left_out():\n    pytest.skip('why')\n"
    )
    file = tmp_path / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={file}", str(tmp_path)]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    outcome = scripts["gpu"].read_tests(file)
    assert outcome == {
        "passed": 1,
        "failed": ["test_some::test_bad"],
        "skipped": 1,
        "figures": {"test_some::test_good": "3 ms"},
    }


def test_every_file_with_gpu_tests_is_run(scripts, tmp_path):
    gpu = scripts["gpu"]
    options = gpu.Options(tmp_path, "cuda", False, None, tmp_path)
    command = gpu.tests_command(options, tmp_path / "tests.xml", 0.0)
    assert {"test_memory.py", "test_fused.py", "test_precision.py"} <= {Path(part).name for part in command}
    assert Path(command[-1]).name == "test_memory.py"


def test_size_of_the_search_follows_from_the_time(scripts):
    search = scripts["search"]
    named = {size.name: size for size in search.SIZES}
    assert search.choose_size(10.0, None) is named["tiny"]
    assert search.choose_size(named["short"].seconds(120) + 1, None) is named["short"]
    assert search.choose_size(named["short"].seconds(120) + 1, 240) is named["tiny"]
    assert search.choose_size(1e4, 300) is named["whole"]


@pytest.fixture
def measured():
    """A gpu.json in which every part has figures."""
    layer = {
        "case": "neck",
        "candidates": 32,
        "implementation": "fused-low",
        "precision": "bf16",
        "seconds": 0.0123,
        "speedup": 3.21,
        "saved_mb": 10.0,
        "saved_share": 0.1,
        "peak_mb": 20.0,
        "peak_share": 0.2,
        "gemm_share": 0.5,
    }
    supernet = {key: layer[key] for key in ("case", "candidates", "implementation", "precision", "seconds", "speedup")}
    supernet |= {"batch": 2, "peak_gb": 7.7, "peak_share": 0.25, "gemm_share": 0.4}
    stopped = supernet | {"implementation": "NNI", "seconds": None, "speedup": None, "peak_gb": None}
    profile = {"case": "trinity", "implementation": "fused", "precision": "fp32", "batch": 1, "wall_s": 1.0}
    kernel = {"name": "void conv<a|b>`c`", "calls": 7, "ms": 12.0}
    profile |= {"device_s": 0.5, "busy": 0.5, "launches": 77, "limit": "starting them", "kernels": [kernel]}
    automatic = {"case": "trinity", "precision": "fp32", "batch": 1, "stock_s": 2.0, "seconds": 1.0, "speedup": 2.0}
    automatic |= {
        "modes": {"backbone": "fused-low", "neck": "all", "head": "fused"},
        "choice_s": 33.0,
        "tried": {},
        "peaks": {},
    }
    search = {"data": "digits", "size": "short", "search_s": 60.0, "retrain_s": 20.0, "gflops": 0.04, "problem": None}
    pair = [
        search | {"precision": "fp32", "map": 0.31, "sample": {"a": "x", "b": "y"}},
        search | {"precision": "bf16", "map": 0.29, "sample": {"a": "x", "b": "z"}},
    ]
    reports = {
        "tests": {
            "passed": 40,
            "failed": ["test_fused::test_cuda"],
            "skipped": 1,
            "figures": {"test_x::test_y": "9 GB"},
        },
        "layers": {"figures": [layer], "missing": ["head, 8 candidates, bf16"]},
        "supernets": {
            "figures": [supernet, stopped],
            "missing": [],
            "config": "coco_paper",
            "input_size": [800, 1216],
            "gemm_flops": {"bf16": 7.9e14},
        },
        "profile": {"figures": [profile], "missing": []},
        "auto": {"figures": [automatic], "missing": []},
        "search": {"figures": pair, "missing": []},
    }
    made = {
        "processor": "P",
        "device": "GPU 1",
        "threads": 1,
        "torch": "2",
        "python": "3",
        "date": "2026-01-02T",
        "clock": "wall",
    }
    parts = {name: {"status": "done", "report": report} for name, report in reports.items()}
    parts["tune"] = {"status": "left out", "reason": "none"}
    return {**made, "nni": "3.0", "triton": "3.6", "commit": "0123456789abcdef", "toy": False, "parts": parts}


def test_page_has_a_section_a_part_in_place_of_the_older_ones(scripts, measured, tmp_path):
    document = scripts["document"]
    folder = tmp_path / "figures"
    shutil.copytree(document.FIGURES, folder)
    (folder / "gpu.json").unlink(missing_ok=True)
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(measured))
    before = document.page(folder)
    document.take_gpu(file, folder)
    page = document.page(folder)
    assert before.count("## Layers on a GPU") == page.count("## Layers on a GPU") == 1
    assert before.count("## Whole supernets on a GPU") == page.count("## Whole supernets on a GPU") == 1
    for text in (
        "| neck | `fused-low` | bf16 | 32 | 0.0123 | 3.21x |",
        "Not measured: head, 8 candidates, bf16.",
        "| neck | NNI | bf16 | 32 | 2 | more memory than there is |",
        "790 TFLOP/s in bf16",
        "| `void conv<a/b>'c'` |  | 7 | 12.0 |",
        "| digits | short | bf16 | 60 | 20 | 0.290 | 0.040 | 1 of 2 |",
        "| trinity | backbone `fused-low`, neck `all`, head `fused` | fp32 | 1 | 2.000 | 1.000 | 2.00x | 33 |",
        "40 passed, 1 failed, 1 skipped.",
        "- failed: `test_fused::test_cuda`",
        "GPU 1, threads: 1, torch 2, NNI 3.0, Python 3, 2026-01-02, wall clock. Triton 3.6. Commit 0123456789ab.",
    ):
        assert text in page, text
    assert "| neck | `fused-min` | 8 | 0.060 | 0.32x |" in before
    assert "| neck | `fused-min` | 8 | 0.060 | 0.32x |" not in page


def test_parts_of_a_later_file_replace_their_own_only(scripts, measured, tmp_path):
    document = scripts["document"]
    file = tmp_path / "gpu.json"
    for commit, names in (("a" * 40, {"layers", "search", "tune"}), ("b" * 40, {"search"})):
        parts = {name: part for name, part in measured["parts"].items() if name in names}
        file.write_text(json.dumps({**measured, "commit": commit, "parts": parts}))
        (tmp_path / "figures").mkdir(exist_ok=True)
        document.take_gpu(file, tmp_path / "figures")
    found = document.gpu_parts(tmp_path / "figures")
    assert {name: part["made"]["commit"][0] for name, part in found.items()} == {"layers": "a", "search": "b"}
