"""Reading what users wrote and writing results whole: a result file is either complete or absent."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from hitdet_nni.errors import InputError


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        InputError: If it is missing, not a file, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError("no such file", source=path) from None
    except UnicodeDecodeError:
        raise InputError("not a UTF-8 text file", source=path) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", source=path) from None


def read_yaml(path: Path) -> Any:
    """Read a YAML file, safely.

    Raises:
        InputError: If it is missing or not YAML, naming the line.
    """
    text = read_text(path)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"not valid YAML{place}: {getattr(error, 'problem', None) or error}", source=path) from None
    except (ValueError, RecursionError) as error:  # a date that does not exist, a number of thousands of digits
        raise InputError(f"not valid YAML: {error}", source=path) from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: If it is missing or not JSON, naming the line.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        place = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"not valid JSON{place}: {error}", source=path) from None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: to a temporary file beside it, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a CSV file with a header line atomically."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on a file among processes; the system frees it if the holder dies.

    Args:
        path: The lock file; made if absent, never removed.
        wait: Wait for another holder; otherwise give up at once.

    Yields:
        Whether the lock is held; always true if ``wait``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
