"""What a running attempt tells: its progress, and its log.

Between the handler, which may tell as much as it likes and must never wait or fail for it, and those who want to know:
live readers in this process, and the row. Here it is decided how much of it reaches them and when; the last progress
always arrives. Called from the event loop and from handlers' threads.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Final, Protocol
from uuid import UUID

from jobkit.interfaces import Change
from jobkit.lifecycle import Cause, Trigger
from jobkit.model import Event

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobkit.interfaces import Clock
    from jobkit.lifecycle import Standing
    from jobkit.model import Json, Progress
    from jobkit.runtime.feed import Feed
    from jobkit.runtime.loops import Loop
    from jobkit.runtime.writer import Writer

log: logging.Logger = logging.getLogger("jobkit.job")

REPORT: Final = Cause(Trigger.REPORT)

REPORT_EVERY_S: Final = 0.5
"""How often an attempt's progress is stored at most, unless a checkpoint or its end takes it along."""

SHOW_EVERY_S: Final = 0.05
"""How often an attempt's progress is shown to live readers at most."""


class Teller(Protocol):
    """The attempt that tells."""

    name: str
    standing: Standing
    fenced: bool


class Reports:
    """What one attempt tells."""

    def __init__(self, attempt: Teller, writer: Writer, feed: Feed, loop: Loop, clock: Clock) -> None:
        """Begin with nothing told.

        Args:
            attempt: Who tells.
            writer: Stores it.
            feed: Shows it to live readers.
            loop: Where the feed lives.
            clock: Tells how often is too often.
        """
        self._attempt, self._writer, self._feed, self._loop, self._clock = attempt, writer, feed, loop, clock
        self._progress: Progress | None = None
        self._unsaved = self._unshown = False
        self._reported = self._shown = float("-inf")

    def report(self, progress: Progress) -> None:
        """Take note of the latest progress; store and show it unless that was done just now."""
        self._progress = progress
        self._unsaved = self._unshown = True
        now = self._clock.monotonic()
        if now - self._shown >= SHOW_EVERY_S:
            self._shown = now
            self._show()
        if now - self._reported >= REPORT_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Have progress stored that no checkpoint has taken along, and shown what was throttled."""
        self._show()
        if self._unsaved and not self._attempt.fenced:
            job = self._attempt.standing
            self._writer.post(Change(job.id, REPORT, job, progress=self.take_progress()))

    def take_progress(self) -> Progress | None:
        """Give the progress that is not stored yet, for a write that takes it along."""
        if not self._unsaved:
            return None
        self._unsaved = False
        self._reported = self._clock.monotonic()
        return self._progress

    def latest(self) -> Progress | None:
        """Give the attempt's last progress, for its end: shown and stored whatever was left out before."""
        self._show()
        self._unsaved = False
        return self._progress

    def log(self, message: str, level: str, fields: Mapping[str, object]) -> None:
        """Write a line to the log, under the job's name and id. Never raises, whatever the log's handlers do."""
        number = logging.getLevelNamesMapping().get(str(level).upper(), logging.INFO)
        job = self._attempt.standing
        extra = {"job_id": job.id, "job_name": self._attempt.name, "attempt": job.attempt, "fields": dict(fields)}
        with contextlib.suppress(Exception):
            log.log(number, "%s %s: %s", self._attempt.name, job.id, message, extra=extra)

    def tell(self, kind: str, data: Json) -> None:
        """Pass a live event to those who listen; from any thread."""
        if self._feed.watched:
            job = self._attempt.standing
            event = Event(UUID(job.id), job.event_seq, kind, job.status, None, data, self._clock.wall())
            self._loop.post(self._feed.happened, event)

    def _show(self) -> None:
        """Show the latest progress to live readers, unless it was."""
        progress = self._progress
        if self._unshown and progress is not None:
            self._unshown = False
            self.tell("progress", _shown(progress))


def _shown(progress: Progress) -> Json:
    return {name: getattr(progress, name) for name in progress.__slots__ if getattr(progress, name) is not None}
