"""Classes change between a checkpoint and the next attempt: what fits is left alone, the rest is validated or told."""

# tables of releases, one a row

from __future__ import annotations

import dataclasses
from dataclasses import InitVar, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FilePath,
    InstanceOf,
    PrivateAttr,
    RootModel,
    SecretStr,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypeAliasType, TypedDict

from jobkit import Job, StateVersionError, state
from jobkit.codec import Codec
from jobkit.envelope import unseal
from jobkit.errors import InvalidParams, StateCorrupt
from jobkit.jobtype import JobType
from jobkit.kinds import Outgrown
from jobkit.mending import Reading
from tests.rules.kinds import JOB_ID, holding


class Release:
    """The classes of one release: `Item`, and a job whose state holds it."""

    def __init__(self, item: Any, **fields: Any) -> None:
        self.item = item
        self.kind = holding(item)
        self.fields = fields

    def save(self, value: Any) -> tuple[bytes, bytes]:
        """Save a state; also give the shapes of its classes."""
        job: Any = self.kind.cls()
        job.field = value
        stored = unseal(self.kind.seal_state(job, JOB_ID))
        return stored.state, stored.shapes

    def restore(self, saved: tuple[bytes, bytes], tell: Any = None) -> Any:
        """Restore what another release has saved."""
        job: Any = self.kind.restore(b"\x80", saved[0], shapes=saved[1], tell=tell)
        return job.field


def upgraded(old: Any, new: Any, value: Any, tell: Any = None) -> Any:
    """Save under one release, restore under the next."""
    return Release(new).restore(Release(old).save(value), tell)


def named_item(made: Any) -> Any:
    """Give a class the name that all have here."""
    made.__name__ = made.__qualname__ = "Item"
    return made


# ── what fits is left alone ──


DOUBLED: list[int] = []


class Doubling(BaseModel):
    n: int = 0

    @field_validator("n")
    @classmethod
    def double(cls, n: int) -> int:
        DOUBLED.append(n)
        return n * 2


@named_item
class DoublingAndMore(Doubling):
    more: str = "new"
    seen: list[int] = []

    @model_validator(mode="after")
    def add(self) -> DoublingAndMore:
        self.seen.append(self.n)
        self.n += 100
        return self


def test_validators_of_fields_that_fit_do_not_run_when_others_are_added() -> None:
    """A class that gains a field takes its default; a validator that doubles another does not double it again."""
    old = named_item(type("Old", (Doubling,), {"__module__": __name__}))
    value = old(n=2)
    assert value.n == 4
    DOUBLED.clear()
    again = upgraded(old, DoublingAndMore, value)
    assert (type(again), again.n, again.more) == (DoublingAndMore, 4, "new")
    assert again.model_fields_set == {"n"}
    assert upgraded(DoublingAndMore, DoublingAndMore, again) == again
    assert DOUBLED == []


def test_a_file_that_is_gone_does_not_matter(tmp_path: Path) -> None:
    """A type that looks at the world is not asked again, whether its class has changed or not."""
    path = tmp_path / "there"
    path.touch()
    old = create_model("Item", path=(FilePath, ...))
    new = create_model("Item", path=(FilePath, ...), more=(int, 1))
    value: Any = old(path=path)
    path.unlink()
    assert upgraded(old, old, value).path == path
    again = upgraded(old, new, value)
    assert (again.path, again.more) == (path, 1)


def test_post_init_does_not_run_on_what_fits() -> None:
    """What `__post_init__` does to stored fields is undone, as it was done when they were made."""

    @dataclass
    class Item:
        parts: list[int]

    old = Item

    @dataclass
    class Item:  # type: ignore[no-redef]
        parts: list[int]
        scale: InitVar[int] = 1
        more: int = 0
        total: int = field(init=False, default=-1)

        def __post_init__(self, scale: int) -> None:
            self.parts = [*self.parts, 99]
            self.total = len(self.parts) * scale

    again = upgraded(old, Item, old([1, 2]))
    assert dataclasses.asdict(again) == {"parts": [1, 2], "more": 0, "total": 3}
    assert dataclasses.asdict(upgraded(Item, Item, again)) == dataclasses.asdict(again)


def test_a_class_may_move_and_its_fields_change_places() -> None:
    """Neither another module nor another order of fields is a change of any value."""
    old = create_model("Item", __module__="before", a=(Doubling, ...), b=(int, ...))
    new = create_model("Item", __module__="after", b=(int, ...), a=(Doubling, ...))
    value: Any = old(a=Doubling.model_construct(n=3), b=1)
    again = upgraded(old, new, value)
    assert (again.a.n, again.b) == (3, 1)


# ── what no longer fits is validated ──


class Before(BaseModel):
    size: int = 3
    names: list[str] = ["b", "a"]
    path: str = "a/b"


def release(fields: dict[str, Any]) -> Any:
    """Make the class `Item` with fields of other types."""
    defaults = Before()
    all_ = {"size": int, "names": list[str], "path": str} | fields
    return create_model("Item", **{name: (hint, getattr(defaults, name)) for name, hint in all_.items()})  # type: ignore[call-overload]


def test_fields_of_another_type_are_converted() -> None:
    """A stored value that pydantic can read as the declared type becomes one of that type."""
    old, new = release({}), release({"names": set[str], "path": Path, "size": str | bool | None})
    with pytest.raises(StateVersionError, match="size"):
        upgraded(old, new, old())
    new = release({"names": tuple[str, ...], "path": Path})
    again = upgraded(old, new, old(size=5))
    assert (again.size, again.names, again.path) == (5, ("b", "a"), Path("a/b"))
    assert again.model_fields_set == {"size"}


@pytest.mark.parametrize(
    "fields",
    [
        {"size": int | None},
        {"size": float},
        {"size": Annotated[int, Field(gt=100)]},
        {"size": InstanceOf[int]},
        {"names": list[Any]},
        {"names": Annotated[list[Annotated[str, Field(min_length=5)]], "note"]},
        {"path": str | Path},
        {"path": object},
    ],
    ids=str,
)
def test_fields_of_a_wider_type_are_left_alone(fields: dict[str, Any]) -> None:
    """Where the stored value is of the new type, too, it stays, whatever else the class would ask of a new one."""
    old = release({})
    again = upgraded(old, release(fields), old())
    assert (again.size, again.names, again.path) == (3, ["b", "a"], "a/b")
    assert type(again.size) is int


def test_what_cannot_be_converted_is_told_by_field_and_without_its_value() -> None:
    """G10: the job is held for a migration, not for damage; the message names class and field, and quotes no value."""
    old = create_model("Item", key=(str, ...))
    new = create_model("Item", key=(int, ...), other=(int, ...))
    value: Any = old(key="s3cret")
    with pytest.raises(
        StateVersionError, match=r"Item has changed .*key: Input should be a valid integer.*; other: Field required"
    ) as caught:
        upgraded(old, new, value)
    assert "s3cret" not in str(caught.value)
    assert caught.value.code == "state_version"


def test_validators_run_for_what_they_are_for() -> None:
    """A field that is validated meets the validators that its class has for it, and those for the whole."""

    class Item(BaseModel):
        size: int
        limit: int = 10

        @field_validator("limit")
        @classmethod
        def tenfold(cls, limit: int) -> int:
            return limit * 10

        @model_validator(mode="after")
        def check(self) -> Item:
            if self.size > self.limit:
                raise ValueError("too large")
            return self

    old = create_model("Item", size=(int, ...), limit=(str, "5"))
    assert upgraded(old, Item, old(size=50)).limit == 50
    with pytest.raises(StateVersionError, match="too large"):
        upgraded(old, Item, old(size=51))


# ── every kind of class ──


class OldTuple(NamedTuple):
    a: set[int]
    gone: int


class NewTuple(NamedTuple):
    a: list[int]
    added: str = "new"


@dataclass(frozen=True, slots=True)
class OldSlots:
    a: set[int]
    gone: int


@dataclass(frozen=True, slots=True)
class NewSlots:
    a: list[int]
    added: str = "new"


@pydantic_dataclass(frozen=True)
class NewChecked:
    a: list[int]
    added: str = "new"


class NewFrozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, revalidate_instances="always")
    a: list[int] = Field(alias="other")
    added: str = Field(default="new", validation_alias="s")
    _private: int = PrivateAttr(default=7)


class NewTree(BaseModel):
    a: list[int]
    added: str = "new"
    below: NewTree | None = None


NEWER: list[Any] = [*map(named_item, (NewTuple, NewSlots, NewChecked, NewFrozen, NewTree))]
OLDER: list[Any] = [*map(named_item, (OldTuple, OldSlots)), create_model("Item", a=(set[int], ...), gone=(int, ...))]


@pytest.mark.parametrize("new", NEWER, ids=["NamedTuple", "slots", "pydantic dataclass", "frozen", "recursive"])
@pytest.mark.parametrize("old", OLDER, ids=["NamedTuple", "slots", "model"])
def test_every_kind_of_class_may_gain_lose_and_retype_fields(old: Any, new: Any) -> None:
    """Of a model, a dataclass and a NamedTuple alike, and even if one becomes the other; what is lost is told, once."""
    told: list[list[str]] = []
    again = upgraded(list[old], list[new], [old(a={n}, gone=n) for n in range(100)], told.append)
    assert {type(one) for one in again} == {new}
    assert [(one.a, one.added) for one in again] == [([n], "new") for n in range(100)]
    assert told == [["Item.gone"]]
    if new is NewFrozen:
        assert {one._private for one in again} == {7}
        assert {frozenset(one.model_fields_set) for one in again} == {frozenset({"a"})}


def test_a_root_may_become_another() -> None:
    """A RootModel's only field is its root."""
    old, new = (create_model("Item", __base__=RootModel[hint]) for hint in (set[int], list[int]))  # type: ignore[valid-type]
    assert upgraded(old, new, old({1})).root == [1]
    old = create_model("Item", __base__=RootModel[str])
    with pytest.raises(StateVersionError, match="valid list"):
        upgraded(old, new, old("x"))


def test_a_recursive_class_is_mended_at_every_level() -> None:
    """Each object is mended by itself, from the inside out."""

    class Item(BaseModel):
        n: str = "0"
        below: Item | None = None

    old = Item

    class Item(BaseModel):  # type: ignore[no-redef]
        n: int = 0
        more: int = 1
        below: Item | None = None

    again = upgraded(old, Item, old(n="1", below=old(n="2", below=old())))
    assert again.model_dump() == {
        "n": 1,
        "more": 1,
        "below": {"n": 2, "more": 1, "below": {"n": 0, "more": 1, "below": None}},
    }


def test_extra_fields_and_fields_change_places() -> None:
    """What a class no longer declares is an extra field if it takes any, and the reverse; else it is told as lost."""
    told: list[list[str]] = []
    open_ = ConfigDict(extra="allow")
    old: Any = create_model("Item", __config__=open_, a=(int, ...), gone=(int, ...))
    new: Any = create_model("Item", __config__=open_, a=(int, ...), added=(int, 0))
    shut: Any = create_model("Item", a=(int, ...), added=(int, 0))
    value = old(a=1, gone=2, added=3, x=4)
    again = upgraded(old, new, value, told.append)
    assert (again.a, again.added, again.model_extra) == (1, 3, {"gone": 2, "x": 4})
    assert again.model_fields_set == {"a", "added", "gone", "x"}
    assert told == []
    again = upgraded(old, shut, value, told.append)
    assert (again.model_dump(), again.model_extra) == ({"a": 1, "added": 3}, None)
    assert told == [["Item.gone", "Item.x"]]
    assert upgraded(new, create_model("Item", a=(int, ...), added=(int, 0)), new(a=1, x=4)).model_extra is None


def test_types_behind_names_are_watched() -> None:
    """A TypedDict, an alias and a NewType have no shape of their own: what they stand for counts with the field."""

    def row(hint: Any) -> Any:
        return TypedDict("Row", {"n": hint})  # type: ignore[operator]

    def alias(hint: Any) -> Any:
        return TypeAliasType("Alias", hint)

    for wrap, value in ((row, {"n": "1"}), (alias, "1")):
        old, new = wrap(str), wrap(int)
        found = Release(new).restore(Release(old).save(value))
        assert found == ({"n": 1} if wrap is row else 1)
        item, newer = create_model("Item", field=(old, ...)), create_model("Item", field=(new, ...))
        assert upgraded(item, newer, item(field=value)).field == found
    assert Release(row(str)).kind.shapes == Release(row(str)).kind.shapes
    assert Release(alias("list[Alias]")).kind.shapes  # one that can't be resolved is taken as it is


def test_validators_are_built_once() -> None:
    """Ten thousand objects of a class that has changed cost ten thousand validations, not as many schemas."""
    old, new = create_model("Item", n=(str, ...)), create_model("Item", n=(int, ...))
    reading = Reading(frozenset({"Item"}))
    values = Codec([new]).unpack(Codec([old]).pack([old(n="5")] * 10_000), reading)
    assert values == [new(n=5)] * 10_000
    assert len(reading._validators) == 1


# ── what is gone ──


def test_a_class_or_member_that_is_gone_is_no_damage() -> None:
    """The bytes are sound: the job waits for a build that knows them, and a person is not told to restore a backup."""
    old, new = Enum("Item", "FIRST SECOND"), Enum("Item", "SECOND")
    assert upgraded(old, new, old.SECOND) is new.SECOND  # type: ignore[attr-defined]
    for later, value, match in ((new, old.FIRST, "has no member 'FIRST'"), (int, old.FIRST, "the class 'Item' is not")):  # type: ignore[attr-defined]
        with pytest.raises(StateVersionError, match=match) as caught:
            upgraded(old, later, value)
        assert "damaged" not in str(caught.value)
    assert issubclass(Outgrown, StateCorrupt)  # for whoever reads bytes without a job


# ── the job's own fields ──


def job_type(version: int = 1, **fields: Any) -> JobType:
    """Make the job `Item`: of each field its type and either a default or state."""

    async def run(self: Any, ctx: Any) -> None: ...

    hints = {name: hint for name, (hint, _) in fields.items()}
    body = {name: default for name, (_, default) in fields.items() if default is not ...}
    cls = type("Item", (Job,), {"__annotations__": hints, "__module__": __name__, "run": run, **body})
    return JobType(name="item", cls=cls, version=version)


def again(old: JobType, new: JobType, given: dict[str, Any], saved: dict[str, Any], tell: Any = None) -> Any:
    """Store a job, and restore it a release later."""
    job: Any = old.create(given)
    for name, value in saved.items():
        setattr(job, name, value)
    stored = unseal(old.seal_state(job, JOB_ID))
    return new.restore(old.pack_params(job), stored.state, version=old.version, shapes=stored.shapes, tell=tell)


def test_state_may_be_retyped() -> None:
    """A state field of another type is converted, or the error names it; the fields beside it stay as they are."""
    old = job_type(n=(int, state(0)), odd=(int, state(0)), names=(list[str], state([])))
    new = job_type(n=(str, state("")), odd=(int, state(0)), names=(set[str], state(set())))
    with pytest.raises(
        StateVersionError, match="'item' does not fit this build's class: n: Input should be a valid string"
    ):
        again(old, new, {}, {"n": 3, "names": ["a"]})
    new = job_type(n=(float, state(0.0)), odd=(int, state(0)), names=(set[str], state(set())))
    restored = again(old, new, {}, {"n": 3, "names": ["a"]})
    assert (restored.n, restored.names) == (3, {"a"})


def test_state_that_never_fitted_is_kept_while_its_class_stays() -> None:
    """A handler may put anything into its state: no validation stands between a checkpoint and the next attempt."""
    old = job_type(n=(int, state(0)), item=(Doubling | None, state(None)))
    assert again(old, old, {}, {"n": "three"}).n == "three"
    assert (
        again(old, job_type(2, n=(int, state(0)), item=(Doubling | None, state(None))), {}, {"n": "three"}).n == "three"
    )


def test_lost_fields_of_the_job_are_told() -> None:
    """What is dropped is named, parameters and state alike; nothing is told of a job that lost nothing."""
    told: list[list[str]] = []
    old = job_type(a=(int, ...), b=(int, 2), n=(int, state(0)), m=(int, state(0)))
    new = job_type(a=(int, ...), n=(int, state(0)), k=(list[int], state([])))
    restored = again(old, new, {"a": 1}, {"m": 5}, told.append)
    assert restored.model_dump() == {"a": 1, "n": 0, "k": []}
    assert told == [["b", "m"]]
    again(old, old, {"a": 1}, {"m": 5}, told.append)
    assert told == [["b", "m"]]


def test_parameters_are_looked_at_when_the_version_was_raised() -> None:
    """A parameter of another type is converted then, or refused by name; others, and secrets, stay as they are."""
    old = job_type(n=(str, ...), path=(FilePath | str, "a"), key=(SecretStr, SecretStr("s3cret")))
    new = job_type(2, n=(int, ...), path=(FilePath, ...), key=(SecretStr, ...))
    restored = again(old, job_type(2, n=(int, ...), path=(str, "b"), key=(SecretStr, ...)), {"n": "5"}, {})
    assert (restored.n, restored.path, restored.key.get_secret_value()) == (5, "a", "s3cret")
    with pytest.raises(InvalidParams) as refused:
        again(old, new, {"n": "x"}, {})
    assert refused.value.fields.keys() == {"n", "path"}
    assert again(old, job_type(1, n=(int, ...), path=(str, "b"), key=(SecretStr, ...)), {"n": "5"}, {}).n == "5"


def test_a_field_may_not_turn_from_parameter_to_state_unseen() -> None:
    """What was given as a parameter is not taken for state: it is told as lost, and the state starts anew."""
    told: list[list[str]] = []
    restored = again(job_type(n=(int, 1)), job_type(n=(int, state(0))), {"n": 5}, {}, told.append)
    assert (restored.n, told) == (0, [["n"]])
