"""Requests: what people ask of jobs, from any process.

A request acts on the job as it is stored, whoever runs it and whether anybody does: it is one write, decided by
`lifecycle` and durable when it is answered. What it asks of a running handler is the supervisor's to see to.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from anyio import to_thread

from jobkit.interfaces import Change
from jobkit.lifecycle import Cause, Trigger
from jobkit.model import TERMINAL, ControlOutcome, JobStatus

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from uuid import UUID

    from jobkit.lifecycle import Transition
    from jobkit.runtime.watch import Watch
    from jobkit.runtime.writer import Writer


class Control:
    """Asks things of jobs."""

    def __init__(self, watch: Watch, writer: Callable[[], Writer], data_dir: Callable[[], Path | None]) -> None:
        """Prepare.

        Args:
            watch: Tells whether the manager is open, and what became of a request.
            writer: The writer of the manager's present run.
            data_dir: Where jobs keep their folders, if that is known.
        """
        self._watch, self._writer, self._data_dir = watch, writer, data_dir

    async def pause(self, job_id: UUID, *, across_restarts: bool, wait: bool) -> ControlOutcome:
        """Ask for a pause."""
        return await self._ask(job_id, Cause(Trigger.PAUSE, across_restarts=across_restarts), wait=wait)

    async def resume(self, job_id: UUID, *, wait: bool) -> ControlOutcome:
        """Take a pause back."""
        return await self._ask(job_id, Cause(Trigger.RESUME), wait=wait)

    async def cancel(self, job_id: UUID, *, wait: bool) -> ControlOutcome:
        """Ask for the end."""
        return await self._ask(job_id, Cause(Trigger.CANCEL), wait=wait)

    async def release(self, job_id: UUID, *, wait: bool) -> ControlOutcome:
        """Let a held job go on."""
        return await self._ask(job_id, Cause(Trigger.RELEASE), wait=wait)

    async def delete(self, job_id: UUID) -> None:
        """Remove a finished job, and after that its folder."""
        await self._change(job_id, Cause(Trigger.DELETE))
        if (root := self._data_dir()) is not None:
            await to_thread.run_sync(lambda: shutil.rmtree(root / "jobs" / str(job_id), ignore_errors=True))

    async def _ask(self, job_id: UUID, cause: Cause, *, wait: bool) -> ControlOutcome:
        before = (await self._change(job_id, cause)).before
        if before.status in TERMINAL:
            return ControlOutcome.ALREADY_FINISHED
        if wait and before.status is JobStatus.RUNNING:
            await self._done(job_id)
        return ControlOutcome.ACCEPTED

    async def _change(self, job_id: UUID, cause: Cause) -> Transition:
        self._watch.check()
        done: Transition = await self._writer().submit(Change(str(job_id), cause))
        return done

    async def _done(self, job_id: UUID) -> None:
        """Wait until nothing is wanted of a running job any more: it has stopped, ended, or it was taken back."""
        ear = self._watch.feed.listen(str(job_id))
        looks = 0
        while True:
            signal = ear.signal
            record = await self._watch.record(job_id)
            if record.status is not JobStatus.RUNNING or record.wanted is None:
                return
            looks += not await self._watch.heard(signal, looks)
