"""`jobkit list`: which jobs there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from jobkit.cli.database import Database, client
from jobkit.cli.exits import USAGE, Refused, complain
from jobkit.cli.words import Flag, Several, moment, pairs, several

if TYPE_CHECKING:
    from jobkit import JobRecord, Page

SHORTEST: Final = 13
"""How much of an id is shown at least: with UUIDs of version 7, the millisecond."""


async def list_jobs(
    *,
    database: Database = None,
    status: Several = None,
    name: Several = None,
    queue: Several = None,
    user: Several = None,
    tag: Several = None,
    metadata: Several = None,
    since: str | None = None,
    until: str | None = None,
    text: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
    json: Flag = False,
    jsonl: Flag = False,
) -> None:
    """List jobs, newest first.

    Options that may be given several times also take several words with commas: `--status queued,running`.

    Parameters
    ----------
    status
        Only these statuses: scheduled, waiting, queued, assigned, running, paused, held, completed, failed, cancelled,
        timed_out, lost.
    name
        Only jobs of these names.
    queue
        Only jobs of these queues.
    user
        Only jobs that these users started.
    tag
        Only jobs with one of these tags.
    metadata
        Only jobs with this in their metadata: `key=value`; of several, all.
    since
        Only jobs created then or later: 2h (ago), 7d, 2026-05-01, 2026-05-01T12:00 (local time unless it says another).
    until
        Only jobs created before then.
    text
        Only jobs whose id, name or label begins so, or whose error has this in it.
    limit
        How many at most, 1 to 1,000.
    cursor
        Go on where the list before ended.
    json
        A JSON array of records, for programs.
    jsonl
        One record in JSON on each line, for programs.
    """
    if json and jsonl:
        raise Refused(USAGE, "--json and --jsonl exclude each other: take one")
    conditions: dict[str, Any] = {
        "status": several(status), "name": several(name), "queue": several(queue), "user": several(user),
        "tag": several(tag), "metadata": pairs(metadata), "since": moment("--since", since),
        "until": moment("--until", until), "text": text,
    }  # fmt: skip
    async with client(database) as manager:
        from jobkit import JobFilter

        page = await manager.list_jobs(JobFilter(**conditions), limit=limit, cursor=cursor)
    if json or jsonl:
        _print_json(page, lines=jsonl)
    else:
        _print_table(page, narrowed=any(conditions.values()) or cursor is not None)
    if page.next_cursor is not None:
        complain(f"there are more: add --cursor {page.next_cursor}")


def _print_json(page: Page[JobRecord], *, lines: bool) -> None:
    from jobkit.cli.machine import dump, record_json

    if lines:
        for record in page:
            print(dump(record_json(record), lines=True))
    else:
        print(dump([record_json(record) for record in page]))


def _print_table(page: Page[JobRecord], *, narrowed: bool) -> None:
    from rich.table import Table

    from jobkit.cli.people import age, clean, coloured, console, percent, seconds

    screen = console()
    if not page.items:
        screen.print("No job matches." if narrowed else "No jobs yet.")
        return
    shown = SHORTEST if screen.is_terminal else 36
    while len({str(record.id)[:shown] for record in page}) < len(page):
        shown += 1
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("ID", "STATUS"):
        table.add_column(column, no_wrap=True)
    table.add_column("NAME", overflow="ellipsis", no_wrap=True)
    table.add_column("LABEL", overflow="ellipsis", no_wrap=True)
    table.add_column("QUEUE", overflow="ellipsis", no_wrap=True)
    for column in ("PROGRESS", "ATTEMPT", "TOOK", "CREATED"):
        table.add_column(column, no_wrap=True, justify="right")
    for record in page:
        table.add_row(
            str(record.id)[:shown], coloured(record.status), clean(record.name), clean(record.label or "–"),
            clean(record.queue), percent(record.progress), str(record.attempt), seconds(record.duration_s),
            age(record.created_at),
        )  # fmt: skip
    screen.print(table)
