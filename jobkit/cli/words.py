"""What people type, read: job ids cut short, times, lists with commas, `key=value`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

from cyclopts import Parameter

from jobkit.cli.exits import NOT_FOUND, USAGE, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobkit import JobManager, JobRecord

Several: TypeAlias = Annotated[list[str] | None, Parameter(negative="", consume_multiple=False)]
"""An option that may be repeated, and hold several words with commas: `several` reads it."""

Flag: TypeAlias = Annotated[bool, Parameter(negative="", show_default=False)]
"""An option that is there or not."""

_AGO: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_ID: Final = re.compile(r"[0-9a-f]{1,32}")
_GROUPS: Final = (8, 13, 18, 23)

FEW: Final = 5
MANY: Final = 1_000


async def find(manager: JobManager, typed: str) -> JobRecord:
    """Find the one job whose id begins with what was typed.

    Args:
        manager: Where to look.
        typed: A job id, or its beginning, with or without hyphens.

    Returns:
        The job.

    Raises:
        Refused: It is no id, or no job or several begin so.
        JobNotFound: It is a whole id, and no job has it.
    """
    digits = typed.strip().lower().replace("-", "")
    if not _ID.fullmatch(digits):
        raise Refused(USAGE, f"{typed!r} is not a job id: give one that `jobkit list` shows, or its beginning")
    prefix = _hyphened(digits)
    if len(prefix) == len("xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"):
        return await manager.get(prefix)
    found = [one for one in await manager.list_jobs(text=prefix, limit=MANY) if str(one.id).startswith(prefix)]
    if not found:
        raise Refused(
            NOT_FOUND, f"no job's id begins with {prefix} (of the newest 10,000): see `jobkit list`, or give it whole"
        )
    if len(found) > 1:
        shown = ", ".join(str(one.id) for one in found[:FEW]) + (" …" if len(found) > FEW else "")
        raise Refused(USAGE, f"{len(found)} jobs' ids begin with {prefix}: give more of it; they are {shown}")
    return found[0]


def _hyphened(digits: str) -> str:
    for place in _GROUPS:
        if len(digits) > place:
            digits = f"{digits[:place]}-{digits[place:]}"
    return digits


def several(given: Iterable[str] | None) -> list[str] | None:
    """Read an option that may be repeated, and hold several words with commas; None if it was not given."""
    if given is None:
        return None
    return [word for one in given for part in one.split(",") if (word := part.strip())]


def pairs(given: Iterable[str] | None) -> dict[str, str]:
    """Read `key=value` options.

    Raises:
        Refused: One has no `=`.
    """
    found = {}
    for one in given or ():
        key, equals, value = one.partition("=")
        if not equals or not key:
            raise Refused(USAGE, f"--metadata {one!r} has no value: write --metadata key=value")
        found[key] = value
    return found


def moment(option: str, typed: str | None) -> datetime | None:
    """Read a time: `2h` (ago), `2026-05-01`, `2026-05-01T12:00`, with an offset or in local time.

    Args:
        option: The option's name, for the message.
        typed: What was typed.

    Returns:
        The time, aware; None if nothing was typed.

    Raises:
        Refused: It can't be read.
    """
    if typed is None:
        return None
    try:
        if ago := _AGO.fullmatch(typed.strip()):
            return datetime.now(UTC) - timedelta(seconds=float(ago[1]) * _SECONDS[ago[2]])
        return datetime.fromisoformat(typed.strip()).astimezone()
    except (ValueError, OverflowError):
        raise Refused(
            USAGE, f"{option} {typed!r} is no time: write 90s, 30m, 2h, 7d, or a date such as 2026-05-01T12:00"
        ) from None
