"""The blocking manager in programs that fork, and in programs that just end: real processes, seen from outside."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jobkit import JobFilter
from tests.runtime.kit import DEADLINE_S, store_at
from tests.store.children import ROOT, Child

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")

PRELUDE = """
import gc, logging, os, signal, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on: forking beside threads is the point here
signal.alarm(50)
from jobkit import BlockingJobManager, ManagerNotRunning, Settings
from tests.runtime.kit import REGISTRY, Count, Echo, Gate, Steps, StepsInThread, in_thread, until_so

def make(path, **given):
    settings = Settings(sweep_s=0.1, grace_s=5.0)
    return BlockingJobManager(path, **{"registry": REGISTRY, "settings": settings, **given})

def fork(run):
    pid = os.fork()
    if pid == 0:
        signal.alarm(50)
        code = 1
        try:
            run()
            code = 0
        finally:
            if code:
                sys.excepthook(*sys.exc_info())
            sys.exit(code)  # through all that Python does at its end
    return pid

def ended(*pids):
    return [os.waitpid(pid, 0)[1] for pid in pids]

path = args[0]
"""


@pytest.fixture
def run(path):
    """Run a program on the test's database to its end, which must be a good one; answers its lines."""

    def run(script: str, *args: object) -> list[str]:
        return Child(PRELUDE + script, path, *args).ends()

    return run


# ── forks ──


PRELOADED = """
manager = make(path, work=False)  # when the application is loaded, before the server forks
worker = make(path)
over, end = os.pipe()

def serve(number):
    with manager:
        handles = [manager.dispatch(Echo(n=n)) for n in range(number, number + 10)]
        assert [handle.result(30) for handle in handles] == list(range(number, number + 10))

def work():
    with worker:
        serve(0)
        os.read(over, 1)

working, *serving = fork(work), fork(lambda: serve(100)), fork(lambda: serve(200))
serve(300)
say(ended(*serving))
with manager:
    say(manager.stats().completed)
os.write(end, b".")
say(ended(working))
"""


def test_a_manager_made_before_the_fork_works_on_both_sides(run):
    """Parent and children each start what was made before; all dispatch and wait, and one of them works for all."""
    assert run(PRELOADED) == ["[0, 0]", "40", "[0]"]


STARTED = """
manager = make(path, concurrency=4)
manager.start()
handle = manager.dispatch(Echo(n=1))
events, progress = handle.events(), handle.progress()
next(events)
elsewhere = make(f"{path}.other")
running = True

def load():
    while running:
        manager.dispatch(Echo(n=2)).result(30)

def child(number):
    global handle, events, progress
    calls = [
        lambda: manager.dispatch(Echo(n=3)), handle.result, handle.status, lambda: next(events), lambda: next(progress),
        manager.events, manager.start, manager.job_types, manager.run_until_idle,
    ]
    for call in calls:
        try:
            call()
        except ManagerNotRunning as error:
            assert "post_fork" in str(error) and str(os.getppid()) in str(error)
        else:
            raise AssertionError(call)
    manager.stop()
    with elsewhere:  # another database, in spite of what the parent's threads were doing
        assert elsewhere.dispatch(Echo(n=number)).result(30) == number
    del handle, events, progress, calls
    gc.collect()

loading = [in_thread(load) for _ in range(4)]
for number in range(int(args[1])):
    say(ended(fork(lambda: child(number))))
running = False
for thread in loading:
    thread.join(30)
    assert not thread.is_alive()
say(f"{manager.dispatch(Echo(n=4)).result(30)} {[event.type for event in events]}")
manager.stop()
"""


def test_a_manager_started_before_the_fork_is_the_parents(run):
    """A child is told to start its own, at once, whatever the parent's threads were doing when it was made.

    It collects what it was given and ends in full without a hang, and the parent, which was busy, goes on.
    """
    *children, parent = run(STARTED, 10)
    assert children == ["[0]"] * 10
    assert parent == "4 ['started', 'completed']"


POOL = """
import multiprocessing
manager = make(path)

def work(number):
    manager.start()
    handle = manager.dispatch(Count(n=number))
    assert handle.result(30) == number
    manager.dispatch(Steps(n=1), queue="nobody's")

context = multiprocessing.get_context("fork")
processes = [context.Process(target=work, args=(number,)) for number in (1, 2)]
for process in processes:
    process.start()
for process in processes:
    process.join(30)
    say(process.exitcode)
with manager:
    say(manager.stats().total)
"""


def test_a_process_of_multiprocessing_ends_without_a_stop(run, path):
    """A process that only ends gives back what it has, as a program does that ends."""
    assert run(POOL) == ["0", "0", "4"]
    store = store_at(path)
    assert store.lives() == []
    store.close()


# ── programs that end ──


ENDING = """
gate = Gate()
manager = make(path, resources={"gate": gate})
manager.start()
handles = [manager.dispatch(Steps(n=2)), manager.dispatch(StepsInThread(n=2))]
until_so(lambda: gate.arrived == 2)

def let():
    until_so(lambda: not manager._awaited._node.worker._claiming)
    gate.let(2)

def wait():
    try:
        handles[0].result()
    except ManagerNotRunning:
        pass

in_thread(let)
in_thread(wait)
match args[1]:
    case "an error":
        raise ValueError("mine")
    case "sys.exit":
        sys.exit(3)
"""

RESUMED = """
gate = Gate()
gate.open()
with make(path, resources={"gate": gate}) as manager:
    page = manager.list_jobs()
    say(sorted({manager.handle(record.id).result(30)[-1] for record in page.items}))
"""


@pytest.mark.parametrize(("how", "code", "told"), [
    ("the end", 0, ""), ("sys.exit", 3, ""), ("an error", 1, "ValueError: mine"),
])  # fmt: skip
def test_a_program_that_ends_without_a_stop(run, path, how, code, told):
    """G16: it ends with its own code and nothing said; what runs reaches a checkpoint, is given back, and resumes."""
    command = [sys.executable, "-W", "error", "-c", Child.PRELUDE + PRELUDE + ENDING, str(path), how]
    ending = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3 * DEADLINE_S, check=False)
    said = ending.stderr.strip().splitlines()
    assert (ending.returncode, said[-1:]) == (code, [told] if told else [])
    assert ending.stderr.count("Traceback") == bool(told)
    store = store_at(path)
    assert store.lives() == []
    store.close()
    assert run(RESUMED) == ["[2]"]


GOING_ON = """
manager = make(path)
manager.start()
main_has_ended = threading.Event()
threading._register_atexit(main_has_ended.set)

def go_on():
    main_has_ended.wait()
    say([manager.dispatch(Echo(n=n)).result(30) for n in range(3)])

threading.Thread(target=go_on).start()
"""


def test_a_program_that_goes_on_in_other_threads(run, path):
    """The end of the main thread is not yet that of the program: the manager works for as long as its threads do."""
    assert run(GOING_ON) == ["[0, 1, 2]"]
    store = store_at(path)
    assert store.lives() == []
    store.close()


POOLED = """
import asyncio
from concurrent.futures import ThreadPoolExecutor
from jobkit import Job, JobContext, job
begun, go_on = threading.Event(), threading.Event()

@job(registry=REGISTRY)
class Pooled(Job[int]):
    async def run(self, ctx: JobContext) -> int:
        begun.set()
        await asyncio.to_thread(go_on.wait)
        await asyncio.to_thread(int)  # a pool that Python has closed would fail here
        return 1

pool = ThreadPoolExecutor(1)
pool.submit(int).result()
manager = make(path)
manager.start()
handle = manager.dispatch(Pooled())
begun.wait()
threading._register_atexit(go_on.set)
"""


def test_handlers_have_their_threads_until_the_end(run, path):
    """G16: a job that needs a pool of threads completes in the grace of a program that ends: it still has the pool."""
    assert run(POOLED) == []
    store = store_at(path)
    (record,) = store.page(JobFilter(), 10, None).items
    assert (record.status, record.error) == ("completed", None)
    store.close()


KILLED = """
gate = Gate()
manager = make(path, resources={"gate": gate})
manager.start()
manager.dispatch(Steps(n=2))
manager.dispatch(StepsInThread(n=2))
until_so(lambda: gate.arrived == 2)
gate.let(2)
until_so(lambda: gate.arrived == 4)
os._exit(0)
"""


def test_a_program_that_is_cut_off(run):
    """G6: a worker process that ends without a word leaves its jobs to the next start, which goes on at once."""
    assert run(KILLED) == []
    assert run(RESUMED) == ["[2]"]


QUITTING = """
from jobkit import Job, job
logging.disable(logging.CRITICAL)
gate = Gate()

@job(registry=REGISTRY)
class Quit(Job[int]):
    async def run(self, ctx):
        await ctx.resources["gate"].pass_async([])
        sys.exit(3)

told = []
def wait(handle):
    try:
        handle.result()
    except ManagerNotRunning as error:
        told.append(error)

with make(path, resources={"gate": gate}) as manager:
    waiting = [in_thread(wait, manager.dispatch(Quit())) for _ in range(4)]
    until_so(lambda: gate.arrived == 4 == manager._awaited._feed._count)
    gate.let(1)
    for thread in waiting:
        thread.join(30)
    try:
        manager.stats()
    except ManagerNotRunning as error:
        told.append(error)
    say(len(told))
"""


def test_a_handler_that_calls_sys_exit_hangs_nobody(run):
    """An async handler that ends the manager's loop ends it for all: who waits is told so, and so is who comes."""
    assert run(QUITTING) == ["5"]
