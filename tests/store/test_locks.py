"""The proof of life: a lock that the kernel drops when its process ends, however it ends, and never before."""

from __future__ import annotations

import gc
import os
import platform
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobkit.errors import StoreUnavailable
from jobkit.interfaces import Life, Retire
from jobkit.store import SqlStore
from jobkit.store.dialects import boot_id
from jobkit.store.locks import LEAST_S, FileLock, Patience, is_free
from jobkit.testing.store_contract import Bench
from tests.store.children import Child

HOLD = """
from jobkit.store import SqlStore
store = SqlStore(args[0])
store.open()
hold = store.hold(args[1])
say("held")
hear()
hold.release()
say("released")
hear()
"""

PROBE = """
from pathlib import Path
from jobkit.store.locks import is_free
say(is_free(Path(args[0])))
"""

FORK = """
import os
from jobkit.store import SqlStore
store = SqlStore(args[0])
store.open()
hold = store.hold(args[1])
ours, theirs = os.pipe()
if os.fork() == 0:
    os.write(theirs, b"x")
    say(os.getpid())
    hear()
    os._exit(0)
os.read(ours, 1)
hear()
os._exit(0)
"""


def life(name: str = "life", **fields: Any) -> Life:
    """A life on this machine."""
    known = {"host": platform.node(), "boot_id": boot_id(), **fields}
    return Life(name, "node", pid=1, working=True, versions={}, **known)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database of the test's own."""
    return f"sqlite:///{tmp_path / 'jobs.db'}"


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    """An open store."""
    store = SqlStore(url)
    store.open()
    yield store
    store.close()


def test_a_life_in_another_process_is_alive_until_it_is_killed(store: SqlStore, url: str):
    """G6: an owner in another process is alive while that runs, and proven dead the moment it was killed."""
    child = Child(HOLD, url, "life")
    assert child.says() == "held"
    assert store.fate(life()) == "alive"
    child.kill()
    assert store.fate(life()) == "crashed"


def test_a_life_that_let_go_is_not_proven_dead(store: SqlStore, url: str):
    """A life that ended in order leaves no lock: then its row is asked, or its lease."""
    child = Child(HOLD, url, "life")
    assert child.says() == "held"
    assert child.hears("release").says() == "released"
    assert store.fate(life()) == "unknown"
    child.kill()


def test_two_managers_in_one_process_are_both_alive(store: SqlStore, url: str):
    """G6: a second manager in the same process, on the same file, is not taken for dead, nor does it end the first."""
    other = SqlStore(url)
    other.open()
    holds = [store.hold("one"), other.hold("two")]
    for asking in (store, other):
        assert [asking.fate(life(name)) for name in ("one", "two")] == ["alive", "alive"]
    assert holds[1] is not None
    holds[1].release()
    other.close()  # closes descriptors of the same files in the same process
    assert store.fate(life("one")) == "alive"
    assert Child(PROBE, _lock(store, "one")).ends() == ["False"]
    assert holds[0] is not None
    holds[0].release()


def _lock(store: SqlStore, name: str) -> Path:
    return Path(f"{store.path}.lives") / f"{name}.lock"


def test_probing_leaves_the_lock_alone(store: SqlStore, url: str):
    """However often and from however many sides a life is probed, it stays alive, and a dead one is seen by all."""
    child = Child(HOLD, url, "life")
    assert child.says() == "held"
    assert {store.fate(life()) for _ in range(100)} == {"alive"}
    child.kill()
    path = _lock(store, "life")
    asking = [os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)]
    import fcntl

    fcntl.flock(asking[0], fcntl.LOCK_SH)  # another prober, in the middle of it
    assert store.fate(life()) == "crashed"
    for fd in asking:
        os.close(fd)


def test_closing_the_database_s_descriptors_does_not_end_a_life(store: SqlStore):
    """A life's proof doesn't depend on what else this process does with the database."""
    import sqlite3

    hold = store.hold("life")
    assert store.path is not None
    connection = sqlite3.connect(store.path)
    connection.execute("SELECT count(*) FROM jobs")
    connection.close()
    Bench(store).add()
    gc.collect()
    assert store.fate(life()) == "alive"
    assert hold is not None


def test_a_forked_child_does_not_keep_its_parent_s_lock(store: SqlStore, url: str):
    """G6: a parent that was killed is proven dead though a child that it forked lives on."""
    child = Child(FORK, url, "life")
    grandchild = int(child.says())
    assert store.fate(life()) == "alive"
    child.process.kill()
    child.process.wait()
    os.kill(grandchild, 0)  # it is still there
    assert store.fate(life()) == "crashed"
    child.hears("end")
    child.process.communicate()


def test_another_boot_of_this_machine(store: SqlStore):
    """G6: whoever ran before this machine was started again is dead, without a look at any file."""
    assert store.fate(life(boot_id="another")) == "rebooted"


@pytest.mark.parametrize(
    "told",
    [
        {"boot_id": "another", "host": "another"},
        {"boot_id": ""},
        {"boot_id": "", "host": "another"},
        {},
    ],
    ids=["another machine", "no boot id", "another machine without", "no lock file"],
)
def test_what_can_not_be_told_is_not_told(store: SqlStore, told: dict[str, str]):
    """G6: of another machine, of one that does not say its boot, and without a lock file, nothing is proven."""
    assert store.fate(life(**told)) == "unknown"


def test_a_machine_that_does_not_know_its_boot(store: SqlStore, monkeypatch: pytest.MonkeyPatch):
    """G6: where the present boot can't be told (no /proc), an owner of this machine is not taken for dead."""
    hold = store.hold("life")
    asked = life()
    monkeypatch.setattr("jobkit.store.dialects.boot_id", lambda: "")
    assert store.fate(asked) == "unknown"
    assert hold is not None
    hold.release()


@pytest.mark.parametrize(
    ("told", "suffices"),
    [
        ({}, True),
        ({"dialects.boot_id": ""}, False),
        ({"disk.file_system": "nfs4"}, False),
    ],
    ids=["here", "no boot id", "a network"],
)
def test_a_lock_suffices_where_all_can_see_it(
    url: str, monkeypatch: pytest.MonkeyPatch, told: dict[str, str], suffices: bool
):
    """G6, G20: a lock outranks its life's lease only if whoever could take the life's jobs can look at that lock."""
    for name, value in told.items():
        monkeypatch.setattr(f"jobkit.store.{name}", lambda *_, value=value: value)
    store = SqlStore(url, allow_network_fs=True)
    store.open()
    hold = store.hold("life")
    assert hold is not None
    assert hold.suffices is suffices
    hold.release()
    store.close()


def test_an_unreadable_lock_proves_nothing(tmp_path: Path):
    """A lock that can't be opened proves nothing."""
    assert is_free(tmp_path / "missing") is None
    assert is_free(tmp_path) is None


def test_a_store_in_memory_knows_no_locks():
    """In memory lives are judged by their leases alone."""
    store = SqlStore("sqlite://")
    store.open()
    assert store.hold("life") is None
    assert store.fate(life(boot_id="another")) == "unknown"
    store.close()


def test_a_life_s_lock_is_taken_once(store: SqlStore):
    """Two lives can't have one id: the second is told, and the first stays alive."""
    hold = store.hold("life")
    with pytest.raises(StoreUnavailable, match="life"):
        store.hold("life")
    assert store.fate(life()) == "alive"
    assert hold is not None
    hold.release()
    hold.release()


def test_a_retired_life_leaves_no_file(store: SqlStore):
    """The lock file of a life that is noted as over is removed."""
    bench = Bench(store)
    dead = bench.new_life()
    hold = store.hold(dead)
    assert _lock(store, dead).exists()
    assert hold is not None
    bench.do(Retire(dead))
    assert not _lock(store, dead).exists()
    hold.release()


# ── the lock itself ──


@pytest.fixture
def locks(tmp_path: Path) -> Iterator[tuple[FileLock, FileLock]]:
    """Two who want the same lock."""
    pair = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    yield pair
    for lock in pair:
        lock.close()


def test_one_at_a_time(locks: tuple[FileLock, FileLock]):
    """What is held by one is not taken by another, also in the same process, until it is let go."""
    one, two = locks
    assert one.take()
    assert not two.take()
    one.close()
    assert two.take()


def test_waiting_ends_when_the_lock_comes(locks: tuple[FileLock, FileLock]):
    """Who waits for a lock gets it once it is let go, and then nobody else has it."""
    one, two = locks
    order: list[str] = []
    began = threading.Event()

    def wait() -> None:
        began.set()
        with two.held([60]):
            order.append("two")
            assert not one.take()

    with one.held([60]):
        waiting = threading.Thread(target=wait)
        waiting.start()
        began.wait()
        order.append("one")
    waiting.join()
    assert order == ["one", "two"]
    assert one.take()


def test_waiting_is_given_up(locks: tuple[FileLock, FileLock], tmp_path: Path):
    """G20: who waits too long is told, again and again, and gets the lock when it comes; then it is let go as ever."""
    one, two = locks
    with one.held([60]):
        for _ in range(3):
            with pytest.raises(TimeoutError), two.held([0.01]):
                pytest.fail("it was not to be had")
    with two.held([60]):
        assert is_free(tmp_path / "lock") is False
        assert not one.take()
    with one.held([60]):
        assert not two.take()
    assert is_free(tmp_path / "lock")


def test_a_lock_that_comes_too_late_is_not_kept(locks: tuple[FileLock, FileLock]):
    """A lock that comes when nobody wants it any more is let go at once."""
    one, two = locks
    with one.held([60]), pytest.raises(TimeoutError), two.held([0.01]):
        pytest.fail("it was not to be had")
    for thread in threading.enumerate():
        if thread.name == "jobkit lock":
            thread.join()
    assert one.take()


def test_closing_while_waiting(locks: tuple[FileLock, FileLock]):
    """A lock that is closed while it is waited for is not kept by anybody."""
    one, two = locks
    with one.held([60]):
        with pytest.raises(TimeoutError), two.held([0.01]):
            pytest.fail("it was not to be had")
        two.close()
    for thread in threading.enumerate():
        if thread.name == "jobkit lock":
            thread.join()
    assert one.take()


def test_who_is_told_to_hurry_waits_no_longer(locks: tuple[FileLock, FileLock]):
    """G16: a wait that is under way ends soon once there is no patience for it, and so does any that comes after."""
    one, two = locks
    patience, waited = Patience(60), threading.Event()
    ended: list[str] = []

    def wait() -> None:
        def slices() -> Iterator[float]:
            for seconds in patience.slices():
                waited.set()
                yield seconds

        try:
            with two.held(slices()):
                ended.append("it came")
        except TimeoutError:
            ended.append("it did not come")

    with one.held([60]):
        waiting = threading.Thread(target=wait)
        waiting.start()
        waited.wait()
        patience.hurry(0.01)
        waiting.join(30)
        assert ended == ["it did not come"]
        assert list(patience.slices(60)) == [LEAST_S]
    for thread in threading.enumerate():
        if thread.name == "jobkit lock":
            thread.join()
    with two.held(patience.slices()):  # what is free is had all the same
        assert not one.take()
