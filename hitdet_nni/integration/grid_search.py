"""NNI's grid search for experiments that are stopped and resumed."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import nni
from nni.algorithms.hpo.gridsearch_tuner import GridSearchTuner

from hitdet_nni.integration.nni_words import ENDED


class GridSearch(GridSearchTuner):  # type: ignore[misc]
    """NNI's grid search that hands out no point of the grid which a resumed trial still works at.

    NNI's own knows of finished trials only: a point whose trial was stopped is run again by that trial, which NNI
    resumes, and a second time by a new one, in place of a point that has not been tried. Points of trials that failed
    are handed out again, as NNI does.

    Its place in an experiment file is ``tuner: {className: hitdet_nni.integration.grid_search.GridSearch,
    codeDirectory: .}``.
    """

    def update_search_space(self, space: dict[str, Any]) -> None:
        """Lay out the grid, and leave out what resumed trials are at."""
        super().update_search_space(space)
        if os.environ.get("NNI_MODE") == "resume":
            database = Path(os.environ["NNI_LOG_DIRECTORY"]).parent / "db" / "nni.sqlite"
            self.history.update(nni.dump(point, sort_keys=True) for point in unfinished_points(database))


def unfinished_points(database: Path) -> list[dict[str, Any]]:
    """Return the parameters of the trials that NNI runs again when it resumes an experiment.

    Args:
        database: NNI's record of the experiment.
    """
    query = "select trialJobId, event, data from TrialJobEvent where trialJobId != '' order by rowid"
    uri = f"{database.absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        events = connection.execute(query).fetchall()
    ended = {trial for trial, event, _ in events if event in ENDED}
    points = {trial: data for trial, _, data in events if data and trial not in ended}
    return [json.loads(data)["parameters"] for data in points.values()]
