"""Values for people: as data that JSON can say, and text that can do no harm. Not to be read back.

Models become dicts, enums their values, sets and tuples lists; times, paths and numbers text as pydantic writes it;
bytes UTF-8 or base64; secrets asterisks. It is made of packed bytes without knowing any class, so that every node can
show what any other has stored; a value is packed for it.
"""

from __future__ import annotations

import unicodedata
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import SecretBytes, SecretStr, TypeAdapter

from jobkit.bounds import decode
from jobkit.classes import has_tag, pair
from jobkit.codec import pack
from jobkit.culprit import advice
from jobkit.errors import StateCorrupt
from jobkit.kinds import (
    CLASS,
    COUNTER,
    DEFAULTDICT,
    DEQUE,
    ENUM,
    LIBRARY,
    MARK,
    OBJECT,
    ORDERED,
    PATTERN,
    SECRET,
    WRITERS,
    Marker,
    Refused,
    read_leaf,
    read_marker,
    write_class,
)
from jobkit.model import MASK

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobkit.bounds import Bytes
    from jobkit.model import Json

_JSON: Final[TypeAdapter[Any]] = TypeAdapter(Any)
_SPOKEN: Final = frozenset({type(None), bool, int, list, dict})
"""What JSON has itself, once its parts are said."""

TEXT_BYTES: Final = 8 * 1024
"""How long a text may be that somebody else has written, such as an error's."""


def clean(text: str, limit: int = TEXT_BYTES) -> str:
    """Make a text that any database and terminal takes: no control characters, no lone surrogates, not too long."""
    text = text[:limit]
    if not text.isprintable():
        text = "".join(char if _is_harmless(char) else "\ufffd" for char in text)
    data = text.encode()
    return text if len(data) <= limit else data[:limit].decode(errors="ignore")


def _is_harmless(char: str) -> bool:
    return char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cs"}


def plain(value: object) -> Json:
    """Say a value as JSON, for people.

    Args:
        value: Anything that could be stored if its classes were declared.

    Returns:
        Data of JSON's types alone.

    Raises:
        SerializationError: It holds something that no declaration could make storable, such as an open file.
    """
    return decode_plain(pack(value, _lower, "value"))


def _lower(value: object) -> Any:
    write = WRITERS.get(type(value))
    if write is None:
        if isinstance(value, type) and (has_tag(value) or value in LIBRARY.values()):
            return write_class(value.__name__)
        if not has_tag(type(value)):
            raise Refused(advice(value))
        write, _ = pair(type(value))
    return write(value)


def decode_plain(data: Bytes) -> Json:
    """Say packed bytes as JSON, for people.

    Args:
        data: What `Codec.pack` returned, for whatever classes.

    Returns:
        Data of JSON's types alone.

    Raises:
        StateCorrupt: They are not what `pack` returned.
    """
    value = decode(data, _ext, _array, _map)
    if type(value) is Marker:
        raise StateCorrupt("a marker stands where no array opens")
    return _said(value)


def _said(value: Any) -> Json:
    """Say one scalar, or a container whose parts have been said."""
    kind = type(value)
    if kind is Marker:
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
    if kind in _SPOKEN:
        return cast("Json", value)
    if isinstance(value, (SecretStr, SecretBytes)):
        return MASK
    try:
        return _said(_JSON.dump_python(value, mode="json", fallback=str))
    except (TypeError, ValueError):
        return _said(str(value))


def _ext(code: int, data: bytes) -> Any:
    if code == CLASS:
        return str(data, "utf-8").removeprefix("=")
    return read_marker(data) if code == MARK else _said(read_leaf(code, data))


def _map(pairs: list[tuple[Any, Any]]) -> dict[str, Json]:
    return {_key(key): _said(value) for key, value in pairs}


def _key(key: Any) -> str:
    if type(key) is list:
        return ",".join(map(_key, key))
    if key is True or key is False:
        return str(key).lower()
    return str(_said(key))


def _object(held: dict[str, Json], _unset: int = 0, extra: dict[str, Json] | None = None, _private: Any = None) -> Json:
    return {**held, **extra} if extra else held


_SAYERS: Final[dict[Marker, Callable[[list[Any]], Json]]] = {
    OBJECT: lambda items: _object(*items[2:]),
    ENUM: lambda items: _said(items[2] if items[3] is None else items[3]),
    COUNTER: lambda items: dict(items[1]),
    DEFAULTDICT: lambda items: dict(items[2]),
    ORDERED: lambda items: _map([*zip(items[1::2], items[2::2], strict=True)]),
    DEQUE: lambda items: [_said(item) for item in items[2:]],
    SECRET: lambda _: MASK,
    PATTERN: lambda items: _said(items[1]),
}
"""What an array with a marker is to people, if not the list of its other items."""


def _array(items: list[Any]) -> Json:
    if not items or type(items[0]) is not Marker:
        return [_said(item) for item in items]
    say = _SAYERS.get(items[0])
    return [_said(item) for item in items[1:]] if say is None else say(items)
