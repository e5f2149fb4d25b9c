"""The blocking manager: the same as the async one, for threads, forks and programs that just end."""

from __future__ import annotations

import functools
import gc
import inspect
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pytest
from anyio import to_thread

from jobkit import (
    BlockingJobContext,
    BlockingJobHandle,
    BlockingJobManager,
    InvalidSettings,
    Job,
    JobContext,
    JobFailed,
    JobHandle,
    JobManager,
    JobNotFound,
    JobStatus,
    KeyConflict,
    ManagerNotRunning,
    Registry,
    Settings,
    StoreUnavailable,
    job,
)
from jobkit.runtime.clock import SystemIds
from tests.runtime.kit import (
    DEADLINE_S,
    REGISTRY,
    Count,
    CountInThread,
    Echo,
    Raise,
    Steps,
    StepsInThread,
    in_thread,
    interrupt_when,
    node_of,
    store_at,
    stored,
    until_so,
)

WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


def make(place: Any, **given: Any) -> BlockingJobManager:
    """Make a manager with the kit's jobs and short times."""
    settings = Settings(sweep_s=0.1, grace_s=given.pop("grace_s", 5.0))
    return BlockingJobManager(place, **{"registry": REGISTRY, "settings": settings, **given})


@pytest.fixture
def manager(path, gate) -> Iterator[BlockingJobManager]:
    """A manager at work."""
    with make(path, resources={"gate": gate}) as manager:
        yield manager


# ── the twins ──


TWINS = [(JobManager, BlockingJobManager), (JobHandle, BlockingJobHandle)]
OWN = {"start", "stop"}
"""Written by hand: they have a thread to start and to end."""


def public(cls: type) -> set[str]:
    """The public members of a class, and what its objects have beside them."""
    inside = re.findall(r"self\.([a-z]\w*)(?:: [^=\n]+)? = ", inspect.getsource(cls))
    return {name for name in dir(cls) if not name.startswith("_")} | set(inside)


def in_words(annotation: object) -> str:
    """What an original gives, as its twin says it."""
    words = re.sub(r"\bJobHandle\b", "BlockingJobHandle", str(annotation))
    return re.sub(r"\b(Event|Progress)Stream\b", r"BlockingStream[\1]", words)


@pytest.mark.parametrize(("original", "twin"), TWINS, ids=lambda cls: cls.__name__)
def test_nothing_is_missing_in_the_twin_and_nothing_is_more(original, twin):
    """Whatever the async classes can do, now or after the next change to them, their twins can do: one line there."""
    assert public(twin) == public(original)


METHODS = [
    pytest.param(getattr(original, name), getattr(twin, name), id=f"{twin.__name__}.{name}")
    for original, twin in TWINS
    for name in sorted(public(original) & public(twin))
    if inspect.isroutine(getattr(original, name, None))
]


@pytest.mark.parametrize(("original", "twin"), METHODS)
def test_a_twin_has_the_signature_of_its_original(original, twin):
    """The same name, arguments, defaults and annotations; no `await`; handles and streams are twins in their turn."""
    theirs, ours = inspect.signature(original), inspect.signature(twin)
    assert ours.parameters == theirs.parameters
    assert ours.return_annotation == in_words(theirs.return_annotation)
    assert not inspect.iscoroutinefunction(twin)
    assert twin.__name__ == original.__name__
    assert twin.__qualname__ == f"Blocking{original.__qualname__}"
    if twin.__name__ not in OWN:
        assert twin.__doc__ == original.__doc__


def test_a_manager_is_made_with_the_same_arguments():
    """What can be said to a JobManager can be said to its twin, and its docstring tells it alike."""
    assert inspect.signature(BlockingJobManager) == inspect.signature(JobManager)
    told, _, arguments = str(inspect.getdoc(JobManager)).partition("Args:")
    assert told
    assert str(inspect.getdoc(BlockingJobManager)).endswith(arguments)


def test_type_checkers_see_the_twins():
    """Arguments, outputs and overloads are typed as the originals' are; see typed_blocking.py."""
    root = Path(__file__).parents[2]
    command = [
        sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent",
        f"--cache-dir={root / '.mypy_cache' / 'typed_api'}", str(Path(__file__).with_name("typed_blocking.py")),
    ]  # fmt: skip
    checked = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


# ── as one uses it ──


@pytest.mark.parametrize("kind", [Count, CountInThread])
def test_a_job_from_dispatch_to_result(manager, kind):
    """Dispatch, wait, follow and ask without a loop; async handlers and sync ones alike."""
    handle = manager.dispatch(kind(n=3), label="mine")
    assert (type(handle), type(handle.id)) == (BlockingJobHandle, UUID)
    assert handle.name == REGISTRY.type_of(kind(n=3)).name
    assert handle.result(timeout=DEADLINE_S) == 3
    assert handle.status() is JobStatus.COMPLETED
    assert handle.record() == manager.get(handle.id)
    assert [event.type for event in handle.events()] == ["created", "started", "completed"]
    assert [event.seq for event in manager.events(handle.id, after=1)] == [2, 3]
    assert manager.handle(str(handle.id)).result() == 3
    assert repr(handle) == f"BlockingJobHandle({handle.id})"
    assert manager.list_jobs("completed").items == [manager.get(handle.id)]
    assert manager.stats(name=handle.name).completed == 1


def test_many_jobs_and_by_name(manager):
    """What gives many handles gives twins, typed and in order; untrusted input is validated."""
    many = manager.dispatch_many([Echo(n=1), ("echo", {"n": 2})])
    assert [type(handle) for handle in many] == [BlockingJobHandle] * 2
    assert [handle.result(DEADLINE_S) for handle in many] == [1, 2]
    assert manager.dispatch_many([]) == []
    assert manager.dispatch_by_name("echo", {"n": 3}).result(DEADLINE_S) == 3
    manager.run_until_idle(DEADLINE_S)


def test_progress_is_followed_to_the_end(manager, gate):
    """Progress and events are plain iterators that end when the job does."""
    handle = manager.dispatch(Count(n=2))
    assert [progress.completed for progress in handle.progress()][-1] == 2
    stream = handle.events(types=["job.completed"])
    assert iter(stream) is stream
    assert [event.type for event in stream] == ["completed"]
    assert list(stream) == []


def test_errors_are_the_same(manager):
    """What an async caller would be told, with its attributes, is what a sync one is told."""
    with pytest.raises(JobFailed) as failed:
        manager.dispatch(Raise(text="mine")).result(DEADLINE_S)
    assert failed.value.failure.message == "mine"
    manager.dispatch(Echo(n=1), key="k")
    with pytest.raises(KeyConflict):
        manager.dispatch(Echo(n=2), key="k")
    with pytest.raises(JobNotFound):
        manager.get("01a21095-0675-7000-9081-b3be3daf4163")
    with pytest.raises(TypeError):
        manager.get()


def test_a_result_that_takes_too_long(manager, gate):
    """The deadline is the caller's; the job goes on."""
    handle = manager.dispatch(Steps(n=1))
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.01)
    gate.open()
    assert handle.result(DEADLINE_S) == [1]


# ── its life ──


def test_what_answers_before_the_start_and_what_does_not(path):
    """What needs no database answers at once; the rest says how to start, and nothing is left waiting."""
    manager = make(path, node_name="here")
    assert manager.node_name == "here"
    assert "echo" in [kind.name for kind in manager.job_types()]
    assert manager.schema("echo")["title"] == "Echo"
    handle = manager.handle("01a21095-0675-7000-9081-b3be3daf4163")
    for call in (manager.stats, manager.run_until_idle, handle.result, lambda: next(manager.events())):
        with pytest.raises(ManagerNotRunning, match=r"context manager, or start\(\)"):
            call()
    manager.stop()
    with pytest.raises(InvalidSettings):
        make(path, concurrency=0)


def test_it_is_started_and_stopped_by_hand_and_again(path):
    """Starting twice is an error, stopping twice is not, and after a stop it can be started once more."""
    manager = make(path)
    for number in (1, 2):
        manager.start()
        with pytest.raises(ManagerNotRunning, match="started already"):
            manager.start()
        handle = manager.dispatch(Echo(n=number))
        assert handle.result(DEADLINE_S) == number
        manager.stop()
        manager.stop(grace=0)
        with pytest.raises(ManagerNotRunning):
            handle.status()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("jobkit")]


def test_a_start_that_fails_leaves_nothing_behind(tmp_path):
    """The reason is told; no thread is left, and the next start may work."""
    manager = make(tmp_path / "later" / "jobs.db")
    with pytest.raises(StoreUnavailable, match="create it"):
        manager.start()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("jobkit")]
    (tmp_path / "later").mkdir()
    with manager:
        assert manager.dispatch(Echo(n=1)).result(DEADLINE_S) == 1


def test_threads_may_start_and_stop_it_at_once(path):
    """Of many threads that start it one does, and the others are told; all may stop it."""
    manager = make(path)
    told: list[object] = []

    def start() -> None:
        try:
            manager.start()
            told.append("started")
        except ManagerNotRunning as error:
            told.append(error)

    for run, number in ((start, 8), (manager.stop, 8)):
        threads = [in_thread(run) for _ in range(number)]
        for thread in threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
    assert told.count("started") == 1
    assert len(told) == 8
    with manager:
        assert manager.dispatch(Echo(n=1)).result(DEADLINE_S) == 1


def test_stopping_gives_back_what_runs(path, gate):
    """G16: a running job reaches its next checkpoint, is given back, and goes on there at the next start."""
    manager = make(path, resources={"gate": gate})
    manager.start()
    handles = [manager.dispatch(kind(n=2)) for kind in (Steps, StepsInThread)]
    until_so(lambda: gate.arrived >= 2)
    stopping = in_thread(manager.stop)
    until_so(lambda: not node_of(manager._awaited).worker._claiming)
    gate.let(2)
    stopping.join(DEADLINE_S)
    store = store_at(path)
    assert {(stored(store, one.id).status, stored(store, one.id).reason) for one in handles} == {("paused", "shutdown")}
    store.close()
    gate.open()
    with manager:
        assert [one.result(DEADLINE_S) for one in handles] == [[1, 2], [1, 2]]


def test_who_waits_is_told_of_the_stop(path, gate):
    """Results, progress and events that somebody waits for in other threads end with a clear error, never hang."""
    manager = make(path, resources={"gate": gate}, grace_s=0.0)
    manager.start()
    handle = manager.dispatch(Steps(n=1))
    until_so(lambda: gate.arrived)
    told: list[ManagerNotRunning] = []

    def wait(call: Any) -> None:
        try:
            call()
        except ManagerNotRunning as error:
            told.append(error)

    streams = [handle.progress(), handle.events(), manager.events()]
    waits = [handle.result, *(functools.partial(list, stream) for stream in streams)]
    threads = [in_thread(wait, call) for call in waits]
    until_so(lambda: manager._awaited._feed._count == len(waits))
    manager.stop()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(told) == len(waits)


# ── many threads, Ctrl-C, other loops ──


def test_many_threads_share_it(manager):
    """A threaded web server's workers dispatch, wait, follow and ask at once; each gets its own answers."""
    wrong: list[object] = []

    def serve(number: int) -> None:
        try:
            for turn in range(5):
                n = number * 100 + turn
                handle = manager.dispatch(Echo(n=n), key=str(n))
                assert handle.result(DEADLINE_S) == n
                assert manager.dispatch(Echo(n=n), key=str(n)).id == handle.id
                assert [event.type for event in handle.events()][-1] == "completed"
                assert manager.get(handle.id).status == "completed"
        except BaseException as error:
            wrong.append(error)

    threads = [in_thread(serve, number) for number in range(32)]
    for thread in threads:
        thread.join(6 * DEADLINE_S)
    assert not wrong
    assert manager.stats().completed == 32 * 5


def test_a_stream_may_be_left_at_any_point(manager, gate):
    """Whoever leaves a stream, in whatever thread, costs nothing from then on."""
    handle = manager.dispatch(Steps(n=1))
    streams: list[Iterator[object]] = [handle.events(), manager.events(), handle.progress(), handle.events()]
    next(streams[0])
    next(streams[1])
    in_thread(streams.clear).join(DEADLINE_S)
    gc.collect()
    until_so(lambda: not manager._awaited._feed.watched)
    gate.open()
    assert handle.result(DEADLINE_S) == [1]
    assert manager.dispatch(Echo(n=1)).result(DEADLINE_S) == 1
    gc.collect()
    assert not manager._awaited._feed.watched


@pytest.mark.parametrize("what", ["result", "events", "run_until_idle"])
def test_ctrl_c_leaves_at_once(manager, gate, what):
    """Ctrl-C in a thread that waits takes the wait back, and neither the manager nor the job minds."""
    handle = manager.dispatch(Steps(n=1))
    until_so(lambda: gate.arrived)
    wait = {"result": handle.result, "events": lambda: list(handle.events()), "run_until_idle": manager.run_until_idle}
    pressing = interrupt_when(lambda: manager._awaited._feed._count)
    with pytest.raises(KeyboardInterrupt):
        wait[what]()
    pressing.join(DEADLINE_S)
    gate.open()
    assert handle.result(DEADLINE_S) == [1]
    assert list(handle.events())[-1].type == "completed"
    gc.collect()
    assert not manager._awaited._feed.watched


def test_ctrl_c_ends_the_grace(path, gate):
    """Whoever waits for a stop and presses Ctrl-C has no more patience: handlers are stopped, and all is closed."""
    manager = make(path, resources={"gate": gate}, grace_s=10 * DEADLINE_S)
    manager.start()
    handle = manager.dispatch(Steps(n=1))
    until_so(lambda: gate.arrived)
    pressing = interrupt_when(lambda: not node_of(manager._awaited).worker._claiming)
    with pytest.raises(KeyboardInterrupt):
        manager.stop()
    pressing.join(DEADLINE_S)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("jobkit")]
    store = store_at(path)
    assert stored(store, handle.id).status == "paused"
    assert store.lives() == []
    store.close()


def test_it_may_be_called_on_a_loop_of_ones_own(manager, anyio_backend):
    """In async code it blocks the caller's loop, asyncio or trio, and works."""

    async def main() -> list[object]:
        handle = manager.dispatch(Echo(n=1))
        return [handle.result(DEADLINE_S), next(handle.events()).type, manager.stats().total]

    assert anyio.run(main, backend=anyio_backend) == [1, "created", 1]


def test_a_call_carries_its_callers_context(path):
    """What the calling thread has in its context, such as a trace, goes along with the call."""
    seen = []

    class Ids(SystemIds):
        def new(self) -> UUID:
            seen.append(WHO.get())
            return super().new()

    with make(path, ids=Ids(), work=False) as manager:
        WHO.set("me")
        manager.dispatch(Echo(n=1))
    assert seen == ["me"]


NESTED = Registry()


@job(registry=NESTED)
class Inner(Job[int]):
    async def run(self, ctx: JobContext) -> int:
        return 7


@job(registry=NESTED)
class OnTheLoop(Job[int]):
    """Call the manager on its own loop."""

    async def run(self, ctx: JobContext) -> int:
        manager: BlockingJobManager = ctx.resources["manager"]
        assert manager.schema("inner")["title"] == "Inner"
        return manager.dispatch(Inner()).result()


@job(registry=NESTED)
class BesideTheLoop(Job[int]):
    """Call it from a thread, as the error says."""

    async def run(self, ctx: JobContext) -> int:
        handle = await to_thread.run_sync(ctx.resources["manager"].dispatch, Inner())
        return await to_thread.run_sync(handle.result)


@job(registry=NESTED)
class InAThread(Job[int]):
    """Call it from a handler's own thread."""

    def run(self, ctx: BlockingJobContext) -> int:
        return int(ctx.resources["manager"].dispatch(Inner()).result())


def test_handlers_may_call_their_manager_from_threads(path):
    """A handler calls the manager that runs it from its thread; on the loop, where it would hang, it is told so."""
    resources: dict[str, Any] = {}
    with make(path, registry=NESTED, resources=resources) as manager:
        resources["manager"] = manager
        assert manager.dispatch(InAThread()).result(DEADLINE_S) == 7
        assert manager.dispatch(BesideTheLoop()).result(DEADLINE_S) == 7
        with pytest.raises(JobFailed, match="own event loop") as failed:
            manager.dispatch(OnTheLoop()).result(DEADLINE_S)
        assert failed.value.failure.type == "RuntimeError"
        assert manager.dispatch(Inner()).result(DEADLINE_S) == 7
