"""The settings of a command, and what it says on the terminal."""

from __future__ import annotations

import errno
import json
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from hitdet_nni.config.settings import Settings, load_settings, parse_overrides
from hitdet_nni.engine import distributed
from hitdet_nni.engine.output import telling_output_errors, write_out
from hitdet_nni.errors import InputError


def echo(text: str) -> None:
    """Write a line on standard output, at once; of several processes the main one speaks."""
    if distributed.launched_as_main():
        write_out(f"{text}\n")


class Terminal(Console):
    """A terminal that leaves it to its caller what becomes of a reader that has gone."""

    def on_broken_pipe(self) -> None:
        """Raise what rich would end the program for.

        Raises:
            BrokenPipeError: Always.
        """
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def console() -> Console:
    """Return the terminal that tables are printed on."""
    # A table that is piped must not be folded to a terminal's 80 columns.
    return Terminal(width=None if sys.stdout.isatty() else 160)


def show(table: RenderableType) -> None:
    """Print a table on standard output; of several processes the main one speaks.

    Raises:
        OutputError: If that is not possible.
    """
    if distributed.launched_as_main():
        with telling_output_errors():
            console().print(table)


def json_text(value: Any) -> str:
    """Return a result as it is printed with ``--json``."""
    return json.dumps(value, indent=2)


def settings_of(options: Namespace) -> Settings:
    """Return the settings that the options name."""
    return load_settings(options.config, parse_overrides(options.overrides))


def refuse_existing(path: Path, force: bool, instead: str = "another file") -> None:
    """Refuse to overwrite a file unless forced, and to write where that is not possible.

    Args:
        path: The file.
        force: Whether it may be overwritten.
        instead: What can be named instead.

    Raises:
        InputError: If it exists, or is a folder, or its folder is read-only.
    """
    if path.is_dir():
        raise InputError("is a folder", source=path, allowed="a file in it" if instead == "another file" else instead)
    if path.exists() and not force:
        raise InputError("exists already", source=path, allowed=f"{instead}, or --force")
    folder = next(one for one in path.absolute().parents if one.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        problem = "is read-only" if folder.is_dir() else "is a file"
        raise InputError(f"cannot be written: {folder} {problem}", source=path)
