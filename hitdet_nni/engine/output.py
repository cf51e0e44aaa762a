"""What a command writes on the terminal, and what keeps it from that."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from hitdet_nni.errors import StoppedError


class OutputError(StoppedError):
    """What a command says cannot be written: the disk is full, or the program that read it has ended.

    Args:
        error: What the system says.

    Attributes:
        closed: Whether nothing reads it any more, as behind ``| head``.
    """

    def __init__(self, error: OSError) -> None:
        self.closed = isinstance(error, BrokenPipeError)
        super().__init__(f"standard output cannot be written ({error.strerror or error})")


@contextmanager
def telling_output_errors() -> Iterator[None]:
    """Tell errors of writing to the terminal from those of files.

    Raises:
        OutputError: In place of the system's error.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(error) from None


def write_out(text: str, stream: IO[str] | None = None) -> None:
    """Write text on the terminal, at once.

    Args:
        text: The text.
        stream: Standard output or standard error; ``None`` for standard output.

    Raises:
        OutputError: If that is not possible.
    """
    stream = stream or sys.stdout
    with telling_output_errors():
        stream.write(text)
        stream.flush()


def discard_output() -> None:
    """Let what is yet to be written on standard output go nowhere; Python would try it once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
