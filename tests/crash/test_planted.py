"""Planted bugs that need more than deaths in a row: two processes interleaved, or damage from outside.

Each scenario is forced, none hopes for a race. Each is played twice: with the bug, which the judge must find, and
without it, when no promise may be broken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from tests.crash.harness import Arena
from tests.crash.plans import Order, Plan

Scenario = Callable[[Arena, Callable[[Plan], Plan]], list[str]]

SCENARIOS: dict[str, tuple[str, Scenario, tuple[tuple[str, str], ...]]] = {}
"""For each scenario its bug, what is done, and what must be found: a promise's number and what is said of it."""

AHEAD_S = 2 * 3600.0
"""By how much a clock is wrong: a lease holds for an hour here."""

ONE = [Order(nonce="a", steps=5)]
KEYED = [Order(nonce="a", steps=1, key="once")]
THREE = [Order(nonce=nonce, steps=3) for nonce in "abc"]

S = TypeVar("S", bound=Scenario)


def _scenario(fault: str, *breaches: tuple[str, str]) -> Callable[[S], S]:
    def noted(scenario: S) -> S:
        SCENARIOS[scenario.__name__.strip("_")] = (fault, scenario, breaches)
        return scenario

    return noted


@_scenario("checksum_skipped", ("G17", "attempt 2 did something (begin) with what was damaged after attempt 1"))
def _a_bit_flips_in_a_stored_state(arena: Arena, planted: Callable[[Plan], Plan]) -> list[str]:
    """The bit is one that decodes silently: the state says 3 steps instead of 2."""
    orders = [*ONE, Order(nonce="b", steps=2)]
    arena.die(planted(Plan(dispatch=orders, concurrency=1, kill=("checkpoint.after_commit", 2))))
    (hurt,) = [row for row in arena.history().jobs.values() if row["state"] is not None]
    place = hurt["state"].index(b"done") + len(b"done")
    flipped = bytearray(hurt["state"])
    flipped[place] ^= 1
    arena.damage(
        hurt["id"], "UPDATE jobs SET state = ? WHERE id = ?", bytes(flipped), hurt["id"],
        status="held", reason="corrupt_state",
    )  # fmt: skip
    arena.run(planted(Plan()))
    return arena.judge()


@_scenario("rescued_all_or_none", ("G6", "is running"))
def _one_row_of_a_dead_owner_refuses_every_change(arena: Arena, planted: Callable[[Plan], Plan]) -> list[str]:
    """All three ran when their owner died; the others go on without the one."""
    arena.die(planted(Plan(dispatch=THREE, kill=("run.before_handler", 1))))
    jobs = arena.history().jobs
    assert {row["status"] for row in jobs.values()} == {"running"}
    stuck = next(iter(jobs))
    refused = f"WHEN OLD.id = '{stuck}' BEGIN SELECT RAISE(ABORT, 'stuck'); END"
    arena.damage(stuck, f"CREATE TRIGGER stuck BEFORE UPDATE ON jobs {refused}", status="running")
    arena.run(planted(Plan()))
    return arena.judge()


@_scenario(
    "rescued_by_id",
    ("G2", "was completed in attempt 2 and then was completed in attempt 2"),
    ("G4", "attempt 2 began after attempt 2"),
    ("G11", "something follows its end"),
)
def _a_job_finishes_while_a_sweep_is_about_to_rescue_it(arena: Arena, planted: Callable[[Plan], Plan]) -> list[str]:
    """Two sweeps find it; one puts it back, and it is claimed and done before the other does the same."""
    arena.die(planted(Plan(dispatch=ONE, kill=("checkpoint.after_commit", 2))))
    with arena.held_up("recovery", planted(Plan())):
        arena.run(planted(Plan()))
    return arena.judge()


@_scenario("rescued_by_id", ("G4", "attempt 2 began after attempt 2"))
def _a_job_is_claimed_anew_while_a_sweep_is_about_to_rescue_it(
    arena: Arena, planted: Callable[[Plan], Plan]
) -> list[str]:
    """The second owner is dead by then too, but that is another attempt, and another sweep's business."""
    arena.die(planted(Plan(dispatch=ONE, kill=("checkpoint.after_commit", 2))))
    with arena.held_up("recovery", planted(Plan())):
        arena.die(planted(Plan(kill=("checkpoint.after_commit", 1))))
    arena.run(planted(Plan()))
    return arena.judge()


@_scenario(
    "key_read_before", ("G12", "2 jobs count are stored under 'once'"), ("G12", "'once' was answered with 2 jobs")
)
def _two_processes_dispatch_one_key(arena: Arena, planted: Callable[[Plan], Plan]) -> list[str]:
    """One is about to insert while the other does."""
    with arena.held_up("dispatch", planted(Plan(dispatch=KEYED, work=False))):
        arena.run(planted(Plan(dispatch=KEYED)))
    arena.run(planted(Plan()))
    return arena.judge()


@_scenario(
    "claimed_as_read_before",
    ("G4", "attempt 1 began after attempt 1"),
    ("G2", "was completed in attempt 1 and then was completed in attempt 1"),
)
def _two_processes_claim_one_job(arena: Arena, planted: Callable[[Plan], Plan]) -> list[str]:
    """One is about to claim while the other does."""
    arena.run(planted(Plan(dispatch=ONE, work=False)))
    with arena.held_up("claim", planted(Plan())):
        arena.run(planted(Plan()))
    return arena.judge()


@_scenario("own_clock_for_leases", ("G14", "was noted as expired, and process"))
def _a_sweepers_clock_is_ahead(arena: Arena, planted: Callable[[Plan], Plan]) -> list[str]:
    """Of a living owner nothing is left to judge by but its lease."""
    arena.listen()
    owner = arena.start(planted(Plan(dispatch=[Order(nonce="a", steps=5, trap="linger")], until="told")))
    arena.hear(7)  # the dispatch, tried and acknowledged; begun; two steps, done and saved
    arena.hide_locks()
    arena.run(planted(Plan(ahead_s=AHEAD_S)))
    found = arena.judge(at_rest=False)
    owner.tell()
    arena.run(planted(Plan()))
    return found + arena.judge()


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_a_planted_bug_is_found(arena: Arena, scenario: str):
    """G2, G4, G6, G10, G12, G14, G17: what breaks one of them is found by the judge."""
    fault, play, breaches = SCENARIOS[scenario]
    found = play(arena, lambda plan: {**plan, "fault": fault})
    for promise, told in breaches:
        assert any(breach.startswith(promise) and told in breach for breach in found), (promise, told, found)


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_nothing_is_found_where_no_bug_is_planted(arena: Arena, scenario: str):
    """G2, G4, G6, G10, G12, G14, G17: the same without the bug breaks no promise."""
    _, play, _ = SCENARIOS[scenario]
    assert play(arena, lambda plan: plan) == []
