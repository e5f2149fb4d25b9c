"""What a running attempt tells: its progress, and the lines of its log.

It stands between the handler, which may tell as much as it likes and must never wait or fail for it, and those who want
to know: live readers in this process, and the database. What was told is held back here until it is time: it travels
with the attempt's next write, a checkpoint or its end, or else with one of its own, twice a second at most. It is
called from the event loop and from handlers' threads.

Invariants: the last progress always arrives; lines are stored in the order in which they were told, each once, in the
transaction of the write that takes them along; what is held back is bounded by what a job's log may hold. An attempt
that lost its job tells nothing any more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from uuid import UUID

from jobkit.interfaces import Change, LogLine
from jobkit.lifecycle import Cause, Transition, Trigger, advance
from jobkit.model import Event
from jobkit.pace import pace_of
from jobkit.plain import clean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobkit.interfaces import Claimed, Clock
    from jobkit.lifecycle import Standing
    from jobkit.model import Json, LogLevel, Progress
    from jobkit.runtime.feed import Feed
    from jobkit.runtime.loops import Loop
    from jobkit.runtime.writer import Blocked, Writer

log: logging.Logger = logging.getLogger("jobkit.job")

REPORT: Final = Cause(Trigger.REPORT)

REPORT_EVERY_S: Final = 0.5
"""How often an attempt writes for the sake of what it tells alone, at most."""

SHOW_EVERY_S: Final = 0.05
"""How often an attempt's progress is shown to live readers, at most."""

FIELDS_BYTES: Final = 8 * 1024
"""How much the fields of one line may be, as JSON."""

LINE_BYTES: Final = 100
"""What a line takes beside its text and fields."""

RESERVE: Final = 0.25
"""Which share of a job's log is for warnings and errors alone."""

_LEVELS: Final[Mapping[str, LogLevel]] = {
    "debug": "debug", "info": "info", "warning": "warning", "error": "error",
    "warn": "warning", "critical": "error", "fatal": "error",
}  # fmt: skip

_NUMBERS: Final[Mapping[LogLevel, int]] = {
    "debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR,
}  # fmt: skip

_GRAVE: Final = frozenset({"warning", "error"})


class Teller(Protocol):
    """The attempt that tells."""

    name: str
    fenced: bool

    @property
    def standing(self) -> Standing:
        """What is known of its job."""
        ...

    def learn(self, told: Standing) -> None:
        """Take note of how its job stands, as far as that is newer."""
        ...


class Flush(NamedTuple):
    """A write for the sake of what was told alone: its answer once it is there, and the standing before it."""

    reply: Blocked
    before: Standing


class Reports:
    """What one attempt tells."""

    def __init__(  # noqa: PLR0917  in the order in which it uses them
        self,
        attempt: Teller,
        claimed: Claimed,
        writer: Writer,
        feed: Feed,
        loop: Loop,
        clock: Clock,
        max_log_bytes: int,
    ) -> None:
        """Begin with nothing told.

        Args:
            attempt: Who tells.
            claimed: What attempts before it have told.
            writer: Stores it.
            feed: Shows it to live readers.
            loop: Where the feed lives.
            clock: Tells how often is too often.
            max_log_bytes: How much the job's log may hold.
        """
        self._attempt, self._writer, self._feed, self._loop, self._clock = attempt, writer, feed, loop, clock
        self._lock = threading.RLock()  # whatever holds it may be interrupted by a finaliser that tells something, too
        self._progress: Progress | None = None
        self._told_at = 0.0
        self._pace = pace_of(claimed.progress)
        self._unpaced = self._unsaved = self._unshown = False
        self._lines: list[tuple[float, LogLine]] = []
        self._warnings = self._left_out = 0
        self._logged, self._max = claimed.log_bytes, max_log_bytes
        self._written, self._shown = clock.monotonic(), float("-inf")
        self._flush: Flush | None = None
        self._saving = self._ended = False

    # ── the handler's side ──

    def report(self, progress: Progress) -> None:
        """Take note of the latest progress; show and store it unless that was done just now."""
        now = self._clock.monotonic()
        with self._lock:
            self._progress, self._told_at = progress, now
            self._unpaced = self._unsaved = self._unshown = True
            self._pass_on(now)

    def log(self, message: str, level: str, fields: Mapping[str, Json]) -> None:
        """Take a line of the job's log, as far as there is room for it, and write it to `logging`."""
        line = _line(message, _LEVELS.get(level.lower(), "info"), fields)
        job = self._attempt.standing
        extra = {"job_id": job.id, "job_name": self._attempt.name, "attempt": job.attempt, "fields": line.fields}
        with contextlib.suppress(Exception):  # the log's handlers are the application's
            log.log(_NUMBERS[line.level], "%s %s: %s", self._attempt.name, job.id, line.message, extra=extra)
        now = self._clock.monotonic()
        with self._lock:
            if not (self._ended or self._attempt.fenced):
                self._warnings += line.level in _GRAVE
                self._keep(line, now)
                self._pass_on(now)

    def _keep(self, line: LogLine, now: float) -> None:
        room = self._max if line.level in _GRAVE else self._max * (1 - RESERVE)
        if self._logged + line.size <= room:
            self._logged += line.size
            self._lines.append((now, line))
            return
        if not self._left_out:
            full = f"the log has reached its limit (max_log_bytes is {self._max:,}): from here on lines are left out"
            self._lines.append((now, _line(full, "warning", {})))
        self._left_out += 1

    # ── what is held back, and for how long ──

    def flush(self) -> None:
        """Show and store what was held back, if it is time."""
        with self._lock:
            self._pass_on(self._clock.monotonic())

    def _pass_on(self, now: float) -> None:
        if self._attempt.fenced or self._ended:
            return
        if now - self._shown >= SHOW_EVERY_S:
            self._show(now)
        if now - self._written >= REPORT_EVERY_S and (self._unsaved or self._lines or self._warnings):
            self._write(now)

    def _write(self, now: float) -> None:
        """Have it stored by a write of its own, and count on what will come of that: nobody waits for the answer."""
        if not self._settled():  # lines keep their order by never overtaking each other
            return
        change = self._change(REPORT, now)
        job = self._attempt.standing
        self._attempt.learn(advance(job, REPORT, self._clock.wall(), len(change.lines)).after)
        self._flush = Flush(self._writer.ask(change), job)

    def _settled(self) -> bool:
        """Whether no write of the attempt is under way; what came of its own last one is learnt, if that is news.

        While a checkpoint is under way it isn't: the answer to that one is newer, and may come at any moment.
        """
        if self._saving:
            return False
        if self._flush is None:
            return True
        reply = self._flush.reply
        if not reply.given.is_set():
            return False
        self._flush = None
        if isinstance(reply.answer, Transition):
            self._attempt.learn(reply.answer.after)
        return True

    # ── along with the attempt's writes ──

    def along(self, cause: Cause, state: bytes) -> Change:
        """Make a checkpoint that takes along what is held back; `saved` or `not_saved` says what came of it."""
        with self._lock:
            self._settled()
            self._saving = True
            if self._unsaved or self._lines or self._warnings:
                return self._change(cause, self._clock.monotonic(), state)
            job = self._attempt.standing
            return Change(job.id, cause, job, state)

    def saved(self) -> None:
        """Hear that the checkpoint is stored, with all that it took along."""
        self._saving = False

    def not_saved(self, change: Change) -> None:
        """Take back what a checkpoint took along that was not stored."""
        with self._lock:
            now = self._clock.monotonic()
            self._lines[:0] = [(now - line.waited_s, line) for line in change.lines]
            self._warnings += change.warnings
            self._unsaved = self._unsaved or change.progress is not None
            self._saving = False

    def latest(self) -> Progress | None:
        """Give the attempt's last progress, for its end; it is shown, whatever was left out before."""
        with self._lock:
            self._show(self._clock.monotonic())
            self._unsaved = False
            return self._paced()

    def last(self, change: Change) -> Change:
        """Give the attempt's last write the lines that are held back; what is told from now on is not kept."""
        with self._lock:
            now = self._clock.monotonic()
            if self._left_out and not self._ended:
                missing = (
                    f"lines of this attempt that were left out, since the log had reached its limit: {self._left_out:,}"
                )
                self._lines.append((now, _line(missing, "warning", {})))
            self._ended = True
            self._settled()
            lines, warnings = self._take_lines(now)
            return change._replace(expected=self._attempt.standing, lines=lines, warnings=warnings)

    def _change(self, cause: Cause, now: float, state: bytes | None = None) -> Change:
        job = self._attempt.standing
        progress = self._paced() if self._unsaved else None
        lines, warnings = self._take_lines(now)
        self._unsaved, self._written = False, now
        return Change(job.id, cause, job, state, progress, lines=lines, warnings=warnings)

    def _take_lines(self, now: float) -> tuple[tuple[LogLine, ...], int]:
        held, self._lines = self._lines, []
        warnings, self._warnings = self._warnings, 0
        return tuple([line._replace(waited_s=max(0.0, now - told_at)) for told_at, line in held]), warnings

    # ── progress, and what is shown live ──

    def _paced(self) -> Progress | None:
        """The latest progress, with what it says of how fast the job goes."""
        if self._progress is not None and self._unpaced:
            self._unpaced = False
            self._pace, self._progress = self._pace.told(self._progress, self._told_at)
        return self._progress

    def _show(self, now: float) -> None:
        """Show the latest progress to live readers, unless it was."""
        if self._unshown and not self._attempt.fenced:
            self._unshown, self._shown = False, now
            if self._feed.watched and (progress := self._paced()) is not None:
                told = {name: getattr(progress, name) for name in progress.__slots__}
                self.tell("progress", {name: value for name, value in told.items() if value is not None})

    def tell(self, kind: str, data: dict[str, Json]) -> None:
        """Pass a live event to those who listen; from any thread."""
        if self._feed.watched:
            job, flush = self._attempt.standing, self._flush
            stored = job if flush is None or flush.reply.given.is_set() else flush.before
            data = {"attempt": job.attempt, **data}
            event = Event(UUID(job.id), stored.event_seq, kind, job.status, None, data, self._clock.wall())
            self._loop.post(self._feed.happened, event)


# ── lines, bounded ──


def _line(message: str, level: LogLevel, fields: Mapping[str, Json]) -> LogLine:
    text = clean(message)
    kept, size = _bounded(fields)
    return LogLine(text, level, kept, LINE_BYTES + len(text.encode()) + size)


def _bounded(fields: Mapping[str, Json]) -> tuple[dict[str, Json], int]:
    """Keep fields while there is room; of a value for which there is none, how large it is, while there is room."""
    kept: dict[str, Json] = {}
    size = 0
    for name, value in fields.items():
        told, taken = _said(value), len(name.encode(errors="replace"))
        if told is None or size + taken + len(told) > FIELDS_BYTES:
            value = "(left out: JSON can't say it)" if told is None else f"(left out: {len(told):,} bytes)"  # noqa: PLW2901  the value is what is kept
            told = value.encode()
        if size + taken + len(told) <= FIELDS_BYTES:
            kept[name] = value
            size += taken + len(told)
    return kept, size


def _said(value: Json) -> bytes | None:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode(errors="replace")
    except (TypeError, ValueError, RecursionError):
        return None
