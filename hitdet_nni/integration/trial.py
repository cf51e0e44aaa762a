"""What ``nnictl`` runs: one whole pipeline with the tuner's parameters.

With :mod:`hitdet_nni.integration.multi_trial` the only caller of ``nni.report_*``.

The trials of an experiment share one screening, because it does not depend on what they vary: each takes a component
that no other one is at. Run by hand, without an experiment, a trial does the same with the config as it is.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import nni

from hitdet_nni.config.search_space import SearchSpace
from hitdet_nni.config.settings import Settings, load_settings
from hitdet_nni.config.skeleton import COMPONENTS
from hitdet_nni.data.sources import DetectionData, open_images
from hitdet_nni.engine import distributed
from hitdet_nni.engine.process import heard_interrupts, keep_imports, prepare_process, translate_io_errors
from hitdet_nni.engine.progress import listening, written
from hitdet_nni.engine.progress_view import LineView
from hitdet_nni.errors import InputError, StoppedError, escape_unprintable
from hitdet_nni.integration.nni_words import SCREENING, SEARCH, final_report
from hitdet_nni.io import read_json, read_yaml
from hitdet_nni.loggers.following import followed
from hitdet_nni.loggers.packages import install, is_available, require_package
from hitdet_nni.loggers.tensorboard import write_scalars
from hitdet_nni.nas.checks import check_budget, whole_space
from hitdet_nni.nas.epoch_record import EpochRecord
from hitdet_nni.nas.health.validation_batches import tell_too_few_batches
from hitdet_nni.nas.provenance import require_latency_table
from hitdet_nni.pipeline.retraining import retrain_architecture
from hitdet_nni.pipeline.screening import hand_on, rank_operators, screening_key
from hitdet_nni.pipeline.search import search
from hitdet_nni.report.page import write_report
from hitdet_nni.runs.run_directory import RunDirectory
from hitdet_nni.runs.same_settings import plain, same_run

logger = logging.getLogger(__name__)


class Reports:
    """What a trial reports to NNI of its epochs; ``default`` is the validation loss.

    NNI knows a report by its number. A trial that goes on counts on from those that it sent before it was stopped.

    Args:
        run: The trial's run directory.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._sent = run.reports if distributed.is_main() else 0
        nni.trial.overwrite_intermediate_seq(self._sent)

    def epoch(self, stage: str, record: EpochRecord) -> None:
        """Report what was measured in an epoch."""
        metrics = record.metrics()
        # NNI's web UI wants the same keys throughout, and of a component that is not searched there are no signs.
        ends = tuple(f"_{component}" for component in COMPONENTS)
        signs = dict.fromkeys(name.rpartition("_")[0] for name in metrics if name.endswith(ends))
        absent = {f"{sign}_{component}": 0.0 for sign in signs for component in COMPONENTS}
        nni.report_intermediate_result(
            {
                "default": record.val_loss,
                **absent,
                **metrics,
                "stage": SEARCH if stage == "search" else SCREENING,
                "epoch": record.epoch + 1,
            }
        )
        self._sent += 1
        self._run.note_reports(self._sent)


def adopt(run: RunDirectory, settings: Settings) -> None:
    """Take over what an earlier trial of the experiment left unfinished, if it had the same settings.

    NNI runs a trial that was going on when the experiment stopped again under its own id, but one that failed under a
    new one.
    """
    if run.path.exists() or not run.path.parent.is_dir():
        return
    for folder in sorted(run.path.parent.iterdir()):
        other = RunDirectory(folder)
        if not other.config.is_file() or other.metrics.exists():
            continue
        with suppress(InputError), other.held():  # another trial may be at work in it, or its config be damaged
            if not same_run(read_yaml(other.config), plain(settings)):
                continue
            other.note_reports(0)  # NNI has none of a trial with the new id
            folder.rename(run.path)
            logger.info("going on with what trial %s left unfinished", folder.name)
            return


def run_trial(config: str, runs: Path, *, force: bool = False) -> None:
    """Screen, search, retrain and report; go on exactly where a trial with the same id and settings stopped.

    Args:
        config: Config file or shipped config's name; the tuner's parameters are laid over it.
        runs: Folder of run directories; this trial's is ``runs/<experiment id>/<trial id>``.
        force: Remove what a trial with the same id left.

    Raises:
        InputError: If the config, a parameter or the data is bad, or the run directory holds a run with other settings.
    """
    distributed.init()
    parameters = distributed.broadcast_object((nni.get_next_parameter() or {}) if distributed.is_main() else None)
    settings = load_settings(config, parameters, called="the tuner's parameters")
    require_package(settings.logger)
    prepare_process(settings.threads)
    keep_imports()
    run = RunDirectory(runs / nni.get_experiment_id() / nni.get_trial_id())
    with _as_a_trial(run):
        require_latency_table(run, settings)
        whole = whole_space(settings)
        settings, data = open_images(settings)
        check_budget(whole, settings, len(data.classes))
        if distributed.is_main() and not force:
            adopt(run, settings)
        # A manager that was killed leaves its trials running; the same trial, started again, waits for them.
        with run.held(wait=True) if distributed.is_main() else nullcontext():
            run.open(settings, force=force, resume=not force)
            with _shown(run), followed(run, settings):
                result = _run_pipeline(run, whole, settings, data)
    if distributed.is_main():
        nni.report_final_result(final_report(result))
        logger.info("report: %s", write_report(run.path))
        write_curves(run)
    logger.info("mAP %.3f, %s", result["mAP"], run.architecture)
    distributed.destroy()


@contextmanager
def _as_a_trial(run: RunDirectory) -> Iterator[None]:
    """Have refusals within the context name what a trial has in place of the options of commands."""
    try:
        yield
    except InputError as error:
        key, allowed = "--runs" if error.key == "--out" else error.key, error.allowed
        if error.source == str(run.config):
            allowed = "the config as it was, a new experiment, or --force in the trial's command"
        elif key == "search.budget.table" and run.latency.exists():
            allowed = f"a copy of {run.latency} in its place"
        raise InputError(error.problem, source=error.source, key=key, allowed=allowed) from None


def write_curves(run: RunDirectory) -> None:
    """Write the curves of a run where NNI's web UI looks for TensorBoard's files; without TensorBoard, log that.

    Does nothing in a trial that NNI did not start.
    """
    if "NNI_OUTPUT_DIR" not in os.environ:
        return
    if is_available("tensorboard"):
        write_scalars(run.path, Path(os.environ["NNI_OUTPUT_DIR"]) / "tensorboard")
    else:
        logger.info("no curves for TensorBoard, which is not installed: %s", install("tensorboard"))


@contextmanager
def _shown(run: RunDirectory) -> Iterator[None]:
    """Have the log, and whoever looks into the run directory, hear how far the trial is."""
    if not distributed.is_main():
        yield
        return
    with written(run.path), listening(LineView(lambda line: logger.info("%s", line))):
        yield


def _run_pipeline(run: RunDirectory, whole: SearchSpace, settings: Settings, data: DetectionData) -> dict[str, Any]:
    """Run all stages that have not ended yet, and return the content of ``metrics.json``."""
    if distributed.broadcast_object(run.metrics.exists()):
        result: dict[str, Any] = read_json(run.metrics)
        return result
    reports = Reports(run)
    shared = RunDirectory(run.path.parent / f"screening-{screening_key(settings, whole)}")
    if not run.architecture.exists():
        tell_too_few_batches(run, settings, data)
    with run.timed("screening"):
        rank_operators(shared, whole, settings, data, reports.epoch, user=run)
        if distributed.is_main():
            # Of an earlier version there may be sub-spaces; what a trial is handed depends on its budget.
            ignored = shutil.ignore_patterns(".*", shared.sub_spaces.name)
            if shared.screening.is_dir():  # where there was anything to screen
                shutil.copytree(shared.screening, run.screening, ignore=ignored, dirs_exist_ok=True)
        space = hand_on(run, whole, settings, len(data.classes))
    with run.timed("search"):
        architecture = search(run, space, settings, data, reports.epoch)
    with run.timed("retrain"):
        return retrain_architecture(run, architecture, settings, data, resume=True)


def main() -> int:
    """Run a trial; the exit status is 0, 2 for bad input, 130 where a signal has ended it, or 1."""
    parser = argparse.ArgumentParser(prog="python -m hitdet_nni.integration.trial", description=__doc__)
    parser.add_argument("--config", required=True, help="config file, or a shipped config's name")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of run directories")
    parser.add_argument("--force", action="store_true", help="remove what a trial with the same id left")
    escape_unprintable()
    arguments = parser.parse_args()
    level = logging.INFO if distributed.launched_as_main() else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", stream=sys.stdout, force=True)
    try:
        with translate_io_errors(arguments.runs), heard_interrupts():
            run_trial(arguments.config, arguments.runs, force=arguments.force)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except StoppedError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same trial goes on from there\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
