"""Files of the same bytes: images that a set holds twice, or in both splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

from hitdet_nni.engine.machine import available_cores

Digests = dict[Path, bytes | None]
"""Digests of files that have been read, by their absolute paths; ``None`` of one that cannot be."""

_CHUNK = 1 << 20  # bytes read at a time


def digest(file: Path) -> bytes | None:
    """Return the BLAKE2b digest of a file's bytes, or ``None`` where it cannot be read."""
    summed = blake2b(digest_size=16)
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                summed.update(chunk)
    except OSError:
        return None
    return summed.digest()


def same_files(files: Iterable[Path], known: Digests | None = None) -> list[tuple[Path, ...]]:
    """Return groups of two or more files of the same bytes, each in the order given, by the first of each.

    Args:
        files: Any files; one that is named twice counts once, and one that cannot be read is no copy.
        known: Digests of files from earlier calls, which are not read again; takes those of this call.
    """
    known = Digests() if known is None else known
    by_size: dict[int, list[Path]] = defaultdict(list)
    for file in dict.fromkeys(files):
        try:
            by_size[file.stat().st_size].append(file)
        except OSError:
            continue
    candidates = [file for group in by_size.values() if len(group) > 1 for file in group]
    unread = [file for file in candidates if file.absolute() not in known]
    with ThreadPoolExecutor(available_cores()) as threads:  # reading and hashing go on without Python's lock
        known.update(zip((file.absolute() for file in unread), threads.map(digest, unread), strict=True))
    groups: dict[bytes, list[Path]] = defaultdict(list)
    for file in candidates:
        found = known[file.absolute()]
        if found is not None:
            groups[found].append(file)
    return [tuple(group) for group in groups.values() if len(group) > 1]
