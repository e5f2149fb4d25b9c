"""How much a packed value may be: bytes, maps and arrays, levels; and `decode`, the one wall around bytes from outside.

A few bytes can open very much: an empty map is one byte stored and 64 in memory. What is read is held to these bounds
before anything is built, and what is packed is held to the same, so that nothing is stored that could not be read back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgpack  # type: ignore[import-untyped]

from jobkit.errors import StateCorrupt

if TYPE_CHECKING:
    from collections.abc import Callable

Bytes: TypeAlias = bytes | memoryview

MAX_BYTES: Final = 256 * 1024 * 1024
"""The largest packed value."""

MAX_NODES: Final = 500_000
"""The most maps and arrays in one value."""

MAX_LEVELS: Final = 1000
"""About the levels of arrays and maps that the C library takes; a value of fewer bytes can't have as many."""

_HEADERS: Final = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])  # of maps and arrays
_MAP_HEADERS: Final = frozenset(bytes([header]) for header in (*range(0x80, 0x90), 0xDE, 0xDF))


def decode(
    data: Bytes,
    ext: Callable[[int, bytes], Any],
    array: Callable[[list[Any]], Any],
    pairs: Callable[[list[tuple[Any, Any]]], Any] | None = None,
    *,
    max_bytes: int = MAX_BYTES,
    max_nodes: int = MAX_NODES,
) -> Any:
    """Unpack bytes that may be damaged.

    Args:
        data: MessagePack.
        ext: Reads an extension.
        array: Reads an array whose items are read.
        pairs: Reads a map whose keys and values are read; a dict by default.
        max_bytes: Refuse more bytes than these.
        max_nodes: Refuse more maps and arrays than these.

    Raises:
        StateCorrupt: Whatever goes wrong.
    """
    if len(data) > max_bytes:
        raise StateCorrupt(f"it has {len(data):,} bytes, more than {max_bytes:,}")
    if is_crowded(data, max_nodes):
        raise StateCorrupt(f"it has more than {max_nodes:,} maps and arrays")
    try:
        return msgpack.unpackb(
            data,
            ext_hook=ext,
            list_hook=array,
            object_pairs_hook=pairs,
            strict_map_key=False,
            unicode_errors="surrogatepass",
        )
    except StateCorrupt:  # a hook's own word
        raise
    except msgpack.StackError:
        raise StateCorrupt("it is nested too deeply") from None
    except Exception as fault:
        # Hashes, enums and validators of the job's own classes run in there, on bytes that may be damaged.
        raise StateCorrupt(str(fault)[:500] or type(fault).__name__) from fault


def is_crowded(data: Bytes, limit: int = MAX_NODES) -> bool:
    """Tell whether there are more maps and arrays than the limit; mostly by counting bytes that may be headers."""
    if len(data) <= limit:
        return False
    whole = bytes(data)
    if len(whole) - len(whole.translate(None, _HEADERS)) <= limit:
        return False
    seen = 0

    def count(_: list[Any]) -> None:
        nonlocal seen
        seen += 1
        if seen > limit:
            raise OverflowError

    try:
        msgpack.unpackb(
            whole,
            ext_hook=lambda *_: None,
            list_hook=count,
            object_pairs_hook=count,
            strict_map_key=False,
            unicode_errors="replace",
        )
    except OverflowError:
        return True
    except (ValueError, msgpack.UnpackException):
        return False  # damaged: the real decode says how
    return False


def is_too_deep(data: bytes) -> bool:
    """Tell whether the unpacker will refuse that many levels: it skims half a nanosecond a byte."""
    skim = msgpack.Unpacker(max_buffer_size=0)
    skim.feed(data)
    try:
        skim.skip()
    except msgpack.StackError:
        return True
    return False


def is_map(data: bytes) -> bool:
    """Tell whether it is a packed dict."""
    return data[:1] in _MAP_HEADERS


def largest_in(packed: bytes) -> str:
    """Find what takes most room in a packed dict, or is nested too deeply.

    Args:
        packed: A packed dict of fields by name.

    Returns:
        The field's name; empty if there is none.
    """
    parts = msgpack.Unpacker(max_buffer_size=0)
    parts.feed(packed)
    largest, most = "", 0
    for _ in range(parts.read_map_header()):
        name, start = parts.unpack(), parts.tell()
        try:
            parts.skip()
        except msgpack.StackError:
            return str(name)
        if parts.tell() - start > most:
            largest, most = str(name), parts.tell() - start
    return largest
