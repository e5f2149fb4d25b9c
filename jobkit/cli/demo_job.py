"""The demonstration's job: copies files, each one whole or not at all, and goes on from its last checkpoint.

It is an ordinary job. One thing in it is for the demonstration: it notes, in a file of its own outside the database,
what it really did. The database can't be asked how often a file was copied, for it knows nothing of the work that was
done after the last checkpoint.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Final, NamedTuple, Self

from pydantic import BaseModel

from jobkit import BlockingJobContext, Job, Registry, job, state

EVERY: Final = 5
"""How many files there are between two checkpoints. Fewer: less is done again after a crash; more: it runs faster."""

COPIES: Final = Registry()
"""A registry of its own: whatever else is installed can't stand in the way of the demonstration."""


class CopyReport(BaseModel):
    """What was copied."""

    files: int
    total_bytes: int


@job("file_copy", registry=COPIES)
class FileCopy(Job[CopyReport]):
    """Copy files from one folder to another."""

    root: Path
    sources: list[Path]
    destination: Path
    effects: Path
    done: int = state(0)
    total_bytes: int = state(0)

    def run(self, ctx: BlockingJobContext) -> CopyReport:
        """Copy every file that isn't done."""
        with Effects(self.effects) as effects:
            effects.note("enter", ctx.attempt, self.done)
            while self.done < len(self.sources):
                source = self.sources[self.done]
                effects.note("begin", ctx.attempt, self.done)
                self.total_bytes += copy_atomically(self.root / source, self.destination / source)
                effects.note("copied", ctx.attempt, self.done)
                self.done += 1
                ctx.progress(completed=self.done, total=len(self.sources), unit="files", message=str(source))
                if self.done % EVERY == 0:
                    ctx.checkpoint()
        return CopyReport(files=self.done, total_bytes=self.total_bytes)


def copy_atomically(source: Path, destination: Path) -> int:
    """Copy a file so that under its name there is always all of it or nothing, even after a power cut.

    Args:
        source: The file.
        destination: Its copy; replaced if it is there.

    Returns:
        Its size, in bytes.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(f"{destination.name}.part")
    with source.open("rb") as reader, part.open("wb") as writer:
        shutil.copyfileobj(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())
        copied = writer.tell()
    part.replace(destination)
    folder = os.open(destination.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the checkpoint will say that this file is done, so its name must be on the disk before
    finally:
        os.close(folder)
    return copied


# ── what was really done ──


class Effect(NamedTuple):
    """A line of the log: in which attempt, at which file, and when (monotonic seconds, the same in every process)."""

    what: str
    attempt: int
    file: int
    at_s: float


class Effects:
    """A log that outlives the process: each line is one appending write, so that a SIGKILL can't tear it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def note(self, what: str, attempt: int, file: int) -> None:
        """Append a line."""
        os.write(self._file, f"{what} {attempt} {file} {time.monotonic()}\n".encode())

    @staticmethod
    def read(path: Path) -> list[Effect]:
        """Read the whole log."""
        lines = (line.split() for line in path.read_text("ascii").splitlines()) if path.exists() else ()
        return [Effect(what, int(attempt), int(file), float(at)) for what, attempt, file, at in lines]
