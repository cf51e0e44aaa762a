"""One NNI experiment from start to end, with NNI's manager kept on loopback, and no process left behind.

``hitdet-nni experiment`` starts the real ``nnictl create`` here, follows the trials over NNI's REST API, prints a table
of them and stops the experiment. ``--resume ID`` goes on with one that was stopped.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import IO

from hitdet_nni.engine.output import write_out
from hitdet_nni.engine.progress import Progress
from hitdet_nni.engine.progress_view import clock, view_on
from hitdet_nni.integration.launcher.experiment_config import ExperimentConfig
from hitdet_nni.integration.launcher.nni_manager import POLL_INTERVAL, NniExperiment
from hitdet_nni.integration.launcher.signals import Signals
from hitdet_nni.integration.launcher.trial_progress import trial_progress
from hitdet_nni.integration.launcher.trial_table import Snapshot, print_table, results_table, status_line


def _echo(text: str, stream: IO[str] | None = None) -> None:
    write_out(f"{text}\n", stream)


def watch(experiment: NniExperiment, signals: Signals, runs: Path) -> Snapshot:
    """Follow an experiment to its end, with a line for every change of a trial's status, and its progress.

    Args:
        experiment: The experiment, started.
        signals: What may end the watching.
        runs: Folder of the run directories of its trials on this machine.
    """
    started = time.monotonic()

    def write(text: str) -> None:
        _echo(f"{clock(time.monotonic() - started)}  {text}")

    shown: dict[str, str] = {}  # NNI tells only later what a trial was given
    known: dict[str, Progress] = {}
    with view_on(sys.stdout, write) as view:
        while True:
            snapshot = experiment.poll()
            for trial in snapshot.trials:
                line = status_line(trial)
                if shown.get(trial.id) != line:
                    shown[trial.id] = line
                    view.echo(line)
                known[trial.id] = trial_progress(trial, runs, known.get(trial.id))
                view(known[trial.id])
            if snapshot.finished:
                return snapshot
            signals.pause(POLL_INTERVAL)


def run(config: ExperimentConfig, runs: Path, port: int | None) -> int:
    """Run an experiment from start to end.

    Args:
        config: The experiment.
        runs: The folder that holds ``<experiment id>/<trial id>/architecture.json``, of trials on this machine.
        port: Port of the web UI; None picks a free one.

    Returns:
        The exit status: 0, 1 where a trial or the experiment failed, 128 + the signal's number after a signal.

    Raises:
        InputError: If NNI refuses the experiment.
        StoppedError: If NNI did not start or went away, or a machine cannot be reached.
    """
    snapshot = Snapshot("INTERRUPTED")
    with Signals() as signals:
        with contextlib.suppress(KeyboardInterrupt), NniExperiment(config, port, signals) as experiment:
            _echo(f"starting NNI; its web UI will be {experiment.address}")
            experiment.start()
            _echo(f"experiment {experiment.id} runs, files in {experiment.folder}")
            snapshot = watch(experiment, signals, runs / experiment.id)
            snapshot = experiment.fetch_logs(snapshot)
            print_table(results_table(snapshot.trials, runs / experiment.id), sys.stdout)
        if signals.first is not None:
            name = experiment.id or "(not set up yet)"
            _echo(f"{signals.first.name}: experiment {name} is stopped, no process of it is left")
            if experiment.id:
                program = ["hitdet-nni"] if shutil.which("hitdet-nni") else [sys.executable, "-m", "hitdet_nni"]
                command = shlex.join([*program, "experiment", "--resume", experiment.id, "--runs", str(runs)])
                _echo(f"go on with: {command}")
            return 128 + signals.first
    _echo(f"the web UI was {experiment.address}; experiment {experiment.id} is stopped")
    complaints = snapshot.complaints()
    for complaint in complaints:
        _echo(complaint, sys.stderr)
    return 1 if complaints else 0
