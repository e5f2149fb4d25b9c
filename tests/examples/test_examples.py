"""Every example runs as its docstring says, and shows what it is there to show."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def example(tmp_path):
    """Run an example in a folder that is the same for one test; answers its exit code and its lines."""

    def run(name: str) -> tuple[int, list[str]]:
        done = subprocess.run(
            [sys.executable, "-W", "error", ROOT / "examples" / name, tmp_path],
            check=False, capture_output=True, text=True, encoding="utf-8", timeout=120,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip
        assert done.stderr == "" or done.returncode > 0, done.stderr
        return done.returncode, done.stdout.splitlines()

    return run


def test_hello(example):
    """A job is defined, dispatched and awaited in a page."""
    assert example("hello.py") == (0, ["Hello, world!", "completed in attempt 1"])


def test_resume_after_kill(example):
    """Killed by a real SIGKILL, the job goes on from its last checkpoint in the next process, and is done once."""
    killed = (-signal.SIGKILL, ["killing this process after 57 numbers: run the same command again"])
    assert example("resume_after_kill.py") == killed

    answer = f"the sum is {sum(number**2 for number in range(100))}, in 2 attempts"
    resumed = "attempt 2 goes on from checkpoint 5: 50 numbers are done"
    assert example("resume_after_kill.py") == (0, [resumed, answer])
    assert example("resume_after_kill.py") == (0, [answer])


def test_order(example):
    """A job waits without a slot, is told why it does, goes on in later attempts, and charges the card once."""
    code, lines = example("order.py")
    assert code == 0
    assert lines.count("charging the card") == 1
    assert lines[2].startswith("it waits for the signal approval")
    assert lines[-3:] == ["approved by Ada", "a parcel with a book", "a parcel with a lamp"]


def test_by_name(example):
    """Good input runs; bad input is answered with the path of each field, state is refused, and the schema is shown."""
    code, lines = example("by_name.py")
    assert code == 0
    assert lines[0] == "done: 640×480.png"
    assert [line.split(": ")[:2] for line in lines[1:5]] == [
        ["refused", "width"], ["refused", "height"], ["refused", "format"], ["refused", "done"],
    ]  # fmt: skip
    assert "did you mean 'resize'?" in lines[5]
    assert lines[6] == "schema: {"
    assert '"done"' not in "".join(lines[6:])


def test_many_and_list(example):
    """Urgent jobs run first, and jobs are found by status, metadata and tag."""
    code, lines = example("many_and_list.py")
    assert code == 0
    assert lines == [
        "ran: db-1 (hyperv), db-2 (hyperv), web-1 (vsphere), web-2 (vsphere), web-3 (vsphere)",
        "failed: db-2 failed (db-2 doesn't answer)",
        "of vsphere: web-3 completed, web-2 completed, web-1 completed",
        "nightly, the newest two: db-2 failed (db-2 doesn't answer), db-1 completed",
        "5 jobs, 4 completed, 1 failed: 80% success",
    ]


def test_blocking(example):
    """A handler that blocks leaves the loop free: its progress is followed while it runs, to the end."""
    code, lines = example("blocking.py")
    assert code == 0
    assert lines[-2] == "100% round 20"
    assert len(lines) > 3
    assert lines[-1].endswith("… after 20 checkpoints, progress seen: True")


def test_in_a_sync_program(example):
    """Threads of a program without async dispatch and wait, each for its own answer; progress is a plain loop."""
    code, lines = example("in_a_sync_program.py")
    assert code == 0
    assert lines == [
        "Ada: 20 words", "Grace Hopper: 30 words", "Linus: 20 words", "20 of 20 pages, 60 words", "4 jobs are done",
    ]  # fmt: skip


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_one_short_page(path):
    """An example fits on a page, explains itself, is run by a test, and uses nothing of jobkit but its public names."""
    text = path.read_text()
    assert text.startswith('"""')
    assert len(text.splitlines()) <= 60
    assert "from jobkit." not in text
    assert f"def test_{path.stem}(" in Path(__file__).read_text()
