"""Reading what users wrote and writing results whole: a result file is either complete or absent."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml

from hitdet_nni.errors import InputError, WriteError

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "weights.pth"
"""Name of the weights that a training leaves."""

_LONGEST_LINE = 4096
"""Bytes at the end of a CSV file in which its last line is looked for."""

_locks: set[IO[str]] = set()
"""The lock files that this process holds."""


def expanded(path: str) -> Path:
    """Return a path that a user wrote, with the home folder in place of ``~``.

    Args:
        path: The path.

    Raises:
        InputError: If there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(
            f"{path!r:.100} has no such home folder", allowed="~/ for your own, or ./ before the ~"
        ) from None


def is_there(path: Path, *, file: bool = False) -> bool:
    """Check whether there is anything, or a file, at a path that data names; what can be no path is not there.

    Args:
        path: The path, perhaps longer than a file system allows.
        file: Whether it has to be a file.
    """
    try:
        return path.is_file() if file else path.exists()
    except OSError:
        return False


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


class _AsWritten(yaml.SafeLoader):
    """YAML's safe loader, which keeps how a whole number was written where its digits do not say so.

    A key that stands twice in a mapping is refused.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping; of a key that is there twice YAML would keep the last, without a word."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"found the key {key.value!r} twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _OtherSpelling(int):
    """A whole number that is written as e.g. 0x7e1, 03741 or 2_017."""

    text: str

    def __repr__(self) -> str:
        return self.text


def _whole_number(loader: _AsWritten, node: yaml.ScalarNode) -> int:
    value: int = loader.construct_yaml_int(node)
    if str(value) == node.value:
        return value
    other = _OtherSpelling(value)
    other.text = node.value
    return other


_AsWritten.add_constructor("tag:yaml.org,2002:int", _whole_number)


def parse_as_written(text: str) -> Any:
    """Read YAML as ``yaml.safe_load`` does; a whole number shows its digits, and a key that stands twice is refused.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: As ``yaml.safe_load``.
    """
    loader = _AsWritten(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_yaml(path: Path, parse: Callable[[str], Any] = yaml.safe_load) -> Any:
    """Read a YAML file, safely.

    Args:
        path: The file.
        parse: ``yaml.safe_load`` or :func:`parse_as_written`.

    Raises:
        InputError: If it is missing or not YAML, naming the line.
    """
    text = read_text(path)
    try:
        return parse(text)
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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in whatever keeps it from being written.

    Raises:
        WriteError: In place of the system's error, or of the one that torch makes of it.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None or isinstance(error, WriteError):
            raise
        raise WriteError(path, cause.strerror or str(cause)) from error


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that takes the place of ``path`` when the context ends, and is gone where an error ends it.

    Raises:
        WriteError: If it cannot be written; ``path`` is as it was.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(handle)  # a disk over the network may tell only now that it is full
            umask = os.umask(0)
            os.umask(umask)
            Path(temporary).chmod(0o666 & ~umask)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: to a temporary file beside it, then renamed over it; surrogates are escaped.

    Raises:
        WriteError: If it cannot be written; what was there is as it was.
    """
    with whole_file(path) as stream:
        stream.write(text.encode("utf-8", "backslashreplace"))


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


def append_epoch(path: Path, epoch: int, rows: Sequence[Mapping[str, object]]) -> None:
    """Add the rows of an epoch to a CSV file whose first column is the epoch; the file is not written anew for it.

    What the file holds of this epoch or of later ones goes first, because a training that was interrupted goes on from
    an epoch before; and so does a last line that a crash cut short, with a warning. The rows of an epoch whose
    checkpoint has been saved are on the disk.

    Args:
        path: The file; made with a header line if absent.
        epoch: The epoch.
        rows: Its rows; all have the same keys, of which the first is the epoch.

    Raises:
        InputError: If the file has other columns.
        WriteError: If it cannot be written; it is as it was then.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    header = text.getvalue().encode()
    writer.writerows(rows)
    content = text.getvalue().encode()
    end: int | None = None
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("a+b") as stream:
                end = _end_of_earlier(path, stream, header, epoch)
                stream.truncate(end)
                stream.write(content[len(header) :] if end else content)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            if end is not None:
                with suppress(OSError):
                    os.truncate(path, end)
            raise


def _end_of_earlier(path: Path, stream: IO[bytes], header: bytes, epoch: int) -> int:
    """Return the length in bytes of the header line and the rows of earlier epochs; 0 where there is no header."""
    stream.seek(0)
    first = stream.readline()
    if not first.endswith(b"\n"):
        if first:
            logger.warning("%s: its only line is cut off and left out", path)
        return 0
    if first != header:
        raise InputError("has other columns", source=path, allowed=f"{header.decode().strip()}, or --force")
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(len(first), size - _LONGEST_LINE))
    last = stream.readlines()[-1:]
    if not last or _is_before(last[0], epoch):
        return size
    end = stream.seek(len(first))
    for line in stream:
        if not _is_before(line, epoch):
            break
        end += len(line)
    if not last[0].endswith(b"\n"):
        logger.warning("%s: its last line is cut off and left out", path)
    return end


def _is_before(line: bytes, epoch: int) -> bool:
    """Whether a line is whole and of an earlier epoch."""
    number = line.partition(b",")[0]
    return line.endswith(b"\n") and number.isdigit() and len(number) < 10 and int(number) < epoch


def whole_lines(text: str) -> list[str]:
    """Return the lines of a file that grows by appending, without a last one that is not, or not yet, whole."""
    return text[: text.rfind("\n") + 1].splitlines()


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on a file among processes; the system frees it if the holder dies.

    Args:
        path: The lock file; made if absent. Who holds it may remove it.
        wait: Wait for another holder; otherwise give up at once.

    Yields:
        Whether the lock is held; always true if ``wait``.

    Raises:
        WriteError: If the lock file cannot be made.
    """
    while True:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("a")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            stream.close()
            yield False
            return
        if _is_at(stream, path):
            break
        stream.close()  # the one that held it has removed the file: another one may hold what is there now
    with stream:
        _locks.add(stream)
        try:
            yield True
        finally:
            _locks.discard(stream)


def _is_at(stream: IO[str], path: Path) -> bool:
    """Whether a file that is open is still the one at its path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    return False


def _let_go() -> None:
    """Close the lock files in a process that was forked: its parent may die before it, and the locks with it."""
    for stream in _locks:
        stream.close()
    _locks.clear()


os.register_at_fork(after_in_child=_let_go)
