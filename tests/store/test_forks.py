"""What a forked child may do with SQLite: nothing with its parent's databases, anything with others, and never hang."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.store.children import Child

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "jobs.db"


PRELUDE = """
import os, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on: forking beside threads is the point here
from jobkit.errors import StoreUnavailable
from jobkit.filters import JobFilter
from jobkit.store import SqlStore, forks
from jobkit.testing.store_contract import Bench

def total(url, store=None):
    store = store or SqlStore(url)
    store.open()
    Bench(store).add()
    found = store.stats(JobFilter()).total
    store.close()
    return found

def tried(call, *args):
    try:
        return call(*args)
    except StoreUnavailable as error:
        return error

def in_child(run):
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(0)
    say(os.waitpid(pid, 0)[1])

url, other = f"sqlite:///{args[0]}", f"sqlite:///{args[0]}.other"
"""

OPEN_FILE = """
store = SqlStore(url)
store.open()
first = Bench(store).add()
store.page(JobFilter(), 1, None)
store._database._mutex.acquire()  # as another thread might, at that moment

def child():
    say(tried(lambda: Bench(store).add()))
    say(tried(lambda: store.get(first)))
    store.close()
    say(tried(store.open))
    say(tried(total, url))
    say(total(other))
    in_child(lambda: say(tried(total, url)))

in_child(child)
store._database._mutex.release()
Bench(store).add()
say(store.stats(JobFilter()).total)
store.close()
in_child(lambda: say(total(url)))
"""


def test_a_child_never_opens_what_its_parent_had_open(path: Path):
    """G1: neither the parent's store nor a new one may use that file, nor may a grandchild; another file may be used.

    The child waits for nothing, the parent goes on, and a file that was closed before the fork is free for all.
    """
    *refused, in_other, grandchild, ended, child, in_parent, in_later_child, later = Child(
        PRELUDE + OPEN_FILE, path
    ).ends()
    assert len(refused) == 4
    assert all("after forking" in told for told in [*refused, grandchild])
    assert (in_other, ended, child, in_parent, in_later_child, later) == ("1", "0", "0", "2", "3", "0")


IN_MEMORY = """
store = SqlStore("sqlite://")
store.open()
Bench(store).add()

def child():
    say(tried(lambda: Bench(store).add()))
    say(total("sqlite://"))
    say(total(None, store))

in_child(child)
Bench(store).add()
say(store.stats(JobFilter()).total)
store.close()
"""


def test_what_is_in_memory_is_each_process_s_own(path: Path):
    """A child can't use the parent's memory, and has its own from the start."""
    refused, fresh, again, ended, in_parent = Child(PRELUDE + IN_MEMORY, path).ends()
    assert "after forking" in refused
    assert (fresh, again, ended, in_parent) == ("1", "1", "0", "2")


BUSY = """
import signal
signal.alarm(50)
forks.PATIENCE_S = float(args[1])
store = SqlStore(url)
store.open()
inside, child_is_made, left = threading.Event(), threading.Event(), []

def read():
    with store._database.reading():
        inside.set()
        while not forks.FORKS._forking:
            os.sched_yield()
        if args[2] == "stays":
            child_is_made.wait()
        left.append(True)

reading = threading.Thread(target=read)
reading.start()
inside.wait()
in_child(lambda: (say(left), say(tried(total, other))))
child_is_made.set()
reading.join()
in_child(lambda: say(total(other)))
say(total(url + ".third"))
store.close()
"""


def test_a_fork_waits_until_nobody_is_inside_sqlite(path: Path):
    """A child is made between other threads' transactions, so that it inherits no lock that never comes free."""
    assert Child(PRELUDE + BUSY, path, 20, "leaves").ends() == ["[True]", "1", "0", "2", "0", "1"]


def test_a_fork_does_not_wait_for_ever(path: Path):
    """If a thread stays inside SQLite, the fork is made all the same, and the child is refused instead of hanging."""
    left, refused, *rest = Child(PRELUDE + BUSY, path, 0.01, "stays").ends()
    assert left == "[]"
    assert "after forking" in refused
    assert rest == ["0", "1", "0", "1"]


BEHIND = """
store = SqlStore(url)
store.open()
forks.FORKS.after_in_child()  # as in a child of a program that forks without telling Python beforehand
say(tried(total, other))
store.close()
"""


def test_a_fork_behind_pythons_back_is_refused_too(path: Path):
    """Where nobody could wait for the threads, the child opens nothing, if the parent had anything open."""
    (refused,) = Child(PRELUDE + BEHIND, path).ends()
    assert "after forking" in refused
