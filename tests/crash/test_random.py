"""SIGKILL at random moments, as often as it takes."""

from __future__ import annotations

import pytest

from tests.crash.harness import LONG, PACE, Arena, chance
from tests.crash.plans import Order, Plan

KILLS = 30
"""How often one database sees its process die; the long programme takes many databases."""

DATABASES = 34 if LONG else 1

LINES = 150
"""After how many lines a process dies, at most: about a dozen jobs, each of which writes twelve lines."""


@pytest.mark.parametrize("database", range(DATABASES))
def test_random_deaths_of_a_process_that_dispatches_and_works(arena: Arena, database: int):
    """G1, G2, G3, G4, G6, G11, G12: killed at any moment, ever again, it loses and repeats nothing acknowledged."""
    seed, random = chance()
    arena.listen()
    for death in range(KILLS):
        arena.forget()
        child = arena.start(
            Plan(
                dispatch=arena.in_doubt(),
                streams=random.randint(1, 6),
                seed=(seed + database * KILLS + death) % 2**32,
                concurrency=random.choice([1, 3, 100]),
                backend=random.choice(["asyncio", "trio"]),
                full=random.choice([True, False]),
                until="told",
            )
        )
        arena.hear(random.randint(1, LINES))
        child.kill()
        assert arena.judge(at_rest=False) == [], f"after death {death + 1}"
    arena.deafen()
    arena.run(Plan(dispatch=arena.in_doubt()))
    assert arena.judge() == []
    assert len(arena.history().jobs) >= KILLS  # it did some work


def test_soak_twenty_jobs_of_forty_checkpoints_under_random_deaths(arena: Arena):
    """G3: 20 jobs of 40 checkpoints each, 25 kills: all complete, and no acknowledged checkpoint is done again."""
    _, random = chance()
    jobs, steps, kills = 20, 40, 25
    orders = [
        Order(nonce=f"job {number}", steps=steps, kind=("Count", "CountInThread")[number % 2]) for number in range(jobs)
    ]
    arena.run(Plan(dispatch=orders, work=False))
    arena.listen(PACE)
    for death in range(kills):
        done = sum(line["what"] == "saved" for line in arena.effects())
        left = 2 * (jobs * steps - done)  # a line before each checkpoint, and one after
        arena.forget()
        child = arena.start(Plan(until="told"))
        arena.hear(random.randint(1, max(1, left // (kills - death + 1))))
        child.kill()
        assert arena.judge(at_rest=False) == [], f"after death {death + 1}"
    unfinished = sum(job["status"] != "completed" for job in arena.history().jobs.values())
    arena.deafen()
    arena.run(Plan())
    assert arena.judge() == []
    assert len(arena.history().jobs) == jobs
    assert unfinished > 0  # or the last deaths interrupted nothing
