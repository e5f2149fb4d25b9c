"""Which job a name means: `Registry`, the global `registry`, the decorator `@job` that fills it, and `discover`.

A name, never a module path, is what is stored of a class; so a name must mean one definition. The same definition may
come again, for modules are reloaded, notebook cells run twice and `python -m` loads a module under two names: then the
newer replaces the older. Two definitions under one name are refused when the second is decorated.

This is the root's one import of other people's code: `discover` and `load_installed` import modules, and the only names
of modules that they take are a program's own argument and what installed packages declare.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
import weakref
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, overload

from jobkit.codec import Codec
from jobkit.definition import Job
from jobkit.errors import DuplicateJob, InvalidJob, StateCorrupt, StateVersionError, UnknownJob
from jobkit.jobtype import JobType
from jobkit.model import Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from types import CodeType

    from jobkit.model import ExecutorName

__all__ = ["Registry", "discover", "job", "registry"]

J = TypeVar("J", bound="type[Job[Any]]")

ENTRY_POINTS: Final = "jobkit.jobs"
"""The group under which an installed package names the modules that define its jobs."""

_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_PACKED: Final = Codec()


class _Source(NamedTuple):
    """Where a class was decorated, and by which run of that code."""

    file: str
    line: int
    code: weakref.ref[CodeType] | None


class _Entry(NamedTuple):
    kind: JobType
    source: _Source

    def __str__(self) -> str:
        return f"{self.kind.cls.__module__}.{self.kind.cls.__qualname__} ({self.source.file}:{self.source.line})"

    def is_again(self, older: _Entry) -> bool:
        """Tell whether this is the older definition once more: the same lines, or its module, cell or file run anew."""
        new, old = self.kind.cls, older.kind.cls
        if new is old:
            return True
        if new.__qualname__ != old.__qualname__:
            return False
        if self.source[:2] == older.source[:2]:
            return True
        ran = self.source.code, older.source.code
        anew = None in ran or ran[0]() is not ran[1]()  # type: ignore[misc]  # neither is None
        return new.__module__ == old.__module__ and anew


class Registry:
    """Job types by name. `jobkit.registry` is the global one; `Registry()` gives a private one."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._installed: list[str] | None = None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __repr__(self) -> str:
        return f"<Registry of {', '.join(self.names()) or 'no jobs'}>"

    def names(self) -> list[str]:
        """Tell the names of all jobs, sorted, without aliases."""
        return sorted({entry.kind.name for entry in self._entries.values()})

    def job_types(self) -> list[JobType]:
        """Tell all job types, sorted by name."""
        return [self._entries[name].kind for name in self.names()]

    def versions(self) -> dict[str, int]:
        """Tell the version that each name and each alias stands for: what jobs a node with this registry can run."""
        return {name: entry.kind.version for name, entry in sorted(self._entries.items())}

    def get(self, name: str) -> JobType:
        """Find a job type.

        Args:
            name: Its name, or an alias.

        Returns:
            The job type.

        Raises:
            UnknownJob: No job is registered under that name; its `near` lists similar ones.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise UnknownJob(name, difflib.get_close_matches(str(name), self._entries))
        return entry.kind

    def type_of(self, job: Job[Any]) -> JobType:
        """Find the job type of a job.

        Args:
            job: A job.

        Returns:
            The type of its own class; of an older definition of it, if the job was made from that.

        Raises:
            InvalidJob: Its class was not decorated, whatever its parents are, or was for another registry.
        """
        kind: JobType | None = _types_of(type(job)).get(self)
        if kind is None:
            name = type(job).__qualname__
            if not isinstance(job, Job):
                raise InvalidJob(
                    f"{name} is not derived from Job: write class {name}(Job[Result]), decorated with @job"
                )
            raise InvalidJob(f"{name} is not registered here: decorate this very class with @job, a parent's won't do")
        return kind

    def schema(self, name: str) -> dict[str, Any]:
        """Give the JSON schema of a job's parameters.

        Args:
            name: The job's name, or an alias.

        Returns:
            The schema; the caller may change it.

        Raises:
            UnknownJob: No job is registered under that name.
        """
        return self.get(name).schema

    def create(self, name: str, params: Mapping[str, Any]) -> Job[Any]:
        """Make a new job from untrusted input.

        Args:
            name: The job's name, or an alias.
            params: Its parameters; state is refused.

        Returns:
            The job.

        Raises:
            UnknownJob: No job is registered under that name.
            InvalidParams: The parameters don't fit; its `fields` tell what is wrong with which.
        """
        return self.get(name).create(params)

    def pack(self, job: Job[Any]) -> bytes:
        """Pack a whole job, parameters and state.

        Args:
            job: A job of a registered class.

        Returns:
            A MessagePack map: `version`, `shapes`, `params` and `state`, the last two MessagePack maps of fields.

        Raises:
            InvalidJob: Its class is not registered here.
            SerializationError: It holds what can't be stored.
        """
        kind = self.type_of(job)
        return _PACKED.pack(
            {
                "version": kind.version,
                "shapes": kind.shapes,
                "params": kind.pack_params(job),
                "state": kind.pack_state(job),
            }
        )

    def restore(self, name: str, data: bytes) -> Job[Any]:
        """Make the job that `pack` packed; see `JobType.restore`.

        Args:
            name: The job's name, or an alias.
            data: What `pack` gave.

        Returns:
            The job; its parameters are frozen.

        Raises:
            UnknownJob: No job is registered under that name.
            StateCorrupt: The bytes are not what was packed.
            StateVersionError: They were packed by a newer version of the class, or do not fit the class any more.
            InvalidParams: The class's parameters have changed, and the packed ones don't fit any more.
        """
        kind = self.get(name)
        match _PACKED.unpack(data):
            case {"version": int(version), "shapes": bytes(shapes), "params": bytes(params), "state": bytes(state)}:
                if version > kind.version:
                    raise StateVersionError(kind.name, version, kind.version)
                return kind.restore(params, state, version=version, shapes=shapes)
        raise StateCorrupt(f"the packed {kind.name!r} is no map of version, shapes, params and state")

    def load_installed(self) -> list[str]:
        """Import what installed packages name in the entry-point group `jobkit.jobs`; once, later calls do nothing.

        Their classes register where their decorators say, which is the global registry unless they name another.

        Returns:
            The entry points' names.

        Raises:
            Exception: Whatever a package raises when it is imported, with a note that names the entry point.
        """
        if self._installed is None:
            found = entry_points(group=ENTRY_POINTS)
            for one in found:
                try:
                    one.load()
                except Exception as error:
                    error.add_note(f"raised by the entry point {ENTRY_POINTS}: {one.name} = {one.value}")
                    raise
            self._installed = sorted({one.name for one in found})
        return list(self._installed)

    def _add(self, kind: JobType, source: _Source) -> None:
        new = _Entry(kind, source)
        claimed = (kind.name, *kind.aliases)
        same = _types_of(kind.cls).get(self)
        if same is not None and same.name not in claimed and same.name in self:
            raise InvalidJob(
                f"{kind.cls.__qualname__} is the job {same.name!r} already: write @job({same.name!r}, "
                f"aliases=({kind.name!r},)) if it has two names, and decorate it once"
            )
        replaced = {name: older for name in claimed if (older := self._entries.get(name)) is not None}
        for name, older in replaced.items():
            if not new.is_again(older):
                raise DuplicateJob(name, str(older), str(new))
        kinds = [older.kind for older in replaced.values()]
        self._entries = {name: old for name, old in self._entries.items() if old.kind not in kinds}
        self._entries |= dict.fromkeys(claimed, new)
        _types_of(kind.cls, create=True)[self] = kind


def _types_of(cls: type, *, create: bool = False) -> weakref.WeakKeyDictionary[Registry, JobType]:
    """Read what a class itself is registered as; a parent's registration is not its own.

    It is kept in the class, so that one that is replaced a hundred times in a notebook does not stay a hundred times.
    """
    types: weakref.WeakKeyDictionary[Registry, JobType] | None = cls.__dict__.get("__jobkit_types__")
    if types is None:
        types = weakref.WeakKeyDictionary()
        if create:
            cls.__jobkit_types__ = types  # type: ignore[attr-defined]  # seen by nobody else
    return types


registry: Final = Registry()
"""The global registry, which `@job` registers in unless told otherwise."""


@overload
def job(cls: J, /) -> J: ...
@overload
def job(
    name: str | None = None,
    /,
    *,
    version: int = 1,
    description: str | None = None,
    aliases: Collection[str] = (),
    resumable: bool = True,
    queue: str = "default",
    priority: int = Priority.NORMAL,
    executor: ExecutorName = "auto",
    registry: Registry | None = None,
) -> Callable[[J], J]: ...
def job(
    name: Any = None,
    /,
    *,
    version: int = 1,
    description: str | None = None,
    aliases: Collection[str] = (),
    resumable: bool = True,
    queue: str = "default",
    priority: int = Priority.NORMAL,
    executor: ExecutorName = "auto",
    registry: Registry | None = None,
) -> Any:
    """Register a class as a job: `@job("file_copy")`, or bare `@job`.

    Args:
        name: The job's name, which is stored with every job. By default the class's name in snake_case.
        version: Raise it when a change of fields needs stored jobs to be migrated.
        description: A line for people; by default the first line of the class's docstring.
        aliases: Names that the job had before: jobs that are stored under them are found.
        resumable: False if the job must never be entered again: it is `lost` if its worker dies, and can't be paused.
        queue: The queue that its jobs wait in.
        priority: Their priority, a `Priority` or any whole number; higher is claimed sooner.
        executor: `"auto"` (an async handler on the event loop, a sync one in a thread), `"inline"` or `"thread"`.
        registry: Where to register it; the global `registry` by default.

    Returns:
        The class itself.

    Raises:
        InvalidJob: The class, or an option, can't work; the message says what to write instead.
        DuplicateJob: Another definition has the name, or an alias, already.
    """
    where = _GLOBAL if registry is None else registry

    def decorate(cls: J) -> J:
        label = name if isinstance(name, str) else _CAMEL.sub("_", getattr(cls, "__name__", "job")).lower()
        kind = JobType(
            name=label,
            cls=cls,
            version=version,
            description=description,
            aliases=tuple(aliases) if not isinstance(aliases, str) else aliases,  # type: ignore[arg-type]  # refused there
            resumable=resumable,
            queue=queue,
            priority=priority,
            executor=executor,
        )
        where._add(kind, _source_of(cls))  # noqa: SLF001  the two are one
        return cls

    return decorate if name is None or isinstance(name, str) else decorate(name)


_GLOBAL: Final = registry


def _source_of(cls: type) -> _Source:
    """Find the line that defines a class: the innermost running line of its module."""
    frame = here = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") != cls.__module__:
        frame = frame.f_back
    frame = frame or here
    if frame is None:  # a Python without frames
        return _Source(cls.__module__, 0, None)
    return _Source(frame.f_code.co_filename, frame.f_lineno, weakref.ref(frame.f_code))


def discover(package: str) -> list[str]:
    """Import a module, and every module below it if it is a package, so that their jobs are registered.

    A module called `__main__` is left out: it is a program.

    Args:
        package: Its dotted name: `"myapp.jobs"`.

    Returns:
        The names of all jobs that are registered now, sorted.

    Raises:
        Exception: Whatever a module raises when it is imported, with a note that names the module.
    """
    todo = [package]
    while todo:
        name = todo.pop(0)
        try:
            module = importlib.import_module(name)
        except Exception as error:
            error.add_note(f"raised while discover({package!r}) imported {name}")
            raise
        below = pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}.")
        todo += [one.name for one in below if not one.name.endswith(".__main__")]
    return registry.names()
