"""How objects of a job's own classes are written and read: models, dataclasses, enums, named tuples.

An object is stored under the bare name of its class, its *tag*, with its fields by name; an enum's member under the
member's name. Which classes there are is found by walking the annotations of a job's fields.

What it must never do:

- Import or construct by name: a stored tag is a bare word, looked up among the declared classes of one job.
- Run validators, or constructors, on what they have already seen: a field whose validator doubles it would double it at
  every restart. `mending` sees to objects whose class has changed since.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from functools import partial
from typing import Any, Final, TypeAlias

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typing_extensions import get_type_hints, is_typeddict

from jobkit.errors import InvalidJob
from jobkit.kinds import ENUM, OBJECT, SCALARS, Outgrown, Refused, Writer, named
from jobkit.mending import Reading, fitted

Reader: TypeAlias = Callable[..., Any]
"""Makes an object from a `Reading` and what stands behind its tag."""

_HEAP: Final = 1 << 9
"""CPython's flag of classes that were defined in Python."""


def declared(annotations: Iterable[Any]) -> dict[str, type]:
    """Find every class that a value of these annotations may have and that needs a tag.

    Args:
        annotations: The declared types.

    Returns:
        The classes by tag.

    Raises:
        InvalidJob: Two different classes share a bare name.
    """
    classes: dict[str, type] = {}
    for kind in _reach(annotations):
        if not (isinstance(kind, type) and has_tag(kind)):
            continue
        other = classes.setdefault(kind.__name__, kind)
        if other is not kind:
            raise InvalidJob(
                f"two classes are called {kind.__name__!r}: {named(other)} and {named(kind)}; a stored value carries "
                f"its class's bare name, so rename one of them"
            )
    return classes


def has_tag(kind: type) -> bool:
    """Tell whether objects of this class can be stored under a tag."""
    return (
        issubclass(kind, (Enum, BaseModel))
        or dataclasses.is_dataclass(kind)
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    )


def pair(kind: type) -> tuple[Writer, Reader]:
    """Make the writer and the reader for the objects of a class that can have a tag."""
    if issubclass(kind, Enum):
        return partial(_write_enum, kind.__name__, kind.__members__), partial(_read_enum, kind)
    if dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel):
        if (base := _layout(kind)) is not object:
            return partial(_refuse_derived, base), partial(_refuse_derived, base)
        return _model_pair(kind) if issubclass(kind, BaseModel) else _dataclass_pair(kind)
    return _named_tuple_pair(kind)


def fields_of(kind: type) -> dict[str, Any]:
    """Tell the fields of a class that can have a tag: their types by name, in order; an enum has none."""
    if issubclass(kind, Enum):
        return {}
    if issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    hints = _hints(kind)
    names = [one.name for one in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else kind._fields  # type: ignore[attr-defined]
    return {name: hints.get(name, Any) for name in names}


def spelled_out(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Tell fields' types by name, and beside them what stands behind the names of TypedDicts and aliases in them."""
    names = [one for one in _reach(fields.values(), into_classes=False) if not (isinstance(one, type) and has_tag(one))]
    return {**fields, **{repr(one): _behind(one) for one in names}}


def _reach(annotations: Iterable[Any], *, into_classes: bool = True) -> Iterator[Any]:
    """Walk annotations to all in them that has a name of its own: classes that can have a tag, TypedDicts, aliases."""
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
            if has_tag(one):
                todo += (_hints(one) | fields_of(one)).values() if into_classes else ()
                yield one
            elif is_typeddict(one):
                todo += _behind(one).values()
                yield one
        elif behind := _behind(one):
            todo += behind.values()
            yield one


def _behind(one: Any) -> dict[str, Any]:
    """What a TypedDict, NewType, alias or TypeVar stands for."""
    if isinstance(one, type):
        return _hints(one)
    names = ("__supertype__", "__value__", "__bound__", "__constraints__")
    return {name: getattr(one, name) for name in names if getattr(one, name, None)}


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return get_type_hints(kind, include_extras=True)
    except (NameError, TypeError, AttributeError):  # a name that is there for the type checker only
        return dict(getattr(kind, "__annotations__", {}))


# ── one class ──


def _write_enum(tag: str, members: Mapping[str, Enum], member: Enum) -> list[Any]:
    """By name: with `auto()` a value moves to another member when one is removed, which is then misread."""
    value = member._value_
    known = members.get(member._name_ or "") is member
    if not known and type(value) not in SCALARS:
        raise Refused("it is no named member of its enum: store the members that it is made of")
    return [ENUM.ext, tag, member._name_ if known else None, value if type(value) in SCALARS else None]


def _read_enum(kind: type[Enum], _: Reading, name: str | None, value: object) -> Enum:
    if name is None:  # a union of flags
        return kind(value)
    if name not in kind.__members__:
        raise Outgrown(f"the enum {kind.__name__} has no member {name!r} now; keep the name as an alias of another")
    return kind.__members__[name]


def _model_pair(kind: type[BaseModel]) -> tuple[Writer, Reader]:
    tag, hints, put = kind.__name__, fields_of(kind), object.__setattr__
    names, hidden = frozenset(hints), _hidden(kind, hints)
    open_ended = kind.model_config.get("extra") == "allow"
    attributes = kind.__private_attributes__

    def write(model: BaseModel) -> list[Any]:
        held = model.__dict__
        if held.keys() != names or hidden:
            held = _held(model, hints, hidden)
        given, extra, private = model.__pydantic_fields_set__, model.__pydantic_extra__, model.__pydantic_private__
        unset = _places([*held, *(extra or ())], given) if extra or given != names else 0
        if extra or private:
            return [OBJECT.ext, tag, held, unset, extra or None, private or None]
        return [OBJECT.ext, tag, held, unset] if unset else [OBJECT.ext, tag, held]

    def read(
        reading: Reading,
        held: dict[str, Any],
        unset: int = 0,
        extra: dict[str, Any] | None = None,
        private: dict[str, Any] | None = None,
    ) -> BaseModel:
        given = {*held, *extra} if extra else set(held)
        if unset:
            given = {name for place, name in enumerate([*held, *(extra or ())]) if not unset >> place & 1}
        if tag in reading.changed or held.keys() != names or (extra and not open_ended):
            held = {**held, **(extra or {})}  # a field that is gone may be an extra one now, and the reverse
            extra = {name: held.pop(name) for name in [*held] if name not in names} if open_ended else None
            held = fitted(kind, hints, held, reading)
            given &= names.union(extra or ())
        model = object.__new__(kind)
        put(model, "__dict__", held)
        put(model, "__pydantic_extra__", (extra or {}) if open_ended else None)
        put(model, "__pydantic_fields_set__", given)
        if attributes:
            private = {**_fresh(attributes, private or ()), **(private or {})}
        put(model, "__pydantic_private__", private if attributes else None)
        return model

    return write, read


def _places(names: list[str], given: set[str]) -> int:
    """Mark the fields that were not given, a bit for each: as good as none, in most objects."""
    return sum(1 << place for place, name in enumerate(names) if name not in given)


def _fresh(attributes: Mapping[str, Any], stored: Iterable[str]) -> dict[str, Any]:
    """Make the private attributes that are not stored."""
    fresh = {name: attributes[name].get_default() for name in attributes.keys() - set(stored)}
    return {name: value for name, value in fresh.items() if value is not PydanticUndefined}


def _dataclass_pair(kind: type) -> tuple[Writer, Reader]:
    tag, hints, put = kind.__name__, fields_of(kind), object.__setattr__
    names, hidden = frozenset(hints), _hidden(kind, hints)

    def read(reading: Reading, held: dict[str, Any]) -> Any:
        if tag in reading.changed or held.keys() != names:
            held = fitted(kind, hints, held, reading)
        value: Any = object.__new__(kind)
        for name in hints:
            put(value, name, held[name])
        return value

    return lambda value: [OBJECT.ext, tag, _held(value, hints, hidden)], read


def _named_tuple_pair(kind: Any) -> tuple[Writer, Reader]:
    tag, hints = kind.__name__, fields_of(kind)
    names = frozenset(hints)

    def write(value: Any) -> list[Any]:
        if getattr(value, "__dict__", None):
            raise Refused(f"its attributes {', '.join(vars(value))} are no fields of {tag}: declare them")
        return [OBJECT.ext, tag, dict(zip(hints, value, strict=True))]

    def read(reading: Reading, held: dict[str, Any]) -> Any:
        if tag in reading.changed or held.keys() != names:
            held = fitted(kind, hints, held, reading)
        return tuple.__new__(kind, [held[name] for name in hints])

    return write, read


def _held(value: Any, names: Iterable[str], hidden: Iterable[str]) -> dict[str, Any]:
    """Take the fields out of an object that may hold more: what is derived from them is left, and all else refused."""
    tag = type(value).__name__
    try:
        held = {name: getattr(value, name) for name in names}
    except AttributeError:
        missing = next(name for name in names if not hasattr(value, name))
        raise Refused(f"its field {missing!r} was never set, or deleted: assign None instead") from None
    for name in (*getattr(value, "__dict__", ()), *(name for name in hidden if hasattr(value, name))):
        is_derived = hasattr(getattr(type(value), name, None), "__get__") and name not in hidden  # a cached property
        if name not in held and not name.startswith("__") and not is_derived:
            raise Refused(f"its attribute {name!r} is no field of {tag}: declare it as one")
    return held


def _layout(kind: type) -> type:
    """Find the class, written in C, whose data lies in each object of a class: `object` has none."""
    while kind.__flags__ & _HEAP and kind.__base__ is not None:
        kind = kind.__base__
    return kind


def _refuse_derived(base: type, *_: object) -> Any:
    name = base.__name__
    raise Refused(f"its class derives from {name}, whose own data would be lost: give it a field that holds the {name}")


def _hidden(kind: type, names: Iterable[str]) -> tuple[str, ...]:
    """Find where else objects of a class may hold data: in slots that are no fields."""
    slots = (slot for base in kind.__mro__ for slot in _slots(base))
    return tuple(slot for slot in slots if slot not in names and not slot.startswith("__"))


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
