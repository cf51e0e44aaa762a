"""How far the trials of an experiment are: by the file that a trial here keeps, else by what it reported to NNI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hitdet_nni.engine.progress import PROGRESS_FILE, Progress, read_progress
from hitdet_nni.integration.launcher.trial_table import Trial
from hitdet_nni.integration.nni_words import ENDED, STAGES

_REPORTED = {"loss": "train_loss", "val_loss": "val_loss", "gflops": "gflops"}
"""Name of each result of a :class:`~hitdet_nni.engine.progress.Progress` in an intermediate report."""


def trial_progress(trial: Trial, runs: Path, last: Progress | None = None) -> Progress:
    """Tell how far a trial is.

    Args:
        trial: As NNI knows it.
        runs: Folder of the run directories of the experiment's trials on this machine.
        last: What was known of it before; it stands while a trial that had a file has none, as at its end.
    """
    who = f"trial {trial.number}"
    if trial.status in ENDED:
        return Progress(trial.status.lower(), "ended", results=_results(trial.final, {"mAP": "default"}), who=who)
    if trial.status != "RUNNING":
        return Progress(trial.status.lower(), "waiting", who=who)
    found = None if trial.place else read_progress(runs / trial.id / PROGRESS_FILE)
    if found is not None and found.doing == "ended":  # the next stage is being built
        return replace(found, who=who, doing="training", steps=0, left=0.0)
    if found is not None:
        return replace(found, who=who)
    if last is not None and last.epochs:
        return last
    stage, epoch = trial.latest.get("stage"), trial.latest.get("epoch")
    if isinstance(epoch, int) and stage in STAGES:
        return Progress(STAGES[stage], epoch=epoch, results=_results(trial.latest, _REPORTED), who=who)
    if trial.reports:  # of a trial that is not ours
        said = f"{trial.reports} report{'' if trial.reports == 1 else 's'}"
        return Progress(said, results=_results(trial.latest, _REPORTED), who=who)
    return Progress("starting", "waiting", who=who)


def _results(report: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    found = {name: report[key] for name, key in names.items() if key in report}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
