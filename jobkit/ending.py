"""What came of a job, for whoever waits for it: its output, or the error that tells of its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobkit.errors import JobCancelled, JobFailed, JobHeld, JobkitError, JobLost, JobTimedOut
from jobkit.model import Failure, JobStatus
from jobkit.plain import decode_plain

if TYPE_CHECKING:
    from jobkit.interfaces import Ended
    from jobkit.registration import Registry


def outcome_of(registry: Registry, job_id: str, ended: Ended) -> Any:
    """Make a value of a job's end; nothing is raised.

    Args:
        registry: Knows the types of outputs.
        job_id: The job.
        ended: What came of it, or that it is held.

    Returns:
        The output in its own type, as JSON if the job isn't known here; else the `JobkitError` that tells of the end.
    """
    if ended.status is not JobStatus.COMPLETED:
        return _error(job_id, ended)
    if ended.output is None:
        return None
    if ended.name not in registry:
        return decode_plain(ended.output)
    return registry.get(ended.name).unpack_output(ended.output)


def _error(job_id: str, ended: Ended) -> JobkitError:
    match ended.status:
        case JobStatus.FAILED:
            return JobFailed(job_id, ended.failure or Failure("Unknown", "no failure was stored"))
        case JobStatus.CANCELLED:
            return JobCancelled(job_id)
        case JobStatus.TIMED_OUT:
            return JobTimedOut(job_id)
        case JobStatus.LOST:
            return JobLost(job_id)
        case _:
            return JobHeld(job_id, ended.reason)
