"""Who comes first: one number stands for priority, waiting time and arrival."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Final

from hypothesis import assume, example, given
from hypothesis import strategies as st

from jobkit.model import Priority
from jobkit.policy import AGEING_S, STRIKES, blame, rank

NOW: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

ZONES: Final = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
TIMES: Final = st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=ZONES)  # noqa: DTZ001  hypothesis adds the zone
PRIORITIES: Final = st.integers() | st.sampled_from(list(Priority))


@given(TIMES, TIMES, PRIORITIES)
def test_first_in_first_out_within_a_priority(one: datetime, other: datetime, priority: int):
    """Of two jobs of one priority, the one that has been ready for longer is claimed first."""
    assert (one < other) == (rank(one, priority) < rank(other, priority))


@given(TIMES, st.integers(), st.integers())
def test_more_urgent_first_among_those_ready_at_once(ready_at: datetime, one: int, other: int):
    """Of two jobs that became ready together, the one of higher priority is claimed first, whatever the integers."""
    assert (one > other) == (rank(ready_at, one) < rank(ready_at, other))


def test_named_priorities_stand_in_their_order():
    """CRITICAL comes before HIGH, HIGH before NORMAL, NORMAL before LOW."""
    order = [Priority.CRITICAL, Priority.HIGH, Priority.NORMAL, Priority.LOW]
    assert sorted(Priority, key=lambda priority: rank(NOW, priority)) == order


def test_high_overtakes_what_came_in_before():
    """A HIGH job is claimed before a NORMAL one that has not waited for five times AGEING_S longer."""
    waited = timedelta(seconds=5 * AGEING_S)
    assert rank(NOW, Priority.HIGH) < rank(NOW - timedelta(hours=1), Priority.NORMAL)
    assert rank(NOW, Priority.HIGH) < rank(NOW - waited + MICROSECOND, Priority.NORMAL)


def test_a_normal_job_is_not_starved():
    """A NORMAL job that has waited for longer than five times AGEING_S is claimed before a fresh HIGH one."""
    waited = timedelta(seconds=5 * AGEING_S)
    assert rank(NOW - waited, Priority.NORMAL) == rank(NOW, Priority.HIGH)
    assert rank(NOW - waited - MICROSECOND, Priority.NORMAL) < rank(NOW, Priority.HIGH)


@given(TIMES, st.integers(-1000, 1000), st.integers(1, 1000))
def test_each_point_of_priority_is_worth_the_same(ready_at: datetime, priority: int, points: int):
    """A job overtakes one that is n points more urgent once it has waited for n times AGEING_S, never sooner."""
    waited = timedelta(seconds=points * AGEING_S)
    assume(ready_at - datetime.min.replace(tzinfo=UTC) > waited + timedelta(days=2))
    fresh = rank(ready_at, priority + points)
    assert rank(ready_at - waited - MICROSECOND, priority) < fresh < rank(ready_at - waited + MICROSECOND, priority)


@given(TIMES, PRIORITIES, TIMES, PRIORITIES, st.lists(TIMES, max_size=5))
def test_two_waiting_jobs_never_change_their_order(
    one_at: datetime, one: int, other_at: datetime, other: int, looked_at: list[datetime]
):
    """The order of two jobs is the same whenever one looks: no time enters but that since when each has been ready.

    What ages is how long each has waited, and of two that both wait that grows alike: a claim compares
    waiting time + priority x AGEING_S at any moment, and must find the order of the stored ranks.
    """
    ranks = rank(one_at, one), rank(other_at, other)
    for now in looked_at:
        urgency = [
            (now - ready_at) // MICROSECOND + priority * AGEING_S * 1_000_000
            for ready_at, priority in ((one_at, one), (other_at, other))
        ]
        assert (urgency[0] > urgency[1]) == (ranks[0] < ranks[1])
        assert (urgency[0] == urgency[1]) == (ranks[0] == ranks[1])


@given(TIMES)
@example(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))
@example(datetime(2514, 6, 1, 0, 0, 0, 999_999, tzinfo=UTC))
@example(datetime(9999, 12, 30, 23, 59, 59, 999_999, tzinfo=UTC))
def test_exact_to_the_microsecond(ready_at: datetime):
    """No two times fall together, near or far: a rank is microseconds since 1970, counted in integers."""
    assert timedelta(microseconds=rank(ready_at, 0)) == ready_at - EPOCH
    assert rank(ready_at + MICROSECOND, 0) == rank(ready_at, 0) + 1


@given(TIMES, ZONES)
def test_the_zone_of_a_time_does_not_matter(ready_at: datetime, zone: timezone):
    """G14: one moment has one rank, in whatever zone it is given."""
    assert rank(ready_at.astimezone(zone), 5) == rank(ready_at, 5)


@given(TIMES, st.integers(-(10**30), 10**30))
def test_any_integer_is_a_priority(ready_at: datetime, priority: int):
    """A priority may be any integer; nothing is clipped or rounded."""
    assert rank(ready_at, priority) == rank(ready_at, 0) - priority * AGEING_S * 1_000_000


def test_three_strikes():
    """G9: a job that kills its worker three times in a row is held."""
    assert STRIKES == 3


def test_a_crash_is_blamed_on_whoever_stands_alone():
    """G9: a strike is a crash while a job was the only one running, or the only suspect running; never a guess."""
    assert blame([]) is None
    assert blame([("a", False)]) == "a"
    assert blame([("a", True)]) == "a"
    assert blame([("a", False), ("b", False)]) is None
    assert blame([("a", True), ("b", False), ("c", False)]) == "a"
    assert blame([("a", True), ("b", True)]) is None
