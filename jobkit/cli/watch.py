"""`jobkit watch`: how one job comes on, for as long as somebody looks.

All that is shown at one moment was read in one look at the job's row, so status, attempt and progress always belong
together. Nothing is smoothed or guessed: after a crash the figures fall back to what the last checkpoint saved, because
the job did.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from jobkit import JobStatus
from jobkit.cli.database import Database, client
from jobkit.cli.exits import JOB_FAILED, OK
from jobkit.cli.words import Flag, find

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.text import Text

    from jobkit import JobRecord

    Show = Callable[[JobRecord], None]

LOOK_S: Final = 0.2
"""How often the job is looked at."""

LINE_S: Final = 1.0
"""How often, where lines are written, there is one for mere progress."""


async def watch(
    job_id: Annotated[str, Parameter(name="ID", help="The job's id, or its beginning.")],
    /,
    *,
    database: Database = None,
    jsonl: Flag = False,
) -> int:
    """Watch one job until it has ended, or is held and waits for a person.

    A paused job is watched on. Ctrl-C leaves; the job doesn't mind. The exit code is 0 if the job has completed, 1 if
    it has ended otherwise or is held.

    Parameters
    ----------
    jsonl
        For programs: the job as one line of JSON each time that it has changed.
    """
    import anyio

    async with client(database) as manager:
        record = await find(manager, job_id)
        with _screen(jsonl=jsonl) as show:
            show(record)
            while not (record.status.terminal or record.status is JobStatus.HELD):
                await anyio.sleep(LOOK_S)
                record = await manager.get(record.id)
                show(record)
    return OK if record.status is JobStatus.COMPLETED else JOB_FAILED


# ── three ways to show it ──


@contextmanager
def _screen(*, jsonl: bool) -> Iterator[Show]:
    from jobkit.cli.people import console

    screen = console()
    if jsonl or not screen.is_interactive:
        yield _json_lines() if jsonl else _lines()
        return

    from rich.live import Live

    with Live(console=screen, auto_refresh=False) as live:
        yield lambda record: live.update(_picture(record), refresh=True)


def _picture(record: JobRecord) -> Text:
    """Draw the job in a few lines, each cut where the terminal ends."""
    from rich.text import Text

    from jobkit.cli.people import bar, clean

    drawn = Text.assemble((clean(record.name), "bold"), f" {record.id}\n", _stand(record), no_wrap=True)
    drawn.overflow = "ellipsis"
    if record.progress is not None:
        drawn.append("\n").append_text(bar(record.progress))
    if why := _why(record):
        drawn.append(f"\n{why}", style="red")
    return drawn


def _lines() -> Show:
    """Write a line when the job's standing has changed, and once in a while when its progress has."""
    from time import monotonic

    from jobkit.cli.people import amounts

    stand = line = ""
    at = 0.0

    def show(record: JobRecord) -> None:
        nonlocal stand, line, at
        before, stand = stand, f"{_stand(record)}"
        said = "  ".join(part for part in (stand, record.progress and amounts(record.progress), _why(record)) if part)
        if said != line and (stand != before or monotonic() - at >= LINE_S):
            line, at = said, monotonic()
            print(line, flush=True)

    return show


def _json_lines() -> Show:
    """Write the whole record when it has changed; that a running job's time passes is no change."""
    from jobkit.cli.machine import dump, record_json

    known: JobRecord | None = None

    def show(record: JobRecord) -> None:
        nonlocal known
        before, known = known, replace(record, duration_s=None, lease_deadline=None)
        if known != before:
            print(dump(record_json(record), lines=True), flush=True)

    return show


def _stand(record: JobRecord) -> Text:
    from jobkit.cli.people import standing

    return standing(record).append(f"  attempt {record.attempt}, checkpoint {record.checkpoint_seq:,}", style="default")


def _why(record: JobRecord) -> str:
    """Say on one line why the job has not completed."""
    from jobkit.cli.people import clean

    if record.error is None or record.status is JobStatus.COMPLETED:
        return ""
    return clean(" ".join(f"{record.error.type}: {record.error.message}".split()))
