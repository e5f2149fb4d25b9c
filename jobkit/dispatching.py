"""From a job and its options to what is stored: every option is checked before anything is written."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydantic_core import PydanticSerializationError, to_json

from jobkit.bounds import MAX_BYTES, largest_in
from jobkit.errors import InvalidOption, InvalidParams
from jobkit.interfaces import NewJob

if TYPE_CHECKING:
    from jobkit.definition import Job
    from jobkit.jobtype import JobType
    from jobkit.model import Json


HIGHEST: Final = 1_000_000
"""The highest priority; its negative is the lowest."""


class Options(NamedTuple):
    """Options that can be stored; None where the job type's own holds."""

    priority: int | None
    queue: str | None
    key: str | None
    label: str | None
    description: str | None
    tags: tuple[str, ...]
    user: str | None
    metadata: Mapping[str, Json]


def check_options(options: Mapping[str, Any]) -> Options:
    """See to it that every option is known and can be stored."""
    for name, value in options.items():
        if name not in Options._fields:
            near = difflib.get_close_matches(name, Options._fields)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it takes {', '.join(Options._fields)}"
            raise InvalidOption(name, value, f"dispatch has no such option: {hint}")
    text = {name: _text(name, options.get(name)) for name in ("key", "label", "description", "user")}
    return Options(
        priority=_priority(options["priority"]) if "priority" in options else None,
        queue=check_name("queue", options["queue"]) if "queue" in options else None,
        key=text["key"],
        label=text["label"],
        description=text["description"],
        tags=_tags(options.get("tags", ())),
        user=text["user"],
        metadata=_metadata(options.get("metadata", {})),
    )


def new_job(
    job_type: JobType, job: Job[Any], job_id: str, options: Options, max_params_bytes: int = MAX_BYTES
) -> NewJob:
    """Make what is stored of a job; its packed parameters may have so many bytes."""
    params = job_type.pack_params(job)
    if len(params) > max_params_bytes:
        problem = (
            f"it is the largest of parameters that are {len(params):,} bytes together, the limit is "
            f"{max_params_bytes:,}: put bulk data into a file and give its path, or raise the setting max_state_bytes"
        )
        raise InvalidParams(job_type.name, {largest_in(params): problem})
    return NewJob(
        id=job_id,
        name=job_type.name,
        version=job_type.version,
        queue=job_type.queue if options.queue is None else options.queue,
        priority=job_type.priority if options.priority is None else options.priority,
        resumable=job_type.resumable,
        params=job_type.show_params(params),
        params_data=params,
        state=job_type.seal_state(job, job_id) if job_type.has_initial_state(job) else None,
        key=options.key,
        label=options.label,
        description=options.description or job_type.description,
        user=options.user,
        tags=options.tags,
        metadata=options.metadata,
    )


def _priority(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -HIGHEST <= value <= HIGHEST:
        raise InvalidOption("priority", value, f"give an integer from {-HIGHEST:,} to {HIGHEST:,}")
    return value


def check_name(option: str, value: object) -> str:
    """See to it that a name can be stored."""
    name = _text(option, value, 200)
    if not name:
        raise InvalidOption(option, value, "give a name")
    return name


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
