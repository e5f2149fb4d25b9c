"""The envelope that a stored state travels in: `seal` and `unseal`, and what takes most room in it.

It is an array: format, job id, class version, CRC-32 of all other bytes, shapes of the classes, state, journal. Any
MessagePack reader can open it, and any flipped bit shows: in plain MessagePack four of five would decode silently to
another value.
"""

from __future__ import annotations

import zlib
from struct import Struct
from typing import Final, NamedTuple

import msgpack  # type: ignore[import-untyped]

from jobkit.bounds import is_map, largest_in
from jobkit.errors import SerializationError, StateCorrupt

EMPTY_MAP: Final = b"\x80"
"""A packed dict without entries."""

NO_SHAPES: Final = b"\xc4\x00"
"""Packed bytes of no length."""

_FORMAT: Final = 1
_HEAD: Final = b"\x97" + bytes([_FORMAT]) + b"\xd9"  # an array of seven; its format; a text whose length is one byte
_UINT32: Final = 0xCE
_NUMBER: Final = Struct(">BI")
_SHORTEST: Final = len(_HEAD) + 1 + 5 + 5 + 2 + 2
_BINARY_HEADERS: Final = frozenset({b"\xc4", b"\xc5", b"\xc6"})


class Envelope(NamedTuple):
    """A stored state, as read.

    Attributes:
        job_id: The job that it belongs to.
        version: The class version that wrote it.
        state: A MessagePack map of named fields.
        journal: A MessagePack map.
        shapes: MessagePack that says what the classes were like that wrote it, see `Codec.shapes`.
    """

    job_id: str
    version: int
    state: bytes
    journal: bytes
    shapes: bytes = NO_SHAPES


def seal(job_id: str, version: int, state: bytes, journal: bytes = EMPTY_MAP, shapes: bytes = NO_SHAPES) -> bytes:
    """Wrap a packed state for storage, so that any MessagePack reader can open it and any flipped bit shows.

    The numbers have a fixed width, so that only the length of the id moves the checksum.

    Args:
        job_id: The job, at most 255 bytes of UTF-8.
        version: The version of the job's class, 0 to 2³² - 1.
        state: A packed dict.
        journal: A packed dict.
        shapes: What the classes are like, packed bytes; `NO_SHAPES` if that is not to be known.

    Returns:
        The envelope.

    Raises:
        SerializationError: One of these does not fit.
    """
    name = job_id.encode()
    fits = len(name) <= 0xFF and 0 <= version < 1 << 32  # noqa: PLR2004
    if not (fits and shapes[:1] in _BINARY_HEADERS and is_map(state) and is_map(journal)):
        raise SerializationError(
            "state", "an envelope takes an id, 32 bits of version, packed shapes and two packed dicts"
        )
    head = b"".join((_HEAD, bytes([len(name)]), name, _NUMBER.pack(_UINT32, version)))
    check = zlib.crc32(b"\xce", zlib.crc32(head))
    for part in (shapes, state, journal):
        check = zlib.crc32(part, check)
    return b"".join((head, _NUMBER.pack(_UINT32, check), shapes, state, journal))


def unseal(data: bytes) -> Envelope:
    """Open an envelope and verify it.

    Args:
        data: What `seal` gave.

    Returns:
        What it holds.

    Raises:
        StateCorrupt: Any bit of it has changed, or it is no envelope of this release.
    """
    if len(data) < _SHORTEST or data[0] != _HEAD[0] or data[2] != _HEAD[2]:
        raise StateCorrupt("it is no envelope")
    if data[1] != _FORMAT:
        raise StateCorrupt(f"its format is {data[1]}, this release knows {_FORMAT}")
    start = 4 + data[3]  # of the version
    if len(data) < start + 12:
        raise StateCorrupt("it is cut short")
    (mark, version), (check_mark, check) = _NUMBER.unpack_from(data, start), _NUMBER.unpack_from(data, start + 5)
    if (
        mark != _UINT32
        or check_mark != _UINT32
        or check != zlib.crc32(data[start + 10 :], zlib.crc32(data[: start + 6]))
    ):
        raise StateCorrupt("its checksum does not fit its bytes")
    body = data[start + 10 :]
    try:
        job_id = str(data[4:start], "utf-8")
        parts = msgpack.Unpacker(max_buffer_size=0)
        parts.feed(body)
        parts.skip()
        first = parts.tell()
        parts.skip()
        second = parts.tell()
        parts.skip()
        whole = parts.tell() == len(body)
    except (ValueError, msgpack.UnpackException):
        raise StateCorrupt("it holds no two maps") from None
    shapes, state, journal = body[:first], body[first:second], body[second:]
    if not (whole and shapes[:1] in _BINARY_HEADERS and is_map(state) and is_map(journal)):
        raise StateCorrupt("it holds no two maps")
    return Envelope(job_id, version, state, journal, shapes)


def largest_field(sealed: bytes) -> str:
    """Find what takes most room in a sealed state, for a message; it reads all of it.

    Args:
        sealed: What `seal` gave.

    Returns:
        The field's name; empty if there is none.
    """
    try:
        return largest_in(unseal(sealed).state)
    except StateCorrupt:
        return ""
