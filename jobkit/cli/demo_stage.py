"""What is seen of the demonstration: a live bar at a terminal, a line for each quarter in a pipe, and the summary."""

from __future__ import annotations

import platform
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from jobkit.cli.people import clean, coloured, seconds, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rich.console import Console

    from jobkit import JobRecord
    from jobkit.cli.demo_play import Findings

QUARTERS: Final = 4
SHOWN_PROBLEMS: Final = 5


class Stage:
    """Where the demonstration is shown. It is told what happened and finds out nothing by itself."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def open(self, root: Path, folder: Path, chosen: int, there: int, every: int) -> None:
        """Say what will be done."""
        files = f"{chosen:,} files" if chosen == there else f"{chosen:,} of {there:,} files, to fit this disk,"
        self._line(f"jobkit on SQLite {sqlite3.sqlite_version}, Python {platform.python_version()}", style="bold")
        self._line(f"A job copies {files} from {clean(root)}")
        self._line(f"to {clean(folder)}, each one atomically, with a checkpoint after every {every} files.")
        self._line("")

    @contextmanager
    def watching(self, pid: int, total: int) -> Iterator[Callable[[int], None]]:
        """Show how far the job has come while a worker process has it.

        Args:
            pid: The worker process.
            total: How many files there are.

        Yields:
            Call it with the number of files that are done.
        """
        name = f"process {pid}"
        if not self._console.is_terminal:
            yield self._quarters(name, total)
            return
        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TextColumn("files"),
            TaskProgressColumn(), TimeElapsedColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self._console) as bars:
            bar = bars.add_task(f"{name:14}", total=total)
            yield lambda done: bars.update(bar, completed=done)

    def _quarters(self, name: str, total: int) -> Callable[[int], None]:
        told = -1

        def show(done: int) -> None:
            nonlocal told
            if done and done * QUARTERS // total > told:
                told = done * QUARTERS // total
                self._line(f"{name}: {done:,} of {total:,} files")

        return show

    def killed(self, pid: int, exit_code: int | None, done: int, total: int, record: JobRecord) -> None:
        """Say what the kill left behind."""
        self._line(
            f"✗ SIGKILL to process {pid} half-way, at {done / total:.0%} (its exit code: {exit_code}).", style="red"
        )
        told = Text("  It had no time to say so. Its row in the database still says: ").append_text(
            coloured(record.status)
        )
        told.append(f", attempt {record.attempt}, checkpoint {record.checkpoint_seq:,}.")
        self._console.print(told)
        self._line("  A new process is started on the same database. Nobody tells it what happened.")

    def tampered(self, path: Path) -> None:
        """Say which copy was damaged on purpose."""
        self._line(f"✗ One bit of {clean(path)} was changed on purpose (--tamper).", style="red")

    @contextmanager
    def checking(self, total: int) -> Iterator[None]:
        """Say that the copies are being compared."""
        if not self._console.is_terminal:
            yield
            return
        with self._console.status(f"comparing the checksums of {total:,} copies with those of their sources"):
            yield

    def close(self, found: Findings, problems: Sequence[str], folder: Path, every: int) -> None:
        """Show the verdict and the figures."""
        if found.resumed_at:
            self._line(
                f"✓ It went on by itself from checkpoint {found.resumed_at // every:,}, at file "
                f"{found.resumed_at + 1:,}, {seconds(found.resumed_after_s)} after the process was started.",
                style="green",
            )
        if not found.wrong:
            self._line(f"✓ All {found.files:,} copies have the checksum of their source (BLAKE2b).", style="green")
        self._line("")
        self._console.print(_summary(found))
        self._line("")
        for problem in problems[:SHOWN_PROBLEMS]:
            self._line(f"✗ {clean(problem)}", style="red")
        if len(problems) > SHOWN_PROBLEMS:
            self._line(f"✗ … and {len(problems) - SHOWN_PROBLEMS:,} more", style="red")
        if problems:
            self._line(f"The demonstration FAILED. All of it is in {clean(folder)}.", style="bold red")
        else:
            self._line("Killed half-way, nothing lost. Your own job: see examples/hello.py.", style="bold green")

    def _line(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style), soft_wrap=True)


def _summary(found: Findings) -> Table:
    share = found.copied_when_killed / found.files
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="left", style="cyan")
    table.add_column(justify="right", style="bold")
    table.add_column()
    rows = (
        ("files", f"{found.files:,}", size(found.size)),
        ("checkpoints", f"{found.final.checkpoint_seq:,}", "each one durable before the job went on"),
        ("killed at", f"{found.copied_when_killed:,}", f"files, {share:.0%}"),
        ("not done again", f"{found.kept:,}", "files, safe in the last checkpoint"),
        ("done again", f"{found.again:,}", "files, copied after the last checkpoint"),
        ("cut off", f"{found.cut:,}", "being copied at the moment of the kill: copied anew"),
        ("attempts", f"{found.final.attempt:,}", "of one job"),
        ("time to resume", seconds(found.resumed_after_s), "from starting a process to being back at work"),
        ("time in all", seconds(found.took_s), ""),
    )
    for row in rows:
        table.add_row(*(clean(cell) for cell in row))
    return table
