"""The commit went through, and whoever asked for it never heard: it counts all the same."""

from __future__ import annotations

import pytest

from tests.crash.harness import Arena
from tests.crash.plans import Order, Plan

KINDS = pytest.mark.parametrize("kind", ["Count", "CountInThread"])


def _did(arena: Arena, what: str) -> list[tuple[int, int]]:
    return [(line["attempt"], line.get("step", line.get("at", 0))) for line in arena.effects() if line["what"] == what]


def test_a_dispatch_is_repeated_with_its_key(arena: Arena):
    """G1, G12: a dispatch whose answer was lost, repeated with its key, gives the job that was stored."""
    order = Order(nonce="a", steps=2, key="once")
    arena.die(Plan(dispatch=[order], kill=("dispatch.after_commit", 1)))
    (stored,) = arena.history().jobs
    assert arena.client()[-1]["what"] == "intent"  # it never heard
    arena.run(Plan(dispatch=[order]))
    assert [line["job"] for line in arena.client() if line["what"] == "dispatched"] == [stored]
    assert arena.judge() == []
    assert list(arena.history().jobs) == [stored]


def test_a_dispatch_without_a_key_is_done_all_the_same(arena: Arena):
    """G1: a job whose dispatch was never acknowledged, but committed, is done like any other."""
    arena.die(Plan(dispatch=[Order(nonce="a", steps=2)], kill=("dispatch.after_commit", 1)))
    arena.run(Plan())
    assert arena.judge() == []
    assert len(arena.history().jobs) == 1


@KINDS
def test_a_resumed_attempt_starts_from_the_committed_checkpoint(arena: Arena, kind: str):
    """G3: a checkpoint that was committed is where the next attempt starts, though nobody was told."""
    arena.die(Plan(dispatch=[Order(nonce="a", steps=5, kind=kind)], kill=("checkpoint.after_commit", 3)))
    assert _did(arena, "saved") == [(1, 1), (1, 2)]
    arena.run(Plan())
    assert _did(arena, "begin") == [(1, 0), (2, 3)]
    assert _did(arena, "step") == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5)]
    assert arena.judge() == []


@KINDS
def test_a_checkpoint_that_was_not_committed_did_not_happen(arena: Arena, kind: str):
    """G3, G5: death just before the commit leaves the checkpoint before; that one step runs again."""
    arena.die(Plan(dispatch=[Order(nonce="a", steps=5, kind=kind)], kill=("checkpoint.before_commit", 3)))
    arena.run(Plan())
    assert _did(arena, "begin") == [(1, 0), (2, 2)]
    assert _did(arena, "step") == [(1, 1), (1, 2), (1, 3), (2, 3), (2, 4), (2, 5)]
    assert arena.judge() == []


@KINDS
def test_a_finished_job_never_runs_again(arena: Arena, kind: str):
    """G2: a job whose end was committed is finished, though its process died before it heard."""
    arena.die(Plan(dispatch=[Order(nonce="a", steps=2, kind=kind)], kill=("finish.after_commit", 1)))
    assert _did(arena, "finished") == []  # it never heard
    arena.run(Plan())
    assert _did(arena, "begin") == [(1, 0)]
    assert arena.judge() == []


def test_a_claim_that_nobody_heard_of_is_an_attempt(arena: Arena):
    """G4, G6: a claim that was committed counts, and its job is taken over at once."""
    arena.die(Plan(dispatch=[Order(nonce="a", steps=2)], kill=("claim.after_commit", 1)))
    assert arena.effects() == []
    arena.run(Plan())
    assert _did(arena, "begin") == [(2, 0)]
    assert arena.judge() == []
