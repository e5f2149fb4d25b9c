"""What is done on a disk that becomes full, in processes of its own; told by `test_small_disk.py`.

Two kinds of disk can be filled to the page and freed again at any moment. A *mount* is a tmpfs whose size is changed
while it is in use: it needs a mount namespace (`unshare`), which not every machine allows. A *limit* is a process that
may not let a file grow: it can be had anywhere, and looks to SQLite like an error of the disk.

The program is told cases, one to a line of its input, as JSON. It forks a process for each, which prints what came of
it, as a line of JSON too. Logs, by which a case is judged, stand in the case's folder, beside the disk.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypedDict

import anyio

import jobkit
from jobkit import Job, JobContext, JobFailed, JobManager, ManagerNotRunning, Settings, StoreUnavailable, job
from jobkit.points import arm
from jobkit.runtime import reports, writer
from jobkit.runtime.loops import Loop
from jobkit.store import SqlStore
from tests.crash import children
from tests.crash.judge import judge, read
from tests.crash.plans import Order
from tests.crash.record import client, place
from tests.runtime.kit import OtherProcess

PAGE: Final = 4096
LARGE: Final = 32 * 1024 * 1024
FILES: Final = 1_000
MS_REMOUNT: Final = 32
MS_RDONLY: Final = 1
MNT_DETACH: Final = 2

DEADLINE_S: Final = 20.0


class Case(TypedDict, total=False):
    """What is to happen.

    Attributes:
        folder: Where it happens; empty.
        what: `"work"` by default, or another of `WHAT`.
        orders: What is dispatched at first; `ORDERS` by default.
        pages: How many pages are left from the beginning.
        files: How many files can still be made.
        at: The crash point at which the disk becomes full, and at which time of coming there.
        schema: Whether the database is there already, with a job that a dead process left running.
        kill: Whether the process is killed once the disk is full.
        backend: `"asyncio"` or `"trio"`.
    """

    folder: str
    what: str
    orders: list[Order]
    pages: int
    files: int
    at: tuple[str, int]
    schema: bool
    kill: bool
    backend: str


class Outcome(TypedDict, total=False):
    """What came of a case.

    Attributes:
        failed: Before which crash points' commits the disk was full.
        said: What callers were told, and what was logged of writes that fail.
        logged: All warnings and errors.
        breaches: What the judge finds.
        lives: How many lives there were, beside that of the process that died before.
        problem: What went wrong otherwise.
    """

    failed: list[str]
    said: list[str]
    logged: list[str]
    breaches: list[str]
    lives: int
    problem: str


# ── disks ──


def _system(done: int) -> None:
    if done:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Mount:
    """A tmpfs of its own."""

    libc = ctypes.CDLL(None, use_errno=True)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mount(0, f"size={LARGE},nr_inodes={FILES}")

    def _mount(self, flags: int, options: str) -> None:
        _system(self.libc.mount(b"tmpfs", os.fsencode(self.folder), b"tmpfs", flags, options.encode()))

    def fill(self, pages: int = 0) -> None:
        """Leave room for so many more pages."""
        told = os.statvfs(self.folder)
        used = told.f_blocks - told.f_bfree
        self._mount(MS_REMOUNT, f"size={max(1, used + pages) * PAGE}")

    def fill_files(self, files: int = 0) -> None:
        """Leave room for so many more files."""
        told = os.statvfs(self.folder)
        self._mount(MS_REMOUNT, f"nr_inodes={told.f_files - told.f_ffree + files}")

    def free(self) -> None:
        """Leave plenty of room."""
        self._mount(MS_REMOUNT, f"size={LARGE},nr_inodes={FILES}")

    def protect(self, *, read_only: bool) -> None:
        """Mount it for reading alone, or for writing again."""
        self._mount(MS_REMOUNT | (MS_RDONLY if read_only else 0), "")

    def close(self) -> None:
        """Take it away."""
        _system(self.libc.umount2(os.fsencode(self.folder), MNT_DETACH))


class Limit:
    """A folder in which this process lets no file grow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, pages: int = 0) -> None:
        """Let no file grow beyond the write-ahead log as it is and so many pages; our own logs are smaller than one."""
        log = self.folder / "jobs.db-wal"
        size = log.stat().st_size if log.exists() else 0
        self._limit(max(size + pages * PAGE, PAGE - 1))

    def free(self) -> None:
        """Let files grow again."""
        self._limit(resource.RLIM_INFINITY)

    def _limit(self, size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def close(self) -> None:
        """Leave the process as it was."""
        self.free()


# ── a case ──

ORDERS: Final = (Order(nonce="a", steps=2, kind="CountInThread"), Order(nonce="b", steps=2, size=20_000, key="b"))
LINGERING: Final = Order(nonce="c", steps=3, trap="linger")


class Witness(logging.Handler):
    """Sees which commits are tried, hears what is logged, and notices the trouble when it begins."""

    def __init__(self, disk: Any, case: Case) -> None:
        super().__init__(logging.WARNING)
        self._disk, self._case = disk, case
        self._trying: set[str] = set()
        self._left = case["at"][1] if "at" in case else 0
        self.failed: list[str] = []
        self.said: list[str] = []
        self.logged: list[str] = []
        self.on_trouble: Callable[[], object] = lambda: None

    def __enter__(self) -> None:
        logging.getLogger().addHandler(self)
        arm(self.reach)

    def __exit__(self, *_: object) -> None:
        arm(None)
        logging.getLogger().removeHandler(self)

    def reach(self, point: str) -> None:
        """See a crash point reached."""
        what, _, when = point.partition(".")
        if when == "before_commit":
            self._trying.add(what)
        elif when == "after_commit":
            self._trying.discard(what)
        if self._left and point == self._case["at"][0]:
            self._left -= 1
            if not self._left:
                self._disk.fill()

    def emit(self, record: logging.LogRecord) -> None:
        """Hear a line."""
        self.logged.append(f"{record.name}: {record.getMessage()}")
        if record.name == "jobkit.writer" and record.levelno >= logging.ERROR:
            self.hear(record.getMessage())

    def hear(self, told: object) -> None:
        """Hear what somebody was told."""
        self.said.append(str(told))
        self.failed += sorted(self._trying)
        self._trying.clear()
        if self._case.get("kill"):
            _tell(self.outcome())
            os.kill(os.getpid(), signal.SIGKILL)
        self.on_trouble()

    def outcome(self) -> Outcome:
        """Say what came of it."""
        return Outcome(failed=self.failed, said=self.said, logged=self.logged)


class Person:
    """Uses jobkit, and makes room when told that there is none: once everything that should has been refused."""

    def __init__(self, disk: Any, witness: Witness) -> None:
        self._disk, self._witness = disk, witness
        settings = Settings(lease_s=children.HOUR_S, sweep_s=0.1, grace_s=DEADLINE_S)
        self.manager = JobManager(
            disk.folder / "jobs.db", settings=settings, observers=[children._finished], threads=children.Eager()
        )
        self._trouble, self._room = anyio.Event(), anyio.Event()
        loop = Loop()
        witness.on_trouble = lambda: loop.post(self._trouble.set)

    def be_in_trouble(self) -> None:
        """Make room, though nobody has said anything."""
        self._trouble.set()

    async def make_room(self) -> None:
        """Wait for trouble; look around; make room."""
        await self._trouble.wait()
        if self.manager._running:
            assert (await self.manager.stats()).total >= 0  # reading goes on
            await self._try(Order(nonce="while full", steps=1))
        self._disk.free()
        self._room.set()

    async def _try(self, order: Order) -> Any:
        try:
            return await children._dispatch(self.manager, order)
        except (StoreUnavailable, ManagerNotRunning) as error:
            client("refused", nonce=order["nonce"])
            if self.manager._running:  # it may have ended meanwhile, since it could not start
                self._witness.hear(error)
            return None

    async def start(self) -> None:
        """Start the manager; again and again, until there is room."""
        while True:
            try:
                return await self.manager.start()
            except StoreUnavailable as error:
                self._witness.hear(error)
                await self._room.wait()

    async def dispatch(self, order: Order) -> Any:
        """Dispatch a job; again and again, until there is room."""
        while (handle := await self._try(order)) is None:
            await self._room.wait()
        return handle


async def _two_lives(disk: Any, witness: Witness, orders: Sequence[Order]) -> None:
    """Work, stop while a handler lingers, and work on."""
    person = Person(disk, witness)
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(person.make_room)
            await person.start()
            for handle in [await person.dispatch(order) for order in orders]:
                await handle.result(DEADLINE_S)
            await person.dispatch(LINGERING)
            await anyio.to_thread.run_sync(children.lingering.wait)
            await person.manager.stop()
            await person.start()
            await person.manager.run_until_idle(DEADLINE_S)
            await person.manager.stop()
            group.cancel_scope.cancel()


async def _start_again(disk: Any, witness: Witness) -> None:
    """Come up on a disk that is still full."""
    person = Person(disk, witness)
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as group:
            group.start_soon(person.make_room)
            await person.start()
            person.be_in_trouble()
            await person.manager.run_until_idle(DEADLINE_S)
            await person.manager.stop()
            group.cancel_scope.cancel()


async def _go_on(path: Path) -> None:
    async with JobManager(path, observers=[children._finished]) as manager:
        await manager.run_until_idle(DEADLINE_S)


def _leave_a_job_running(path: Path) -> None:
    """Be a process that died while it ran a job."""
    other = OtherProcess(path, registry=jobkit.registry)
    client("intent", nonce="left", key=None)
    (job_id,) = other.put(children.Count(nonce="left", steps=2))
    client("dispatched", nonce="left", key=None, job=job_id)
    other.claim()
    other.die()


def _live(disk: Any, case: Case) -> Outcome:
    """Carry out a case and judge it."""
    witness = Witness(disk, case)
    path = disk.folder / "jobs.db"
    if case.get("schema"):
        _leave_a_job_running(path)
    with witness:
        if "pages" in case:
            disk.fill(case["pages"])
        if "files" in case:
            disk.fill_files(case["files"])
        orders = case.get("orders", ORDERS)
        anyio.run(_two_lives, disk, witness, orders, backend=case.get("backend", "asyncio"))
    return _end(disk, witness)


def _live_on(disk: Any, case: Case) -> Outcome:
    """Go on after a death, and judge all of it."""
    witness = Witness(disk, Case())
    with witness:
        anyio.run(_start_again, disk, witness, backend=case.get("backend", "asyncio"))
    return _end(disk, witness)


def _find_it_read_only(disk: Any, case: Case) -> Outcome:
    """Start where nothing is, and where a database is, on a disk that may not be written at first."""
    witness = Witness(disk, case)

    async def start() -> None:
        disk.protect(read_only=True)
        person = Person(disk, witness)
        before = sorted(disk.folder.iterdir())
        try:
            await person.manager.start()
        except StoreUnavailable as error:
            witness.hear(error)
        assert sorted(disk.folder.iterdir()) == before
        disk.protect(read_only=False)
        async with person.manager as manager:
            handle = await children._dispatch(manager, Order(nonce=f"{len(witness.said)}", steps=1))
            await handle.result(DEADLINE_S)

    with witness:
        anyio.run(start)
        anyio.run(start)
    return _end(disk, witness)


@job
class Keep(Job[str]):
    """Keeps something in its folders."""

    async def run(self, ctx: JobContext, /) -> str:
        (ctx.data_dir / "kept").touch()
        return str(ctx.output_dir)


def _make_folders(disk: Any, case: Case) -> Outcome:
    """Run jobs whose folders can't be made, and one once they can."""
    witness = Witness(disk, case)

    async def run() -> None:
        async with JobManager(disk.folder / "jobs.db") as manager:
            for files in range(3):
                disk.fill_files(files)
                handle = await manager.dispatch(Keep())
                try:
                    await handle.result(DEADLINE_S)
                except JobFailed as failed:
                    witness.hear(f"{handle.id} {failed.failure.type}: {failed.failure.message}")
            disk.free()
            handle = await manager.dispatch(Keep())
            assert Path(await handle.result(DEADLINE_S)).parts[-2:] == (str(handle.id), "1")

    with witness:
        anyio.run(run)
    return witness.outcome()


def _end(disk: Any, witness: Witness) -> Outcome:
    disk.free()
    anyio.run(_go_on, disk.folder / "jobs.db")
    history = read(place.folder, disk.folder / "jobs.db")
    lives = sum(life["node"] != "other" for life in history.lives)
    return Outcome(**witness.outcome(), breaches=judge(history), lives=lives)


# ── the program ──

WHAT: Final[dict[str, Callable[[Any, Case], Outcome]]] = {
    "work": _live,
    "find it read-only": _find_it_read_only,
    "make folders": _make_folders,
}

KINDS: Final[dict[str, Callable[[Path], Any]]] = {"mount": Mount, "limit": Limit}


def _tell(outcome: Outcome) -> None:
    sys.stdout.write(json.dumps(outcome) + "\n")
    sys.stdout.flush()


def _forked(run: Callable[[Any, Case], Outcome], disk: Any, case: Case) -> int:
    """Run something in a fork, which tells its outcome; answer the fork's exit code, or minus its signal."""
    pid = os.fork()
    if pid == 0:
        try:
            _tell(run(disk, case))
        except BaseException:
            _tell(Outcome(problem=traceback.format_exc()))
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(kind: str) -> None:
    """Carry out the cases that are told."""
    reports.REPORT_EVERY_S = 0.0  # type: ignore[misc]  # what is told is stored at once
    writer.BACK_OFF_S = (0.01,)  # type: ignore[assignment,misc]  # real time is what these tests have least of
    warm = SqlStore("sqlite://")  # loads what a store needs, once for all forks
    warm.open()
    warm.close()
    for backend in ("asyncio", "trio"):
        anyio.run(children._nothing, backend=backend)
    while line := sys.stdin.readline():
        case = json.loads(line)
        (Path(case["folder"]) / "disk").mkdir(parents=True)
        place.begin(Path(case["folder"]), None, 1)
        disk = KINDS[kind](place.folder / "disk")
        status = _forked(WHAT[case.get("what", "work")], disk, case)
        if status == -signal.SIGKILL:
            status = _forked(_live_on, disk, case)
        assert status == 0, status
        disk.close()


if __name__ == "__main__":
    main(sys.argv[1])
