"""A grid search that goes on: what resumed trials are at is not handed out a second time."""

import json
import sqlite3

import nni
import pytest

from hitdet_nni.integration.grid_search import GridSearch, unfinished_points

SPACE = {"search.flops_weight": {"_type": "choice", "_value": [0.0, 1.0, 3.0]}}
TABLE = (
    "create table TrialJobEvent (timestamp integer, trialJobId text, event text, data text, logPath text,"
    " sequenceId integer, message text, environmentId text)"
)


def point(weight, number=0):
    return json.dumps({"parameter_id": number, "parameters": {"search.flops_weight": weight}, "parameter_index": 0})


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """An experiment that was stopped: its events, as NNI's manager writes them, are to be given."""

    def record(*events):
        database = tmp_path / "db" / "nni.sqlite"
        database.parent.mkdir()
        with sqlite3.connect(database) as connection:
            connection.execute(TABLE)
            rows = [(time, *event, "", time, "", None) for time, event in enumerate(events)]
            connection.executemany("insert into TrialJobEvent values (?,?,?,?,?,?,?,?)", rows)
        connection.close()
        monkeypatch.setenv("NNI_LOG_DIRECTORY", str(tmp_path / "log"))
        monkeypatch.setenv("NNI_MODE", "resume")
        return database

    return record


def all_points(tuner):
    found = []
    while True:
        try:
            found.append(tuner.generate_parameters()["search.flops_weight"])
        except nni.NoMoreTrialError:
            return found


def test_what_resumed_trials_are_at_is_left_out(experiment):
    database = experiment(
        ("a", "WAITING", point(0.0)),
        ("a", "RUNNING", None),
        ("b", "RUNNING", point(1.0, 1)),
        ("b", "FAILED", None),
        ("a", "ADD_RESUMED", ""),
        ("", "IMPORT_DATA", "[]"),
    )
    assert unfinished_points(database) == [{"search.flops_weight": 0.0}]
    tuner = GridSearch()
    tuner.update_search_space(SPACE)
    assert all_points(tuner) == [1.0, 3.0]  # that of the failed trial is tried again


def test_what_has_a_result_is_nnis_own_to_tell(experiment):
    database = experiment(("a", "RUNNING", point(0.0)), ("a", "SUCCEEDED", None))
    assert unfinished_points(database) == []
    tuner = GridSearch()
    tuner.update_search_space(SPACE)
    tuner.import_data([{"parameter": {"search.flops_weight": 0.0}, "value": 0.5}])
    assert all_points(tuner) == [1.0, 3.0]


def test_a_new_experiment_has_the_whole_grid(monkeypatch):
    monkeypatch.setenv("NNI_MODE", "create")
    tuner = GridSearch()
    tuner.update_search_space(SPACE)
    assert all_points(tuner) == [0.0, 1.0, 3.0]
