"""How fast a job goes on and how long it has left: worked out of running time alone, and never nonsense."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobkit import Progress
from jobkit.pace import ENOUGH_S, LONGEST_S, SMOOTHING_S, Pace, pace_of


def told(*reports: tuple[float, Progress], pace: Pace | None = None) -> list[Progress]:
    """What is said of each report, told at so many seconds of one attempt's clock."""
    pace = Pace() if pace is None else pace
    said = []
    for at_s, progress in reports:
        pace, paced = pace.told(progress, at_s)
        said.append(paced)
    return said


def counts(*pairs: tuple[float, float], total: float | None = None, **fields: Any) -> list[tuple[float, Progress]]:
    """Reports of so many units done, each with its time."""
    return [(at_s, Progress(None, completed, total, **fields)) for at_s, completed in pairs]


# ── what is worked out ──


def test_a_steady_job():
    """A job that does four units a second says so, and has a quarter of what is left still to run, in seconds."""
    last = told(*counts(*((at_s, 4 * at_s) for at_s in range(11)), total=100))[-1]
    assert last.rate == pytest.approx(4)
    assert last.eta_s == pytest.approx(15)


def test_where_only_the_fraction_is_known():
    """Then the rate is a fraction a second."""
    last = told(*((at_s, Progress(at_s / 100)) for at_s in range(26)))[-1]
    assert last.rate == pytest.approx(0.01)
    assert last.eta_s == pytest.approx(75)


def test_units_done_and_a_fraction_without_a_total():
    """The total follows from the two."""
    last = told((0, Progress(0.1, 10)), (5, Progress(0.2, 20)))[-1]
    assert last.rate == pytest.approx(2)
    assert last.eta_s == pytest.approx(40)


def test_nothing_is_said_until_there_is_enough_to_tell():
    """The first report, and what follows within a second, give neither rate nor estimate; then both are there."""
    said = told(*counts((0, 0), (ENOUGH_S / 2, 1), (ENOUGH_S * 0.99, 2), (ENOUGH_S * 1.01, 3), total=9))
    assert [(one.rate is None, one.eta_s is None) for one in said] == [(True, True)] * 3 + [(False, False)]


def test_what_is_done_at_the_first_report_is_not_taken_for_fast():
    """A job that finds most of its work done says how fast it goes on, not how fast it found that out."""
    last = told(*counts((0, 1_000_000), (2, 1_000_002), (4, 1_000_004), total=1_000_010))[-1]
    assert last.rate == pytest.approx(1)
    assert last.eta_s == pytest.approx(6)


def test_a_change_of_speed_is_followed():
    """A job that becomes slower says so: old rates fade with running time, and are as good as gone after a while."""
    reports = counts(*((at_s, 10.0 * at_s) for at_s in range(601)))
    reports += counts(*((600 + at_s, 6_000.0 + at_s) for at_s in range(1, 6 * int(SMOOTHING_S))))
    rates = [one.rate or 0 for one in told(*reports)]
    assert rates[600] == pytest.approx(10)
    assert all(later < earlier for earlier, later in pairwise(rates[600:]))
    assert rates[600 + int(SMOOTHING_S)] == pytest.approx(1 + 9 / math.e)
    assert rates[-1] == pytest.approx(1, rel=0.05)


def test_time_without_progress_slows_it_down():
    """A report that nothing was done is one, too; a job that stands still has no estimate in the end."""
    said = told(*counts((0, 0), (2, 20), (4, 20), (10_000, 20), total=40))
    assert (said[1].rate or 0) > (said[2].rate or 0) > 0
    assert said[3].rate == pytest.approx(0, abs=1e-6)
    assert said[3].eta_s is None


def test_how_often_a_steady_job_reports_makes_no_difference():
    """A thousand reports a second say what one says."""
    often = told(*counts(*((at / 1_000, at / 100) for at in range(10_001)), total=200))[-1]
    seldom = told(*counts(*((at, at * 10) for at in range(11)), total=200))[-1]
    assert often.rate == pytest.approx(seldom.rate)
    assert often.eta_s == pytest.approx(seldom.eta_s)


def test_reports_of_one_moment():
    """What is done between two reports of the same instant counts once time has passed."""
    last = told(*counts((0, 0), (0, 5), (0, 10), (2, 20), total=40))[-1]
    assert last.rate == pytest.approx(10)


# ── what is not counted ──


def test_a_later_attempt_starts_from_the_rate_that_was_stored():
    """However long ago that was, and from wherever it goes on: its first report has rate and estimate."""
    stored = told(*counts((0, 0), (10, 50), total=100, unit="files"))[-1]
    first, second = told(*counts((7_000.0, 45), (7_000.1, 46), total=100, unit="files"), pace=pace_of(stored))
    assert first.rate == pytest.approx(5)
    assert first.eta_s == pytest.approx(11)
    assert second.rate == pytest.approx(5, rel=0.01)


@pytest.mark.parametrize("stored", [None, Progress(0.5), Progress(0.5, rate=math.inf), Progress(0.5, rate=math.nan)])
def test_a_later_attempt_without_a_rate_starts_anew(stored):
    """Nothing is made up where no rate was stored."""
    first, second = told((0, Progress(0.5)), (2, Progress(0.6)), pace=pace_of(stored))
    assert (first.rate, first.eta_s) == (None, None)
    assert second.rate == pytest.approx(0.05)


def test_going_back_is_not_a_negative_rate():
    """Work that is done again, as after a crash, keeps the rate that was known."""
    said = told(*counts((0, 0), (10, 100), (11, 20), (12, 30), total=200))
    assert [one.rate for one in said[1:]] == [pytest.approx(10)] * 3
    assert said[2].eta_s == pytest.approx(18)


def test_another_phase_is_another_pace():
    """Rates of one phase, or of one unit, say nothing of the next."""
    first = counts((0, 0), (10, 100), total=200, unit="files", phase="scan")
    for change in ({"unit": "files", "phase": "copy"}, {"unit": "bytes", "phase": "scan"}):
        said = told(*first, *counts((11, 100), (13, 110), total=200, **change))
        assert said[1].rate == pytest.approx(10)
        assert (said[2].rate, said[2].eta_s) == (None, None)
        assert said[3].rate == pytest.approx(5)


def test_a_message_in_between_changes_nothing():
    """A report without amounts has no rate, and those after it have that of those before."""
    said = told(*counts((0, 0), (10, 100)), (11, Progress(message="still here")), *counts((20, 200)))
    assert [one.rate for one in said] == [None, pytest.approx(10), None, pytest.approx(10)]


def test_a_total_that_grows_is_gone_by():
    """The estimate is of what is left now; how fast it goes on has nothing to do with it."""
    grown = told(*counts((0, 0), (10, 100), total=200), *counts((20, 200), total=1_000))[-1]
    assert grown.rate == pytest.approx(10)
    assert grown.eta_s == pytest.approx(80)


def test_where_nothing_is_left():
    """What is done, or more than done, has no seconds left; that is known without a rate."""
    assert [one.eta_s for one in told(*counts((0, 9), (5, 10), (6, 12), total=9))] == [0, 0, 0]


# ── any report, in any order ──

ANY: st.SearchStrategy[float | int] = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**308), 10**308)
)
AMOUNTS = st.one_of(st.none(), ANY)
REPORTS = st.lists(
    st.tuples(
        st.floats(-1e9, 1e9, allow_subnormal=True),
        st.builds(
            Progress,
            st.one_of(st.none(), st.floats(0, 1)),
            AMOUNTS,
            AMOUNTS,
            st.sampled_from([None, "files", "bytes"]),
            st.sampled_from([None, "scan", "copy"]),
        ),
    ),
    max_size=30,
)
STORED = st.one_of(st.none(), st.builds(Progress, completed=AMOUNTS, rate=st.one_of(st.none(), st.floats())))


@given(REPORTS, STORED)
def test_whatever_is_told(reports, stored):
    """No report and no clock gives a rate or an estimate that is negative, infinite or no number, or raises."""
    for (_, given_), said in zip(reports, told(*reports, pace=pace_of(stored)), strict=True):
        assert said == given_
        assert said.rate is None or 0 <= said.rate < math.inf
        assert said.eta_s is None or 0 <= said.eta_s <= LONGEST_S
        assert said.rate is not None or said.eta_s in {None, 0}


@given(
    st.lists(st.tuples(st.floats(0.001, 1_000), st.floats(0, 1_000)), min_size=1, max_size=50),
    st.floats(0, 1e6), st.floats(1, 1e6),
)  # fmt: skip
def test_a_rate_lies_between_the_slowest_and_the_fastest(steps, start, left):
    """A smoothed rate is one that the job might have had; the estimate is what is left at that rate."""
    at_s, done, reports = 0.0, start, counts((0, start))
    for passed, more in steps:
        at_s, done = at_s + passed, done + more
        reports += counts((at_s, done))
    at_s += 1
    reports += [(at_s, Progress(None, done, done + left))]
    seen = [
        ((after.completed or 0) - (before.completed or 0)) / (late - early)
        for (early, before), (late, after) in pairwise(reports)
    ]
    last = told(*reports)[-1]
    assert last.rate is not None
    assert min(seen) - 1e-6 <= last.rate <= max(seen) * (1 + 1e-6) + 1e-6
    if last.eta_s is not None:
        assert last.eta_s * last.rate == pytest.approx((done + left) - done)
