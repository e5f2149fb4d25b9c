"""What the children write outside the database, and where they wait for the test.

Handlers write to `effects.log`, clients to `client.log`, each line with one `os.write` to a file opened with O_APPEND,
so that a line is whole or missing and lines stand in the order in which things happened, over all processes. What
jobkit has promised by returning is written after it has returned. Each line tells by whom it was written and when, in
seconds by the one monotonic clock of the machine.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Final


class Log:
    """Lines that outlive the process."""

    def __init__(self) -> None:
        self._file = -1
        self._pipe: int | None = None
        self._told = b""

    def begin(self, path: Path, pipe: int | None, weight: int) -> None:
        """Write to a file from now on, and tell a pipe of each line."""
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._pipe, self._told = pipe, b"." * weight

    def __call__(self, what: str, **facts: object) -> None:
        """Write a line."""
        line = {"what": what, "pid": os.getpid(), "t": time.monotonic(), **facts}
        os.write(self._file, json.dumps(line).encode() + b"\n")
        if self._pipe is not None:
            try:
                os.write(self._pipe, self._told)
            except BrokenPipeError:  # nobody listens any more
                self._pipe = None


effects: Final = Log()
client: Final = Log()


class Place:
    """Where the database, the logs and the gate are."""

    folder: Path

    def begin(self, folder: Path, pipe: str | None, weight: int) -> None:
        """Come to a folder."""
        self.folder = folder
        told = None if pipe is None else _opened(pipe)
        effects.begin(folder / "effects.log", told, weight)
        client.begin(folder / "client.log", told, weight)

    def pass_gate(self) -> None:
        """Wait, in a thread, for as long as the test keeps the gate shut: the kernel wakes who waits."""
        gate = os.open(self.folder / "gate", os.O_RDONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(gate, fcntl.LOCK_SH)
        finally:
            os.close(gate)


place: Final = Place()


def _opened(pipe: str) -> int | None:
    """Open a pipe for writing; None if nobody listens."""
    try:
        opened = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None
    os.set_blocking(opened, True)
    return opened
