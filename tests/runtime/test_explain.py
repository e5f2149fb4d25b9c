"""`explain`: why a job isn't running, in words and as data, for everything that can stand in its way."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from jobkit import JobNotFound, Registry
from jobkit.interfaces import Change, Wait
from jobkit.lifecycle import Cause, Trigger
from jobkit.testing import FakeThreads
from tests.runtime.kit import Echo, OtherProcess, make, one

pytestmark = pytest.mark.anyio


def _do(other: OtherProcess, job_id: str, *causes: Cause, **last: Any) -> str:
    """Let things happen to a job; `last` goes with the last of them."""
    for number, cause in enumerate(causes, 1):
        one(other.store.commit([Change(job_id, cause, **(last if number == len(causes) else {}))]))
    return job_id


async def test_every_reason_is_told(path, clock):
    """Each status, and each thing that keeps a queued job from starting, has a code, a line for people, and data."""
    other = OtherProcess(path, now=clock.now)
    claim = Cause(Trigger.CLAIM, life=other.life.id)
    waits = (Wait("job", "00000000-0000-7000-8000-000000000001"), Wait("signal", "go"))
    soon = clock.now() + timedelta(seconds=90)
    expected = {
        _do(other, other.put(Echo())[0], claim): ["running"],
        _do(other, other.put(Echo())[0], claim, Cause(Trigger.CANCEL)): ["stopping"],
        _do(other, other.put(Echo())[0], claim, Cause(Trigger.COMPLETE)): ["finished"],
        _do(other, other.put(Echo())[0], Cause(Trigger.PAUSE)): ["paused"],
        _do(other, other.put(Echo())[0], claim, Cause(Trigger.STOPPED)): ["paused"],
        _do(other, other.put(Echo())[0], Cause(Trigger.UNLOADABLE, reason="corrupt_state")): ["held"],
        _do(other, other.put(Echo())[0], claim, Cause(Trigger.SUSPEND, due_at=soon), state=b"s"): ["due_later"],
        _do(other, other.put(Echo())[0], Cause(Trigger.ASSIGN, life=other.life.id)): ["assigned"],
        _do(other, other.put(Echo())[0], claim, Cause(Trigger.SUSPEND, due_at=soon), state=b"s", waits=waits[1:]): [
            "waits_for_signal", "times_out",
        ],
        other.put(Echo(), queue="b")[0]: ["next"],
        other.put(Echo(), queue="b")[0]: ["in_line"],
    }  # fmt: skip
    async with make(path, work=False, clock=clock, threads=FakeThreads(clock)) as client:
        for job_id, codes in expected.items():
            found = await client.explain(job_id)
            assert [reason.code for reason in found.reasons] == codes, found
            assert found.status == (await client.get(job_id)).status
            assert str(found) == "; ".join(reason.text for reason in found.reasons)
        with pytest.raises(JobNotFound):
            await client.explain("00000000-0000-7000-8000-000000000000")
    other.leave()


async def test_a_queued_job_without_a_worker_that_can_run_it(path):
    """No worker at all, or none that knows the job, is said as such; so is a pause of its queue, and a suspicion."""
    other = OtherProcess(path)
    (job_id,) = other.put(Echo())
    (suspect,) = other.put(Echo(), queue="b")
    _do(other, suspect, Cause(Trigger.CLAIM, life=other.life.id), Cause(Trigger.OWNER_GONE, crashed=True))
    other.leave()
    async with make(path, work=False) as client:
        assert [reason.code for reason in (await client.explain(job_id)).reasons] == ["no_worker"]
        assert "suspect" in [reason.code for reason in (await client.explain(suspect)).reasons]
        stranger = OtherProcess(path, registry=Registry())
        found = await client.explain(job_id)
        assert [reason.code for reason in found.reasons] == ["unknown_job"]
        assert "'echo' in version 1" in str(found)
        with stranger.store._database.writing() as connection:
            connection.exec_driver_sql("UPDATE queues SET paused = 1 WHERE name = 'default'")
        assert next(reason.code for reason in (await client.explain(job_id)).reasons) == "queue_paused"
        stranger.leave()
