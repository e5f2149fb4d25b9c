"""What every executor must do, as tests: derive from `ExecutorContract` and say how yours is made.

```python
class TestMine(ExecutorContract):
    @pytest.fixture
    def executor(self, contract_jobs: Registry) -> Executor:
        return MyExecutor(contract_jobs)
```

The tests run on whatever event loops the fixture `anyio_backend` names. They talk to a handler through its link and its
outcome alone, so that they hold for handlers in another process too. Everything a handler does here is an *act*: a
coroutine that awaits nothing but its context, played by an async job as it is and by a sync job through a blocking
view.
"""

# ruff: noqa: D101, D102, D103  acts and jobs say by their names what they do, and the link's methods are those of Link
# ruff: noqa: ARG001, ARG002  every act has one shape
# ruff: noqa: PLR2004  expected values stand as numbers, next to what they are compared with

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias
from uuid import UUID

import anyio
import pytest
from anyio.lowlevel import checkpoint
from pydantic import Field

from jobkit.context import BlockingJobContext, JobContext, drive
from jobkit.definition import Job, state
from jobkit.envelope import seal, unseal
from jobkit.errors import LeaseLost
from jobkit.interfaces import Completed, Executor, Failed, Fenced, Interrupt, Interrupted, Outcome, Unloadable, Work
from jobkit.model import Progress
from jobkit.registration import Registry, job

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from jobkit.interfaces import InterruptKind, NewJob, Question, Suspension, Transaction
    from jobkit.jobtype import JobType

DEADLINE_S: Final = 20.0
"""How long any of these tests may take, in seconds; a correct executor needs a fraction of one."""

JOB_ID: Final = "01890a5d-ac96-774b-bcce-b302099a8057"

CHILD_ID: Final = "01890a5d-ac96-774b-bcce-b302099a8058"

KINDS: Final[tuple[InterruptKind, ...]] = ("cancel", "time-out", "pause", "shutdown", "suspend")

VARIABLE: Final[ContextVar[str]] = ContextVar("VARIABLE", default="unset")


# ── the jobs ──


class OwnBaseError(BaseException):
    """Derived from `BaseException`, as a few libraries' errors are."""


class UnspeakableError(Exception):
    """An exception whose text can't be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text either")


class Stubborn:
    """A value that nothing can be made of."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__

    def __float__(self) -> float:
        raise RuntimeError("no number")


class Play(Job[int]):
    """Plays an act."""

    act: str
    items: list[int] = Field(default_factory=list)
    done: int = state(0)
    seen: list[str] = state(default_factory=list)
    thing: Any = state(None)


contract_registry: Final = Registry()
"""The jobs of the contract: all that an executor under test has to know."""


@job("async_play", version=2, registry=contract_registry)
class AsyncPlay(Play):
    async def run(self, ctx: JobContext) -> int:
        return await ACTS[self.act](self, ctx)


@job("sync_play", version=2, registry=contract_registry)
class SyncPlay(Play):
    def run(self, ctx: BlockingJobContext) -> int:
        return drive(ACTS[self.act](self, Awaited(ctx)))


async def resume(play: Play, ctx: Any) -> None:
    """What every hook here does: leave a trace, and whatever the act says."""
    play.seen.append(f"on_resume {ctx.attempt}")
    if play.act == "raise in the hook":
        raise ValueError("the hook failed")
    if play.act == "raise anything in the hook":
        raise OwnBaseError("the hook failed")
    if play.act == "save in the hook":
        await ctx.checkpoint()


@job("async_play_async_hook", registry=contract_registry)
class AsyncPlayAsyncHook(AsyncPlay):
    async def on_resume(self, ctx: JobContext) -> None:
        await resume(self, ctx)


@job("async_play_sync_hook", registry=contract_registry)
class AsyncPlaySyncHook(AsyncPlay):
    def on_resume(self, ctx: BlockingJobContext) -> None:
        drive(resume(self, Awaited(ctx)))


@job("sync_play_async_hook", registry=contract_registry)
class SyncPlayAsyncHook(SyncPlay):
    async def on_resume(self, ctx: JobContext) -> None:
        await resume(self, ctx)


@job("sync_play_sync_hook", registry=contract_registry)
class SyncPlaySyncHook(SyncPlay):
    def on_resume(self, ctx: BlockingJobContext) -> None:
        drive(resume(self, Awaited(ctx)))


class Awaited:
    """A blocking context that an act can await."""

    def __init__(self, ctx: BlockingJobContext) -> None:
        self._ctx = ctx

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)

    async def checkpoint(self) -> None:
        self._ctx.checkpoint()

    async def check_interrupt(self) -> None:
        self._ctx.check_interrupt()


# ── what they play ──

Act: TypeAlias = Callable[[Any, Any], Coroutine[Any, Any, int]]

ACTS: Final[dict[str, Act]] = {}
"""By what a job's parameter `act` says."""


def act(play: Act) -> Act:
    """Enter a function under its own name, with spaces."""
    ACTS[play.__name__.replace("_", " ")] = play
    return play


@act
async def count(play: Play, ctx: Any) -> int:
    while play.done < 3:
        play.done += 1
        ctx.progress(completed=play.done, total=3)
        await ctx.checkpoint()
    return play.done


ACTS.update(dict.fromkeys(("raise in the hook", "raise anything in the hook", "save in the hook"), count))  # `resume`


@act
async def say_nothing(play: Play, ctx: Any) -> int:
    return play.done


@act
async def return_a_text(play: Play, ctx: Any) -> Any:
    return "not a number"


@act
async def fail(play: Play, ctx: Any) -> int:
    raise ValueError("it went wrong")


@act
async def fail_with_odd_text(play: Play, ctx: Any) -> int:
    raise ValueError("a\0b\ud800c\x1b[31md – ü\u3000日本")


@act
async def fail_at_length(play: Play, ctx: Any) -> int:
    raise ValueError("ü" * 1_000_000)


@act
async def fail_unspeakably(play: Play, ctx: Any) -> int:
    raise UnspeakableError


@act
async def fail_with_an_own_base(play: Play, ctx: Any) -> int:
    raise OwnBaseError("a base of its own")


@act
async def fail_in_a_group(play: Play, ctx: Any) -> int:
    raise ExceptionGroup("several", [ValueError("one"), ExceptionGroup("nested", [KeyError("two")])])


@act
async def save_what_can_not_be(play: Play, ctx: Any) -> int:
    play.thing = {"files": [1, object()]}
    await ctx.checkpoint()
    return 0


@act
async def change_a_parameter(play: Play, ctx: Any) -> int:
    play.items.append(4)
    return 7


@act
async def spoil_a_parameter(play: Play, ctx: Any) -> int:
    play.items.append(object())  # type: ignore[arg-type]
    return 7


@act
async def report_anything(play: Play, ctx: Any) -> int:
    loop: list[Any] = []
    loop.append(loop)
    ctx.progress()
    odd: Any
    for odd in (Stubborn(), object(), float("nan"), float("inf"), 10**5_000, "x\0\ud800", loop, b"\xff", [Stubborn()]):
        ctx.progress(odd)
        ctx.progress(completed=odd, total=odd, unit=odd, phase=odd, message=odd, data=odd)
        ctx.progress(Progress(odd, odd, odd, odd, odd, odd, odd))
        ctx.log(odd, level=odd, thing=odd)
        ctx.warn(odd, message=odd)
    ctx.progress(0.5, message="the last")
    return 0


@act
async def say_what_it_knows(play: Play, ctx: Any) -> int:
    play.thing = [
        str(ctx.id), ctx.name, ctx.attempt, ctx.node, dict(ctx.metadata), ctx.is_resuming, ctx.once_key("pay"),
        ctx.data_dir.is_dir(), ctx.output_dir.is_dir(), ctx.output_dir.parent == ctx.data_dir,
    ]  # fmt: skip
    await ctx.checkpoint()
    return 0


@act
async def say_what_it_shares(play: Play, ctx: Any) -> int:
    play.thing = [VARIABLE.get(), ctx.resources["library"]]
    await ctx.checkpoint()
    return 0


@act
async def check_often(play: Play, ctx: Any) -> int:
    for _ in range(5):
        play.done += 1
        await ctx.check_interrupt()
    return play.done


@act
async def go_on_for_ever(play: Play, ctx: Any) -> int:
    while True:
        play.done += 1
        await ctx.checkpoint()
        ctx.progress(completed=play.done)


@act
async def catch_exceptions(play: Play, ctx: Any) -> int:
    for _ in range(3):
        play.done += 1
        try:
            await ctx.checkpoint()
        except Exception:  # noqa: BLE001  on purpose: it must not be able to catch an interrupt
            play.seen.append("caught")
    return 0


@act
async def suppress_exceptions(play: Play, ctx: Any) -> int:
    for _ in range(3):
        play.done += 1
        with contextlib.suppress(Exception):
            await ctx.checkpoint()
    return 0


@act
async def catch_groups(play: Play, ctx: Any) -> int:
    for _ in range(3):
        play.done += 1
        try:
            await ctx.checkpoint()
        except* Exception:  # noqa: BLE001  as above
            play.seen.append("caught")
    return 0


@act
async def clean_up_badly(play: Play, ctx: Any) -> int:
    """An error while an interrupt passes: in a group, as a task group would put it."""
    try:
        return await count(play, ctx)
    except BaseException as stop:  # noqa: BLE001  it is raised again, in a group
        beside = [stop, BaseExceptionGroup("inner", [KeyError("beside"), UnspeakableError()])]
        raise BaseExceptionGroup("outer", beside) from None


@act
async def swallow_everything_twice(play: Play, ctx: Any) -> int:
    for _ in range(2):
        play.done += 1
        try:
            await ctx.checkpoint()
        except BaseException as stop:  # noqa: BLE001  on purpose: the rudest handler there is
            play.seen.append(str(getattr(stop, "kind", stop)))
    play.done += 1
    await ctx.checkpoint()
    return 0


@act
async def swallow_and_return(play: Play, ctx: Any) -> int:
    with contextlib.suppress(BaseException):
        await ctx.checkpoint()
    return 5


# ── the other end ──


class RecordingLink:
    """The runtime's end of a link: notes what comes, and interrupts or refuses when told to.

    Attributes:
        saved: Every state that was saved, as a dict of fields.
        refused: How many saves were refused.
        reports: Every progress.
        logs: Every line: level and message.
        want: Why the handler is to stop, if it is.
        want_at: From which save on, counted from 1.
        lost: Whether the lease is lost.
        spawned: Every job that was to be stored with a state.
        suspension: How the handler was left, to be entered again.
        answers: What it is told when it asks.
    """

    def __init__(self, job_type: JobType, folder: Path, resources: Mapping[str, Any]) -> None:
        self._job_type, self._folder, self._resources = job_type, folder, resources
        self.sealed: list[bytes] = []
        self.refused: int = 0
        self.reports: list[Progress] = []
        self.logs: list[tuple[str, str]] = []
        self.want: InterruptKind | None = None
        self.want_at = 1
        self.lost = False
        self.spawned: list[NewJob] = []
        self.suspension: Suspension | None = None
        self.answers: dict[Question, Any] = {}

    @property
    def saved(self) -> list[Play]:
        """The jobs as they would be resumed, one for each save."""
        params = self._job_type.pack_params(self._job_type.create({"act": "say nothing"}))
        found: list[Any] = [self._job_type.restore(params, unseal(one).state) for one in self.sealed]
        return found

    async def save(self, state: bytes, spawns: Sequence[NewJob] = ()) -> None:
        await checkpoint()
        self.save_blocking(state, spawns)

    def save_blocking(self, state: bytes, spawns: Sequence[NewJob] = ()) -> None:
        if self.lost:
            self.refused += 1
            raise LeaseLost(JOB_ID, 1)
        self.sealed.append(state)
        self.spawned.extend(spawns)
        if (kind := self.due()) is not None:
            raise Interrupt(kind)

    async def ask(self, question: Question) -> Any:
        await checkpoint()
        return self.answers.get(question)

    def ask_blocking(self, question: Question) -> Any:
        return self.answers.get(question)

    def now(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC)

    def new_id(self) -> str:
        return CHILD_ID

    def handle(self, job_id: str, name: str) -> Any:
        return job_id, name

    def save_within(self, transaction: Transaction, state: bytes) -> None:
        self.save_blocking(state)
        transaction.commit()

    def suspend(self, suspension: Suspension) -> None:
        self.suspension = suspension

    def due(self) -> InterruptKind | None:
        return self.want if len(self.sealed) >= self.want_at else None

    def report(self, progress: Progress) -> None:
        self.reports.append(progress)

    def log(self, message: str, level: str, fields: Mapping[str, object]) -> None:
        self.logs.append((level, message))

    def folder(self, *, of_attempt: bool) -> Path:
        path = self._folder / JOB_ID / "1" if of_attempt else self._folder / JOB_ID
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def resources(self) -> Mapping[str, Any]:
        return self._resources


class ExecutorContract:
    """What every executor must do. Derive from it, name the class `Test…`, and define the fixture `executor`.

    Attributes:
        handlers: The kind of handler that the executor carries: `"async"` or `"sync"`.
        in_process: Whether handlers run in this very process, and so share objects and context variables with it.
        stops: Whether cancelling a call stops its handler; else it is left behind.
    """

    handlers: ClassVar[str] = "async"
    in_process: ClassVar[bool] = True
    stops: ClassVar[bool] = True

    pytestmark: pytest.MarkDecorator = pytest.mark.anyio

    @pytest.fixture
    def contract_jobs(self) -> Registry:
        """The registry that the executor is to use."""
        return contract_registry

    @pytest.fixture
    def executor(self) -> Executor:
        """The executor under test."""
        raise NotImplementedError(f"{type(self).__name__} must define the fixture `executor`")

    @pytest.fixture(autouse=True)
    def stage(self, executor: Executor, tmp_path: Path) -> Iterator[None]:
        """Set up the other end."""
        self._executor = executor
        self.job_type: JobType = contract_registry.get(f"{self.handlers}_play")
        self.link: RecordingLink = RecordingLink(self.job_type, tmp_path, {"library": "a library"})
        yield
        self.link.lost = True  # ends whatever was left behind

    def work(self, act: str, *, state: bytes | None = None, attempt: int = 1, name: str | None = None) -> Work:
        """Describe an attempt that plays an act."""
        job_type = contract_registry.get(name or self.job_type.name)
        params = job_type.pack_params(job_type.create({"act": act, "items": [1, 2, 3]}))
        return Work(JOB_ID, job_type.name, job_type.version, attempt, params, state, {"provider": "x"}, "node-1")

    async def play(self, act: str, *, state: bytes | None = None, attempt: int = 1, name: str | None = None) -> Outcome:
        """Run an attempt to its end."""
        with anyio.fail_after(DEADLINE_S):
            return await self._executor.run(self.work(act, state=state, attempt=attempt, name=name), self.link)

    async def failure(self, act: str) -> tuple[str, str, str]:
        """Run an attempt that must fail; answer type, message and traceback."""
        outcome = await self.play(act)
        assert isinstance(outcome, Failed), outcome
        return outcome.failure.type, outcome.failure.message, outcome.failure.traceback

    # ── ends ──

    async def test_completes_with_its_output(self) -> None:
        """What a handler returns is the outcome, packed in its own type and as JSON."""
        outcome = await self.play("count")
        assert isinstance(outcome, Completed)
        assert self.job_type.unpack_output(outcome.output) == outcome.shown == 3

    async def test_fails_with_type_message_and_traceback(self) -> None:
        """A handler's exception becomes data: its class, its text, and where it was raised."""
        kind, message, trace = await self.failure("fail")
        assert (kind, message) == ("ValueError", "it went wrong")
        assert "in fail" in trace
        assert "it went wrong" in trace

    async def test_a_group_of_errors_fails_with_all_of_them(self) -> None:
        """A failure that is a group shows every error within it."""
        kind, _, trace = await self.failure("fail in a group")
        assert kind == "ExceptionGroup"
        assert "ValueError: one" in trace
        assert "KeyError: 'two'" in trace

    async def test_a_base_exception_of_the_users_is_a_failure(self) -> None:
        """An exception derived from BaseException fails the job, and passes through no wall."""
        assert (await self.failure("fail with an own base"))[:2] == ("OwnBaseError", "a base of its own")

    async def test_texts_of_errors_are_cleaned(self) -> None:
        """Rule 11: NUL, surrogates and control characters are no hindrance to storing a failure; letters stay."""
        _, message, trace = await self.failure("fail with odd text")
        assert message == "a\ufffdb\ufffdc\ufffd[31md – ü\u3000日本"
        assert not {"\0", "\ud800", "\x1b"} & set(message + trace)

    async def test_texts_of_errors_are_bounded(self) -> None:
        """Rule 11: a failure's texts are at most 8 KiB each."""
        _, message, trace = await self.failure("fail at length")
        assert message.startswith("üüü")
        assert len(message.encode()) <= 8192
        assert len(trace.encode()) <= 8192

    async def test_an_error_without_text_is_a_failure_all_the_same(self) -> None:
        """Rule 11: a broken __str__ hides neither that nor where a handler failed."""
        kind, message, trace = await self.failure("fail unspeakably")
        assert kind == "UnspeakableError"
        assert message
        assert "in fail_unspeakably" in trace

    async def test_an_output_that_its_type_refuses_is_a_failure(self) -> None:
        """What a handler returns is checked against what its class declares."""
        kind, message, _ = await self.failure("return a text")
        assert kind == "InvalidOutput"
        assert self.job_type.name in message

    # ── checkpoints ──

    async def test_saves_through_the_link(self) -> None:
        """Each checkpoint sends the state as it is then, sealed under the job's id and its class's version."""
        await self.play("count")
        assert [play.done for play in self.link.saved] == [1, 2, 3]
        envelope = unseal(self.link.sealed[-1])
        assert (envelope.job_id, envelope.version) == (JOB_ID, self.job_type.version)

    async def test_resumes_from_a_saved_state(self) -> None:
        """G3: a later attempt starts from the state it is given."""
        await self.play("count")
        second, self.link.sealed = self.link.sealed[1], []
        outcome = await self.play("count", state=second, attempt=2)
        assert isinstance(outcome, Completed)
        assert [play.done for play in self.link.saved] == [3]

    async def test_a_state_that_can_not_be_saved_is_a_failure(self) -> None:
        """A value that can't be stored fails the job with its path, and nothing of that checkpoint is saved."""
        kind, message, _ = await self.failure("save what can not be")
        assert kind == "SerializationError"
        assert "state.thing.files.1" in message
        assert self.link.sealed == []

    async def test_a_lost_lease_ends_the_attempt_without_a_word(self) -> None:
        """G4: an attempt that is told LeaseLost has no outcome that counts."""
        self.link.lost = True
        assert await self.play("count") == Fenced()
        assert self.link.refused == 1

    async def test_a_parameter_changed_in_place_is_warned_of(self) -> None:
        """Parameters are stored once: a change in place is lost, and said so; the job completes."""
        for act in ("change a parameter", "spoil a parameter"):
            self.link.logs = []
            assert isinstance(await self.play(act), Completed)
            assert [level for level, message in self.link.logs if "parameter" in message] == ["warning"]

    # ── interrupts ──

    @pytest.mark.parametrize("kind", KINDS)
    async def test_an_interrupt_ends_it_after_its_state_is_saved(self, kind: InterruptKind) -> None:
        """G8: a handler that is to stop does so at a checkpoint, whose state is saved first."""
        self.link.want, self.link.want_at = kind, 2
        assert await self.play("count") == Interrupted(kind)
        assert [play.done for play in self.link.saved] == [1, 2]

    @pytest.mark.parametrize("kind", KINDS)
    async def test_check_interrupt_saves_only_if_it_stops(self, kind: InterruptKind) -> None:
        """`check_interrupt` costs nothing while nothing is wanted, and is a checkpoint when something is."""
        assert isinstance(await self.play("check often"), Completed)
        assert self.link.sealed == []
        self.link.want, self.link.want_at = kind, 0
        assert await self.play("check often") == Interrupted(kind)
        assert [play.done for play in self.link.saved] == [1]

    @pytest.mark.parametrize("act", ["catch exceptions", "suppress exceptions", "catch groups"])
    async def test_an_interrupt_is_no_exception(self, act: str) -> None:
        """A pause can't be swallowed by `except Exception`, by `suppress`, or by `except* Exception`."""
        self.link.want = "pause"
        assert await self.play(act) == Interrupted("pause")
        assert [(play.done, play.seen) for play in self.link.saved] == [(1, [])]

    async def test_an_interrupt_is_found_in_groups_and_outranks_errors(self) -> None:
        """A sticky interrupt beside errors wins, however deep; the errors are logged, even one without a text."""
        self.link.want, self.link.want_at = "shutdown", 2
        assert await self.play("clean up badly") == Interrupted("shutdown")
        logged = [message for level, message in self.link.logs if level == "error"]
        assert len(logged) == 2
        assert "beside" in logged[0]

    async def test_a_suspension_gives_way_to_errors(self) -> None:
        """Of a suspension beside an error, the error counts."""
        self.link.want = "suspend"
        assert (await self.failure("clean up badly"))[0] == "BaseExceptionGroup"

    async def test_an_interrupt_is_sticky(self) -> None:
        """A handler that swallows an interrupt hears the same one again at its next checkpoint."""
        self.link.want = "pause"
        assert await self.play("swallow everything twice") == Interrupted("pause")
        assert self.link.saved[-1].seen == ["pause", "pause"]

    async def test_a_handler_that_returns_has_completed(self) -> None:
        """If an interrupt is swallowed and the handler returns, that is what happened."""
        self.link.want = "pause"
        outcome = await self.play("swallow and return")
        assert isinstance(outcome, Completed)
        assert outcome.shown == 5

    # ── what can't be loaded ──

    async def unloadable(self, work: Work, reason: str) -> None:
        """Run work that must be refused before any code of the user's runs."""
        with anyio.fail_after(DEADLINE_S):
            outcome = await self._executor.run(work, self.link)
        assert isinstance(outcome, Unloadable), outcome
        assert outcome.reason == reason
        assert outcome.failure.message
        assert (self.link.reports, self.link.sealed) == ([], [])

    async def test_a_damaged_state_never_reaches_the_handler(self) -> None:
        """G17: one flipped bit is found before the handler runs."""
        await self.play("count")
        good, self.link.sealed, self.link.reports = self.link.sealed[-1], [], []
        for at in (0, len(good) // 2, len(good) - 1):
            bad = bytearray(good)
            bad[at] ^= 1
            await self.unloadable(self.work("count", state=bytes(bad), attempt=2), "corrupt_state")

    async def test_damaged_parameters_never_reach_the_handler(self) -> None:
        """G17: nor do parameters that can't be read."""
        await self.unloadable(self.work("count")._replace(params=b"\xc1"), "corrupt_state")

    async def test_another_jobs_state_never_reaches_the_handler(self) -> None:
        """A state that was sealed for another job is not taken for this one's."""
        packed = self.job_type.pack_state(self.job_type.create({"act": "count"}))
        other = seal(str(UUID(int=7)), 1, packed)
        await self.unloadable(self.work("count", state=other, attempt=2), "corrupt_state")

    async def test_a_newer_versions_state_is_not_guessed_at(self) -> None:
        """G19: a state that a newer class wrote is left alone."""
        packed = self.job_type.pack_state(self.job_type.create({"act": "count"}))
        newer = seal(JOB_ID, self.job_type.version + 1, packed)
        await self.unloadable(self.work("count", state=newer, attempt=2), "needs_migration")

    async def test_an_unknown_name_is_an_answer(self) -> None:
        """G18: a name that is registered nowhere runs nothing, and raises nothing."""
        await self.unloadable(self.work("count")._replace(name="no_such_job"), "unknown_job")

    # ── being stopped ──

    async def test_cancelling_the_call_ends_it(self) -> None:
        """A call that is cancelled returns; a handler that could not be stopped can save nothing from then on."""
        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(self._executor.run, self.work("go on for ever"), self.link)
                while not self.link.sealed:
                    await checkpoint()
                group.cancel_scope.cancel()
        self.link.lost = True
        before = len(self.link.sealed)
        while not self.stops and not self.link.refused:
            await checkpoint()
        assert len(self.link.sealed) == before
        assert self.link.refused == (0 if self.stops else 1)

    # ── hooks ──

    @pytest.mark.parametrize("hook", ["async", "sync"])
    async def test_on_resume_comes_before_later_attempts(self, hook: str) -> None:
        """`on_resume` is called before `run` of every attempt but the first, whether it is async or not."""
        name = f"{self.handlers}_play_{hook}_hook"
        await self.play("count", name=name)
        assert self.link.saved[-1].seen == []
        outcome = await self.play("count", name=name, state=self.link.sealed[1], attempt=2)
        assert isinstance(outcome, Completed)
        assert (self.link.saved[-1].seen, self.link.saved[-1].done) == (["on_resume 2"], 3)

    @pytest.mark.parametrize("act", ["raise in the hook", "raise anything in the hook"])
    @pytest.mark.parametrize("hook", ["async", "sync"])
    async def test_a_hook_that_raises_changes_nothing(self, hook: str, act: str) -> None:
        """What a hook raises is logged on the job; the attempt goes on as if nothing had been."""
        outcome = await self.play(act, name=f"{self.handlers}_play_{hook}_hook", attempt=2)
        assert isinstance(outcome, Completed)
        assert [message for level, message in self.link.logs if level == "error" and "the hook failed" in message]

    @pytest.mark.parametrize("hook", ["async", "sync"])
    async def test_a_hook_may_be_interrupted(self, hook: str) -> None:
        """A checkpoint in a hook is one like any other: an interrupt there ends the attempt, a lost lease fences it."""
        name = f"{self.handlers}_play_{hook}_hook"
        self.link.want = "pause"
        assert await self.play("save in the hook", name=name, attempt=2) == Interrupted("pause")
        assert [play.done for play in self.link.saved] == [0]
        self.link.want, self.link.lost = None, True
        assert await self.play("save in the hook", name=name, attempt=3) == Fenced()

    # ── the context ──

    async def test_progress_and_log_never_raise(self) -> None:
        """Rule 11: whatever a handler reports or logs, it goes on, and what is passed on can be stored."""
        assert isinstance(await self.play("report anything"), Completed)
        assert self.link.reports[-1] == Progress(0.5, message="the last")
        for report in self.link.reports:
            assert report.fraction is None or 0.0 <= report.fraction <= 1.0
            for number in (report.completed, report.total):
                assert number is None or isinstance(number, int | float)
            for text in (report.unit, report.phase, report.message):
                assert text is None or isinstance(text, str)

    async def test_the_context_knows_its_attempt(self) -> None:
        """A handler is told who it is, and gets folders of its own, made on use."""
        await self.play("say what it knows", attempt=1)
        assert self.link.saved[-1].thing == [
            JOB_ID, self.job_type.name, 1, "node-1", {"provider": "x"}, False, f"{JOB_ID}:pay", True, True, True,
        ]  # fmt: skip
        await self.play("say what it knows", attempt=2)
        assert self.link.saved[-1].thing[2:6:3] == [2, True]

    async def test_a_handler_shares_what_its_process_has(self) -> None:
        """Context variables that were set around the call, and the manager's resources, reach the handler."""
        if not self.in_process:
            pytest.skip("its handlers run in other processes")
        token = VARIABLE.set("set")
        try:
            await self.play("say what it shares")
        finally:
            VARIABLE.reset(token)
        assert self.link.saved[-1].thing == ["set", "a library"]
