"""Jobs as users define them: two kinds of fields, refusals that say what to write, bytes that come back as the job."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID, uuid4

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AliasChoices,
    AliasGenerator,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    Secret,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from jobkit.codec import Codec
from jobkit.definition import Job, state
from jobkit.errors import (
    FrozenParameter,
    InvalidJob,
    InvalidOutput,
    InvalidParams,
    SerializationError,
    StateCorrupt,
)
from jobkit.jobtype import JobType
from jobkit.model import Priority

T = TypeVar("T")
K = TypeVar("K")


def type_of(cls: Any, **options: Any) -> Any:
    """Make a job type, as the decorator would."""
    return JobType(name=options.pop("name", "tested"), cls=cls, **options)


class Report(BaseModel):
    copied: int


class Copy(Job[Report]):
    """Copy files between folders.

    Slowly.
    """

    sources: list[Path]
    destination: Path = Path("out")
    done: int = state(0)
    files: list[str] = state(default_factory=list)
    last: str | None = state(None)
    _buffer: bytearray = PrivateAttr(default_factory=bytearray)

    async def run(self, ctx: Any) -> Report:
        return Report(copied=self.done)


class Later(Job["Outcome"]):
    """Its types are defined below it."""

    first: Thing
    things: list[Thing] = state(default_factory=list)

    async def run(self, ctx: Any) -> Outcome:
        return Outcome(ok=True)


class Thing(BaseModel):
    size: int


class Outcome(BaseModel):
    ok: bool


COPY = type_of(Copy)
AnyCopy: Any = Copy


# ── two kinds of fields ──


@pytest.mark.parametrize("name", ["done", "files", "last"])
def test_a_constructor_refuses_state(name):
    """State is never accepted from a caller: not by the constructor, not by validation, not as JSON."""
    for make in (
        lambda: AnyCopy(sources=[], **{name: 1}),
        lambda: Copy.model_validate({"sources": [], name: 1}),
        lambda: Copy.model_validate(MappingProxyType({"sources": [], name: 1})),
        lambda: Copy.model_validate_json(f'{{"sources": [], "{name}": 1}}'),
    ):
        with pytest.raises(ValidationError, match=f"{name} is state"):
            make()


def test_state_is_refused_by_its_alias_too():
    """An alias, however it came about, is no way round."""

    class Aliased(Job):
        model_config = ConfigDict(
            alias_generator=AliasGenerator(
                validation_alias=lambda name: AliasChoices(f"x-{name}", AliasPath(f"deep-{name}", "value"))
            ),
            validate_by_name=True,
        )
        size: int
        done: int = state(0)

        async def run(self, ctx: Any) -> None: ...

    kind = type_of(Aliased)
    assert kind.create({"x-size": 1}).done == 0
    for key, value in {"done": 5, "x-done": 5, "deep-done": {"value": 5}}.items():
        with pytest.raises(ValidationError, match="done is state"):
            Aliased.model_validate({"size": 1, key: value})
        with pytest.raises(InvalidParams) as refused:
            kind.create({"size": 1, key: value})
        assert list(refused.value.fields) == [key]


def test_state_is_refused_from_attributes():
    """A model that reads attributes does not read state from them."""

    class Row(Job):
        model_config = ConfigDict(from_attributes=True)
        size: int
        done: int = state(0)

        async def run(self, ctx: Any) -> None: ...

    @dataclass
    class Record:
        size: int = 1
        done: int = 7

    with pytest.raises(ValidationError, match="done is state"):
        Row.model_validate(Record())


def test_state_is_assigned_after_construction():
    """A new job starts from its defaults, each with its own copy of a mutable one, and its state may be assigned."""

    class Listing(Job):
        names: list[str] = state(["a"])

        async def run(self, ctx: Any) -> None: ...

    one, other = Listing(), Listing()
    one.names.append("b")
    assert other.names == ["a"]
    other.names = []
    assert other.names == []


def test_state_needs_a_start():
    """A state without a default, or with two, is refused where it is written."""
    declare: Any = state
    for wrong in (declare, lambda: declare(...), lambda: declare(0, default_factory=int)):
        with pytest.raises(InvalidJob, match=r"write state\(0\)"):
            wrong()


def test_state_under_validated_assignment():
    """A model that validates assignments checks state as it is assigned, and takes that for no caller's input."""

    class Checked(Job):
        model_config = ConfigDict(validate_assignment=True)
        size: int
        done: int = state(0)

        async def run(self, ctx: Any) -> None: ...

    kind = type_of(Checked)
    checked = Checked(size=1)
    checked.size = 2
    kind.bind(checked)
    checked.done = 3
    assert (checked.size, checked.done) == (2, 3)
    with pytest.raises(ValidationError):
        checked.done = "many"  # type: ignore[assignment]
    with pytest.raises(FrozenParameter):
        checked.size = 4
    with pytest.raises(ValidationError, match="is state"):
        Checked.model_validate({"size": 1, "done": 2})


class Mixin(BaseModel):
    seen: int = state(0)


class Generic_(Job[list[T]], Mixin, Generic[T]):  # noqa: N801
    items: list[T]
    at: Annotated[int, Field(ge=0)] = state(0)

    async def run(self, ctx: Any) -> list[T]:
        return self.items


class Floats(Generic_[float]):
    factor: int = 2


@pytest.mark.parametrize("cls", [Generic_, Floats, Generic_[int]])
def test_state_survives_inheritance(cls):
    """State stays state in mixins, generics, subclasses and under Annotated."""
    kind = type_of(cls)
    assert not {"seen", "at"} & kind.schema["properties"].keys()
    with pytest.raises(InvalidParams) as refused:
        kind.create({"items": [1], "seen": 1, "at": 2})
    assert refused.value.fields.keys() == {"seen", "at"}
    assert msgpack.unpackb(kind.pack_state(cls(items=[1]))) == {"seen": 0, "at": 0}


def test_a_job_may_name_later_types():
    """A class whose fields and output are defined after it works once they are."""
    kind = type_of(Later)
    later = kind.create({"first": {"size": 1}})
    later.things = [Thing(size=2)]
    again = kind.restore(kind.pack_params(later), kind.pack_state(later))
    assert again == later
    assert type(again.things[0]) is Thing
    assert kind.output is Outcome
    assert list(kind.schema["properties"]) == ["first"]
    assert list(kind.schema["$defs"]) == ["Thing"]


def test_an_output_that_is_nowhere_is_found_before_the_job_runs():
    """An output type that can't be resolved is refused when a job is packed, not when it has run for an hour."""

    class Lost(Job["Nowhere"]):  # type: ignore[name-defined]
        async def run(self, ctx: Any) -> Any: ...

    kind = type_of(Lost)
    with pytest.raises(InvalidJob, match=f"'Nowhere' is not defined; define it at the top level of {__name__}"):
        kind.pack_params(Lost())


def test_parameters_freeze_when_bound():
    """After dispatch a parameter can't be assigned or deleted, and the error points to state(); state still can be."""
    work = Copy(sources=[])
    work.destination = Path("elsewhere")
    COPY.bind(work)
    work.done = 1
    with pytest.raises(FrozenParameter, match=r"destination: \.\.\. = state\(") as frozen:
        work.destination = Path("nowhere")
    assert (frozen.value.job, frozen.value.field) == ("Copy", "destination")
    assert isinstance(frozen.value, AttributeError)
    with pytest.raises(FrozenParameter):
        del work.destination
    assert work.destination == Path("elsewhere")
    free = work.model_copy()
    free.destination = Path("free")
    assert (free.destination, free.done) == (Path("free"), 1)


def test_validators_may_assign_parameters():
    """An after-validator that mends a parameter works: they freeze at dispatch, not before."""

    class Mended(Job):
        size: int

        @model_validator(mode="after")
        def _mend(self) -> Mended:
            self.size = max(self.size, 1)
            return self

        async def run(self, ctx: Any) -> None: ...

    assert Mended(size=-3).size == 1


@pytest.mark.parametrize("hook", ["on_resume", "on_pause", "on_cancel"])
def test_hooks_do_nothing_by_default(hook):
    """A job needs no hooks."""
    assert getattr(Copy(sources=[]), hook)(None) is None
    assert Copy(sources=[]).on_failure(None, None) is None


def test_copies_are_free():
    """Pickled, deep and shallow copies of a bound job are equal to it, and not bound themselves."""
    work = Copy(sources=[Path("a")])
    COPY.bind(work)
    work.done = 2
    for made in (pickle.loads(pickle.dumps(work)), copy.copy(work), copy.deepcopy(work)):
        assert made == work
        made.sources = []
    assert work.sources == [Path("a")]


# ── what can't work is refused ──


def _refused(match: str, cls: Any, **options: Any) -> None:
    with pytest.raises(InvalidJob, match=match):
        type_of(cls, **options)


def test_what_is_no_job_class_is_refused():
    """A function, another class and Job itself are refused with the line to write."""

    def function(ctx: Any) -> None: ...

    class Plain:
        async def run(self, ctx: Any) -> None: ...

    _refused(r"@job decorates a class.*write class", function)
    _refused(r"write class Plain\(Job\[Result\]\)", Plain)
    _refused("not derived from Job", Job)


def test_handlers_that_cannot_be_called_are_refused():
    """run() must be there, take a context, and return instead of yielding; hooks likewise."""

    class Missing(Job): ...

    class NoContext(Job):
        async def run(self) -> None: ...  # type: ignore[override]

    class TooMany(Job):
        def run(self, ctx: Any, other: Any) -> None: ...  # type: ignore[override]

    class KeywordOnly(Job):
        def run(self, *, ctx: Any) -> None: ...  # type: ignore[override]

    class Static(Job):
        @staticmethod
        def run(ctx: Any) -> None: ...

    class Stream(Job):
        async def run(self, ctx: Any) -> Any:
            yield 1

    class Yielding(Job):
        def run(self, ctx: Any) -> Any:
            yield 1

    class Abstract(Job):
        async def run(self, ctx: Any) -> None: ...

        @abstractmethod
        def part(self) -> None: ...

    class Hooked(Copy):
        def on_failure(self, ctx: Any) -> None: ...  # type: ignore[override]

    _refused(r"define async def run\(self, ctx: JobContext\)", Missing)
    for cls in (NoContext, TooMany, KeywordOnly, Static):
        _refused(r"can't be called as run\(self, ctx\)", cls)
    _refused("is a generator", Stream)
    _refused("is a generator", Yielding)
    _refused("abstract: define part", Abstract)
    _refused(r"on_failure\(self, ctx, failure\)", Hooked)


def test_fields_with_the_names_of_handlers_are_refused():
    """`run` and `on_*` are names of handlers."""

    class Starting(Job):
        on_start: bool = False

        async def run(self, ctx: Any) -> None: ...

    _refused("on_start is a field", Starting)
    with pytest.warns(UserWarning, match="shadows"):

        class Running(Job):
            run: int = 3  # type: ignore[assignment]

    _refused("run is a field", Running)


def test_a_field_cannot_change_its_kind():
    """State that a subclass makes a parameter, or the reverse, would split stored jobs at the wrong place."""

    class ToParameter(Copy):
        done: int = 0

    class Reannotated(Copy):
        done: int  # without a default it is a parameter, though its parent's was state

    class ToState(Copy):
        sources: list[Path] = state(default_factory=list)

    class Kept(Copy):
        done: int = state(5)
        destination: Path = Path("other")

    _refused(r"done is a parameter, in Copy it is state: write done: \.\.\. = state", ToParameter)
    _refused("done is a parameter", Reannotated)
    _refused(r"sources is state, in Copy it is a parameter: write sources: \.\.\. without state", ToState)
    assert type_of(Kept).cls is Kept


def test_an_alias_cannot_be_the_name_of_state():
    """A parameter's alias that is a state field's name would let state in."""

    class Crossed(Job):
        model_config = ConfigDict(validate_by_name=True)
        size: int = Field(alias="done")
        done: int = state(0)

        async def run(self, ctx: Any) -> None: ...

    _refused("'done' names, or is an alias of", Crossed)


def test_configurations_that_break_promises_are_refused():
    """A job refuses unknown parameters, and its state can be assigned."""

    class Loose(Copy):
        model_config = ConfigDict(extra="ignore")

    class Frozen(Copy):
        model_config = ConfigDict(frozen=True)

    class FrozenParameters(Job):
        model_config = ConfigDict(frozen=True)
        size: int

        async def run(self, ctx: Any) -> None: ...

    _refused("extra='ignore'", Loose)
    _refused("leave frozen out", Frozen)
    kind = type_of(FrozenParameters)
    assert kind.restore(kind.pack_params(FrozenParameters(size=2)), None).size == 2


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x00", "x" * 201, " padded", "\u2028", "\ud800", 3, None])
@pytest.mark.parametrize("option", ["name", "queue", "aliases"])
def test_names_that_cannot_be_shown_are_refused(name, option):
    """Names, aliases and queues are 1 to 200 printable characters."""
    _refused("1 to 200 printable", Copy, **{option: (name,) if option == "aliases" else name})


def test_names_may_be_any_other_text():
    """Unicode, spaces inside, dots and slashes are fine."""
    for name in ("x" * 200, "größe", "a b", "media.resize/v2", "作业"):
        assert type_of(Copy, name=name).name == name


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"version": 0}, "from 1 up"),
        ({"version": True}, "from 1 up"),
        ({"version": 1.0}, "from 1 up"),
        ({"priority": "high"}, "Priority.HIGH"),
        ({"priority": 1_000_001}, "an integer within ±1,000,000"),
        ({"aliases": "old"}, r"aliases=\('old_name',\)"),
        ({"aliases": None}, "a tuple of names"),
        ({"aliases": ("a", "a")}, "write each once"),
        ({"aliases": ("tested",)}, "write each once"),
        ({"executor": "process"}, "one of auto, inline, thread"),
        ({"executor": "thread"}, "make run.. a plain def"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, match):
    """Each refusal says what to write instead."""
    _refused(match, Copy, **options)


def test_where_a_job_runs():
    """Async handlers run on the event loop, sync ones in a thread; a wrapper around an async one does not hide it."""

    def passing(function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any) -> Any:
            return function(*args)

        return call

    class Sync(Job):
        def run(self, ctx: Any) -> None: ...

    class Wrapped(Job):
        @passing
        async def run(self, ctx: Any) -> None: ...

    assert (COPY.is_async, COPY.runs_in) == (True, "inline")
    assert (type_of(Sync).is_async, type_of(Sync, executor="thread").runs_in) == (False, "thread")
    assert type_of(Wrapped, executor="inline").is_async
    _refused("make run.. async", Sync, executor="inline")


def test_the_description_is_the_first_line_of_its_own_docstring():
    """Not that of a parent, nor of Job."""

    class Silent(Copy): ...

    assert COPY.description == "Copy files between folders."
    assert type_of(Silent).description is None
    assert type_of(Silent, description="Given.").description == "Given."


def test_defaults_of_a_job_type():
    """A decorated class needs no options."""
    assert (COPY.version, COPY.aliases, COPY.resumable, COPY.queue) == (1, (), True, "default")
    assert (COPY.priority, COPY.executor) == (Priority.NORMAL, "auto")
    with pytest.raises(AttributeError):
        COPY.version = 2


# ── schemas ──


def test_schemas_hold_no_state():
    """Neither the schema nor its definitions speak of state, at any depth; changing an answer changes nothing."""

    class OnlyInState(BaseModel):
        inner: int

    class Nested(Job[list[Report]]):
        work: Copy
        rest: list[OnlyInState] = state(default_factory=list)
        call: Any = state(None)

        async def run(self, ctx: Any) -> list[Report]:
            return []

    kind = type_of(Nested)
    assert kind.schema["$defs"].keys() == {"Copy"}
    assert kind.schema["$defs"]["Copy"]["properties"].keys() == {"sources", "destination"}
    assert "done" not in str(kind.schema)
    assert "rest" not in str(kind.schema)
    assert kind.schema["required"] == ["work"]
    assert kind.schema["additionalProperties"] is False
    kind.schema.clear()
    kind.output_schema.clear()
    assert kind.schema["title"] == "Nested"
    assert kind.output_schema["items"] == {"$ref": "#/$defs/Report"}


def test_a_type_without_a_schema_is_told():
    """A parameter or an output that pydantic or JSON can't say is an InvalidJob, not an internal error."""

    class Calling(Job):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        call: memoryview

        async def run(self, ctx: Any) -> None: ...

    class Returning(Job[Decimal | memoryview]):
        async def run(self, ctx: Any) -> Any: ...

    class Schemaless(Job[Callable[[], int]]):
        async def run(self, ctx: Any) -> Any: ...

    with pytest.raises(InvalidJob, match="the parameters of 'tested' have no JSON schema"):
        type_of(Calling).schema  # noqa: B018
    with pytest.raises(
        InvalidJob, match=r"can't be checked: Unable to generate .*memoryview'>; declare a pydantic model"
    ):
        type_of(Returning).output_schema  # noqa: B018
    with pytest.raises(InvalidJob, match="the output of 'tested' has no JSON schema"):
        type_of(Schemaless).output_schema  # noqa: B018


# ── input ──


def test_create_tells_every_problem_by_its_path():
    """One answer names all fields that are wrong, by dotted path: values, unknown names, state, missing."""
    with pytest.raises(InvalidParams) as refused:
        type_of(Copy, name="file_copy").create({"sources": ["a", 3], "destinaton": "b", "done": 3, "zzz": 1})
    fields = refused.value.fields
    assert refused.value.name == "file_copy"
    assert fields.keys() == {"sources.1", "destinaton", "done", "zzz"}
    assert fields["destinaton"] == "is no parameter of 'file_copy': did you mean destination?"
    assert fields["zzz"] == "is no parameter of 'file_copy': it takes sources, destination"
    assert fields["done"] == "is state: a job starts from its default; leave done out"
    with pytest.raises(InvalidParams) as refused:
        COPY.create({})
    assert refused.value.fields == {"sources": "Field required"}


@pytest.mark.parametrize("params", [None, [], "sources", 3, {1: 2}])
def test_create_refuses_what_is_no_mapping(params):
    """Any JSON may come from outside."""
    with pytest.raises(InvalidParams):
        COPY.create(params)


class Login(Job):
    user: str
    password: SecretStr = Field(min_length=3)
    keys: dict[str, list[SecretStr]] = Field(default_factory=dict)
    pin: str = Field(default="0000", json_schema_extra={"writeOnly": True})
    code: Secret[str] | None = None

    @field_validator("password", mode="before")
    @classmethod
    def _tell(cls, value: Any) -> Any:
        if value == "s3cr3t":
            raise ValueError(f"{value} is too easy")
        return value

    @model_validator(mode="before")
    @classmethod
    def _tell_all(cls, data: Any) -> Any:
        if data.get("user") == "root":
            raise ValueError(f"not {data}")
        return data

    async def run(self, ctx: Any) -> None: ...


def test_secrets_are_never_echoed():
    """Neither message, fields nor a chained exception hold a secret, even if a user's validator quotes it."""
    kind = type_of(Login)
    inputs: list[dict[str, Any]] = [
        {"user": "u", "password": "s3cr3t"},
        {"user": "u", "password": "xy", "pin": ["hunter2"]},
        {"user": "root", "password": "s3cr3t", "pin": "hunter2", "keys": {"a": ["hunter3", SecretStr("hunter4")]}},
        {"user": "root", "code": Secret("hunter5")},
    ]
    for params in inputs:
        with pytest.raises(InvalidParams) as refused:
            kind.create(params)
        told = f"{refused.value} {refused.value.fields} {refused.value.__context__} {refused.value.__cause__}"
        assert "hunter" not in told
        assert "s3cr3t" not in told
    with pytest.raises(InvalidParams, match="too easy"):
        kind.create(inputs[0])


def test_secrets_are_stored_in_clear_and_shown_masked():
    """A secret comes back as it was, for the job needs it; people see asterisks."""
    kind = type_of(Login)
    login = Login(user="u", password=SecretStr("correct horse"), pin="1234", keys={"a": [SecretStr("hunter3")]})
    again = kind.restore(kind.pack_params(login), None)
    assert again.password.get_secret_value() == "correct horse"
    assert again == login
    shown = kind.show_params(kind.pack_params(login))
    masked = {"password": "**********", "keys": {"a": ["**********"]}, "pin": "**********"}
    assert shown == {"user": "u", **masked, "code": None}
    login.code = Secret("hunter5")
    assert kind.show_params(kind.pack_params(login))["code"] == "**********"


def test_params_are_shown_as_json():
    """Paths and times are text, models are maps; state is not shown."""
    assert COPY.show_params(COPY.pack_params(Copy(sources=[Path("/a")]))) == {"sources": ["/a"], "destination": "out"}


# ── bytes ──


def test_params_and_state_are_maps_of_named_fields():
    """Any MessagePack reader can open both, and finds each field under its name."""
    work = Copy(sources=[])
    work.done, work.files = 3, ["a"]
    assert msgpack.unpackb(COPY.pack_params(work)).keys() == {"sources", "destination"}
    assert msgpack.unpackb(COPY.pack_state(work)) == {"done": 3, "files": ["a"], "last": None}


@given(
    sources=st.lists(st.text(alphabet="abc/.", min_size=1).map(Path)),
    done=st.integers(),
    files=st.lists(st.text()),
    last=st.none() | st.text(),
)
def test_a_restored_job_is_equal(sources, done, files, last):
    """G3: what was packed comes back equal, with types, and packs to the same bytes."""
    work = Copy(sources=sources)
    work.done, work.files, work.last = done, files, last
    params, saved = COPY.pack_params(work), COPY.pack_state(work)
    again = COPY.restore(params, saved)
    assert again == work or work.model_fields_set != again.model_fields_set
    assert again.__dict__ == work.__dict__
    assert (COPY.pack_params(again), COPY.pack_state(again)) == (params, saved)


def test_a_restored_job_is_a_whole_one():
    """It is bound, has fresh private attributes and default state, and behaves as pydantic's own."""
    again = COPY.restore(COPY.pack_params(Copy(sources=[Path("a")])), None)
    assert (again.done, again.files, again._buffer) == (0, [], bytearray())
    assert again.model_dump() == {
        "sources": [Path("a")],
        "destination": Path("out"),
        "done": 0,
        "files": [],
        "last": None,
    }
    again.done = 2
    again._buffer += b"x"
    with pytest.raises(FrozenParameter):
        again.sources = []
    other = COPY.restore(COPY.pack_params(again), COPY.pack_state(again))
    assert (other.done, other._buffer) == (2, bytearray())
    assert type_of(Floats).restore(type_of(Floats).pack_params(Floats(items=[1.5])), None).items == [1.5]


def test_restoring_runs_no_validators():
    """A validator that changes its value would do so at every restart; one that looks at the disk would fail."""

    class Doubled(Job):
        n: int
        path: Path
        half: int = state(0)

        @field_validator("n")
        @classmethod
        def _double(cls, n: int) -> int:
            return n * 2

        @field_validator("path")
        @classmethod
        def _never_again(cls, path: Path) -> Path:
            calls.append(path)
            return path

        async def run(self, ctx: Any) -> None: ...

    calls: list[Path] = []
    kind = type_of(Doubled)
    work = Doubled(n=2, path=Path("gone"))
    again = kind.restore(kind.pack_params(work), kind.pack_state(work))
    assert (again.n, len(calls)) == (4, 1)


def test_post_init_rebuilds_what_is_transient_only():
    """model_post_init runs at each start, with all fields in place; what it does to stored ones is undone."""

    class Prepared(Job):
        n: int
        done: int = state(0)
        _names: list[int] = PrivateAttr()

        def model_post_init(self, context: Any, /) -> None:
            self._names = list(range(self.n + self.done))
            self.n += 1
            self.done += 1

        async def run(self, ctx: Any) -> None: ...

    kind = type_of(Prepared)
    work = Prepared(n=1)
    assert (work.n, work.done) == (2, 1)
    again = kind.restore(kind.pack_params(work), kind.pack_state(work))
    assert (again.n, again.done, again._names) == (2, 1, [0, 1, 2])


class Old(Job):
    size: int
    gone: str = "x"
    done: int = state(0)
    dropped: int = state(0)

    async def run(self, ctx: Any) -> None: ...


class New(Job):
    size: int
    scale: int = 2
    done: int = state(0)
    marks: list[int] = state(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> New:
        if self.size * self.scale > 100:
            raise ValueError("too large")
        return self

    async def run(self, ctx: Any) -> None: ...


def test_fields_may_come_and_go():
    """New state takes its default, dropped state is ignored; changed parameters are validated together."""
    old, kind = type_of(Old), type_of(New)
    work = Old(size=3)
    work.done, work.dropped = 5, 6
    again = kind.restore(old.pack_params(work), old.pack_state(work))
    assert (again.size, again.scale, again.done, again.marks) == (3, 2, 5, [])
    assert not hasattr(again, "gone")
    with pytest.raises(FrozenParameter):
        again.scale = 3
    with pytest.raises(InvalidParams, match="too large"):
        kind.restore(old.pack_params(Old(size=51)), None)


def test_a_new_parameter_without_a_default_is_told():
    """A stored job that lacks a required parameter can't be loaded, and the error names it."""

    class Newer(Old):
        user: str

    with pytest.raises(InvalidParams) as refused:
        type_of(Newer).restore(type_of(Old).pack_params(Old(size=1)), None)
    assert refused.value.fields == {"user": "Field required"}


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x93\x01", b"\x90", b"\xa1x", b"\x81", Codec().pack({"sources": [{}]})[:-1]]
)
def test_damaged_bytes_are_corrupt(data):
    """G10, G17: bytes that are no map of fields are StateCorrupt, whichever half they stand for."""
    params = COPY.pack_params(Copy(sources=[]))
    with pytest.raises(StateCorrupt):
        COPY.restore(data, None)
    with pytest.raises(StateCorrupt):
        COPY.restore(params, data)


def test_what_cannot_be_stored_is_named():
    """The error leads to the value: state.files.3."""
    work = Copy(sources=[])
    values: list[Any] = ["a", "b", "c", object()]
    work.files = values
    with pytest.raises(SerializationError) as refused:
        COPY.pack_state(work)
    assert refused.value.path == "state.files.3"
    work.sources = values[3:]
    with pytest.raises(SerializationError) as refused:
        COPY.pack_params(work)
    assert refused.value.path == "params.sources.0"
    del work.files
    with pytest.raises(SerializationError, match=r"state\.files can't be stored: it was deleted"):
        COPY.pack_state(work)


def test_has_initial_state():
    """Only what the defaults would not bring back needs storing: assigned, changed in place, new at each call."""

    class Timed(Job):
        token: UUID = state(default_factory=uuid4)

        async def run(self, ctx: Any) -> None: ...

    class Deep(Job):
        tree: dict[str, list[int]] = state({"a": []})
        at: datetime = state(datetime(2024, 1, 1, tzinfo=UTC))

        async def run(self, ctx: Any) -> None: ...

    def changed(kind: JobType, work: Job[Any], change: Any) -> bool:
        change(work)
        return kind.has_initial_state(work)

    assert not COPY.has_initial_state(Copy(sources=[]))
    assert changed(COPY, Copy(sources=[]), lambda work: setattr(work, "done", 0))
    assert changed(COPY, Copy(sources=[]), lambda work: setattr(work, "last", "x"))
    assert changed(COPY, Copy(sources=[]), lambda work: work.files.append("x"))
    assert changed(COPY, Copy(sources=[]), lambda work: delattr(work, "files"))
    deep = type_of(Deep)
    assert not deep.has_initial_state(Deep())
    assert changed(deep, Deep(), lambda work: work.tree["a"].append(1))
    assert type_of(Timed).has_initial_state(Timed())


# ── outputs ──


@pytest.mark.parametrize(
    ("out", "value"),
    [
        (Report, Report(copied=1)),
        (int, 3),
        (list[Report], [Report(copied=1)]),
        (dict[str, set[int]], {"a": {1, 2}}),
        (tuple[Path, datetime], (Path("a"), datetime(2024, 1, 1, tzinfo=UTC))),
        (Report | None, None),
        (None, None),
        (Any, {"a": [1, None, "x"]}),
    ],
)
def test_outputs_come_back_as_declared(out, value):
    """What the handle's result() gives is equal to what run() returned, and of the same type."""

    class Typed(Job[out]):  # type: ignore[valid-type]
        async def run(self, ctx: Any) -> Any: ...

    kind = type_of(Typed)
    data, shown = kind.pack_output(value)
    assert kind.unpack_output(data) == value
    assert type(kind.unpack_output(data)) is type(value)
    assert type(shown) in {dict, list, int, str, type(None)}


def test_outputs_show_as_json():
    """The second half of pack_output is JSON, with secrets masked."""

    class Secretive(Job[dict[str, SecretStr]]):
        async def run(self, ctx: Any) -> Any: ...

    assert COPY.pack_output(Report(copied=2))[1] == {"copied": 2}
    assert COPY.pack_output({"copied": "2"})[1] == {"copied": 2}
    assert type_of(Secretive).pack_output({"a": SecretStr("x")})[1] == {"a": "**********"}


@pytest.mark.parametrize("value", [None, {"copied": "many"}, {}, "x", 3, [Report(copied=1)]])
def test_an_output_of_another_type_is_refused(value):
    """A handler that returns something else fails there, with what is wrong, and not at the reader."""
    with pytest.raises(InvalidOutput) as refused:
        COPY.pack_output(value)
    assert refused.value.name == "tested"
    assert type(value).__name__ in str(refused.value)
    assert isinstance(refused.value, TypeError)
    assert refused.value.code == "invalid_output"


def test_a_plain_job_returns_what_json_can_say():
    """Without a declared output any JSON-like value goes; a model needs declaring."""

    class Plain(Job):
        async def run(self, ctx: Any) -> Any: ...

    kind = type_of(Plain)
    assert kind.output is Any
    assert kind.output_schema == {}
    assert kind.pack_output([1, {"a": None}])[1] == [1, {"a": None}]
    with pytest.raises(SerializationError, match="output"):
        kind.pack_output(Report(copied=1))


class Pair(Job[dict[K, list[T]]], Generic[K, T]):
    async def run(self, ctx: Any) -> Any: ...


class Half(Pair[str, T], Generic[T]): ...


class Whole(Half[Report]): ...


class Open(Half): ...  # type: ignore[type-arg]


class Sided(Mixin, Whole): ...


@pytest.mark.parametrize(
    ("cls", "out"),
    [
        (Copy, Report),
        (Whole, dict[str, list[Report]]),
        (Sided, dict[str, list[Report]]),
        (Open, dict[str, list[T]]),  # type: ignore[valid-type]
        (Floats, list[float]),
        (Pair[int, None], dict[int, list[None]]),
    ],
)
def test_the_output_is_found_through_generics(cls, out):
    """However many generic classes stand between a job and Job."""
    found = type_of(cls).output
    assert found == out or repr(found) == repr(out).replace("None", "NoneType")


# ── types ──


def test_type_checkers_see_the_contract():
    """The constructor without state, handles typed by output, wrong uses found: see typed_api.py."""
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        "--follow-imports=silent",
        f"--cache-dir={root / '.mypy_cache' / 'typed_api'}",
        str(Path(__file__).with_name("typed_api.py")),
    ]
    checked = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
