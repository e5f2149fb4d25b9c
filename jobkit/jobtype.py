"""What jobkit knows of a decorated class: `JobType`. It makes bytes of jobs, and jobs of bytes.

What was stored once is not validated again: a validator that doubles a number would double it twice, and one that looks
for a file would fail once the file has been moved. Only fields that are new, or of another type since, are.

A decorated class may name types that are defined below it. So what depends on its types is made at first use.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Final, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUndefinedAnnotation, PydanticUserError

from jobkit.checks import check_class, check_options, is_async
from jobkit.codec import Codec
from jobkit.definition import keys_of
from jobkit.envelope import EMPTY_MAP, NO_SHAPES, seal
from jobkit.errors import (
    InvalidJob,
    InvalidOutput,
    InvalidParams,
    SerializationError,
    StateCorrupt,
    StateVersionError,
)
from jobkit.kinds import Outgrown
from jobkit.mending import Reading
from jobkit.model import MASK, Priority
from jobkit.outputs import output_of
from jobkit.plain import decode_plain
from jobkit.problems import did_you_mean, in_one_line, may_hold_secret, problems_of, texts_in, without
from jobkit.restoring import assemble, fitted_fields

if TYPE_CHECKING:
    from jobkit.definition import Fields, Job
    from jobkit.model import ExecutorName, Json, RunsIn

__all__ = ["JobType"]

_ATOMS: Final = frozenset({int, float, bool, str, bytes, type(None)})


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
    executor: ExecutorName = "auto"

    def __post_init__(self) -> None:
        """Refuse what can't work."""
        check_class(self.cls)
        check_options(
            self.cls.__qualname__,
            name=self.name,
            version=self.version,
            aliases=self.aliases,
            queue=self.queue,
            priority=self.priority,
            executor=self.executor,
            runs_in=self.runs_in,
        )
        object.__setattr__(self, "aliases", tuple(self.aliases))
        if self.description is None:
            lines = inspect.cleandoc(self.cls.__dict__.get("__doc__") or "").splitlines()
            object.__setattr__(self, "description", lines[0] if lines else None)

    @cached_property
    def is_async(self) -> bool:
        """Whether `run` is a coroutine function."""
        return is_async(self.cls.run)

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
        state = self._fields.state_in(given)
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
        return self._codec.pack({name: values[name] for name in self._fields.params}, path="params")

    def show_params(self, data: bytes) -> dict[str, Json]:
        """Say a job's parameters as JSON, for people.

        Args:
            data: What `pack_params` gave.

        Returns:
            The parameters by name; secrets, and fields whose JSON schema says `writeOnly`, are masked.

        Raises:
            StateCorrupt: The bytes are not what was packed.
        """
        shown = _by_name(decode_plain(data))
        return {name: MASK if name in self._write_only else value for name, value in shown.items()}

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
            state = {name: values[name] for name in self._fields.state}
        except KeyError as missing:
            raise SerializationError(f"state.{missing.args[0]}", "it was deleted; assign None instead") from None
        return self._codec.pack(state, path="state")

    def seal_state(self, job: Job[Any], job_id: str, journal: bytes = EMPTY_MAP) -> bytes:
        """Pack a job's present state, in the envelope that it is stored in.

        Args:
            job: A job of this type.
            job_id: Its id.
            journal: What its durable calls keep, packed.

        Returns:
            What `unseal` opens.

        Raises:
            SerializationError: A value can't be stored; its path is like `state.files.3`.
        """
        return seal(job_id, self.version, self.pack_state(job), journal, self.shapes)

    @property
    def shapes(self) -> bytes:
        """What its fields' types are like, to be stored beside a state: so it shows whether they have changed since."""
        return self._codec.shapes

    def has_initial_state(self, job: Job[Any]) -> bool:
        """Tell whether a job that has not run yet has a state that its defaults would not bring back.

        Args:
            job: A job of this type.

        Returns:
            True if a state field was assigned, or changed in place, or its default differs from call to call.
        """
        values = job.__dict__
        for name, info in self._fields.state.items():
            if name in job.__pydantic_fields_set__ or name not in values:
                return True
            if info.default_factory is None and values[name] is info.default and type(info.default) in _ATOMS:
                continue
            fresh = info.get_default(call_default_factory=True, validated_data=values)
            if self._codec.pack(values[name], path=f"state.{name}") != self._codec.pack(fresh, path=f"state.{name}"):
                return True
        return False

    # ── a job again ──

    def restore(
        self,
        params: bytes,
        state: bytes | None,
        *,
        version: int | None = None,
        shapes: bytes = NO_SHAPES,
        tell: Callable[[list[str]], object] | None = None,
    ) -> Job[Any]:
        """Make the job that was stored.

        Validators don't run, unless the class's fields have changed since: then what is missing or no longer of the
        declared type is validated, together with the rest, which stays as it is. State that is new takes its default.
        Private attributes start anew and `model_post_init` runs; what it does to stored fields is undone.

        Args:
            params: What `pack_params` gave.
            state: What `pack_state` gave; None for the defaults.
            version: The version that the class had when the parameters were stored; None: the present one.
            shapes: What `shapes` was when the state was stored; `NO_SHAPES`: the present one.
            tell: Told of the stored fields that the class no longer has, if there are any; they are dropped.

        Returns:
            The job, bound: its parameters are frozen.

        Raises:
            StateCorrupt: The bytes are not what was stored.
            StateVersionError: The class has changed, and what is stored does not fit it any more.
            InvalidParams: The class's parameters have changed, and the stored ones don't fit any more.
            Exception: Whatever the class's own code raises: default factories, `model_post_init`, validators.
        """
        found = self.version if version is None else version
        of_params = of_state = Reading()
        if found != self.version:
            of_params = Reading(self._codec.tags)
        if state is not None and shapes != self.shapes:
            of_state = Reading(self._codec.changed_since(shapes))
        try:
            given = _by_name(self._codec.unpack(params, of_params))
            saved = {} if state is None else _by_name(self._codec.unpack(state, of_state))
        except Outgrown as fault:
            raise StateVersionError(self.name, found, self.version, fault.problem) from None
        fields = self._fields
        if of_params is of_state and given.keys() == fields.params.keys() and saved.keys() <= fields.state.keys():
            values = {**given, **saved}
        else:
            values = self._fitted(given, saved, of_params, of_state)
        if tell is not None and (lost := {*of_params.lost, *of_state.lost}):
            tell(sorted(lost))
        job = assemble(self.cls, fields, values)
        self.bind(job)
        return job

    def _fitted(
        self, given: dict[str, Any], saved: dict[str, Any], of_params: Reading, of_state: Reading
    ) -> dict[str, Any]:
        try:
            return fitted_fields(self.cls, self._fields, given, saved, of_params=of_params, of_state=of_state)
        except ValidationError as error:
            problems = self._problems(error, given)
        misfits = {path: problem for path, problem in problems.items() if path.partition(".")[0] in self._fields.state}
        if misfits:  # raised out here: the ValidationError, which quotes the input, is not to be chained
            raise StateVersionError(self.name, self.version, self.version, in_one_line(misfits))
        raise InvalidParams(self.name, problems)

    def bind(self, job: Job[Any]) -> None:
        """Freeze a job's parameters, for they are stored now.

        Args:
            job: A job of this type; from here on an assignment to a parameter raises `FrozenParameter`.
        """
        object.__setattr__(job, "__jobkit_bound__", True)

    def codec_for(self, call: Callable[..., Any]) -> Codec:
        """The codec for what a function of the handler returns: its declared return type, and the job's own types."""
        try:
            declared = get_type_hints(call).get("return", Any)
        except Exception:  # noqa: BLE001  whatever it is that can't be read declares nothing
            declared = Any
        return self._codec if declared is Any else Codec((*self._annotations, declared))

    # ── output ──

    @cached_property
    def output(self) -> Any:
        """The declared type of its output; `Any` for a plain `Job`."""
        return output_of(self.cls)

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
            problem = in_one_line(problems_of(error))
        if problem is not None:
            raise InvalidOutput(self.name, f"{problem} (it is {type(value).__name__})")
        data = self._output_codec.pack(value, path="output")
        return data, decode_plain(data)

    def unpack_output(self, data: bytes) -> Any:
        """Give back an output.

        Args:
            data: What `pack_output` gave.

        Returns:
            A value equal to the one that was packed, and of the same type.

        Raises:
            StateCorrupt: The bytes are not what was packed.
            StateVersionError: A class in it has changed, and what is stored does not fit it any more.
        """
        try:
            return self._output_codec.unpack(data)
        except Outgrown as fault:
            raise StateVersionError(self.name, self.version, self.version, fault.problem) from None

    # ── made at first use ──

    @cached_property
    def _fields(self) -> Fields:
        if not self.cls.__pydantic_complete__:
            try:
                self.cls.model_rebuild()
            except PydanticUndefinedAnnotation as error:
                raise InvalidJob(
                    f"{self.cls.__qualname__}: {error.message}; define or import it in {self.cls.__module__}"
                ) from error
        return self.cls.__jobkit_fields__

    @cached_property
    def _codec(self) -> Codec:
        self._output_codec  # noqa: B018  an output type that can't work must show before the job has run, not after
        return Codec(self._annotations)

    @cached_property
    def _annotations(self) -> tuple[Any, ...]:
        fields = self._fields.params | self._fields.state
        return tuple(Annotated[info.annotation, name] for name, info in fields.items())  # names count in `shapes`

    @cached_property
    def _write_only(self) -> frozenset[str]:
        extras = ((name, info.json_schema_extra) for name, info in self._fields.params.items())
        return frozenset(name for name, extra in extras if isinstance(extra, dict) and extra.get("writeOnly"))

    @cached_property
    def _secret_keys(self) -> frozenset[str]:
        """The keys under which something may be given that holds a secret, at any depth."""
        params = self._fields.params.items()
        secretive = {
            name: info for name, info in params if name in self._write_only or may_hold_secret(info.annotation)
        }
        return frozenset(key for name, info in secretive.items() for key in keys_of(name, info))

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

    # ── what is wrong with parameters, without their secrets ──

    def _problems(self, error: ValidationError, given: Mapping[str, Any]) -> dict[str, str]:
        """Tell what is wrong; a validator of the user's may quote a secret in its message."""
        secrets = {text for key in self._secret_keys & given.keys() for text in texts_in(given[key])}
        return without(secrets, problems_of(error, self._unknown))

    def _unknown(self, key: str) -> str:
        takes = f"it takes {', '.join(self._fields.params) or 'none'}"
        return f"is no parameter of {self.name!r}: {did_you_mean(key, self._fields.params, takes)}"


def _by_name(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise StateCorrupt("it is no map of fields by name")
    return values
