"""What a child is told to do: plain data, so that whoever tells it needs none of its jobs."""

from __future__ import annotations

from typing import TypedDict


class Order(TypedDict, total=False):
    """A job to dispatch; `nonce` names it in the logs."""

    nonce: str
    kind: str
    key: str | None
    steps: int
    size: int
    trap: str


class Ask(TypedDict, total=False):
    """Something to ask of a job, as a client does: `pause`, `resume`, `cancel` or `release`.

    Attributes:
        request: What is asked.
        job: The job's id.
        across: Whether a pause is to outlast restarts.
    """

    request: str
    job: str
    across: bool


class Plan(TypedDict, total=False):
    """What a child is to do.

    Attributes:
        folder: Where database and logs are.
        backend: `"asyncio"` or `"trio"`.
        kill: The crash point at which it dies, and at which time of coming there.
        stop: The crash point at which it stops itself (SIGSTOP), and at which time of coming there. A point after a
            commit is one at which it holds none of the database's locks.
        waiting: How many handlers must wait at the gate before those times count.
        behind: How many writes must wait behind that commit first: it says `holding`, waits for them, and then stops.
        dispatch: Jobs to dispatch first, by a client.
        ask: What that client then asks, one after the other.
        streams: How many dispatchers go on for ever beside the work, each waiting for its job's result.
        seed: For what the streams dispatch.
        work: Whether it works at all.
        until: When it stops: `"idle"`, `"lingering"` (a handler waits to be stopped), `"told"` (SIGTERM), or
            `"overtaken"`: when a handler stalls, a second manager comes up beside the first, and both become idle.
        beside: Whether a second manager works beside the first in the same process. When told to stop the first time,
            that one is the only one to do so.
        concurrency: How many attempts run at once.
        lease_s: How long its lease holds; by default so long that only a proof gives its jobs to somebody else in time.
        sweep_s: How often it looks for dead owners.
        grace_s: How long handlers may take to stop.
        full: Whether each commit waits for the disk, as it does by default: a power loss would tell, no SIGKILL can.
        upkeep: After how many rows, and above how many bytes, SQLite's log is moved into the database, and cut short.
        boot: The boot that it takes this to be of its machine, as after a power loss; the true one by default.
        eager: Whether its lease is renewed, and what its attempts tell is stored, all the time.
        held_up: The kind of write (as crash points name them) before whose first transaction it waits to be let go.
        ahead_s: How far its own clock is ahead; the database's is right.
        pipe: A pipe that is told of each line, so that somebody can wait for it.
        weight: How many bytes the pipe gets for each line: many bytes fill it soon, and no line is written until they
            are read, so that this process can't run ahead.
        fault: A planted bug; see `faults.py`.
    """

    folder: str
    backend: str
    kill: tuple[str, int]
    stop: tuple[str, int]
    waiting: int
    behind: int
    dispatch: list[Order]
    ask: list[Ask]
    streams: int
    seed: int
    work: bool
    until: str
    beside: bool
    concurrency: int
    lease_s: float
    sweep_s: float
    grace_s: float
    full: bool
    upkeep: tuple[int, int]
    boot: str
    eager: bool
    held_up: str
    ahead_s: float
    pipe: str
    weight: int
    fault: str
