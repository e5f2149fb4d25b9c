"""`jobkit show`: one job, as a person wants to read it, or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from jobkit.cli.database import Database, client
from jobkit.cli.words import find

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import RenderableType
    from rich.table import Table

    from jobkit import Event, JobManager, JobRecord

QUIET_S: Final = 0.3
"""How long an unfinished job's event stream is silent before what was stored is taken to be told."""

LONGEST: Final = 400
"""How much of one parameter is shown, in characters; --json shows it whole."""


async def show(
    job_id: Annotated[str, Parameter(name="ID", help="The job's id, or its beginning.")],
    /,
    *,
    database: Database = None,
    json: Annotated[
        bool, Parameter(negative="", show_default=False, help="All of it as JSON, with its events, for programs.")
    ] = False,
) -> None:
    """Show all that is known of one job."""
    async with client(database) as manager:
        record = await find(manager, job_id)
        events = await _stored_events(manager, record)
    if json:
        from jobkit.cli.machine import dump, event_json, record_json

        print(dump(record_json(record) | {"events": [event_json(one) for one in events]}))
        return

    from jobkit.cli.people import console

    screen = console()
    for part in _parts(record, events):
        screen.print(part)


async def _stored_events(manager: JobManager, record: JobRecord) -> list[Event]:
    """Read the events that there are: a finished job's stream ends by itself, another's is left once it is silent."""
    import anyio

    stream = manager.events(record.id)
    found: list[Event] = []
    try:
        while True:
            with anyio.move_on_after(None if record.status.terminal or not found else QUIET_S) as limit:
                found.append(await anext(stream))
            if limit.cancelled_caught:
                break
    except StopAsyncIteration:
        pass
    return found


# ── the record, part by part ──


def _parts(record: JobRecord, events: list[Event]) -> Iterator[RenderableType]:
    from rich.text import Text

    from jobkit.cli.people import clean, standing

    yield Text.assemble((clean(record.name), "bold"), "  ", standing(record))
    if record.description:
        yield Text(clean(record.description), style="italic")
    yield _table(_facts(record))
    if record.params:
        yield Text("\nParameters", style="bold")
        yield _table((name, _value(value)) for name, value in record.params.items())
    if record.output is not None:
        yield Text("\nOutput", style="bold")
        output = record.output if isinstance(record.output, dict) else {"": record.output}
        yield _table((name, _value(value)) for name, value in output.items())
    if record.error is not None:
        yield Text("\nError", style="bold")
        yield Text(f"{clean(record.error.type)}: {clean(record.error.message)}", style="red")
        if record.error.traceback:
            yield Text(clean(record.error.traceback.rstrip()), style="bright_black")
    yield Text("\nEvents", style="bold")
    yield _timeline(record, events)


def _facts(record: JobRecord) -> Iterator[tuple[str, Any]]:
    """The facts that this job has: what is empty is left out."""
    from jobkit.cli.people import bar

    yield from _identity(record)
    if record.progress is not None:
        yield "progress", bar(record.progress)
    yield from _times(record)
    yield from _runs(record)
    for name in ("parent_id", "retry_of", "forked_from"):
        if getattr(record, name):
            yield name.removesuffix("_id").replace("_", " "), str(getattr(record, name))
    if record.depends_on:
        yield "depends on", ", ".join(map(str, record.depends_on))


def _identity(record: JobRecord) -> Iterator[tuple[str, Any]]:
    from jobkit.cli.people import clean

    yield "id", str(record.id)
    for name in ("label", "user", "key", "queue"):
        if getattr(record, name):
            yield name, clean(getattr(record, name))
    yield "priority", str(record.priority)
    if record.tags:
        yield "tags", clean(", ".join(record.tags))
    for name, value in record.metadata.items():
        yield f"metadata.{clean(name)}", _value(value)


def _times(record: JobRecord) -> Iterator[tuple[str, Any]]:
    from jobkit.cli.people import age, clock, seconds

    for name in ("created", "scheduled", "started", "completed"):
        at = getattr(record, f"{name}_at")
        if at is not None:
            yield name, f"{clock(at)}  ({age(at)})"
    if record.duration_s is not None:
        yield "ran for", seconds(record.duration_s)


def _runs(record: JobRecord) -> Iterator[tuple[str, Any]]:
    from jobkit.cli.people import age, clean

    crashes = f", {record.crash_count} ended by a crash since the last checkpoint" if record.crash_count else ""
    yield "attempts", f"{record.attempt}{crashes}"
    if record.checkpoint_seq:
        yield "checkpoints", f"{record.checkpoint_seq:,}, the last one {age(record.last_checkpoint_at)}"
    if record.max_retries:
        yield "retries", f"{record.retry_count} of {record.max_retries}"
    if record.node:
        yield "node", clean(record.node)


def _timeline(record: JobRecord, events: list[Event]) -> Table:
    from jobkit.cli.people import clean, coloured

    table = _grid()
    for event in events:
        after = (event.at - record.created_at).total_seconds()
        data = _value(event.data) if event.data else ""
        table.add_row(f"  {after:+.3f} s", event.type, coloured(event.status), clean(event.message or data))
    return table


def _table(rows: Iterable[tuple[str, Any]]) -> Table:
    from rich.text import Text

    table = _grid()
    for name, value in rows:
        table.add_row(Text(f"  {name}", style="cyan"), value)
    return table


def _grid() -> Table:
    from rich.table import Table

    return Table.grid(padding=(0, 2))


def _value(value: object) -> str:
    """Say a JSON value on one line, and a long one in part."""
    from jobkit.cli.machine import dump
    from jobkit.cli.people import clean

    if isinstance(value, list) and len(value) > 3:  # noqa: PLR2004  as many as a line takes
        return f"{_value(value[:3])[:-1]}, … {len(value):,} in all]"
    text = clean(value if isinstance(value, str) else dump(value, lines=True))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"
