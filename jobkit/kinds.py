"""How values that MessagePack lacks are written and read: one table of leaves, one of containers.

A *leaf* is an extension type: its code and some bytes. A *container* is an array that opens with a *marker*, an
extension of one byte that says what the array stands for. So one C call goes each way, with a hook for each odd value.

What it must never do: decode a container inside an extension. Unpacking within `ext_hook` recurses on the C stack, and
one bad row would kill every node. With markers the C unpacker keeps its own stack, and a hook only ever sees values
that are finished.

Codes are promises to every stored row: a new kind takes a new one, and none is ever used again for another.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path, PurePosixPath, PureWindowsPath
from struct import Struct
from typing import Any, Final, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack  # type: ignore[import-untyped]
from msgpack import ExtType
from pydantic import AnyHttpUrl, AnyUrl, FileUrl, HttpUrl, SecretBytes, SecretStr
from pydantic_core import TzInfo

Writer: TypeAlias = Callable[[Any], Any]
"""Turns a value into what the C packer knows, or into a list whose items have writers themselves."""

SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})
"""What MessagePack has itself."""


class Refused(TypeError):
    """A value that can't be stored; the text says what to do."""


def packer(hook: Writer | None = None, unicode_errors: str | None = None) -> msgpack.Packer:
    """Make a packer for one call: it is not thread-safe, and with a small buffer costs a fifth of a microsecond."""
    return msgpack.Packer(default=hook, strict_types=True, buf_size=512, unicode_errors=unicode_errors)


def named(kind: type) -> str:
    """Name a class for people."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


# ── leaves ──

MARK: Final = 64
"""The code of markers; leaves are below."""

_SPAN: Final = Struct(">iii")


def _write_clock(moment: datetime | time) -> bytes:
    """ISO 8601 with a zone's key in brackets (RFC 9557), and a `#` for the second of two equal wall-clock times."""
    zone = moment.tzinfo
    if type(zone) is ZoneInfo and zone.key:
        text = f"{moment.replace(tzinfo=None).isoformat()}[{zone.key}]"
    elif zone is None or type(zone) in {timezone, TzInfo}:
        text = moment.isoformat()
        offset = moment.utcoffset()
        if offset and offset.microseconds:  # fromisoformat reads an offset of less than a second as UTC
            text = f"{moment.replace(tzinfo=None).isoformat()}[={offset // timedelta.resolution}]"
    else:
        raise Refused(f"its time zone is a {named(type(zone))}: use zoneinfo.ZoneInfo(key) or datetime.UTC")
    return f"{text}#".encode() if moment.fold else text.encode()


def _read_clock(kind: type[datetime | time], data: bytes) -> datetime | time:
    text, mark, _ = str(data, "utf-8").partition("#")
    text, _, key = text.partition("[")
    moment = kind.fromisoformat(text)
    if key:
        key = key.removesuffix("]")
        zone = timezone(timedelta(microseconds=int(key[1:]))) if key[0] == "=" else ZoneInfo(key)
        return moment.replace(tzinfo=zone, fold=len(mark))
    return moment.replace(fold=1) if mark else moment


def _write_int(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)


def _utf8(text: object) -> bytes:
    return str(text).encode("utf-8", "surrogatepass")  # a file's name may hold bytes that are no text


def _text(data: bytes) -> str:
    return str(data, "utf-8", "surrogatepass")


_TEXTUAL: Final[dict[str, type]] = {
    kind.__name__: kind
    for kind in (
        complex, Fraction, IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network,
        AnyUrl, AnyHttpUrl, FileUrl, HttpUrl,
    )
}  # fmt: skip
"""Types of the libraries that are their own text; stored with their name."""


def _write_textual(value: object) -> bytes:
    return _utf8(f"{type(value).__name__}:{value}")


def _read_textual(data: bytes) -> Any:
    name, _, text = _text(data).partition(":")
    return _TEXTUAL[name](text)


_LEAVES: Final[tuple[tuple[int, type, Callable[[Any], bytes], Callable[[bytes], Any]], ...]] = (
    (1, datetime, _write_clock, partial(_read_clock, datetime)),
    (2, date, lambda day: day.isoformat().encode(), lambda data: date.fromisoformat(str(data, "ascii"))),
    (3, time, _write_clock, partial(_read_clock, time)),
    (4, timedelta, lambda span: _SPAN.pack(span.days, span.seconds, span.microseconds),
        lambda data: timedelta(*_SPAN.unpack(data))),
    (5, Decimal, lambda number: str(number).encode(), lambda data: Decimal(str(data, "ascii"))),
    (6, UUID, lambda uid: uid.bytes, lambda data: UUID(bytes=data)),
    (7, type(Path()), _utf8, lambda data: Path(_text(data))),
    (8, PurePosixPath, _utf8, lambda data: PurePosixPath(_text(data))),
    (9, PureWindowsPath, _utf8, lambda data: PureWindowsPath(_text(data))),
    (10, int, _write_int, lambda data: int.from_bytes(data, "big", signed=True)),  # only beyond 64 bits
    (11, SecretStr, lambda secret: _utf8(secret.get_secret_value()), lambda data: SecretStr(_text(data))),
    (12, SecretBytes, lambda secret: secret.get_secret_value(), SecretBytes),
    *((13, kind, _write_textual, _read_textual) for kind in _TEXTUAL.values()),
)  # fmt: skip
"""For each type that is an extension: its code, its bytes from a value, a value from its bytes."""

WHOLE: Final = SCALARS.union(kind for _, kind, _, _ in _LEAVES)
"""The types of all values without parts."""

_LEAF_READERS: Final = {code: read for code, _, _, read in _LEAVES}


def _leaf_writer(code: int, write: Callable[[Any], bytes]) -> Writer:
    make = tuple.__new__  # past the checks of ExtType's constructor, which cost as much as all the rest
    return lambda value: make(ExtType, (code, write(value)))


def read_leaf(code: int, data: bytes) -> Any:
    """Read an extension that is no marker.

    Raises:
        ValueError: There is no such kind; what the kind's own type raises is raised too.
    """
    read = _LEAF_READERS.get(code)
    if read is None:
        raise ValueError(f"unknown extension type {code}: a newer release may have written it")
    return read(data)


# ── containers ──


class Marker:
    """What an array stands for; one object for each kind, so that a hook recognises it by identity.

    Args:
        code: Its byte.
        read: Makes the container from the array; None if the class whose tag stands next does.

    Attributes:
        ext: The marker, to be packed.
        packed: The marker as packed.
        read: As given.
    """

    __slots__ = ("ext", "packed", "read")

    def __init__(self, code: int, read: Callable[[list[Any]], Any] | None) -> None:
        self.ext: tuple[int, bytes] = ExtType(MARK, bytes([code]))
        self.packed: bytes = b"\xd4" + bytes([MARK, code])
        self.read: Callable[[list[Any]], Any] | None = read


_FACTORIES: Final[dict[str, type]] = {kind.__name__: kind for kind in (list, dict, set, int, float, str, bool, tuple)}

TUPLE: Final = Marker(1, lambda items: tuple(items[1:]))
SET: Final = Marker(2, lambda items: set(items[1:]))
FROZENSET: Final = Marker(3, lambda items: frozenset(items[1:]))
OBJECT: Final = Marker(4, None)
ENUM: Final = Marker(5, None)
DEQUE: Final = Marker(6, lambda items: deque(items[2:], items[1]))
DEFAULTDICT: Final = Marker(7, lambda items: defaultdict(None if items[1] is None else _FACTORIES[items[1]], items[2]))
COUNTER: Final = Marker(8, lambda items: Counter(items[1]))
ORDERED: Final = Marker(9, lambda items: OrderedDict(zip(items[1::2], items[2::2], strict=True)))
_MARKERS: Final = (TUPLE, SET, FROZENSET, OBJECT, ENUM, DEQUE, DEFAULTDICT, COUNTER, ORDERED)  # in the order of codes

LOOSE_SET: Final = Marker(10, None)
"""A set whose members are not sorted yet; never stored, no more than the next."""
LOOSE_FROZENSET: Final = Marker(11, None)


def read_marker(data: bytes) -> Marker:
    """Tell which marker it is.

    Raises:
        ValueError: It is none that can be stored.
    """
    if len(data) != 1 or not 1 <= data[0] <= len(_MARKERS):
        raise ValueError(f"unknown marker {data[:8].hex()}")
    return _MARKERS[data[0] - 1]


def _write_set(settled: Marker, loose: Marker, members: set[Any] | frozenset[Any]) -> list[Any]:
    if SCALARS.issuperset(map(type, members)):
        try:
            return [settled.ext, *sorted(members, key=packer(WRITERS[int]).pack)]
        except UnicodeEncodeError:
            pass
    return [loose.ext, *members]  # sorted afterwards: packing members within the hook would recurse once for each level


def _write_defaultdict(value: defaultdict[Any, Any]) -> list[Any]:
    factory = value.default_factory
    if factory is not None and factory not in _FACTORIES.values():
        raise Refused(
            f"the factory of its defaultdict can't be stored: use one of {', '.join(_FACTORIES)}, or a plain dict"
        )
    return [DEFAULTDICT.ext, getattr(factory, "__name__", None), dict(value)]


WRITERS: Final[dict[type, Writer]] = {
    **{kind: _leaf_writer(code, write) for code, kind, write, _ in _LEAVES},
    tuple: lambda value: [TUPLE.ext, *value],
    set: partial(_write_set, SET, LOOSE_SET),
    frozenset: partial(_write_set, FROZENSET, LOOSE_FROZENSET),
    deque: lambda value: [DEQUE.ext, value.maxlen, *value],
    defaultdict: _write_defaultdict,
    Counter: lambda value: [COUNTER.ext, dict(value)],
    OrderedDict: lambda value: [ORDERED.ext, *(part for pair in value.items() for part in pair)],
}
"""For each type that MessagePack lacks, and for integers beyond 64 bits."""
