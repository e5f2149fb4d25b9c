"""Time, ids and threads: the system's own, and those that a test holds in its hand."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import RFC_4122, UUID

import anyio
import pytest
import uuid_utils

from jobkit.runtime.clock import SystemClock, SystemIds, SystemThreads
from jobkit.testing import FakeClock, FakeIds, FakeThreads
from tests.runtime.kit import DEADLINE_S, pass_until, until

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


def test_ids_are_laid_out_as_rfc_9562_says():
    """RFC 9562, section 5.7: 48 bits of Unix milliseconds, version 7, the variant; another implementation agrees."""
    before = time.time_ns() // 1_000_000
    made = SystemIds().new()
    after = time.time_ns() // 1_000_000
    assert (made.version, made.variant) == (7, RFC_4122)
    assert before <= made.int >> 80 <= after
    other = uuid_utils.UUID(str(made))
    assert (other.version, str(other.variant)) == (7, str(uuid_utils.uuid7().variant))
    assert before <= other.timestamp <= after
    assert UUID(bytes=made.bytes) == made


def test_ids_sort_beside_those_of_another_implementation():
    """Ids of this process and ids that another implementation made a moment before or after sort by time."""
    first = UUID(str(uuid_utils.uuid7()))
    threading.Event().wait(0.002)
    ours = SystemIds().new()
    threading.Event().wait(0.002)
    last = UUID(str(uuid_utils.uuid7()))
    assert first < ours < last


def test_ids_rise_across_threads():
    """Ids made by one process are unique and rise in the order in which they were made, in every thread."""
    ids = SystemIds()
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: [ids.new() for _ in range(2_000)], range(8)))
    for series in made:
        assert series == sorted(series)
    assert len({one for series in made for one in series}) == 16_000


def test_ids_rise_while_the_clock_does_not(monkeypatch):
    """Ids rise within a millisecond, beyond the counter's 4,096, and when the clock is set back."""
    now = [1_700_000_000_000_000_000]
    monkeypatch.setattr(time, "time_ns", lambda: now[0])
    ids = SystemIds()
    made = [ids.new() for _ in range(10_000)]
    now[0] -= 3_600 * 1_000_000_000
    made += [ids.new() for _ in range(10)]
    assert made == sorted(set(made))
    assert {one.version for one in made} == {7}
    assert {one.variant for one in made} == {RFC_4122}


def test_the_tail_of_an_id_is_chance():
    """The last 62 bits of an id can't be foreseen: all of them vary."""
    seen = ones = 0
    for _ in range(200):
        tail = SystemIds().new().int & (1 << 62) - 1
        seen |= tail
        ones |= ~tail
    assert seen & ones & (1 << 62) - 1 == (1 << 62) - 1


def test_fake_ids_count():
    """Fake ids are the same in every run, are of version 7, and rise."""
    ids = FakeIds()
    made = [ids.new() for _ in range(3)]
    assert [str(one)[-1] for one in made] == ["1", "2", "3"]
    assert {one.version for one in made} == {7}


@pytest.mark.anyio
async def test_the_systems_clock():
    """The system's clock leaves the database its own time, and waits for a signal, but not for longer than told."""
    clock = SystemClock()
    assert clock.now() is None
    assert abs(clock.wall() - datetime.now(UTC)) < timedelta(seconds=5)
    assert clock.monotonic() <= clock.monotonic()
    signal = anyio.Event()
    assert await clock.wait(signal, 0) is False
    assert await clock.wait(signal, 0.001) is False
    signal.set()
    assert await clock.wait(signal, 0) is True
    assert await clock.wait(signal, 1_000) is True


@pytest.mark.anyio
async def test_fake_time_passes_when_told():
    """Fake time stands still until it is moved; who waits is woken when the time has come, in no other way."""
    clock = FakeClock()
    start = clock.now()
    woken: list[float] = []

    async def sleep(seconds: float) -> None:
        assert await clock.wait(anyio.Event(), seconds) is False
        woken.append(seconds)

    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as group:
            for seconds in (10.0, 20.0, 30.0):
                group.start_soon(sleep, seconds)
            await anyio.wait_all_tasks_blocked()
            clock.advance(9.9)
            await anyio.wait_all_tasks_blocked()
            assert woken == []
            clock.advance(0.1)
            await anyio.wait_all_tasks_blocked()
            assert woken == [10.0]
            threading.Thread(target=clock.advance, args=(20.0,)).start()
            await until(lambda: len(woken) == 3)
    assert clock.now() - start == timedelta(seconds=30)
    assert clock.wall() == clock.now()
    assert clock.monotonic() == 30.0


@pytest.mark.anyio
async def test_fake_time_is_cut_short_by_a_signal():
    """A signal ends a wait in fake time, and a wait that is over or cancelled leaves nothing behind."""
    clock = FakeClock()
    signal = anyio.Event()
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(clock.wait, signal, 1_000.0)
            await anyio.wait_all_tasks_blocked()
            signal.set()
        assert await clock.wait(signal, 1_000.0) is True
        with anyio.move_on_after(0.01):
            await clock.wait(anyio.Event(), 1_000.0)
        assert await clock.wait(anyio.Event(), 0) is False
    assert clock._sleepers == []


@pytest.mark.anyio
async def test_fake_time_may_go_backwards():
    """A clock that is set back wakes nobody; what it tells goes back."""
    clock = FakeClock()
    clock.advance(-3_600)
    assert clock.now() == datetime(2029, 12, 31, 23, tzinfo=UTC)


@pytest.mark.anyio
async def test_threads_wait_in_fake_time():
    """A thread that waits in fake time goes on when that has passed, or when its signal is set."""
    clock = FakeClock()
    threads = FakeThreads(clock)
    ended: list[bool] = []
    signals = threading.Event(), threading.Event()

    def wait(signal: threading.Event) -> None:
        ended.append(threads.wait(signal, 60))

    for signal in signals:
        threads.start(partial(wait, signal), "waits")
    signals[0].set()
    await until(lambda: ended == [True])
    await pass_until(clock, lambda: len(ended) == 2, 10)
    assert ended == [True, False]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["system", "fake"])
async def test_a_threads_result_and_error_come_back(kind):
    """`run` answers with what the function returned, raises what it raised, and takes context variables along."""
    threads = SystemThreads() if kind == "system" else FakeThreads(FakeClock())
    VARIABLE.set("set")

    def work() -> tuple[str, bool, str]:
        thread = threading.current_thread()
        return thread.name, thread.daemon, VARIABLE.get()

    assert await threads.run(work, "a name") == ("a name", True, "set")

    def fail() -> None:
        raise KeyError("in the thread")

    with pytest.raises(KeyError, match="in the thread"):
        await threads.run(fail, "fails")


@pytest.mark.anyio
async def test_a_thread_is_left_behind():
    """Cancelling `run` does not wait for the thread, which goes on by itself; its result goes nowhere."""
    free, ended = threading.Event(), threading.Event()

    def work() -> None:
        free.wait(DEADLINE_S)
        ended.set()

    with anyio.fail_after(DEADLINE_S):
        with anyio.move_on_after(0.01):
            await SystemThreads().run(work, "left behind")
        assert not ended.is_set()
        free.set()
        await until(ended.is_set)
    await anyio.wait_all_tasks_blocked()
