"""How fast a job goes on, and how long it has left: arithmetic on what it tells of its progress.

Only running time counts: times are those of one attempt's own clock, and nothing is taken to have passed between two
attempts. What a job has told at two moments of an attempt gives the rate between them; older rates fade by half about
every twenty seconds of running, so that one slow file or one fast one does not turn the estimate over. A later attempt
starts from the rate that was stored. Whatever is told, a rate is finite and not negative, and an estimate is too; where
there is not enough to tell, or where it would be nonsense, there is none.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from jobkit.model import Progress

SMOOTHING_S: Final = 30.0
"""After how many seconds of running a rate counts for 1/e of what a new one does."""

ENOUGH_S: Final = 1.0
"""How many seconds must have been seen before anything is said of the rate."""

LONGEST_S: Final = 10 * 365 * 86_400.0
"""The longest estimate; a longer one tells nothing."""

_ENOUGH: Final = -math.expm1(-ENOUGH_S / SMOOTHING_S)

Counted: TypeAlias = tuple[bool, object, object]
"""What a job's amounts are amounts of: units or else fractions, which unit, and in which phase."""


class Pace(NamedTuple):
    """What is known of how fast a job goes on.

    Attributes:
        counted: What its amounts are amounts of; None before the first.
        amount: The latest of them.
        at_s: When that was told, in seconds of the attempt's clock; None if an earlier attempt told it.
        gained: The rates seen, each times its weight.
        weight: The sum of the weights: near 0 at first, 1 once enough was seen.
    """

    counted: Counted | None = None
    amount: float = 0.0
    at_s: float | None = None
    gained: float = 0.0
    weight: float = 0.0

    def told(self, progress: Progress, at_s: float) -> tuple[Pace, Progress]:
        """Learn from what a job tells.

        Args:
            progress: How far it has come.
            at_s: When it told so, in seconds of the attempt's clock.

        Returns:
            What is known from now on, and the progress with its `rate` and `eta_s`.
        """
        amount = progress.fraction if progress.completed is None else progress.completed
        if amount is None:
            return self, replace(progress, rate=None, eta_s=None)
        after = self._seen(_counted(progress), float(amount), at_s)
        rate = after.gained / after.weight if after.weight >= _ENOUGH else None
        return after, replace(progress, rate=rate, eta_s=_eta(_left(progress), rate))

    def _seen(self, counted: Counted, amount: float, at_s: float) -> Pace:
        if counted != self.counted:
            return Pace(counted, amount, at_s)
        if self.at_s is None or amount < self.amount:  # nothing is known of what lies between
            return self._replace(amount=amount, at_s=at_s)
        passed = at_s - self.at_s
        if passed <= 0:  # what came meanwhile counts once time has passed
            return self
        fresh = -math.expm1(-passed / SMOOTHING_S)
        gained = self.gained * (1 - fresh) + (amount - self.amount) * (fresh / passed)
        if not math.isfinite(gained):
            return Pace(counted, amount, at_s)
        return Pace(counted, amount, at_s, gained, self.weight * (1 - fresh) + fresh)


def pace_of(progress: Progress | None) -> Pace:
    """Begin an attempt with what the one before has stored.

    Args:
        progress: The stored progress; None if there is none.
    """
    if progress is None or not isinstance(progress.rate, float) or not 0 <= progress.rate < math.inf:
        return Pace()
    return Pace(_counted(progress), gained=progress.rate, weight=1.0)


def _counted(progress: Progress) -> Counted:
    return (progress.completed is not None, progress.unit, progress.phase)


def _left(progress: Progress) -> float | None:
    """How much there is left of what is counted."""
    fraction = progress.fraction
    if progress.completed is None:
        return None if fraction is None else 1 - fraction
    if progress.total is not None:
        return max(0.0, float(progress.total) - float(progress.completed))
    return progress.completed * (1 / fraction - 1) if fraction else None


def _eta(left: float | None, rate: float | None) -> float | None:
    if left == 0:
        return 0.0
    if left is None or not rate:
        return None
    eta = left / rate
    return eta if 0 <= eta <= LONGEST_S else None
