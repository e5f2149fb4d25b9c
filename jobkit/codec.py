"""Typed values ↔ MessagePack, and the envelope that a stored state travels in.

A value comes back equal and of the same type, or `pack` refuses it and names the path to it: nothing changes silently.
How: leaves that MessagePack lacks are extension types; containers that it lacks are arrays whose first element is a
*marker*, an extension of one byte that says what the array stands for. So one C call goes each way, with a hook
for each odd value.

What it must never do:

- Decode a container inside an extension: unpacking within `ext_hook` recurses on the C stack: one bad row would kill
  every node. With markers the C unpacker keeps its own stack, and a hook only ever sees values that are finished.
- Import or construct by name: a stored class name is a bare word, looked up among the declared types of one job (G18).
- Run validators on what they have already seen: a field whose validator doubles it would double at every restart. Only
  an object whose class has gained or lost fields since is validated, by itself.
- Accept what it could not read back: `pack` keeps to the bounds on size, depth and containers that `unpack` sets.
"""

from __future__ import annotations

import dataclasses
import typing
import zlib
from base64 import b64encode
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import cached_property, partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path, PurePosixPath, PureWindowsPath
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack  # type: ignore[import-untyped]
from msgpack import ExtType
from pydantic import (
    AnyHttpUrl,
    AnyUrl,
    BaseModel,
    FileUrl,
    HttpUrl,
    SecretBytes,
    SecretStr,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticUndefined, TzInfo

from jobkit.errors import InvalidJob, SerializationError, StateCorrupt

if TYPE_CHECKING:
    from jobkit.model import Json

__all__ = [
    "EMPTY_MAP",
    "MAX_BYTES",
    "MAX_NODES",
    "Codec",
    "Envelope",
    "canonical",
    "decode_plain",
    "plain",
    "seal",
    "unseal",
]

EMPTY_MAP: Final = b"\x80"
MAX_BYTES: Final = 256 * 1024 * 1024
"""The largest packed value."""
MAX_NODES: Final = 500_000
"""The most maps and arrays in one value: an empty map is one byte stored and 64 in memory, any other value far less."""

Bytes: TypeAlias = "bytes | memoryview"
Writer: TypeAlias = Callable[[Any], Any]
Reader: TypeAlias = Callable[..., Any]

_MASK: Final = "**********"
_SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})
# The C packer takes these silently: the first two would come back as bytes, the others could forge a marker.
_ALIASED: Final = frozenset({bytearray, memoryview, ExtType, msgpack.Timestamp})
_FAULTS: Final = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError, BufferError)


class _Refused(TypeError):
    """A value that can't be stored; the text says what to do."""


# ── leaves: extension types. A code is a promise to every stored row: never reuse one ──

_MARK: Final = 64
_SPAN: Final = Struct(">iii")


def _write_clock(code: int, moment: datetime | time) -> ExtType:
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
        raise _Refused(f"its time zone is a {_named(type(zone))}: use zoneinfo.ZoneInfo(key) or datetime.UTC")
    return ExtType(code, f"{text}#".encode() if moment.fold else text.encode())


def _read_clock(kind: type[datetime | time], data: bytes) -> datetime | time:
    text, mark, _ = str(data, "utf-8").partition("#")
    text, _, key = text.partition("[")
    moment = kind.fromisoformat(text)
    if key:
        key = key.removesuffix("]")
        zone = timezone(timedelta(microseconds=int(key[1:]))) if key[0] == "=" else ZoneInfo(key)
        return moment.replace(tzinfo=zone, fold=len(mark))
    return moment.replace(fold=1) if mark else moment


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


def _read_textual(data: bytes) -> Any:
    name, _, text = _text(data).partition(":")
    return _TEXTUAL[name](text)


_LEAF_WRITERS: Final[dict[type, Writer]] = {
    datetime: partial(_write_clock, 1),
    date: lambda day: ExtType(2, day.isoformat().encode()),
    time: partial(_write_clock, 3),
    timedelta: lambda span: ExtType(4, _SPAN.pack(span.days, span.seconds, span.microseconds)),
    Decimal: lambda number: ExtType(5, str(number).encode()),
    UUID: lambda uid: ExtType(6, uid.bytes),
    type(Path()): lambda path: ExtType(7, _utf8(path)),
    PurePosixPath: lambda path: ExtType(8, _utf8(path)),
    PureWindowsPath: lambda path: ExtType(9, _utf8(path)),
    int: lambda big: ExtType(10, big.to_bytes(big.bit_length() // 8 + 1, "big", signed=True)),  # only beyond 64 bits
    SecretStr: lambda secret: ExtType(11, _utf8(secret.get_secret_value())),
    SecretBytes: lambda secret: ExtType(12, secret.get_secret_value()),
    **dict.fromkeys(_TEXTUAL.values(), lambda value: ExtType(13, _utf8(f"{type(value).__name__}:{value}"))),
}

_LEAF_READERS: Final[dict[int, Callable[[bytes], Any]]] = {
    1: partial(_read_clock, datetime),
    2: lambda data: date.fromisoformat(str(data, "ascii")),
    3: partial(_read_clock, time),
    4: lambda data: timedelta(*_SPAN.unpack(data)),
    5: lambda data: Decimal(str(data, "ascii")),
    6: lambda data: UUID(bytes=data),
    7: lambda data: Path(_text(data)),
    8: lambda data: PurePosixPath(_text(data)),
    9: lambda data: PureWindowsPath(_text(data)),
    10: lambda data: int.from_bytes(data, "big", signed=True),
    11: lambda data: SecretStr(_text(data)),
    12: SecretBytes,
    13: _read_textual,
}


# ── containers: arrays that open with a marker ──


class _Marker:
    """What an array stands for; one object for each kind, so that a hook recognises it by identity."""

    def __init__(self, code: int) -> None:
        self.ext = ExtType(_MARK, bytes([code]))
        self.packed = b"\xd4" + bytes([_MARK, code])


_TUPLE, _SET, _FROZENSET, _OBJECT, _ENUM, _DEQUE, _DEFAULTDICT, _COUNTER, _ORDERED, _LOOSE_SET, _LOOSE_FROZENSET = (
    _MARKERS := [_Marker(code) for code in range(1, 12)]
)
_SETTLED: Final = {_LOOSE_SET.packed: _SET.packed, _LOOSE_FROZENSET.packed: _FROZENSET.packed}
_SORTED: Final = frozenset({*_SETTLED, *_SETTLED.values()})
_FACTORIES: Final[dict[str, type]] = {kind.__name__: kind for kind in (list, dict, set, int, float, str, bool, tuple)}


def _packer(hook: Writer | None = None, unicode_errors: str | None = None) -> msgpack.Packer:
    # One for each call: a packer is not thread-safe, and with a small buffer making one costs a fifth of a microsecond.
    return msgpack.Packer(default=hook, strict_types=True, buf_size=512, unicode_errors=unicode_errors)


def _write_set(settled: _Marker, loose: _Marker, members: set[Any] | frozenset[Any]) -> list[Any]:
    if _SCALARS.issuperset(map(type, members)):
        try:
            return [settled.ext, *sorted(members, key=_packer(_LEAF_WRITERS[int]).pack)]
        except UnicodeEncodeError:
            pass
    return [loose.ext, *members]  # sorted afterwards: packing members within the hook would recurse once for each level


def _write_defaultdict(value: defaultdict[Any, Any]) -> list[Any]:
    factory = value.default_factory
    if factory is not None and factory not in _FACTORIES.values():
        raise _Refused(
            f"the factory of its defaultdict can't be stored: use one of {', '.join(_FACTORIES)}, or a plain dict"
        )
    return [_DEFAULTDICT.ext, getattr(factory, "__name__", None), dict(value)]


_CONTAINER_WRITERS: Final[dict[type, Writer]] = {
    tuple: lambda value: [_TUPLE.ext, *value],
    set: partial(_write_set, _SET, _LOOSE_SET),
    frozenset: partial(_write_set, _FROZENSET, _LOOSE_FROZENSET),
    deque: lambda value: [_DEQUE.ext, value.maxlen, *value],
    defaultdict: _write_defaultdict,
    Counter: lambda value: [_COUNTER.ext, dict(value)],
    OrderedDict: lambda value: [_ORDERED.ext, *(part for pair in value.items() for part in pair)],
}

_CONTAINER_READERS: Final[dict[_Marker, Callable[[list[Any]], Any]]] = {
    _TUPLE: lambda items: tuple(items[1:]),
    _SET: lambda items: set(items[1:]),
    _FROZENSET: lambda items: frozenset(items[1:]),
    _DEQUE: lambda items: deque(items[2:], items[1]),
    _DEFAULTDICT: lambda items: defaultdict(None if items[1] is None else _FACTORIES[items[1]], items[2]),
    _COUNTER: lambda items: Counter(items[1]),
    _ORDERED: lambda items: OrderedDict(zip(items[1::2], items[2::2], strict=True)),
}


# ── declared classes: for each a writer and a reader ──


def _pair(kind: type) -> tuple[Writer, Reader] | None:
    """Make the writer and the reader of a model, dataclass, enum or NamedTuple; None for any other class."""
    if issubclass(kind, Enum):
        return partial(_write_enum, kind.__name__, kind.__members__), partial(_read_enum, kind)
    if issubclass(kind, BaseModel):
        return _model_pair(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass_pair(kind)
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return _named_tuple_pair(kind)
    return None


def _write_enum(tag: str, members: Mapping[str, Enum], member: Enum) -> list[Any]:
    """By name: with `auto()` a value moves to another member when one is removed, which is then misread."""
    value = member._value_
    known = members.get(member._name_ or "") is member
    if not known and type(value) not in _SCALARS:
        raise _Refused("it is no named member of its enum: store the members that it is made of")
    return [_ENUM.ext, tag, member._name_ if known else None, value if type(value) in _SCALARS else None]


def _read_enum(kind: type[Enum], name: str | None, value: object) -> Enum:
    if name is None:  # a union of flags
        return kind(value)
    if name not in kind.__members__:
        raise ValueError(f"the enum {kind.__name__} has no member {name!r} now; keep the name as an alias of another")
    return kind.__members__[name]


def _model_pair(kind: type[BaseModel]) -> tuple[Writer, Reader]:
    tag, names, put = kind.__name__, frozenset(kind.model_fields), object.__setattr__
    open_ended = kind.model_config.get("extra") == "allow"
    attributes = kind.__private_attributes__

    def write(model: BaseModel) -> list[Any]:
        held = model.__dict__
        if held.keys() != names:  # a cached property stands there too; a field never set is refused
            held = {name: getattr(model, name) for name in kind.model_fields}
        given, extra, private = model.__pydantic_fields_set__, model.__pydantic_extra__, model.__pydantic_private__
        unset = 0 if given == names else sum(1 << place for place, name in enumerate(held) if name not in given)
        if extra or private:
            return [_OBJECT.ext, tag, held, unset, extra or None, private or None]
        return [_OBJECT.ext, tag, held, unset] if unset else [_OBJECT.ext, tag, held]

    def read(
        held: dict[str, Any], unset: int = 0, extra: dict[str, Any] | None = None, private: dict[str, Any] | None = None
    ) -> BaseModel:
        given = {name for place, name in enumerate(held) if not unset >> place & 1} if unset else set(held)
        if held.keys() == names:
            model = kind.__new__(kind)
            put(model, "__dict__", held)
            put(model, "__pydantic_extra__", (extra or {}) if open_ended else None)
        else:
            known = {**held, **(extra or {})} if open_ended else {name: held[name] for name in held if name in names}
            model = _validated(kind, known)
            given &= model.__pydantic_fields_set__
        put(model, "__pydantic_fields_set__", {*given, *(extra or ())} if open_ended else given)
        if attributes:
            fresh = {name: attribute.get_default() for name, attribute in attributes.items()}
            private = {
                **{name: value for name, value in fresh.items() if value is not PydanticUndefined},
                **(private or {}),
            }
        put(model, "__pydantic_private__", private if attributes else None)
        return model

    return write, read


def _dataclass_pair(kind: type) -> tuple[Writer, Reader]:
    tag, put, make = kind.__name__, object.__setattr__, typing.cast("Callable[[type], Any]", kind.__new__)
    ordered = tuple(field.name for field in dataclasses.fields(kind))
    names = frozenset(ordered)

    def write(value: Any) -> list[Any]:
        held = {name: getattr(value, name) for name in ordered}
        for name in getattr(value, "__dict__", ()):
            if (
                name not in names
                and not name.startswith("__")
                and not isinstance(getattr(kind, name, None), cached_property)
            ):
                raise _Refused(f"its attribute {name!r} is no field of {tag}: declare it as field(init=False)")
        return [_OBJECT.ext, tag, held]

    def read(held: dict[str, Any]) -> Any:
        if held.keys() != names:
            return _validated(kind, {name: held[name] for name in held if name in names})
        value = make(kind)
        for name in ordered:
            put(value, name, held[name])
        return value

    return write, read


def _named_tuple_pair(kind: Any) -> tuple[Writer, Reader]:
    tag, ordered = kind.__name__, kind._fields
    names = frozenset(ordered)

    def read(held: dict[str, Any]) -> Any:
        if held.keys() == names:
            return tuple.__new__(kind, [held[name] for name in ordered])
        return _validated(kind, {name: held[name] for name in held if name in names})

    return lambda value: [_OBJECT.ext, tag, dict(zip(ordered, value, strict=True))], read


def _validated(kind: Any, held: dict[str, Any]) -> Any:
    """Build one object whose class has gained or lost fields since it was stored."""
    try:
        return TypeAdapter(kind).validate_python(held, by_name=True, by_alias=False)
    except ValidationError as fault:  # its own text would quote the values, secrets too
        wrong = "; ".join(
            f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in fault.errors(include_input=False)
        )
        raise ValueError(f"{kind.__name__} has changed since, and what is stored no longer fits it: {wrong}") from None


def _reach(annotations: Iterable[Any]) -> Iterator[type]:
    """Yield every class that a value of these annotations may have and that needs a tag."""
    todo, seen = list(annotations), {}
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one  # kept, so that its id is not given to another
        if isinstance(one, Enum):  # Literal[Colour.RED]
            todo.append(type(one))
        elif isinstance(one, (list, tuple)):  # the parameters of a Callable
            todo.extend(one)
        elif typing.get_origin(one) is not None:
            todo += [typing.get_origin(one), *typing.get_args(one)]
        elif isinstance(one, type):
            tagged = issubclass(one, (Enum, BaseModel)) or dataclasses.is_dataclass(one) or hasattr(one, "_fields")
            if tagged or typing.is_typeddict(one):
                todo += _hints(one)
            if tagged:
                yield one
        else:  # NewType, a type alias, TypeVar
            todo += [
                getattr(one, name, None) for name in ("__supertype__", "__value__", "__bound__", "__constraints__")
            ]


def _hints(kind: Any) -> list[Any]:
    found = [field.annotation for field in kind.model_fields.values()] if issubclass(kind, BaseModel) else []
    try:
        return [*found, *typing.get_type_hints(kind, include_extras=True).values()]
    except (NameError, TypeError, AttributeError):  # a name that is there for the type checker only
        return [*found, *getattr(kind, "__annotations__", {}).values()]


# ── the codec ──


class Codec:
    """Typed values ↔ MessagePack, for one set of declared types. Immutable; threads may share it.

    Args:
        annotations: The types of what will be packed. Every model, dataclass, enum and NamedTuple reachable from them
            may be stored; no other class can be stored or restored.

    Raises:
        InvalidJob: Two different classes share a bare name.
    """

    def __init__(self, annotations: Iterable[Any] = ()) -> None:
        classes: dict[str, type] = {}
        self._writers: dict[type, Writer] = {**_LEAF_WRITERS, **_CONTAINER_WRITERS}
        self._readers: dict[str, Reader] = {}
        for kind in _reach(annotations):
            tag = kind.__name__
            other = classes.setdefault(tag, kind)
            if other is not kind:
                raise InvalidJob(
                    f"two classes are called {tag!r}: {_named(other)} and {_named(kind)}; a stored value carries its "
                    f"class's bare name, so rename one of them"
                )
            pair = _pair(kind)
            if pair is not None:
                self._writers[kind], self._readers[tag] = pair

    def pack(self, value: object, *, path: str = "value") -> bytes:
        """Pack a value; equal sets give equal bytes whatever their order.

        Args:
            value: Any value of the declared types.
            path: What to call it in an error.

        Raises:
            SerializationError: It holds something that would not come back equal; `path` leads to it.
        """
        data = _pack(value, self._lower, path)
        if len(data) > MAX_BYTES or (len(data) > MAX_NODES and _crowded(data, MAX_NODES)):
            raise SerializationError(
                path,
                f"it has {len(data):,} bytes, or more than {MAX_NODES:,} lists, dicts and objects: keep bulk data "
                f"in a file in ctx.data_dir and its path in the state",
            )
        return data

    def unpack(self, data: Bytes, *, max_bytes: int = MAX_BYTES, max_nodes: int = MAX_NODES) -> Any:
        """Give back the packed value: equal, and of the same type at every level.

        Args:
            data: What `pack` returned.
            max_bytes: Refuse more bytes than these.
            max_nodes: Refuse more maps and arrays than these.

        Raises:
            StateCorrupt: It is not what `pack` returned, or holds a class, or member of an enum, that is not declared.
        """
        hooks = _Restoring(self._readers)
        value = _decode(data, hooks.ext, hooks.array, max_bytes=max_bytes, max_nodes=max_nodes)
        if hooks.unmatched:
            raise StateCorrupt("a marker stands where no array opens")
        return value

    def _lower(self, value: object) -> Any:
        write = self._writers.get(type(value))
        if write is None:
            raise _Refused(_advice(value))
        return write(value)


class _Restoring:
    """The hooks of one `unpack`. Counts markers, so that none can stand as a value."""

    __slots__ = ("readers", "unmatched")

    def __init__(self, readers: Mapping[str, Reader]) -> None:
        self.readers, self.unmatched = readers, 0

    def ext(self, code: int, data: bytes) -> Any:
        if code == _MARK:
            self.unmatched += 1
            return _marker(data)
        return _leaf(code, data)

    def array(self, items: list[Any]) -> Any:
        if not items or type(items[0]) is not _Marker:
            return items
        self.unmatched -= 1
        marker = items[0]
        if marker is _OBJECT or marker is _ENUM:
            read = self.readers.get(items[1])
            if read is None:
                raise ValueError(
                    f"the class {items[1]!r} is not among the declared types now: declare it again, or migrate"
                )
            return read(*items[2:])
        return _CONTAINER_READERS[marker](items)


def _marker(data: bytes) -> _Marker:
    if len(data) != 1 or not 1 <= data[0] <= len(_MARKERS):
        raise ValueError(f"unknown marker {data[:8].hex()}")
    return _MARKERS[data[0] - 1]


def _leaf(code: int, data: bytes) -> Any:
    read = _LEAF_READERS.get(code)
    if read is None:
        raise ValueError(f"unknown extension type {code}: a newer release may have written it")
    return read(data)


# ── packing: the fast way, and after a failure the way to its cause ──


_MAX_DEPTH: Final = 1000
"""About the levels of arrays and maps that the C library takes; a value of fewer bytes can't have as many."""
_DEEP: Final = (
    "it is nested too deeply, a thousand levels: flatten it, as in a list where each item names its parent's index"
)


def _shallow(data: bytes) -> bool:
    """Tell whether the unpacker will take that many levels: it skims half a nanosecond a byte."""
    skim = msgpack.Unpacker(max_buffer_size=0)
    skim.feed(data)
    try:
        skim.skip()
    except msgpack.StackError:
        return False
    return True


def _pack(value: object, lower: Writer, path: str) -> bytes:
    try:
        try:
            data: bytes = _packer(lower).pack(value)
        except UnicodeEncodeError:  # a lone surrogate: os.listdir gives them for names that are no text
            data = _packer(lower, "surrogatepass").pack(value)
    except _FAULTS as fault:
        problem = _DEEP if "recursion" in str(fault) else f"packing it raised {type(fault).__name__}: {fault}"
        raise _cause(value, lower, path) or SerializationError(path, problem) from None
    if len(data) > _MAX_DEPTH and not _shallow(data):  # the packer goes one level deeper than the unpacker
        raise SerializationError(path, _DEEP)
    # The headers of packed bytes: only then can a bytearray be among them. Text or a float may hold these bytes too.
    if (b"\xc4" in data or b"\xc5" in data or b"\xc6" in data) and _has_aliased(value, lower):
        raise _cause(value, lower, path) or SerializationError(path, "it changed while it was packed: copy it first")
    if _LOOSE_SET.packed in data or _LOOSE_FROZENSET.packed in data:
        data = _rewrite(data, whole=False)
    return data


def _has_aliased(value: object, lower: Writer) -> bool:
    """Tell whether a type stands anywhere in the value that the C packer takes for another; by levels, mostly in C."""
    level: list[Any] = [value]
    while level:
        kinds = set(map(type, level))
        if not _ALIASED.isdisjoint(kinds):
            return True
        below: list[Any] = []
        for one in () if kinds <= _SCALARS else level:
            kind = type(one)
            if kind is dict:
                below += one
                below += one.values()
            elif kind is list:
                below += one
            elif kind not in _SCALARS and kind not in _LEAF_WRITERS:
                below += lower(one)[1:]
        level = below
    return False


def _cause(value: object, lower: Writer, path: str) -> SerializationError | None:
    """Walk to the first element that can't be stored; None if there is none."""
    trail: list[tuple[str, object, Iterator[tuple[object, object]]]] = []
    here, one = path, value
    while True:
        if any(one is outer for _, outer, _ in trail):
            return SerializationError(here, "it contains itself: store an id or an index in its place")
        if len(trail) > _MAX_DEPTH + 100:
            return None
        try:
            trail.append((here, one, iter(_parts(one, lower))))
        except _Refused as refusal:
            return SerializationError(here, str(refusal))
        except _FAULTS as fault:
            return SerializationError(here, f"reading it raised {type(fault).__name__}: {fault}")
        while trail:
            outer, _, rest = trail[-1]
            step = next(rest, None)
            if step is not None:
                name, one = step
                here = f"{outer}.{str(name)[:80]}"
                break
            trail.pop()
        else:
            return None


def _parts(value: object, lower: Writer) -> list[tuple[object, object]]:
    kind = type(value)
    if kind in _ALIASED:
        raise _Refused(_advice(value))
    if kind is list:
        return list(enumerate(typing.cast("list[object]", value)))
    if kind is dict:
        return _entries(typing.cast("dict[object, object]", value))
    if kind in _SCALARS:
        return []
    lowered = lower(value)
    if type(lowered) is not list:
        return []
    if lowered[0] == _OBJECT.ext:
        return [entry for part in lowered[2:] if type(part) is dict for entry in _entries(part)]
    if kind is deque or isinstance(value, Enum):
        return list(enumerate(lowered[2:]))
    if kind in {set, frozenset}:
        return [("*", member) for member in lowered[1:]]
    return (
        _entries(lowered[-1]) if isinstance(value, dict) and kind is not OrderedDict else list(enumerate(lowered[1:]))
    )


def _entries(mapping: dict[object, object]) -> list[tuple[object, object]]:
    return [(f"key {key!r}", key) for key in mapping if type(key) not in _SCALARS] + [*mapping.items()]


def _named(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _advice(value: object) -> str:
    """Say what the value is and what to do with it; never the value itself, which may be secret."""
    kind = type(value)
    name = _named(kind)
    if kind in {bytearray, memoryview}:
        return f"it is a {name}, which would come back as bytes: convert it with bytes(...)"
    if kind in _ALIASED:
        return f"a {name} is MessagePack's own: store the value that it stands for"
    if _pair(kind):
        return f"its class {name} is not among the declared types: name {kind.__name__} in its field's annotation"
    base = next(
        (
            base
            for base in kind.__mro__[1:]
            if base in _SCALARS or base in _LEAF_WRITERS or base in _CONTAINER_WRITERS or base in {list, dict}
        ),
        None,
    )
    if base is not None:
        return (
            f"it is a {name}, a subclass of {base.__name__}: it would lose its type; convert it with {base.__name__}()"
        )
    return f"a {name} lives in this process only: store what it is made from (a path, an id); make it in the handler"


# ── unpacking: one wall around bytes from outside ──


def _decode(
    data: Bytes, ext: Callable[[int, bytes], Any], array: Reader, pairs: Reader | None = None,
    *, max_bytes: int = MAX_BYTES, max_nodes: int = MAX_NODES,
) -> Any:  # fmt: skip
    if len(data) > max_bytes:
        raise StateCorrupt(f"it has {len(data):,} bytes, more than {max_bytes:,}")
    if len(data) > max_nodes and _crowded(data, max_nodes):
        raise StateCorrupt(f"it has more than {max_nodes:,} maps and arrays")
    try:
        return msgpack.unpackb(
            data,
            ext_hook=ext,
            list_hook=array,
            object_pairs_hook=pairs,
            strict_map_key=False,
            timestamp=3,
            unicode_errors="surrogatepass",
        )
    except msgpack.StackError:
        raise StateCorrupt("it is nested too deeply") from None
    except Exception as fault:
        # Hashes, enums and validators of the job's own classes run in there, on bytes that may be damaged.
        raise StateCorrupt(str(fault)[:500] or type(fault).__name__) from fault


_HEADERS: Final = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])


def _crowded(data: Bytes, limit: int) -> bool:
    """Tell whether there are more maps and arrays than the limit; mostly by counting bytes that may be headers."""
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


# ── the same value, the same bytes ──


class _Packed(bytes):
    """A container that is packed already."""

    __slots__ = ()


def canonical(data: bytes) -> bytes:
    """Rewrite packed bytes so that equal values give equal bytes: map keys and members of sets are sorted by theirs.

    Needs no classes. Which fields of a model were given is left out: models compare equal whatever they were.

    Raises:
        StateCorrupt: It is not MessagePack.
    """
    return _rewrite(data, whole=True)


def _rewrite(data: bytes, *, whole: bool) -> bytes:
    packer = _packer(unicode_errors="surrogatepass")

    def packed(value: object) -> bytes:
        return value if type(value) is _Packed else packer.pack(value)

    def array(items: list[Any]) -> _Packed:
        parts = list(map(packed, items))
        if parts and parts[0] in _SORTED:
            parts[1:] = sorted(parts[1:])
            parts[0] = _SETTLED.get(parts[0], parts[0])
        elif whole and len(parts) > 3 and parts[0] == _OBJECT.packed:  # noqa: PLR2004  # marker, tag, fields, then the rest
            parts[3:] = [b"\0", *parts[4:]] if len(parts) > 4 else []  # noqa: PLR2004
        return _Packed(packer.pack_array_header(len(parts)) + b"".join(parts))

    def pairs(items: list[tuple[Any, Any]]) -> _Packed:
        entries = [(packed(key), packed(value)) for key, value in items]
        if whole:
            entries.sort()
        return _Packed(packer.pack_map_header(len(entries)) + b"".join(part for entry in entries for part in entry))

    return bytes(packed(_decode(data, ExtType, array, pairs, max_bytes=2 * MAX_BYTES, max_nodes=2 * MAX_BYTES)))


# ── for people ──

_JSON: Final[TypeAdapter[Any]] = TypeAdapter(Any)


def plain(value: object) -> Json:
    """Say any value that can be packed, of any class, as data that JSON can say: for people, not to be read back.

    Models become dicts, enums their values, sets and tuples lists; times, paths and numbers text as pydantic writes it;
    bytes UTF-8 or base64; secrets asterisks.

    Raises:
        SerializationError: It holds something that no declaration could make packable, such as an open file.
    """
    return _decode_plain(_pack(value, _lower_any, "value"), 2 * MAX_BYTES, 2 * MAX_BYTES)


def decode_plain(data: Bytes) -> Json:
    """Say packed bytes as `plain` says the value, without knowing its classes.

    Raises:
        StateCorrupt: They are not what `pack` returned.
    """
    return _decode_plain(data, MAX_BYTES, MAX_NODES)


def _decode_plain(data: Bytes, max_bytes: int, max_nodes: int) -> Json:
    value = _decode(data, _ext_plain, _array_plain, _map_plain, max_bytes=max_bytes, max_nodes=max_nodes)
    if type(value) is _Marker:
        raise StateCorrupt("a marker stands where no array opens")
    return _said(value)


def _lower_any(value: object) -> Any:
    kind = type(value)
    write = _LEAF_WRITERS.get(kind) or _CONTAINER_WRITERS.get(kind)
    if write is None:
        pair = _pair(kind)
        if pair is None:
            raise _Refused(_advice(value))
        write = pair[0]
    return write(value)


def _said(value: Any) -> Json:
    """Say one scalar, or a container whose parts have been said."""
    kind = type(value)
    if kind is _Marker:
        raise ValueError("a marker stands where no array opens")
    if kind is str:
        return value if value.isascii() else str(value.encode("utf-8", "backslashreplace"), "utf-8")
    if kind is float:
        return value if value - value == 0 else str(value)
    if kind is bytes:
        try:
            return str(value, "utf-8")
        except UnicodeDecodeError:
            return b64encode(value).decode()
    if kind in _SCALARS or kind in {list, dict}:
        return typing.cast("Json", value)
    if isinstance(value, (SecretStr, SecretBytes)):
        return _MASK
    try:
        return _said(_JSON.dump_python(value, mode="json", fallback=str))
    except (TypeError, ValueError):
        return _said(str(value))


def _ext_plain(code: int, data: bytes) -> Any:
    return _marker(data) if code == _MARK else _said(_leaf(code, data))


def _map_plain(pairs: list[tuple[Any, Any]]) -> dict[str, Json]:
    return {_key(key): _said(value) for key, value in pairs}


def _key(key: Any) -> str:
    if type(key) is list:
        return ",".join(map(_key, key))
    if key is True or key is False:
        return str(key).lower()
    return str(_said(key))


def _array_plain(items: list[Any]) -> Json:
    marker = items[0] if items else None
    if type(marker) is not _Marker:
        return [_said(item) for item in items]
    if marker is _OBJECT:
        return {**items[2], **(items[4] or {})} if len(items) > 4 else dict(items[2])  # noqa: PLR2004  # 4: fields not declared
    if marker is _ENUM:
        return _said(items[2] if items[3] is None else items[3])
    if marker in (_COUNTER, _DEFAULTDICT):
        return dict(items[-1])
    if marker is _ORDERED:
        return _map_plain(list(zip(items[1::2], items[2::2], strict=True)))
    return [_said(item) for item in items[2 if marker is _DEQUE else 1 :]]


# ── the envelope ──

_FORMAT: Final = 1
_HEAD: Final = b"\x96" + bytes([_FORMAT]) + b"\xd9"  # an array of six; its format; a text whose length is one byte
_UINT32: Final = 0xCE
_NUMBER: Final = Struct(">BI")
_SHORTEST: Final = len(_HEAD) + 1 + 5 + 5 + 2
_MAP_HEADERS: Final = frozenset(bytes([header]) for header in (*range(0x80, 0x90), 0xDE, 0xDF))


class Envelope(NamedTuple):
    """A stored state, as read.

    Attributes:
        job_id: The job that it belongs to.
        version: The class version that wrote it.
        state: A MessagePack map of named fields.
        journal: A MessagePack map.
    """

    job_id: str
    version: int
    state: bytes
    journal: bytes


def seal(job_id: str, version: int, state: bytes, journal: bytes = EMPTY_MAP) -> bytes:
    """Wrap a packed state for storage, so that any MessagePack reader can open it and any flipped bit shows.

    The envelope is an array: format, job id, class version, CRC-32 of all other bytes, state, journal. The numbers have
    a fixed width, so that only the length of the id moves the checksum.

    Args:
        job_id: The job, at most 255 bytes of UTF-8.
        version: The version of the job's class, 0 to 2³² - 1.
        state: A packed dict.
        journal: A packed dict.

    Raises:
        SerializationError: One of these does not fit.
    """
    name = job_id.encode()
    if len(name) > 0xFF or not 0 <= version < 1 << 32 or not (_is_map(state) and _is_map(journal)):  # noqa: PLR2004
        raise SerializationError("state", "an envelope takes an id, a version of 32 bits, and two packed dicts")
    head = b"".join((_HEAD, bytes([len(name)]), name, _NUMBER.pack(_UINT32, version)))
    check = zlib.crc32(journal, zlib.crc32(state, zlib.crc32(b"\xce", zlib.crc32(head))))
    return b"".join((head, _NUMBER.pack(_UINT32, check), state, journal))


def unseal(data: bytes) -> Envelope:
    """Open an envelope and verify it.

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
        middle = parts.tell()
        parts.skip()
        whole = parts.tell() == len(body)
    except (ValueError, msgpack.UnpackException):
        raise StateCorrupt("it holds no two maps") from None
    state, journal = body[:middle], body[middle:]
    if not (whole and _is_map(state) and _is_map(journal)):
        raise StateCorrupt("it holds no two maps")
    return Envelope(job_id, version, state, journal)


def _is_map(data: bytes) -> bool:
    return data[:1] in _MAP_HEADERS
