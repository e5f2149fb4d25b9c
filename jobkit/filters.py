"""Which jobs: `JobFilter`, read strictly.

Every value is checked and brought into one form when the filter is made: a condition that is misspelt and then ignored
would select far too much, and the next step may be to delete.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, TypeVar
from uuid import UUID

from jobkit.errors import InvalidFilter, InvalidJobId
from jobkit.model import JobStatus

if TYPE_CHECKING:
    from typing import Never, Self

T = TypeVar("T")

Several: TypeAlias = "T | Iterable[T] | None"
"""One value, several, or no condition."""


class FilterFields(TypedDict, total=False):
    """The fields of a `JobFilter` as keywords."""

    status: Several[JobStatus | str]
    name: Several[str]
    queue: Several[str]
    user: Several[str]
    tag: Several[str]
    metadata: Mapping[str, str | float | bool | None] | None
    since: datetime | None
    until: datetime | None
    parent: Several[UUID | str]
    text: str | None


@dataclass(frozen=True, slots=True, init=False)
class JobFilter:
    """Which jobs: every condition given must hold; of several values in one, any.

    Args:
        status: A `JobStatus` or its word.
        name: The job name.
        queue: The queue.
        user: Who started it.
        tag: A tag that it carries; of several, any.
        metadata: Top-level scalars of its metadata; all of them must match.
        since: Created then or later (aware; a naive time is taken as UTC).
        until: Created before then; read as `since` is.
        parent: The id of the job that spawned it.
        text: The beginning of id, name or label, or a part of the error; looked for among the newest 10,000.

    Raises:
        InvalidFilter: An unknown field, or a value that can't be meant, such as an unknown status.
        InvalidJobId: A parent that is not a job id.
    """

    status: tuple[JobStatus, ...] = ()
    name: tuple[str, ...] = ()
    queue: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    tag: tuple[str, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    parent: tuple[str, ...] = ()
    text: str | None = field(default=None)

    def __init__(
        self,
        *,
        status: Several[JobStatus | str] = None,
        name: Several[str] = None,
        queue: Several[str] = None,
        user: Several[str] = None,
        tag: Several[str] = None,
        metadata: Mapping[str, str | float | bool | None] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        parent: Several[UUID | str] = None,
        text: str | None = None,
        **unknown: Never,
    ) -> None:
        for key in unknown:
            raise InvalidFilter("field", key, [one.name for one in fields(self)])
        put = object.__setattr__
        put(self, "status", tuple(_status(word) for word in _several(status)))
        put(self, "name", _several(name))
        put(self, "queue", _several(queue))
        put(self, "user", _several(user))
        put(self, "tag", _several(tag))
        put(self, "metadata", tuple((key, _scalar(value)) for key, value in dict(metadata or {}).items()))
        put(self, "since", _time("since", since))
        put(self, "until", _time("until", until))
        put(self, "parent", tuple(_job_id(parent_id) for parent_id in _several(parent)))
        put(self, "text", text or None)

    @classmethod
    def of(cls, given: JobFilter | JobStatus | str | None, keywords: Mapping[str, Any]) -> Self:
        """Read a filter in any of the ways in which a caller may give one.

        Raises:
            InvalidFilter: An unknown field or value, a filter object beside keywords, or a status given twice.
            InvalidJobId: A parent that is not a job id.
        """
        if isinstance(given, cls):
            if keywords:
                raise InvalidFilter("addition to a JobFilter object", sorted(keywords), ["put them into the JobFilter"])
            return given
        if given is None:
            return cls(**keywords)
        if keywords.get("status") is not None:
            raise InvalidFilter("addition to a status", "status", ["put all statuses into one list"])
        keywords = {**keywords, "status": given}
        return cls(**keywords)


def label_text(value: object) -> str:
    """Say a metadata scalar as the text under which it is indexed: `true`, `null`, `3`, `vsphere`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _several(value: object) -> tuple[Any, ...]:
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Iterable):  # a str is one value, not an iterable of letters
        return (value,)
    return tuple(value)


def _status(word: JobStatus | str) -> JobStatus:
    try:
        return JobStatus(word)
    except ValueError:
        raise InvalidFilter("status", word, list(JobStatus)) from None


def _scalar(value: object) -> str:
    if value is None or isinstance(value, str | int | float):
        return label_text(value)
    raise InvalidFilter("metadata value", value, ["a text", "a number", "True", "False", "None"])


def _time(name: str, at: datetime | None) -> datetime | None:
    if at is None:
        return None
    if not isinstance(at, datetime):
        raise InvalidFilter(name, at, ["a datetime"])
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _job_id(given: UUID | str) -> str:
    try:
        return str(UUID(str(given)))
    except ValueError:
        raise InvalidJobId(given) from None
