"""From a job and its options to what is stored: every option is checked before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from pydantic_core import PydanticSerializationError, to_json

from jobkit.codec import seal
from jobkit.errors import InvalidOption
from jobkit.interfaces import NewJob

if TYPE_CHECKING:
    from jobkit.definition import Job, JobType
    from jobkit.model import Json


class DispatchOptions(TypedDict, total=False):
    """What may be said of a job when it is dispatched.

    Attributes:
        priority: Higher is claimed sooner; the job type's own by default.
        queue: The queue to wait in; the job type's own by default.
        key: An idempotency key: the same name, key and parameters give the same job for as long as it is stored.
        label: A short name for people.
        description: A line for people; the job type's own by default.
        tags: Free words to find it by.
        user: Who started it.
        metadata: Free JSON; its top-level scalars can be filtered.
    """

    priority: int
    queue: str
    key: str | None
    label: str | None
    description: str | None
    tags: Iterable[str]
    user: str | None
    metadata: Mapping[str, Json]


def new_job(job_type: JobType, job: Job[Any], job_id: str, options: DispatchOptions) -> NewJob:
    """Make what is stored of a job, and see to it that every option can be."""
    text = {name: _text(name, options.get(name)) for name in ("key", "label", "description", "user")}
    priority = options.get("priority", job_type.priority)
    if isinstance(priority, bool) or not isinstance(priority, int) or not -1_000_000 <= priority <= 1_000_000:
        raise InvalidOption("priority", priority, "give an integer from -1,000,000 to 1,000,000")
    queue = _text("queue", options.get("queue", job_type.queue))
    if not queue:
        raise InvalidOption("queue", queue, "give a name")
    return NewJob(
        id=job_id,
        name=job_type.name,
        version=job_type.version,
        queue=queue,
        priority=priority,
        resumable=job_type.resumable,
        params=job_type.show_params(job),
        params_data=job_type.pack_params(job),
        state=seal(job_id, job_type.version, job_type.pack_state(job)) if job_type.has_initial_state(job) else None,
        key=text["key"],
        label=text["label"],
        description=text["description"] or job_type.description,
        user=text["user"],
        tags=_tags(options.get("tags", ())),
        metadata=_metadata(options.get("metadata", {})),
    )


def _text(option: str, value: object, limit: int = 10_000) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidOption(option, value, "give a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidOption(option, value, "it holds what UTF-8 can't say") from None
    if "\0" in value or len(value) > limit:
        raise InvalidOption(option, value[:50], f"give at most {limit:,} characters, none of them NUL")
    return value


def _tags(tags: object) -> tuple[str, ...]:
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise InvalidOption("tags", tags, 'give a list of words, as in tags=["nightly"]')
    return tuple(tag for one in tags if (tag := _text("tags", one, 200)))


def _metadata(metadata: object) -> Mapping[str, Json]:
    if not isinstance(metadata, Mapping):
        raise InvalidOption("metadata", metadata, "give a dictionary of JSON values")
    try:
        checked: dict[str, Json] = json.loads(to_json(metadata, inf_nan_mode="strings"))
    except (PydanticSerializationError, ValueError) as error:
        raise InvalidOption("metadata", "…", f"it must be JSON ({error})") from None
    return checked
