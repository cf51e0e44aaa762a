"""Trials: put together from NNI's answers, and shown as lines and as a table."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from hitdet_nni.integration.launcher.trial_table import (
    Snapshot,
    Trial,
    format_value,
    metric_values,
    parse_trials,
    print_table,
    results_table,
    status_line,
    three_digits,
)


def test_metric_values_are_json_in_a_json_string_or_bare():
    assert metric_values(json.dumps(json.dumps({"default": 0.5, "gflops": 1}))) == {"default": 0.5, "gflops": 1}
    assert metric_values(json.dumps("0.5")) == {"default": 0.5}
    assert metric_values("0.5") == {"default": 0.5}


def job(trial, number, parameter, status="RUNNING", **more):
    chosen = json.dumps({"parameter_id": parameter, "parameters": {"search.flops_weight": parameter / 2}})
    return {"trialJobId": trial, "status": status, "sequenceId": number, "hyperParameters": [chosen], **more}


def metric(trial, parameter, kind, sequence, value):
    data = json.dumps(json.dumps(value))
    return {"trialJobId": trial, "parameterId": str(parameter), "type": kind, "sequence": sequence, "data": data}


def test_trials_are_put_together_from_jobs_and_metrics():
    final = metric("b", 1, "FINAL", 0, {"default": 0.25})
    jobs = [job("b", 1, 1, "SUCCEEDED", logPath="/x/b", finalMetricData=[final]), job("a", 0, 0, "WAITING")]
    first, second = parse_trials(jobs, [final, metric("b", 1, "PERIODICAL", 4, {"default": 0.2})])
    assert first == Trial(0, "a", "WAITING", {"search.flops_weight": 0.0})
    values = {"search.flops_weight": 0.5}, 5, {"default": 0.2}, {"default": 0.25}
    assert second == Trial(1, "b", "SUCCEEDED", *values, Path("/x/b"))


def test_parameters_are_those_that_a_trial_really_got():
    jobs = [job("a", 0, 0), job("b", 1, 1), job("c", 2, 2)]
    assert [trial.parameters for trial in parse_trials(jobs, [])] == [{}, {}, {}]
    swapped = [metric("b", 0, "PERIODICAL", 0, 0.5), metric("a", 1, "PERIODICAL", 0, 0.5)]
    weights = [trial.parameters["search.flops_weight"] for trial in parse_trials(jobs, swapped)]
    assert weights == [0.5, 0.0, 1.0]


def test_trials_on_another_machine_are_told_from_those_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trial.stderr").write_text("of something else")
    place = "box:~/nni-experiments/abc/environments/remote-worker1/trials/b"
    here, there = parse_trials([job("a", 0, 0, logPath="/x:~/a"), job("b", 1, 1, logPath=place)], [])
    assert (here.folder, here.place, here.host) == (Path("/x:~/a"), "", "")
    assert (there.folder, there.place, there.host) == (Path(), place, "box")
    failed = replace(there, status="FAILED")
    assert Snapshot("DONE", (), (failed,)).complaints() == [f"trial 1 (b) FAILED: see {place}"]
    copied = replace(failed, folder=tmp_path)
    assert Snapshot("DONE", (), (copied,)).complaints() == [
        f"trial 1 (b) FAILED: of something else; see {tmp_path / 'trial.stderr'}"
    ]


@pytest.mark.parametrize(
    ("status", "place", "local", "shown"),
    [
        ("SUCCEEDED", "box:~/x", False, "on box"),
        ("SUCCEEDED", "box:~/x", True, str(Path("runs", "a", "architecture.json"))),
        ("FAILED", "box:~/x", False, "-"),
        ("SUCCEEDED", "", False, "-"),
    ],
)
def test_an_architecture_is_a_path_only_where_it_is_here(tmp_path, monkeypatch, status, place, local, shown):
    monkeypatch.chdir(tmp_path)
    if local:
        (tmp_path / "runs" / "a").mkdir(parents=True)
        (tmp_path / "runs" / "a" / "architecture.json").write_text("{}")
    stream = io.StringIO()
    print_table(results_table([Trial(0, "a", status, place=place)], Path("runs")), stream)
    assert stream.getvalue().rstrip().endswith(f" {shown}")


def test_status_lines():
    waiting = Trial(0, "AbCde", "WAITING", {"search.flops_weight": 0.5})
    assert status_line(waiting) == "trial 0 (AbCde) WAITING  search.flops_weight=0.5"
    done = Trial(1, "x", "SUCCEEDED", {}, 1, {"default": 2}, {"default": 0.5, "params_m": 3})
    assert status_line(done) == "trial 1 (x) SUCCEEDED  mAP=0.5 params_m=3"
    assert status_line(Trial(2, "y", "FAILED")) == "trial 2 (y) FAILED"


def test_three_significant_digits_without_exponent():
    values = [0, 0.000123456, 0.75, 0.9996, 2, 15.96, 100, 123456.0]
    shown = ["0.00", "0.000123", "0.750", "1.00", "2.00", "16.0", "100", "123000"]
    assert [three_digits(value) for value in values] == shown


def test_what_is_no_number_is_shown_as_it_is():
    assert [format_value(value, three_digits) for value in (None, "", "a", [1])] == ["-", "-", "a", "[1]"]
    assert [format_value(value) for value in (0.123456, 2, True)] == ["0.1235", "2", "true"]


def test_the_table_has_a_column_for_each_parameter_and_is_whole_in_a_pipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    final = {"default": 0.51234, "gflops": 2, "params_m": 3.14159}
    trials = [
        Trial(0, "a", "SUCCEEDED", {"search.flops_weight": 1, "seed": [1, 2]}, final=final),
        Trial(1, "b", "FAILED", {"search.budget": "a [bold] word " * 20}),
    ]
    path = Path("runs") / ("long" * 40) / "a" / "architecture.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    stream = io.StringIO()
    print_table(results_table(trials, tmp_path / path.parents[1]), stream)
    header, _, first, second = (line.split("  ") for line in stream.getvalue().splitlines() if line.strip())
    words = [cell.strip() for cell in header if cell.strip()]
    assert words == [
        "trial", "status", "cost weight", "seed", "search.budget", "params M", "GFLOPs", "mAP", "architecture",
    ]  # fmt: skip
    cells = [cell.strip() for cell in first if cell.strip()]
    assert cells == ["0 (a)", "SUCCEEDED", "1", "[1, 2]", "-", "3.14", "2.00", "0.512", str(path)]
    assert ("a [bold] word " * 20).strip() in "  ".join(second)


@pytest.mark.parametrize(
    ("status", "trials", "requested", "finished"),
    [
        ("RUNNING", ["SUCCEEDED"], 1, False),
        ("DONE", ["SUCCEEDED"], 1, True),
        ("ERROR", ["RUNNING"], 1, True),
        ("NO_MORE_TRIAL", ["RUNNING", "SUCCEEDED"], 2, False),
        ("NO_MORE_TRIAL", ["FAILED", "SUCCEEDED"], 3, True),
        ("TUNER_NO_MORE_TRIAL", ["SUCCEEDED"], 2, False),
        ("TUNER_NO_MORE_TRIAL", ["SUCCEEDED", "EARLY_STOPPED"], 2, True),
    ],
)
def test_when_an_experiment_is_finished(status, trials, requested, finished):
    snapshot = Snapshot(status, (), tuple(Trial(i, str(i), s) for i, s in enumerate(trials)), requested)
    assert snapshot.finished is finished


def test_complaints(tmp_path):
    (tmp_path / "trial.stderr").touch()
    (tmp_path / "trial.log").write_text("what\nwhy\n")
    good, bad = Trial(0, "a", "SUCCEEDED"), Trial(1, "b", "FAILED", folder=tmp_path)
    assert Snapshot("DONE", (), (good,)).complaints() == []
    assert Snapshot("DONE", (), (good, bad)).complaints() == [f"trial 1 (b) FAILED: why; see {tmp_path / 'trial.log'}"]
    killed = Trial(1, "b", "USER_CANCELED", folder=tmp_path)
    assert Snapshot("DONE", (), (good, killed)).complaints()[0].startswith("trial 1 (b) USER_CANCELED: why; see ")
    assert Snapshot("ERROR", ("no tuner",), (good,)).complaints() == ["NNI ended with ERROR: no tuner"]
    assert Snapshot("DONE").complaints() == ["no trial ran to its end"]
