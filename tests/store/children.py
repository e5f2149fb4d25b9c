"""Other processes, for tests of what happens between processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60


class Child:
    """A Python process that runs a script; it speaks by lines on its standard output and is spoken to by its input.

    In the script, `say(word)` prints a line and `hear()` waits for one; `args` are its arguments.
    """

    PRELUDE = (
        "import sys\n"
        "args = sys.argv[1:]\n"
        "def say(word): print(word, flush=True)\n"
        "def hear(): return sys.stdin.readline().strip()\n"
    )

    def __init__(self, script: str, *args: object, before: tuple[str, ...] = ()) -> None:
        command = [*before, sys.executable, "-W", "error", "-c", self.PRELUDE + script, *map(str, args)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )

    def __del__(self) -> None:
        """Leave nothing running when a test has failed half-way."""
        if self.process.returncode is None:
            self.kill()

    def hears(self, word: str) -> Self:
        """Tell it something."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self

    def says(self) -> str:
        """Wait for its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.kill()
            _, error = self.process.communicate(timeout=DEADLINE_S)
            raise AssertionError(f"it ended with {self.process.returncode}:\n{error}")
        return line.strip()

    def kill(self) -> None:
        """Have it killed, without a chance to tidy up."""
        self.process.kill()
        self.process.communicate(timeout=DEADLINE_S)

    def ends(self) -> list[str]:
        """Wait for its end, which must be a good one, and answer what it still said."""
        output, error = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, error
        assert not error
        return output.split("\n")[:-1]
