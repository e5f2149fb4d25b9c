"""What every store must do, as pytest tests.

Whoever writes a `jobkit.interfaces.Store` subclasses `StoreContract` and gives it a fixture `make_store`; jobkit's own
tests do the same for each of its databases. Needs pytest and hypothesis.

    class TestMyStore(StoreContract):
        @pytest.fixture
        def make_store(self, clock, tmp_path):
            return lambda: MyStore(tmp_path, now=clock.now)
"""
# ruff: noqa: PLR2004  expected values stand as numbers, next to what they are compared with

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobkit import points
from jobkit.codec import Codec
from jobkit.errors import (
    IllegalTransition,
    InvalidFilter,
    JobkitError,
    JobNotFound,
    KeyConflict,
    LeaseLost,
    SerializationError,
    StoreUnavailable,
)
from jobkit.filters import JobFilter, label_text
from jobkit.interfaces import (
    Change,
    Claim,
    Claimed,
    Insert,
    Leave,
    Life,
    LogLine,
    NewJob,
    Register,
    Renew,
    Retire,
    Send,
    Stored,
    Wait,
)
from jobkit.lifecycle import Cause, Standing, Transition, Trigger, advance
from jobkit.model import Failure, JobRecord, JobStatus, Priority, Progress
from jobkit.plain import plain
from jobkit.testing.fakes import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from jobkit.interfaces import Ending, Store, Write
    from jobkit.model import Event, JobStats, Json, LogLevel

    MakeStore: TypeAlias = Callable[[], Store]

NAME: Final = "work"
LEASE_S: Final = 30.0
NOBODY: Final = "00000000-0000-7000-8000-ffffffffffff"
"""The id of no job and of no life."""

CHECKPOINT: Final = Cause(Trigger.CHECKPOINT)
REPORT: Final = Cause(Trigger.REPORT)
COMPLETE: Final = Cause(Trigger.COMPLETE)
CANCEL: Final = Cause(Trigger.CANCEL)
PAUSE: Final = Cause(Trigger.PAUSE)
OWNER_GONE: Final = Cause(Trigger.OWNER_GONE)

_codec = Codec()


def new_job(name: str = NAME, *, params: Mapping[str, Any] | None = None, **fields: Any) -> NewJob:
    """Make a job to store, with an id of its own.

    Args:
        name: Its name.
        params: Its parameters; whatever jobkit can pack.
        **fields: Fields of `NewJob`.
    """
    values = dict(params or {})
    shown: Any = plain(values)
    given = {"version": 1, "queue": "default", "priority": 5, "resumable": True, **fields}
    return NewJob(id=str(uuid4()), name=name, params=shown, params_data=_codec.pack(values), **given)


def line(message: str, level: LogLevel = "info", waited_s: float = 0.0, **fields: Json) -> LogLine:
    """Make a line of a job's log, of a hundred bytes."""
    return LogLine(message, level, fields, 100, waited_s)


class Bench:
    """A store with what tests do to it again and again."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._life: str | None = None

    def do(self, write: Write) -> Any:
        """Commit one write; an exception that it has earned is raised."""
        (answer,) = self.store.commit([write])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def add(self, name: str = NAME, **fields: Any) -> str:
        """Store one job."""
        job = new_job(name, **fields)
        assert self.do(Insert((job,))) == (Stored(job.id, created=True),)
        return job.id

    def new_life(self, **fields: Any) -> str:
        """Register another life."""
        life = Life(**{
            "id": str(uuid4()), "node": "node", "host": "host", "boot_id": "boot", "pid": 1, "working": True,
            "versions": {NAME: 1}, **fields,
        })  # fmt: skip
        self.do(Register(life, LEASE_S))
        return life.id

    @property
    def life(self) -> str:
        """The id of a life that claims."""
        if self._life is None:
            self._life = self.new_life()
        return self._life

    def claim(
        self,
        room: int = 1_000,
        versions: Mapping[str, int] | None = None,
        queues: tuple[str, ...] | None = None,
        life: str | None = None,
    ) -> list[Claimed]:
        """Claim jobs."""
        known = {NAME: 1} if versions is None else versions
        claimed: list[Claimed] = self.do(Claim(life or self.life, "node", room, known, queues))
        return claimed

    def claim_ids(self, room: int = 1_000, versions: Mapping[str, int] | None = None) -> list[str]:
        """Claim jobs and answer their ids."""
        return [one.transition.after.id for one in self.claim(room, versions)]

    def start(self, life: str | None = None, **fields: Any) -> Standing:
        """Store a job and start it."""
        job_id = self.add(**fields)
        found = [one.transition.after for one in self.claim(life=life)]
        return next(standing for standing in found if standing.id == job_id)

    def after(self, job: Standing, cause: Cause, **fields: Any) -> Standing:
        """Let an attempt or a sweep act on a job."""
        transition: Transition = self.do(Change(job.id, cause, job, **fields))
        return transition.after

    def ask(self, job_id: str, cause: Cause) -> Transition:
        """Let somebody ask something of a job."""
        transition: Transition = self.do(Change(job_id, cause))
        return transition

    def record(self, job_id: str) -> JobRecord:
        """Read a job that is there."""
        record = self.store.get(job_id)
        assert record is not None
        return record

    def status(self, job_id: str) -> JobStatus:
        """Read a job's status."""
        return self.record(job_id).status

    def events(self, job_id: str) -> list[Event]:
        """Read a job's events."""
        return self.store.events(job_id, None, None, 1_000)

    def complete(self, job: Standing, output: Json = None) -> Standing:
        """End an attempt well."""
        return self.after(job, COMPLETE, output=(_codec.pack(output), output))


def _complete(bench: Bench, job: Standing) -> None:
    bench.complete(job, "result")


def _fail(bench: Bench, job: Standing) -> None:
    bench.after(job, Cause(Trigger.FAIL), failure=Failure("OSError", "bad"))


def _cancel(bench: Bench, job: Standing) -> None:
    bench.ask(job.id, CANCEL)
    bench.after(job, Cause(Trigger.STOPPED))


def _requeue(bench: Bench, job: Standing) -> None:
    bench.after(job, OWNER_GONE)


def _claim_again(bench: Bench, job: Standing) -> None:
    _requeue(bench, job)
    assert bench.claim_ids() == [job.id]


def _complete_again(bench: Bench, job: Standing) -> None:
    _requeue(bench, job)
    bench.complete(bench.claim()[0].transition.after, "the second attempt's")


def _shut_down(bench: Bench, job: Standing) -> None:
    bench.after(job, Cause(Trigger.STOPPED))


def _delete(bench: Bench, job: Standing) -> None:
    bench.complete(job)
    bench.ask(job.id, Cause(Trigger.DELETE))


MEANWHILE: Final[Mapping[str, Callable[[Bench, Standing], None]]] = {
    "completed": _complete,
    "failed": _fail,
    "cancelled": _cancel,
    "queued again": _requeue,
    "claimed again": _claim_again,
    "completed by another": _complete_again,
    "paused": _shut_down,
    "deleted": _delete,
}
"""What may become of a job behind an attempt's back."""

OLD_LINES: Final = (line("old"), line("old", "warning"))

LAST_WORDS: Final[Mapping[str, Callable[[Standing], Change]]] = {
    "checkpoint": lambda job: Change(job.id, CHECKPOINT, job, state=b"old", progress=Progress(0.5)),
    "report": lambda job: Change(job.id, REPORT, job, progress=Progress(0.5, message="old")),
    "checkpoint with lines": lambda job: Change(job.id, CHECKPOINT, job, state=b"old", lines=OLD_LINES, warnings=2),
    "report with lines": lambda job: Change(job.id, REPORT, job, lines=OLD_LINES, warnings=2),
    "complete with lines": lambda job: Change(job.id, COMPLETE, job, output=(b"\xa3old", "old"), lines=OLD_LINES),
    "complete": lambda job: Change(job.id, COMPLETE, job, output=(b"\xa3old", "old"), progress=Progress(1.0)),
    "fail": lambda job: Change(job.id, Cause(Trigger.FAIL), job, failure=Failure("Old", "old")),
    "retry": lambda job: Change(
        job.id, Cause(Trigger.FAIL, due_at=datetime(2031, 1, 1, tzinfo=UTC)), job, failure=Failure("Old", "old")
    ),
    "time-out": lambda job: Change(job.id, Cause(Trigger.TIME_OUT), job, failure=Failure("Old", "old")),
    "suspend": lambda job: Change(job.id, Cause(Trigger.SUSPEND), job, progress=Progress(0.5)),
    "stopped": lambda job: Change(job.id, Cause(Trigger.STOPPED), job, progress=Progress(0.5)),
    "given back": lambda job: Change(job.id, Cause(Trigger.GRACE_OVER, others=True), job),
    "unloadable": lambda job: Change(
        job.id, Cause(Trigger.UNLOADABLE, reason="corrupt_state"), job, failure=Failure("Old", "old")
    ),
}
"""What an attempt may say that is none any more."""

CULPRITS: Final[Mapping[str, Callable[[Bench], Write]]] = {
    "a stale attempt": lambda bench: LAST_WORDS["checkpoint"](_stale(bench)),
    "a sweep that comes too late": lambda bench: Change((job := _stale(bench)).id, OWNER_GONE, job),
    "an attempt on no job": lambda _: LAST_WORDS["checkpoint"](Standing(NOBODY, JobStatus.RUNNING, 1)),
    "an integer that is too large": lambda _: Insert((new_job(), new_job(priority=2**70))),
    "a lone surrogate": lambda _: Insert((new_job(), new_job(label="\ud800"))),
    "a lone surrogate in a new queue's name": lambda _: Insert((new_job(), new_job(queue="\udfff"))),
    "an id that is there": lambda bench: Insert((new_job(), new_job()._replace(id=bench.add()))),
    "metadata that JSON can't say": lambda _: Insert((new_job(metadata={"of": {"n": float("nan")}}),)),
    "metadata that nothing can say": lambda _: Insert((new_job(metadata={"of": [object()]}),)),
    "an output that JSON can't say": lambda bench: Change(
        (job := bench.start()).id, COMPLETE, job, output=(b"\xc0", [float("nan")])
    ),
    "an error that UTF-8 can't say": lambda bench: Change(
        (job := bench.start()).id, Cause(Trigger.FAIL), job, failure=Failure("\ud800", "")
    ),
    "a line that UTF-8 can't say": lambda bench: Change(
        (job := bench.start()).id, CHECKPOINT, job, state=b"bad", lines=(line("good"), line("\ud800"))
    ),
    "a request for no job": lambda _: Change(NOBODY, CANCEL),
    "an impossible request": lambda bench: Change(bench.add("another"), Cause(Trigger.RESUME)),
    "a key with other parameters": lambda bench: Insert(
        (new_job(), new_job(bench.record(bench.add("keyed", key="k", params={"n": 1})).name, key="k", params={"n": 2}))
    ),
    "a dead life's claim": lambda _: Claim(NOBODY, "node", 1, {NAME: 1}),
    "a dead life's renewal": lambda _: Renew(NOBODY, LEASE_S),
}
"""Writes that earn an error."""


def _stale(bench: Bench) -> Standing:
    job = bench.start()
    _claim_again(bench, job)
    return job


class StoreContract:
    """What every store must do. A subclass gives the fixture `make_store`.

    `make_store()` makes a store that is not open yet, on a database of the test's own, whose time is `clock.now()`.
    """

    persistent: ClassVar[bool] = True
    """Whether jobs are still there when the store is opened again; then several stores may share the database, too."""

    # ── what a subclass gives, and may add to ──

    @pytest.fixture
    def make_store(self, clock: FakeClock) -> MakeStore:
        """Make a store; not yet open."""
        raise NotImplementedError

    def everything(self, store: Store, job_id: str) -> object:
        """All that is stored of a job, to be compared; a subclass may look deeper."""
        return store.get(job_id), store.state(job_id), store.ended(job_id), store.events(job_id, None, None, 1_000)

    # ── fixtures ──

    @pytest.fixture
    def clock(self) -> FakeClock:
        """The database's time."""
        return FakeClock()

    @pytest.fixture
    def store(self, make_store: MakeStore) -> Iterator[Store]:
        """An open store."""
        store = make_store()
        store.open()
        yield store
        store.close()

    @pytest.fixture
    def bench(self, store: Store) -> Bench:
        """The same, with tools."""
        return Bench(store)

    @pytest.fixture
    def sharing(self, store: Store, make_store: MakeStore) -> Iterator[Callable[[], Store]]:
        """Makes further open stores on the same database; where there can't be any, answers the same one."""
        made: list[Store] = []

        def share() -> Store:
            if not self.persistent:
                return store
            other = make_store()
            other.open()
            made.append(other)
            return other

        yield share
        for other in made:
            other.close()

    @pytest.fixture(autouse=True)
    def _disarm(self) -> Iterator[None]:
        """Leave no crash point armed."""
        yield
        points.arm(None)

    # ── what is stored comes back ──

    def test_all_that_is_said_of_a_new_job_comes_back(self, bench: Bench, clock: FakeClock) -> None:
        """What is given with a job is read back as it was given, in the record and by whoever claims it."""
        metadata: dict[str, Json] = {"provider": "vsphere", "deep": {"n": [1]}}
        job = new_job(
            "file_copy", version=3, queue="slow", priority=-7, resumable=False,
            params={"sources": ["a", "b"], "n": 2**40, "ü": "\N{SNOWMAN}"}, state=b"\x93state", key="key",
            label="Label", description="Description", user="me", tags=("b", "a", "b"), metadata=metadata,
        )  # fmt: skip
        bench.do(Insert((job,)))
        record = bench.record(job.id)
        assert record == JobRecord(
            id=UUID(job.id), name="file_copy", version=3, label="Label", description="Description",
            status=JobStatus.QUEUED, reason=None, wanted=None, queue="slow", priority=-7,
            params={"sources": ["a", "b"], "n": 2**40, "ü": "\N{SNOWMAN}"}, progress=None, output=None, error=None,
            warnings=0, attempt=0, retry_count=0, max_retries=0, crash_count=0, checkpoint_seq=0,
            created_at=clock.now(), scheduled_at=None, started_at=None, completed_at=None, last_checkpoint_at=None,
            duration_s=None, node=None, lease_deadline=None, user="me", tags=("b", "a", "b"), metadata=metadata,
            parent_id=None, depends_on=(), retry_of=None, forked_from=None, key="key",
        )  # fmt: skip
        (claimed,) = bench.claim(versions={"file_copy": 3})
        assert claimed[1:] == ("file_copy", 3, job.params_data, b"\x93state", metadata, None, 0)
        assert claimed.transition.after.resumable is False

    def test_all_that_comes_of_a_job_comes_back(self, bench: Bench, clock: FakeClock) -> None:
        """A record tells who ran a job, when, for how long, how far it came and what came of it."""
        job = bench.start()
        begun = clock.now()
        record = bench.record(job.id)
        assert (record.status, record.attempt, record.node, record.started_at) == (JobStatus.RUNNING, 1, "node", begun)
        assert record.lease_deadline == begun + timedelta(seconds=LEASE_S)
        clock.advance(2.5)
        assert bench.record(job.id).duration_s == 2.5
        progress = Progress(0.25, 1.0, 4.0, "files", "copying", "a.txt", {"rate": [1, 2]})
        job = bench.after(job, CHECKPOINT, state=b"state", progress=progress)
        record = bench.record(job.id)
        assert (record.progress, record.checkpoint_seq, record.last_checkpoint_at) == (progress, 1, clock.now())
        clock.advance(1)
        due_at = clock.now() + timedelta(hours=1)
        failure = Failure("OSError", "no \N{SNOWMAN}", "Traceback…\n")
        bench.after(job, Cause(Trigger.FAIL, due_at=due_at), failure=failure)
        record = bench.record(job.id)
        assert (record.status, record.scheduled_at, record.retry_count) == (JobStatus.SCHEDULED, due_at, 1)
        assert (record.error, record.duration_s, record.lease_deadline) == (failure, 3.5, None)
        clock.advance(3600)
        bench.do(Change(job.id, Cause(Trigger.DUE)))
        (claimed,) = bench.claim()
        clock.advance(0.5)
        bench.complete(claimed.transition.after, {"copied": 4})
        record = bench.record(job.id)
        assert (record.status, record.output, record.error, record.attempt) == (
            JobStatus.COMPLETED,
            {"copied": 4},
            None,
            2,
        )
        assert (record.started_at, record.completed_at, record.duration_s) == (begun, clock.now(), 4.0)
        assert record.progress == progress
        ended = bench.store.ended(job.id)
        assert ended == (NAME, JobStatus.COMPLETED, None, _codec.pack({"copied": 4}), None)

    def test_a_job_that_is_not_there(self, store: Store) -> None:
        """Asking for a job that is not there is answered, not an error."""
        assert store.get(NOBODY) is None
        assert store.ended(NOBODY) is None
        assert store.state(NOBODY) is None
        assert store.events(NOBODY, None, None, 10) == []

    def test_text_is_kept_as_it_is(self, bench: Bench) -> None:
        """No sign of any script, and no sign that means something to SQL or JSON, is changed on the way."""
        odd = "'; DROP TABLE jobs; -- % _ \\ \" \n\t\u2028 \N{PILE OF POO} \0 end"
        job_id = bench.add(label=odd, tags=(odd,), metadata={odd: odd}, params={"x": odd}, user=odd, queue=odd)
        record = bench.record(job_id)
        assert (record.label, record.tags, record.user, record.queue) == (odd, (odd,), odd, odd)
        assert (record.metadata, record.params) == ({odd: odd}, {"x": odd})
        found = bench.store.page(JobFilter(tag=odd, metadata={odd: odd}, user=odd, queue=odd), 10, None)
        assert [one.id for one in found] == [record.id]
        assert bench.claim_ids() == [job_id]

    def test_progress_that_can_not_be_stored_costs_nothing(self, bench: Bench) -> None:
        """Whatever a handler reports, its checkpoint and its result are stored."""
        bad: Any = object()
        job = bench.start()
        job = bench.after(job, CHECKPOINT, state=b"1", progress=Progress(bad, message="kept", data={"bad": bad}))
        assert bench.record(job.id).progress == Progress(message="kept")
        job = bench.after(job, CHECKPOINT, state=b"2", progress=Progress(0.5, completed=float("nan"), message="\ud800"))
        assert bench.record(job.id).progress == Progress(0.5, message="\ud800")
        bench.after(job, COMPLETE, output=(b"\xc0", None), progress=Progress(1.0, data={("no", "key"): 1}))  # type: ignore[dict-item]
        assert bench.record(job.id).progress == Progress(1.0)

    # ── claims ──

    def test_claim_by_priority_then_first_in_first_out(self, bench: Bench, clock: FakeClock) -> None:
        """Of jobs that came together the more urgent is claimed first; of equally urgent ones the first that came."""
        order = []
        for _ in range(3):
            order.append([bench.add(priority=int(priority)) for priority in Priority])
            clock.advance(0.001)
        expected = [ids[at] for at in reversed(range(len(Priority))) for ids in order]
        assert [bench.claim_ids(1)[0] for _ in expected] == expected

    def test_claim_in_order_within_one_moment(self, bench: Bench) -> None:
        """Jobs that came in the same moment, in one write or in several, keep their order, over all queues."""
        jobs = [new_job(queue=f"q{at * 7 % 5}") for at in range(40)]
        answers = bench.store.commit([Insert(tuple(jobs[:15])), *(Insert((job,)) for job in jobs[15:30])])
        assert all(isinstance(answer, tuple) for answer in answers)
        bench.do(Insert(tuple(jobs[30:])))
        assert [job_id for room in (1, 2, 3, 100) for job_id in bench.claim_ids(room)] == [job.id for job in jobs]

    def test_waiting_makes_urgent(self, bench: Bench, clock: FakeClock) -> None:
        """A job that has waited for long enough overtakes more urgent ones that are fresh, so that none starves."""
        patient = bench.add(priority=5)
        clock.advance(3601)
        fresh = bench.add(priority=6)
        clock.advance(1)
        fresher = bench.add(priority=7)
        assert bench.claim_ids() == [fresher, patient, fresh]

    def test_claim_respects_room(self, bench: Bench) -> None:
        """No more jobs are started than there is room for."""
        ids = [bench.add() for _ in range(5)]
        assert bench.claim_ids(0) == []
        assert bench.claim_ids(-1) == []
        assert bench.claim_ids(2) == ids[:2]
        assert bench.claim_ids(2) == ids[2:4]
        assert bench.claim_ids(2) == ids[4:]
        assert bench.claim_ids(2) == []

    def test_claim_respects_queues(self, bench: Bench) -> None:
        """Only jobs of the queues that are served are started."""
        ids = {queue: bench.add(queue=queue) for queue in ("a", "b", "c")}
        assert bench.claim(queues=()) == []
        assert bench.claim(queues=("unheard-of",)) == []
        assert [one.transition.after.id for one in bench.claim(queues=("c", "a"))] == [ids["a"], ids["c"]]
        assert bench.claim_ids() == [ids["b"]]

    def test_claim_leaves_alone_what_it_does_not_know(self, bench: Bench) -> None:
        """G10, G19: a name that a build doesn't know, or a newer version, is left alone; older versions are started."""
        unknown, newer = bench.add("unknown"), bench.add(version=3)
        older, same = bench.add(version=1), bench.add(version=2)
        untouched = [self.everything(bench.store, job_id) for job_id in (unknown, newer)]
        assert bench.claim_ids(versions={NAME: 2, "other": 9}) == [older, same]
        assert bench.claim_ids(versions={}) == []
        assert untouched == [self.everything(bench.store, job_id) for job_id in (unknown, newer)]
        assert bench.claim_ids(versions={NAME: 3}) == [newer]

    def test_claim_with_thousands_of_names(self, bench: Bench) -> None:
        """A build may know as many jobs as it likes."""
        job_id = bench.add("job_2999")
        versions = {f"job_{number}": 1 for number in range(3_000)}
        assert bench.store.claimable(versions, None)
        assert bench.claim_ids(versions=versions) == [job_id]

    def test_claim_starts_a_job_once(self, bench: Bench) -> None:
        """G4: whoever claims, in one batch or in several, a job goes to one of them, under a number of its own."""
        ids = [bench.add() for _ in range(10)]
        lives = [bench.new_life() for _ in range(3)]
        answers = bench.store.commit([Claim(life, "node", 4, {NAME: 1}) for life in lives])
        claimed = [one.transition.after for answer in answers for one in answer]
        assert [job.id for job in claimed] == ids
        assert [job.life for job in claimed] == [lives[0]] * 4 + [lives[1]] * 4 + [lives[2]] * 2
        assert bench.claim_ids() == []
        _requeue(bench, claimed[0])
        (again,) = bench.claim()
        assert (again.transition.after.id, again.transition.after.attempt) == (ids[0], 2)

    def test_claim_finds_what_came_in_beside_it(self, bench: Bench) -> None:
        """A job is started in the commit that stores it, wherever the claim stands in the batch, and whoever fails."""
        for culprit in ([], [Renew(NOBODY, LEASE_S)], [LAST_WORDS["complete"](Standing(NOBODY, JobStatus.RUNNING, 1))]):
            job = new_job()
            answers = bench.store.commit([Claim(bench.life, "node", 9, {NAME: 1}), *culprit, Insert((job,))])
            assert [one.transition.after.id for one in answers[0]] == [job.id]

    def test_claimable_says_what_a_claim_would_find(self, bench: Bench) -> None:
        """Whether there is work is answered by the same rule as a claim."""
        store = bench.store
        assert not store.claimable({NAME: 1}, None)
        bench.add(queue="a", version=2)
        assert store.claimable({NAME: 2}, None)
        assert store.claimable({NAME: 2}, ("a", "b"))
        assert not store.claimable({NAME: 1}, None)
        assert not store.claimable({}, None)
        assert not store.claimable({NAME: 2}, ("b",))
        assert not store.claimable({NAME: 2}, ())
        bench.claim(versions={NAME: 2})
        assert not store.claimable({NAME: 2}, None)

    # ── the fence ──

    @pytest.mark.parametrize("meanwhile", MEANWHILE)
    def test_an_old_attempt_changes_nothing(self, bench: Bench, meanwhile: str) -> None:
        """G4, G2: whatever an attempt says that has lost its job is answered by LeaseLost and changes nothing."""
        job = bench.start(state=b"first")
        job = bench.after(job, CHECKPOINT, state=b"known", progress=Progress(0.1))
        MEANWHILE[meanwhile](bench, job)
        before = self.everything(bench.store, job.id)
        for said, word in LAST_WORDS.items():
            for old in (job, job._replace(event_seq=job.event_seq + 1), job._replace(attempt=job.attempt - 1)):
                answers = bench.store.commit([word(old)])
                assert [type(answer) for answer in answers] == [LeaseLost], said
                assert self.everything(bench.store, job.id) == before, said

    @pytest.mark.parametrize("final", ["completed", "failed", "cancelled"])
    def test_a_finished_job_never_changes(self, bench: Bench, final: str) -> None:
        """G2: nothing that happens to a finished job, and nothing that is asked of it, changes it."""
        job = bench.start()
        MEANWHILE[final](bench, job)
        before = self.everything(bench.store, job.id)
        for trigger in set(Trigger) - {Trigger.DELETE}:
            for blame in ("hold", "cancel", "run"):
                cause = Cause(trigger, life=bench.life, blame=blame, strike=True, others=True)
                late = Change(job.id, cause, failure=Failure("Late", "late"), output=(b"\xc0", None), state=b"late")
                change = late._replace(lines=OLD_LINES, warnings=2)
                (answer,) = bench.store.commit([change])
                assert isinstance(answer, JobkitError) or answer.after == answer.before, trigger
                assert self.everything(bench.store, job.id) == before, trigger
        assert bench.claim_ids() == []

    def test_a_sweep_does_not_take_a_job_that_moved_on(self, bench: Bench) -> None:
        """G2, G4: who puts back a dead owner's jobs by an old list takes none that ended or was claimed meanwhile."""
        old = [bench.start() for _ in range(4)]
        bench.complete(old[0])
        _claim_again(bench, old[1])
        checkpointed = bench.after(old[2], CHECKPOINT, state=b"newer")
        before = [self.everything(bench.store, job.id) for job in old[:2]]
        answers = bench.store.commit([Change(job.id, OWNER_GONE, job) for job in old])
        assert [type(answer) for answer in answers] == [LeaseLost, LeaseLost, Transition, Transition]
        assert before == [self.everything(bench.store, job.id) for job in old[:2]]
        assert bench.claim_ids() == [old[2].id, old[3].id]
        assert bench.store.state(checkpointed.id) == (1, b"newer")

    # ── batches ──

    @pytest.mark.parametrize("culprit", CULPRITS)
    def test_one_culprit_hurts_nobody_else(self, bench: Bench, culprit: str) -> None:
        """G10: of a hundred writes in one transaction, the one that can't be done is told so; the rest is done."""
        bad = CULPRITS[culprit](bench)
        running = [bench.start() for _ in range(20)]
        requested = [bench.start() for _ in range(20)]
        batch: list[Write] = [Insert((new_job("other", queue="new", tags=("t",)),)) for _ in range(30)]
        batch += [Change(job.id, CHECKPOINT, job, state=job.id.encode(), lines=(line(job.id),)) for job in running]
        batch += [Change(job.id, CANCEL) for job in requested]
        batch += [Insert((new_job("other", queue="new", key=f"key {at}"),)) for at in range(29)]
        random.Random(culprit).shuffle(batch)  # noqa: S311  any order will do
        inserts = [write.jobs[0].id for write in batch if isinstance(write, Insert)]
        batch.insert(50, bad)
        lost = [self.everything(bench.store, bad.job_id)] if isinstance(bad, Change) else []

        answers = bench.store.commit(batch)

        assert isinstance(answers[50], JobkitError)
        assert not [answer for answer in (*answers[:50], *answers[51:]) if isinstance(answer, Exception)]
        if isinstance(bad, Change):
            assert lost == [self.everything(bench.store, bad.job_id)]
        if isinstance(bad, Insert):
            assert bench.store.get(bad.jobs[0].id) is None
        assert [bench.store.state(job.id) for job in running] == [(1, job.id.encode()) for job in running]
        assert [bench.events(job.id)[-1][1:5] for job in running] == [
            (3, "log", JobStatus.RUNNING, job.id) for job in running
        ]
        assert {bench.record(job.id).wanted for job in requested} == {"cancel"}
        stored = [
            event for event in bench.store.events(None, None, ["created"], 1_000) if str(event.job_id) in set(inserts)
        ]
        assert {str(event.job_id) for event in stored} == set(inserts)
        assert set(bench.claim_ids(versions={"other": 1})) == set(inserts)

    def test_order_is_kept_beside_a_culprit(self, bench: Bench) -> None:
        """Jobs of one batch are claimed in the order of the batch, though one write in it could not be done."""
        jobs = [new_job() for _ in range(20)]
        batch: list[Write] = [Insert((job,)) for job in jobs]
        batch.insert(10, Insert((new_job(label="\ud800"),)))
        answers = bench.store.commit(batch)
        assert isinstance(answers[10], SerializationError)
        assert bench.claim_ids() == [job.id for job in jobs]

    def test_a_queue_that_came_with_a_culprit_is_there_for_the_next(self, bench: Bench) -> None:
        """A job in a queue that was first heard of in a write that was undone is claimed like any other."""
        for key in (None, "key"):
            queue = f"queue of {key}"
            (answer,) = bench.store.commit([Insert((new_job(queue=queue, key=key, label="\ud800"),))])
            assert isinstance(answer, SerializationError)
            job_id = bench.add(queue=queue)
            assert bench.store.claimable({NAME: 1}, (queue,))
            assert bench.claim_ids() == [job_id]

    @pytest.mark.parametrize("point", ["dispatch", "checkpoint", "control", "claim", "finish", "renew"])
    def test_a_batch_is_committed_whole_or_not_at_all(self, bench: Bench, point: str) -> None:
        """G20: if the transaction fails, nothing of its batch is stored, and the next one works."""
        job, ending, asked = bench.start(), bench.start(), bench.start()
        waiting = bench.add()
        batch: list[Write] = [
            Insert((new_job(queue="new"), new_job(key="key"))),
            Change(job.id, CHECKPOINT, job, state=b"state", lines=(line("one"), line("two")), warnings=1),
            Change(ending.id, COMPLETE, ending, output=(b"\xc0", None), lines=(line("last"),)),
            Change(asked.id, PAUSE),
            Claim(bench.life, "node", 1, {NAME: 1}),
            Renew(bench.life, 1000),
        ]
        ids = [job.id, ending.id, asked.id, waiting]
        before = [self.everything(bench.store, job_id) for job_id in ids], bench.store.lives()

        def fail(name: str) -> None:
            if name == f"{point}.before_commit":
                raise RuntimeError("cut")

        points.arm(fail)
        with pytest.raises(RuntimeError, match="cut"):
            bench.store.commit(batch)
        points.arm(None)
        assert before == ([self.everything(bench.store, job_id) for job_id in ids], bench.store.lives())
        assert bench.store.stats(JobFilter()).total == 4

        answers = bench.store.commit(batch)
        assert not [answer for answer in answers if isinstance(answer, Exception)]
        assert bench.store.stats(JobFilter()).total == 6
        assert len(bench.claim()) == 2

    def test_answers_are_given_after_the_commit(self, bench: Bench) -> None:
        """G1: the point after the commit is reached once what was written can be seen."""
        seen: list[tuple[str, bool]] = []
        job = new_job()
        points.arm(
            lambda name: seen.append((name, name.endswith("after_commit") and bench.store.get(job.id) is not None))
        )
        bench.do(Insert((job,)))
        points.arm(None)
        assert seen == [("dispatch.before_commit", False), ("dispatch.after_commit", True)]

    def test_an_empty_batch(self, store: Store) -> None:
        """Nothing to do is done without an error."""
        assert store.commit([]) == []

    # ── idempotency ──

    def test_one_key_one_job(self, bench: Bench) -> None:
        """G12: the same name, key and parameters give the same job, for as long as it is stored."""
        first = new_job(key="key", params={"a": 1, "b": {"x", "y", "z"}, "c": {"d": 1, "e": 2}})
        same = new_job(key="key", params={"c": {"e": 2, "d": 1}, "b": {"z", "y", "x"}, "a": 1})
        bench.do(Insert((first,)))
        before = self.everything(bench.store, first.id)
        assert bench.do(Insert((same, same._replace(label="another")))) == (Stored(first.id, created=False),) * 2
        assert self.everything(bench.store, first.id) == before
        bench.complete(bench.claim()[0].transition.after)
        assert bench.do(Insert((same,))) == (Stored(first.id, created=False),)
        bench.ask(first.id, Cause(Trigger.DELETE))
        assert bench.do(Insert((same,))) == (Stored(same.id, created=True),)

    def test_one_key_for_other_work_is_refused(self, bench: Bench) -> None:
        """G12: the same name and key with other parameters are refused, and name the job that has the key."""
        first = new_job(key="key", params={"n": 1})
        bench.do(Insert((first,)))
        for other in ({"n": 2}, {"n": 1.0}, {"n": "1"}, {"n": True}, {}, {"n": 1, "m": None}):
            with pytest.raises(KeyConflict) as caught:
                bench.do(Insert((new_job(key="key", params=other),)))
            assert (caught.value.name, caught.value.key, caught.value.job_id) == (NAME, "key", first.id)
        assert bench.store.stats(JobFilter()).total == 1

    def test_a_key_belongs_to_its_name(self, bench: Bench) -> None:
        """G12: another name, another key or no key at all give another job."""
        jobs = [
            new_job(key="key"),
            new_job("other", key="key"),
            new_job(key="KEY"),
            new_job(),
            new_job(),
            new_job(key=""),
        ]
        assert bench.do(Insert(tuple(jobs))) == tuple(Stored(job.id, created=True) for job in jobs)

    def test_many_at_once_are_stored_all_or_none(self, bench: Bench) -> None:
        """A conflict among many jobs stores none of them, and hurts no other write of the batch."""
        first = new_job(key="taken", params={"n": 1})
        bench.do(Insert((first,)))
        many = tuple(new_job(key=key, params={"n": 2}) for key in ("a", "b", "taken", "c"))
        before, after = new_job(), new_job(key="a", params={"n": 3})
        answers = bench.store.commit([Insert((before,)), Insert(many), Insert((after,))])
        assert [type(answer) for answer in answers] == [tuple, KeyConflict, tuple]
        assert bench.claim_ids() == [first.id, before.id, after.id]

    def test_one_key_twice_in_one_write(self, bench: Bench) -> None:
        """G12: two of many jobs with one key are one job; with other parameters none of the many is stored."""
        one, two = new_job(key="key"), new_job(key="key")
        assert bench.do(Insert((one, two))) == (Stored(one.id, created=True), Stored(one.id, created=False))
        with pytest.raises(KeyConflict):
            bench.do(Insert((new_job(key="new"), new_job(key="new", params={"n": 1}))))
        assert bench.claim_ids() == [one.id]

    def test_one_key_from_many_threads(self, sharing: Callable[[], Store]) -> None:
        """G12: however writers interleave, a key leads to one job."""
        stores = [sharing() for _ in range(4)]
        start = threading.Barrier(len(stores))

        def dispatch(store: Store) -> list[str]:
            start.wait()
            return [store.commit([Insert((new_job(key=f"key {at}"),))])[0][0].id for at in range(20)]

        with ThreadPoolExecutor(len(stores)) as pool:
            found = list(pool.map(dispatch, stores))
        assert found[0] == found[1] == found[2] == found[3]
        assert stores[0].stats(JobFilter()).total == 20

    # ── events ──

    def test_events_are_numbered_without_gaps(self, bench: Bench, clock: FakeClock) -> None:
        """G11: what happens to a job is stored as 1, 2, 3…, each with the status after it and its time."""
        job = bench.start(label="Label")
        clock.advance(1)
        job = bench.after(job, CHECKPOINT, state=b"state", progress=Progress(0.5))
        bench.ask(job.id, PAUSE)
        clock.advance(1)
        job = bench.after(job, Cause(Trigger.STOPPED))
        bench.ask(job.id, Cause(Trigger.RESUME))
        job = bench.claim()[0].transition.after
        job = bench.after(job, Cause(Trigger.FAIL, due_at=clock.now()), failure=Failure("OSError", "bad"))
        bench.do(Change(job.id, Cause(Trigger.DUE)))
        job = bench.claim()[0].transition.after
        job = bench.complete(job)
        events = bench.events(job.id)
        assert [(event.type, event.status.value, event.message) for event in events] == [
            ("created", "queued", "Label"), ("started", "running", None), ("pause_requested", "running", None),
            ("paused", "paused", "user"), ("resumed", "queued", None), ("started", "running", None),
            ("retried", "scheduled", "OSError: bad"), ("queued", "queued", None), ("started", "running", None),
            ("completed", "completed", None),
        ]  # fmt: skip
        assert [event.seq for event in events] == list(range(1, 11))
        assert job.event_seq == 10
        begun = clock.now() - timedelta(seconds=2)
        assert [(event.at - begun).total_seconds() for event in events] == [0, 0, 1, 2, 2, 2, 2, 2, 2, 2]
        assert {event.job_id for event in events} == {UUID(job.id)}

    @pytest.mark.parametrize("said", ["checkpoint", "report", "complete", "fail", "retry", "stopped", "given back"])
    def test_lines_of_the_log_come_before_what_they_came_with(self, bench: Bench, clock: FakeClock, said: str) -> None:
        """G11: a line is an event, numbered and stored with the write that takes it along, and before its event.

        It has the status, the attempt and the time of its telling, which may lie before the commit.
        """
        job = bench.start()
        clock.advance(10)
        lines = (line("one", waited_s=2.5), line("two", "warning", 0.5, n=[1, {"a": None}]), line("three"))
        after: Standing = bench.do(LAST_WORDS[said](job)._replace(lines=lines, warnings=1)).after
        events = bench.events(job.id)
        assert [event.seq for event in events] == list(range(1, after.event_seq + 1))
        assert events[2:5] == [
            (job_id := UUID(job.id), 3, "log", JobStatus.RUNNING, "one",
             {"level": "info", "attempt": 1, "fields": {}}, clock.now() - timedelta(seconds=2.5), events[2].cursor),
            (job_id, 4, "log", JobStatus.RUNNING, "two",
             {"level": "warning", "attempt": 1, "fields": {"n": [1, {"a": None}]}},
             clock.now() - timedelta(seconds=0.5), events[3].cursor),
            (job_id, 5, "log", JobStatus.RUNNING, "three",
             {"level": "info", "attempt": 1, "fields": {}}, clock.now(), events[4].cursor),
        ]  # fmt: skip
        assert [event.type for event in events[5:]] == ([] if after.status is JobStatus.RUNNING else [events[-1].type])
        assert events[-1].status is bench.status(job.id)
        assert bench.store.events(job.id, None, ("log",), 10) == events[2:5]

    def test_lines_are_numbered_from_what_is_stored(self, bench: Bench) -> None:
        """G11: a request that came in between has its number; the lines go on from there, and the answer says so."""
        for cause in (CHECKPOINT, REPORT, COMPLETE):
            job = bench.start()
            bench.ask(job.id, PAUSE)
            after = bench.after(job, cause, state=b"", output=(b"\xc0", None), lines=(line("one"), line("two")))
            assert [(event.seq, event.type) for event in bench.events(job.id)][2:5] == [
                (3, "pause_requested"), (4, "log"), (5, "log")
            ]  # fmt: skip
            assert after.event_seq == bench.events(job.id)[-1].seq

    def test_an_attempt_may_count_on_its_own_lines(self, bench: Bench, clock: FakeClock) -> None:
        """G11: who does not wait for an answer works it out, and what follows fits: numbers, order and the state."""
        job = bench.start()
        writes: list[Change] = []
        for at in range(3):
            for cause in (REPORT, CHECKPOINT):
                lines = tuple(line(f"{at} {cause.trigger} {which}") for which in range(at))
                writes.append(Change(job.id, cause, job, state=str(at).encode(), lines=lines))
                job = advance(job, cause, clock.now(), len(lines)).after
        answers = [bench.do(write).after for write in writes]
        assert answers[-1] == job
        told = [event.message for event in bench.events(job.id)][2:]
        assert told == [line.message for write in writes for line in write.lines]
        assert bench.store.state(job.id) == (3, b"2")

    def test_what_was_told_is_added_up_over_attempts(self, bench: Bench) -> None:
        """Warnings are counted on the record; the next attempt learns how much of the log there is, and the progress.

        A warning counts whether its line is kept or not.
        """
        job = bench.start()
        progress = Progress(0.5, 1, 2, rate=0.25, eta_s=4.0)
        job = bench.after(job, CHECKPOINT, state=b"", lines=(line("one"), line("two", "error")), warnings=1)
        job = bench.after(job, REPORT, progress=progress, warnings=5)
        job = bench.after(job, REPORT, lines=(line("three"),))
        assert bench.record(job.id).warnings == 6
        _requeue(bench, job)
        (claimed,) = bench.claim()
        assert (claimed.log_bytes, claimed.progress) == (300, progress)
        assert claimed.progress is not None
        assert (claimed.progress.rate, claimed.progress.eta_s) == (0.25, 4.0)
        bench.after(claimed.transition.after, Cause(Trigger.STOPPED), lines=(line("four", "warning"),), warnings=1)
        record = bench.record(job.id)
        assert (record.status, record.warnings, record.progress) == (JobStatus.PAUSED, 7, progress)
        bench.ask(job.id, Cause(Trigger.RESUME))
        assert bench.claim()[0].log_bytes == 400
        assert [event.message for event in bench.store.events(job.id, None, ("log",), 10)] == [
            "one", "two", "three", "four"
        ]  # fmt: skip

    def test_events_in_pages_and_by_type(self, bench: Bench) -> None:
        """Events are read on from a cursor or, of one job, from a number; types leave out the rest."""
        jobs = [bench.start() for _ in range(3)]
        for job in jobs:
            bench.complete(job)
        store, one = bench.store, jobs[1].id
        assert [event.seq for event in store.events(one, "1", None, 10)] == [2, 3]
        assert [event.seq for event in store.events(one, store.events(one, None, None, 1)[0].cursor, None, 1)] == [2]
        assert [event.type for event in store.events(one, None, ["completed", "created"], 10)] == [
            "created",
            "completed",
        ]
        assert store.events(one, "3", None, 10) == []
        assert store.events(None, None, [], 10) == []
        found, after = list[Any](), None
        while page := store.events(None, after, None, 2):
            found += page
            after = page[-1].cursor
        assert found == store.events(None, None, None, 100)
        assert Counter(event.job_id for event in found) == {UUID(job.id): 3 for job in jobs}
        with pytest.raises(InvalidFilter):
            store.events(None, "no cursor", None, 10)
        with pytest.raises(InvalidFilter):
            store.events(one, "9" * 30, None, 10)

    def test_the_cursor_over_all_events_loses_nothing(self, store: Store, sharing: Callable[[], Store]) -> None:
        """G11: who reads all events page by page while others write sees each once, and each job's in order."""
        writers = [Bench(sharing()) for _ in range(3)]
        over = threading.Event()
        left = threading.Semaphore(0)

        def write(bench: Bench) -> None:
            life = bench.new_life()
            for _ in range(25):
                bench.add()
                bench.store.commit([
                    Change(one.transition.after.id, COMPLETE, one.transition.after, output=(b"\xc0", None))
                    for one in bench.claim(life=life, room=2)
                ])  # fmt: skip
            left.release()

        def read() -> list[Event]:
            found: list[Event] = []
            while True:
                last = over.is_set()
                page = store.events(None, found[-1].cursor if found else None, None, 7)
                found += page
                if last and not page:
                    return found

        with ThreadPoolExecutor(4) as pool:
            reader = pool.submit(read)
            for writer in [pool.submit(write, bench) for bench in writers]:
                writer.result()
            over.set()
            events = reader.result()
        while claimed := writers[0].claim():
            for one in claimed:
                writers[0].complete(one.transition.after)
        assert len({event.cursor for event in events}) == len(events)
        seen: Counter[UUID] = Counter()
        for event in events:
            seen[event.job_id] += 1
            assert event.seq == seen[event.job_id]
        stored = store.events(None, None, None, 1_000)
        assert stored[: len(events)] == events
        assert len(stored) == 3 * 25 * 3

    # ── checkpoints ──

    def test_every_checkpoint_counts(self, bench: Bench, clock: FakeClock) -> None:
        """G3: after a checkpoint the stored state is that one, numbered one higher, even if nothing changed."""
        job = bench.start(state=b"first")
        assert bench.store.state(job.id) == (0, b"first")
        for seq, state in enumerate([b"one", b"one", b"", b"\0" * 100_000, b"five", b"six", b"seven"], 1):
            clock.advance(1)
            job = bench.after(job, CHECKPOINT, state=state)
            assert bench.store.state(job.id) == (seq, state)
            record = bench.record(job.id)
            assert (record.checkpoint_seq, job.checkpoint_seq, record.last_checkpoint_at) == (seq, seq, clock.now())
        assert [event.type for event in bench.events(job.id)] == ["created", "started"]

    @pytest.mark.parametrize("ending", ["queued again", "paused", "retried"])
    def test_the_next_attempt_goes_on_from_the_newest_state(self, bench: Bench, clock: FakeClock, ending: str) -> None:
        """G3: however an attempt ends, the next one gets the last state that was acknowledged, and numbers go on."""
        job = bench.start(state=b"first")
        job = bench.after(job, CHECKPOINT, state=b"second")
        if ending == "retried":
            bench.after(job, Cause(Trigger.FAIL, due_at=clock.now()), failure=Failure("OSError", ""))
            bench.do(Change(job.id, Cause(Trigger.DUE)))
        else:
            MEANWHILE[ending](bench, job)
        if ending == "paused":
            bench.ask(job.id, Cause(Trigger.RESUME))
        (claimed,) = bench.claim()
        assert (claimed.state, claimed.transition.after.checkpoint_seq) == (b"second", 1)
        again = bench.after(claimed.transition.after, CHECKPOINT, state=b"third")
        assert again.checkpoint_seq == 2

    def test_a_checkpoint_forgives_deaths(self, bench: Bench) -> None:
        """G9: deaths are counted over attempts, from the last checkpoint on; at the third the job is held."""
        strike = Cause(Trigger.OWNER_GONE, strike=True)
        job = bench.start()
        bench.after(bench.after(job, strike)._replace(), Cause(Trigger.DUE))
        job = bench.claim()[0].transition.after
        assert bench.record(job.id).crash_count == 1
        bench.after(bench.after(job, CHECKPOINT, state=b"on"), strike)
        for count in (2, 3):
            bench.after(bench.claim()[0].transition.after, strike)
            assert bench.record(job.id).crash_count == count
        assert (bench.status(job.id), bench.record(job.id).reason) == (JobStatus.HELD, "crash_loop")
        assert bench.store.state(job.id) == (1, b"on")
        assert bench.claim_ids() == []

    def test_a_checkpoint_that_a_sweep_has_not_seen_forgives_deaths(self, bench: Bench) -> None:
        """G9: an owner that was merely silent may save while a sweep takes its job; what that clears stays cleared."""
        bench.after(bench.start(), Cause(Trigger.OWNER_GONE, crashed=True, strike=True))
        seen = bench.claim()[0].transition.after
        assert (seen.crash_count, seen.suspect) == (1, True)
        bench.after(seen, CHECKPOINT, state=b"on")
        bench.after(seen, OWNER_GONE)
        claimed = bench.claim()[0]
        job = claimed.transition.after
        assert (job.attempt, job.crash_count, job.suspect, claimed.state) == (3, 0, False, b"on")

    # ── requests ──

    @pytest.mark.parametrize(
        "said", ["complete", "fail", "retry", "time-out", "suspend", "stopped", "given back", "unloadable"]
    )
    def test_a_cancel_is_never_lost(self, bench: Bench, said: str) -> None:
        """G7: after a cancel was accepted a job ends as cancelled, though its attempt knew nothing of it."""
        job = bench.start()
        asked = bench.ask(job.id, CANCEL)
        assert (asked.after.status, asked.after.wanted, asked.event) == (
            JobStatus.RUNNING,
            "cancel",
            "cancel_requested",
        )
        (answer,) = bench.store.commit([LAST_WORDS[said](job)])
        assert answer.after.status is JobStatus.CANCELLED
        record = bench.record(job.id)
        assert (record.status, record.output, record.wanted) == (JobStatus.CANCELLED, None, None)
        assert [event.type for event in bench.events(job.id)] == ["created", "started", "cancel_requested", "cancelled"]

    def test_a_checkpoint_tells_what_is_wanted(self, bench: Bench) -> None:
        """G7, G8: an attempt hears of a request with its next checkpoint, in whatever batch that comes."""
        job, other = bench.start(), bench.start()
        bench.ask(job.id, PAUSE)
        answers = bench.store.commit([Change(one.id, CHECKPOINT, one, state=b"state") for one in (other, job)])
        assert [answer.after.wanted for answer in answers] == [None, "pause"]
        assert bench.store.state(job.id) == (1, b"state")
        stopped = bench.after(answers[1].after, Cause(Trigger.STOPPED), progress=Progress(0.5))
        assert (stopped.status, stopped.reason) == (JobStatus.PAUSED, "user")
        assert bench.record(job.id).progress == Progress(0.5)

    def test_a_job_that_ends_before_it_sees_a_pause(self, bench: Bench) -> None:
        """G8: a job that ends before it sees a pause keeps its own outcome."""
        job = bench.start()
        bench.ask(job.id, PAUSE)
        bench.complete(job, "done")
        record = bench.record(job.id)
        assert (record.status, record.output, record.wanted) == (JobStatus.COMPLETED, "done", None)

    def test_requests_to_a_job_that_does_not_run(self, bench: Bench) -> None:
        """G8: a queued job is paused, resumed and cancelled at once, and a paused one is not claimed."""
        job_id = bench.add()
        assert bench.ask(job_id, PAUSE).after.status is JobStatus.PAUSED
        assert bench.claim_ids() == []
        assert bench.ask(job_id, Cause(Trigger.RESUME)).after.status is JobStatus.QUEUED
        assert bench.store.claimable({NAME: 1}, None)
        assert bench.ask(job_id, CANCEL).after.status is JobStatus.CANCELLED
        assert bench.claim_ids() == []
        assert bench.record(job_id).completed_at is not None
        again = bench.ask(job_id, CANCEL)
        assert again.after == again.before
        assert [event.type for event in bench.events(job_id)] == ["created", "paused", "resumed", "cancelled"]

    def test_a_request_that_is_not_possible(self, bench: Bench) -> None:
        """An impossible request says so and changes nothing; a request for no job says that there is none."""
        job = bench.start(resumable=False)
        before = self.everything(bench.store, job.id)
        for trigger in (Trigger.PAUSE, Trigger.RESUME, Trigger.RELEASE, Trigger.DELETE, Trigger.CLAIM):
            with pytest.raises(IllegalTransition):
                bench.ask(job.id, Cause(trigger))
        assert self.everything(bench.store, job.id) == before
        for trigger in (Trigger.PAUSE, Trigger.RESUME, Trigger.CANCEL, Trigger.RELEASE, Trigger.DELETE):
            with pytest.raises(JobNotFound):
                bench.ask(NOBODY, Cause(trigger))

    def test_a_queued_job_keeps_its_place(self, bench: Bench, clock: FakeClock) -> None:
        """A queued job that hears of something that changes nothing for it stays where it stood in the line."""
        first, second = bench.add(), bench.add()
        clock.advance(60)
        bench.ask(first, Cause(Trigger.UNBLOCK))
        assert bench.claim_ids() == [first, second]

    def test_delete_removes_a_finished_job(self, bench: Bench) -> None:
        """A finished job can be deleted, with all that belongs to it, and leaves the others alone."""
        job, other = bench.start(tags=("t",), metadata={"m": 1}), bench.start(tags=("t",), metadata={"m": 1})
        job = bench.after(job, CHECKPOINT, state=b"state")
        bench.complete(job)
        kept = self.everything(bench.store, other.id)
        bench.ask(job.id, Cause(Trigger.DELETE))
        assert self.everything(bench.store, job.id) == self.everything(bench.store, NOBODY)
        assert [str(one.id) for one in bench.store.page(JobFilter(tag="t", metadata={"m": 1}), 9, None)] == [other.id]
        assert {event.job_id for event in bench.store.events(None, None, None, 99)} == {UUID(other.id)}
        assert self.everything(bench.store, other.id) == kept

    # ── lives ──

    def test_a_life_from_its_beginning_to_its_end(self, bench: Bench, clock: FakeClock) -> None:
        """A life is there from its registration to its end, and its lease is what it was last renewed to."""
        life = Life(str(uuid4()), "node", "host", "boot", 42, working=False, versions={"a": 1, "b": 2})
        begun = clock.now()
        until = begun + timedelta(seconds=LEASE_S)
        assert bench.do(Register(life, LEASE_S)) == until
        assert bench.store.lives() == [life._replace(started_at=begun, lease_until=until)]
        clock.advance(10)
        until = clock.now() + timedelta(seconds=LEASE_S)
        assert bench.do(Renew(life.id, LEASE_S)) == until
        assert bench.store.lives() == [life._replace(started_at=begun, lease_until=until)]
        assert bench.do(Retire(life.id)) is True
        assert bench.store.lives() == []
        assert bench.do(Retire(life.id)) is False

    def test_a_life_that_is_over_stays_over(self, bench: Bench) -> None:
        """G4: a life that was found dead can't renew its lease or claim, in any batch; it leaves queued jobs alone."""
        bench.do(Retire(bench.life))
        job_id = bench.add()
        before = self.everything(bench.store, job_id)
        for dead in (bench.life, NOBODY):
            answers = bench.store.commit([Renew(dead, LEASE_S), Claim(dead, "node", 1, {NAME: 1})])
            assert [type(answer) for answer in answers] == [LeaseLost, LeaseLost]
        assert self.everything(bench.store, job_id) == before
        assert bench.store.lives() == []

    @pytest.mark.parametrize("how", ["crashed", "rebooted", "expired", "left"])
    def test_a_life_that_is_killed_while_it_is_being_stopped_has_left(self, bench: Bench, how: Ending) -> None:
        """G9: a death during a shutdown is no crash, so it counts against no job; any other crash does."""
        stopping, working = bench.new_life(), bench.new_life()
        for life in (stopping, working):
            bench.start(life=life)
        assert bench.do(Leave(stopping)) is True
        assert {life.id: life.working for life in bench.store.lives()} == {stopping: False, working: True}
        for life in (stopping, working):
            assert bench.do(Retire(life, how)) is True
        ends = bench.store.ends([stopping, working])
        assert ends[stopping].how == ("left" if how == "crashed" else how)
        assert ends[stopping].blamed is None
        assert (ends[working].how, ends[working].blamed is None) == (how, how != "crashed")
        assert bench.do(Leave(stopping)) is False

    def test_orphans_are_the_jobs_of_lives_that_are_over(self, bench: Bench) -> None:
        """G6: recovery finds what a dead owner ran or paused when shutting down, and nothing that is a living one's."""
        dead, living = bench.new_life(), bench.new_life()
        ours = [bench.start(life=dead) for _ in range(4)]
        theirs = [bench.start(life=living) for _ in range(2)]
        shut_down = bench.after(ours[1], Cause(Trigger.STOPPED))
        bench.after(theirs[1], Cause(Trigger.STOPPED))
        bench.complete(ours[2])
        bench.ask(ours[3].id, PAUSE)
        bench.after(ours[3], Cause(Trigger.STOPPED))
        assert bench.store.orphans(10) == []
        bench.do(Retire(dead))
        assert sorted(bench.store.orphans(10)) == sorted([ours[0], shut_down])
        assert len(bench.store.orphans(1)) == 1
        bench.after(ours[0], OWNER_GONE)
        bench.after(shut_down, Cause(Trigger.RESUME))
        assert bench.store.orphans(10) == []
        assert set(bench.claim_ids()) == {ours[0].id, ours[1].id}

    # ── crashes ──

    @pytest.mark.parametrize(("suspects", "others"), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 2)])
    def test_the_end_of_a_life_says_whom_its_crash_counts_against(
        self, bench: Bench, suspects: int, others: int
    ) -> None:
        """G9: the job that ran alone or was the only suspect; told with the end itself, and for a crash alone."""
        endings: tuple[Ending, ...] = ("crashed", "rebooted", "expired", "left")
        for how in endings:
            self.suspects(bench, suspects)
            life = bench.new_life()
            jobs = [one.transition.after for _ in range(suspects) for one in bench.claim(life=life)]
            jobs += [bench.start(life=life) for _ in range(others)]
            bench.complete(bench.start(life=life))
            assert len(jobs) == suspects + others
            assert bench.do(Retire(life, how)) is True
            end = bench.store.ends([life, NOBODY])[life]
            alone = how == "crashed" and (suspects == 1 or suspects + others == 1)
            assert (end.how, end.blamed) == (how, jobs[0].id if alone else None)
            for job in bench.store.orphans(99):
                bench.complete(bench.claim(life=self.requeued(bench, job))[0].transition.after)

    @staticmethod
    def suspects(bench: Bench, number: int) -> list[str]:
        """Store jobs that were running at a crash, and have them wait for their turn."""
        jobs = [bench.add() for _ in range(number)]
        for claimed in bench.claim():
            bench.after(claimed.transition.after, Cause(Trigger.OWNER_GONE, crashed=True))
        return jobs

    @staticmethod
    def requeued(bench: Bench, job: Standing) -> str:
        """Put a job back in line, and answer a life that may claim it."""
        bench.after(job, OWNER_GONE)
        return bench.new_life()

    def test_a_claim_takes_one_suspect_at_most(self, bench: Bench) -> None:
        """G9: of the suspects the best one comes, whatever the queue, if one may come; the others in their order."""
        suspects = self.suspects(bench, 3)
        free = [bench.add(), bench.add(priority=Priority.HIGH)]
        elsewhere = bench.add(queue="b")
        claim = Claim(bench.life, "node", 9, {NAME: 1})
        assert not bench.store.claimable({NAME: 1}, ("none",))
        assert [one.transition.after.id for one in bench.do(claim._replace(room=1, suspects=False))] == [free[1]]
        assert [one.transition.after.id for one in bench.do(claim)] == [suspects[0], free[0], elsewhere]
        assert bench.do(claim._replace(suspects=False)) == []
        assert not bench.store.claimable({NAME: 1}, None, suspects=False)
        assert bench.store.claimable({NAME: 1}, None)
        assert [[one.transition.after.id for one in bench.do(claim)] for _ in range(3)] == [
            [suspects[1]], [suspects[2]], [],
        ]  # fmt: skip

    # ── what sweeps look for ──

    def test_paused_jobs_that_a_restart_resumes(self, bench: Bench, clock: FakeClock) -> None:
        """G8: whoever paused them before it, but for those that are to stay paused."""
        expected = []
        for stays in (False, True, False):
            clock.advance(1)
            job_id = bench.add()
            bench.ask(job_id, Cause(Trigger.PAUSE, across_restarts=stays))
            expected += [] if stays else [job_id]
        job = bench.start()
        bench.ask(job.id, Cause(Trigger.PAUSE, across_restarts=True))
        assert [one.id for one in bench.store.paused(clock.now(), 9)] == expected
        shut_down = bench.after(bench.start(), Cause(Trigger.STOPPED))
        bench.after(job, Cause(Trigger.STOPPED))
        assert [one.id for one in bench.store.paused(clock.now(), 9)] == [*expected, shut_down.id]
        assert len(bench.store.paused(clock.now(), 1)) == 1
        assert bench.store.paused(clock.now() - timedelta(hours=1), 9) == []

    def test_what_is_asked_of_a_lifes_jobs(self, bench: Bench) -> None:
        """G7, G8: a life finds which of its running jobs something is wanted of, and nobody else's."""
        ours, theirs = bench.new_life(), bench.new_life()
        jobs = [bench.start(life=ours) for _ in range(3)]
        other = bench.start(life=theirs)
        for job, cause in ((jobs[0], PAUSE), (jobs[1], CANCEL), (other, CANCEL)):
            bench.ask(job.id, cause)
        assert sorted((one.id, one.wanted) for one in bench.store.asked(ours)) == sorted(
            [(jobs[0].id, "pause"), (jobs[1].id, "cancel")]
        )
        bench.ask(jobs[0].id, Cause(Trigger.RESUME))
        bench.after(jobs[1], Cause(Trigger.STOPPED))
        assert bench.store.asked(ours) == []

    def test_jobs_that_nobody_knows(self, bench: Bench) -> None:
        """G10: queued jobs of unknown names and newer versions are found, and once held, when they are known again."""
        known, unknown, newer = bench.add(), bench.add("unknown"), bench.add(version=2)
        found = bench.store.unknown({NAME: 1}, 9)
        assert {job.id for job in found} == {unknown, newer}
        assert {job.id for job in bench.store.unknown({}, 9)} == {known, unknown, newer}
        assert len(bench.store.unknown({}, 2)) == 2
        for job in found:
            bench.after(job, Cause(Trigger.UNLOADABLE, reason="unknown_job"))
        bench.after(bench.start(), Cause(Trigger.UNLOADABLE, reason="corrupt_state"))
        assert bench.store.unknown({NAME: 1}, 9) == []
        assert bench.store.known_again({NAME: 1}, 9) == []
        (again,) = bench.store.known_again({NAME: 2}, 9)
        assert bench.after(again, Cause(Trigger.KNOWN)).status is JobStatus.QUEUED
        assert {job.id for job in bench.store.known_again({NAME: 2, "unknown": 1}, 9)} == {unknown}

    # ── waiting ──

    def test_a_suspension_is_a_checkpoint_and_frees_the_job(self, bench: Bench, clock: FakeClock) -> None:
        """G3: state and what is waited for are stored together; the job is found again when its time has come."""
        due_at = clock.now() + timedelta(seconds=60)
        job = bench.start()
        after = bench.after(job, Cause(Trigger.SUSPEND, due_at=due_at), state=b"state", progress=Progress(0.5))
        assert (after.status, after.checkpoint_seq, after.due_at) == (JobStatus.SCHEDULED, 1, due_at)
        assert bench.store.state(job.id) == (1, b"state")
        record = bench.record(job.id)
        assert (record.scheduled_at, record.node, record.progress) == (due_at, "node", Progress(0.5))
        assert bench.store.next_due() == due_at
        assert bench.store.due(9) == []
        clock.advance(60)
        assert bench.store.due(9) == [after]
        bench.after(after, Cause(Trigger.DUE))
        assert (bench.store.due(9), bench.store.next_due()) == ([], None)
        assert bench.claim()[0].state == b"state"

    @pytest.mark.parametrize("first", ["signal", "wait"])
    def test_a_signal_and_a_wait_meet_in_any_order(self, bench: Bench, first: str) -> None:
        """Rule 14: a signal that is there ends the wait in the transaction that begins it; a later one wakes."""
        job, other = bench.start(), bench.start()
        waits = (Wait("signal", "go"),)
        if first == "signal":
            assert bench.do(Send(job.id, "go", b"payload")).then == ()
        after = bench.after(job, Cause(Trigger.SUSPEND), state=b"s", waits=waits)
        bench.after(other, Cause(Trigger.SUSPEND), state=b"s", waits=waits)
        if first == "wait":
            assert (after.status, after.blockers) == (JobStatus.WAITING, 1)
            assert bench.do(Send(job.id, "another", b"")).then == ()
            (woken,) = bench.do(Send(job.id, "go", b"payload")).then
            assert (woken.after.id, woken.after.status) == (job.id, JobStatus.QUEUED)
        assert bench.status(job.id) is JobStatus.QUEUED
        assert bench.store.signal(job.id, "go") == b"payload"
        bench.do(Send(job.id, "go", b"a second"))
        assert bench.store.signal(job.id, "go") == b"payload"
        assert bench.status(other.id) is JobStatus.WAITING
        assert bench.store.signal(other.id, "go") is None

    def test_a_signal_for_a_finished_job_is_refused(self, bench: Bench) -> None:
        """What has ended hears nothing any more, and whoever sends to it is told."""
        bench.complete(job := bench.start())
        with pytest.raises(IllegalTransition):
            bench.do(Send(job.id, "go", b""))
        assert bench.store.signal(job.id, "go") is None
        with pytest.raises(JobNotFound):
            bench.do(Send(NOBODY, "go", b""))

    @pytest.mark.parametrize("end", ["complete", "fail", "cancel", "delete first"])
    def test_the_end_of_the_last_job_wakes_who_waits_for_it(self, bench: Bench, end: str) -> None:
        """Rule 14: a job that waits for others is woken in the transaction of the last one's end, and not before."""
        waiting = bench.start()
        awaited = [bench.start() for _ in range(3)]
        bench.complete(awaited[0])
        if end == "delete first":
            bench.ask(awaited[0].id, Cause(Trigger.DELETE))
        waits = tuple(Wait("job", job.id) for job in awaited)
        after = bench.after(waiting, Cause(Trigger.SUSPEND), state=b"s", waits=waits)
        assert (after.status, after.blockers) == (JobStatus.WAITING, 2)
        bench.complete(awaited[1])
        assert bench.status(waiting.id) is JobStatus.WAITING
        if end == "fail":
            bench.after(awaited[2], Cause(Trigger.FAIL), failure=Failure("OSError", "bad"))
        elif end == "cancel":
            bench.ask(awaited[2].id, CANCEL)
            assert bench.status(waiting.id) is JobStatus.WAITING
            bench.after(awaited[2], Cause(Trigger.STOPPED))
        else:
            bench.complete(awaited[2])
        assert bench.status(waiting.id) is JobStatus.QUEUED
        assert [event.type for event in bench.events(waiting.id)] == ["created", "started", "waiting", "queued"]

    def test_ends_in_one_batch_wake_who_waits_for_them_once(self, bench: Bench) -> None:
        """Rule 14: however many ends come together, and beside whatever else, the job they free is freed once."""
        waiting = bench.start()
        awaited = [bench.start() for _ in range(3)]
        waits = tuple(Wait("job", job.id) for job in awaited)
        bench.after(waiting, Cause(Trigger.SUSPEND), state=b"s", waits=waits)
        for culprit in ([], [Renew(NOBODY, LEASE_S)]):
            ends = [Change(job.id, COMPLETE, job, output=(b"\xc0", None)) for job in awaited]
            answers = bench.store.commit([*ends, *culprit])
            if culprit:
                assert [type(answer) for answer in answers[:3]] == [LeaseLost] * 3
            else:
                freed = [one for answer in answers for one in answer.then if one.after.status is JobStatus.QUEUED]
                assert [one.after.id for one in freed] == [waiting.id]
        assert [event.seq for event in bench.events(waiting.id)] == [1, 2, 3, 4]

    def test_a_wait_and_the_end_that_it_waits_for_may_share_a_batch(self, bench: Bench) -> None:
        """Rule 14: a job that began to wait in this very commit is woken by an end after it, whatever ended before."""
        ending, waiting, awaited = bench.start(), bench.start(), bench.add()
        wait = Change(waiting.id, Cause(Trigger.SUSPEND), waiting, state=b"s", waits=(Wait("job", awaited),))
        end = Change(ending.id, COMPLETE, ending, output=(b"\xc0", None))
        bench.store.commit([end, wait, Change(awaited, CANCEL)])
        assert (bench.status(awaited), bench.status(waiting.id)) == (JobStatus.CANCELLED, JobStatus.QUEUED)

    def test_who_is_cancelled_while_it_leaves_to_wait_waits_for_nothing(self, bench: Bench) -> None:
        """A wanted cancel comes before the wait, and leaves nothing of it behind."""
        job = bench.start()
        bench.ask(job.id, CANCEL)
        after = bench.after(job, Cause(Trigger.SUSPEND), state=b"s", waits=(Wait("signal", "go"),))
        assert after.status is JobStatus.CANCELLED
        assert bench.store.situation(job.id).waits == ()

    def test_a_child_is_stored_with_its_parents_checkpoint(self, bench: Bench) -> None:
        """G3: both or neither: a fenced attempt spawns nothing."""
        parent = bench.start()
        child, late = new_job(), new_job()
        spawned = child._replace(parent_id=parent.id)
        after = bench.after(parent, CHECKPOINT, state=b"s", spawns=(spawned,))
        assert bench.record(child.id).parent_id == UUID(parent.id)
        assert [event.type for event in bench.events(child.id)] == ["created"]
        _requeue(bench, after)
        with pytest.raises(LeaseLost):
            bench.after(after, CHECKPOINT, state=b"s", spawns=(late,))
        assert bench.store.get(late.id) is None

    def test_a_cancelled_parents_descendants_are_cancelled_with_it(self, bench: Bench) -> None:
        """G7: in the same transaction: waiting ones at once, running ones are told; who has ended stays as it is."""
        parent = bench.start()
        jobs = [new_job(parent_id=parent.id) for _ in range(3)]
        bench.after(parent, CHECKPOINT, state=b"s", spawns=tuple(jobs))
        running = [one.transition.after for one in bench.claim()]
        grandchild = new_job(parent_id=running[1].id)
        bench.after(running[1], CHECKPOINT, state=b"s", spawns=(grandchild,))
        bench.complete(running[0])
        bench.after(running[1], Cause(Trigger.SUSPEND), state=b"s", waits=(Wait("job", grandchild.id),))
        bench.ask(parent.id, CANCEL)
        assert bench.status(running[1].id) is JobStatus.WAITING
        bench.after(parent, Cause(Trigger.STOPPED))
        statuses = [bench.status(job.id) for job in running]
        assert statuses == [JobStatus.COMPLETED, JobStatus.CANCELLED, JobStatus.RUNNING]
        assert bench.record(running[2].id).wanted == "cancel"
        assert bench.status(grandchild.id) is JobStatus.CANCELLED

    # ── lists and figures ──

    @pytest.fixture
    def history(self, bench: Bench, clock: FakeClock) -> Callable[[int], list[JobRecord]]:
        """Stores more jobs, of all kinds and statuses, and answers their records, newest first."""
        chance = random.Random(20300101)  # noqa: S311  the same jobs each time

        def add() -> str:
            if chance.random() < 0.5:
                clock.advance(1)
            job_id = bench.add(
                chance.choice(NAMES),
                queue=chance.choice(QUEUES),
                user=chance.choice([None, *USERS]),
                tags=tuple(tag for tag in TAGS if chance.random() < 0.3),
                label=chance.choice([None, "alpha", "Alpine", "100%", "a_b"]),
                metadata={"provider": chance.choice(PROVIDERS)} if chance.random() < 0.7 else {},
            )
            fate = chance.choice(FATES)
            claimed = [] if fate is None else bench.claim(1, dict.fromkeys(NAMES, 1))
            if fate is not None and claimed:
                fate(bench, claimed[0].transition.after)
            return job_id

        def grow(count: int) -> list[JobRecord]:
            ids = [add() for _ in range(count)]
            return [bench.record(job_id) for job_id in reversed(ids)]

        return grow

    def test_pages_against_a_model(self, store: Store, history: Callable[[int], list[JobRecord]]) -> None:
        """Any filter, page by page of any size while jobs come in, gives just the jobs that matched, newest first."""
        records = history(60)

        # What comes in may also finish a job that is listed, so only what can't change is asked for.
        @settings(max_examples=60, deadline=None, derandomize=True)
        @given(where=_filters(records), limit=st.integers(1, 9))
        def check(where: JobFilter, limit: int) -> None:
            expected = [record.id for record in records if _matches(record, where)]
            found: list[UUID] = []
            cursor = None
            while True:
                page = store.page(where, limit, cursor)
                found += [record.id for record in page]
                assert len(page) <= limit
                assert len(found) <= len(expected)
                if page.next_cursor is None:
                    break
                assert len(page) == limit
                if cursor is None:
                    records[:0] = history(2)
                cursor = page.next_cursor
            assert found == expected

        check()

    def test_stats_against_a_model(self, store: Store, history: Callable[[int], list[JobRecord]]) -> None:
        """Counts, rates and durations are those of the jobs that match, under any filter; so is their list."""
        records = history(120)

        @settings(max_examples=100, deadline=None, derandomize=True)
        @given(where=_filters(records, changing=True))
        def check(where: JobFilter) -> None:
            expected = [record for record in records if _matches(record, where)]
            _check(store.stats(where), expected)
            assert store.page(where, 1_000, None).items == expected

        check()

    def test_stats_of_known_durations(self, bench: Bench, clock: FakeClock) -> None:
        """Of jobs that ran 1, 2, … 20 seconds the mean is 10.5 and the 95th percentile 19; of none there is none."""
        empty = bench.store.stats(JobFilter())
        assert (empty.total, empty.success_rate, empty.mean_duration_s, empty.p95_duration_s) == (0, None, None, None)
        assert set(empty.counts) == {status.value for status in JobStatus}
        for seconds in range(1, 21):
            job = bench.start()
            clock.advance(seconds)
            bench.complete(job)
        _fail(bench, bench.start())
        stats = bench.store.stats(JobFilter())
        assert (stats.completed, stats.failed, stats.total, stats.success_rate) == (20, 1, 21, 20 / 21)
        assert (stats.mean_duration_s, stats.p95_duration_s, stats.sampled) == (10.5, 19.0, False)

    def test_a_filter_of_many_values(self, bench: Bench) -> None:
        """A filter may name as many values as it likes."""
        job_id = bench.add(tags=("t700",), user="u700")
        for where in (
            JobFilter(tag=[f"t{at}" for at in range(1_000)]),
            JobFilter(user=[f"u{at}" for at in range(1_000)]),
            JobFilter(user=["u700", "u700"], tag=["t700", "t700"]),
        ):
            assert [str(one.id) for one in bench.store.page(where, 10, None)] == [job_id]
        assert list(bench.store.page(JobFilter(parent=[NOBODY]), 10, None)) == []

    @pytest.mark.parametrize(
        "cursor", ["", "?", "nonsense", "WzFd", "W251bGwsMV0=", "WyJ4IiwxZTk5OV0=", "\ud800", "all:1"]
    )
    def test_a_cursor_that_is_none(self, store: Store, cursor: str) -> None:
        """A cursor that no page gave is refused, never ignored."""
        with pytest.raises(InvalidFilter):
            store.page(JobFilter(), 10, cursor)

    def test_a_filter_that_no_row_can_match(self, store: Store) -> None:
        """A text that can't be stored can't be looked for either: it is refused in our words."""
        for where in (JobFilter(name="\ud800"), JobFilter(tag="\ud800"), JobFilter(text="\ud800")):
            with pytest.raises(InvalidFilter):
                store.page(where, 10, None)
            with pytest.raises(InvalidFilter):
                store.stats(where)

    # ── opening and closing ──

    def test_what_is_committed_is_there_after_opening_again(self, make_store: MakeStore) -> None:
        """G1: a store that is closed and opened again, the same object or another, has all that was committed."""
        store = make_store()
        store.open()
        bench = Bench(store)
        job = bench.after(bench.start(queue="q"), CHECKPOINT, state=b"state")
        before = self.everything(store, job.id)
        store.close()
        store.close()
        store.open()
        if self.persistent:
            assert self.everything(store, job.id) == before
            bench.do(Retire(bench.life))
            assert [one.id for one in store.orphans(10)] == [job.id]
        again = Bench(store)
        new = again.add(queue="q")
        assert again.claim_ids() == [new]
        store.close()

    def test_a_store_that_is_not_open(self, make_store: MakeStore) -> None:
        """A store that is not open, or not any more, says so; and it can't be opened twice."""
        store = make_store()
        store.close()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                store.commit([Insert((new_job(),))])
            with pytest.raises(StoreUnavailable):
                store.page(JobFilter(), 10, None)
            with pytest.raises(StoreUnavailable):
                store.now()
            store.open()
            with pytest.raises(StoreUnavailable):
                store.open()
            assert store.page(JobFilter(), 10, None).items == []
            store.close()

    def test_reads_and_writes_from_many_threads(self, bench: Bench) -> None:
        """Any thread may read while one writes; all see whole transactions."""
        over = threading.Event()
        store = bench.store

        def read() -> int:
            rounds = 0
            while not over.is_set() or not rounds:
                stats = store.stats(JobFilter())
                assert stats.total % 3 == 0
                assert sum(stats.counts.values()) == stats.total
                assert len(store.page(JobFilter(), 1_000, None)) % 3 == 0
                rounds += 1
            return rounds

        with ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(read) for _ in range(3)]
            try:
                for _ in range(30):
                    bench.do(Insert((new_job(), new_job(), new_job())))
            finally:
                over.set()
            assert all(reader.result() for reader in readers)

    def test_time_is_the_database_s(self, store: Store, clock: FakeClock) -> None:
        """G14: what is now is asked of the database, not of the node; also when it goes back."""
        for seconds in (0.0, 3600.000001, -7200.5):
            clock.advance(seconds)
            assert store.now() == clock.now()
        bench = Bench(store)
        job = bench.start()
        clock.advance(-60)
        bench.complete(job)
        assert bench.record(job.id).duration_s == 0.0


NAMES: Final = ("copy", "copy_all", "move")
QUEUES: Final = ("default", "slow")
USERS: Final = ("ann", "bob")
TAGS: Final = ("nightly", "big", "TAG")
PROVIDERS: Final = ("vsphere", True, False, None, 1, "1", 2.5, [1])
FATES: Final = (None, None, _complete, _complete, _fail, _cancel, _shut_down, _requeue)


def _filters(records: Sequence[JobRecord], *, changing: bool = False) -> st.SearchStrategy[JobFilter]:
    """Filters that find something, most of the time."""
    times = st.sampled_from([record.created_at for record in records]) | st.just(datetime(2040, 1, 1, tzinfo=UTC))
    texts = ["c", "copy_", "cop%", "al", "ALPHA", "100%", "a_", "%", "_", str(records[0].id)[:30], "zz"]
    if changing:
        texts += ["OSError", "rror: b"]

    def some(values: Sequence[Any]) -> st.SearchStrategy[Any]:
        return st.sampled_from(values) | st.lists(st.sampled_from(values), min_size=1, max_size=3)

    fields: dict[str, st.SearchStrategy[Any]] = {
        "name": some([*NAMES, "unheard-of"]),
        "queue": some([*QUEUES, "unheard-of"]),
        "user": some(USERS),
        "tag": some(TAGS),
        "metadata": st.dictionaries(st.sampled_from(["provider", "no"]), st.sampled_from(PROVIDERS[:-1]), max_size=2),
        "since": times,
        "until": times,
        "text": st.sampled_from(texts),
    }
    if changing:
        fields["status"] = some(list(JobStatus))
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: JobFilter(**given))


def _matches(record: JobRecord, where: JobFilter) -> bool:
    """The filter's rule, in plain words."""
    texts = [str(record.id), record.name, record.label or ""]
    error = "" if record.error is None else f"{record.error.type}: {record.error.message}"
    wanted = (where.text or "").lower()
    scalars = {
        (key, label_text(value))
        for key, value in record.metadata.items()
        if value is None or isinstance(value, str | int | float)
    }
    return (
        (not where.status or record.status in where.status)
        and (not where.name or record.name in where.name)
        and (not where.queue or record.queue in where.queue)
        and (not where.user or record.user in where.user)
        and (not where.tag or bool(set(where.tag) & set(record.tags)))
        and set(where.metadata) <= scalars
        and (where.since is None or record.created_at >= where.since)
        and (where.until is None or record.created_at < where.until)
        and (not wanted or any(text.lower().startswith(wanted) for text in texts) or wanted in error.lower())
    )


def _check(stats: JobStats, records: Sequence[JobRecord]) -> None:
    counts = Counter(record.status.value for record in records)
    finished = sum(record.status.terminal for record in records)
    durations = sorted(record.duration_s or 0.0 for record in records if record.status is JobStatus.COMPLETED)
    assert {status: count for status, count in stats.counts.items() if count} == counts
    assert stats.total == len(records)
    assert stats.success_rate == (counts["completed"] / finished if finished else None)
    assert stats.mean_duration_s == (pytest.approx(sum(durations) / len(durations)) if durations else None)
    if durations:
        p95 = stats.p95_duration_s
        assert p95 in durations
        assert sum(one <= p95 for one in durations) >= 0.95 * len(durations)
        assert sum(one < p95 for one in durations) < 0.95 * len(durations)
