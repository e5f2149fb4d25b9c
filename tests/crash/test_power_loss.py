"""The power fails at any write and at any sync, and nothing that was acknowledged is lost.

Processes dispatch and work on a database, and what they do to its files is logged: `disk.py` makes of the log what may
be left of them if the power fails right after any operation, or right after anybody was told anything. Each such image
is opened by jobkit, and judged by what had been acknowledged until then.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import chain, count, islice
from pathlib import Path
from random import Random

import pytest

from jobkit.errors import StoreUnavailable
from jobkit.store import SqlStore
from tests.crash.disk import Disk, Op, compile_log, logging_to, operations
from tests.crash.harness import LONG, PACE, Arena, Nursery, chance
from tests.crash.judge import judge, read
from tests.crash.plans import Order, Plan

IMAGES = 10_000 if LONG else 1_000
"""How many images are judged: one of each moment, and more until there are so many."""

RESUMED = 100 if LONG else 10
"""On how many images work goes on to its end."""

KILLED = 40 if LONG else 3
"""How many processes are killed between a write and its sync."""

COMMITS = 25 if LONG else 8
"""After how many commits of checkpoints a process is killed."""

LINES = 100 if LONG else 25
"""How much a process writes to its own logs before it is stopped."""

ORDERS = [
    Order(nonce="a", steps=3),
    Order(nonce="b", steps=3, kind="CountInThread", key="b"),
    Order(nonce="c", steps=2, size=20_000),
    Order(nonce="d", steps=1, key="d"),
]

WORK = Plan(dispatch=ORDERS, full=True, upkeep=(10, 100_000))
"""With so much upkeep, SQLite's log is moved into the database, begun anew, and cut short, again and again."""

WAL_HEADER = 32
"""With how many bytes SQLite begins its log anew."""

Files = dict[str, bytes]


# ── what is done to the disk ──


class Logged:
    """An arena whose children log what they do to its files; `disk` is what that comes to."""

    def __init__(self, folder: Path, library: Path) -> None:
        self._log, self._read = folder / "disk.log", 0
        (folder / "disk").mkdir()
        self._nursery = Nursery(logging_to(self._log, library, folder / "disk"))
        self.arena = Arena(folder / "disk", self._nursery)
        self.disk = Disk()

    def news(self) -> list[Op]:
        """What children have done since the last time, with the proof that it is all: it leads to the very files."""
        found = list(islice(operations(self._log), self._read, None))
        self._read += len(found)
        for op in found:
            self.disk.do(op)
        files = {file.name: file for file in self.arena.folder.glob("jobs.db*") if file.is_file()}
        files.pop("jobs.db-shm", None)
        assert self.disk.seen() == {name: file.read_bytes() for name, file in files.items()}
        return found

    def close(self) -> None:
        """End it."""
        self.arena.close()
        self._nursery.close()
        assert "Traceback" not in self.arena.said(), self.arena.said()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What logs. It has to be compiled: where that can't be, these tests fail if nothing may be left out."""
    if sys.platform != "linux":
        pytest.skip("what SQLite does to its files is logged on Linux alone")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        missing = "power loss is not tested without a C compiler: apt-get install gcc libc6-dev"
        if os.environ.keys() & {"CI", "JOBKIT_CI"}:
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    return compile_log(compiler, tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory, library: Path) -> list[Op]:
    """What was done to the disk in four lives: one ended, one was killed, one was stopped, one did what was left."""
    seed, _ = chance()
    with closing(Logged(tmp_path_factory.mktemp("worked"), library)) as logged:
        arena = logged.arena
        arena.run(WORK)
        found = logged.news()
        streams = Plan(**{**WORK, "dispatch": [], "streams": 2, "until": "told"})
        # Not by a signal from outside, which could come between a call and its record.
        arena.die({**streams, "seed": seed, "kill": ("checkpoint.before_commit", COMMITS)})
        found += logged.news()
        arena.listen(PACE)
        child = arena.start({**streams, "seed": seed + 1, "dispatch": arena.in_doubt(), "backend": "trio"})
        arena.hear(LINES)
        arena.deafen()
        child.tell()
        arena.run({**WORK, "dispatch": arena.in_doubt()})
        assert arena.judge() == []
        found += logged.news()
    begun = sum(op.kind == "w" and op.offset == 0 and len(op.data) == WAL_HEADER for op in found)
    assert begun > 4  # once in each life, and again within
    assert any(op.kind == "t" and op.offset == 0 for op in found)
    return found


# ── what is left ──


def replayed(ops: Iterable[Op]) -> Disk:
    """A disk after these operations."""
    disk = Disk()
    for op in ops:
        disk.do(op)
    return disk


def losses(ops: Iterable[Op], random: Random, disk: Disk | None = None) -> Iterator[tuple[str, Files]]:
    """Lose power after each operation: tell the moment, and what is left, with what people know."""
    disk = disk or Disk()
    for number, op in enumerate(ops, 1):
        if disk.do(op):
            way, files = disk.lose_power(random)
            yield f"after operation {number}: {way}", {**files, **disk.told}


def lay(folder: Path, files: Files) -> None:
    """Make a folder of these files, and of what may be left of shared memory: it must be of no account."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in {"jobs.db-shm": b"garbage!" * 4096, **files}.items():
        (folder / name).write_bytes(content)


Breaches = Callable[[Files], list[str]]


@pytest.fixture
def breaches(tmp_path: Path) -> Iterator[Breaches]:
    """Says what an image breaks when jobkit opens it. In memory if possible: it is the images that have lost power."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else tmp_path) as memory:
        folder = Path(memory) / "image"
        store = SqlStore(f"sqlite:///{folder / 'jobs.db'}", durability="normal")

        def judged(files: Files) -> list[str]:
            lay(folder, files)
            try:
                store.open()
                return judge(read(folder), at_rest=False)
            except (StoreUnavailable, sqlite3.DatabaseError) as error:
                return [f"the database is damaged: {error}"]
            except Exception as error:
                return [f"the database can't be read: {error!r}"]
            finally:
                store.close()

        yield judged


def test_no_loss_of_power_takes_what_was_acknowledged(worked: list[Op], breaches: Breaches):
    """G1, G2, G3, G11: whenever the power fails, the database is whole and knows all that was acknowledged."""
    _, random = chance()
    moments = sum(map(Disk().do, worked))
    again_and_again = chain.from_iterable(losses(worked, random) for _ in count())
    for moment, files in islice(again_and_again, max(IMAGES, moments)):
        assert breaches(files) == [], moment


def test_work_goes_on_after_a_loss_of_power(worked: list[Op], nursery: Nursery, tmp_path: Path):
    """G3, G6, G12: the next boot goes on at once, from acknowledged checkpoints, and completes every job."""
    _, random = chance()
    step = len(worked) // RESUMED
    for moment, files in islice(losses(worked, random), random.randrange(step), None, step):
        lay(tmp_path / "left", files)
        with closing(Arena(tmp_path / "left", nursery)) as arena:
            arena.run(Plan(dispatch=arena.in_doubt(), boot="the next"))
            assert arena.judge() == [], moment


def syncs_of_doubt(ops: list[Op]) -> Iterator[int]:
    """Find the syncs during which a dispatch with a key waits for its answer: the first of them is its own."""
    waiting: set[str] = set()
    for at, op in enumerate(ops):
        if op.kind == "s" and waiting:
            yield at
        elif op.kind == "w" and op.data.startswith(b'{"what": "'):
            line = json.loads(op.data)
            if line["what"] == "intent" and line["key"] is not None:
                waiting.add(line["nonce"])
            elif line["what"] == "dispatched":
                waiting.discard(line["nonce"])


def test_what_a_killed_process_had_not_synced_is_safe_before_anybody_hears_of_it(
    worked: list[Op], library: Path, breaches: Breaches, tmp_path: Path
):
    """G1, G12: a dispatch whose process was killed within the commit, repeated with its key, survives a loss of power.

    Nothing has to be written then, since the job is there; but it was never synced.
    """
    _, random = chance()
    first, *others = syncs_of_doubt(worked)
    with closing(Logged(tmp_path, library)) as logged:
        for at in (first, *random.sample(others, min(KILLED, len(others)))):
            logged.disk = replayed(worked[:at])
            lay(logged.arena.folder, {**logged.disk.seen(), **logged.disk.told})
            logged.arena.run(Plan(dispatch=logged.arena.in_doubt(), work=False, full=True))
            for moment, files in losses(logged.news(), random, replayed(worked[:at])):
                assert breaches(files) == [], f"killed before operation {at + 1}; {moment}"


# ── that it would be seen ──


def broken_in(ops: Iterable[Op], breaches: Breaches, every: int) -> list[str]:
    """What is broken in a part of the images."""
    _, random = chance()
    return [breach for _, files in islice(losses(ops, random), 0, None, every) for breach in breaches(files)]


def test_without_a_sync_for_each_commit_losses_are_found(library: Path, breaches: Breaches, tmp_path: Path):
    """G1, G3: `durability="normal"` loses what it acknowledged if the power fails; the database stays whole even so."""
    with closing(Logged(tmp_path, library)) as logged:
        logged.arena.run({**WORK, "full": False})
        assert logged.arena.judge() == []
        broken = broken_in(logged.news(), breaches, every=4)
    assert any("the acknowledged dispatch of" in breach for breach in broken)
    assert any("was acknowledged, and the stored state is of step" in breach for breach in broken)
    assert not any("the database" in breach or "put together" in breach or "G11" in breach for breach in broken)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("dispatch_before_commit", "the acknowledged dispatch of b"),
        ("checkpoint_before_commit", "step 3 was acknowledged, and the stored state is of step"),
    ],
)
def test_an_acknowledgement_before_the_commit_is_found(
    library: Path, breaches: Breaches, tmp_path: Path, fault: str, told: str
):
    """G1, G3: what was never committed is in no image, and is missed in those of after its acknowledgement."""
    with closing(Logged(tmp_path, library)) as logged:
        logged.arena.run({**WORK, "fault": fault})
        assert any(told in breach for breach in broken_in(logged.news(), breaches, every=20))


def test_a_disk_that_syncs_nothing_is_found_to_damage(worked: list[Op], breaches: Breaches):
    """The images are as harsh as can be: with the same writes, and no sync obeyed, the database itself breaks."""
    broken = broken_in([op for op in worked if op.kind != "s"], breaches, every=15)
    assert any("the database is damaged" in breach for breach in broken)
