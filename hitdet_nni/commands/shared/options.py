"""Arguments that several commands take."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

PARTS = ("backbone", "neck", "head")


def add_config(parser: ArgumentParser) -> None:
    """Add ``--config`` and ``--set``."""
    parser.add_argument("--config", required=True, help="config file, or a shipped config's name")
    add_overrides(parser)


def add_overrides(parser: ArgumentParser) -> None:
    """Add ``--set``."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="set a dotted key of the config, such as search.epochs=20; docs/settings.md has them all",
    )


def add_run_directory(parser: ArgumentParser) -> None:
    """Add ``--out`` for a run directory, ``--force`` and ``--resume``."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="run directory")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--force", action="store_true", help="remove the results that are there")
    group.add_argument("--resume", action="store_true", help="go on exactly where an earlier run stopped")


def add_training(parser: ArgumentParser) -> None:
    """Add what every command that trains takes: a config and a run directory."""
    add_config(parser)
    add_run_directory(parser)


def add_file(parser: ArgumentParser, text: str) -> None:
    """Add ``--out`` for a file, and ``--force``.

    Args:
        parser: The command's parser.
        text: What is written.
    """
    parser.add_argument("--out", "-o", type=Path, required=True, metavar="FILE", help=text)
    add_overwrite(parser)


def add_overwrite(parser: ArgumentParser) -> None:
    """Add ``--force`` for a file."""
    parser.add_argument("--force", action="store_true", help="overwrite the file")


def add_json(parser: ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_study(parser: ArgumentParser) -> None:
    """Add what every kind of study takes."""
    add_overrides(parser)
    add_run_directory(parser)
    add_json(parser)


def add_jobs(parser: ArgumentParser, what: str = "retrainings") -> None:
    """Add ``--jobs`` for ``what`` a study trains side by side."""
    parser.add_argument("--jobs", type=int, default=1, help=f"{what} side by side (default: %(default)s)")


def add_studied_run(parser: ArgumentParser) -> None:
    """Add ``--run`` for the run of a search that is studied, ``--seeds`` and ``--jobs``."""
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="run directory of the search")
    parser.add_argument("--seeds", type=int, default=3, help="retrainings of each architecture (default: %(default)s)")
    add_jobs(parser)
