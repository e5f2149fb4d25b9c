"""`jobkit worker`: real processes and real signals. It stops as promised, and says what it does."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
from pathlib import Path

import pytest

from jobkit import JobStatus
from jobkit.cli.signals import ECHO_S
from tests.cli.processes import Program
from tests.cli.workload import Echo, Fail, Steps, StepsInThread, StuckBehind, StuckLoop, StuckThread

APART_S = ECHO_S * 2
"""How long after a signal the next one is another request."""

PAUSED = (JobStatus.PAUSED, "shutdown")


def standing(record):
    """Where a job stands, and why."""
    return record.status, record.reason


# ── stopping ──


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=lambda sent: sent.name)
def test_a_signal_saves_what_runs(worker, dispatch, record, application, sent):
    """G16, G3: told to stop, it saves every running job and ends with 0; the next one goes on exactly there."""
    gate = application / "gate"
    ids = dispatch(Steps(gate=gate), StepsInThread(gate=gate))
    first = worker()
    for _ in ids:
        first.until("started, attempt 1")
    first.send(sent)
    code, said = first.ended()
    assert code == 0, said
    assert "stopping; waiting up to 10 s for 2 jobs; press Ctrl-C again to hurry" in said
    assert said.endswith("stopped; every running job was saved\n")
    saved = [record(one) for one in ids]
    assert [standing(one) for one in saved] == [PAUSED, PAUSED]

    gate.touch()
    second = worker()
    for _ in ids:
        second.until("completed")
    second.send(sent)
    code, said = second.ended()
    assert code == 0, said
    assert "stopping\n" in said
    assert [record(one.id).output for one in saved] == [[0, one.checkpoint_seq] for one in saved]


@pytest.mark.parametrize("kind", [StuckThread, StuckBehind], ids=lambda kind: kind.__name__)
def test_a_grace_that_runs_out_is_exit_code_7(worker, dispatch, record, kind):
    """G16: a handler that never comes to a checkpoint is given back all the same, and keeps no process alive."""
    (stuck,) = dispatch(kind())
    running = worker("--grace", "0.2")
    running.until("started, attempt 1")
    running.send(signal.SIGTERM)
    code, said = running.ended()
    assert code == 7, said
    assert "waiting up to 0.2 s for 1 job;" in said
    assert "the grace ran out" in said
    assert standing(record(stuck)) == PAUSED


def test_a_second_signal_hurries(worker, dispatch, record):
    """A person who has no patience presses Ctrl-C again: the grace is over at once."""
    (stuck,) = dispatch(StuckThread())
    running = worker("--grace", "600")
    running.until("started, attempt 1")
    running.send(signal.SIGINT)
    running.until("waiting up to 600 s for 1 job;")
    assert running.silent(APART_S)
    running.send(signal.SIGINT)
    code, said = running.ended()
    assert code == 7, said
    assert "hurrying" in said
    assert standing(record(stuck)) == PAUSED


def test_a_signal_that_comes_twice_at_once_is_one(worker, dispatch, record, application):
    """Ctrl-C that a process manager passes on once more doesn't cost the running jobs their grace."""
    (steps,) = dispatch(Steps(gate=application / "gate"))
    running = worker()
    running.until("started, attempt 1")
    running.send(signal.SIGINT)
    running.send(signal.SIGTERM)
    code, said = running.ended()
    assert code == 0, said
    assert standing(record(steps)) == PAUSED


def test_a_third_signal_kills(worker, dispatch, record):
    """Even if a job blocks the event loop for good, so that nothing can be stopped in order, a person gets out."""
    (stuck,) = dispatch(StuckLoop())
    running = worker()
    running.until("started, attempt 1")
    for _ in range(3):
        assert running.process.poll() is None
        assert running.silent(APART_S), running.heard.said
        running.send(signal.SIGINT)
    code, _ = running.ended()
    assert code == -signal.SIGINT
    assert record(stuck).status is JobStatus.RUNNING


@pytest.mark.parametrize("form", ["{}", "bash -c '{}; true'"], ids=["typed", "in a script"])
def test_ctrl_c_at_a_terminal(terminal, dispatch, record, application, form):
    """Ctrl-C reaches all that is in the foreground, shells too; the worker stops in order, and its shell goes on."""
    (steps,) = dispatch(Steps(gate=application / "gate"))
    terminal.type(form.format("jobkit worker --app myapp.jobs") + "; echo exit code $?")
    terminal.until("started, attempt 1")
    terminal.ctrl_c()
    terminal.until("every running job was saved")
    terminal.until("exit code 0")
    assert standing(record(steps)) == PAUSED


def test_a_signal_that_its_parent_has_switched_off_stays_off(start, dispatch, record, application):
    """`jobkit worker &` in a script, or under nohup: Ctrl-C is for the foreground, and leaves it alone."""
    (steps,) = dispatch(Steps(gate=application / "gate"))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        running = start("worker", "--app", "myapp.jobs")
    finally:
        signal.signal(signal.SIGINT, before)
    running.until("started, attempt 1")
    running.send(signal.SIGINT)
    assert running.silent(APART_S)
    running.send(signal.SIGTERM)
    assert running.ended()[0] == 0
    assert standing(record(steps)) == PAUSED


def test_scaling_down_hands_the_job_over(worker, dispatch, record, application):
    """G16: beside another worker a stop gives the job to that one, which goes on at once where it was saved."""
    gate = application / "gate"
    (steps,) = dispatch(Steps(gate=gate))
    one = worker("--name", "one")
    one.until("started, attempt 1")
    other = worker("--name", "other")
    other.until("worker other")
    one.send(signal.SIGTERM)
    assert one.ended()[0] == 0
    other.until("started, attempt 2")
    gate.touch()
    other.until("completed")
    ended = record(steps)
    assert ended.node == "other"
    assert ended.output[0] == 0
    assert 0 < ended.output[1] <= ended.checkpoint_seq


# ── starting ──


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=lambda sent: sent.name)
def test_a_signal_while_the_application_is_imported(worker, application, sent):
    """There is nothing to save yet: a slow import is broken off, without a traceback, and nothing is left behind."""
    (application / "myapp" / "jobs.py").write_text(
        "import threading\nprint('importing', flush=True)\nthreading.Event().wait()\n"
    )
    running = worker()
    running.until(r"importing\n")
    running.send(sent)
    assert running.ended() == (0, "importing\n")
    assert not (application / "jobs.db").exists()


def opens(running: Program, application: Path) -> bool:
    """Whether it has the database open."""
    for file in Path("/proc", str(running.process.pid), "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            if file.readlink() == application / "jobs.db":
                return True
    return False


def test_a_signal_while_the_schema_is_made(worker, application):
    """Told to stop while it waits for a locked database, it ends once it has got it, without a traceback."""
    with sqlite3.connect(application / "jobs.db", isolation_level=None) as database:
        database.execute("BEGIN EXCLUSIVE")
        running = worker()
        running.comes_to(lambda: opens(running, application))
        running.send(signal.SIGTERM)
        assert running.silent(APART_S), running.heard.said
        database.execute("COMMIT")
    database.close()
    code, said = running.ended()
    assert code == 0, said
    assert "Traceback" not in said


MOMENTS = {
    "open": opens,
    "life": lambda _, application: len(list((application / "jobs.db.lives").glob("*-*.lock"))) > 0,
    "said": lambda running, _: " INFO " in running.heard.said,
    "work": lambda running, _: "INFO worker" in running.heard.said,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_of_the_start(worker, dispatch, record, application, moment):
    """While it opens the database, enters its life, sweeps or claims: it ends with 0, and lets go of its jobs."""
    (steps,) = dispatch(Steps(gate=application / "gate"))
    running = worker()
    running.comes_to(lambda: MOMENTS[moment](running, application))
    running.send(signal.SIGTERM)
    code, said = running.ended()
    assert code == 0, said
    assert "Traceback" not in said
    assert standing(record(steps)) in {PAUSED, (JobStatus.QUEUED, None)}


# ── the application ──


@pytest.mark.parametrize(
    ("source", "last"),
    [
        ("import json\n\ndef read():\n    return json.loads('{')\n\nread()\n", "json.decoder.JSONDecodeError: "),
        ("import a_module_that_is_missing\n", "ModuleNotFoundError: No module named 'a_module_that_is_missing'"),
        ("def broken(:\n", "SyntaxError: "),
        ("import sys\nsys.exit('not like this')\n", "SystemExit: not like this"),
        ("from jobkit import job\n\n@job\nclass NoJob: ...\n", "jobkit.errors.InvalidJob: "),
    ],
    ids=["error", "missing import", "syntax", "exit", "no job"],
)
def test_an_application_that_can_not_be_imported(jobkit, application, source, last):
    """Its author sees the traceback of their own code, without jobkit's frames, and the exit code is 3."""
    module = application / "myapp" / "jobs.py"
    module.write_text(source)
    done = jobkit("worker", "--app", "myapp.jobs")
    assert (done.returncode, done.stdout) == (3, "")
    told, _, complaint = done.stderr.rpartition("jobkit: ")
    assert complaint == "myapp.jobs can't be imported, as shown above\n"
    files = re.findall(r'File "(.*?)"', told)
    assert files[0] == str(module)
    assert not [file for file in files if "importlib" in file or f"{os.sep}jobkit{os.sep}" in file]
    assert re.search(f"^{re.escape(last)}", told, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--app", "myap.jobs"), "there is no module 'myap' here: "),
        (("--app", "myapp.job"), "there is no module 'myapp.job' here: "),
        (("--app", "empty"), "empty defines no job"),
        ((), "--app myapp.jobs"),
    ],
)
def test_no_such_application(jobkit, application, arguments, hint):
    """A module that isn't there, or has no job in it, is told in one line that says what to do; nothing is created."""
    (application / "empty.py").touch()
    done = jobkit("worker", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert hint in done.stderr
    assert not (application / "jobs.db").exists()


def test_what_is_run_can_be_chosen(worker, dispatch, record, application):
    """--queues, --concurrency and --name hold: other queues wait, and one job at a time runs on the named node."""
    gate = application / "gate"
    first, second = dispatch(Steps(gate=gate), Steps(gate=gate), queue="mine")
    (foreign,) = dispatch(Echo(), queue="foreign")
    running = worker("--queues", "mine,other", "--concurrency", "1", "--name", "box")
    running.until("worker box, process")
    running.until(first)
    assert record(first).node == "box"
    assert [record(one).status for one in (second, foreign)] == [JobStatus.QUEUED, JobStatus.QUEUED]
    gate.touch()
    running.until(f"{second}: completed")
    assert record(foreign).status is JobStatus.QUEUED


def test_what_a_start_resumes(worker, jobkit, dispatch, record):
    """A start resumes what people have paused, and with --resume interrupted it does not."""
    paused, echo = dispatch(Echo(word="paused"), Echo())
    assert jobkit("pause", paused).returncode == 0
    running = worker("--resume", "interrupted")
    running.until(f"{echo}: completed")
    running.send(signal.SIGTERM)
    assert running.ended()[0] == 0
    assert standing(record(paused)) == (JobStatus.PAUSED, "user")
    worker().until(f"{paused}: completed")


# ── the log ──


def test_the_log_tells_what_became_of_each_job(worker, dispatch):
    """A person sees what started and how it ended, a failure as a warning with its reason."""
    good, bad = dispatch(Echo(), Fail())
    running = worker()
    running.until(rf"INFO cli_echo {good}: started, attempt 1\n")
    running.until(rf"INFO cli_echo {good}: completed, \d+\.\d s at work\n")
    running.send(signal.SIGTERM)
    assert re.search(rf"WARNING cli_fail {bad}: failed: LookupError: no such street, \d", running.ended()[1])


def test_the_log_tells_of_a_job_that_can_not_be_begun(worker, dispatch, jobkit, application):
    """A job that is held before any code of its own has run is told of like others that came to a bad end."""
    (steps,) = dispatch(Steps(gate=application / "gate"))
    running = worker()
    running.until("started, attempt 1")
    assert jobkit("pause", "--wait", steps).returncode == 0
    with contextlib.closing(sqlite3.connect(application / "jobs.db")) as database, database:
        database.execute("UPDATE jobs SET state = x'00'")
    assert jobkit("resume", steps).returncode == 0
    running.until(rf"WARNING \w+ {steps}: held \(corrupt_state\)")


def test_log_level(worker, dispatch, jobkit, application):
    """LOG_LEVEL says how much is told; one that doesn't exist is refused in one line."""
    (echo,) = dispatch(Echo())
    running = worker(LOG_LEVEL="error")
    watching = jobkit("watch", echo)
    assert watching.returncode == 0, watching.stderr
    running.send(signal.SIGTERM)
    assert running.ended() == (0, "")
    done = jobkit("worker", "--app", "myapp.jobs", LOG_LEVEL="loud")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "LOG_LEVEL='loud'" in done.stderr


def test_an_application_may_have_a_log_of_its_own(worker, dispatch, application):
    """Where the application has said what its log looks like, that holds for what the worker tells too."""
    with (application / "myapp" / "jobs.py").open("a") as file:
        file.write("\nimport logging\n\nlogging.basicConfig(format='MINE %(message)s')\n")
    (echo,) = dispatch(Echo())
    worker().until(rf"\nMINE cli_echo {echo}: completed")


@pytest.mark.parametrize("option", [("--concurrency", "0"), ("--grace", "-1"), ("--resume", "some")])
def test_a_wrong_option_is_one_line_and_exit_code_2(jobkit, option):
    """An option that can't be meant is refused before anything is imported or opened."""
    done = jobkit("worker", *option)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert option[0] in done.stderr
