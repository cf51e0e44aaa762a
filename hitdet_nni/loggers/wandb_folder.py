"""Runs of Weights & Biases, offline unless ``WANDB_MODE`` says otherwise: nothing leaves the machine by itself."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from hitdet_nni.loggers.destination import PROJECT, Destination
from hitdet_nni.loggers.scalars import Scalar
from hitdet_nni.runs.run_directory import RunDirectory

GROUPS = ("screening backbone", "screening neck", "screening head", "search", "retrain")
"""Groups of the points; each has epochs of its own."""


class WandB(Destination):
    """One run in the folder ``wandb`` of the working folder, or of ``WANDB_DIR``; ``wandb sync`` sends it.

    Offline each call makes a folder of its own, and those of one run have one id, by which they become one run again.

    Args:
        run: The run.
        settings: Its settings by dotted keys.
        identity: The id of the run to go on with; a new one is made where there is none.
    """

    def __init__(self, run: RunDirectory, settings: Mapping[str, str], identity: str | None) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing leaves the machine by itself
        import wandb  # noqa: PLC0415  (an extra of the package)

        self.identity = uuid.uuid4().hex[:8] if identity is None else identity
        self._name = run.path.resolve().name
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=self._name,
            id=self.identity,
            dir=os.environ.get("WANDB_DIR", str(Path.cwd())),  # W&B would keep the folder of the program's first run
            resume="allow",
            reinit="create_new",  # a run of the user's own goes on beside it
            mode=None if "WANDB_MODE" in os.environ else "offline",
            config=dict(settings),
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )
        self.where = str(Path(self._run.dir).parent)
        for group in GROUPS:
            self._run.define_metric(f"{group}/*", step_metric=f"{group}/epoch")

    def publish(self, points: Sequence[Scalar]) -> None:
        """Add points; those of one epoch and stage at once."""
        for (group, step), together in groupby(points, key=lambda point: (point.group, point.step)):
            self._run.log({f"{group}/epoch": step, **{point.tag: point.value for point in together}})

    def keep(self, files: Sequence[Path]) -> None:
        """Add files as an artifact of the run."""
        import wandb  # noqa: PLC0415

        artifact = wandb.Artifact(f"run-{self.identity}", type="run", description=self._name)
        for file in files:
            artifact.add_file(str(file))
        self._run.log_artifact(artifact)

    def end(self, *, finished: bool) -> None:
        """Close the folder, which W&B's service writes to for a moment yet."""
        self._run.finish(exit_code=0 if finished else 1)
