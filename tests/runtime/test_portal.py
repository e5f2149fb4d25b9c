"""The portal: a call from a thread is answered, refused or taken back, whatever becomes of the loop."""

from __future__ import annotations

import gc
import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar

import anyio
import pytest
from anyio.lowlevel import checkpoint

from jobkit import ManagerNotRunning
from jobkit.runtime.portal import Portal
from tests.runtime.kit import DEADLINE_S, in_thread, interrupt_when, until_so

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


@pytest.fixture
def portal() -> Iterator[Portal]:
    """An open portal."""
    portal = Portal()
    portal.open()
    yield portal
    portal.close()


async def nothing() -> int:
    """Answer at once."""
    await checkpoint()
    return 1


def test_an_answer_and_an_error_come_back(portal):
    """A call gives what its coroutine returns, and raises what it raises: the same object."""

    async def fail() -> None:
        raise error

    error = KeyError("mine")
    assert portal.call(nothing) == 1
    with pytest.raises(KeyError) as raised:
        portal.call(fail)
    assert raised.value is error


def test_a_call_sees_its_callers_context(portal):
    """What a thread has set in its context, such as a trace, is seen by what it has called."""

    async def look() -> str:
        return VARIABLE.get()

    VARIABLE.set("mine")
    assert portal.call(look) == "mine"
    assert VARIABLE.get() == "mine"


def test_a_call_from_another_loop_works(portal, anyio_backend):
    """Somebody on a loop of their own may call, on asyncio or trio; it blocks them, and is not taken for their loop."""

    async def main():
        return portal.call(nothing)

    assert anyio.run(main, backend=anyio_backend) == 1


def test_a_call_on_the_loop_itself_is_refused(portal):
    """A call that would wait for itself for ever is an error that says what to do."""

    async def inner():
        return portal.call(nothing)

    with pytest.raises(RuntimeError, match=r"own event loop.*to_thread"):
        portal.call(inner)
    assert portal.call(nothing) == 1


def test_ctrl_c_takes_a_call_back(portal):
    """Ctrl-C leaves a call at once, cancels it on the loop, and leaves nothing of it behind; the next one works."""
    begun, cancelled = threading.Event(), threading.Event()

    async def long() -> None:
        begun.set()
        try:
            await anyio.Event().wait()
        except anyio.get_cancelled_exc_class():
            cancelled.set()
            raise

    pressing = interrupt_when(begun.is_set)
    with pytest.raises(KeyboardInterrupt):
        portal.call(long)
    pressing.join(DEADLINE_S)
    assert cancelled.wait(DEADLINE_S)
    assert not portal._calls
    assert portal.call(nothing) == 1


def test_a_closed_portal_is_said_to_be_so(portal):
    """After the end a call is refused; closing twice is fine."""
    portal.close()
    portal.close()
    assert not portal._thread.is_alive()
    with pytest.raises(ManagerNotRunning, match="not running"):
        portal.call(nothing)


def test_no_call_hangs_when_the_portal_closes():
    """Threads that call while the loop ends are answered or refused, each time."""
    for _ in range(100):
        portal = Portal()
        portal.open()
        answers: list[int] = []

        def call(portal: Portal = portal, answers: list[int] = answers) -> None:
            try:
                while True:
                    answers.append(portal.call(nothing))
            except ManagerNotRunning:
                answers.append(0)

        threads = [in_thread(call) for _ in range(4)]
        until_so(lambda: answers)  # noqa: B023  asked at once
        portal.close()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert answers.count(0) == len(threads)


def test_closing_waits_for_calls_under_way(portal):
    """What was called before the end is answered: the loop ends after it."""
    begun, go_on, answers = threading.Event(), threading.Event(), []

    async def wait() -> str:
        begun.set()
        await anyio.to_thread.run_sync(go_on.wait)
        return "done"

    calling = in_thread(lambda: answers.append(portal.call(wait)))
    assert begun.wait(DEADLINE_S)
    closing = in_thread(portal.close)
    until_so(portal._over.is_set)
    go_on.set()
    calling.join(DEADLINE_S)
    closing.join(DEADLINE_S)
    assert answers == ["done"]


def test_sys_exit_on_the_loop_ends_every_call(portal, caplog):
    """If somebody on the loop calls sys.exit, all who wait are told, and so is the log."""

    async def leave() -> None:
        sys.exit(3)

    async def end() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(leave)
            await anyio.Event().wait()

    for call in (end, nothing):
        with pytest.raises(ManagerNotRunning, match="not running"):
            portal.call(call)
    assert "sys.exit(3)" in caplog.text


def test_a_loop_that_cannot_be_made_is_an_error(monkeypatch):
    """Where the system gives no loop, as when too many files are open, opening says so, and closing is fine."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    portal = Portal()
    try:
        lowest = os.open(os.devnull, os.O_RDONLY)  # all below it are taken, and the next one would be this
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        with pytest.raises(OSError, match="Too many open files"):
            portal.open()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    portal.close()
    with pytest.raises(ManagerNotRunning):
        portal.call(nothing)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # asyncio's end of a loop that it could not make
    del portal
    gc.collect()
