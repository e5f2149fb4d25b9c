"""What users write: `Job` and `state()`; and what jobkit knows of a decorated class: `JobType`.

A job is one pydantic model with two kinds of fields. *Parameters* come from a caller: they are validated, stored once
and never change. *State* starts from its default, belongs to the handler, and is what a checkpoint saves; no caller can
set it. Everything here follows from keeping the two apart.

`JobType` makes bytes of jobs and jobs of bytes. What was stored once is not validated again: a validator that doubles a
number would double it twice, and one that looks for a file would fail once the file has been moved. Only parameters of
a class whose fields have changed since are.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    TypeAlias,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretBytes,
    SecretStr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.errors import (
    PydanticInvalidForJsonSchema,
    PydanticUndefinedAnnotation,
    PydanticUserError,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError, PydanticUndefined
from typing_extensions import NoDefault, TypeVar, dataclass_transform

from jobkit.codec import Codec, plain
from jobkit.errors import (
    FrozenParameter,
    InvalidJob,
    InvalidOutput,
    InvalidParams,
    SerializationError,
    StateCorrupt,
)
from jobkit.model import Json, Priority

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

__all__ = ["Job", "JobType", "state"]

T = TypeVar("T")
Out = TypeVar("Out", default=Any)

Executor: TypeAlias = Literal["auto", "inline", "thread"]
"""Where a job asks to run."""

RunsIn: TypeAlias = Literal["inline", "thread"]
"""Where it will."""

MASK: Final = "**********"


# ── the class that users derive from ──


class _State:
    """Marks a field as state, in pydantic's own list of a field's metadata: so it survives inheritance and mixins."""

    def __repr__(self) -> str:
        return "state()"


@overload
def state(default: T, *, init: Literal[False] = False) -> T: ...
@overload
def state(*, default_factory: Callable[[], T], init: Literal[False] = False) -> T: ...
def state(
    default: Any = PydanticUndefined,
    *,
    default_factory: Callable[[], Any] | None = None,
    init: Literal[False] = False,  # noqa: ARG001  read by type checkers: this is what takes it out of the constructor
) -> Any:
    """Declare a field that checkpoints save and no caller can set.

    Write `done: int = state(0)`, or `files: list[Path] = state(default_factory=list)`.

    Args:
        default: What a new job starts with; a mutable one is copied for each job.
        default_factory: Makes what a new job starts with. Give this or `default`.
        init: For type checkers, who leave the field out of the constructor.

    Returns:
        A pydantic field; to type checkers, the default.

    Raises:
        InvalidJob: Neither or both were given.
    """
    if default is ... or (default is PydanticUndefined) == (default_factory is None):
        raise InvalidJob(
            "state() takes either a default or a default_factory, for a new job must know where it starts: "
            "write state(0), state(None) or state(default_factory=list)"
        )
    info: FieldInfo = Field(default_factory=default_factory) if default_factory else Field(default)
    info.metadata += [_State(), SkipJsonSchema()]  # type: ignore[type-arg]  # a special form to checkers alone
    return info


_ASSIGNMENT: Final = object()
"""The validation context of an assignment, where a model that validates assignments sees its own state go by."""


@dataclass_transform(kw_only_default=True, field_specifiers=(Field, PrivateAttr, state))
class Job(BaseModel, Generic[Out]):
    """Work that can stop and go on: parameters, state, and a handler. `Out` is what the handler returns.

    Derive from it, decorate with `@job`, and define `run(self, ctx)`: `async` to run on the event loop, plain to run in
    a thread. Fields are parameters unless they are declared with `state()`. Private attributes are rebuilt at every
    start. Plain `Job`, without an `Out`, may return anything that JSON can say.
    """

    model_config = ConfigDict(extra="forbid")

    if not TYPE_CHECKING:  # a checker that saw __setattr__ would take any attribute for settable
        __slots__ = ("__jobkit_bound__",)
        __jobkit_params__: ClassVar[tuple[str, ...]] = ()
        __jobkit_state__: ClassVar[tuple[str, ...]] = ()
        __jobkit_guarded__: ClassVar[frozenset[str]] = frozenset()  # names whose assignment is not pydantic's alone

        @classmethod
        def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
            super().__pydantic_init_subclass__(**kwargs)
            fields = cls.__pydantic_fields__
            cls.__jobkit_state__ = tuple(name for name, info in fields.items() if _is_state(info))
            cls.__jobkit_params__ = tuple(name for name, info in fields.items() if not _is_state(info))
            checked = cls.model_config.get("validate_assignment")
            cls.__jobkit_guarded__ = frozenset(fields if checked else cls.__jobkit_params__)

        def __setattr__(self, name: str, value: Any) -> None:
            if name in self.__jobkit_guarded__:
                _refuse_if_bound(self, name)
                if self.model_config.get("validate_assignment"):
                    self.__pydantic_validator__.validate_assignment(self, name, value, context=_ASSIGNMENT)
                    return
            super().__setattr__(name, value)

        def __delattr__(self, name: str) -> None:
            _refuse_if_bound(self, name)
            super().__delattr__(name)

        @model_validator(mode="before")
        @classmethod
        def _jobkit_refuse_state(cls, data: Any, info: ValidationInfo) -> Any:
            if cls.__jobkit_state__ and info.context is not _ASSIGNMENT and (given := _state_in(cls, data)):
                raise PydanticCustomError(
                    "jobkit_state",
                    "{fields} is state: a job starts from its default; assign it after construction",
                    {"fields": ", ".join(dict.fromkeys(given.values()))},
                )
            return data

    def run(self, ctx: Any, /) -> Awaitable[Out] | Out:
        """Do the work; called anew by every attempt, with the state of the last checkpoint.

        Args:
            ctx: A `JobContext` if this is `async`, else a `BlockingJobContext`.

        Returns:
            The job's output.
        """
        raise NotImplementedError(f"{type(self).__name__} has no run(): define async def run(self, ctx: JobContext)")

    def on_resume(self, ctx: Any, /) -> Awaitable[None] | None:
        """Called before `run` of every attempt but the first.

        Args:
            ctx: The attempt's context.
        """
        return None

    def on_pause(self, ctx: Any, /) -> Awaitable[None] | None:
        """Called when the job has been paused and its state is saved.

        Args:
            ctx: The attempt's context.
        """
        return None

    def on_cancel(self, ctx: Any, /) -> Awaitable[None] | None:
        """Called when the running job has been cancelled.

        Args:
            ctx: The attempt's context.
        """
        return None

    def on_failure(self, ctx: Any, failure: Any, /) -> Awaitable[None] | None:
        """Called when `run` has failed.

        Args:
            ctx: The attempt's context.
            failure: The `Failure` that is stored.
        """
        return None


HOOKS: Final = {"on_resume": 1, "on_pause": 1, "on_cancel": 1, "on_failure": 2}
"""The hooks, and how many arguments each is called with."""


def _is_state(info: FieldInfo) -> bool:
    return any(isinstance(mark, _State) for mark in info.metadata)


def _refuse_if_bound(job: Job[Any], name: str) -> None:
    kind: Any = type(job)
    if name in kind.__jobkit_params__ and getattr(job, "__jobkit_bound__", False):
        raise FrozenParameter(kind.__name__, name)


def _keys(name: str, info: FieldInfo) -> set[str]:
    """Tell the keys under which a field can be given; of a path, its first."""
    given = info.validation_alias
    aliases = given.choices if isinstance(given, AliasChoices) else [given, info.alias]
    return {name} | {str(one.path[0]) if isinstance(one, AliasPath) else one for one in aliases if one is not None}


def _state_in(cls: type[Job[Any]], data: object) -> dict[str, str]:
    """Find state in what a caller gave: the fields' names by the keys that were used."""
    keys: dict[str, str] | None = cls.__dict__.get("__jobkit_keys__")
    if keys is None:
        keys = {key: name for name, info in cls.model_fields.items() if _is_state(info) for key in _keys(name, info)}
        if cls.__pydantic_complete__:  # before that, an alias generator may not have run
            cls.__jobkit_keys__ = keys  # type: ignore[attr-defined]  # seen by nobody else
    if isinstance(data, Mapping):
        return {key: name for key, name in keys.items() if key in data}
    if cls.model_config.get("from_attributes") and not isinstance(data, cls):
        return {key: name for key, name in keys.items() if hasattr(data, key)}
    return {}


# ── what is known of a decorated class ──


@dataclass(frozen=True, kw_only=True, eq=False)
class JobType:
    """A job's class with its name and options, as `@job` registered it.

    Attributes:
        name: The registered name: this, never a module path, is what is stored.
        cls: The class.
        version: The version of its fields, from 1.
        description: A line for people.
        aliases: Names that it had before, under which jobs may still be stored.
        resumable: Whether a job may be entered again after its worker died or it was paused.
        queue: The queue that its jobs wait in.
        priority: Their priority; higher is claimed sooner.
        executor: Where they asked to run; `runs_in` tells where they do.

    Raises:
        InvalidJob: The class or an option can't work; the message says what to write instead.
    """

    name: str
    cls: type[Job[Any]]
    version: int = 1
    description: str | None = None
    aliases: tuple[str, ...] = ()
    resumable: bool = True
    queue: str = "default"
    priority: int = Priority.NORMAL
    executor: Executor = "auto"

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        _check_class(self.cls)
        _check_options(self)
        object.__setattr__(self, "aliases", tuple(self.aliases))
        if self.description is None:
            lines = inspect.cleandoc(self.cls.__dict__.get("__doc__") or "").splitlines()
            object.__setattr__(self, "description", lines[0] if lines else None)

    @cached_property
    def is_async(self) -> bool:
        """Whether `run` is a coroutine function."""
        return _is_async(self.cls.run)

    @property
    def runs_in(self) -> RunsIn:
        """Where its jobs run: `"inline"`, on the event loop, or `"thread"`."""
        return "inline" if self.is_async else "thread"

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of its parameters; state is not in it."""
        return deepcopy(self._schema)

    @property
    def output_schema(self) -> dict[str, Any]:
        """The JSON schema of its output."""
        return deepcopy(self._output_schema)

    # ── parameters ──

    def create(self, params: Mapping[str, Any]) -> Job[Any]:
        """Make a new job from untrusted input.

        Args:
            params: The parameters by name (or alias), as Python or as JSON values.

        Returns:
            The job, not yet bound.

        Raises:
            InvalidParams: They don't fit; state is refused as unknown names are.
        """
        given: object = params
        if not isinstance(given, Mapping):
            kind = type(given).__name__
            raise InvalidParams(self.name, {"": f"give a mapping of parameter names to values, not {kind}"})
        self._fields  # noqa: B018  completes the class, whose aliases count
        state = _state_in(self.cls, given)
        problems = {key: f"is state: a job starts from its default; leave {name} out" for key, name in state.items()}
        try:
            job = self.cls.model_validate({key: value for key, value in given.items() if key not in state})
        except ValidationError as error:
            problems |= self._problems(error, given)
        if problems:  # raised out here: the ValidationError, which quotes the input, is not to be chained
            raise InvalidParams(self.name, problems)
        return job

    def pack_params(self, job: Job[Any]) -> bytes:
        """Pack a job's parameters.

        Args:
            job: A job of this type.

        Returns:
            A MessagePack map of parameters by name. Secrets are in clear: they are needed to run.

        Raises:
            SerializationError: A value can't be stored.
        """
        values = job.__dict__
        return self._codec.pack({name: values[name] for name in self._param_names}, path="params")

    def show_params(self, job: Job[Any]) -> dict[str, Json]:
        """Say a job's parameters as JSON, for people.

        Args:
            job: A job of this type.

        Returns:
            The parameters by name; secrets, and fields whose JSON schema says `writeOnly`, are masked.
        """
        values, hidden = job.__dict__, self._write_only
        shown = {name: MASK if name in hidden else values[name] for name in self._param_names}
        return cast("dict[str, Json]", plain(shown))

    # ── state ──

    def pack_state(self, job: Job[Any]) -> bytes:
        """Pack a job's present state.

        Args:
            job: A job of this type.

        Returns:
            A MessagePack map of state fields by name.

        Raises:
            SerializationError: A value can't be stored; its path is like `state.files.3`.
        """
        values = job.__dict__
        try:
            state = {name: values[name] for name in self._state_names}
        except KeyError as missing:
            raise SerializationError(f"state.{missing.args[0]}", "it was deleted; assign None instead") from None
        return self._codec.pack(state, path="state")

    def has_initial_state(self, job: Job[Any]) -> bool:
        """Tell whether a job that has not run yet has a state that its defaults would not bring back.

        Args:
            job: A job of this type.

        Returns:
            True if a state field was assigned, or changed in place, or its default differs from call to call.
        """
        values = job.__dict__
        for name in self._state_names:
            info = self._fields[name]
            if name in job.__pydantic_fields_set__ or name not in values:
                return True
            if info.default_factory is None and values[name] is info.default and type(info.default) in _ATOMS:
                continue
            fresh = info.get_default(call_default_factory=True, validated_data=values)
            if self._codec.pack(values[name], path=f"state.{name}") != self._codec.pack(fresh, path=f"state.{name}"):
                return True
        return False

    # ── a job again ──

    def restore(self, params: bytes, state: bytes | None) -> Job[Any]:
        """Make the job that was stored.

        Validators don't run, unless parameters were added to the class or taken from it since: then all of them are
        validated. State that the class no longer has is ignored, state that is new takes its default. Private
        attributes start anew and `model_post_init` runs; what it does to stored fields is undone.

        Args:
            params: What `pack_params` gave.
            state: What `pack_state` gave; None for the defaults.

        Returns:
            The job, bound: its parameters are frozen.

        Raises:
            StateCorrupt: The bytes are not what was stored.
            InvalidParams: The class's parameters have changed, and the stored ones don't fit any more.
        """
        given = self._unpack(params, "its parameters")
        return self._assemble(given, {} if state is None else self._unpack(state, "its state"))

    def bind(self, job: Job[Any]) -> None:
        """Freeze a job's parameters, for they are stored now.

        Args:
            job: A job of this type; from here on an assignment to a parameter raises `FrozenParameter`.
        """
        object.__setattr__(job, "__jobkit_bound__", True)

    # ── output ──

    @cached_property
    def output(self) -> Any:
        """The declared type of its output; `Any` for a plain `Job`."""
        return _output_of(self.cls)

    def pack_output(self, value: Any) -> tuple[bytes, Json]:
        """Check what a handler returned, and pack it.

        Args:
            value: What `run` returned. What pydantic can read as the declared type is converted, as a parameter is.

        Returns:
            Its bytes, and the same as JSON with secrets masked.

        Raises:
            InvalidOutput: It is not what the class declares.
            SerializationError: It holds what can't be stored.
        """
        problem = None
        try:
            value = self._output.validate_python(value)
        except ValidationError as error:
            listed = error.errors(include_url=False, include_context=False, include_input=False)
            problem = "; ".join(": ".join(filter(None, (_dotted(one["loc"]), one["msg"]))) for one in listed)
        if problem is not None:
            raise InvalidOutput(self.name, f"{problem} (it is {type(value).__name__})")
        return self._output_codec.pack(value, path="output"), plain(value)

    def unpack_output(self, data: bytes) -> Any:
        """Give back an output.

        Args:
            data: What `pack_output` gave.

        Returns:
            A value equal to the one that was packed, and of the same type.

        Raises:
            StateCorrupt: The bytes are not what was packed.
        """
        return self._output_codec.unpack(data)

    # ── made at first use: the class may name types that are defined later ──

    @cached_property
    def _fields(self) -> dict[str, FieldInfo]:
        if not self.cls.__pydantic_complete__:
            try:
                self.cls.model_rebuild()
            except PydanticUndefinedAnnotation as error:
                raise InvalidJob(
                    f"{self.cls.__qualname__}: {error.message}; define or import it in {self.cls.__module__}"
                ) from error
        return self.cls.model_fields

    @cached_property
    def _codec(self) -> Codec:
        self._output_codec  # noqa: B018  an output type that can't work must show before the job has run, not after
        return Codec([info.annotation for info in self._fields.values()])

    @cached_property
    def _param_names(self) -> tuple[str, ...]:
        return tuple(name for name, info in self._fields.items() if not _is_state(info))

    @cached_property
    def _state_names(self) -> tuple[str, ...]:
        return tuple(name for name, info in self._fields.items() if _is_state(info))

    @cached_property
    def _param_set(self) -> frozenset[str]:
        return frozenset(self._param_names)

    @cached_property
    def _write_only(self) -> frozenset[str]:
        extras = ((name, info.json_schema_extra) for name, info in self._fields.items())
        return frozenset(name for name, extra in extras if isinstance(extra, dict) and extra.get("writeOnly"))

    @cached_property
    def _secretive(self) -> frozenset[str]:
        """Names of fields that may hold a secret, at any depth."""
        return self._write_only | {name for name, info in self._fields.items() if _may_hold_secret(info.annotation)}

    @cached_property
    def _schema(self) -> dict[str, Any]:
        self._fields  # noqa: B018  completes the class
        try:
            return self.cls.model_json_schema()
        except PydanticInvalidForJsonSchema as error:
            raise InvalidJob(
                f"the parameters of {self.name!r} have no JSON schema: {error.message}; use types that JSON can say"
            ) from error

    @cached_property
    def _output(self) -> TypeAdapter[Any]:
        try:
            return TypeAdapter(self.output)
        except (PydanticUserError, PydanticUndefinedAnnotation) as error:
            raise InvalidJob(
                f"{self.cls.__qualname__} returns {self.output!r}, which can't be checked: "
                f"{error.message.partition('. ')[0]}; declare a pydantic model, a dataclass or a builtin type"
            ) from error

    @cached_property
    def _output_codec(self) -> Codec:
        self._output  # noqa: B018  refuses what can't be checked
        return Codec([self.output])

    @cached_property
    def _output_schema(self) -> dict[str, Any]:
        try:
            return self._output.json_schema(mode="serialization")
        except PydanticInvalidForJsonSchema as error:
            raise InvalidJob(
                f"the output of {self.name!r} has no JSON schema: {error.message}; use types that JSON can say"
            ) from error

    def _unpack(self, data: bytes, what: str) -> dict[str, Any]:
        values = self._codec.unpack(data)
        if not isinstance(values, dict):
            raise StateCorrupt(f"{what} of {self.name!r} is no map of fields")
        return values

    def _assemble(self, given: dict[str, Any], saved: dict[str, Any]) -> Job[Any]:
        """Put a job together as pydantic's `model_construct` does; `given` becomes the job's own."""
        values = given if given.keys() == self._param_set else self._revalidated(given)
        stored = set(values)
        for name in self._state_names:
            if name in saved:
                values[name] = saved[name]
                stored.add(name)
            else:
                values[name] = self._fields[name].get_default(call_default_factory=True, validated_data=values)
        cls, put = self.cls, object.__setattr__
        job = cls.__new__(cls)
        put(job, "__dict__", values)
        put(job, "__pydantic_fields_set__", stored)
        put(job, "__pydantic_extra__", None)
        put(job, "__pydantic_private__", None)
        if cls.__pydantic_post_init__:  # there are private attributes, or the class has a model_post_init of its own
            kept = {name: values[name] for name in stored}
            job.model_post_init(None)
            values.update(kept)
        self.bind(job)
        return job

    def _revalidated(self, given: dict[str, Any]) -> dict[str, Any]:
        known = {name: given[name] for name in self._param_names if name in given}
        try:
            job = self.cls.model_validate(known, by_alias=False, by_name=True)
        except ValidationError as error:
            problems = self._problems(error, known)
        else:
            return {name: job.__dict__[name] for name in self._param_names}
        raise InvalidParams(self.name, problems)

    # ── what is wrong with parameters, without their secrets ──

    def _problems(self, error: ValidationError, params: Mapping[str, Any]) -> dict[str, str]:
        problems: dict[str, str] = {}
        for one in error.errors(include_url=False, include_input=False):
            loc, problem = one["loc"], one["msg"]
            if one["type"] == "extra_forbidden" and len(loc) == 1:
                problem = self._unknown(str(loc[0]))
            path = _dotted(loc)
            problems[path] = f"{problems[path]}; {problem}" if path in problems else problem
        secrets = sorted(self._secrets_in(params), key=len, reverse=True)
        for path, problem in problems.items():
            for secret in secrets:
                problem = problem.replace(secret, MASK)  # noqa: PLW2901  one after the other
            problems[path] = problem
        return problems

    def _unknown(self, key: str) -> str:
        near = difflib.get_close_matches(key, self._param_names)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it takes {', '.join(self._param_names) or 'none'}"
        return f"is no parameter of {self.name!r}: {hint}"

    def _secrets_in(self, params: Mapping[str, Any]) -> set[str]:
        """Collect the texts given for secret fields: a validator of the user's may quote one in its message."""
        keys = {key for name in self._secretive for key in _keys(name, self._fields[name])}
        return {text for key in keys & params.keys() for text in _texts(params[key]) if text}


# ── what can't work is refused ──

LONGEST_NAME: Final = 200
TOP_PRIORITY: Final = 1_000_000
_ATOMS: Final = frozenset({int, float, bool, str, bytes, type(None)})
_EXECUTORS: Final = get_args(Executor)


def _check_class(cls: object) -> None:
    """Refuse a class whose jobs could not run or be stored."""
    if not isinstance(cls, type):
        raise InvalidJob(f"@job decorates a class, not {cls!r}: write class Name(Job[Result]): ... with a run() method")
    who = cls.__qualname__
    if not issubclass(cls, Job) or cls is Job:
        raise InvalidJob(f"{who} is not derived from Job: write class {cls.__name__}(Job[Result])")
    fields = cls.model_fields
    for name in fields:
        if name == "run" or name.startswith("on_"):
            raise InvalidJob(f"{who}.{name} is a field, but run and on_* are names of handlers: rename the field")
    _check_config(cls, who)
    _check_kinds(cls, who)
    if cls.run is Job.run:
        raise InvalidJob(f"{who} has no handler: define async def run(self, ctx: JobContext)")
    if abstract := sorted(getattr(cls, "__abstractmethods__", ())):
        raise InvalidJob(f"{who} is abstract: define {', '.join(abstract)}, or decorate a subclass that does")
    _check_handler(cls, "run", 1)
    for hook, arguments in HOOKS.items():
        _check_handler(cls, hook, arguments)


def _check_config(cls: type[Job[Any]], who: str) -> None:
    config = cls.model_config
    if config.get("extra") != "forbid":
        raise InvalidJob(
            f"{who} sets extra={config.get('extra')!r}, but a job refuses what it does not know: leave it out"
        )
    if config.get("frozen") and any(map(_is_state, cls.model_fields.values())):
        raise InvalidJob(f"{who} is frozen, but has state to assign: leave frozen out, parameters are frozen anyway")


def _check_kinds(cls: type[Job[Any]], who: str) -> None:
    """Refuse a field that is a parameter here and state there: stored jobs would be split at the wrong place."""
    fields, names = cls.model_fields, ("a parameter", "state")
    for base in cls.__mro__[1:]:
        for name, info in getattr(base, "__pydantic_fields__", {}).items():
            if name in fields and _is_state(info) != _is_state(fields[name]):
                was, now = names[_is_state(info)], names[_is_state(fields[name])]
                remedy = f"{name}: ... = state(...)" if _is_state(info) else f"{name}: ... without state()"
                raise InvalidJob(
                    f"{who}.{name} is {now}, in {base.__qualname__} it is {was}: write {remedy}, or rename it"
                )
    params, states = (
        {key for name, info in fields.items() if _is_state(info) == kind for key in _keys(name, info)}
        for kind in (False, True)
    )
    for key in sorted(params & states):
        raise InvalidJob(f"{who}: {key!r} names, or is an alias of, a parameter and a state field: rename one of them")


def _check_handler(cls: type[Job[Any]], name: str, arguments: int) -> None:
    wanted = f"{name}(self, {'ctx' if arguments == 1 else 'ctx, failure'})"
    handler = getattr(cls, name)
    who = f"{cls.__qualname__}.{name}"
    if not inspect.isroutine(handler):
        raise InvalidJob(f"{who} is not a method: define async def {wanted} or def {wanted}")
    bare = inspect.unwrap(handler)
    if inspect.isasyncgenfunction(bare) or inspect.isgeneratorfunction(bare):
        raise InvalidJob(f"{who} is a generator: write ctx.progress() or ctx.log() instead of yield, and return once")
    try:
        inspect.signature(handler).bind(*[None] * (arguments + 1))
    except TypeError:
        raise InvalidJob(f"{who} can't be called as {wanted}: define it so") from None


def _check_options(kind: JobType) -> None:
    """Refuse options that can't be meant."""
    who = kind.cls.__qualname__
    for what, name in (("name", kind.name), ("queue", kind.queue)):
        _check_name(who, what, name)
    aliases: object = kind.aliases
    if isinstance(aliases, str) or not isinstance(aliases, Collection):
        raise InvalidJob(f"{who}: aliases is {aliases!r}: write a tuple of names, aliases=('old_name',)")
    for alias in aliases:
        _check_name(who, "alias", alias)
    if len({kind.name, *aliases}) != 1 + len(aliases):
        raise InvalidJob(f"{who}: aliases {aliases!r} repeat themselves or the name {kind.name!r}: write each once")
    if not _is_int(kind.version) or kind.version < 1:
        raise InvalidJob(f"{who}: version is {kind.version!r}: write a whole number from 1 up")
    if not _is_int(kind.priority) or abs(kind.priority) > TOP_PRIORITY:
        raise InvalidJob(
            f"{who}: priority is {kind.priority!r}: write Priority.HIGH or an integer within ±{TOP_PRIORITY:,}"
        )
    if kind.executor not in _EXECUTORS:
        raise InvalidJob(f"{who}: there is no executor {kind.executor!r}: write one of {', '.join(_EXECUTORS)}")
    if kind.executor not in ("auto", kind.runs_in):
        remedy = "make run() a plain def" if kind.is_async else "make run() async"
        raise InvalidJob(f"{who}: executor={kind.executor!r} does not fit its run(): {remedy}, or leave executor out")


def _check_name(who: str, what: str, name: object) -> None:
    if not (isinstance(name, str) and name.strip() == name and name.isprintable() and 0 < len(name) <= LONGEST_NAME):
        raise InvalidJob(
            f"{who}: the {what} {name!r:.220} can't be used: write 1 to {LONGEST_NAME} printable characters, "
            f"without spaces around them"
        )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_async(handler: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(inspect.unwrap(handler))


# ── reading types ──


def _output_of(cls: type[Job[Any]]) -> Any:
    """Find `Out` by climbing from a class to `Job`; forward references are looked up where they were written."""
    output = _declared(cls, cls.__module__)
    while isinstance(output, TypeVar):  # a generic job, decorated as it is
        default = getattr(output, "__default__", NoDefault)
        output = (output.__bound__ or Any) if default is NoDefault else default
    return output


def _declared(cls: type[Job[Any]], module: str) -> Any:
    if cls is Job:
        return Any
    generic = cls.__pydantic_generic_metadata__
    origin = generic["origin"]
    if origin is Job:
        return _resolved(generic["args"][0], module)
    if origin is not None:
        parameters = origin.__pydantic_generic_metadata__["parameters"]
        declared = _declared(cast("type[Job[Any]]", origin), origin.__module__)
        return _substituted(declared, dict(zip(parameters, generic["args"], strict=True)))
    found = [_declared(base, cls.__module__) for base in cls.__bases__ if issubclass(base, Job)]
    return next((one for one in found if one is not Any), Any)


def _resolved(annotation: Any, module: str) -> Any:
    def holder() -> None: ...

    holder.__annotations__ = {"out": annotation}
    try:
        return get_type_hints(holder, vars(sys.modules[module]), include_extras=True)["out"]
    except NameError as error:
        raise InvalidJob(f"the output type {annotation!r}: {error}; define it at the top level of {module}") from error


def _substituted(annotation: Any, values: Mapping[Any, Any]) -> Any:
    if isinstance(annotation, TypeVar):
        return values.get(annotation, annotation)
    model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    generic = annotation.__pydantic_generic_metadata__ if model else {"origin": get_origin(annotation)}
    parameters = generic.get("parameters") or getattr(annotation, "__parameters__", ())
    if generic["origin"] is None or not parameters:
        return annotation
    return annotation[tuple(values.get(one, one) for one in parameters)]


def _may_hold_secret(annotation: Any) -> bool:
    """Tell by the JSON schema, in which pydantic marks secrets `writeOnly`; what has none may."""
    try:
        return "'writeOnly': True" in str(TypeAdapter(annotation).json_schema())
    except PydanticUserError:
        return True


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (SecretStr, SecretBytes)):
        yield str(value.get_secret_value())
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for one in value:
            yield from _texts(one)


def _dotted(loc: tuple[int | str, ...]) -> str:
    return ".".join(map(str, loc))
