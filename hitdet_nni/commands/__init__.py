"""What each ``hitdet-nni`` command does; a command imports no more than it needs."""

from __future__ import annotations

import importlib
from argparse import Namespace

_HOMES = {
    "data": ("data", "data"),
    "check-data": ("data", "check_data"),
    "screen": ("find", "screen_command"),
    "search": ("find", "search_command"),
    "export": ("find", "export"),
    "export-config": ("weights", "export_config_command"),
    "profile": ("cost", "profile"),
    "retrain": ("weights", "retrain_command"),
    "evaluate": ("weights", "evaluate_command"),
    "tables": ("cost", "tables_command"),
}


def run(options: Namespace) -> None:
    """Run the command that the options name."""
    module, function = _HOMES[options.command]
    getattr(importlib.import_module(f"{__name__}.{module}"), function)(options)
