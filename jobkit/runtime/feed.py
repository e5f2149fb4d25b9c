"""The feed: tells those who wait what this process has committed.

It is a shortcut, never the truth: whoever waits also looks at the database now and then, since another process may have
done what it waits for. Lives on the event loop; nothing here is called from another thread.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import anyio

from jobkit.model import JobStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jobkit.interfaces import Observer
    from jobkit.lifecycle import Transition
    from jobkit.model import Event

log = logging.getLogger("jobkit.observer")

LIVE_EVENTS: Final = 1_000
"""How many live events are kept for a reader who is slow; the oldest go first."""


class Ear:
    """One who waits: for a job's transitions or for all, and for live events if wanted."""

    def __init__(self, job_id: str | None) -> None:
        self.job_id = job_id
        self.signal = anyio.Event()
        self.live: deque[Event] = deque(maxlen=LIVE_EVENTS)

    def call(self) -> None:
        """Wake the one who waits."""
        self.signal.set()
        self.signal = anyio.Event()


class Feed:
    """Who hears what."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = observers
        self._ears: dict[str | None, set[Ear]] = defaultdict(set)
        self.queued = anyio.Event()

    @property
    def watched(self) -> bool:
        """Whether anybody listens; may be asked from any thread."""
        return bool(self._ears)

    @contextmanager
    def listening(self, job_id: str | None = None) -> Iterator[Ear]:
        """Hear of one job, or of all, from now on."""
        ear = Ear(job_id)
        self._ears[job_id].add(ear)
        try:
            yield ear
        finally:
            self._ears[job_id].discard(ear)
            if not self._ears[job_id]:
                del self._ears[job_id]

    def heard(self, transitions: list[Transition]) -> None:
        """Pass on what was committed."""
        if any(one.after.status is JobStatus.QUEUED for one in transitions):
            self.work_came()
        for observer in self._observers:
            for transition in transitions:
                try:
                    observer(transition)
                except Exception:  # the wall around an observer
                    log.exception("an observer failed; it can change nothing, so work goes on")
        if not self._ears:
            return
        for transition in transitions:
            for ear in self._ears.get(transition.after.id, ()):
                ear.call()
        for ear in self._ears.get(None, ()):
            ear.call()

    def happened(self, event: Event) -> None:
        """Pass on a live event, which is not stored."""
        for key in (str(event.job_id), None):
            for ear in self._ears.get(key, ()):
                ear.live.append(event)
                ear.call()

    def work_came(self) -> None:
        """Say that there may be something to claim."""
        self.queued.set()
        self.queued = anyio.Event()
