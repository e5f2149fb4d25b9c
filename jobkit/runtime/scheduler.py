"""The scheduler: has jobs go on when their time has come.

A sleeping job is a row with a time on it. Every node looks for those that are due; whoever comes first moves them, and
the others find them moved. It sleeps until the next time that is known, and never longer than `LOOK_S`, for another
process may have set an earlier one.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import anyio

from jobkit.errors import JobkitError
from jobkit.lifecycle import Cause, Trigger
from jobkit.runtime.moving import move

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from jobkit.interfaces import Clock, Store
    from jobkit.runtime.writer import Writer

log: logging.Logger = logging.getLogger("jobkit.scheduler")

LOOK_S: Final = 1.0
"""How long it looks away at most."""

SOON_S: Final = 0.005
"""How long it looks away at least: what is due within this time is moved together."""


class Scheduler:
    """Moves what is due."""

    def __init__(self, store: Store, writer: Writer, clock: Clock, read: Callable[..., Awaitable[Any]]) -> None:
        """Prepare; `run` schedules.

        Args:
            store: Where the jobs are.
            writer: Commits what is decided.
            clock: Time between looks.
            read: Calls a reading function off the event loop.
        """
        self._store, self._writer, self._clock, self._read = store, writer, clock, read

    async def run(self) -> None:
        """Schedule until cancelled."""
        never = anyio.Event()
        failing = False
        while True:
            pause = LOOK_S
            try:
                pause = await self.look()
            except Exception as error:  # the wall around a look: whatever it met, the next one is due all the same
                if not failing:
                    known = isinstance(error, JobkitError)
                    log.warning("jobs that are due can't be looked for, yet: %s", error, exc_info=not known)
                failing = True
            else:
                failing = False
            await self._clock.wait(never, pause)

    async def look(self) -> float:
        """Move what is due.

        Returns:
            How long to look away, in seconds: until the next job is due, within bounds.
        """
        moved = await move(self._read, self._writer, self._store.due, lambda _: Cause(Trigger.DUE))
        left = await self._read(self._until_next)
        return LOOK_S if left <= 0 and not moved else min(LOOK_S, max(SOON_S, left))  # what is due and stays can't move

    def _until_next(self) -> float:
        at = self._store.next_due()
        return LOOK_S if at is None else (at - self._store.now()).total_seconds()
