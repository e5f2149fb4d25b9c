"""The program as its users start it, and a database with something of everything in it."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import subprocess
from functools import partial
from pathlib import Path

import anyio
import pytest
from pydantic import SecretStr

from jobkit import Job, JobContext, JobManager, JobRecord, Priority, Registry, job, registry
from jobkit.cli import main
from tests.cli.processes import COMMAND, Program, Terminal, environment

JOBS = Registry()


@job("greet", registry=JOBS)
class Greet(Job[dict[str, str]]):
    """Greet somebody."""

    name: str
    token: SecretStr = SecretStr("hunter2")

    async def run(self, ctx: JobContext) -> dict[str, str]:
        ctx.progress(completed=3, total=4, unit="words", message="nearly there")
        await ctx.checkpoint()
        return {"greeting": f"Hello, {self.name}!"}


@job("stumble", registry=JOBS)
class Stumble(Job[None]):
    async def run(self, ctx: JobContext) -> None:
        raise LookupError("no such [bold]street[/bold] \x1b[31m")


@job("someday", registry=JOBS, queue="slow")
class Someday(Job[None]):
    async def run(self, ctx: JobContext) -> None: ...


@pytest.fixture
def jobkit(tmp_path):
    """Run the program in an empty folder; answers what `subprocess.run` does."""

    def run(*arguments, **extra):
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            check=False, capture_output=True, text=True, encoding="utf-8", timeout=120, cwd=tmp_path,
            env=environment(**extra),
        )  # fmt: skip

    return run


@pytest.fixture
def in_process(tmp_path, monkeypatch, capsys):
    """Run the program in this process: for long tables of cases, without starting Python for each."""
    monkeypatch.chdir(tmp_path)
    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)

    def run(*arguments):
        code = main([str(one) for one in arguments])
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)

    return run


@pytest.fixture
def at_a_terminal(tmp_path):
    """Run the program at a terminal of 120 columns; answers all that was shown."""

    def run(*arguments, **extra):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdout=theirs, stderr=theirs, cwd=tmp_path, env=environment(COLUMNS="120", **extra),
        )  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # how Linux says that the other side has closed it
            pass
        os.close(ours)
        assert process.wait(timeout=120) == 0, shown
        return shown.decode()

    return run


@pytest.fixture
def application(tmp_path):
    """The folder of an application: `myapp.jobs` holds the jobs of workload.py."""
    (tmp_path / "myapp").mkdir()
    (tmp_path / "myapp" / "__init__.py").touch()
    shutil.copy(Path(__file__).with_name("workload.py"), tmp_path / "myapp" / "jobs.py")
    return tmp_path


@pytest.fixture
def start(application):
    """Start the program in the application's folder, in the background."""
    with contextlib.ExitStack() as stack:

        def begin(*arguments, **extra) -> Program:
            return stack.enter_context(Program(*arguments, folder=application, **extra))

        yield begin


@pytest.fixture
def worker(start):
    """Start a worker for the application's jobs."""
    return partial(start, "worker", "--app", "myapp.jobs")


@pytest.fixture
def terminal(application):
    """A terminal in the application's folder."""
    with Terminal(application) as opened:
        yield opened


@pytest.fixture
def dispatch(application):
    """Dispatch jobs to the application's database, also such as it doesn't know; answers their ids."""

    def store(*jobs, registry=registry, **options) -> list[str]:
        async def ask() -> list[str]:
            async with JobManager(application / "jobs.db", registry=registry, work=False) as client:
                return [str(one.id) for one in await client.dispatch_many(jobs, **options)]

        return anyio.run(ask)

    return store


@pytest.fixture
def record(application):
    """Read a job of the application's database."""

    def read(job_id: str) -> JobRecord:
        async def ask() -> JobRecord:
            async with JobManager(application / "jobs.db", work=False) as client:
                return await client.get(job_id)

        return anyio.run(ask)

    return read


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """Six jobs: three greetings (one labelled with what could do harm), one failure, two that nobody runs."""
    path = tmp_path_factory.mktemp("cli") / "some jobs.db"

    async def fill() -> None:
        async with JobManager(path, registry=JOBS) as manager:
            await manager.dispatch_many(
                [Greet(name="Ada"), Greet(name="Grace")], user="ada", tags=["nightly"], metadata={"provider": "vsphere"}
            )
            await manager.dispatch(Greet(name="[red]Eve[/red]"), label="[red]wild[/red] \x1b[31m", user="eve")
            await manager.dispatch(Stumble(), priority=Priority.HIGH)
            await manager.run_until_idle(timeout=60)
        async with JobManager(path, registry=JOBS, work=False) as client:
            await client.dispatch_many([Someday(), Someday()])

    anyio.run(fill)
    return path
