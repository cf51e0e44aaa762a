"""Runs in MLflow's store: ``MLFLOW_TRACKING_URI``, or what MLflow keeps in the working folder by default."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hitdet_nni.loggers.destination import PROJECT, Destination
from hitdet_nni.loggers.scalars import Scalar
from hitdet_nni.runs.run_directory import RunDirectory

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
"""Variables of MLflow's that have these values where the user gives none."""

LARGEST_BATCH = 100
"""Parameters that MLflow takes at once; of metrics it takes ten times as many."""


class MLflow(Destination):
    """One run of MLflow, in the experiment ``hitdet-nni`` or the one of ``MLFLOW_EXPERIMENT_NAME``.

    Args:
        run: The run.
        settings: Its settings by dotted keys, kept as parameters.
        identity: The run of MLflow to go on with; a new one is made where there is none, or it has gone.
    """

    def __init__(self, run: RunDirectory, settings: Mapping[str, str], identity: str | None) -> None:
        # Nothing leaves the machine by itself, and a server that does not answer does not keep other processes waiting.
        for key, value in SETTINGS.items():
            os.environ.setdefault(key, value)
        from mlflow.entities import Param  # noqa: PLC0415  (an extra of the package)
        from mlflow.exceptions import MlflowException  # noqa: PLC0415
        from mlflow.tracking import MlflowClient  # noqa: PLC0415

        self._client: Any = MlflowClient()
        self.where = str(self._client.tracking_uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        if self._client.get_experiment_by_name(name) is None:
            with suppress(MlflowException):  # another trial has just made it
                self._client.create_experiment(name)
        experiment = self._client.get_experiment_by_name(name).experiment_id
        try:
            earlier = None if identity is None else self._client.get_run(identity)
        except MlflowException:
            earlier = None
        if earlier is None or earlier.info.lifecycle_stage != "active":
            earlier = self._client.create_run(experiment, run_name=run.path.resolve().name)
            parameters = [Param(key, value) for key, value in settings.items()]
            for start in range(0, len(parameters), LARGEST_BATCH):
                self._client.log_batch(earlier.info.run_id, params=parameters[start : start + LARGEST_BATCH])
        self.identity = str(earlier.info.run_id)
        self._client.update_run(self.identity, status="RUNNING")

    def publish(self, points: Sequence[Scalar]) -> None:
        """Add points, as of now."""
        from mlflow.entities import Metric  # noqa: PLC0415

        now = int(time.time() * 1000)
        metrics = [Metric(point.tag, point.value, now, point.step) for point in points]
        for start in range(0, len(metrics), LARGEST_BATCH):
            self._client.log_batch(self.identity, metrics=metrics[start : start + LARGEST_BATCH])

    def keep(self, files: Sequence[Path]) -> None:
        """Copy files among the run's artifacts; a name that is there is overwritten."""
        for file in files:
            self._client.log_artifact(self.identity, str(file))

    def end(self, *, finished: bool) -> None:
        """Say that the run has ended, or was stopped."""
        self._client.set_terminated(self.identity, "FINISHED" if finished else "KILLED")
