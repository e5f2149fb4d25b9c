"""G3 as a property: whatever classes a job declares, and whatever values it holds, its state comes back as it was."""

from __future__ import annotations

import itertools
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import make_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Literal, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ConfigDict, RootModel, SecretStr, create_model
from pydantic_core import TzInfo
from typing_extensions import TypedDict

from tests.rules.kinds import ALL_CHANGED, Flags, Level, Plain, Text, holding, same, through


class Sort(NamedTuple):
    """A declared type, and how to draw values of it.

    Attributes:
        hint: The type.
        values: Values of it.
        hashable: Whether all are.
    """

    hint: Any
    values: st.SearchStrategy[Any]
    hashable: bool = True


ZONES = st.sampled_from([UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York"), TzInfo(3600), TzInfo(-60)])
OFFSETS = st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)), st.text("CET];#~[", max_size=4))
NUMBERS = itertools.count()

SIMPLE = [
    Sort(None, st.none()),
    Sort(bool, st.booleans()),
    Sort(int, st.integers() | st.integers(2**63 - 2, 2**64 + 2)),
    Sort(float, st.floats(), hashable=False),  # a NaN is not found again in a set
    Sort(float, st.floats(allow_nan=False)),
    Sort(complex, st.complex_numbers(), hashable=False),
    Sort(str, st.text(st.characters(exclude_categories=())) | st.text()),
    Sort(bytes, st.binary()),
    Sort(Decimal, st.decimals(), hashable=False),  # a signalling NaN is not
    Sort(Decimal, st.decimals(allow_nan=False)),
    Sort(Fraction, st.fractions()),
    Sort(datetime, st.datetimes(timezones=st.none() | ZONES | OFFSETS)),
    Sort(time, st.times(timezones=st.none() | st.just(UTC) | OFFSETS)),
    Sort(date, st.dates()),
    Sort(timedelta, st.timedeltas()),
    Sort(UUID, st.uuids()),
    Sort(Path, st.builds(Path, st.text("ab/. \udcff", min_size=1))),
    Sort(SecretStr, st.builds(SecretStr, st.text())),
    Sort(IPv4Address | IPv6Address, st.ip_addresses()),
    Sort(Text | Level | Flags | Plain, st.sampled_from([*Text, *Level, *Plain, Flags.A | Flags.C])),
    Sort(Literal["a", 1, Level.HIGH], st.sampled_from(["a", 1, Level.HIGH])),
    Sort(re.Pattern[str], st.builds(re.compile, st.just("a|b"), st.sampled_from([re.IGNORECASE, re.ASCII]))),
]
named_tuple: Any = NamedTuple
typed_dict: Any = TypedDict  # in their own names a type checker wants to see their fields
KEYS = ["first", "second", "copy_", "kind"]


def containers(inner: st.SearchStrategy[Sort]) -> st.SearchStrategy[Sort]:
    """Make a type out of others."""
    hashable = inner.filter(lambda one: one.hashable)
    several = st.lists(inner, min_size=1, max_size=3)
    deques = st.sampled_from([None, 9])
    return st.one_of(
        inner.map(lambda one: Sort(of(list, one.hint), few(one), hashable=False)),
        inner.map(lambda one: Sort(of(deque, one.hint), st.builds(deque, few(one), deques), hashable=False)),
        inner.map(lambda one: Sort(of(tuple, one.hint, ...), few(one).map(tuple), one.hashable)),
        several.map(lambda all_: Sort(of(tuple, *hints(all_)), st.tuples(*values(all_)), every(all_))),
        several.map(lambda all_: Sort(union(hints(all_)), st.one_of(values(all_)), every(all_))),
        inner.map(lambda one: Sort(union([one.hint, Any]), st.none() | one.values, one.hashable)),
        hashable.map(lambda one: Sort(of(set, one.hint), few(one).map(set), hashable=False)),
        hashable.map(lambda one: Sort(of(frozenset, one.hint), few(one).map(frozenset))),
        hashable.map(lambda one: Sort(of(Counter, one.hint), few(one).map(Counter), hashable=False)),
        st.tuples(hashable, inner, st.sampled_from(MAPPINGS)).map(lambda all_: mapping(*all_)),
        records(inner),
    )


def of(container: Any, *parts: Any) -> Any:
    """Make the type of a container of others."""
    return container[parts if len(parts) > 1 else parts[0]]


def few(one: Sort) -> st.SearchStrategy[list[Any]]:
    """Draw a few values."""
    return st.lists(one.values, max_size=3)


def hints(all_: list[Sort]) -> list[Any]:
    """Tell the types."""
    return [one.hint for one in all_]


def values(all_: list[Sort]) -> list[st.SearchStrategy[Any]]:
    """Tell how to draw from each."""
    return [one.values for one in all_]


def every(all_: list[Sort]) -> bool:
    """Whether all are hashable."""
    return all(one.hashable for one in all_)


def union(all_: list[Any]) -> Any:
    """Make a type that is any of several, or None."""
    whole: Any = Literal["neither"] | None
    for one in all_:
        whole = whole | one
    return whole


MAPPINGS: list[tuple[Any, Callable[[Any], Any]]] = [
    (dict, dict),
    (OrderedDict, OrderedDict),
    (dict, lambda pairs: defaultdict(list, pairs)),
    (dict, lambda pairs: defaultdict(None, pairs)),
]


def mapping(key: Sort, item: Sort, how: tuple[Any, Callable[[Any], Any]]) -> Sort:
    """Make a dict of one class or another."""
    pairs = st.lists(st.tuples(key.values, item.values), max_size=3)
    return Sort(of(how[0], key.hint, item.hint), pairs.map(how[1]), hashable=False)


@st.composite
def records(draw: st.DrawFn, inner: st.SearchStrategy[Sort]) -> Sort:
    """Make a class of several fields: a model of one kind or another, a dataclass, a named tuple, a TypedDict."""
    fields = draw(st.dictionaries(st.sampled_from(KEYS), inner, min_size=1))
    declared = {name: one.hint for name, one in fields.items()}
    each = {name: one.values for name, one in fields.items()}
    full, hashable = st.fixed_dictionaries(each), every(list(fields.values()))
    name = f"Made{next(NUMBERS)}"
    made: Any
    match draw(st.sampled_from(["model", "partial", "open", "root", "dataclass", "slots", "tuple", "typed dict"])):
        case "dataclass":
            made = make_dataclass(name, declared.items())
            return Sort(made, full.map(lambda one: made(**one)), hashable=False)
        case "slots":
            made = make_dataclass(name, declared.items(), frozen=True, slots=True)
            return Sort(made, full.map(lambda one: made(**one)), hashable)
        case "tuple":
            made = named_tuple(name, declared.items())
            return Sort(made, full.map(lambda one: made(**one)), hashable)
        case "typed dict":
            made = typed_dict(name, declared)
            return Sort(made, full, hashable=False)
        case "root":
            made = create_model(name, __base__=of(RootModel, next(iter(declared.values()))))
            return Sort(made, next(iter(each.values())).map(made.model_construct), hashable=False)
        case kind:
            config = ConfigDict(extra="allow" if kind == "open" else "ignore")
            optional: Any = {key: (union([hint]), None) for key, hint in declared.items()}
            made = create_model(name, __config__=config, **optional)
            some = st.fixed_dictionaries({}, optional=each) if kind == "partial" else full
            more = st.fixed_dictionaries({"beside": st.one_of(*each.values())}) if kind == "open" else st.just({})
            drawn = st.builds(lambda fields, extra: made.model_construct(**fields, **extra), some, more)
            return Sort(made, drawn, hashable=False)


PARTS = st.recursive(st.sampled_from(SIMPLE), containers, max_leaves=6)
SORTS = PARTS | records(PARTS) | records(PARTS | records(PARTS))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_any_state_of_any_class_comes_back(data: st.DataObject) -> None:
    """Equal, of the same type at every level, with the same bytes; and so if its classes are taken for changed."""
    sort = data.draw(SORTS)
    kind = holding(sort.hint)
    for _ in range(3):
        value = data.draw(sort.values)
        again = through(kind, kind, field=value, anything=[value])
        assert same(again.field, value)
        assert same(again.anything, [value])
        assert same(through(kind, kind, ALL_CHANGED, field=value).field, value)
