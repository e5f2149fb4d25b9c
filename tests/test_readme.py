"""The README is true: its program runs, and goes on after a kill."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = 400


def program() -> str:
    """The README's one Python block."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return str(block)


def test_the_program_resumes_after_a_kill(tmp_path: Path) -> None:
    """The README's program, killed once it has saved a checkpoint, goes on from there and finishes (G3)."""
    for number in range(FILES):
        (tmp_path / f"{number:04}.py").write_text("x = 1\n")
    (tmp_path / "program.txt").write_text(program())
    command = [sys.executable, "program.txt"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    child = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    reached = 0
    while child.poll() is None and reached < FILES // 4:
        reached = checkpoints(tmp_path / "jobs.db")
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    saved = checkpoints(tmp_path / "jobs.db")
    assert FILES // 4 <= saved < FILES

    again = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert again.stdout.split() == [str(FILES), "files"], again.stderr
    with sqlite3.connect(tmp_path / "jobs.db") as database:
        row = database.execute("SELECT status, attempt, checkpoint_seq FROM jobs").fetchone()
    assert row == ("completed", 2, FILES), "no file was done twice, none was left out"


def test_the_program_is_short() -> None:
    """The README shows a resumable job in about 25 lines of code."""
    lines = [line for line in program().splitlines() if line.strip()]
    assert len(lines) <= 30


def checkpoints(path: Path) -> int:
    """How many checkpoints the first job has, as a person would ask."""
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            row = database.execute("SELECT checkpoint_seq FROM jobs").fetchone()
    except sqlite3.OperationalError:
        return 0
    return row[0] if row else 0
