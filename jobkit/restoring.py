"""A stored job again: its values fitted to the fields that its class has now, and put together as pydantic does.

What it must never do: validate what fits. `mending` says why, and does the same for the objects inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobkit.definition import TRUSTED, Fields, Job
from jobkit.mending import OUTERMOST, completed, fits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobkit.mending import Reading


def fitted_fields(
    cls: type[Job[Any]],
    fields: Fields,
    given: Mapping[str, Any],
    saved: Mapping[str, Any],
    *,
    of_params: Reading,
    of_state: Reading,
) -> dict[str, Any]:
    """Give the parameters of a job, and the state that is stored of it, values of their types.

    Args:
        cls: The job's class.
        fields: Its fields.
        given: The stored parameters.
        saved: The stored state.
        of_params: How the parameters were read; takes note of those that are lost.
        of_state: The same of the state.

    Returns:
        The values by name: the stored ones as they were if they fit. State that is not stored may be missing.

    Raises:
        ValidationError: A parameter is missing, or a value does not fit and validators refuse it.
    """
    of_params.lost |= given.keys() - fields.params.keys()
    of_state.lost |= saved.keys() - fields.state.keys()
    values = {name: given[name] for name in fields.params if name in given}
    values |= {name: saved[name] for name in fields.state if name in saved}
    all_ = {**fields.params, **fields.state}
    looked_at = set(fields.state) if OUTERMOST in of_state.changed else set()
    if OUTERMOST in of_params.changed or given.keys() != fields.params.keys():
        looked_at |= fields.params.keys()
    kept = {
        name: value for name, value in values.items() if name not in looked_at or fits(value, all_[name].annotation)
    }
    if len(kept) == len(values) and fields.params.keys() <= kept.keys():
        return values
    return completed(cls, all_, values, kept=kept, reading=of_params, context=TRUSTED)


def assemble(cls: type[Job[Any]], fields: Fields, values: dict[str, Any]) -> Job[Any]:
    """Put a job together as pydantic's `model_construct` does; its constructor and its validators don't run.

    Args:
        cls: The job's class.
        fields: Its fields.
        values: All parameters and stored state; they become the job's own. State that is missing takes its default.

    Returns:
        The job. `model_post_init` has run for its private attributes; what it did to stored fields was undone.
    """
    stored = set(values)
    for name, info in fields.state.items():
        if name not in stored:
            values[name] = info.get_default(call_default_factory=True, validated_data=values)
    put = object.__setattr__
    job = cls.__new__(cls)
    put(job, "__dict__", values)
    put(job, "__pydantic_fields_set__", stored)
    put(job, "__pydantic_extra__", None)
    put(job, "__pydantic_private__", None)
    if cls.__pydantic_post_init__:  # there are private attributes, or the class has a model_post_init of its own
        kept = {name: values[name] for name in stored}
        job.model_post_init(None)
        values.update(kept)
    return job
