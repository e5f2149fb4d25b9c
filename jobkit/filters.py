"""Which jobs: `JobFilter`, read strictly.

Every value is checked and brought into one form when the filter is made: a condition that is misspelt and then ignored
would select far too much, and the next step may be to delete.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from math import isfinite, isnan
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, TypeVar, cast
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
        status: A `JobStatus` or its word; here and below, one or several. None is no condition, and so is leaving a
            field out; a list without a value is refused, for it might be meant as "none" as well as "all".
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
        InvalidFilter: An unknown field, or a value that can't be meant, such as an unknown status or a wrong type.
        InvalidJobId: A parent's text that is not a job id.
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
        put(self, "status", _Read(_status(word) for word in _several("status", status)))
        for key, given in (("name", name), ("queue", queue), ("user", user), ("tag", tag)):
            put(self, key, _Read(_text(key, value) for value in _several(key, given)))
        put(self, "metadata", _metadata(metadata))
        put(self, "since", _time("since", since))
        put(self, "until", _time("until", until))
        put(self, "parent", _Read(_job_id(parent_id) for parent_id in _several("parent", parent)))
        put(self, "text", None if text is None else _text("text", text) or None)

    @classmethod
    def of(cls, given: JobFilter | JobStatus | str | None, keywords: Mapping[str, Any]) -> Self:
        """Read a filter in any of the ways in which a caller may give one.

        Raises:
            InvalidFilter: An unknown field or value, a filter object beside keywords, or a status given twice.
            InvalidJobId: A parent's text that is not a job id.
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
    """Say a metadata scalar as the text under which it is indexed: `true`, `null`, `3`, `vsphere`.

    Numbers that are equal share one text: 1.0 is `1`. True is no number.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        if not isfinite(value):  # in words, as it is stored
            return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return str(int(value)) if value.is_integer() else float.__repr__(value)
    return str(int(value)) if isinstance(value, int) else str.__str__(cast("str", value))


class _Read(tuple[Any, ...]):
    """What a filter has read: alone in that it may be empty, for `dataclasses.replace` gives it to the filter again."""

    __slots__ = ()


def _several(name: str, value: object) -> tuple[Any, ...]:
    if value is None:
        return ()
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):  # a str is no iterable of letters here
        return (value,)
    values = tuple(value)
    if not values and not isinstance(value, _Read):
        raise InvalidFilter(name, value, ["at least one value (or leave it out)"])
    return values


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidFilter(name, value, ["a text"])
    return str.__str__(value)  # of an enum's member the text, not its name


def _status(word: Any) -> JobStatus:
    try:
        return JobStatus(word)
    except ValueError:
        raise InvalidFilter("status", word, list(JobStatus)) from None


def _metadata(given: object) -> _Read:
    if given is None:
        return _Read()
    if isinstance(given, _Read) and all(isinstance(one, tuple) for one in given):
        return given
    if not isinstance(given, Mapping):
        raise InvalidFilter("metadata", given, ["a mapping of names to texts, numbers, True, False or None"])
    return _Read((_text("metadata key", key), _scalar(value)) for key, value in given.items())


def _scalar(value: object) -> str:
    if value is None or isinstance(value, str | int | float):
        try:
            return label_text(value)
        except ValueError:  # thousands of digits; that can't be shown either
            value = "a number of too many digits"
    raise InvalidFilter("metadata value", value, ["a text", "a number", "True", "False", "None"])


def _time(name: str, at: datetime | None) -> datetime | None:
    if at is None:
        return None
    if not isinstance(at, datetime):
        raise InvalidFilter(name, at, ["a datetime"])
    try:
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except OverflowError:
        raise InvalidFilter(name, at, ["a datetime from year 1 to 9999 in UTC"]) from None


def _job_id(given: object) -> str:
    if not isinstance(given, UUID | str):
        raise InvalidFilter("parent", given, ["a UUID", "its text"])
    try:
        return str(UUID(str(given)))
    except ValueError:
        raise InvalidJobId(given) from None
