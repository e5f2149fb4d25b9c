"""The same value, the same bytes: packed values rewritten in one order, without their classes.

Sets have no order of their own, and that of a dict does not count when it is compared. Both are sorted by the packed
bytes of their members or keys, from the inside out in one pass, so that a set of sets costs no more than a list.
"""

from __future__ import annotations

from typing import Any, Final

from msgpack import ExtType  # type: ignore[import-untyped]

from jobkit.bounds import MAX_BYTES, decode
from jobkit.kinds import CLOCKS, FROZENSET, LOOSE_FROZENSET, LOOSE_SET, OBJECT, SET, packer

_SETTLED: Final = {LOOSE_SET.packed: SET.packed, LOOSE_FROZENSET.packed: FROZENSET.packed}
_SORTED: Final = frozenset({*_SETTLED, *_SETTLED.values()})


class _Packed(bytes):
    """A container that is packed already."""

    __slots__ = ()


def canonical(data: bytes) -> bytes:
    """Rewrite packed bytes so that equal values give equal bytes: map keys and members of sets are sorted by theirs.

    Needs no classes. Which fields of a model were given is left out: models compare equal whatever they were.

    Args:
        data: What `Codec.pack` returned.

    Returns:
        MessagePack of an equal value.

    Raises:
        StateCorrupt: It is not MessagePack.
    """
    return _rewrite(data, whole=True)


def settled(data: bytes) -> bytes:
    """Sort the members of sets that were packed loose, and leave all else as it is."""
    if LOOSE_SET.packed in data or LOOSE_FROZENSET.packed in data:
        return _rewrite(data, whole=False)
    return data


def _rewrite(data: bytes, *, whole: bool) -> bytes:
    writer = packer(unicode_errors="surrogatepass")

    def packed(value: object) -> bytes:
        return value if type(value) is _Packed else writer.pack(value)

    def array(items: list[Any]) -> _Packed:
        parts = list(map(packed, items))
        if parts and parts[0] in _SORTED:
            parts[1:] = sorted(parts[1:])
            parts[0] = _SETTLED.get(parts[0], parts[0])
        elif whole and len(parts) > 3 and parts[0] == OBJECT.packed:  # noqa: PLR2004  marker, tag, fields, then the rest
            parts[3:] = [b"\0", *parts[4:]] if len(parts) > 4 else []  # noqa: PLR2004
        return _Packed(writer.pack_array_header(len(parts)) + b"".join(parts))

    def pairs(items: list[tuple[Any, Any]]) -> _Packed:
        entries = [(packed(key), packed(value)) for key, value in items]
        if whole:
            entries.sort()
        return _Packed(writer.pack_map_header(len(entries)) + b"".join(part for entry in entries for part in entry))

    def ext(code: int, data: bytes) -> ExtType:
        if whole and code in CLOCKS:  # pydantic's own kind of offset equals Python's
            data = data.replace(b"~", b"")
        return ExtType(code, data)

    return bytes(packed(decode(data, ext, array, pairs, max_bytes=2 * MAX_BYTES, max_nodes=2 * MAX_BYTES)))
