"""The judge is just about requests and crashes too: it finds planted bugs and each kind of breach, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]
import pytest

from tests.crash.harness import Arena
from tests.crash.judge import History, Line, judge
from tests.crash.plans import Ask, Order, Plan

# ── planted bugs ──

DEATHS: Final = 5
"""One more than any job can be worth."""


def _die_at_loading(arena: Arena, fault: str | None) -> int:
    """Have a job end its process whenever it is loaded; answer how often it did before it was held, or mended."""
    arena.set_mood("behave")
    arena.run(Plan(dispatch=[Order(nonce="poison", steps=2, kind="PoisonedAtLoading")], work=False))
    arena.set_mood("die loading")
    worker = Plan() if fault is None else Plan(fault=fault)
    deaths = sum(arena.start(worker).wait() != 0 for _ in range(DEATHS))
    arena.set_mood("behave")
    arena.run(Plan())
    return deaths


def test_crashes_that_are_counted_too_late_are_found(arena: Arena):
    """G9: counted once the job is loaded, a death at loading is counted by nobody, and the job goes on for ever."""
    assert _die_at_loading(arena, "strikes_after_loading") == DEATHS
    found = arena.judge()
    assert [breach.partition(":")[0] for breach in found] == ["G9", "G9"]
    assert "attempt 5 began after 4 deaths in a row without a checkpoint" in found[0]


def test_crashes_that_are_counted_in_time_break_nothing(arena: Arena):
    """G9: the same job is held after three deaths where no bug is planted."""
    assert _die_at_loading(arena, None) == 3
    assert arena.judge() == []


def _ask_beside(arena: Arena, ask: Ask, fault: str | None) -> None:
    """Have a client ask something of a job that another process runs, between two of its checkpoints."""
    arena.shut_gate()
    plan = Plan(dispatch=[Order(nonce="a", steps=4, trap="gate")], until="told")
    worker = arena.start(plan if fault is None else Plan(**plan, fault=fault))
    arena.until_line("saved", step=2)
    arena.run(Plan(ask=[{**ask, "job": arena.job("a")}], work=False))
    arena.open_gate()
    arena.until_line("left")
    worker.tell()


ASKED: Final[dict[str, tuple[Ask, list[str], str]]] = {
    "cancel": (
        Ask(request="cancel"),
        ["G7: its cancel was accepted, and it is completed", "G7: attempt 1 saved step 3 and went on"],
        "cancelled",
    ),
    "pause": (Ask(request="pause", across=True), ["G8: attempt 1 saved step 3 and went on"], "paused"),
}


@pytest.mark.parametrize("request_", sorted(ASKED))
def test_requests_that_only_their_own_process_hears_of_are_found(arena: Arena, request_: str):
    """G7, G8: told by a notification alone, what another process asks is accepted, and nobody does it."""
    ask, breaches, _ = ASKED[request_]
    _ask_beside(arena, ask, "requests_by_feed_alone")
    found = [breach.replace(f"{arena.job('a')}: ", "") for breach in arena.judge()]
    for breach in breaches:
        assert any(one.startswith(breach) for one in found), (breach, found)


@pytest.mark.parametrize("request_", sorted(ASKED))
def test_requests_from_another_process_break_nothing(arena: Arena, request_: str):
    """G7, G8: the same processes without the bug keep the promise."""
    ask, _, status = ASKED[request_]
    _ask_beside(arena, ask, None)
    assert arena.rows()["a"]["status"] == status
    assert arena.judge() == []


# ── breaches, one by one ──

A: Final = "a"


def _line(what: str, t: float, attempt: int = 1, **facts: Any) -> Line:
    return {"what": what, "job": A, "t": t, "pid": attempt, "attempt": attempt, **facts}


def _asked(request: str, outcome: str = "accepted", **facts: Any) -> list[Line]:
    ask = {"request": request, "job": A, "t": 4.5, **facts}
    return [{"what": "ask", **ask}, {"what": "told", **ask, "outcome": outcome, "seq": 3}]


def _good(request: str, status: str, *events: str) -> History:
    """A job of three steps of which something was asked at its second, and which stopped at its third."""
    effects = [
        _line("begin", 1, at=0, whole=True),
        *(_line(what, step + late, step=step) for step in (1, 2) for what, late in (("step", 1), ("saved", 2))),
        _line("step", 5, step=3),
        _line("left", 6, how="Interrupted"),
    ]
    client: list[Line] = [
        {"what": "intent", "nonce": "n", "key": None},
        {"what": "dispatched", "nonce": "n", "key": None, "job": A},
        *_asked(request, across=True),
    ]
    row: Line = {
        "id": A, "name": "Count", "key": None, "params": '{"nonce": "n", "steps": 3, "size": 0, "trap": ""}',
        "status": status, "reason": None, "wanted": None, "rank": None, "life": None, "attempt": 1, "event_seq": 4,
        "checkpoint_seq": 3, "output": None, "error_message": None,
        "state": msgpack.packb([1, A, 1, 0, b"", {"done": 3, "trail": [1, 1, 1], "pad": b""}, {}]),
    }  # fmt: skip
    told = [("created", "queued"), ("started", "running"), *((event, "running") for event in events), (status, status)]
    stored: list[Line] = [
        {"job_id": A, "seq": seq, "type": kind, "status": stands} for seq, (kind, stands) in enumerate(told, 1)
    ]
    lives: list[Line] = [{"id": "l", "pid": 1, "ended_at": "2030-01-01T00:00:00Z"}]
    return History(effects, client, {A: row}, {A: stored}, lives, [], {}, set())


CANCELLED: Final = _good("cancel", "cancelled", "cancel_requested")
PAUSED: Final = _good("pause", "paused", "pause_requested")


def _dead(attempts: int) -> Callable[[History], None]:
    """Have a job die at its very beginning so many times."""

    def spoil(history: History) -> None:
        history.effects[:] = [_line("begin", one, one, at=0, whole=True) for one in range(1, attempts + 1)]
        history.client[:] = history.client[:2]
        history.jobs[A].update(status="held", reason="crash_loop", attempt=attempts, checkpoint_seq=0)
        kinds = ["created", *["started", "queued"] * (attempts - 1), "started", "held"]
        stands = {"created": "queued", "started": "running"}
        history.events[A][:] = [
            {"job_id": A, "seq": seq, "type": kind, "status": stands.get(kind, kind)}
            for seq, kind in enumerate(kinds, 1)
        ]
        history.jobs[A].update(event_seq=len(kinds))

    return spoil


def _also(spoil: Callable[[History], object], *more: Callable[[History], object]) -> Callable[[History], None]:
    def all_of_them(history: History) -> None:
        for one in (spoil, *more):
            one(history)

    return all_of_them


def _add_events(*kinds: str) -> Callable[[History], None]:
    def spoil(history: History) -> None:
        for kind in kinds:
            history.events[A].append(
                {"job_id": A, "seq": len(history.events[A]) + 1, "type": kind, "status": history.jobs[A]["status"]}
            )

    return spoil


BREACHES: Final[dict[str, tuple[History, Callable[[History], object], str]]] = {
    "a cancelled job completes": (
        CANCELLED,
        lambda h: h.jobs[A].update(status="completed"),
        "G7: a: its cancel was accepted, and it is completed",
    ),
    "a cancelled handler goes on": (
        CANCELLED,
        lambda h: h.effects.insert(6, _line("saved", 5.5, step=3)),
        "G7: a: attempt 1 saved step 3 and went on after an accepted cancel",
    ),
    "a cancel that nobody does": (
        CANCELLED,
        lambda h: h.jobs[A].update(status="paused", reason="user"),
        "G6: a is paused (user)",
    ),
    "a pause that is not stored": (
        PAUSED,
        lambda h: h.events[A][2].update(type="noted"),
        "G8: a: its pause was accepted, and none of its events tells of it",
    ),
    "a handler that goes on": (
        PAUSED,
        lambda h: h.effects.insert(6, _line("saved", 5.5, step=3)),
        "G8: a: attempt 1 saved step 3 and went on after an accepted pause",
    ),
    "a pause that does not stay": (
        PAUSED,
        _add_events("resumed"),
        "G8: a: nobody resumed it, and it did not stay paused",
    ),
    "a start in spite of a pause": (
        PAUSED,
        _add_events("queued", "started"),
        "G8: a: it was started (event 6) though a pause had not been taken back",
    ),
    "a pause that nobody asked for": (PAUSED, lambda h: h.client.pop(2), "G6: a is paused (no reason given)"),
    "poison without an end": (
        PAUSED,
        _dead(5),
        "G9: a: attempt 5 began after 4 deaths in a row without a checkpoint",
    ),
    "held without a reason": (
        PAUSED,
        _dead(2),
        "G9: a: it is held as a crash loop after 2 deaths in a row without a checkpoint",
    ),
    "held for a shutdown": (
        PAUSED,
        _also(_dead(3), lambda h: h.client.append({"what": "terminated", "pid": 2})),
        "G9: a: it is held as a crash loop after 2 deaths in a row without a checkpoint",
    ),
    "held in spite of a checkpoint": (
        PAUSED,
        _also(_dead(3), lambda h: h.effects.insert(2, _line("saved", 2.5, 2, step=1))),
        "G9: a: it is held as a crash loop after 2 deaths in a row without a checkpoint",
    ),
}


@pytest.mark.parametrize("history", [CANCELLED, PAUSED], ids=["cancelled", "paused"])
def test_a_good_history_breaks_nothing(history: History):
    """What is spoilt below are histories in which every promise was kept."""
    assert judge(history) == []


@pytest.mark.parametrize("deaths", [3, 4])
def test_poison_that_is_held_in_time_breaks_nothing(deaths: int):
    """Nor does a job that was held at its third strike, after a first death that was laid at nobody's door or not."""
    history = copy.deepcopy(PAUSED)
    _dead(deaths)(history)
    assert judge(history) == []


@pytest.mark.parametrize("breach", sorted(BREACHES))
def test_a_breach_is_found(breach: str):
    """Each predicate of the judge finds what it is there for."""
    good, spoil, told = BREACHES[breach]
    history = copy.deepcopy(good)
    spoil(history)
    assert told in judge(history)
