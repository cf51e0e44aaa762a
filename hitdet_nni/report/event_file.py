"""TensorBoard's event files: scalars as protocol buffers in checked records.

Source: TensorFlow's ``event.proto`` and ``summary.proto`` (field numbers) and ``record_writer.h`` (records); RFC 3720,
appendix B.4 (CRC-32C).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass

VERSION = b"brain.Event:2"
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Scalar:
    """One point of a curve.

    Attributes:
        tag: The curve's name; slashes make groups of it.
        step: Place on the horizontal axis, not negative.
        value: The number.
    """

    tag: str
    step: int
    value: float


def event_file(scalars: Iterable[Scalar], wall_time: float) -> bytes:
    """The content of an event file.

    Args:
        scalars: The points.
        wall_time: When they were made, seconds since 1970.
    """
    time = _field(1, _EIGHT_BYTES, struct.pack("<d", wall_time))
    events = [time + _field(3, _BYTES, VERSION)]
    for scalar in scalars:
        number = _field(2, _FOUR_BYTES, _float32(scalar.value))
        value = _field(1, _BYTES, scalar.tag.encode("utf-8", "replace")) + number
        events.append(time + _field(2, _VARINT, _varint(scalar.step)) + _field(5, _BYTES, _field(1, _BYTES, value)))
    return b"".join(map(_record, events))


def _field(number: int, wire_type: int, content: bytes) -> bytes:
    length = _varint(len(content)) if wire_type == _BYTES else b""
    return _varint(number << 3 | wire_type) + length + content


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _float32(value: float) -> bytes:
    """A number rounded to 32 bits: beyond their range, infinity."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + _masked_crc(length) + content + _masked_crc(content)


def _masked_crc(content: bytes) -> bytes:
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(content: bytes) -> int:
    """The checksum with Castagnoli's polynomial."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _crc_of(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC_TABLE = tuple(map(_crc_of, range(256)))
