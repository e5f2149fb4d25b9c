"""The writer: all writes of this process, committed in groups by one thread.

While one commit runs, the next batch gathers by itself; no timer delays anybody. One disk flush serves every write that
was waiting, which is what makes full durability fast. A caller is answered after its commit, and never before.

Invariants: no two writes for one job in a batch, and a job's writes are committed in the order in which they came; the
thread never waits for the event loop (answers are posted), so a loop that blocks loses no jobs; the backlog is bounded
(callers wait); an attempt's own writes are tried again for as long as the database is away, anybody else's are told.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio

from jobkit.errors import SerializationError, StoreUnavailable
from jobkit.interfaces import Change, Claim, Claimed, Insert
from jobkit.lifecycle import Transition

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobkit.interfaces import Clock, Store, Threads, Write
    from jobkit.runtime.loops import Loop, Reply

log: logging.Logger = logging.getLogger("jobkit.writer")

BATCH_ROWS: Final = 1_000
"""About how many rows one commit may hold: enough to share its flush widely, few enough not to keep others waiting."""

BACKLOG: Final = 10_000
"""How many writes may wait before callers do."""

BACK_OFF_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)

COMPLAIN_EVERY_S: Final = 60.0
"""How often to log at most that nothing can be written: on a disk that is all but full, small writes may still pass."""


class Blocked:
    """An answer that a thread waits for.

    Attributes:
        given: Set once the answer is there.
    """

    __slots__ = ("answer", "given")

    def __init__(self) -> None:
        self.given: threading.Event = threading.Event()
        self.answer: Any = None

    def set(self, answer: object) -> None:
        """Give the answer; from the writer's thread."""
        self.answer = answer
        self.given.set()

    def wait(self) -> Any:
        """Wait for the answer; an exception is raised."""
        self.given.wait()
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class Entry(NamedTuple):
    """A write that waits, and who waits for it."""

    write: Write
    reply: Reply | Blocked | None


class Writer:
    """Commits writes in groups."""

    def __init__(  # noqa: PLR0917  in the order in which it uses them
        self,
        store: Store,
        loop: Loop,
        clock: Clock,
        threads: Threads,
        heard: Callable[[list[Transition]], None],
        came: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; `start` starts the thread.

        Args:
            store: Where to commit.
            loop: The manager's event loop.
            clock: Tells how long ago the last complaint was.
            threads: Where the thread comes from.
            heard: Called on the loop, after the commit, with the transitions of each batch.
            came: Called on the loop, after a commit that inserted jobs with no claim standing by.
        """
        self._store, self._loop, self._clock, self._threads = store, loop, clock, threads
        self._heard, self._came = heard, came
        self._pending: deque[Entry] = deque()
        self._changed = threading.Condition()
        self._room = anyio.Event()
        self._closing = False
        self._closed = anyio.Event()
        self._stop = threading.Event()
        self._failures = 0
        self._complaining = False
        self._complained_at = float("-inf")
        self._standing: Entry | None = None

    def start(self) -> None:
        """Start the thread."""
        self._threads.start(self._run, "jobkit writer")

    def lose_patience(self) -> None:
        """Keep no write for another try from now on, nor wait long for other processes: callers are told instead."""
        self._stop.set()
        self._store.hurry()

    async def close(self) -> None:
        """Commit what waits, then end the thread; what can't be committed at once is told to its caller."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self.lose_patience()
        await self._closed.wait()

    # ── the callers' side ──

    def stand_by(self, order: Entry) -> None:
        """Have a claim carried out in the next commit that inserts jobs: a new job starts without a second flush."""
        with self._changed:
            self._standing = order

    def stand_down(self) -> bool:
        """Take the standing order back; answer False if it is being carried out."""
        with self._changed:
            waiting, self._standing = self._standing is not None, None
        return waiting

    async def submit(self, write: Write) -> Any:
        """Have a write committed, and answer what the store answered.

        Raises:
            JobkitError: What the store answered.
        """
        while len(self._pending) >= BACKLOG:
            await self._room.wait()
        reply = self._loop.reply()
        self._put(Entry(write, reply))
        return await reply.wait()

    async def submit_all(self, writes: Sequence[Write]) -> list[Any]:
        """Have several writes committed together if they fit; answer each with its value or its exception."""
        replies = []
        for write in writes:
            while len(self._pending) >= BACKLOG:
                await self._room.wait()
            reply = self._loop.reply()
            replies.append(reply)
            self._put(Entry(write, reply))
        answers = []
        for reply in replies:
            try:
                answers.append(await reply.wait())
            except Exception as error:  # noqa: BLE001  an answer like any other here
                answers.append(error)
        return answers

    def submit_blocking(self, write: Write) -> Any:
        """Do the same as `submit`, from a thread that may block."""
        return self.ask(write).wait()

    def ask(self, write: Write) -> Blocked:
        """Have a write committed; a thread may wait for the answer, but need not, or not for ever."""
        reply = Blocked()
        self._put(Entry(write, reply))
        return reply

    def post(self, write: Write) -> None:
        """Have a write committed sometime soon; nobody asks what comes of it, and it is left out under load."""
        if len(self._pending) < BACKLOG:
            self._put(Entry(write, None))

    def _put(self, entry: Entry) -> None:
        with self._changed:
            closed = self._closing
            if not closed:
                self._pending.append(entry)
                self._changed.notify()
        if closed and entry.reply is not None:
            entry.reply.set(StoreUnavailable("the manager is stopped", "start it again to go on"))

    # ── the thread's side ──

    def _run(self) -> None:
        while batch := self._take():
            self._commit(batch)
        self._loop.post(self._closed.set)

    def _commit(self, batch: list[Entry]) -> None:
        try:
            answers = self._store.commit([entry.write for entry in batch])
        except StoreUnavailable as error:
            self._unavailable(batch, error)
            return
        except Exception as error:  # noqa: BLE001  the wall around a batch
            if len(batch) > 1:
                for entry in batch:
                    self._commit([entry])
                return
            answers = [_unexpected(error)]
        self._failures = 0
        if self._complaining:
            log.warning("the database can be written again; work goes on")
            self._complaining = False
        self._deliver(batch, answers)

    def _take(self) -> list[Entry]:
        """Wait for writes and take a batch: no two for one job, in order; empty once all is done and closing."""
        with self._changed:
            while not self._pending and not self._closing:
                self._changed.wait()
            batch: list[Entry] = []
            later: list[Entry] = []
            seen: set[str] = set()
            rows = 0
            while self._pending and rows < BATCH_ROWS:
                entry = self._pending.popleft()
                write = entry.write
                if isinstance(write, Change):
                    if write.job_id in seen:
                        later.append(entry)
                        continue
                    seen.add(write.job_id)
                    rows += len(write.lines)
                batch.append(entry)
                rows += len(write.jobs) if isinstance(write, Insert) else 1
            self._pending.extendleft(reversed(later))
            if self._standing is not None and any(isinstance(entry.write, Insert) for entry in batch):
                batch.append(self._standing)
                self._standing = None
            return batch

    def _deliver(self, batch: list[Entry], answers: list[Any]) -> None:
        """Answer blocked threads here, and everybody on the loop with one call."""
        posted: list[tuple[Reply, Any]] = []
        transitions: list[Transition] = []
        for entry, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Transition):
                transitions.extend((answer, *answer.then))
            elif isinstance(answer, list):
                transitions.extend(one.transition for one in answer if isinstance(one, Claimed))
            if isinstance(entry.reply, Blocked):
                entry.reply.set(answer)
            elif entry.reply is not None:
                posted.append((entry.reply, answer))
        kinds = {type(entry.write) for entry in batch}
        self._loop.post(self._answer, posted, transitions, Insert in kinds and Claim not in kinds)

    def _answer(self, posted: list[tuple[Reply, Any]], transitions: list[Transition], unclaimed: bool) -> None:  # noqa: FBT001
        """On the loop: tell observers first, so that who is answered finds them told."""
        if transitions:
            self._heard(transitions)
        if unclaimed:
            self._came()
        for reply, answer in posted:
            reply.set(answer)
        self._room.set()
        self._room = anyio.Event()

    def _unavailable(self, batch: list[Entry], error: StoreUnavailable) -> None:
        """Tell those who can do something about it, and keep the attempts' own writes for another try."""
        self._failures += 1
        if not self._complaining and self._clock.monotonic() - self._complained_at >= COMPLAIN_EVERY_S:
            log.error("nothing can be written: %s", error)
            self._complaining, self._complained_at = True, self._clock.monotonic()
        kept: list[Entry] = []
        told: list[Entry] = []
        for entry in batch:
            (kept if _patient(entry.write) and not self._stop.is_set() else told).append(entry)
        self._deliver(told, [error] * len(told))
        with self._changed:
            self._pending.extendleft(reversed(kept))
        if kept:
            self._threads.wait(self._stop, BACK_OFF_S[min(self._failures, len(BACK_OFF_S)) - 1])


def _patient(write: Write) -> bool:
    """Whether a write belongs to an attempt or a sweep, which have nobody to turn to."""
    return isinstance(write, Change) and write.expected is not None


def _unexpected(error: Exception) -> SerializationError:
    refused = SerializationError("a write", f"the store failed on it ({type(error).__name__}: {error})")
    refused.__cause__ = error
    return refused
