"""Write docs/lifecycle.md from the transition table: run `python docs/lifecycle.py` after changing it."""  # noqa: INP001  a script

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobkit.lifecycle import TABLE, Trigger
from jobkit.model import TERMINAL, JobStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobkit.lifecycle import Cell

PAGE: Final = Path(__file__).with_suffix(".md")

SHOWN: Final = {"note": "noted", "ignore": "ignored", "refuse": "✗", "fence": "fenced", "remove": "row gone"}
"""How the table says an answer that is not a move."""

TEXT: Final = """\
<!-- Generated from jobkit/lifecycle.py by `python docs/lifecycle.py`: change the table there, not this page. -->

# The life of a job

One pure module, `jobkit/lifecycle.py`, decides every job's status. This page is what its table says.

## Moves

A job is created in the status that fits what it waits for. Self-loops and what is only noted are left out.

```mermaid
{diagram}
```

## The whole table

A cell names the statuses that a trigger may lead to; which of several is chosen by the facts: what was asked of the
job (cancel before time-out before pause before shutdown), whether it can be resumed, what it waits for and until when.

- *noted*: the status stays; stored now and applied later. Two requests to a running job may be refused even so: to
  pause one that is not resumable or is being cancelled, and to resume one of which no pause is wanted.
- *ignored*: nothing to do; the job has moved on.
- ✗: refused with `IllegalTransition`.
- *fenced*: `LeaseLost`, for the word of an attempt that no longer holds the job.

{table}

*Terminal*: {terminal}.
"""


def render() -> str:
    """Say the table as a page of Markdown."""
    ended = ", ".join(f"`{status.value}`" for status in JobStatus if status in TERMINAL)
    return TEXT.format(diagram="\n".join(diagram()), table="\n".join(table()), terminal=ended)


def diagram() -> Iterator[str]:
    """Draw the moves: one arrow for each pair of statuses, labelled with all that leads along it."""
    yield "stateDiagram-v2"
    for status in (JobStatus.SCHEDULED, JobStatus.WAITING, JobStatus.QUEUED):
        yield f"    [*] --> {status.value}: dispatch"
    for status in JobStatus:
        for target in JobStatus:
            causes = [trigger.value for trigger in Trigger if target in TABLE[trigger][status].targets]
            if causes and target is not status:
                yield f"    {status.value} --> {target.value}: {', '.join(causes)}"
    for status in JobStatus:
        if causes := [trigger.value for trigger in Trigger if TABLE[trigger][status].answer == "remove"]:
            yield f"    {status.value} --> [*]: {', '.join(causes)}"


def table() -> Iterator[str]:
    """Lay out every trigger against every status, the terminal ones in one column, for they answer alike."""
    statuses = [status for status in JobStatus if status not in TERMINAL]
    yield f"| | {' | '.join(status.value for status in statuses)} | *terminal* |"
    yield f"|---|{'---|' * len(statuses)}---|"
    for trigger in Trigger:
        row = TABLE[trigger]
        (ended,) = {said(row[status]) for status in TERMINAL}
        yield f"| **{trigger.value}** | {' | '.join(said(row[status]) for status in statuses)} | {ended} |"


def said(cell: Cell) -> str:
    """Say one cell, its statuses in the order of a job's life."""
    if cell.answer != "move":
        return SHOWN[cell.answer]
    return ", ".join(status.value for status in JobStatus if status in cell.targets)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
