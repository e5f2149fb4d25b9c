"""The feed: tells those who wait what this process has committed.

It is a shortcut, never the truth: whoever waits also looks at the database now and then, since another process may have
done what it waits for. Lives on the event loop; nothing here is called from another thread, but for a listener's end:
who listens just lets go, in whatever thread, or has the garbage collector do it, so an end is only noted there.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Final
from weakref import ref

import anyio

from jobkit.model import JobStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobkit.interfaces import Observer
    from jobkit.lifecycle import Transition
    from jobkit.model import Event

log: logging.Logger = logging.getLogger("jobkit.observer")

LIVE_EVENTS: Final = 1_000
"""How many live events are kept for a reader who is slow; the oldest go first."""


class Ear:
    """One who waits, for as long as somebody keeps it."""

    def __init__(self) -> None:
        self.signal: anyio.Event = anyio.Event()
        self.live: deque[Event] = deque(maxlen=LIVE_EVENTS)

    def take(self) -> list[Event]:
        """Take the live events that came since the last time."""
        return [self.live.popleft() for _ in range(len(self.live))]

    def call(self) -> None:
        """Wake the one who waits."""
        self.signal.set()
        self.signal = anyio.Event()


class Feed:
    """Who hears what.

    Attributes:
        attendant: Hears each transition before everybody else; it must not fail.
    """

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = observers
        self.attendant: Observer | None = None
        self._ears: dict[str | None, set[ref[Ear]]] = {}
        self._count = 0
        self._gone: deque[tuple[str | None, ref[Ear]]] = deque()
        self.queued: anyio.Event = anyio.Event()

    @property
    def watched(self) -> bool:
        """Whether anybody listens; may be asked from any thread."""
        return self._count > len(self._gone)

    def listen(self, job_id: str | None = None) -> Ear:
        """Hear of one job, or of all, for as long as the answer is kept."""
        self._strike_out()
        ear, gone = Ear(), self._gone
        self._ears.setdefault(job_id, set()).add(ref(ear, lambda kept: gone.append((job_id, kept))))
        self._count += 1
        return ear

    def _strike_out(self) -> None:
        """Forget those who have let go since the last time."""
        while self._gone:
            job_id, kept = self._gone.popleft()
            self._count -= 1
            ears = self._ears[job_id]
            ears.remove(kept)
            if not ears:
                del self._ears[job_id]

    def heard(self, transitions: list[Transition]) -> None:
        """Pass on what was committed."""
        self._strike_out()
        if any(one.after.status is JobStatus.QUEUED for one in transitions):
            self.work_came()
        if self.attendant is not None:
            for transition in transitions:
                self.attendant(transition)
        for observer in self._observers:
            for transition in transitions:
                try:
                    observer(transition)
                except Exception:  # the wall around an observer
                    log.exception("an observer failed; it can change nothing, so work goes on")
        if self._ears:
            for job_id in {one.after.id for one in transitions if one.after.id in self._ears} | {None}:
                for ear in self._listeners(job_id):
                    ear.call()

    def happened(self, event: Event) -> None:
        """Pass on a live event, which is not stored."""
        self._strike_out()
        for job_id in (str(event.job_id), None):
            for ear in self._listeners(job_id):
                ear.live.append(event)
                ear.call()

    def _listeners(self, job_id: str | None) -> list[Ear]:
        return [ear for kept in tuple(self._ears.get(job_id, ())) if (ear := kept()) is not None]

    def close(self) -> None:
        """Wake everybody, for there will be nothing more to hear."""
        for job_id in list(self._ears):
            for ear in self._listeners(job_id):
                ear.call()

    def work_came(self) -> None:
        """Say that there may be something to claim."""
        self.queued.set()
        self.queued = anyio.Event()
