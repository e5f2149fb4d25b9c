"""Poison: jobs that end whatever process runs them, again and again, beside others that are innocent."""

from __future__ import annotations

from typing import Any, Final

import pytest

from tests.crash.harness import Arena
from tests.crash.plans import Ask, Order, Plan

WORKER: Final = Plan(concurrency=10)

ALONE: Final = 3
"""Deaths that hold a job if nothing ran beside it: each of them is a strike."""

AMONG_OTHERS: Final = 1 + 3
"""Deaths that hold a job that runs among others. The first is nobody's strike: all that ran are suspects from then on.

After it a worker runs one suspect at a time, so the innocent ones among them come to their end while the poison waits,
and each further death finds the poison as the only suspect.
"""


def _innocent(number: int = 20) -> list[Order]:
    kinds = ("Count", "CountInThread")
    return [Order(nonce=f"innocent {one}", steps=2, kind=kinds[one % 2]) for one in range(number)]


def _held(row: dict[str, Any]) -> bool:
    return (row["status"], row["reason"], row["crash_count"], row["retry_count"]) == ("held", "crash_loop", 3, 0)


def _unharmed(row: dict[str, Any]) -> bool:
    return (row["status"], row["crash_count"], row["suspect"], row["retry_count"]) == ("completed", 0, 0, 0)


def _all_judged(arena: Arena, *poison: str) -> None:
    """See that the poison is held, everybody else unharmed, and nobody was ever held who is not."""
    rows = arena.rows()
    assert [nonce for nonce, row in rows.items() if _held(row)] == list(poison)
    assert [nonce for nonce, row in rows.items() if not _unharmed(row)] == list(poison)
    told = arena.ask_database("SELECT job_id FROM job_events WHERE type = 'held' ORDER BY pos")
    assert sorted(job for (job,) in told) == sorted(rows[nonce]["id"] for nonce in poison)
    assert arena.judge() == []


@pytest.mark.parametrize(
    ("kind", "trap"), [("Poison", "SIGKILL"), ("PoisonInThread", "os.abort"), ("Poison", "segfault")]
)
@pytest.mark.parametrize("concurrency", [1, 10])
def test_poison_is_held_and_hurts_nobody(arena: Arena, kind: str, trap: str, concurrency: int):
    """G9: a job that ends its process at once, each time, is held at its third strike; all others are completed."""
    poison = Order(nonce="poison", steps=1, kind=kind, trap=trap)
    arena.run(Plan(dispatch=[poison, *_innocent()], work=False))
    expected = ALONE if concurrency == 1 else AMONG_OTHERS
    assert arena.restart(Plan(concurrency=concurrency), most=expected) == expected
    _all_judged(arena, "poison")
    assert arena.rows()["poison"]["attempt"] == expected


def test_poison_that_is_released_is_as_innocent_as_any(arena: Arena):
    """G9: once what ailed it is mended and somebody has released it, it runs; if not, it is held anew."""
    arena.run(Plan(dispatch=[Order(nonce="poison", steps=2, kind="Poison", trap="SIGKILL")], work=False))
    release = [Ask(request="release", job=arena.job("poison"))]
    for _ in range(2):
        assert arena.restart(WORKER, most=ALONE) == ALONE
        assert _held(arena.rows()["poison"])
        arena.run(Plan(ask=release, work=False))
        assert arena.rows()["poison"]["crash_count"] == 0
    arena.set_mood("behave")
    arena.run(WORKER)
    assert _unharmed(arena.rows()["poison"])
    assert arena.judge() == []


def test_poison_in_on_resume_is_held(arena: Arena):
    """G9: it makes no difference that a job runs well at first, and ends its process when it is resumed."""
    poison = Order(nonce="poison", steps=9, kind="Poison", trap="SIGKILL")
    arena.run(Plan(dispatch=[poison], work=False))
    arena.set_mood("save and die")
    assert arena.start(WORKER).wait() < 0
    arena.set_mood("die resuming")
    arena.run(Plan(dispatch=_innocent(), work=False))
    assert arena.restart(WORKER, most=ALONE) == ALONE - 1  # the first death was a strike, too: it had saved before it
    _all_judged(arena, "poison")
    assert arena.rows()["poison"]["checkpoint_seq"] == 1


def test_poison_at_loading_is_held(arena: Arena):
    """G9: the count is committed before the stored bytes are made into a job, so that may be what ends the process."""
    poison = Order(nonce="poison", steps=1, kind="PoisonedAtLoading")
    arena.set_mood("behave")
    arena.run(Plan(dispatch=[poison, *_innocent()], work=False))
    arena.set_mood("die loading")
    assert arena.restart(WORKER, most=AMONG_OTHERS) == AMONG_OTHERS
    _all_judged(arena, "poison")
    assert [line for line in arena.effects() if line["job"] == arena.job("poison")] == []


@pytest.mark.parametrize("together", [True, False])
def test_two_poison_jobs_at_once(arena: Arena, together: bool):
    """G9: two of them are both held, at the cost of no more deaths than each of them is worth, and all others complete.

    If both run at the first death, all that are fresh after it are innocent, and no innocent job is ever struck.
    """
    one, two = (Order(nonce=nonce, steps=1, kind="Poison", trap="SIGKILL") for nonce in ("poison 1", "poison 2"))
    orders = [one, two, *_innocent()] if together else [one, *_innocent(), two]
    arena.run(Plan(dispatch=orders, work=False))
    most = 1 + 3 + 3 if together else AMONG_OTHERS + AMONG_OTHERS
    deaths = arena.restart(WORKER, most=most)
    assert deaths == most if together else deaths <= most
    _all_judged(arena, "poison 1", "poison 2")


def test_poison_that_saves_between_its_deaths_is_never_held(arena: Arena):
    """G9: deaths count in a row without a newer checkpoint: who gets on, however slowly, is not held for it."""
    arena.set_mood("save and die")
    poison = Order(nonce="poison", steps=8, kind="Poison", trap="SIGKILL")
    arena.run(Plan(dispatch=[poison, *_innocent()], work=False))
    assert arena.restart(WORKER, most=8) == 8
    poisoned = arena.rows().pop("poison")
    assert (poisoned["status"], poisoned["attempt"], poisoned["crash_count"]) == ("completed", 9, 1)
    assert [nonce for nonce, row in arena.rows().items() if not _unharmed(row)] == ["poison"]
    assert arena.judge() == []


# ── what never counts ──


def _die(arena: Arena) -> None:
    assert arena.start(WORKER).wait() < 0


def _reboot(arena: Arena) -> None:
    """Have the machine started again after a death: the life is one of an earlier boot."""
    _die(arena)
    arena.note("rebooted", pid=arena.children[-1].pid)
    assert arena.change_database("UPDATE lives SET boot_id = 'an earlier one' WHERE ended_at IS NULL") == 1


def _wait_and_stop(arena: Arena, *, by_force: bool) -> None:
    """Stop a worker while the job runs, without a checkpoint: by its own grace, or by SIGKILL in the middle of that."""
    arena.set_mood("wait")
    arena.shut_gate()
    begun = len(arena.effects())
    worker = arena.start(Plan(**WORKER, until="told", grace_s=60.0 if by_force else 0.0))
    arena.until(lambda: any(line["what"] == "begin" for line in arena.effects()[begun:]))
    if by_force:
        worker.terminate()
        arena.until(lambda: arena.ask_database("SELECT working FROM lives WHERE ended_at IS NULL") == [(0,)])
        worker.kill()
    else:
        worker.tell()
    arena.open_gate()
    arena.set_mood("die")


HARMLESS: Final = {
    "a reboot": _reboot,
    "a shutdown": lambda arena: _wait_and_stop(arena, by_force=False),
    "a shutdown that was cut short": lambda arena: _wait_and_stop(arena, by_force=True),
}


@pytest.mark.parametrize("end", sorted(HARMLESS))
def test_what_is_no_crash_never_counts(arena: Arena, end: str):
    """G9: reboots, shutdowns and deployments, however often and between whichever deaths, are no strikes."""
    arena.run(Plan(dispatch=[Order(nonce="poison", steps=2, kind="Poison", trap="SIGKILL")], work=False))
    for _ in range(ALONE):
        HARMLESS[end](arena)
        HARMLESS[end](arena)
        _die(arena)
    arena.run(WORKER)
    row = arena.rows()["poison"]
    assert _held(row)
    assert row["attempt"] == 3 * ALONE
    assert arena.judge() == []
