"""``experiment``: one NNI experiment from start to end, with NNI's manager kept on loopback."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

HELP_ORDER = 55
HELP = "run one NNI experiment from start to end, its web UI on loopback only"
EXAMPLE = "hitdet-nni experiment experiments/search.yml --runs runs"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``experiment``."""
    parser.add_argument("file", type=Path, nargs="?", help="NNI's experiment file")
    parser.add_argument(
        "--resume",
        dest="stopped",
        metavar="ID",
        help="go on with a stopped experiment instead of starting a new one",
    )
    parser.add_argument(
        "--runs", type=Path, help="where trials write results (default: what their command says, else runs)"
    )
    parser.add_argument("--port", type=int, help="port of the web UI (default: a free one)")
    parser.add_argument("--node-options", action="store_true", help="print NODE_OPTIONS for a nnictl called by hand")


def run(options: Namespace) -> int:
    """Run the experiment, or print what a nnictl called by hand needs.

    Returns:
        The exit status: 0, 1 where a trial or the experiment failed, 128 + the signal's number after a signal.

    Raises:
        InputError: If there is no such experiment, it cannot run on loopback, or NNI refuses it.
        StoppedError: If NNI did not start or went away, or a machine cannot be reached.
    """
    import os

    from hitdet_nni.commands.shared.console import echo
    from hitdet_nni.compat import import_guard
    from hitdet_nni.errors import InputError
    from hitdet_nni.integration import experiment
    from hitdet_nni.integration.launcher.experiment_config import load_config, load_stopped
    from hitdet_nni.integration.launcher.nni_manager import node_options

    if options.node_options:
        echo(node_options(os.environ.get("NODE_OPTIONS", "")))
        return 0
    if options.file is None and options.stopped is None:
        raise InputError("is missing", key="the experiment", allowed="an experiment file, or one to --resume")
    if options.file is not None and options.stopped is not None:
        raise InputError(f"is given beside {options.file}", key="--resume", allowed="one of them")
    if options.port is not None and not 0 < options.port < 65536:
        raise InputError(f"{options.port} is not a TCP port", source="--port", allowed="1 to 65535")
    config = load_stopped(options.stopped) if options.stopped else load_config(options.file)
    import_guard.check()  # before NNI starts trials that cannot run
    return experiment.run(config, options.runs or config.runs or Path("runs"), options.port)
