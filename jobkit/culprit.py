"""Why a value can't be stored: the path to what stands in the way, and what to do about it.

Packing is one C call and tells neither; only after it has failed is the value walked, step by step. One thing it does
not notice itself: types that it takes for others. `has_aliased` looks for these.

A text here never quotes a value, which may be secret.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, cast

import msgpack  # type: ignore[import-untyped]

from jobkit.bounds import MAX_LEVELS
from jobkit.classes import has_tag
from jobkit.errors import SerializationError
from jobkit.kinds import ENUM, OBJECT, SCALARS, WHOLE, WRITERS, Refused, named

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jobkit.kinds import Writer

DEEP: Final = (
    "it is nested too deeply, a thousand levels: flatten it, as in a list where each item names its parent's index"
)

_ALIASED: Final = frozenset({bytearray, memoryview, msgpack.ExtType})
"""What the C packer takes silently: the first two would come back as bytes, the last could forge a marker."""


def culprit(value: object, lower: Writer, path: str, otherwise: str) -> SerializationError:
    """Walk to the first element that can't be stored.

    Args:
        value: What could not be packed.
        lower: The packer's hook.
        path: What to call the value.
        otherwise: What to say if every element can be, of the whole; `DEEP` of the part that is deepest.

    Returns:
        The error to raise.
    """
    trail: list[tuple[str, object, Iterator[tuple[object, object]]]] = []
    here, one = path, value
    inside: set[int] = set()  # the ids of what is on the trail
    deepest, levels = path, 0
    while len(trail) <= MAX_LEVELS + 100:
        if id(one) in inside:
            return SerializationError(here, "it contains itself: store an id or an index in its place")
        try:
            trail.append((here, one, iter(_parts(one, lower))))
            inside.add(id(one))
        except Refused as refusal:
            return SerializationError(here, str(refusal))
        if len(trail) > max(levels, 1):
            deepest, levels = trail[1][0], len(trail)
        while trail:
            outer, holder, rest = trail[-1]
            step = next(rest, None)
            if step is not None:
                name, one = step
                here = f"{outer}.{str(name)[:80]}"
                break
            trail.pop()
            inside.discard(id(holder))
        else:
            break
    return SerializationError(deepest if otherwise is DEEP else path, otherwise)


def _parts(value: object, lower: Writer) -> Iterable[tuple[object, object]]:
    """Name the parts of a value; raises `Refused` if the value itself is the culprit."""
    kind = type(value)
    if kind in SCALARS:
        return ()
    if kind in _ALIASED:
        raise Refused(advice(value))
    if kind not in {list, dict}:
        try:
            lowered = lower(value)
        except Refused:
            raise
        except Exception as fault:
            raise Refused(f"reading it raised {type(fault).__name__}: {fault}") from fault
        if type(lowered) is not list:
            return ()
        if lowered[0] in (OBJECT.ext, ENUM.ext):
            return [entry for part in lowered[2:] if type(part) is dict for entry in _entries(part)]
    if isinstance(value, dict):
        factory = [("default_factory", value.default_factory)] if isinstance(value, defaultdict) else []
        return [*factory, *_entries(value)]
    if isinstance(value, (set, frozenset)):
        return [("*", member) for member in value]
    return enumerate(cast("Iterable[object]", value))


def _entries(mapping: dict[Any, Any]) -> list[tuple[object, object]]:
    return [(f"key {key!r}", key) for key in mapping if type(key) not in SCALARS] + [*mapping.items()]


def has_aliased(value: object, lower: Writer) -> bool:
    """Tell whether a type stands anywhere in the value that the C packer takes for another; by levels, mostly in C."""
    level: list[Any] = [value]
    while level:
        kinds = set(map(type, level))
        if not _ALIASED.isdisjoint(kinds):
            return True
        below: list[Any] = []
        for one in () if kinds <= WHOLE else level:
            kind = type(one)
            if kind is dict:
                below += one
                below += one.values()
            elif kind is list:
                below += one
            elif kind not in WHOLE:
                below += lower(one)[1:]
        level = below
    return False


def advice(value: object) -> str:
    """Say what a value is that has no writer, and what to do with it."""
    kind = type(value)
    name = named(kind)
    if kind in {bytearray, memoryview}:
        return f"it is a {name}, which would come back as bytes: convert it with bytes(...)"
    if kind in _ALIASED:
        return f"a {name} is MessagePack's own: store the value that it stands for"
    if isinstance(value, type):
        return f"the class {named(value)} is not among the declared types: name it in its field's annotation"
    if has_tag(kind):
        return f"its class {name} is not among the declared types: name {kind.__name__} in its field's annotation"
    storable = SCALARS | WRITERS.keys() | {list, dict}
    base = next((base for base in kind.__mro__[1:] if base in storable), None)
    if base is not None:
        return (
            f"it is a {name}, a subclass of {base.__name__}: it would lose its type; convert it with {base.__name__}()"
        )
    return f"a {name} lives in this process only: store what it is made from (a path, an id); make it in the handler"
