"""Handlers that end their process, one way or another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.crash.harness import DEADLINE_S, PROGRAM, Arena, environment
from tests.crash.plans import Order, Plan

EXITS = {"os._exit": 7, "os.abort": -signal.SIGABRT, "segfault": -signal.SIGSEGV}

KINDS = pytest.mark.parametrize("kind", ["Count", "CountInThread"])


def _resumed(arena: Arena) -> None:
    """Let the next process go on, and see that the job that ended the last one does so from its second checkpoint."""
    arena.run(Plan())
    assert arena.judge() == []
    (guilty,) = (job for job, row in arena.history().jobs.items() if json.loads(row["params"])["trap"])
    begun = [
        (line["attempt"], line["at"]) for line in arena.effects() if (line["job"], line["what"]) == (guilty, "begin")
    ]
    assert begun == [(1, 0), (2, 2)]


@KINDS
@pytest.mark.parametrize("trap", sorted(EXITS))
def test_a_handler_that_ends_its_process_is_resumed(arena: Arena, trap: str, kind: str):
    """G3, G6: a job whose handler exits, aborts or crashes goes on from its last checkpoint, as do those beside it."""
    orders = [Order(nonce="guilty", steps=4, trap=trap, kind=kind), Order(nonce="beside", steps=4)]
    assert arena.start(Plan(dispatch=orders)).wait() == EXITS[trap]
    _resumed(arena)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_sys_exit_on_the_event_loop_ends_the_process_and_the_job_is_resumed(arena: Arena, backend: str):
    """G3, G6: `sys.exit` in an async handler ends the program, as it says; its job goes on in the next one.

    The exit code is the handler's on asyncio; trio may end with an error of its own.
    """
    orders = [Order(nonce="guilty", steps=4, trap="sys.exit"), Order(nonce="beside", steps=4)]
    plan = Plan(folder=str(arena.folder), dispatch=orders, backend=backend)
    ended = subprocess.run(
        [sys.executable, "-W", "error", str(PROGRAM), "--plan", json.dumps(plan)],
        env=environment(), timeout=DEADLINE_S, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode in {"asyncio": {7}, "trio": {1, 7}}[backend], ended.stderr
    _resumed(arena)


def test_sys_exit_in_a_thread_fails_the_job_alone(arena: Arena):
    """G2: `sys.exit` in a sync handler ends its thread, as Python has it: the job has failed, those beside it go on."""
    orders = [Order(nonce="guilty", steps=4, trap="sys.exit", kind="CountInThread"), Order(nonce="beside", steps=4)]
    arena.run(Plan(dispatch=orders))
    ended = {json.loads(row["params"])["nonce"]: row for row in arena.history().jobs.values()}
    assert ended["guilty"]["status"] == "failed"
    assert ended["guilty"]["error_message"] == "SystemExit: 7"
    assert ended["beside"]["status"] == "completed"
    assert arena.judge(at_rest=False) == []


@KINDS
def test_what_a_dead_process_leaves_behind_does_not_keep_it_alive(arena: Arena, kind: str):
    """G6: processes that a handler started outlive its own; they hold none of its locks, so it is resumed at once."""
    os.mkfifo(arena.folder / "orphans")
    try:
        plan = Plan(dispatch=[Order(nonce="guilty", steps=4, trap="orphans", kind=kind)])
        assert arena.start(plan).wait() == -signal.SIGKILL
        _resumed(arena)
    finally:
        # Both still wait for this pipe to be opened; without them, opening it fails.
        os.close(os.open(arena.folder / "orphans", os.O_WRONLY | os.O_NONBLOCK))
