"""Policies as arithmetic: numbers in, numbers out.

No clock and no randomness of its own: both are passed in, so that every node works out the same answer and a test can
ask for any.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

AGEING_S: Final = 3600
"""How long a job must have waited to overtake a fresh one that is a single point of priority above it, in seconds.

`HIGH` stands five points above `NORMAL`: it overtakes whatever came in during the last five hours, and a steady stream
of it can't starve a job for longer than that.
"""

STRIKES: Final = 3
"""Crashes of its worker without a newer checkpoint after which a job is held."""


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def rank(ready_at: datetime, priority: int) -> int:
    """Place a job in its queue: the lowest rank is claimed first.

    One number stands for priority, waiting time and arrival, so that a claim is one ordered index read and ageing costs
    nothing: two jobs keep their order for as long as both wait.

    Args:
        ready_at: Since when the job has been ready (aware).
        priority: Higher is sooner.

    Returns:
        Microseconds since 1970, moved back by `AGEING_S` for each point of priority.
    """
    return (ready_at - _EPOCH) // _MICROSECOND - priority * AGEING_S * 1_000_000


def blame(running: Sequence[tuple[str, bool]]) -> str | None:
    """Say which job a worker's crash counts against: the only one that ran, or the only suspect among those that did.

    A worker runs at most one suspect at a time, so a job that kills whoever runs it soon stands alone, and jobs that
    merely ran beside it are never blamed.

    Args:
        running: The jobs that were running, suspects first: each one's id, and whether it was a suspect before this
            crash. The first two suffice.

    Returns:
        The job's id; None if it can't be told.
    """
    suspects = [job_id for job_id, suspect in running if suspect]
    if len(running) == 1 or len(suspects) == 1:
        return running[0][0]
    return None
