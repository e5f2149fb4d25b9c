"""More than one manager, or more than one process, where jobkit sees a single one."""

from __future__ import annotations

import pytest

from tests.crash.harness import Arena, Child
from tests.crash.plans import Order, Plan

WAITING = [
    Order(nonce=f"job {number}", steps=3, trap="gate", kind=kind)
    for number, kind in enumerate(("Count", "CountInThread"))
]


def _begun(arena: Arena) -> list[tuple[int, int]]:
    """Which attempts have begun, and where."""
    return sorted((line["attempt"], line["at"]) for line in arena.effects() if line["what"] == "begin")


def _start_two(arena: Arena, how: Plan) -> Child:
    """Have two managers work in one process, each with a job that waits."""
    arena.shut_gate()
    child = arena.start(Plan(dispatch=WAITING, beside=True, concurrency=1, until="told", **how))
    arena.until_line("saved", 2, step=2)
    (lives,) = arena.ask_database("SELECT count(DISTINCT life) FROM jobs WHERE status = 'running'")
    assert lives == (2,)
    return child


def test_two_managers_in_one_process_die_together(arena: Arena):
    """G3, G6: the jobs of both go on at once in the next process, whose lease would keep them from it for an hour."""
    _start_two(arena, Plan()).kill()
    arena.open_gate()
    arena.run(Plan())
    assert _begun(arena) == [(1, 0), (1, 0), (2, 2), (2, 2)]
    assert arena.judge() == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_one_of_two_managers_in_a_process_leaves(arena: Arena, backend: str):
    """G4, G6: what one manager closes in its process ends no other's life there: that one's jobs stay its own."""
    child = _start_two(arena, Plan(backend=backend, grace_s=0.0))
    child.terminate()
    arena.until_line("stopped")
    arena.run(Plan())  # looks for the dead, and takes what was given back
    assert arena.ask_database("SELECT status, attempt FROM jobs ORDER BY attempt") == [("running", 1), ("completed", 2)]
    arena.open_gate()
    arena.until_line("finished", attempt=1)
    child.tell()
    assert _begun(arena) == [(1, 0), (1, 0), (2, 2)]
    assert arena.judge(overlap=True) == []  # a thread can't be stopped, only left behind


def test_a_forked_child_does_nothing_to_its_parent(arena: Arena):
    """G1, G4, G6: the parent works on as ever and is taken for dead by nobody; the child is told to start afresh.

    SQLite can't be used beside a connection that crossed a fork: what the child would commit there could be lost.
    """
    orders = [Order(nonce="forks", steps=4, trap="fork", kind="CountInThread"), Order(nonce="beside", steps=4)]
    beside = arena.start(Plan(until="told", sweep_s=0.02, concurrency=1))
    arena.run(Plan(dispatch=orders))
    beside.tell()
    assert [line["code"] for line in arena.client() if line["what"] == "forked"] == [0]
    (told,) = (line["told"] for line in arena.client() if line["what"] == "child")
    assert "forked" in told
    assert "afresh" in told
    assert _begun(arena) == [(1, 0), (1, 0)]
    arena.run(Plan())
    assert arena.judge() == []
