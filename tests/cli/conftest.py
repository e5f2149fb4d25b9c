"""The program as its users start it, and a database with something of everything in it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from pydantic import SecretStr

from jobkit import Job, JobContext, JobManager, Priority, Registry, job
from jobkit.cli import main

ROOT = Path(__file__).parents[2]
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


def environment(**extra: str) -> dict[str, str]:
    """Make an environment in which nothing of the caller's own says how to print or which database to use."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("JOBKIT_") and name not in {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE"}
    }
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "TERM": "xterm-256color"} | extra


COMMAND = (sys.executable, "-W", "error", "-m", "jobkit.cli")


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
