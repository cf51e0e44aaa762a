"""The ``hitdet-nni`` commands: every module of this folder is one, with its arguments and its action.

The command ``check-data`` is the module ``check_data``; being here is all that makes it one. What it defines is said by
:class:`Command`. What commands share lies in ``shared/``, the kinds of ``study`` in ``study_kinds/``.

All modules are imported for ``--help``. So a module imports at its top no more than its arguments need, and whatever
else it uses inside its functions: options, configs and paths are looked at before anything heavy is loaded.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast


class Command(Protocol):
    """What a module of a command defines.

    Attributes:
        HELP_ORDER: Commands are listed in ascending order of this.
        HELP: What it does, in a line.
        EXAMPLE: A call.
    """

    HELP_ORDER: int
    HELP: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add its arguments to its parser."""

    def run(self, options: argparse.Namespace) -> int | None:
        """Do what the options say, and return the exit status if it is not 0."""


def find_modules(package: str) -> dict[str, ModuleType]:
    """Import the modules of a folder, which define ``HELP_ORDER``.

    Args:
        package: Its dotted name.

    Returns:
        The modules by what users call them, in the order of the help.
    """
    (folder,) = importlib.import_module(package).__path__
    # Not `pkgutil`: it loads `inspect`, which takes as long as all these modules.
    names = (file.stem for file in Path(folder).glob("[!_]*.py"))
    found = {name.replace("_", "-"): importlib.import_module(f"{package}.{name}") for name in names}
    return dict(sorted(found.items(), key=lambda item: item[1].HELP_ORDER))


def find_commands() -> dict[str, Command]:
    """Return all commands by their names, in the order in which they are listed."""
    return {name: cast(Command, module) for name, module in find_modules(__name__).items()}
