"""What users write: `Job` and `state()`.

A job is one pydantic model with two kinds of fields. *Parameters* come from a caller: they are validated, stored once
and never change. *State* starts from its default, belongs to the handler, and is what a checkpoint saves; no caller can
set it. Everything here follows from keeping the two apart.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Literal, overload

from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError, PydanticUndefined
from typing_extensions import TypeVar, dataclass_transform

from jobkit.errors import FrozenParameter, InvalidJob

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

__all__ = ["HOOKS", "Fields", "Job", "is_state", "keys_of", "state"]

T = TypeVar("T")
Out = TypeVar("Out", default=Any)


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


def is_state(info: FieldInfo) -> bool:
    """Tell whether a field is state."""
    return any(isinstance(mark, _State) for mark in info.metadata)


def keys_of(name: str, info: FieldInfo) -> set[str]:
    """Tell the keys under which a field can be given: its name and its aliases; of a path, the first step."""
    given = info.validation_alias
    aliases = given.choices if isinstance(given, AliasChoices) else [given, info.alias]
    return {name} | {str(one.path[0]) if isinstance(one, AliasPath) else one for one in aliases if one is not None}


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a job's class in their two kinds.

    Attributes:
        params: Parameters by name.
        state: State by name.
        state_keys: The keys under which a caller might try to give state, and the field that each means.
    """

    params: dict[str, FieldInfo]
    state: dict[str, FieldInfo]
    state_keys: dict[str, str]

    @classmethod
    def of(cls, model: type[BaseModel]) -> Fields:
        """Sort the fields of a class that is complete."""
        params = {name: info for name, info in model.model_fields.items() if not is_state(info)}
        state = {name: info for name, info in model.model_fields.items() if is_state(info)}
        return cls(params, state, {key: name for name, info in state.items() for key in keys_of(name, info)})

    def state_in(self, data: object, *, attributes: bool = False) -> dict[str, str]:
        """Find state in what a caller gave: the fields' names by the keys that were used."""
        if isinstance(data, Mapping):
            return {key: name for key, name in self.state_keys.items() if key in data}
        return {key: name for key, name in self.state_keys.items() if attributes and hasattr(data, key)}


TRUSTED: Final = object()
"""The validation context in which state may come along: of an assignment, and of a job that was stored."""


@dataclass_transform(kw_only_default=True, field_specifiers=(Field, PrivateAttr, state))
class Job(BaseModel, Generic[Out]):
    """Work that can stop and go on: parameters, state, and a handler. `Out` is what the handler returns.

    Derive from it, decorate with `@job`, and define `run(self, ctx)`: `async` to run on the event loop, plain to run in
    a thread. Fields are parameters unless they are declared with `state()`. Private attributes are rebuilt at every
    start. Plain `Job`, without an `Out`, may return anything that JSON can say.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    __jobkit_fields__: ClassVar[Fields] = Fields({}, {}, {})
    __jobkit_guarded__: ClassVar[frozenset[str]] = frozenset()  # names whose assignment is not pydantic's alone

    if not TYPE_CHECKING:  # a checker that saw __setattr__ would take any attribute for settable
        __slots__ = ("__jobkit_bound__",)

        @classmethod
        def __pydantic_on_complete__(cls) -> None:
            super().__pydantic_on_complete__()
            cls.__jobkit_fields__ = Fields.of(cls)
            checked = cls.model_config.get("validate_assignment")
            cls.__jobkit_guarded__ = frozenset(cls.model_fields if checked else cls.__jobkit_fields__.params)

        def __setattr__(self, name: str, value: Any) -> None:
            if name in self.__jobkit_guarded__:
                _refuse_if_bound(self, name)
                if self.model_config.get("validate_assignment"):
                    self.__pydantic_validator__.validate_assignment(self, name, value, context=TRUSTED)
                    return
            super().__setattr__(name, value)

        def __delattr__(self, name: str) -> None:
            _refuse_if_bound(self, name)
            super().__delattr__(name)

        @model_validator(mode="before")
        @classmethod
        def _jobkit_refuse_state(cls, data: Any, info: ValidationInfo) -> Any:
            fields = cls.__jobkit_fields__
            if fields.state and info.context is not TRUSTED:
                reads_attributes = cls.model_config.get("from_attributes", False) and not isinstance(data, cls)
                if given := fields.state_in(data, attributes=reads_attributes):
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

        Like every hook: what it raises is logged, and changes nothing else.

        Args:
            ctx: The attempt's context.
        """
        return None

    def on_pause(self, ctx: Any, /) -> Awaitable[None] | None:
        """Called when `run` has stopped for a pause or a shutdown, with its state saved; then the job is given back.

        Args:
            ctx: The attempt's context.
        """
        return None

    def on_cancel(self, ctx: Any, /) -> Awaitable[None] | None:
        """Called when `run` has stopped for a cancel, or was stopped by force; then the job is cancelled.

        A job that is cancelled while no handler runs has nothing to clean up, and this is not called.

        Args:
            ctx: The attempt's context.
        """
        return None

    def on_failure(self, ctx: Any, failure: Any, /) -> Awaitable[None] | None:
        """Called when `run` has raised an exception; then the job fails, or is tried again.

        Args:
            ctx: The attempt's context.
            failure: The `Failure` that is stored.
        """
        return None


HOOKS: Final = {"on_resume": 1, "on_pause": 1, "on_cancel": 1, "on_failure": 2}
"""The hooks, and how many arguments each takes."""


def _refuse_if_bound(job: Job[Any], name: str) -> None:
    if name in job.__jobkit_fields__.params and getattr(job, "__jobkit_bound__", False):
        raise FrozenParameter(type(job).__name__, name)
