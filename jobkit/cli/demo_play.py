"""The demonstration, from beginning to end: two lives of a worker, a SIGKILL between them, and the verdict.

The parent only watches: its manager is a client (`work=False`), so whatever resumes the job is the second process.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio import to_thread

from jobkit import JobManager, JobStatus
from jobkit.cli.demo_job import COPIES, EVERY, Effects, FileCopy
from jobkit.cli.demo_stage import Stage
from jobkit.cli.demo_tree import as_many_as_fit, differing
from jobkit.cli.exits import JOB_FAILED, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from anyio.abc import Process
    from rich.console import Console

    from jobkit import JobHandle, JobRecord

POLL_S: Final = 0.05
"""How often the job's row is looked at."""

STALL_S: Final = 60
"""After how long without a sign of progress the demonstration is given up."""

EXIT_S: Final = 30
"""How long a worker may take to end once its job is done."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was measured.

    Attributes:
        files: How many files were asked for.
        size: Their bytes, as the job counted them.
        killed: The job's row as the killed process left it.
        final: The job's row at the end.
        resumed_at: How many files the second process found done.
        resumed_after_s: Seconds from the start of the second process until the job was in its handler again.
        copied_when_killed: How many files the first process had copied, by its log.
        kept: How many of them were not copied again.
        again: How many of them were.
        cut: How many files the first process was copying when it was killed.
        wrong: What is wrong with the copies, a line each.
        took_s: Seconds, all in all.
    """

    files: int
    size: int
    killed: JobRecord
    final: JobRecord
    resumed_at: int
    resumed_after_s: float
    copied_when_killed: int
    kept: int
    again: int
    cut: int
    wrong: Sequence[str]
    took_s: float

    def problems(self) -> list[str]:
        """Say what did not go as promised; nothing, if all did."""
        output: Any = self.final.output
        checks = (
            (self.killed.status is JobStatus.RUNNING, f"the killed job's row said {self.killed.status}, not running"),
            (self.final.status is JobStatus.COMPLETED, f"the job ended as {self.final.status}: {self.final.error}"),
            (self.final.attempt == 2, f"it took {self.final.attempt} attempts, not 2"),  # noqa: PLR2004  one kill
            (self.resumed_at > 0, "the job began again from nothing"),
            (
                self.resumed_at == self.killed.checkpoint_seq * EVERY,
                f"the job went on at file {self.resumed_at}, its last checkpoint was another",
            ),
            (
                output == {"files": self.files, "total_bytes": self.size},
                f"the job answered {output}, the copies are {self.files} files of {self.size} bytes",
            ),
        )
        return [problem for fine, problem in checks if not fine] + list(self.wrong)


async def play(console: Console, folder: Path, root: Path, files: Sequence[Path], *, tamper: bool) -> bool:
    """Play it.

    Args:
        console: Where to show it.
        folder: Where the database and the copies go; empty.
        root: Where the files are.
        files: Their paths from there.
        tamper: Whether to damage one copy before they are checked.

    Returns:
        Whether all went as promised.

    Raises:
        Refused: It could not be shown.
    """
    began = time.monotonic()
    stage = Stage(console)
    copies, effects = folder / "copies", folder / "effects.log"
    chosen = as_many_as_fit(root, files, folder)
    stage.open(root, folder, len(chosen), len(files), EVERY)
    async with JobManager(folder / "jobs.db", registry=COPIES, work=False) as manager:
        handle = await manager.dispatch(FileCopy(root=root, sources=chosen, destination=copies, effects=effects))
        killed = await _until_killed(stage, handle, folder, len(chosen))
        second = time.monotonic()
        final = await _to_the_end(stage, handle, folder, len(chosen))
    if tamper:
        stage.tampered(_tamper(copies / chosen[len(chosen) // 3]))
    with stage.checking(len(chosen)):
        wrong = await to_thread.run_sync(differing, root, chosen, copies)

    log = Effects.read(effects)
    first_copied = {one.file for one in log if one.what == "copied" and one.attempt == 1}
    first_begun = {one.file for one in log if one.what == "begin" and one.attempt == 1}
    later_begun = {one.file for one in log if one.what == "begin" and one.attempt > 1}
    entered = next((one for one in log if one.what == "enter" and one.attempt > 1), None)
    found = Findings(
        files=len(chosen),
        size=sum((root / path).stat().st_size for path in chosen),
        killed=killed,
        final=final,
        resumed_at=entered.file if entered else 0,
        resumed_after_s=entered.at_s - second if entered else 0.0,
        copied_when_killed=len(first_copied),
        kept=len(first_copied - later_begun),
        again=len(first_copied & later_begun),
        cut=len((first_begun - first_copied) & later_begun),
        wrong=wrong,
        took_s=time.monotonic() - began,
    )
    stage.close(found, found.problems(), folder, EVERY)
    return not found.problems()


# ── the two lives ──


async def _until_killed(stage: Stage, handle: JobHandle[Any], folder: Path, total: int) -> JobRecord:
    """Start the first worker, and kill it half-way."""
    async with _worker(folder) as process:
        with stage.watching(process.pid, total) as show:
            async for record in _watched(handle, process, folder):
                show(_done(record))
                if record.status.terminal:
                    break
                if _done(record) >= total / 2:
                    process.kill()
                    await process.wait()
                    break
        killed = await handle.record()
    if killed.status.terminal:
        raise Refused(JOB_FAILED, f"the job was {killed.status} before it could be killed: {_reason(killed, folder)}")
    stage.killed(process.pid, process.returncode, _done(killed), total, killed)
    return killed


async def _to_the_end(stage: Stage, handle: JobHandle[Any], folder: Path, total: int) -> JobRecord:
    """Start the second worker, and let it do what it finds to do."""
    async with _worker(folder) as process:
        with stage.watching(process.pid, total) as show:
            async for record in _watched(handle, process, folder):
                show(_done(record))
                if record.status.terminal or record.status is JobStatus.HELD:
                    break
        with anyio.move_on_after(EXIT_S):
            await process.wait()
        return record


async def _watched(handle: JobHandle[Any], process: Process, folder: Path) -> AsyncIterator[JobRecord]:
    """Look at the job's row again and again, for as long as there is something to wait for."""
    before, since = -1, time.monotonic()
    while True:
        ended = process.returncode  # read before the row: what the process wrote last is in the row then
        record = await handle.record()
        if _done(record) != before:
            before, since = _done(record), time.monotonic()
        yield record
        if ended is not None:
            raise Refused(JOB_FAILED, f"the worker ended early, with exit code {ended}: {_reason(record, folder)}")
        if time.monotonic() - since > STALL_S:
            raise Refused(JOB_FAILED, f"nothing was done for {STALL_S} seconds: {_reason(record, folder)}")
        await anyio.sleep(POLL_S)


@asynccontextmanager
async def _worker(folder: Path) -> AsyncIterator[Process]:
    """A worker process, which doesn't outlive the block. In a session of its own: Ctrl-C is for the parent to hear."""
    with (folder / "worker.log").open("ab") as log:
        process = await anyio.open_process(
            [sys.executable, "-m", "jobkit.cli.demo_worker", str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.aclose()


def _done(record: JobRecord) -> int:
    return int((record.progress and record.progress.completed) or 0)


def _reason(record: JobRecord, folder: Path) -> str:
    """Find out why the demonstration came to nothing, and say what to do."""
    said = (folder / "worker.log").read_text(errors="replace").strip().splitlines()
    failure = (
        f"{record.error.type}: {record.error.message}" if record.error else said[-1] if said else "it said nothing"
    )
    return f"{failure}; try again with --folder, where worker.log is kept"


def _tamper(path: Path) -> Path:
    """Turn one bit of a file around; an empty one gets a byte."""
    data = bytearray(path.read_bytes() or b"\0")
    data[0] ^= 1
    path.write_bytes(data)
    return path
