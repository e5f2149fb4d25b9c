"""`jobkit pause`, `resume`, `cancel`, `release`, `rm`: what they ask, what they say, and how they end."""

from __future__ import annotations

import json
import shutil
from uuid import uuid4

import anyio
import pytest

from jobkit import JobManager, JobStatus, Registry
from jobkit.cli.people import silent
from tests.cli.conftest import JOBS, Greet, Someday, Stumble
from tests.cli.workload import Echo, Steps

LASTING = "is paused until `jobkit resume`\n"
PASSING = "is paused until `jobkit resume`, or the next start of a worker\n"


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A database with a job of each kind that nobody runs: queued, paused, completed, failed, held; their ids."""
    path = tmp_path_factory.mktemp("control") / "jobs.db"

    async def fill() -> dict[str, str]:
        async with JobManager(path, registry=JOBS) as manager:
            completed, failed = await manager.dispatch_many([Greet(name="Ada"), Stumble()])
            await manager.run_until_idle(timeout=60)
        async with JobManager(path, registry=JOBS, work=False) as client:
            held = await client.dispatch(Someday())
        async with JobManager(path, registry=Registry()) as stranger:
            with anyio.fail_after(60):
                async for event in stranger.events(held.id):
                    if event.type == "held":
                        break
        async with JobManager(path, registry=JOBS, work=False) as client:
            queued, paused = await client.dispatch_many([Someday(), Someday()])
            await paused.pause()
        handles = {"queued": queued, "paused": paused, "completed": completed, "failed": failed, "held": held}
        return {status: str(handle.id) for status, handle in handles.items()}

    return path, anyio.run(fill)


@pytest.fixture
def jobs(made, tmp_path):
    """The ids of the jobs in such a database of the test's own, by status."""
    path, ids = made
    shutil.copy(path, tmp_path / "jobs.db")
    return ids


def statuses(in_process):
    """How all jobs stand now, by id."""
    listed = json.loads(in_process("list", "--json").stdout)
    return {one["id"]: one["status"] for one in listed}


@pytest.mark.parametrize(
    "case",
    [
        (["pause"], "queued", PASSING, "paused"),
        (["pause", "--across-restarts"], "queued", LASTING, "paused"),
        (["pause", "--across-restarts"], "paused", LASTING, "paused"),
        (["resume"], "paused", "goes on: it is queued\n", "queued"),
        (["cancel"], "queued", "is cancelled\n", "cancelled"),
        (["cancel"], "held", "is cancelled\n", "cancelled"),
        (["cancel"], "completed", "had finished before: it is completed\n", "completed"),
        (["release"], "held", "goes on: it is queued\n", "queued"),
        (["rm", "--yes"], "failed", "is deleted: it was failed\n", None),
        (["rm", "--dry-run"], "failed", "would be deleted: it was failed\n", "failed"),
    ],
    ids=lambda case: f"{' '.join(case[0])} {case[1]}",
)
def test_what_is_asked_is_done_and_said(in_process, jobs, case):
    """One line says what became of the job, and the exit code is 0; a shortened id is enough."""
    command, status, said, after = case
    job_id = jobs[status]
    name = {"completed": "greet", "failed": "stumble"}.get(status, "someday")
    done = in_process(*command, job_id[:-1])
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{name} {job_id} {said}", "")
    assert statuses(in_process).get(job_id) == after


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["pause"], "held"), (["pause"], "completed"), (["resume"], "queued"), (["resume"], "failed"),
        (["release"], "paused"), (["rm", "--yes"], "queued"), (["rm", "--dry-run"], "held"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_what_can_not_be_is_exit_code_5(in_process, jobs, command, status):
    """What a job's status doesn't allow is one line on stderr that names the status, and changes nothing."""
    before = statuses(in_process)
    done = in_process(*command, jobs[status])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1)
    assert f"job {jobs[status]} is {status}: " in done.stderr
    assert statuses(in_process) == before


def test_a_pause_of_a_folder_that_resumes_nothing_lasts(in_process, jobs, tmp_path):
    """Where a start leaves people's pauses alone, `jobkit pause` doesn't promise that it ends them."""
    (tmp_path / "jobkit.toml").write_text('resume = "interrupted"\n')
    assert in_process("pause", jobs["queued"]).stdout.endswith(LASTING)


@pytest.mark.parametrize("command", ["pause", "resume", "cancel", "release", "rm"])
def test_a_job_that_is_not_there_changes_nothing(in_process, jobs, command):
    """All ids are looked up first: one that no job has is exit code 4, and no other job is touched."""
    before = statuses(in_process)
    yes = ["--yes"] if command == "rm" else []
    done = in_process(command, *yes, *jobs.values(), str(uuid4()))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)
    assert statuses(in_process) == before


def test_one_that_can_not_be_does_not_keep_back_the_others(in_process, jobs):
    """Of several jobs those that can be are done, the others told; the exit code is that of the first of these."""
    done = in_process("pause", jobs["held"], jobs["queued"], jobs["completed"], jobs["queued"])
    assert done.returncode == 5
    assert done.stdout == f"someday {jobs['queued']} {PASSING}"
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [
        f"job {jobs['held']} is held", f"job {jobs['completed']} is completed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "status", "outcome"),
    [
        (["pause"], "queued", "accepted"), (["resume"], "paused", "accepted"), (["release"], "held", "accepted"),
        (["cancel"], "failed", "already_finished"), (["rm", "--yes"], "failed", "deleted"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_json(in_process, jobs, command, status, outcome):
    """--json is an array of records as they are now (a deleted one as it was), each with what came of it."""
    done = in_process(*command, jobs[status], "--json")
    assert (done.returncode, done.stderr) == (0, "")
    (answer,) = json.loads(done.stdout)
    assert (answer["id"], answer["outcome"]) == (jobs[status], outcome)
    assert answer["status"] == statuses(in_process).get(jobs[status], "failed")


# ── jobs that run ──


def test_a_running_job(worker, jobkit, dispatch, record, application):
    """Asked of a running job, pause and cancel come into effect at its next checkpoint; --wait waits for that."""
    gate = application / "gate"
    (steps,) = dispatch(Steps(gate=gate))
    running = worker()
    running.until("started, attempt 1")
    done = jobkit("pause", "--wait", steps)
    assert (done.returncode, done.stdout) == (0, f"cli_steps {steps} {PASSING}")
    assert record(steps).checkpoint_seq > 0
    assert jobkit("resume", steps).returncode == 0
    running.until("started, attempt 2")
    done = jobkit("cancel", "--wait", steps)
    assert (done.returncode, done.stdout) == (0, f"cli_steps {steps} is cancelled\n")


def test_a_job_whose_worker_was_killed(worker, jobkit, dispatch, record, application):
    """A pause of a job that nobody runs any more is stored, and says that it waits for another worker to take over."""
    gate = application / "gate"
    (steps,) = dispatch(Steps(gate=gate))
    running = worker(JOBKIT_LEASE_S="2")
    running.until("started, attempt 1")
    running.process.kill()
    running.ended()
    while not silent(record(steps)):
        assert record(steps).status is JobStatus.RUNNING
    done = jobkit("pause", "--across-restarts", steps)
    assert done.returncode == 0
    assert "will be paused when a worker takes over: its own gives no sign of life, until `jobkit" in done.stdout
    (echo,) = dispatch(Echo())
    worker().until(f"{echo}: completed")
    assert record(steps).status is JobStatus.PAUSED


# ── deleting ──


def test_where_nobody_can_be_asked(jobkit, jobs):
    """Without a terminal `rm` wants --yes, and deletes nothing without it."""
    done = jobkit("rm", jobs["failed"])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "--yes" in done.stderr
    assert jobkit("show", jobs["failed"]).returncode == 0


def test_a_person_is_asked(terminal, jobs):
    """At a terminal `rm` names the finished jobs and asks; only a yes deletes them."""
    question = rf"Delete stumble {jobs['failed']} for good\? \[y/N\] "
    for answer, ended in (("", 130), ("n", 130), ("y", 5)):
        terminal.type(f"jobkit rm {jobs['queued']} {jobs['failed']}; echo exit code $?")
        terminal.until(question)
        terminal.type(answer)
        terminal.until("nothing was deleted" if ended == 130 else f"{jobs['failed']} is deleted")
        terminal.until(f"exit code {ended}")
    terminal.type(f"jobkit rm {jobs['completed']}; echo exit code $?")
    terminal.until("Delete greet")
    terminal.ctrl_c()
    terminal.until("exit code 130")
    terminal.type(f"jobkit show {jobs['completed']}; echo exit code $?")
    terminal.until("exit code 0")


def test_the_folder_goes_with_the_job(in_process, jobs, tmp_path):
    """`rm` removes the files that the job has kept."""
    folder = tmp_path / "jobs.db.data" / "jobs" / jobs["failed"]
    folder.mkdir(parents=True)
    (folder / "scratch").touch()
    assert in_process("rm", "--yes", jobs["failed"]).returncode == 0
    assert not folder.exists()
