"""Several worker processes on one database, of which one is killed now and then."""

from __future__ import annotations

from tests.crash.harness import LONG, PACE, Arena, chance
from tests.crash.plans import Order, Plan

WORKER = Plan(until="told", concurrency=10, sweep_s=0.1)


def test_three_processes_share_the_work_and_one_is_killed_again_and_again(arena: Arena):
    """G2, G3, G4, G6: the living take over a dead one's jobs, nothing runs in two places, nothing completes twice."""
    _, random = chance()
    jobs, steps, kills = 300, 3, 60 if LONG else 8
    arena.listen(PACE)
    orders = [
        Order(
            nonce=f"job {number}",
            steps=steps,
            kind=("Count", "Count", "CountInThread")[number % 3],
            key=f"key {number}" if number % 2 else None,
        )
        for number in range(jobs)
    ]
    client = arena.start(Plan(dispatch=orders, work=False))
    workers = [arena.start(WORKER) for _ in range(3)]
    left = jobs * (2 + 2 * steps)  # lines that are written at least: begin, each step before and after, end
    for death in range(kills):
        count = random.randint(1, max(1, 2 * left // (kills - death + 2)) // 2)
        arena.hear(count)
        left -= count
        chosen = random.randrange(len(workers))
        workers[chosen].kill()
        workers[chosen] = arena.start(WORKER)
    arena.deafen()
    assert client.wait() == 0, arena.said()
    arena.run(Plan())
    for worker in workers:
        worker.tell()
    arena.run(Plan())
    assert arena.judge() == []
    history = arena.history()
    assert len(history.jobs) == jobs
    assert len({job["attempt"] for job in history.jobs.values()}) > 1  # some were taken over
