"""What an older self of a class has stored: which fields still fit, and how the class as it is now gets all of its own.

A checksum of a class's fields and their types, its *shape*, is stored beside each state. It never refuses anything: the
objects of a class that has another one now are looked at, and only what is missing or of another type than is declared
is validated, with all validators that the class has for it. Moving a class, adding a field or upgrading a library costs
that look and nothing else.

What it must never do: run validators on what fits. One that doubles a number would double it again, and one that looks
for a file would fail once the file has been moved.
"""

from __future__ import annotations

import re
import types
import typing
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel, RootModel, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import SchemaValidator, core_schema
from typing_extensions import get_type_hints, is_typeddict

from jobkit.kinds import LIBRARY, Outgrown
from jobkit.problems import in_one_line, problems_of

_STORABLE: Final = frozenset(LIBRARY.values())
_FIELDS: Final = frozenset({"model-fields", "dataclass-args", "named-tuple"})  # pydantic's kinds of lists of fields
_NO_INIT: Final = {"model": {"custom_init": False}}


OUTERMOST: Final = ""
"""Stands among the tags of classes for what is in none: the annotations that a codec was made with."""


class Reading:
    """One look at stored bytes.

    Args:
        changed: The tags of classes that may have changed since they were stored.

    Attributes:
        changed: As given.
        lost: Stored fields that no class has any more, as `Class.field`; filled as they are met.
    """

    __slots__ = ("_validators", "changed", "lost")

    def __init__(self, changed: frozenset[str] = frozenset()) -> None:
        self.changed: frozenset[str] = changed
        self.lost: set[str] = set()
        self._validators: dict[tuple[type, frozenset[str]], SchemaValidator] = {}

    def validator(self, kind: type, kept: Iterable[str]) -> SchemaValidator:
        """Make pydantic's validator of a class with some fields left as they are; once for each of these."""
        key = kind, frozenset(kept)
        if key not in self._validators:
            schema = _shielded(TypeAdapter(kind).core_schema, key[1])
            # Else it would take the class's own validator in place of what the schema says.
            self._validators[key] = SchemaValidator(schema, _use_prebuilt=False)
        return self._validators[key]


def shape_of(tag: str, fields: Mapping[str, Any]) -> bytes:
    """Make four bytes of a class's tag and its fields, their types by name."""
    text = re.sub(" at 0x[0-9a-fA-F]+", "", repr((tag, [*fields.items()])))
    return zlib.crc32(text.encode("utf-8", "backslashreplace")).to_bytes(4, "big")


def fitted(kind: Any, hints: Mapping[str, Any], held: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """Give each field of a class a value of its type.

    Args:
        kind: A model, dataclass or NamedTuple.
        hints: Its fields' types by name.
        held: What was stored, by name.
        reading: Takes note of what is lost.

    Returns:
        The values by name, in the order of the fields: the stored ones as they were if they fit.

    Raises:
        Outgrown: A field has no value that fits, or validators refuse it.
    """
    reading.lost |= {f"{kind.__name__}.{name}" for name in held.keys() - hints.keys()}
    kept = {name: held[name] for name, hint in hints.items() if name in held and fits(held[name], hint)}
    if len(kept) == len(hints):
        return kept
    try:
        return completed(kind, hints, held, kept=kept, reading=reading)
    except ValidationError as error:  # its own text would quote the values, secrets too
        wrong = in_one_line(problems_of(error))
    except PydanticUserError as error:  # a dataclass with types that only the model around it allows
        wrong = error.message.partition(". ")[0]
    raise Outgrown(f"{kind.__name__} has changed since, and what is stored no longer fits it: {wrong}")


def completed(
    kind: Any,
    names: Iterable[str],
    held: Mapping[str, Any],
    *,
    kept: Mapping[str, Any],
    reading: Reading,
    context: object = None,
) -> dict[str, Any]:
    """Have pydantic make the values that are missing, by validating the whole with its fitting fields shielded.

    Args:
        kind: A model, dataclass or NamedTuple.
        names: Its fields.
        held: What was stored, by name.
        kept: What fits of it.
        reading: Keeps the validators.
        context: The validation's `context`, if it needs one.

    Returns:
        The values by name, in the order of the fields; those that were kept as they were.

    Raises:
        ValidationError: It refuses them.
    """
    given: Any = {name: held[name] for name in names if name in held}
    if issubclass(kind, RootModel):
        given = given["root"]
    elif not issubclass(kind, (BaseModel, tuple)):
        given = {name: value for name, value in given.items() if kind.__dataclass_fields__[name].init}
    made = reading.validator(kind, kept).validate_python(given, by_name=True, by_alias=False, context=context)
    return {name: kept[name] if name in kept else getattr(made, name) for name in names}


def _shielded(schema: Any, kept: frozenset[str]) -> Any:
    """Take the validators of some fields out of a class's schema, and its constructor."""
    if schema["type"] == "definitions":  # the class stands among them if it is recursive
        root = schema["schema"].get("schema_ref")
        definitions = [_shielded(one, kept) if one["ref"] == root else one for one in schema["definitions"]]
        return {**schema, "schema": _shielded(schema["schema"], kept), "definitions": definitions}
    if schema["type"] not in _FIELDS:
        if "schema" not in schema:
            return schema
        return {**schema, "schema": _shielded(schema["schema"], kept), **_NO_INIT.get(schema["type"], {})}
    fields, free = schema["fields"], {"schema": core_schema.any_schema()}
    if isinstance(fields, dict):
        shielded: Any = {name: {**field, **free} if name in kept else field for name, field in fields.items()}
    else:
        shielded = [{**field, **free} if field["name"] in kept else field for field in fields]
    return {**schema, "fields": shielded}


# ── does it fit ──


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a value is of a type, without running anybody's code but `isinstance`. What can't be told, fits."""
    try:
        return _fits(value, hint)
    except (RecursionError, TypeError):  # an alias that names itself, as deep as the value; a class for checkers alone
        return True


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is None:
        if isinstance(hint, type):
            return _is_instance(value, hint)
        inner = getattr(hint, "__supertype__", getattr(hint, "__value__", None))  # a NewType, an alias
        return value is None if hint is None else inner is None or _fits(value, inner)
    if origin is typing.Annotated:
        return _fits(value, arguments[0])
    if origin is typing.Union or origin is types.UnionType:
        return any(_fits(value, one) for one in arguments)
    if origin is typing.Literal:
        return any(type(value) is type(one) and value == one for one in arguments)
    if not isinstance(origin, type):  # a generic alias
        return True
    return _is_instance(value, origin) and _parts_fit(value, origin, arguments)


def _parts_fit(value: Any, origin: type, arguments: tuple[Any, ...]) -> bool:
    if origin is tuple and arguments[-1:] != (...,):
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if isinstance(value, dict):
        key, *item = arguments
        return all(_fits(one, key) for one in value) and all(
            _fits(one, hint) for hint in item for one in value.values()
        )
    if type(value) in _STORABLE and isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return all(_fits(one, arguments[0]) for one in value)
    return True


def _is_instance(value: Any, kind: Any) -> bool:
    if is_typeddict(kind):
        hints = get_type_hints(kind)
        return (
            isinstance(value, dict)
            and kind.__required_keys__ <= value.keys() <= hints.keys()
            and all(_fits(one, hints[name]) for name, one in value.items())
        )
    if kind is float or kind is complex:
        return isinstance(value, (int, float, kind))
    if hasattr(kind, "__get_pydantic_core_schema__") and not hasattr(kind, "__pydantic_fields__"):
        return kind not in _STORABLE or isinstance(value, kind)  # no value has a class such as PastDate or EmailStr
    return isinstance(value, kind)
