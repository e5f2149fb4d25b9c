"""How values that MessagePack lacks are written and read: one table of leaves, one of containers.

A *leaf* is an extension type: its code and some bytes. A *container* is an array that opens with a *marker*, an
extension of one byte that says what the array stands for. So one C call goes each way, with a hook for each odd value.

What it must never do:

- Decode a container inside an extension. Unpacking within `ext_hook` recurses on the C stack: one bad row would kill
  every node. With markers the C unpacker keeps its own stack, and a hook only ever sees values that are finished.
- Hand text to a constructor that works out more than was written: `Fraction("1e999999999")` makes a billion digits.

Codes are promises to every stored row: a new kind takes a new one, and none is ever used again for another.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from functools import cache, partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path, PurePosixPath, PureWindowsPath
from struct import Struct
from typing import Any, Final, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack  # type: ignore[import-untyped]
from msgpack import ExtType, Timestamp
from pydantic import ByteSize, Secret, SecretBytes, SecretStr, TypeAdapter, networks
from pydantic_core import TzInfo

from jobkit.errors import StateCorrupt

Writer: TypeAlias = Callable[[Any], Any]
"""Turns a value into what the C packer knows, or into a list whose items have writers themselves."""

SCALARS: Final[frozenset[type]] = frozenset({type(None), bool, int, float, str, bytes, Timestamp})
"""What MessagePack has itself."""


class Refused(TypeError):
    """A value that can't be stored; the text says what to do."""


class Outgrown(StateCorrupt):
    """Sound bytes that the classes, as they are now, can't take; `problem` says what has changed."""


def packer(hook: Writer | None = None, unicode_errors: str | None = None) -> msgpack.Packer:
    """Make a packer for one call: it is not thread-safe, and with a small buffer costs a fifth of a microsecond."""
    return msgpack.Packer(default=hook, strict_types=True, buf_size=512, unicode_errors=unicode_errors)


def named(kind: type) -> str:
    """Name a class for people."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


# ── leaves ──

MARK: Final = 64
"""The code of markers; leaves are below."""

CLASS: Final = 15
"""The code of a class that is a value itself, as the factory of a defaultdict is: its tag. Only a codec can read it."""

_SPAN: Final = Struct(">iii")


def _write_clock(moment: datetime | time) -> bytes:
    """ISO 8601; a zone that is more than an offset in brackets (RFC 9557); then what that can't say.

    A `~` stands for pydantic's own kind of offset, a `#` for the second of two equal wall-clock times.
    """
    zone = moment.tzinfo
    if zone is None or zone is UTC or _is_whole_offset(zone):
        text = moment.isoformat()
    elif type(zone) is TzInfo:
        text = f"{moment.isoformat()}~"
    else:
        text = f"{moment.replace(tzinfo=None).isoformat()}[{_said_zone(zone)}]"
    return f"{text}#".encode() if moment.fold else text.encode()


def _read_clock(kind: type[datetime | time], data: bytes) -> datetime | time:
    text = str(data, "utf-8")
    if text[-1:] not in "#~]":
        return kind.fromisoformat(text)
    fold, text = text.endswith("#"), text.removesuffix("#")
    library, text = text.endswith("~"), text.removesuffix("~")
    text, _, said = text.partition("[")
    moment = kind.fromisoformat(text)
    if said:
        moment = moment.replace(tzinfo=_zone(said.removesuffix("]")))
    elif library and (offset := moment.utcoffset()) is not None:
        moment = moment.replace(tzinfo=TzInfo(offset.total_seconds()))
    return moment.replace(fold=1) if fold else moment


def _is_whole_offset(zone: tzinfo) -> bool:
    """Whether ISO 8601 says all of it: fromisoformat takes an offset of less than a second for UTC, and no name."""
    if type(zone) is not timezone:
        return False
    offset, *name = _initargs(zone)
    return not name and not offset.microseconds


def _said_zone(zone: tzinfo) -> str:
    """A key, or an offset: in microseconds after `=`, perhaps with a name of its own; in seconds after `~`."""
    offset = zone.utcoffset(None)
    if type(zone) is ZoneInfo and zone.key:
        return zone.key
    if type(zone) is timezone and offset is not None:
        _, *name = _initargs(zone)
        return ";".join([f"={offset // timedelta.resolution}", *name])
    if type(zone) is TzInfo and offset is not None:
        return f"~{offset // timedelta(seconds=1)}"
    raise Refused(f"its time zone is a {named(type(zone))}: use zoneinfo.ZoneInfo(key) or datetime.UTC")


def _initargs(zone: timezone) -> tuple[Any, ...]:
    """An offset, and a name if it was given one: which is which only pickle's own question tells."""
    arguments: tuple[Any, ...] = zone.__getinitargs__()  # type: ignore[attr-defined]
    return arguments


def _zone(said: str) -> tzinfo:
    if said[0] == "~":
        return TzInfo(int(said[1:]))
    if said[0] == "=":
        offset, mark, name = said[1:].partition(";")
        return timezone(timedelta(microseconds=int(offset)), *([name] if mark else []))
    return ZoneInfo(said)


def _write_int(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)


def _utf8(text: object) -> bytes:
    return str(text).encode("utf-8", "surrogatepass")  # a file's name may hold bytes that are no text


def _text(data: bytes) -> str:
    return str(data, "utf-8", "surrogatepass")


_URLS: Final[tuple[type, ...]] = (
    networks.AnyUrl, networks.AnyHttpUrl, networks.HttpUrl, networks.FileUrl, networks.FtpUrl, networks.AnyWebsocketUrl,
    networks.WebsocketUrl, networks.AmqpDsn, networks.ClickHouseDsn, networks.CockroachDsn, networks.KafkaDsn,
    networks.MariaDBDsn, networks.MongoDsn, networks.MySQLDsn, networks.NatsDsn, networks.PostgresDsn,
    networks.RedisDsn, networks.SnowflakeDsn,
)  # fmt: skip

_TEXTUAL: Final[dict[str, type]] = {
    kind.__name__: kind
    for kind in (
        complex, Fraction, ByteSize, IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network,
        *_URLS,
    )
}  # fmt: skip
"""Types of the libraries that are their own text; stored with their name."""


def _write_textual(value: object) -> bytes:
    return _utf8(f"{type(value).__name__}:{value}")


def _read_textual(data: bytes) -> Any:
    name, _, text = _text(data).partition(":")
    kind = _TEXTUAL[name]
    if kind is Fraction:
        return Fraction(*map(int, text.split("/")))
    return _url_reader(kind)(text) if kind in _URLS else kind(text)


@cache
def _url_reader(kind: type) -> Callable[[str], Any]:
    """As the constructor, except that it adds no slash to a URL whose model wanted none."""
    return TypeAdapter(kind, config={"url_preserve_empty_path": True}).validate_python


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
    *((14, kind, lambda zone: _said_zone(zone).encode(), lambda data: _zone(str(data, "utf-8")))
      for kind in (ZoneInfo, timezone, TzInfo)),
)  # fmt: skip
"""For each type that is an extension: its code, its bytes from a value, a value from its bytes."""

CLOCKS: Final = frozenset({1, 3})
"""The codes of values that may have a time zone."""

WHOLE: Final[frozenset[type]] = SCALARS.union(kind for _, kind, _, _ in _LEAVES)
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


TUPLE: Final = Marker(1, lambda items: tuple(items[1:]))
SET: Final = Marker(2, lambda items: set(items[1:]))
FROZENSET: Final = Marker(3, lambda items: frozenset(items[1:]))
OBJECT: Final = Marker(4, None)
ENUM: Final = Marker(5, None)
DEQUE: Final = Marker(6, lambda items: deque(items[2:], items[1]))
DEFAULTDICT: Final = Marker(7, lambda items: defaultdict(*items[1:]))
COUNTER: Final = Marker(8, lambda items: Counter(items[1]))
ORDERED: Final = Marker(9, lambda items: OrderedDict(zip(items[1::2], items[2::2], strict=True)))
SECRET: Final = Marker(10, lambda items: Secret(items[1]))
PATTERN: Final = Marker(11, lambda items: re.compile(items[1], items[2]))
RANGE: Final = Marker(12, lambda items: range(*items[1:]))
_MARKERS: Final = (
    TUPLE, SET, FROZENSET, OBJECT, ENUM, DEQUE, DEFAULTDICT, COUNTER, ORDERED, SECRET, PATTERN, RANGE,
)  # in the order of codes  # fmt: skip

LOOSE_SET: Final = Marker(126, None)
"""A set whose members are not sorted yet; never stored, no more than the next."""
LOOSE_FROZENSET: Final = Marker(127, None)


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
    if factory is not None and not isinstance(factory, type):
        raise Refused(
            "the factory of its defaultdict is no class: use list, int or a class of the job's, or a plain dict"
        )
    return [DEFAULTDICT.ext, factory, dict(value)]


WRITERS: Final[dict[type, Writer]] = {
    **{kind: _leaf_writer(code, write) for code, kind, write, _ in _LEAVES},
    tuple: lambda value: [TUPLE.ext, *value],
    set: partial(_write_set, SET, LOOSE_SET),
    frozenset: partial(_write_set, FROZENSET, LOOSE_FROZENSET),
    deque: lambda value: [DEQUE.ext, value.maxlen, *value],
    defaultdict: _write_defaultdict,
    Counter: lambda value: [COUNTER.ext, dict(value)],
    OrderedDict: lambda value: [ORDERED.ext, *(part for pair in value.items() for part in pair)],
    Secret: lambda secret: [SECRET.ext, secret.get_secret_value()],
    re.Pattern: lambda pattern: [PATTERN.ext, pattern.pattern, pattern.flags],
    range: lambda span: [RANGE.ext, span.start, span.stop, span.step],
}
"""For each type that MessagePack lacks, and for integers beyond 64 bits."""

LIBRARY: Final[dict[str, type]] = {f"={kind.__name__}": kind for kind in (list, dict, *SCALARS, *WRITERS)}
"""Each class that can be stored whatever is declared, by the tag that it has as a value itself."""


def write_class(tag: str) -> tuple[int, bytes]:
    """Write a class that is a value itself."""
    made: tuple[int, bytes] = ExtType(CLASS, tag.encode())
    return made
