"""`jobkit watch`: it shows what is so, for as long as there is something to wait for."""

from __future__ import annotations

import json
import re
import signal

import pytest

from jobkit import Progress
from jobkit.cli.people import amounts, bar, percent
from tests.cli.workload import Fail, Steps


@pytest.fixture
def ids(in_process, database):
    """The ids of all jobs by name; of several of one name, the newest."""
    records = json.loads(in_process("list", "--json", "--database", database).stdout)
    return {one["name"]: one["id"] for one in reversed(records)}


def test_a_job_that_has_ended(in_process, database, ids):
    """It is shown once, with its reason; the exit code says whether it has completed."""
    done = in_process("watch", ids["greet"], "--database", database)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "completed  attempt 1, checkpoint 1  75%  3 of 4 words  nearly there\n"
    done = in_process("watch", ids["stumble"], "--database", database)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("failed  attempt 1, checkpoint 0  LookupError: no such [bold]street[/bold] ")
    assert "\x1b" not in done.stdout


def test_json_lines(in_process, database, ids):
    """--jsonl is the whole record, one line for each change."""
    done = in_process("watch", ids["greet"], "--jsonl", "--database", database)
    (line,) = done.stdout.splitlines()
    assert (json.loads(line)["id"], json.loads(line)["progress"]["completed"]) == (ids["greet"], 3)


@pytest.mark.parametrize("typed", [("01ff", 4), ("greet", 2)])
def test_no_such_job(in_process, database, typed):
    """A job that isn't there is exit code 4, what can't be an id 2."""
    done = in_process("watch", typed[0], "--database", database)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (typed[1], "", 1)


def test_a_whole_life_in_lines(start, worker, jobkit, dispatch, application):
    """In a pipe there is a line for each change of standing, in order, and for progress; a pause is watched on."""
    gate = application / "gate"
    (steps,) = dispatch(Steps(gate=gate))
    watching = start("watch", steps)
    watching.until("^queued  attempt 0, checkpoint 0\n")
    worker()
    watching.until(r"\nrunning  attempt 1, checkpoint [\d,]+  [\d,]+ steps  step \d+\n")
    assert jobkit("pause", "--wait", steps).returncode == 0
    count = r"([\d,]+)  \1 steps  step"
    watching.until(rf"\npaused  \(user\)  attempt 1, checkpoint {count} \d+\n")
    assert jobkit("resume", steps).returncode == 0
    watching.until(r"\nrunning  attempt 2, ")
    gate.touch()
    code, said = watching.ended()
    assert code == 0
    assert re.search(rf"\ncompleted  attempt 2, checkpoint {count} \d+\n$", said)
    assert "\x1b" not in said


def test_every_change_in_json_lines(start, worker, dispatch, application):
    """--jsonl tells of each change once, to the end; that time passes is no change."""
    gate = application / "gate"
    (steps,) = dispatch(Steps(gate=gate))
    watching = start("watch", steps, "--jsonl")
    watching.until('"status": "queued"')
    assert watching.silent(1)
    worker()
    watching.until('"status": "running"')
    gate.touch()
    code, said = watching.ended()
    records = [json.loads(line) for line in said.splitlines()]
    assert code == 0
    assert (records[0]["status"], records[-1]["status"]) == ("queued", "completed")
    assert [one["checkpoint_seq"] for one in records] == sorted(one["checkpoint_seq"] for one in records)


def test_a_bar_at_a_terminal(terminal, worker, dispatch):
    """At a terminal the job stays in one place, and its end with its reason stays there; Ctrl-C leaves with 130."""
    (fail,) = dispatch(Fail())
    terminal.type(f"jobkit watch {fail}; echo exit code $?")
    terminal.until("queued")
    terminal.ctrl_c()
    terminal.until("jobkit: interrupted")
    terminal.until("exit code 130")
    terminal.type(f"jobkit watch {fail}; echo exit code $?")
    terminal.until("queued")
    worker()
    terminal.until(r"failed.*  attempt 1, checkpoint 0")
    terminal.until("LookupError: no such street")
    terminal.until("exit code 1\r")


def test_a_worker_that_was_killed(start, worker, dispatch, application):
    """A job whose worker is gone is still said to be running, and beside it that its worker gives no sign of life."""
    (steps,) = dispatch(Steps(gate=application / "gate"))
    running = worker(JOBKIT_LEASE_S="2")
    running.until("started, attempt 1")
    watching = start("watch", steps)
    watching.until("^running  attempt 1")
    running.send(signal.SIGKILL)
    watching.until(r"\nrunning  its worker gives no sign of life  attempt 1")


def test_nothing_is_said_to_be_done_before_it_is():
    """What is nearly done is never rounded up to done, and what floats make of 57 in 100 is 57."""
    assert percent(Progress(fraction=0.9999)) == "99%"
    assert percent(Progress(fraction=0.57)) == "57%"
    assert percent(Progress(fraction=1.0)) == "100%"
    assert bar(Progress(fraction=0.99)).plain == f"{'━' * 19}─ 99%"
    assert amounts(Progress(completed=1500, total=2000, unit="files", phase="copying", message="a\x1b")) == (
        "1,500 of 2,000 files  copying  a\N{REPLACEMENT CHARACTER}"
    )
