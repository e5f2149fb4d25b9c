"""The names that users import: all there, documented, light to import, and the same whatever comes first."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import jobkit

CONTRACT = {
    "Job", "job", "state", "JobContext", "BlockingJobContext", "JobManager", "JobHandle", "JobRecord", "JobStatus",
    "JobFilter", "JobStats", "JobType", "Page", "Priority", "Progress", "Event", "Failure", "Interrupt", "Registry",
    "registry", "discover", "Settings", "UnknownJob", "DuplicateJob", "InvalidParams", "InvalidJobId",
    "FrozenParameter", "JobNotFound", "IllegalTransition", "KeyConflict", "LeaseLost", "StateTooLarge",
    "StateCorrupt", "StateVersionError", "SerializationError",
    "StoreUnavailable", "SchemaMismatch", "JobFailed", "JobCancelled", "JobTimedOut", "JobLost",
    "JobHeld", "JobkitError", "BlockingJobManager", "ControlOutcome",
}  # fmt: skip

FIRST_IN_A_FRESH_PROCESS = """
import os, random, sys, types
names = sys.argv[1:]
orders = [[name] for name in names]
for seed in range(6):
    shuffled = list(names)
    random.Random(seed).shuffle(shuffled)
    orders.append(shuffled)
for order in orders:
    child = os.fork()
    if child == 0:
        try:
            import jobkit
            for name in order:
                assert not isinstance(getattr(jobkit, name), types.ModuleType), name
            os._exit(0)
        except BaseException as error:
            print(order, repr(error), file=sys.stderr)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status == 0, order
"""


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=120, check=False)


def test_every_name_of_the_contract_is_there() -> None:
    """What the documentation promises can be imported from `jobkit`, and the list is sorted."""
    assert set(jobkit.__all__) >= CONTRACT
    assert list(jobkit.__all__) == sorted(jobkit.__all__)
    assert set(jobkit.__all__) <= set(dir(jobkit))


def test_every_name_resolves_to_what_it_says() -> None:
    """A public name gives the object of that name, never a module that happens to be called so."""
    for name in jobkit.__all__:
        value = getattr(jobkit, name)
        assert not inspect.ismodule(value), name
        assert getattr(value, "__name__", name) == name


def test_every_name_works_whichever_comes_first() -> None:
    """Each public name can be the first that a process touches, and any order of all of them works."""
    result = run(FIRST_IN_A_FRESH_PROCESS, *jobkit.__all__)
    assert result.returncode == 0, result.stderr


def test_every_public_class_and_function_is_documented() -> None:
    """Public names, and the public methods that they define, have docstrings."""
    bare = []
    for name in jobkit.__all__:
        value = getattr(jobkit, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if not (value.__doc__ or "").strip():
            bare.append(name)
        if inspect.isclass(value) and value.__module__.startswith("jobkit"):
            bare += [
                f"{name}.{member}"
                for member, found in vars(value).items()
                if not member.startswith("_") and inspect.isfunction(found) and not (found.__doc__ or "").strip()
            ]
    assert not bare


def test_an_unknown_name_is_said_clearly() -> None:
    """A misspelt name is an ordinary AttributeError."""
    with pytest.raises(AttributeError, match="no attribute 'Jop'"):
        _ = jobkit.Jop


def test_importing_the_package_loads_nothing() -> None:
    """`import jobkit` costs nothing: no module outside the standard library, and none of its own."""
    result = run(
        "import sys; before = set(sys.modules); import jobkit\n"
        "print(*sorted(n for n in set(sys.modules) - before if n.split('.')[0] not in sys.stdlib_module_names))"
    )
    assert result.stdout.split() == ["jobkit"], result.stderr


def test_defining_a_job_loads_no_database_and_no_event_loop() -> None:
    """A module that only defines jobs pays for pydantic and msgpack, not for SQLAlchemy, anyio or asyncio."""
    result = run(
        "import sys\nfrom jobkit import Job, job, state, JobContext\n"
        "@job\nclass Small(Job[int]):\n    async def run(self, ctx):\n        return 1\n"
        "print(*[n for n in ('sqlalchemy', 'alembic', 'anyio', 'asyncio', 'trio', 'jobkit.store', 'jobkit.runtime')"
        " if n in sys.modules])"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []
