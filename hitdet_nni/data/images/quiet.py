"""What the libraries below OpenCV write on the terminal about a file, taken off it."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import IO, Final

_LIBRARY: Final = re.compile(
    rb"libpng (?:warning|error): |Corrupt JPEG data: |Premature end of JPEG file|Warning: unknown JFIF revision"
    rb"|Inconsistent progression sequence|Invalid SOS parameters|Unknown Adobe color transform|Invalid crop request"
    rb"|Unsupported marker type|Invalid JPEG|Bogus |TIFF\w*: |\[ ?(?:WARN|ERROR|FATAL|INFO)[:@]"
)
"""How lines of libpng, libjpeg, libtiff and OpenCV begin."""

_STDERR: Final = 2


class _Quiet:
    """The state of :func:`quiet`, which threads share: the first that enters redirects, the last restores."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entered = 0
        self.terminal = -1
        self.file: IO[bytes] | None = None
        self.level: int = 0

    def enter(self) -> None:
        import cv2  # noqa: PLC0415  (what needs no image does not wait for it)

        with self.lock:
            self.entered += 1
            if self.entered > 1:
                return
            self.level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
            with contextlib.suppress(OSError, ValueError):  # a process without standard error
                sys.stderr.flush()
                self.terminal = os.dup(_STDERR)
                self.file = tempfile.TemporaryFile()  # noqa: SIM115  (closed by leave)
                os.dup2(self.file.fileno(), _STDERR)

    def leave(self) -> None:
        import cv2  # noqa: PLC0415

        with self.lock:
            self.entered -= 1
            if self.entered:
                return
            cv2.utils.logging.setLogLevel(self.level)
            # Taken first: a signal's handler may raise at any line, and a number must not be closed twice.
            terminal, self.terminal = self.terminal, -1
            file, self.file = self.file, None
            if terminal < 0:
                return
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()
            os.dup2(terminal, _STDERR)
            os.close(terminal)
            if file is not None:
                self.hand_on(file)

    @staticmethod
    def hand_on(file: IO[bytes]) -> None:
        """Write what is no library's to the terminal: other threads may have said something.

        Where a library spoke, empty lines are its own too: libpng writes a message and the line's end separately, and
        between them another thread's message can come.
        """
        with file:
            file.seek(0)
            lines = file.readlines()
        kept = [line for line in lines if not _LIBRARY.match(line)]
        if len(kept) < len(lines):
            kept = [line for line in kept if line.strip()]
        if kept:
            os.write(_STDERR, b"".join(kept))

    def said(self, words: bytes) -> bool:
        """Whether a library has said something since the first entered."""
        with self.lock:
            if self.file is None:
                return False
            size = os.fstat(self.file.fileno()).st_size
            return size > 0 and words in os.pread(self.file.fileno(), size, 0)


_state = _Quiet()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what libpng, libjpeg, libtiff and OpenCV say of a file off the terminal; other lines come out behind it."""
    _state.enter()
    try:
        yield
    finally:
        _state.leave()


def said(words: str) -> bool:
    """Whether a library has said these words inside the outermost :func:`quiet` that is entered now."""
    return _state.said(words.encode())
