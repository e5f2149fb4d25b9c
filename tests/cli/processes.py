"""The program as its users start it: in the background, or typed at a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]

COMMAND = (sys.executable, "-W", "error", "-m", "jobkit.cli")

DEADLINE_S = 60.0
"""How long anything here may take before it counts as hanging."""

SIZE = struct.pack("4H", 24, 100, 0, 0)
"""A terminal of 24 lines and 100 columns."""


def environment(**extra: str) -> dict[str, str]:
    """Make an environment in which nothing of the caller's own says how to print or which database to use."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("JOBKIT_")
        and name not in {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LOG_LEVEL", "TTY_COMPATIBLE"}
    }
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "TERM": "xterm-256color"} | extra


class Heard:
    """What comes out of a file descriptor, read by a thread as it comes."""

    def __init__(self, source: int) -> None:
        self.said = ""
        self._told = 0
        self._more = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._listen, args=(source,), daemon=True)
        self._thread.start()

    def _listen(self, source: int) -> None:
        try:
            while chunk := os.read(source, 65536):
                with self._more:
                    self.said += chunk.decode(errors="replace")
                    self._more.notify_all()
        except OSError:  # how Linux says that the other side of a terminal has closed it
            pass
        os.close(source)
        with self._more:
            self._over = True
            self._more.notify_all()

    def until(self, pattern: str) -> re.Match[str]:
        """Wait until this is said, after what was waited for before."""
        expression = re.compile(pattern)
        with self._more:
            self._more.wait_for(lambda: self._over or expression.search(self.said, self._told), DEADLINE_S)
            found = expression.search(self.said, self._told)
            assert found, f"{pattern!r} was not said, but: {self.said[self._told :]}"
            self._told = found.end()
        return found

    def silent(self, seconds: float) -> bool:
        """Tell whether nothing more is said for so long."""
        with self._more:
            before = len(self.said)
            return not self._more.wait_for(lambda: self._over or len(self.said) > before, seconds)

    def to_the_end(self) -> str:
        """Wait until all is said."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), f"there is no end to it: {self.said}"
        return self.said


class Program:
    """`jobkit` in the background, what it prints heard as one. A context manager, which it doesn't outlive."""

    def __init__(self, *arguments: object, folder: Path, **extra: str) -> None:
        ours, theirs = os.pipe()
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, cwd=folder, env=environment(**extra),
        )  # fmt: skip
        os.close(theirs)
        self.heard = Heard(ours)
        self.until, self.silent, self.send = self.heard.until, self.heard.silent, self.process.send_signal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)
        self.heard.to_the_end()

    def comes_to(self, point: Callable[[], bool]) -> None:
        """Look again and again whether it has come to a point that it doesn't tell of."""
        latest = time.monotonic() + DEADLINE_S
        while not point():
            assert self.process.poll() is None, self.heard.said
            assert time.monotonic() < latest, self.heard.said

    def ended(self) -> tuple[int, str]:
        """Wait for its end; answer its exit code and all that it said."""
        code = self.process.wait(DEADLINE_S)
        return code, self.heard.to_the_end()


class Terminal:
    """A terminal with a shell in it, whose foreground process Ctrl-C reaches. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, SIZE)
        scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.shell = subprocess.Popen(
            # A session's first terminal becomes the one that it is controlled by, once somebody opens it by name.
            ["bash", "-c", f"exec bash --noprofile --norc --noediting -i <>{os.ttyname(theirs)} >&0 2>&0"],
            stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, cwd=folder, start_new_session=True,
            env=environment(PATH=scripts, HISTFILE="", PYTHONWARNINGS="error"),
        )  # fmt: skip
        os.close(theirs)
        self._heard = Heard(os.dup(self._ours))
        self.until = self._heard.until

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shell.kill()  # a terminal whose shell is gone hangs up on what runs there
        self.shell.wait(DEADLINE_S)
        self._heard.to_the_end()
        os.close(self._ours)

    @property
    def said(self) -> str:
        """All that was shown so far."""
        return self._heard.said

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._ours, f"{line}\n".encode())

    def ctrl_c(self) -> None:
        """Press Ctrl-C."""
        os.write(self._ours, b"\x03")
