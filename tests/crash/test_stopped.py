"""Processes that are stopped for longer than their lease, and then go on as if nothing had happened.

A stopped process keeps its locks, so nobody can prove it dead: it is judged by a whole lease of silence. Whatever it
does once it goes on, nothing of it counts that another has taken over, and it finds a new life to work in.
"""

from __future__ import annotations

from typing import Final

import pytest

from tests.crash.harness import LONG, Arena, Child, chance
from tests.crash.plans import Order, Plan

LEASE_S: Final = 0.5

WORKER: Final = Plan(until="told", lease_s=LEASE_S, sweep_s=0.1)

AT_THE_GATE: Final = [
    Order(nonce="loop", steps=4, trap="gate"),
    Order(nonce="thread", steps=4, trap="gate", kind="CountInThread"),
    Order(nonce="free", steps=2),
]
"""Two handlers that wait between two checkpoints, in their first attempt, and one that waits for nobody."""

AT_THEIR_END: Final = [
    Order(nonce="loop", steps=2, trap="gate"),
    Order(nonce="thread", steps=2, trap="gate", kind="CountInThread"),
]
"""Two handlers that wait between their last checkpoint and their end."""

WAYS: Final[dict[str, tuple[list[Order], Plan]]] = {
    "between two checkpoints": (AT_THE_GATE, Plan(stop=("renew.after_commit", 1), waiting=2)),
    "with checkpoints on their way": (AT_THE_GATE, Plan(stop=("renew.after_commit", 1), waiting=2, behind=2)),
    "with ends on their way": (AT_THEIR_END, Plan(stop=("renew.after_commit", 1), waiting=2, behind=2)),
    "a checkpoint committed": (AT_THE_GATE, Plan(stop=("checkpoint.after_commit", 2))),
    "an end committed": (AT_THE_GATE, Plan(stop=("finish.after_commit", 1))),
    "jobs claimed": (AT_THE_GATE, Plan(stop=("claim.after_commit", 1))),
}
"""What a worker is in the middle of when it is stopped; it holds none of the database's locks then."""

MOMENTS: Final[dict[str, Plan]] = {
    "long after": Plan(),
    "about to be noted as over": Plan(stop=("retire.before_commit", 1)),
    "noted as over": Plan(stop=("retire.after_commit", 1)),
    "its jobs queued": Plan(stop=("recovery.after_commit", 1)),
    "its jobs claimed": Plan(stop=("claim.after_commit", 2)),  # the first one, at its start, finds nothing
}
"""How far the worker that takes over has come when the stopped one goes on."""

SCENES: Final = [
    *((way, "long after") for way in WAYS),
    *(("with checkpoints on their way", moment) for moment in MOMENTS if moment != "long after"),
    ("with ends on their way", "noted as over"),
    ("with ends on their way", "its jobs claimed"),
    ("jobs claimed", "its jobs claimed"),
]

STOPS: Final = 200
"""How often workers are stopped at random in the long programme."""


def _stop_a_worker(arena: Arena, way: str, backend: str) -> Child:
    """Have a worker stop itself in the middle of something, with the gate open for whoever comes later."""
    orders, how = WAYS[way]
    arena.run(Plan(dispatch=orders, work=False))
    arena.shut_gate()
    stopped = arena.start(Plan(**(WORKER | how), backend=backend))
    if "behind" in how:
        arena.until_line("holding")
        arena.open_gate()
    stopped.stopped()
    arena.open_gate()
    return stopped


def _all_completed(arena: Arena) -> bool:
    return arena.ask_database("SELECT count(*) FROM jobs WHERE status != 'completed'") == [(0,)]


def _lives(arena: Arena, child: Child) -> tuple[int, int]:
    """How many lives a worker has begun, and how many of them are not noted as over."""
    found = arena.ask_database("SELECT count(*), count(*) - count(ended_at) FROM lives WHERE pid = ?", child.pid)
    return found[0][0], found[0][1]


def _silent(arena: Arena, *workers: Child) -> bool:
    """Whether the leases of all these workers have run out."""
    lasts = "SELECT pid FROM lives WHERE ended_at IS NULL AND lease_until > strftime('%Y-%m-%dT%H:%M:%f000Z', 'now')"
    return not {pid for (pid,) in arena.ask_database(lasts)} & {worker.pid for worker in workers}


def _all_live(arena: Arena, workers: list[Child]) -> bool:
    return all(_lives(arena, worker)[0] for worker in workers)


def _taken_over(arena: Arena, stopped: Child, workers: list[Child]) -> bool:
    """Whether a stopped worker's life is noted as over; or it was stopped in a commit, and nobody can note anything."""
    return _lives(arena, stopped)[1] == 0 or _silent(arena, *workers)


def _lives_again(arena: Arena, child: Child) -> bool:
    """Whether a worker has begun another life, after one that is over."""
    begun, lasting = _lives(arena, child)
    return begun > lasting > 0


def _works(arena: Arena, worker: Child) -> None:
    """See that a worker works, with nobody else there."""
    arena.run(Plan(dispatch=[Order(nonce="later", steps=2)], work=False))
    later = arena.job("later")
    arena.until_line("finished", job=later)
    assert {line["pid"] for line in arena.effects() if line["job"] == later} == {worker.pid}


@pytest.mark.parametrize(("way", "moment"), SCENES)
def test_a_stopped_worker_loses_its_jobs_and_does_no_harm(arena: Arena, way: str, moment: str):
    """G2, G3, G4: what a worker does that was stopped beyond its lease changes nothing, and it works on in a new life.

    Another worker takes its jobs over, and may be stopped itself while it does: then the first one takes them back.
    """
    backend = ("asyncio", "trio")[SCENES.index((way, moment)) % 2]
    first = _stop_a_worker(arena, way, backend)
    second = arena.start(Plan(**(WORKER | MOMENTS[moment]), backend=backend))
    if "stop" in MOMENTS[moment]:
        second.stopped()
    else:
        arena.until(_all_completed, arena)
    first.go_on()
    if moment == "about to be noted as over":
        second.go_on()
    arena.until(_lives_again, arena, first)
    arena.until(_all_completed, arena)
    second.go_on()
    if moment == "its jobs claimed":
        arena.until(_lives_again, arena, second)
    second.tell()
    _works(arena, first)
    first.tell()
    arena.run(Plan())
    assert arena.judge(overlap=True) == []
    if "behind" in WAYS[way][1] and moment in {"long after", "its jobs queued", "its jobs claimed"}:
        late = [("saved", 3), ("finished", None)]
        done = [line for line in arena.effects() if (line["what"], line.get("step")) in late]
        assert [
            line for line in done if line["attempt"] == 1 and line["job"] in map(arena.job, ("loop", "thread"))
        ] == []


def test_a_stopped_worker_without_its_lock_is_judged_by_its_lease(arena: Arena):
    """G4, G6: where the lock's file is gone nothing can be proven: the lease tells, and the stopped does no harm."""
    first = _stop_a_worker(arena, "with checkpoints on their way", "asyncio")
    (lock,) = arena.locks()
    lock.unlink()
    second = arena.start(WORKER)
    arena.until(_all_completed, arena)
    first.go_on()
    arena.until(_lives_again, arena, first)
    assert len(arena.locks()) > 1  # a new life has a lock of its own
    second.tell()
    _works(arena, first)
    first.tell()
    arena.run(Plan())
    assert arena.judge(overlap=True) == []


def test_all_workers_are_stopped_and_go_on(arena: Arena):
    """G2, G3, G4: when a whole machine stands still for longer than a lease, work goes on as if it had not."""
    arena.run(Plan(dispatch=AT_THE_GATE, work=False))
    arena.shut_gate()
    workers = [
        arena.start(Plan(**WORKER, stop=("renew.after_commit", 2), concurrency=2, backend=backend))
        for backend in ("asyncio", "trio", "asyncio")
    ]
    for worker in workers:
        worker.stopped()
    arena.until(_silent, arena, *workers)
    for worker in workers:
        worker.go_on()
    arena.open_gate()
    arena.until(_all_completed, arena)
    for worker in workers:
        worker.tell()
    arena.run(Plan())
    assert arena.judge(overlap=True) == []


@pytest.mark.parametrize("point", ["checkpoint.before_commit", "claim.before_commit", "dispatch.before_commit"])
def test_a_process_that_is_stopped_in_a_commit_costs_the_others_time_alone(arena: Arena, point: str):
    """G1, G2, G4, G20: it keeps everybody from writing, for longer than a lease; all go on once it does."""
    arena.run(Plan(dispatch=AT_THE_GATE[:2], work=False))
    arena.shut_gate()
    beside = arena.start(Plan(**WORKER, concurrency=2))
    arena.until_line("saved", 2, step=2)
    more = [Order(nonce="free", steps=2)]
    if point == "dispatch.before_commit":
        stopped = arena.start(Plan(dispatch=more, work=False, stop=(point, 1)))
    else:
        stopped = arena.start(Plan(**(WORKER | Plan(until="idle")), dispatch=more, stop=(point, 1)))
    stopped.stopped()
    arena.until(_silent, arena, beside)
    arena.open_gate()
    stopped.go_on()
    assert stopped.wait() == 0
    arena.until(_all_completed, arena)
    beside.tell()
    arena.run(Plan())
    assert arena.judge(overlap=True) == []


@pytest.mark.skipif(not LONG, reason="part of the long programme")
def test_workers_are_stopped_at_random(arena: Arena):
    """G2, G3, G4: stopped at any moment and for any time, in commits too, workers lose and repeat nothing."""
    _, random = chance()
    for number in range(STOPS):
        if number % 10 == 0:
            orders = [
                Order(nonce=f"{number}-{job}", steps=5, kind=("Count", "CountInThread")[job % 2]) for job in range(40)
            ]
            arena.run(Plan(dispatch=orders, work=False))
            workers = [arena.start(Plan(**WORKER, concurrency=10)) for _ in range(3)]
            arena.until(_all_live, arena, workers)
        chosen = random.choice(workers)
        chosen.halt()
        match random.choice(["at once", "later", "late"]):
            case "later":
                arena.until(_silent, arena, chosen)
            case "late":
                arena.until(_taken_over, arena, chosen, workers)
        chosen.go_on()
        if number % 10 == 9:
            arena.until(_all_completed, arena)
            for worker in workers:
                worker.tell()
    arena.run(Plan())
    assert arena.judge(overlap=True) == []


# ── loops that are blocked ──


def test_a_loop_that_is_blocked_for_five_leases_loses_no_job(arena: Arena):
    """G4, G6: a handler that blocks its worker's event loop costs nobody a job, for however many leases it does.

    What runs in threads there goes on and saves; whoever looks for the dead meanwhile finds nobody.
    """
    arena.shut_gate()
    blocked = []
    for backend in ("asyncio", "trio"):
        orders = [
            Order(nonce=f"beside {backend}", steps=5, trap="beside", kind="CountInThread"),
            Order(nonce=f"blocks {backend}", steps=4, trap="block"),
            Order(nonce=f"free {backend}", steps=2),
        ]
        blocked.append(arena.start(Plan(**WORKER, backend=backend, dispatch=orders)))
        arena.until_line("saved", len(blocked), step=5)  # what is beside it goes on once its loop is blocked
    beside = arena.start(WORKER)
    arena.until(_all_live, arena, [beside])
    since = [_lease(arena, worker) for worker in blocked]
    arena.until(lambda: all(_lease(arena, one) >= then + 5 * LEASE_S for one, then in zip(blocked, since, strict=True)))
    arena.open_gate()
    arena.until(_all_completed, arena)
    for worker in (*blocked, beside):
        assert _lives(arena, worker) == (1, 1)
        worker.tell()
    assert {line["attempt"] for line in arena.effects()} == {1}
    assert arena.judge() == []


def _lease(arena: Arena, worker: Child) -> float:
    """Until when a worker's lease holds, in seconds by the database's clock."""
    (found,) = arena.ask_database("SELECT julianday(lease_until) * 86400 FROM lives WHERE pid = ?", worker.pid)
    return float(found[0])
