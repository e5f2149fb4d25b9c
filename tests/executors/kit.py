"""What the tests of executors share."""

from __future__ import annotations

from typing import Any

from jobkit.definition import Job
from jobkit.interfaces import Work
from jobkit.jobtype import JobType
from jobkit.testing.executor_contract import JOB_ID


def work_for(job_type: JobType, made: Job[Any], attempt: int = 1) -> Work:
    """Describe an attempt at a job."""
    return Work(JOB_ID, job_type.name, job_type.version, attempt, job_type.pack_params(made), None, {}, "node-1")
