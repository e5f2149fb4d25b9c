"""What the crash tests share: children that can be killed, and the place where they work."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if sys.platform != "win32":
    import fcntl

import jobkit
from tests.crash.judge import History, judge, lines, read

if TYPE_CHECKING:
    from tests.crash.plans import Order, Plan

PROGRAM = Path(__file__).with_name("children.py")

DEADLINE_S = 60.0
"""After how long a child counts as stuck; none takes nearly as long."""

LOOK_S = 0.005
"""How often is looked for what no event tells of."""

PIPE_BYTES = 4096
"""The smallest pipe that Linux makes: with `PACE` bytes a line, a child can be eight lines ahead of who reads them."""

PACE = 512

SET_PIPE_SIZE = 1031
"""F_SETPIPE_SZ, of Linux only."""

LONG = os.environ.get("JOBKIT_LONG") == "1"
"""Whether this is the long programme."""


def environment() -> dict[str, str]:
    """The children's environment: this jobkit, and no settings from outside."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JOBKIT_")}
    return kept | {"PYTHONPATH": str(Path(jobkit.__file__).parents[1])}


class Nursery:
    """Where children come from; see `children.py`.

    Args:
        beside: What they find in their environment beside the usual.
    """

    def __init__(self, beside: Mapping[str, str] = MappingProxyType({})) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment() | dict(beside),
        )

    def ask(self, **question: object) -> Any:
        """Ask a question and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the nursery has died"
        return json.loads(answer)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(DEADLINE_S)


class Child:
    """A process that carries out a plan."""

    def __init__(self, arena: Arena, plan: Plan) -> None:
        self._arena, self.plan = arena, plan
        self.pid: int = arena.nursery.ask(plan=plan)["pid"]
        self.status: int | None = None

    def wait(self) -> int:
        """Wait for its end; answer its exit code, or minus the number of the signal that ended it."""
        if self.status is None:
            self.status = self._arena.nursery.ask(wait=self.pid, within_s=DEADLINE_S)["status"]
        assert self.status is not None, f"process {self.pid} is stuck: {self.plan}\n{self._arena.said()}"
        return self.status

    def stopped(self) -> None:
        """Wait until it has stopped itself; nothing happens in it until it is told to `go_on`."""
        told = self._arena.nursery.ask(stopped=self.pid, within_s=DEADLINE_S)["stopped"]
        assert told, f"process {self.pid} did not stop: {self.plan}\n{self._arena.said()}"

    def halt(self) -> None:
        """Stop it, wherever it is."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def lives(self) -> bool:
        """Whether it has not ended yet."""
        if self.status is None:
            self.status = self._arena.nursery.ask(wait=self.pid, within_s=0)["status"]
        return self.status is None

    def kill(self) -> None:
        """Kill it, and see it dead."""
        os.kill(self.pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL, self._arena.said()

    def terminate(self) -> None:
        """Tell it to stop in good order."""
        self._arena.note("terminated", pid=self.pid)
        os.kill(self.pid, signal.SIGTERM)

    def tell(self) -> None:
        """Tell it to stop in good order, and see that it does."""
        self.terminate()
        assert self.wait() == 0, self._arena.said()


class Arena:
    """A folder with a database and logs, and the children that work there."""

    def __init__(self, folder: Path, nursery: Nursery) -> None:
        self.folder, self.nursery = folder, nursery
        self.children: list[Child] = []
        self._gate: int | None = None
        self._pipe: int | None = None
        self._weight = 1

    # ── children ──

    def start(self, plan: Plan) -> Child:
        """Start a child."""
        if self._pipe is not None:
            plan = {**plan, "pipe": str(self.folder / "pipe"), "weight": self._weight}
        child = Child(self, {**plan, "folder": str(self.folder)})
        self.children.append(child)
        return child

    def run(self, plan: Plan) -> None:
        """Have a plan carried out to its end."""
        status = self.start(plan).wait()
        assert status == 0, f"exit code {status}: {plan}\n{self.said()}"

    def restart(self, plan: Plan, most: int) -> int:
        """Do as a supervisor of processes does: start one again for as long as it dies.

        Args:
            plan: What each of them does.
            most: How many deaths there may be.

        Returns:
            How many there were.
        """
        for deaths in range(most + 1):
            status = self.start(plan).wait()
            if status == 0:
                return deaths
            assert status in {-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV}, f"exit code {status}\n{self.said()}"
        message = f"more than {most} deaths of {plan}"
        raise AssertionError(message)

    def die(self, plan: Plan) -> None:
        """Have a plan carried out by a child that is killed by it."""
        status = self.start(plan).wait()
        assert status == -signal.SIGKILL, f"exit code {status}, not killed: {plan}\n{self.said()}"

    @contextlib.contextmanager
    def held_up(self, before: str, plan: Plan) -> Iterator[None]:
        """Have a plan carried out by a child that waits, just before its first write of a kind, until the block ends.

        Args:
            before: The kind of write, as crash points name it, such as `"claim"`.
            plan: What the child does, to its end.
        """
        here, go = self.folder / "here", self.folder / "go"
        os.mkfifo(here)
        os.mkfifo(go)
        arrived = os.open(here, os.O_RDWR | os.O_NONBLOCK)
        try:
            child = self.start({**plan, "held_up": before})
            assert select.select([arrived], [], [], DEADLINE_S)[0], f"nobody came to {before!r}: {plan}\n{self.said()}"
            yield
        finally:
            os.close(arrived)
        go.write_bytes(b".")
        assert child.wait() == 0, self.said()

    def said(self) -> str:
        """What children wrote to their output."""
        path = self.folder / "said.log"
        return path.read_text(errors="replace")[-8000:] if path.exists() else ""

    def close(self) -> None:
        """See that no child outlives its test."""
        for child in self.children:
            if child.status is None:
                os.kill(child.pid, signal.SIGKILL)
                child.wait()
        self.open_gate()
        if self._pipe is not None:
            os.close(self._pipe)

    # ── waiting ──

    def shut_gate(self) -> None:
        """Have handlers wait that come to the gate from now on."""
        self._gate = os.open(self.folder / "gate", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._gate, fcntl.LOCK_EX)

    def open_gate(self) -> None:
        """Let them pass, now and from now on."""
        if self._gate is not None:
            os.close(self._gate)
            self._gate = None

    def until(self, condition: Callable[..., object], *about: object) -> None:
        """Wait for something that can be seen outside the children."""
        until, look = time.monotonic() + DEADLINE_S, threading.Event()
        while not condition(*about):
            assert time.monotonic() < until, f"it did not come about\n{self.said()}"
            look.wait(LOOK_S)

    def until_line(self, what: str, number: int = 1, **facts: object) -> None:
        """Wait until so many lines of a kind are written, by handlers or clients."""
        told = {"what": what, **facts}.items()
        self.until(lambda: sum(told <= line.items() for line in self.effects() + self.client()) >= number)

    def ask_database(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the database something, as anybody may who looks at it from outside."""
        with contextlib.closing(self._connect("ro")) as connection:
            return connection.execute(query, values).fetchall()

    def change_database(self, statement: str, *values: object) -> int:
        """Change the database behind jobkit's back; answer how many rows were changed."""
        with contextlib.closing(self._connect("rw")) as connection, connection:
            return connection.execute(statement, values).rowcount

    def _connect(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self.folder / 'jobs.db'}?mode={mode}", uri=True, timeout=DEADLINE_S)

    def listen(self, weight: int = 1) -> None:
        """Hear of each line that children write from now on.

        Args:
            weight: 1 leaves them alone; `PACE` has them wait until lines are heard.
        """
        path = self.folder / "pipe"
        os.mkfifo(path)
        self._pipe, self._weight = os.open(path, os.O_RDWR | os.O_NONBLOCK), weight
        if weight > 1 and sys.platform == "linux":
            fcntl.fcntl(self._pipe, SET_PIPE_SIZE, PIPE_BYTES)

    def hear(self, count: int) -> None:
        """Wait for so many more lines."""
        assert self._pipe is not None
        missing, until = count * self._weight, time.monotonic() + DEADLINE_S
        while missing > 0:
            left = until - time.monotonic()
            assert left > 0, f"{missing // self._weight} of {count} lines were not written in time\n{self.said()}"
            if select.select([self._pipe], [], [], left)[0]:
                missing -= len(os.read(self._pipe, missing))

    def deafen(self) -> None:
        """Listen no more: children write on without waiting for anybody."""
        assert self._pipe is not None
        os.close(self._pipe)
        self._pipe = None

    def forget(self) -> None:
        """Skip what was written and not heard of."""
        assert self._pipe is not None
        with contextlib.suppress(BlockingIOError):
            while os.read(self._pipe, 65536):
                pass

    # ── damage from outside ──

    def damage(self, job: str, statement: str, *values: object, status: str, reason: str | None = None) -> None:
        """Damage a job's row, behind everybody's back.

        Args:
            job: Its id.
            statement: The SQL that does it.
            values: What belongs to it.
            status: What must become of the job; `reason` likewise.
            reason: See there.
        """
        with contextlib.closing(sqlite3.connect(self.folder / "jobs.db")) as connection, connection:
            connection.execute(statement, values)
            attempt, state = connection.execute("SELECT attempt, hex(state) FROM jobs WHERE id = ?", (job,)).fetchone()
        line = {"job": job, "attempt": attempt, "state": state, "status": status, "reason": reason}
        with (self.folder / "damage.log").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def hide_locks(self) -> None:
        """Take away what proves of lives that they are alive, or not: only their leases are left to judge by."""
        for lock in (self.folder / "jobs.db.lives").glob("*.lock"):
            if lock.stem != "writer":
                lock.rename(lock.with_suffix(".hidden"))

    # ── judging ──

    def history(self) -> History:
        """What happened until now, read from a copy, so that what a crash has left stays as it is."""
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for name in ("jobs.db", "jobs.db-wal"):
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, copy / name)
        history = read(self.folder, copy / "jobs.db")
        living = {child.pid for child in self.children if child.lives()}  # asked last: who lives now, lived then
        return history._replace(living=living)

    def judge(self, *, at_rest: bool = True, overlap: bool = False) -> list[str]:
        """Judge what happened until now."""
        return judge(self.history(), at_rest=at_rest, overlap=overlap)

    def effects(self) -> list[dict[str, Any]]:
        """What handlers did until now."""
        return lines(self.folder / "effects.log")

    def client(self) -> list[dict[str, Any]]:
        """What dispatchers tried and were told until now."""
        return lines(self.folder / "client.log")

    def locks(self) -> list[Path]:
        """The files of the locks of lives."""
        return [path for path in (self.folder / "jobs.db.lives").iterdir() if path.name != "writer.lock"]

    def note(self, what: str, **facts: object) -> None:
        """Note among the clients' lines what the test itself does."""
        with (self.folder / "client.log").open("a") as log:
            log.write(json.dumps({"what": what, **facts}) + "\n")

    def set_mood(self, mood: str) -> None:
        """Say what poison jobs are to do from now on; see `hostile.py`."""
        (self.folder / "mood").write_text(mood)

    def rows(self) -> dict[str, dict[str, Any]]:
        """The stored jobs, by nonce."""
        return {json.loads(row["params"])["nonce"]: row for row in self.history().jobs.values()}

    def job(self, nonce: str) -> str:
        """The id of a job whose dispatch was acknowledged."""
        (found,) = {line["job"] for line in self.client() if line["what"] == "dispatched" and line["nonce"] == nonce}
        return str(found)

    def in_doubt(self) -> list[Order]:
        """The orders with a key that were never acknowledged: to be repeated."""
        told = {line["nonce"] for line in self.client() if line["what"] == "dispatched"}
        tried = {
            line["nonce"]: line["order"]
            for line in self.client()
            if line["what"] == "intent" and line["key"] is not None
        }
        return [order for nonce, order in tried.items() if nonce not in told]

    def unacknowledged(self, orders: list[Order]) -> list[Order]:
        """Those orders that were never acknowledged, tried or not."""
        told = {line["nonce"] for line in self.client() if line["what"] == "dispatched"}
        return [order for order in orders if order["nonce"] not in told]


def chance() -> tuple[int, random.Random]:
    """A source of chance and its seed, which is printed; `JOBKIT_SEED` gives it."""
    given = os.environ.get("JOBKIT_SEED")
    seed = int(given) if given else random.SystemRandom().randrange(2**32)
    sys.stdout.write(f"JOBKIT_SEED={seed}\n")
    return seed, random.Random(seed)
