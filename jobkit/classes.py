"""How objects of a job's own classes are written and read: models, dataclasses, enums, named tuples.

An object is stored under the bare name of its class, its *tag*, with its fields by name; an enum's member under the
member's name. Which classes there are is found by walking the annotations of a job's fields.

What it must never do:

- Import or construct by name: a stored tag is a bare word, looked up among the declared classes of one job.
- Run validators on what they have already seen: a field whose validator doubles it would double at every restart. Only
  an object whose class has gained or lost fields since is validated, by itself.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from functools import cached_property, partial
from typing import Any, TypeAlias

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined

from jobkit.errors import InvalidJob
from jobkit.kinds import ENUM, OBJECT, SCALARS, Refused, Writer, named
from jobkit.problems import in_one_line, problems_of

Reader: TypeAlias = Callable[..., Any]
"""Makes an object from what stands behind its tag."""


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
    if issubclass(kind, BaseModel):
        return _model_pair(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass_pair(kind)
    return _named_tuple_pair(kind)


def _reach(annotations: Iterable[Any]) -> Iterator[type]:
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
                todo += _hints(one)
                yield one
            elif typing.is_typeddict(one):
                todo += _hints(one)
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


# ── one class ──


def _write_enum(tag: str, members: Mapping[str, Enum], member: Enum) -> list[Any]:
    """By name: with `auto()` a value moves to another member when one is removed, which is then misread."""
    value = member._value_
    known = members.get(member._name_ or "") is member
    if not known and type(value) not in SCALARS:
        raise Refused("it is no named member of its enum: store the members that it is made of")
    return [ENUM.ext, tag, member._name_ if known else None, value if type(value) in SCALARS else None]


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
            return [OBJECT.ext, tag, held, unset, extra or None, private or None]
        return [OBJECT.ext, tag, held, unset] if unset else [OBJECT.ext, tag, held]

    def read(
        held: dict[str, Any], unset: int = 0, extra: dict[str, Any] | None = None, private: dict[str, Any] | None = None
    ) -> BaseModel:
        given = {name for place, name in enumerate(held) if not unset >> place & 1} if unset else set(held)
        if held.keys() == names:
            model = kind.__new__(kind)
            put(model, "__dict__", held)
            put(model, "__pydantic_extra__", (extra or {}) if open_ended else None)
        else:
            model = _validated(kind, {**held, **(extra or {})} if open_ended else _known(held, names))
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
                raise Refused(f"its attribute {name!r} is no field of {tag}: declare it as field(init=False)")
        return [OBJECT.ext, tag, held]

    def read(held: dict[str, Any]) -> Any:
        if held.keys() != names:
            return _validated(kind, _known(held, names))
        value = make(kind)
        for name in ordered:
            put(value, name, held[name])
        return value

    return write, read


def _named_tuple_pair(kind: Any) -> tuple[Writer, Reader]:
    tag, ordered = kind.__name__, kind._fields
    names = frozenset(ordered)

    def read(held: dict[str, Any]) -> Any:
        if held.keys() != names:
            return _validated(kind, _known(held, names))
        return tuple.__new__(kind, [held[name] for name in ordered])

    return lambda value: [OBJECT.ext, tag, dict(zip(ordered, value, strict=True))], read


def _known(held: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in held.items() if name in names}


def _validated(kind: Any, held: dict[str, Any]) -> Any:
    """Build one object whose class has gained or lost fields since it was stored."""
    try:
        return TypeAdapter(kind).validate_python(held, by_name=True, by_alias=False)
    except ValidationError as error:  # its own text would quote the values, secrets too
        wrong = in_one_line(problems_of(error))
    raise ValueError(f"{kind.__name__} has changed since, and what is stored no longer fits it: {wrong}")
