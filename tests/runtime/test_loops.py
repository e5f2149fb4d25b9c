"""The event loop as seen from a thread: asyncio and trio alike."""

from __future__ import annotations

import threading
from contextvars import ContextVar

import anyio
import pytest

from jobkit.runtime.loops import Loop
from tests.runtime.kit import DEADLINE_S, until

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


@pytest.mark.anyio
async def test_what_is_posted_is_called_on_the_loop():
    """A function that a thread posts is called on the loop's own thread, in the order of posting."""
    loop = Loop()
    seen: list[tuple[int, bool]] = []

    def note(number: int) -> None:
        seen.append((number, threading.current_thread() is here))

    here = threading.current_thread()
    threading.Thread(target=lambda: [loop.post(note, number) for number in range(100)]).start()
    await until(lambda: len(seen) == 100)
    assert seen == [(number, True) for number in range(100)]


@pytest.mark.anyio
async def test_posting_never_waits_for_the_loop():
    """A thread posts while the loop is blocked, and is not held up by it."""
    loop, posted = Loop(), threading.Event()
    seen: list[int] = []

    def post() -> None:
        for _ in range(100):
            assert loop.post(seen.append, 1)
        posted.set()

    threading.Thread(target=post).start()
    assert posted.wait(DEADLINE_S)  # the loop is blocked here
    assert seen == []
    await until(lambda: len(seen) == 100)


def test_a_loop_that_has_ended_takes_nothing(anyio_backend):
    """Posting to a loop that is over is answered with False, and raises nothing."""

    async def make() -> Loop:
        return Loop()

    loop = anyio.run(make, backend=anyio_backend)
    assert loop.post(print, "never") is False


@pytest.mark.anyio
async def test_a_spawned_task_belongs_to_nobody():
    """A spawned task outlives the scope that it was spawned in, and knows its context variables."""
    loop, gate = Loop(), anyio.Event()
    seen: list[str] = []
    VARIABLE.set("set")

    async def work() -> None:
        await gate.wait()
        seen.append(VARIABLE.get())

    with anyio.CancelScope() as scope:
        loop.spawn(work, "spawned")
        scope.cancel()
        await anyio.lowlevel.checkpoint()
    gate.set()
    await until(lambda: seen)
    assert seen == ["set"]


@pytest.mark.anyio
async def test_a_reply_is_given_once_to_one_who_waits():
    """A reply hands over its answer, before or after it is waited for; an exception is raised."""
    loop = Loop()
    early, late, failed = loop.reply(), loop.reply(), loop.reply()
    early.set("early")
    assert await early.wait() == "early"
    threading.Thread(target=lambda: loop.post(late.set, "late")).start()
    threading.Thread(target=lambda: loop.post(failed.set, KeyError("raised"))).start()
    with anyio.fail_after(DEADLINE_S):
        assert await late.wait() == "late"
        with pytest.raises(KeyError):
            await failed.wait()


@pytest.mark.anyio
async def test_a_reply_to_one_who_has_gone_is_no_error():
    """Who waited may have been cancelled: the answer is dropped in silence."""
    loop = Loop()
    reply = loop.reply()
    with anyio.move_on_after(0.01):
        await reply.wait()
    reply.set("too late")
