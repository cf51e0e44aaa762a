"""The settings of a command, and what it says on the terminal."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console

from hitdet_nni.config.settings import Settings, load_settings, parse_overrides
from hitdet_nni.engine import distributed
from hitdet_nni.errors import InputError


def console() -> Console:
    """Return the terminal that tables are printed on."""
    # A table that is piped must not be folded to a terminal's 80 columns.
    return Console(width=None if sys.stdout.isatty() else 160)


def echo(text: str) -> None:
    """Write a line on standard output, at once; of several processes the main one speaks."""
    if not distributed.launched_as_main():
        return
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def json_text(value: Any) -> str:
    """Return a result as it is printed with ``--json``."""
    return json.dumps(value, indent=2)


def settings_of(options: Namespace) -> Settings:
    """Return the settings that the options name."""
    return load_settings(options.config, parse_overrides(options.overrides))


def refuse_existing(path: Path, force: bool) -> None:
    """Refuse to overwrite a file unless forced, and to write where that is not possible.

    Raises:
        InputError: If it exists, or its folder is read-only.
    """
    if path.exists() and not force:
        raise InputError("exists already", source=path, allowed="another file, or --force")
    folder = next(one for one in path.absolute().parents if one.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        problem = "is read-only" if folder.is_dir() else "is a file"
        raise InputError(f"cannot be written: {folder} {problem}", source=path)
