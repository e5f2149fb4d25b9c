"""What people see: the console, colours of statuses, times, amounts, and text that can't misbehave.

Colour and movement are for terminals: a pipe gets plain text in lines that aren't cut, and NO_COLOR is obeyed. Nothing
that a job holds is taken for mark-up or reaches the terminal as a control sequence.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from jobkit import JobRecord, JobStatus, Progress

PIPE_WIDTH: Final = 200
BAR: Final = 20
MINUTE: Final = 60
HOUR: Final = 3_600
DAY: Final = 86_400
THOUSAND: Final = 1_000

COLOURS: Final = {
    "scheduled": "blue", "waiting": "blue", "queued": "cyan", "assigned": "cyan", "running": "bold yellow",
    "paused": "magenta", "held": "bold magenta", "completed": "green", "failed": "bold red",
    "cancelled": "bright_black", "timed_out": "bold red", "lost": "bold red",
}  # fmt: skip


def console(*, stderr: bool = False) -> Console:
    """Make the console that a command prints on."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def clean(text: object) -> str:
    """Make a text harmless to show: control characters, which could rule the terminal, become visible."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\N{REPLACEMENT CHARACTER}" for sign in str(text))


def coloured(status: JobStatus | str) -> Text:
    """Say a status in its colour."""
    return Text(str(status), style=COLOURS.get(str(status), ""))


def standing(record: JobRecord) -> Text:
    """Say where a job stands, with what was asked of it, or why it stands there."""
    told = coloured(record.status)
    if record.wanted or record.reason:
        told.append(f"  ({clean(record.wanted + ' requested' if record.wanted else record.reason)})", style="default")
    if silent(record):
        told.append("  its worker gives no sign of life", style="red")
    return told


def silent(record: JobRecord) -> bool:
    """Tell whether a job is still called running though its worker has let its lease run out."""
    until = record.lease_deadline
    return record.status == "running" and until is not None and until < datetime.now(UTC)


def age(at: datetime | None, now: datetime | None = None) -> str:
    """Say how long ago something was."""
    if at is None:
        return "–"
    return f"{seconds(max(0.0, ((now or datetime.now(UTC)) - at).total_seconds()))} ago"


def clock(at: datetime | None) -> str:
    """Say a time, local and to the millisecond."""
    return "–" if at is None else at.astimezone().isoformat(" ", "milliseconds")


def seconds(amount: float | None) -> str:
    """Say a duration."""
    if amount is None:
        return "–"
    if amount < MINUTE:
        return f"{amount:.1f} s" if amount >= 1 else f"{amount * 1000:.0f} ms"
    if amount < HOUR:
        return f"{amount // MINUTE:.0f} min {amount % MINUTE:.0f} s"
    if amount < DAY:
        return f"{amount // HOUR:.0f} h {amount % HOUR // MINUTE:.0f} min"
    return f"{amount // DAY:.0f} d {amount % DAY // HOUR:.0f} h"


def size(count: float) -> str:
    """Say an amount of bytes."""
    for unit in ("B", "kB", "MB"):
        if count < THOUSAND:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= THOUSAND
    return f"{count:.1f} GB"


def percent(progress: Progress | None) -> str:
    """Say how far a job has come, as briefly as can be."""
    if progress is None:
        return "–"
    if progress.fraction is not None:
        return f"{_parts(progress.fraction, 100)}%"
    return "…" if progress.completed is None else f"{progress.completed:,g}"


def bar(progress: Progress) -> Text:
    """Draw how far a job has come, with what it says of it."""
    drawn = Text()
    if progress.fraction is not None:
        full = _parts(progress.fraction, BAR)
        drawn.append("━" * full, style="green").append("─" * (BAR - full), style="bright_black").append(" ")
    return drawn.append(amounts(progress))


def amounts(progress: Progress) -> str:
    """Say how far a job has come, with all that it says of it."""
    words = [] if progress.fraction is None else [percent(progress)]
    if progress.completed is not None:
        total = "" if progress.total is None else f" of {progress.total:,g}"
        words.append(f"{progress.completed:,g}{total} {clean(progress.unit or '')}".rstrip())
    words += [clean(word) for word in (progress.phase, progress.message) if word]
    return "  ".join(words)


def _parts(fraction: float, of: int) -> int:
    """Count the parts that are full, so that what is nearly done is never shown as done; 0.57 of 100 are 57."""
    return int(fraction * of + 1e-9)
