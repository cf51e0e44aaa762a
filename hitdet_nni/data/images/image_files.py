"""Files of images by their bytes: which format they are, and whether they are whole; nothing is decoded.

OpenCV fills the lost part of some files that are cut short with grey, by version and format, and reads the first frame
of an animation. Both are seen here from the structure of the file.

Source:
    JPEG: ITU-T T.81, annex B. PNG: https://www.w3.org/TR/png-3/#5Chunk-layout.
    GIF: https://www.w3.org/Graphics/GIF/spec-gif89a.txt. TIFF: revision 6.0, section 2; NewSubfileType. WebP: https://developers.google.com/speed/webp/docs/riff_container.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Final

IMAGE_FORMATS: Final = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "GIF", "AVIF")
"""Formats that OpenCV, which reads images in training, decodes; others that it knows are not tested."""

_SIGNATURES: Final = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"RIFF....WEBP": "WEBP",
    b"II[*+]\0": "TIFF",
    b"MM\0[*+]": "TIFF",
    b"P[1-7]\\s": "PPM",
    b"\0\0\0\x0cjP  ": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000",
    b"GIF8[79]a": "GIF",
    b"....ftypavi[fs]": "AVIF",
    b"....ftyp(?:hei|hev|mif)": "HEIC",
    b"%PDF": "PDF",
    b"8BPS": "PSD",
    b"version https://git-lfs": "a pointer of Git LFS",
}
"""First bytes of a file, as a pattern, and what it is."""

_SUFFIXES: Final = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "JPEG"),
    ".png": "PNG",
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    ".webp": "WEBP",
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm", ".pam"), "PPM"),
    **dict.fromkeys((".jp2", ".j2k"), "JPEG2000"),
    ".gif": "GIF",
    ".avif": "AVIF",
}
"""Format that the ending of a file's name says."""

IMAGE_SUFFIXES: Final = frozenset(_SUFFIXES)
"""Endings of the names of images, in small letters."""

CUT_SHORT: Final = "cannot be decoded: the file is cut short"

_PATTERNS: Final = tuple((re.compile(pattern, re.DOTALL), name) for pattern, name in _SIGNATURES.items())
_MARKER: Final = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # none of the two that stand in entropy-coded data
_SCAN, _END = 0xDA, 0xD9
_ALONE: Final = (0x01, 0xD8)  # markers without a length
_BIG_TIFF: Final = 43
_SUBFILE_TYPE: Final = 254
_NO_PAGE: Final = 1 | 4  # a smaller copy, a mask


def format_of(content: bytes) -> str | None:
    """Return the format of a file by its first bytes, of :data:`IMAGE_FORMATS` or another; ``None`` if unknown."""
    return next((name for pattern, name in _PATTERNS if pattern.match(content)), None)


def wrong_name(file: PurePath, content: bytes) -> str | None:
    """Return the format of a file whose ending says another one; ``None`` if they agree, or one of them is unknown."""
    form, named = format_of(content), _SUFFIXES.get(file.suffix.lower())
    return form if form is not None and named is not None and form != named else None


def structure_problem(content: bytes) -> str | None:
    """Say what is wrong with the structure of a file: empty, cut short, or an animation; ``None`` if nothing is.

    Only JPEG, PNG and GIF are followed to their end, and WebP to its flags: of the others OpenCV decodes none in part.
    """
    if not content:
        return "cannot be decoded: the file is empty"
    form = format_of(content)
    if form == "JPEG":
        return None if _jpeg_ends(content) else CUT_SHORT
    frames = {"PNG": _png_frames, "GIF": _gif_frames, "WEBP": _webp_frames}.get(form or "", lambda _: 1)(content)
    if frames is None:
        return CUT_SHORT
    return f"is an animated {form}, of which the first frame alone would be seen" if frames > 1 else None


def tiff_pages(content: bytes) -> int:
    """Return the number of images in a TIFF, smaller copies and masks of others left out; 1 of another file."""
    if format_of(content) != "TIFF":
        return 1

    def number(place: int, size: int) -> int:
        return int.from_bytes(content[place : place + size], "little" if content[:1] == b"I" else "big")

    large = number(2, 2) == _BIG_TIFF
    head, entry, width = (8, 20, 8) if large else (2, 12, 4)  # bytes of the count, an entry and an offset
    place, pages, seen = number(8 if large else 4, width), 0, set[int]()
    while 0 < place <= len(content) - head and place not in seen:
        seen.add(place)
        first, count = place + head, number(place, head)
        end = first + count * entry
        if end > len(content):
            break
        kinds = [each for each in range(first, end, entry) if number(each, 2) == _SUBFILE_TYPE]
        pages += not any(number(each + (12 if large else 8), 4) & _NO_PAGE for each in kinds)
        place = number(end, width)
    return max(1, pages)


def _jpeg_ends(content: bytes) -> bool:
    """Whether the end of the image comes after its data; the thumbnail's, inside a segment, is none."""
    place, data = 2, False
    while found := _MARKER.search(content, place):
        marker, place = found[1][0], found.end()
        if marker == _END:
            return data
        if marker not in _ALONE:
            data |= marker == _SCAN
            place += int.from_bytes(content[place : place + 2], "big")
    return False


def _png_frames(content: bytes) -> int | None:
    """Return the number of frames; ``None`` if the end is missing."""
    place, frames = 8, 1
    while place + 12 <= len(content):
        length, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        if kind == b"acTL":
            frames = int.from_bytes(content[place + 8 : place + 12], "big")
        place += 12 + length
        if kind == b"IEND":
            return frames
    return None


def _gif_frames(content: bytes) -> int | None:
    """Return the number of frames; ``None`` if the end is missing."""
    place, frames = 13 + _table(content, 10), 0
    while place < len(content):
        kind = content[place]
        if kind == 0x3B:
            return frames
        if kind == 0x2C:
            frames += 1
            place += 11 + _table(content, place + 9)
        else:
            place += 2
        while place < len(content) and content[place]:  # blocks, each after its length, until one of no length
            place += 1 + content[place]
        place += 1
    return None


def _table(content: bytes, flags: int) -> int:
    """Return the bytes of a GIF's colour table by the flags at a place."""
    value = content[flags] if flags < len(content) else 0
    return 3 << (value & 7) + 1 if value & 0x80 else 0


def _webp_frames(content: bytes) -> int:
    """Return 2 if a WebP says that it is animated."""
    return 2 if content[12:16] == b"VP8X" and len(content) > 20 and content[20] & 2 else 1
