"""The one command that measures on a GPU: that it runs, keeps to its time, and that its page has what it wrote."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from hitdet_nni.config.search_space import load_search_space
from hitdet_nni.config.settings import load_settings
from hitdet_nni.data.sources import open_data
from hitdet_nni.nas.outlook import screening_supernets, stage_steps
from hitdet_nni.nas.screening import screening_groups
from hitdet_nni.nas.screening_reliability import share_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scripts(benchmark_scripts):
    """The modules by name."""
    return benchmark_scripts(
        "document",
        "document_gpu",
        "full_size",
        "gpu",
        "gpu_figures",
        "gpu_parts",
        "gpu_search",
        "gpu_steps",
        "supernet_step",
    )


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


@pytest.mark.slow
def test_runs_from_anywhere_at_toy_sizes(scripts, tmp_path):
    done = start(tmp_path / "out", "--parts", "profile")
    assert done.returncode == 0, done.stdout + done.stderr
    report = written(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gpu.json", "log.txt"}
    assert report["commit"]
    assert report["nni"] == "3.0"
    (profile,) = report["parts"]["profile"]["report"]["figures"]
    assert profile["launches"] > 100
    assert profile["device_s"] > 0
    assert len(profile["kernels"]) == 25
    log = (tmp_path / "out" / "log.txt").read_text()
    assert all(text in log for text in ("== profile", "profile: done"))


@pytest.mark.slow
def test_all_parts_run_at_toy_sizes(scripts, tmp_path):
    done = start(tmp_path / "out", "--minutes", "30")
    assert done.returncode == 0, done.stdout + done.stderr
    parts = written(tmp_path / "out")["parts"]
    assert list(parts) == ["warm", "tests", "layers", "supernets", "auto", "tune", "profile", "search", "largest"]
    tune = parts.pop("tune")
    assert tune == {"status": "left out", "reason": "block sizes are tuned on a GPU"}
    assert {part["status"] for part in parts.values()} == {"done"}
    rows = parts["layers"]["report"]["figures"]
    expected = {
        (mode, precision) for mode in ("stock", "fused", "fused-low", "fused-min") for precision in ("fp32", "bf16")
    }
    assert {(row["implementation"], row["precision"]) for row in rows} == expected
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


@pytest.mark.parametrize(
    "options", [["--parts", "layers,lyaers"], ["--cards", "/nowhere/cards"], ["--cases", "trinity, (fp32"]]
)
def test_refuses_what_is_not_there(scripts, tmp_path, options, capsys):
    with pytest.raises(SystemExit):
        scripts["gpu"].main([str(tmp_path), *options])
    *_, problem = capsys.readouterr().err.splitlines()
    assert problem.startswith(f"gpu.sh: error: {options[0]}: ")
    assert options[1].split(",")[-1] in problem


def test_only_the_chosen_cases_are_measured(scripts, tmp_path):
    gpu, path = scripts["gpu"], tmp_path / "layers.json"
    command = gpu.measuring_command("layers")(gpu.Options(tmp_path, "cpu", True, None, tmp_path, "bf16$"), path, 0.0)
    assert command[command.index("--cases") + 1] == "bf16$"
    chosen = scripts["gpu_steps"].Options(torch.device("cpu"), True, math.inf, path, "bf16$")
    scripts["gpu_parts"].layers(chosen)
    report = json.loads(path.read_text())
    assert {row["precision"] for row in report["figures"]} == {"bf16"}
    assert report["missing"] == []


@pytest.mark.parametrize("way", ["NNI", "fused-low"])
def test_a_supernet_of_the_benchmarks_makes_a_step(scripts, way):
    """NNI's own layers and ours name their parameters each in their way."""
    case = scripts["gpu_steps"].supernet_cases(toy=True)["trinity"]
    trainer = scripts["full_size"].Trainer(*case, way, "fp32", torch.device("cpu"))
    parameters = (trainer.alphas, trainer.weights)
    before = [[parameter.detach().clone() for parameter in group] for group in parameters]
    trainer.step(trainer.batch(1, 1))
    for group, old in zip(parameters, before, strict=True):
        assert any(not torch.equal(one, other) for one, other in zip(group, old, strict=True))


@pytest.mark.parametrize("way", ["stock", "fused-low"])
def test_a_supernet_of_the_cpu_s_benchmark_makes_a_step(scripts, way):
    module = scripts["supernet_step"]
    space = {component: names[:2] for component, names in module.supernet_spaces()["trinity"].items()}
    step = module.supernet_step(module.SupernetCase("toy", space, 64, ()), way, torch.device("cpu"))
    step()


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
        "unfinished": 0,
        "figures": {"test_some::test_good": "3 ms"},
    }


def test_a_test_in_which_pytest_was_interrupted_has_not_passed(scripts, tmp_path):
    (tmp_path / "test_some.py").write_text(
        "def test_good():\n    pass\ndef test_long():\n    raise KeyboardInterrupt\ndef test_later():\n    pass\n"
    )
    file = tmp_path / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={file}", str(tmp_path)]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    outcome = scripts["gpu"].read_tests(file)
    assert (outcome["passed"], outcome["failed"], outcome["unfinished"]) == (1, [], 1)
    text = scripts["document_gpu"].tests_text(outcome)
    assert text == "1 passed, 0 failed, 0 skipped, 1 ended by the clock."


def test_every_file_with_gpu_tests_is_run(scripts, tmp_path):
    gpu = scripts["gpu"]
    options = gpu.Options(tmp_path, "cuda", False, None, tmp_path)
    command = gpu.tests_command(options, tmp_path / "tests.xml", 0.0)
    assert {"test_memory.py", "test_fused.py", "test_precision.py"} <= {Path(part).name for part in command}
    assert Path(command[-1]).name == "test_memory.py"


def test_size_of_the_search_follows_from_the_time(scripts):
    search = scripts["gpu_search"]
    named = {size.name: size for size in search.SIZES}
    assert search.choose_size(10.0, None) is named["tiny"]
    assert search.choose_size(named["short"].seconds(120) + 1, None) is named["short"]
    assert search.choose_size(named["short"].seconds(120) + 1, 240) is named["tiny"]
    assert search.choose_size(1e4, 300) is named["whole"]


def test_steps_of_a_search_are_what_it_makes(scripts):
    search = scripts["gpu_search"]
    for size in (*search.SIZES, search.TOY):
        settings = load_settings(size.config, size.changes)
        data = open_data(settings.data, settings.seed, settings.skeleton.input_size)
        steps = stage_steps(settings, data, load_search_space("full") if size.screened else None)
        assert size.steps == (sum(steps.values()) - steps["retrain"], steps["retrain"]), size.name
        assert size.images == len(data.train.image_ids)
        supernets, sampled = screening_supernets(settings, data), 0
        if size.screened and settings.screening.rank_by == "samples":
            share = share_of(settings.screening, supernets, 32)
            batches = math.ceil(share.sample_images / settings.data.batch_size)
            sampled = (
                len(screening_groups(settings.screening, load_search_space("full")))
                * supernets
                * share.samples
                * batches
            )
        assert size.samples == sampled, size.name


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
    document, figures = scripts["document"], scripts["gpu_figures"]
    folder = tmp_path / "figures"
    shutil.copytree(document.FIGURES, folder)
    (folder / "gpu.json").unlink(missing_ok=True)
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(measured))
    before = document.page(folder)
    figures.take_gpu(file, folder)
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
    document, figures = scripts["document"], scripts["gpu_figures"]
    file = tmp_path / "gpu.json"
    for commit, names in (("a" * 40, {"layers", "search", "tune"}), ("b" * 40, {"search"})):
        parts = {name: part for name, part in measured["parts"].items() if name in names}
        file.write_text(json.dumps({**measured, "commit": commit, "parts": parts}))
        (tmp_path / "figures").mkdir(exist_ok=True)
        figures.take_gpu(file, tmp_path / "figures")
    found = document.gpu_parts(tmp_path / "figures")
    assert {name: part["made"]["commit"][0] for name, part in found.items()} == {"layers": "a", "search": "b"}


def rows(precision, *, batch=1, seconds=1.0, ways=("NNI", "fused")):
    found = {"case": "trinity", "candidates": 8, "precision": precision, "batch": batch, "seconds": seconds}
    return [
        found | {"implementation": way, "speedup": 1.0, "peak_gb": 1.0, "peak_share": 1.0, "gemm_share": 0.1}
        for way in ways
    ]


@pytest.fixture
def taken(scripts, measured, tmp_path):
    """Take in supernets' figures of a run by its commit; return what is then kept of them, and the page's section."""
    folder = tmp_path / "figures"
    folder.mkdir()

    def take(commit, figures, missing=(), *, cases="", note="", **changed):
        report = {**measured["parts"]["supernets"]["report"], "figures": figures, "missing": list(missing), **changed}
        parts = {"supernets": {"status": "done", "report": report}}
        file = tmp_path / "gpu.json"
        file.write_text(json.dumps({**measured, "commit": commit, "cases": cases, "parts": parts}))
        scripts["gpu_figures"].take_gpu(file, folder, note)
        part = scripts["document"].gpu_parts(folder)["supernets"]
        return part, scripts["document"].gpu_section("supernets", part)

    return take


def test_chosen_cases_of_a_later_run_stand_beside_the_others(taken):
    """Rows that both have are the later run's; missing is what neither has; each run is named with its cases."""
    missing = ["trinity, bf16, batch 1", "trinity, bf16, batch 2", "screening head, fp32, batch 1"]
    _, page = taken("aaaa", rows("fp32") + rows("fp32", batch=2), missing, note="The first.")
    assert "\nThe first.\n" in page
    assert "It measured" not in page
    later = rows("fp32", batch=2, seconds=2.0, ways=("NNI",)) + rows("bf16", seconds=3.0)
    part, page = taken("bbbb", later, missing[1:2], cases="batch", note="The second.", gemm_flops={"bf16": 8e14})
    figures = [
        (row["precision"], row["batch"], row["implementation"], row["seconds"]) for row in part["report"]["figures"]
    ]
    assert figures == [
        ("fp32", 1, "NNI", 1.0),
        ("fp32", 1, "fused", 1.0),
        ("fp32", 2, "NNI", 2.0),
        ("bf16", 1, "NNI", 3.0),
        ("bf16", 1, "fused", 3.0),
    ]
    assert part["report"]["missing"] == missing[1:]
    first, second = (line for line in page.splitlines() if line.startswith("- "))
    assert "Commit aaaa. A large product of matrices: 790 TFLOP/s in bf16." in first
    assert first.endswith("It measured: trinity, fp32, batch 1. The first.")
    assert "Commit bbbb. A large product of matrices: 800 TFLOP/s in bf16." in second
    assert second.endswith("It measured: trinity, fp32, batch 2; trinity, bf16, batch 1. The second.")
    assert "Not measured: trinity, bf16, batch 2; screening head, fp32, batch 1.\n" in page


def test_a_run_that_has_no_case_left_is_not_named(taken):
    taken("aaaa", rows("fp32"))
    taken("bbbb", rows("bf16"), cases="bf16")
    part, page = taken("cccc", rows("fp32", seconds=2.0), cases="fp32")
    assert [run["made"]["commit"] for run in part["earlier"]] == ["bbbb"]
    assert "aaaa" not in page
    part, page = taken("dddd", rows("bf16"))  # of all cases: replaces the part
    assert "earlier" not in part
    assert [commit for commit in ("bbbb", "cccc", "dddd") if commit in page] == ["dddd"]


def test_cases_of_another_size_are_not_merged(taken):
    taken("aaaa", rows("fp32"))
    with pytest.raises(ValueError, match=r"^supernets: input_size is \[64, 64\], of the figures .* \[800, 1216\]$"):
        taken("bbbb", rows("bf16"), cases="bf16", input_size=[64, 64])


def test_a_case_is_named_as_its_rows_say(scripts):
    """By the same words as the list of what is missing, whatever the part."""
    parts = json.loads((scripts["gpu_figures"].FIGURES / "gpu.json").read_text(encoding="utf-8"))["parts"]
    for name in scripts["gpu_figures"].NAMES:
        report = parts[name]["report"]
        known = scripts["gpu_figures"].by_case(name, report["figures"])
        assert known
        assert not set(known) & set(report["missing"])
        assert {case.count(",") for case in (*known, *report["missing"])} == {case.count(",") for case in known}
