"""What each ``hitdet-nni`` command does; a command imports no more than it needs."""

from __future__ import annotations

import importlib
from argparse import Namespace
from contextlib import nullcontext

from hitdet_nni.errors import InputError, WriteError

_HOMES = {
    "data": ("data", "data"),
    "check-data": ("data", "check_data"),
    "pretrain": ("pretrain", "pretrain_command"),
    "screen": ("find", "screen_command"),
    "search": ("find", "search_command"),
    "export": ("export", "export_command"),
    "export-config": ("weights", "export_config_command"),
    "profile": ("cost", "profile"),
    "retrain": ("weights", "retrain_command"),
    "train-baseline": ("baseline", "train_baseline_command"),
    "evaluate": ("weights", "evaluate_command"),
    "study": ("study", "study_command"),
    "tables": ("cost", "tables_command"),
    "report": ("report", "report_command"),
    "compare": ("report", "compare_command"),
}


def run(options: Namespace) -> None:
    """Run the command that the options name.

    A command that trains joins the processes that ``torchrun`` started beside it, and keeps others out of its run
    directory meanwhile.

    Raises:
        InputError: For input that the user can mend, of whatever the command does.
    """
    module, name = _HOMES[options.command]
    function = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    if not hasattr(options, "resume"):
        try:
            function(options)
        except WriteError as error:  # nothing that takes long has begun
            raise InputError(f"cannot be written ({error.reason})", source=error.path) from None
        return
    group = importlib.import_module("hitdet_nni.engine.distributed")
    group.join()
    console = importlib.import_module(f"{__name__}.console")
    run_directory = importlib.import_module("hitdet_nni.run_directory").RunDirectory(options.out)
    held = run_directory.held() if group.is_main() else nullcontext()
    told = importlib.import_module("hitdet_nni.engine.process").told_in_a_line(options.out)
    with console.notes_said(as_errors=getattr(options, "json", False)), held, told:
        function(options)
    group.leave()
