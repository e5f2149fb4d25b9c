"""Time, ids and threads that a test holds in its hand."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import anyio
from anyio.lowlevel import checkpoint

from jobkit.runtime.clock import SystemThreads
from jobkit.runtime.loops import Loop

if TYPE_CHECKING:
    from jobkit.interfaces import Signal, ThreadSignal

PATIENCE_S = 0.005
"""How often a waiting thread looks whether the fake time has come."""


class FakeClock:
    """Time that stands still until it is moved; also what the database takes for now.

    Args:
        start: The first moment (aware).
    """

    def __init__(self, start: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        self._start, self._passed = start, 0.0
        self._lock = threading.Lock()
        self._sleepers: list[tuple[float, Loop, anyio.Event]] = []

    def advance(self, seconds: float) -> None:
        """Let time pass, and wake all whose time has come; from any thread.

        Args:
            seconds: How much; a negative number sets the clock back and wakes nobody.
        """
        with self._lock:
            self._passed += seconds
            due = [sleeper for sleeper in self._sleepers if sleeper[0] <= self._passed]
            self._sleepers = [sleeper for sleeper in self._sleepers if sleeper[0] > self._passed]
        for _, loop, event in due:
            loop.post(event.set)

    def now(self) -> datetime:
        """The time that the database is to use."""
        return self._start + timedelta(seconds=self._passed)

    wall = now

    def monotonic(self) -> float:
        """Seconds from the start."""
        return self._passed

    async def wait(self, signal: Signal, seconds: float) -> bool:
        """Wait until a signal is set or the time is over."""
        if seconds <= 0:
            await checkpoint()
            return signal.is_set()
        due = anyio.Event()
        with self._lock:
            sleeper = (self._passed + seconds, Loop(), due)
            self._sleepers.append(sleeper)
        try:
            async with anyio.create_task_group() as group:

                async def first(of: Signal) -> None:
                    await of.wait()
                    group.cancel_scope.cancel()

                group.start_soon(first, signal)
                group.start_soon(first, due)
        finally:
            with self._lock:
                if sleeper in self._sleepers:
                    self._sleepers.remove(sleeper)
        return signal.is_set()


class FakeIds:
    """Ids that count: 00000000-0000-7000-8000-000000000001 and on."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()

    def new(self) -> UUID:
        """The next id."""
        with self._lock:
            self._count += 1
            return UUID(int=0x7 << 76 | 0b10 << 62 | self._count)


class FakeThreads(SystemThreads):
    """Real threads that wait in fake time.

    Args:
        clock: The time.
    """

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    def wait(self, signal: ThreadSignal, seconds: float) -> bool:
        """Wait until a signal is set or the fake time is over."""
        deadline = self._clock.monotonic() + seconds
        while not signal.wait(PATIENCE_S):
            if self._clock.monotonic() >= deadline:
                return False
        return True
