"""The list of what is measured: which function, at which size, and the figure that each number has to reach.

Machines are noisy, so a rate counts as a share of a limit that was measured right before it, by the standard library's
`sqlite3` on the same file system. What has no such limit (a latency, an import) counts as it is.

Nothing here imports jobkit: a limit's process must not pay for it, and an import's cost is itself measured.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple


class Reach(NamedTuple):
    """What a figure is to reach.

    Attributes:
        sign: Whether it is to be at least, or at most, so much.
        value: How much: in the figure's unit, or as a share of the limit.
        of_limit: Whether it is a share of the limit.
    """

    sign: Literal["≥", "≤"]
    value: float
    of_limit: bool = False

    def met_by(self, found: float) -> bool:
        """Whether a value is good enough."""
        return found >= self.value if self.sign == "≥" else found <= self.value


class Figure(NamedTuple):
    """One number.

    Attributes:
        name: Its key in the JSON, and in what a measurement answers.
        what: What it says, for people.
        unit: Its unit; `"/s"` is a rate.
        reach: What it is to reach; None for a limit, and for what only explains another figure.
    """

    name: str
    what: str
    unit: str
    reach: Reach | None = None


class Measurement(NamedTuple):
    """One function, run in a process of its own, and the figures that it answers with.

    Attributes:
        module: The module of `benchmarks` that holds it.
        name: The function's name, and what `--only` calls it.
        size: How many rows, jobs, checkpoints, calls or tenths of a second it takes.
        quick: The same for a trial run.
        figures: What it answers.
        limit: The measurement to take right before it, whose figure of the same name the rate is a share of.
    """

    module: str
    name: str
    size: int
    quick: int
    figures: tuple[Figure, ...]
    limit: str | None = None


def _share(of: float) -> Reach:
    return Reach("≥", of, of_limit=True)


LIMITS: Final = (
    Measurement("limits", "R1", 2_000, 50, (Figure("R1", "limit R1: one insert a transaction", "/s"),)),
    Measurement("limits", "RB", 20_000, 1_000, (Figure("RB", "limit RB: 500 inserts a transaction", "/s"),)),
    Measurement(
        "limits", "RC", 20_000, 1_000, (Figure("RC", "limit RC: claim and complete, 500 a transaction", "/s"),)
    ),
)

WORK: Final = (
    Measurement(
        "workloads", "dispatch_one", 2_000, 50,
        (Figure("dispatch_one", "dispatch one by one, awaited", "/s", _share(0.5)),), "R1",
    ),
    Measurement(
        "workloads", "dispatch_callers", 20_000, 400,
        (Figure("dispatch_callers", "dispatch, 200 callers at once", "/s", _share(0.3)),), "RB",
    ),
    Measurement(
        "workloads", "dispatch_many", 10_000, 500,
        (Figure("dispatch_many", "`dispatch_many(10,000)`", "/s", _share(0.4)),), "RB",
    ),
    Measurement(
        "workloads", "drain", 20_000, 500,
        (
            Figure("drain", "drain of 20,000 queued no-op jobs", "/s", _share(0.2)),
            Figure("drain_loop_us", "… processor time a job, event loop", "µs"),
            Figure("drain_writer_us", "… processor time a job, writer thread", "µs"),
        ),
        "RC",
    ),
    Measurement(
        "workloads", "checkpoint_one", 2_000, 50,
        (Figure("checkpoint_one", "checkpoints, 1 job, 1 kB state", "/s", _share(0.6)),), "R1",
    ),
    Measurement(
        "workloads", "checkpoint_hundred", 20_000, 300,
        (
            Figure("checkpoint_hundred", "checkpoints, 100 jobs at once, 1 kB state", "/s", Reach("≥", 15_000)),
            Figure("checkpoint_loop_us", "… processor time a checkpoint, event loop", "µs"),
            Figure("checkpoint_writer_us", "… processor time a checkpoint, writer thread", "µs"),
        ),
    ),
    Measurement(
        "workloads", "latency", 250, 10,
        (
            Figure("latency_p50", "dispatch → handler starts, idle worker, p50", "ms", Reach("≤", 1.5)),
            Figure("latency_p99", "… p99", "ms", Reach("≤", 5)),
        ),
    ),
    Measurement(
        "workloads", "restart", 10_000, 200,
        (
            Figure("restart_first", "restart with 10,000 interrupted jobs: first handler runs", "s", Reach("≤", 0.5)),
            Figure("restart_all", "… all are queued again", "s", Reach("≤", 1.5)),
        ),
    ),
    Measurement(
        "footprint", "idle", 60, 5,
        (
            Figure("idle_rss", "idle worker: resident memory", "MB", Reach("≤", 55)),
            Figure("idle_cpu", "… share of one core", "%", Reach("≤", 0.5)),
        ),
    ),
    Measurement(
        "footprint", "import_jobkit", 1, 1,
        (Figure("import_jobkit", "`import jobkit`: modules loaded beside it", "modules", Reach("≤", 0)),),
    ),
    Measurement(
        "footprint", "import_job", 5, 1,
        (Figure("import_job", "`from jobkit import Job`, beyond one pydantic model", "ms", Reach("≤", 30)),),
    ),
    Measurement(
        "footprint", "cli_help", 5, 1,
        (Figure("cli_help", "`jobkit --help`", "ms", Reach("≤", 200)),),
    ),
)  # fmt: skip

ALL: Final = {one.name: one for one in (*LIMITS, *WORK)}
"""Every measurement, by name."""
