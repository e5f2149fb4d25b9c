"""Durable, resumable jobs: killed at any moment, resumed from the last checkpoint, in any process that has the code.

Importing this package loads nothing; each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from jobkit.context import BlockingJobContext, JobContext
    from jobkit.definition import Job, state
    from jobkit.errors import (
        DuplicateJob,
        FrozenParameter,
        IllegalTransition,
        InvalidFilter,
        InvalidJob,
        InvalidJobId,
        InvalidOption,
        InvalidOutput,
        InvalidParams,
        InvalidSettings,
        JobCancelled,
        JobFailed,
        JobHeld,
        JobkitError,
        JobLost,
        JobNotFound,
        JobTimedOut,
        JournalConflict,
        KeyConflict,
        LeaseLost,
        ManagerNotRunning,
        SchemaMismatch,
        SerializationError,
        StateCorrupt,
        StateTooLarge,
        StateVersionError,
        StoreUnavailable,
        UnknownJob,
    )
    from jobkit.filters import JobFilter
    from jobkit.interfaces import Interrupt
    from jobkit.jobtype import JobType
    from jobkit.model import (
        ControlOutcome,
        Event,
        Failure,
        JobRecord,
        JobStats,
        JobStatus,
        Page,
        Priority,
        Progress,
    )
    from jobkit.registration import Registry, discover, job, registry
    from jobkit.runtime.blocking import BlockingJobHandle, BlockingJobManager
    from jobkit.runtime.handle import JobHandle
    from jobkit.runtime.manager import JobManager
    from jobkit.settings import Settings

_HOMES: Final = {
    "context": ("BlockingJobContext", "JobContext"),
    "definition": ("Job", "state"),
    "errors": (
        "DuplicateJob", "FrozenParameter", "IllegalTransition", "InvalidFilter", "InvalidJob", "InvalidJobId",
        "InvalidOption", "InvalidOutput", "InvalidParams", "InvalidSettings", "JobCancelled", "JobFailed", "JobHeld",
        "JobLost", "JobNotFound", "JobTimedOut", "JobkitError", "JournalConflict", "KeyConflict", "LeaseLost",
        "ManagerNotRunning", "SchemaMismatch", "SerializationError", "StateCorrupt", "StateTooLarge",
        "StateVersionError", "StoreUnavailable", "UnknownJob",
    ),
    "filters": ("JobFilter",),
    "interfaces": ("Interrupt",),
    "jobtype": ("JobType",),
    "model": (
        "ControlOutcome", "Event", "Failure", "JobRecord", "JobStats", "JobStatus", "Page", "Priority", "Progress",
    ),
    "registration": ("Registry", "discover", "job", "registry"),
    "runtime.blocking": ("BlockingJobHandle", "BlockingJobManager"),
    "runtime.handle": ("JobHandle",),
    "runtime.manager": ("JobManager",),
    "settings": ("Settings",),
}  # fmt: skip

_HOME: Final = {name: module for module, names in _HOMES.items() for name in names}

__version__ = "0.1.0"

__all__ = [  # every name above, in order; written out for tools that don't run the code
    "BlockingJobContext", "BlockingJobHandle", "BlockingJobManager", "ControlOutcome", "DuplicateJob", "Event",
    "Failure", "FrozenParameter", "IllegalTransition", "Interrupt", "InvalidFilter", "InvalidJob", "InvalidJobId",
    "InvalidOption", "InvalidOutput", "InvalidParams", "InvalidSettings", "Job", "JobCancelled", "JobContext",
    "JobFailed", "JobFilter", "JobHandle", "JobHeld", "JobLost", "JobManager", "JobNotFound", "JobRecord", "JobStats",
    "JobStatus", "JobTimedOut", "JobType", "JobkitError", "JournalConflict", "KeyConflict", "LeaseLost",
    "ManagerNotRunning", "Page", "Priority", "Progress", "Registry", "SchemaMismatch", "SerializationError", "Settings",
    "StateCorrupt", "StateTooLarge", "StateVersionError", "StoreUnavailable", "UnknownJob", "discover", "job",
    "registry", "state",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        message = f"module 'jobkit' has no attribute {name!r}"
        raise AttributeError(message)
    value = getattr(import_module(f"jobkit.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
