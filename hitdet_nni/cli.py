"""The ``hitdet-nni`` command: collects the commands of :mod:`hitdet_nni.commands`, and runs the one that is named.

Exit status: 0 done, 2 bad input (one line on standard error), 130 interrupted, 141 where what reads standard output has
ended, 1 anything else.
"""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
from collections.abc import Sequence

from hitdet_nni import __version__
from hitdet_nni.commands import find_commands
from hitdet_nni.engine import distributed
from hitdet_nni.engine.output import OutputError, discard_output, write_out
from hitdet_nni.engine.process import heard_interrupts, own_process
from hitdet_nni.errors import InputError, LostProcessError, StoppedError, WriteError, escape_unprintable
from hitdet_nni.io import expanded

_WORD = re.compile(r"^(--[\w-]+=)?(~.*)$", re.DOTALL)
"""A word, or the value of an option in it, that begins with a home folder."""


def build_parser(called: str | None = None) -> argparse.ArgumentParser:
    """Build the parser of all commands.

    Args:
        called: The one command that needs its arguments, which saves time; ``None`` gives every command its own.
    """
    parser = argparse.ArgumentParser(prog="hitdet-nni", description="Hit-Detector: search a whole object detector.")
    parser.add_argument("--version", action="version", version=f"hitdet-nni {__version__}")
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in find_commands().items():
        epilog = f"example: {command.EXAMPLE}"
        below = parsers.add_parser(name, help=command.HELP, description=command.HELP, epilog=epilog)
        if called in (None, name):
            command.add_arguments(below)
    return parser


def run(options: argparse.Namespace) -> int:
    """Run the command that the options name.

    Args:
        options: What the parser has read.

    Returns:
        The exit status.

    Raises:
        InputError: For input that the user can mend, of whatever the command does.
        WriteError: If a command that takes long could not write on the way.
    """
    try:
        return find_commands()[options.command].run(options) or 0
    except WriteError as error:
        if hasattr(options, "resume"):
            raise
        # Nothing that takes long has begun.
        raise InputError(f"cannot be written ({error.reason})", source=error.path) from None


def with_home_folders(words: Sequence[str]) -> list[str]:
    """Return words of a command with home folders in place of ``~``, which a shell leaves in ``--out=~/x`` or quotes.

    Args:
        words: The words.

    Raises:
        InputError: If there is no such user.
    """
    return [_WORD.sub(lambda found: f"{found[1] or ''}{expanded(found[2])}", word) for word in words]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; errors of the user end with status 2 and one line on standard error.

    Args:
        arguments: The words after ``hitdet-nni``; ``None`` for the process's own.

    Returns:
        The exit status.
    """
    escape_unprintable()
    speaks = distributed.speaks_for_machine()
    if not speaks:  # what is noted before the processes have joined
        logging.getLogger("hitdet_nni").setLevel(logging.ERROR)
    if arguments is None:
        own_process()
    words = sys.argv[1:] if arguments is None else arguments
    called = next((word for word in words if not word.startswith("-")), "")
    way = ""
    try:
        options = _parsed(called, with_home_folders(words))
        way = "; the same command with --resume goes on from there" if hasattr(options, "resume") else ""
        with heard_interrupts():
            return run(options)
    except InputError as error:
        if speaks or error.key == "LOCAL_RANK":
            sys.stderr.write(f"hitdet-nni: {error}\n")
        return 2
    except OutputError as error:
        discard_output()
        if error.closed:  # as behind `| head`: told of by the status alone, that of a program which the system ends so
            return 128 + signal.SIGPIPE
        sys.stderr.write(f"hitdet-nni: {error}\n")
        return 1
    except LostProcessError as error:
        if speaks:
            sys.stderr.write(f"hitdet-nni: {error}\n")
        return 1
    except StoppedError as error:
        sys.stderr.write(f"hitdet-nni: {error}\n")
        return 1
    except KeyboardInterrupt:
        if speaks:
            sys.stderr.write(f"hitdet-nni: interrupted{way}\n")
        return 130


def _parsed(called: str, words: Sequence[str]) -> argparse.Namespace:
    """Return the options; help that argparse has printed is written before it ends the program."""
    try:
        return build_parser(called).parse_args(words)
    except SystemExit:
        write_out("")
        raise


if __name__ == "__main__":
    sys.exit(main())
