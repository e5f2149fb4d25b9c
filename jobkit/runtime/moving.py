"""Moving jobs: letting a cause act on all that a question finds, a portion in each commit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jobkit.interfaces import Change
from jobkit.lifecycle import Transition

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from jobkit.lifecycle import Cause, Standing
    from jobkit.runtime.writer import Writer

PORTION: Final = 500
"""How many jobs are moved in one commit: the worker claims the first while the rest follow."""


async def move(
    read: Callable[..., Awaitable[Any]],
    writer: Writer,
    find: Callable[[int], list[Standing]],
    cause: Callable[[Standing], Cause | None],
) -> int:
    """Let a cause act on all jobs that are found.

    A job that can't be moved is found again and again: so many more are asked for, lest it hide those behind it.

    Args:
        read: Calls a reading function off the event loop.
        writer: Commits what is decided.
        find: Finds so many jobs at most; those that were moved are not found again.
        cause: What happened to a job; None to leave it alone.

    Returns:
        How many jobs it moved.
    """
    moved, stuck = 0, set[str]()
    while found := [job for job in await read(find, PORTION + len(stuck)) if job.id not in stuck]:
        changes = [Change(job.id, why, job) for job in found if (why := cause(job)) is not None]
        answers = await writer.submit_all(changes)
        done = {write.job_id for write, answer in zip(changes, answers, strict=True) if isinstance(answer, Transition)}
        moved += len(done)
        stuck |= {job.id for job in found} - done
    return moved
