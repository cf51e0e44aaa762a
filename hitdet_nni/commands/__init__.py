"""What each ``hitdet-nni`` command does; a command imports no more than it needs.

Options, configs and paths come first, with what is light; what trains, counts or draws is imported where it is called.
"""

from __future__ import annotations

import importlib
from argparse import Namespace

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

    Raises:
        InputError: For input that the user can mend, of whatever the command does.
        WriteError: If a command that takes long could not write on the way.
    """
    module, name = _HOMES[options.command]
    try:
        getattr(importlib.import_module(f"{__name__}.{module}"), name)(options)
    except WriteError as error:
        if hasattr(options, "resume"):
            raise
        # Nothing that takes long has begun.
        raise InputError(f"cannot be written ({error.reason})", source=error.path) from None
