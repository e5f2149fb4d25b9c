"""The judge is just: it finds planted bugs, each kind of breach, and nothing where nothing is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest

from tests.crash.harness import Arena
from tests.crash.judge import History, Line, judge
from tests.crash.plans import Order, Plan

# ── planted bugs ──

ONE = [Order(nonce="a", steps=5)]
TWO_OF_A_KEY = [Order(nonce="a", steps=1, key="once"), Order(nonce="a", steps=1, key="once")]
TWO = [Order(nonce="a", steps=1), Order(nonce="b", steps=1)]
STALLING = [Order(nonce="a", steps=5, trap="stall")]

Breaches = list[tuple[str, str]]

PLANTED: dict[str, tuple[list[Plan], Breaches]] = {
    "dispatch_before_commit": (
        [Plan(dispatch=TWO)],
        [("G1", "the acknowledged dispatch of b")],
    ),
    "checkpoint_before_commit": (
        [Plan(dispatch=ONE, kill=("finish.before_commit", 1)), Plan()],
        [("G3", "began at step 2, but step 5 was acknowledged"), ("G3", "did step 3 again")],
    ),
    "finish_before_commit": (
        [Plan(dispatch=ONE, kill=("retire.before_commit", 1)), Plan()],
        [
            ("G2", "after the job was completed"),
            ("G2", "was completed in attempt 1 and then was completed in attempt 2"),
        ],
    ),
    "state_of_the_one_before": (
        [Plan(dispatch=ONE, kill=("finish.before_commit", 1)), Plan()],
        [("G3", "began at step 4, but step 5 was acknowledged")],
    ),
    "mixed_state": (
        [Plan(dispatch=ONE, kill=("finish.before_commit", 1)), Plan()],
        [("G3", "put together of several")],
    ),
    "fence_dropped": (
        [Plan(dispatch=STALLING, until="overtaken")],
        [("G4", "step 3 was acknowledged to attempt 1, not to 2")],
    ),
    "dead_not_proven": (
        [Plan(dispatch=ONE, kill=("checkpoint.after_commit", 2)), Plan()],
        [("G6", "is running"), ("G6", "is not noted as over")],
    ),
    "finished_requeued": (
        [Plan(dispatch=ONE), Plan()],
        [
            ("G2", "after the job was completed"),
            ("G2", "and then was completed in attempt 2"),
            ("G11", "something follows its end"),
        ],
    ),
    "keys_ignored": (
        [Plan(dispatch=TWO_OF_A_KEY)],
        [("G12", "2 jobs count are stored under 'once'"), ("G12", "was answered with 2 jobs")],
    ),
    "starts_untold": (
        [Plan(dispatch=ONE)],
        [("G11", "its events are numbered [1, 3]")],
    ),
    "end_untold": (
        [Plan(dispatch=ONE)],
        [("G11", "2 events are stored, and the row says 3"), ("G11", "its last event says running")],
    ),
    "events_apart": (
        [
            Plan(dispatch=ONE, kill=("claim.after_commit", 1)),
            Plan(kill=("finish.after_commit", 1)),
            Plan(),
        ],
        [("G11", "its events are numbered [1, 3, 4]"), ("G11", "its last event says running, its row completed")],
    ),
}
"""For each planted bug: what the processes do (all but the last may die), and what must be found."""


def _carried_out(arena: Arena, plans: list[Plan], fault: str | None) -> list[str]:
    for plan in plans:
        planted = {**plan, "fault": fault} if fault else plan
        if "kill" in plan:
            arena.die(planted)
        else:
            arena.run(planted)
    return arena.judge(overlap=True)


@pytest.mark.parametrize("fault", sorted(PLANTED))
def test_a_planted_bug_is_found(arena: Arena, fault: str):
    """Whatever breaks G1, G2, G3, G4, G6, G11 or G12 is found by the judge, not only by whoever knows of it."""
    plans, breaches = PLANTED[fault]
    found = _carried_out(arena, plans, fault)
    for promise, told in breaches:
        assert any(breach.startswith(promise) and told in breach for breach in found), (promise, told, found)


@pytest.mark.parametrize("fault", sorted(PLANTED.keys() - {"fence_dropped"}))
def test_nothing_is_found_where_no_bug_is_planted(arena: Arena, fault: str):
    """The same processes without the bug break no promise: what is found above is the bug's doing."""
    assert _carried_out(arena, PLANTED[fault][0], None) == []


def test_the_fence_keeps_an_overtaken_attempt_from_doing_harm(arena: Arena):
    """G4: two attempts run side by side, since a living owner was taken for dead; the older one commits nothing."""
    assert _carried_out(arena, PLANTED["fence_dropped"][0], "rescued_alive") == []
    assert {line["attempt"] for line in arena.effects() if line["what"] == "step" and line["step"] == 3} == {1, 2}
    assert [line["attempt"] for line in arena.effects() if line["what"] == "saved"] == [1, 1, 2, 2, 2]


# ── breaches, one by one ──

A = "a"


def _line(what: str, attempt: int = 1, job: str = A, **facts: Any) -> Line:
    return {"what": what, "job": job, "attempt": attempt, **facts}


def _event(seq: int, kind: str, status: str, job: str = A) -> Line:
    return {"job_id": job, "seq": seq, "type": kind, "status": status}


def _state(done: int, trail: list[int], job: str = A, pad: bytes = b"") -> bytes:
    """A state as it is stored; any reader of MessagePack can open it."""
    packed: bytes = msgpack.packb([1, job, 1, 0, b"", {"done": done, "trail": trail, "pad": pad}, {}])
    return packed


def _good() -> History:
    """A job of three steps that was killed after its second checkpoint, and went on."""
    effects = [
        _line("begin", at=0, whole=True),
        _line("step", step=1),
        _line("saved", step=1),
        _line("step", step=2),
        _line("saved", step=2),
        _line("step", step=3),
        _line("begin", 2, at=2, whole=True),
        _line("step", 2, step=3),
        _line("saved", 2, step=3),
        _line("end", 2),
        _line("finished", 2, status="completed"),
    ]
    client: list[Line] = [
        {"what": "intent", "nonce": "n", "key": "k"},
        {"what": "dispatched", "nonce": "n", "key": "k", "job": A},
        {"what": "result", "nonce": "n", "job": A, "result": [1, 1, 2]},
    ]
    row = {
        "id": A, "name": "Count", "key": "k", "params": json.dumps({"nonce": "n", "steps": 3, "size": 0, "trap": ""}),
        "status": "completed", "reason": None, "wanted": None, "rank": None, "life": None, "attempt": 2, "event_seq": 5,
        "checkpoint_seq": 3, "output": "[1,1,2]", "error_message": None, "state": _state(3, [1, 1, 2]),
    }  # fmt: skip
    events = [
        _event(1, "created", "queued"),
        _event(2, "started", "running"),
        _event(3, "queued", "queued"),
        _event(4, "started", "running"),
        _event(5, "completed", "completed"),
    ]
    lives: list[Line] = [{"id": "l", "pid": 1, "ended_at": "2030-01-01T00:00:00Z", "ended_how": "left"}]
    return History(effects, client, {A: row}, {A: events}, lives, [], {}, {1})


def _damaged(**facts: Any) -> dict[str, Line]:
    return {A: {"attempt": 2, "state": _state(3, [1, 1, 2]).hex(), "status": "completed", "reason": None, **facts}}


Spoil = Callable[[History], object]

BREACHES: dict[str, tuple[Spoil, str]] = {
    "a dispatch is lost": (lambda h: h.jobs.clear(), "G1: the acknowledged dispatch of n as a is lost"),
    "a refused dispatch is stored": (
        lambda h: h.client.append({"what": "refused", "nonce": "n"}),
        "G20: n was refused 1 of 1 times, and is stored 1 times",
    ),
    "a job that nobody dispatched": (lambda h: h.client.clear(), "G1: n was dispatched 0 times, and is stored 1 times"),
    "a job stored twice": (
        lambda h: h.jobs.update(b={**h.jobs[A], "id": "b", "key": None}),
        "G1: n was dispatched 1 times, and is stored 2 times",
    ),
    "a job that is not stored has run": (
        lambda h: h.effects.append(_line("begin", job="b", at=0, whole=True)),
        "G1: b has run (begin), but is not stored",
    ),
    "a job with another's parameters": (
        lambda h: h.jobs[A].update(params=json.dumps({"nonce": "m", "steps": 3, "size": 0, "trap": ""})),
        "G1: a is stored with other parameters than n was dispatched with",
    ),
    "two jobs for a key": (
        lambda h: h.jobs.update(b={**h.jobs[A], "id": "b"}),
        "G12: 2 jobs Count are stored under 'k'",
    ),
    "two answers for a key": (
        lambda h: h.client.append({"what": "dispatched", "nonce": "n", "key": "k", "job": "b"}),
        "G12: 'k' was answered with 2 jobs: ['a', 'b']",
    ),
    "an acknowledged checkpoint is lost": (
        lambda h: h.effects[6].update(at=1),
        "G3: a: attempt 2 began at step 1, but step 2 was acknowledged",
    ),
    "a step is left out": (
        lambda h: h.effects[7].update(step=4),
        "G3: a: attempt 2 went from step 2 to 4",
    ),
    "an attempt begins where nobody was": (
        lambda h: h.effects[6].update(at=7),
        "G3: a: attempt 2 began at step 7, which nobody had done",
    ),
    "an acknowledged step is done again": (
        lambda h: h.effects.insert(7, _line("step", 2, step=2)),
        "G3: a: attempt 2 did step 2 again, but step 2 was acknowledged",
    ),
    "a mixed state": (
        lambda h: h.effects[6].update(whole=False),
        "G3: a: attempt 2 began with a state that was put together of several",
    ),
    "an attempt's number again": (
        lambda h: h.effects[6].update(attempt=1),
        "G4: a: attempt 1 began after attempt 1",
    ),
    "an older attempt goes on": (
        lambda h: h.effects.insert(7, _line("step", 1, step=4)),
        "G4: a: attempt 1 did something (step) after attempt 2 had begun",
    ),
    "an older attempt commits": (
        lambda h: h.effects.insert(7, _line("saved", 1, step=3)),
        "G4: a: step 3 was acknowledged to attempt 1, not to 2",
    ),
    "an attempt that never began": (
        lambda h: h.effects.insert(9, _line("step", 5, step=1)),
        "G4: a: attempt 5 did something (step) and never began",
    ),
    "finished twice": (
        lambda h: h.effects.append(_line("finished", 3, status="failed")),
        "G2: a: was completed in attempt 2 and then was failed in attempt 3",
    ),
    "run again": (
        lambda h: h.effects.append(_line("begin", 3, at=3, whole=True)),
        "G2: a: attempt 3 did something (begin) after the job was completed in attempt 2",
    ),
    "another end": (
        lambda h: h.jobs[A].update(status="failed"),
        "G2: a: was completed in attempt 2 and now was failed in attempt 2",
    ),
    "another result": (
        lambda h: h.jobs[A].update(output="[1,2,2]"),
        "G2: a: its result was [1, 1, 2] and is now [1,2,2]",
    ),
    "a gap in the events": (
        lambda h: h.events[A].pop(2),
        "G11: a: its events are numbered [1, 2, 4, 5]",
    ),
    "an event twice": (
        lambda h: h.events[A].insert(1, h.events[A][1]),
        "G11: a: its events are numbered [1, 2, 2, 3, 4, 5]",
    ),
    "the row counts otherwise": (
        lambda h: h.jobs[A].update(event_seq=6),
        "G11: a: 5 events are stored, and the row says 6",
    ),
    "not created first": (
        lambda h: h.events[A][0].update(type="queued"),
        "G11: a: its events are ['queued', 'started', 'queued', 'started', 'completed']: not created once, and first",
    ),
    "something after the end": (
        lambda h: h.events[A][2].update(type="completed"),
        "G11: a: its events are ['created', 'started', 'completed', 'started', 'completed']: something follows its end",
    ),
    "the last event says otherwise": (
        lambda h: h.events[A][4].update(status="failed"),
        "G11: a: its last event says failed, its row completed",
    ),
    "more attempts than starts": (
        lambda h: h.events[A][1].update(type="queued"),
        "G11: a: its events are ['created', 'queued', 'queued', 'started', 'completed'], and it is at attempt 2",
    ),
    "events of nobody": (lambda h: h.events.update(b=[]), "G11: b: it has events and no row"),
    "fewer checkpoints than acknowledged": (
        lambda h: h.jobs[A].update(checkpoint_seq=2),
        "G3: a: step 3 was acknowledged, and 2 checkpoints are stored",
    ),
    "a state older than acknowledged": (
        lambda h: h.jobs[A].update(state=_state(2, [1, 1])),
        "G3: a: step 3 was acknowledged, and the stored state is of step 2",
    ),
    "no state, though one was acknowledged": (
        lambda h: h.jobs[A].update(state=None),
        "G3: a: step 3 was acknowledged, and the stored state is of step 0",
    ),
    "a state of two": (
        lambda h: h.jobs[A].update(state=_state(3, [1, 1])),
        "G3: a: its stored state, of step 3, is put together of several",
    ),
    "a state with another's bytes": (
        lambda h: h.jobs[A].update(state=_state(3, [1, 1, 2], pad=b"\2")),
        "G3: a: its stored state, of step 3, is put together of several",
    ),
    "another job's state": (
        lambda h: h.jobs[A].update(state=_state(3, [1, 1, 2], job="b")),
        "G3: a: its stored state, of step 3, is put together of several",
    ),
    "a torn state": (
        lambda h: h.jobs[A].update(state=_state(3, [1, 1, 2])[:-4]),
        "G17: a: its stored state can't be read: Unpack failed: incomplete input",
    ),
    "fewer attempts than have run": (
        lambda h: h.jobs[A].update(attempt=1),
        "G4: a: attempt 2 has run, and the row says 1",
    ),
    "what was damaged has run": (
        lambda h: h.damaged.update(_damaged(attempt=1)),
        "G17: a: attempt 2 did something (begin) with what was damaged after attempt 1",
    ),
    "what was damaged was overwritten": (
        lambda h: h.damaged.update(_damaged(state="00")),
        "G10: a: the bytes of its damaged state were not kept",
    ),
    "what was damaged was not set aside": (
        lambda h: h.damaged.update(_damaged(status="held", reason="corrupt_state")),
        "G10: a is completed (None): it was damaged, so that it had to become held (corrupt_state)",
    ),
    "taken for dead alive": (
        lambda h: h.lives[0].update(ended_how="expired"),
        "G14: the life l was noted as expired, and process 1 is alive",
    ),
    "damage": (lambda h: h.damage.append("row 1 missing"), "the database is damaged: row 1 missing"),
    "not done": (lambda h: h.jobs[A].update(status="paused", reason="user"), "G6: a is paused (user)"),
    "still held": (
        lambda h: h.jobs[A].update(life="l"),
        "G6: a is completed, and still has {'life': 'l'}",
    ),
    "a short result": (lambda h: h.jobs[A].update(output="[1,1]"), "G3: a: after 3 steps its result is [1, 1]"),
    "more checkpoints than steps": (
        lambda h: h.jobs[A].update(checkpoint_seq=4),
        "G3: a: it has 3 steps, and 4 checkpoints were stored",
    ),
    "attempts out of order": (
        lambda h: h.jobs[A].update(output="[2,1,2]"),
        "G4: a: its steps were done by attempts [2, 1, 2], in this order",
    ),
    "a step that nobody did": (
        lambda h: h.jobs[A].update(output="[1,1,9]"),
        "G3: a: its result says that attempt 9 did step 3, and it didn't",
    ),
    "another attempt's step": (
        lambda h: h.jobs[A].update(output="[1,1,1]"),
        "G3: a: attempt 1's step 3 is stored, not attempt 2's",
    ),
    "a life that never ended": (
        lambda h: h.lives[0].update(ended_at=None),
        "G6: the life l of process 1 is not noted as over",
    ),
}


def test_a_good_history_breaks_nothing():
    """What is spoilt below is a history in which every promise was kept."""
    assert judge(_good()) == []


@pytest.mark.parametrize("breach", sorted(BREACHES))
def test_a_breach_is_found(breach: str):
    """Each predicate of the judge finds what it is there for."""
    spoil, told = BREACHES[breach]
    history = copy.deepcopy(_good())
    spoil(history)
    assert told in judge(history)
