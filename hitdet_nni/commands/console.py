"""What the commands share: their settings, and what they say on the terminal."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from hitdet_nni.engine import distributed
from hitdet_nni.engine.process import prepare_process
from hitdet_nni.errors import InputError
from hitdet_nni.settings import Settings, load_settings, parse_overrides


def console() -> Console:
    """The terminal that tables are printed on."""
    # A table that is piped must not be folded to a terminal's 80 columns.
    return Console(width=None if sys.stdout.isatty() else 160)


def say(text: str) -> None:
    """Write a line on standard output, at once; of several processes the main one speaks."""
    if not distributed.is_main():
        return
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def notes_said(*, as_errors: bool) -> Iterator[None]:
    """Say on the terminal what the library notes of its work, in the main process.

    Args:
        as_errors: On standard error, because standard output is for JSON.
    """
    notes = logging.getLogger("hitdet_nni")
    handler = logging.StreamHandler(sys.stderr if as_errors else sys.stdout)
    notes.addHandler(handler)
    notes.propagate = False
    notes.setLevel(logging.INFO if distributed.is_main() else logging.ERROR)
    try:
        yield
    finally:
        notes.removeHandler(handler)
        notes.propagate = True
        notes.setLevel(logging.NOTSET)


def settings_of(options: Namespace) -> Settings:
    """Settings that the options name; the process is prepared for them."""
    settings = load_settings(options.config, parse_overrides(options.overrides))
    prepare_process(settings.threads)
    return settings


def refuse_existing(path: Path, force: bool) -> None:
    """Refuse to overwrite a file unless forced.

    Raises:
        InputError: If it exists.
    """
    if path.exists() and not force:
        raise InputError("exists already", source=path, allowed="another file, or --force")
