"""What can't work is refused when a class is decorated, with words that say what to write instead.

A mistake that is found here is found when the module is imported, and not after a deploy, by the first job that fails.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any, Final, get_args

from jobkit.definition import HOOKS, Job, is_state, keys_of
from jobkit.errors import InvalidJob
from jobkit.model import ExecutorName, RunsIn

LONGEST_NAME: Final = 200
TOP_PRIORITY: Final = 1_000_000

_EXECUTORS: Final = get_args(ExecutorName)


def check_class(cls: object) -> None:
    """Refuse a class whose jobs could not run or be stored.

    Args:
        cls: What was decorated.

    Raises:
        InvalidJob: It can't work.
    """
    if not isinstance(cls, type):
        raise InvalidJob(f"@job decorates a class, not {cls!r}: write class Name(Job[Result]): ... with a run() method")
    if not issubclass(cls, Job) or cls is Job:
        raise InvalidJob(f"{cls.__qualname__} is not derived from Job: write class {cls.__name__}(Job[Result])")
    _check_names(cls)
    _check_config(cls)
    _check_kinds(cls)
    _check_handlers(cls)


def check_options(
    who: str,
    *,
    name: str,
    version: int,
    aliases: Collection[str],
    queue: str,
    priority: int,
    executor: ExecutorName,
    runs_in: RunsIn,
) -> None:
    """Refuse options that can't be meant.

    Args:
        who: The class's name, for messages.
        name: The job's name.
        version: The version of its fields.
        aliases: Names that it had before.
        queue: The queue that its jobs wait in.
        priority: Their priority.
        executor: Where they ask to run.
        runs_in: Where they can.

    Raises:
        InvalidJob: One of them can't be used.
    """
    _check_name(who, "name", name)
    _check_name(who, "queue", queue)
    given: object = aliases
    if isinstance(given, str) or not isinstance(given, Collection):
        raise InvalidJob(f"{who}: aliases is {given!r}: write a tuple of names, aliases=('old_name',)")
    for alias in aliases:
        _check_name(who, "alias", alias)
    if len({name, *aliases}) != 1 + len(aliases):
        raise InvalidJob(f"{who}: aliases {aliases!r} repeat themselves or the name {name!r}: write each once")
    if not _is_int(version) or version < 1:
        raise InvalidJob(f"{who}: version is {version!r}: write a whole number from 1 up")
    if not _is_int(priority) or abs(priority) > TOP_PRIORITY:
        raise InvalidJob(f"{who}: priority is {priority!r}: write Priority.HIGH or an integer within ±{TOP_PRIORITY:,}")
    if executor not in _EXECUTORS:
        raise InvalidJob(f"{who}: there is no executor {executor!r}: write one of {', '.join(_EXECUTORS)}")
    if executor not in ("auto", runs_in):
        remedy = "make run() a plain def" if runs_in == "inline" else "make run() async"
        raise InvalidJob(f"{who}: executor={executor!r} does not fit its run(): {remedy}, or leave executor out")


def is_async(handler: Callable[..., Any]) -> bool:
    """Tell whether a handler is a coroutine function, or wraps one."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(inspect.unwrap(handler))


# ── the class ──


def _check_names(cls: type[Job[Any]]) -> None:
    for name in cls.model_fields:
        if name == "run" or name.startswith("on_"):
            raise InvalidJob(
                f"{cls.__qualname__}.{name} is a field, but run and on_* are names of handlers: rename the field"
            )


def _check_config(cls: type[Job[Any]]) -> None:
    config, who = cls.model_config, cls.__qualname__
    if config.get("extra") != "forbid":
        raise InvalidJob(
            f"{who} sets extra={config.get('extra')!r}, but a job refuses what it does not know: leave it out"
        )
    if config.get("frozen") and any(map(is_state, cls.model_fields.values())):
        raise InvalidJob(f"{who} is frozen, but has state to assign: leave frozen out, parameters are frozen anyway")


def _check_kinds(cls: type[Job[Any]]) -> None:
    """Refuse a field that is a parameter here and state there: stored jobs would be split at the wrong place."""
    who, fields, names = cls.__qualname__, cls.model_fields, ("a parameter", "state")
    for base in cls.__mro__[1:]:
        for name, info in getattr(base, "__pydantic_fields__", {}).items():
            if name in fields and is_state(info) != is_state(fields[name]):
                was, now = names[is_state(info)], names[is_state(fields[name])]
                remedy = f"{name}: ... = state(...)" if is_state(info) else f"{name}: ... without state()"
                raise InvalidJob(
                    f"{who}.{name} is {now}, in {base.__qualname__} it is {was}: write {remedy}, or rename it"
                )
    params, states = (
        {key for name, info in fields.items() if is_state(info) == kind for key in keys_of(name, info)}
        for kind in (False, True)
    )
    for key in sorted(params & states):
        raise InvalidJob(f"{who}: {key!r} names, or is an alias of, a parameter and a state field: rename one of them")


def _check_handlers(cls: type[Job[Any]]) -> None:
    who = cls.__qualname__
    if cls.run is Job.run:
        raise InvalidJob(f"{who} has no handler: define async def run(self, ctx: JobContext)")
    if abstract := sorted(getattr(cls, "__abstractmethods__", ())):
        raise InvalidJob(f"{who} is abstract: define {', '.join(abstract)}, or decorate a subclass that does")
    for name, arguments in {"run": 1, **HOOKS}.items():
        _check_handler(cls, name, arguments)


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


# ── options ──


def _check_name(who: str, what: str, name: object) -> None:
    if not (isinstance(name, str) and name.strip() == name and name.isprintable() and 0 < len(name) <= LONGEST_NAME):
        raise InvalidJob(
            f"{who}: the {what} {name!r:.220} can't be used: write 1 to {LONGEST_NAME} printable characters, "
            f"without spaces around them"
        )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
