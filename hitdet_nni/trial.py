"""What ``nnictl`` runs: one whole procedure with the tuner's parameters. The only caller of ``nni.report_*``.

The trials of an experiment share one screening, because it does not depend on what they vary: each takes a component
that no other one is at. Run by hand, without an experiment, a trial does the same with the config as it is.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from pathlib import Path

import nni

from hitdet_nni.data.pipeline import open_data
from hitdet_nni.errors import InputError
from hitdet_nni.procedure import screen, screening_key, search, train_found, whole_space
from hitdet_nni.process import prepare_process
from hitdet_nni.run_directory import RunDirectory
from hitdet_nni.search.evaluator import EpochRecord
from hitdet_nni.settings import load_settings
from hitdet_nni.skeleton import COMPONENTS

logger = logging.getLogger(__name__)

SCREENING, SEARCH = 1, 2
"""The ``stage`` of an intermediate result."""


def report_epoch(stage: str, record: EpochRecord) -> None:
    """Report an epoch's loss, expected GFLOPs and entropies to NNI; ``default`` is the validation loss."""
    entropy = {f"entropy_{component}": record.entropy.get(component, 0.0) for component in COMPONENTS}
    nni.report_intermediate_result(
        {
            "default": record.val_loss,
            "val_loss": record.val_loss,
            "train_loss": record.train_loss,
            "gflops": record.expected_gflops,
            **entropy,
            "stage": SEARCH if stage == "search" else SCREENING,
            "epoch": record.epoch + 1,
        }
    )
    logger.info(
        "%s, epoch %d: val loss %.4f, %.4f GFLOPs expected, %s, %.1f s",
        stage,
        record.epoch + 1,
        record.val_loss,
        record.expected_gflops,
        ", ".join(f"entropy of {name} {value:.3f}" for name, value in record.entropy.items()),
        record.seconds,
    )


def run_trial(config: str, runs: Path) -> None:
    """Screen, search, retrain and report.

    Args:
        config: Config file or shipped config's name; the tuner's parameters are laid over it.
        runs: Folder of run directories; this trial's is ``runs/<experiment id>/<trial id>``.

    Raises:
        InputError: If the config, a parameter or the data is bad.
    """
    parameters = nni.get_next_parameter() or {}
    settings = load_settings(config, parameters)
    prepare_process(settings.threads)
    experiment = runs / nni.get_experiment_id()
    run = RunDirectory(experiment / nni.get_trial_id())
    whole = whole_space(settings)
    data = open_data(settings.data, settings.seed)
    run.open(settings, force=True)
    shared = RunDirectory(experiment / f"screening-{screening_key(settings, whole)}")
    with run.timed("screening"):
        space = screen(shared, whole, settings, data, report_epoch)
        shutil.copytree(shared.screening, run.screening, ignore=shutil.ignore_patterns(".*"))
    with run.timed("search"):
        architecture = search(run, space, settings, data, report_epoch)

    def log_evaluation(epoch: int, metrics: dict[str, float]) -> None:
        logger.info("retraining, epoch %d: mAP %.3f", epoch, metrics["mAP"])

    with run.timed("retrain"):
        result = train_found(run, architecture, settings, data, log_evaluation)
    nni.report_final_result({"default": result["mAP"], **{key: result[key] for key in ("mAP", "params_m", "gflops")}})
    logger.info("mAP %.3f, %s", result["mAP"], run.architecture)


def main() -> int:
    """Run a trial; the exit status is 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m hitdet_nni.trial", description=__doc__)
    parser.add_argument("--config", required=True, help="config file, or a shipped config's name")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of run directories")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout, force=True)
    try:
        run_trial(arguments.config, arguments.runs)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
