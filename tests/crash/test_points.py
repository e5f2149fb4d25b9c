"""SIGKILL at every named crash point, then a restart: everything goes on at once and nothing is lost.

The lease of every life here holds for an hour, so that only the proof by the operating system's lock can hand a dead
process's jobs to the next one in time.
"""

from __future__ import annotations

import itertools
import json
import signal
from contextlib import closing
from pathlib import Path

import pytest

from jobkit.points import POINTS
from tests.crash.harness import LONG, Arena, Nursery
from tests.crash.plans import Order, Plan

ORDERS = [
    Order(nonce="a", steps=3),
    Order(nonce="b", steps=3, kind="CountInThread", key="b"),
    Order(nonce="c", steps=3, size=20_000),
    Order(nonce="d", steps=1, key="d"),
]

LINGERING = [
    Order(nonce="a", steps=4, trap="linger"),
    Order(nonce="b", steps=4, trap="linger", kind="CountInThread"),
    Order(nonce="c", steps=1),
]

WORK: tuple[Plan, ...] = (Plan(dispatch=ORDERS),)
"""Dispatch and work; the last plan of a tuple is the one that dies."""

ONE_BY_ONE: tuple[Plan, ...] = (Plan(dispatch=ORDERS, concurrency=1),)

STOP: tuple[Plan, ...] = (Plan(dispatch=LINGERING, until="lingering"),)
"""Be stopped in good order while handlers run."""

AFTER_A_STOP: tuple[Plan, ...] = (*STOP, Plan())
AFTER_A_DEATH: tuple[Plan, ...] = (Plan(dispatch=ORDERS, kill=("checkpoint.after_commit", 2)), Plan())

WAYS: dict[str, tuple[tuple[Plan, ...], int]] = {
    "schema": (WORK, 1),
    "dispatch": (WORK, 2),
    "register": (WORK, 1),
    "renew": ((Plan(dispatch=LINGERING, until="told", eager=True),), 3),
    "claim": (WORK, 1),
    "checkpoint": (WORK, 2),
    "report": ((Plan(dispatch=ORDERS, eager=True),), 1),
    "finish": (WORK, 1),
    "give_back": (STOP, 1),
    "leave": (STOP, 1),
    "control": (AFTER_A_STOP, 1),
    "recovery": (AFTER_A_DEATH, 1),
    "retire": (WORK, 1),
}
"""How each pair of points around a commit is reached, and at which time of coming there the process dies."""

SCENARIOS: dict[str, tuple[tuple[Plan, ...], int]] = {
    **{f"{what}.{when}_commit": way for what, way in WAYS.items() for when in ("before", "after")},
    "run.before_handler": (WORK, 2),
    "run.after_handler": (WORK, 1),
}

ALSO: dict[str, tuple[str, tuple[Plan, ...], int]] = {
    "opening a database that is there": ("schema.before_commit", (*AFTER_A_DEATH,), 1),
    "noting that another one is dead": ("retire.after_commit", AFTER_A_DEATH, 1),
    "noting that another one is dead, before": ("retire.before_commit", AFTER_A_DEATH, 1),
    "the second claim of a job": ("run.before_handler", AFTER_A_DEATH, 1),
    "the start after a death": ("register.after_commit", AFTER_A_DEATH, 1),
    "the last checkpoint": ("checkpoint.after_commit", ONE_BY_ONE, 10),
    "the last finish": ("finish.after_commit", ONE_BY_ONE, 4),
    "the last dispatch": ("dispatch.after_commit", WORK, 4),
}
"""Points that are reached in more than one way."""

UNREACHABLE: dict[str, str] = dict.fromkeys(
    ("session.before_commit", "session.after_commit"),
    "the arena's jobs have no data of their own: tests/runtime/test_sessions.py dies there",
)
"""Points that these plans can't come to, each with the reason."""


def test_every_point_has_a_way_there():
    """A new crash point is given a scenario here, or a reason why it can't be reached; an old one goes from both."""
    assert SCENARIOS.keys() | UNREACHABLE.keys() == POINTS
    assert not SCENARIOS.keys() & UNREACHABLE.keys()


def _die_and_go_on(arena: Arena, point: str, plans: tuple[Plan, ...], nth: int, backend: str = "asyncio") -> bool:
    """Carry out the plans, the last one up to the point; go on, and judge. Answer whether it was killed at all."""
    *before, last = plans
    for plan in before:
        if "kill" in plan:
            arena.die({**plan, "backend": backend})
        else:
            arena.run({**plan, "backend": backend})
    status = arena.start({**last, "backend": backend, "kill": (point, nth)}).wait()
    assert status in {0, -signal.SIGKILL}, arena.said()
    assert arena.judge(at_rest=False) == []
    orders = plans[0]["dispatch"]
    arena.run(Plan(dispatch=arena.unacknowledged(orders), backend=backend))
    assert arena.judge() == []
    stored = {json.loads(job["params"])["nonce"] for job in arena.history().jobs.values()}
    assert stored == {order["nonce"] for order in orders}
    return status != 0


@pytest.mark.parametrize("point", sorted(SCENARIOS))
def test_death_at_a_point_loses_nothing(arena: Arena, point: str):
    """G1, G2, G3, G4, G6, G11: killed at any named point, the next process goes on at once and breaks no promise."""
    plans, nth = SCENARIOS[point]
    backend = ("asyncio", "trio")[sorted(SCENARIOS).index(point) // 2 % 2]
    assert _die_and_go_on(arena, point, plans, nth, backend)


@pytest.mark.parametrize("way", sorted(ALSO))
def test_death_on_another_way_to_a_point_loses_nothing(arena: Arena, way: str):
    """G1, G2, G3, G4, G6, G11: the same where a point is reached in other circumstances."""
    point, plans, nth = ALSO[way]
    assert _die_and_go_on(arena, point, plans, nth)


@pytest.mark.skipif(not LONG, reason="part of the long programme")
@pytest.mark.parametrize("point", sorted(point for point, (plans, _) in SCENARIOS.items() if plans is WORK))
def test_death_each_time_a_point_is_come_to_loses_nothing(tmp_path: Path, nursery: Nursery, point: str):
    """G1, G2, G3, G4, G6, G11: the same at the first time of coming to a point, the second, and so on to the last."""
    for nth in itertools.count(1):
        folder = tmp_path / str(nth)
        folder.mkdir()
        with closing(Arena(folder, nursery)) as arena:
            if not _die_and_go_on(arena, point, ONE_BY_ONE, nth):
                break
    assert nth > 1
