"""The long copy: what its README tells people to type is typed, at three terminals, and what they see is true."""

from __future__ import annotations

import re
import shutil
import sqlite3
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cli.processes import ROOT, Terminal

EXAMPLE = ROOT / "examples" / "long_copy"
FILES = 2_000
EVERY = 10
SHOWN = re.compile(r"\d% +([\d,]+) of 2,000 files")


class Walk:
    """The README's commands, taken one after another."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._left = re.findall(r"^\$ (.*)$", (EXAMPLE / "README.md").read_text(), re.MULTILINE)
        self.known = {"60": "25"}  # a person is given more time

    def type(self, terminal: Terminal, command: str) -> None:
        """Type the next command, which is this one, with what is known put in its places."""
        assert self._left.pop(0) == command, "the README says something else"
        for word, meaning in self.known.items():
            command = re.sub(rf"\b{word}\b", meaning, command)
        terminal.type(command)

    def is_over(self) -> bool:
        """Whether all of the README was typed."""
        return not self._left

    def copied(self) -> int:
        """How many files are there."""
        return sum(path.is_file() and path.suffix != ".part" for path in (self._folder / "copy").rglob("*"))

    def saved(self) -> int:
        """How many files the last checkpoint knows."""
        with closing(sqlite3.connect(f"file:{self._folder / 'jobs.db'}?mode=ro", uri=True)) as database:
            (checkpoints,) = database.execute("SELECT checkpoint_seq FROM jobs").fetchone()
        return int(checkpoints) * EVERY


@pytest.fixture
def folder(tmp_path):
    """A copy of the example's folder."""
    shutil.copytree(EXAMPLE, tmp_path / "long_copy", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "long_copy"


def shown(screen: str) -> list[int]:
    """The numbers of files that were shown, in order."""
    return [int(found[1].replace(",", "")) for found in SHOWN.finditer(screen)]


def until_shown(watching: Terminal, files: int) -> None:
    """Look at `jobkit watch` until it shows so many files or more."""
    while shown(watching.until(SHOWN.pattern)[0])[0] < files:
        pass


def test_the_walk(folder):
    """G3, G8: paused, killed, restarted and resumed, the copy goes on where it was, and every figure shown is so."""
    walk = Walk(folder)
    with ExitStack() as desk:
        working, watching, asking = (desk.enter_context(Terminal(folder)) for _ in range(3))

        walk.type(working, "python copying.py 60")
        job_id = walk.known["ID"] = working.until(r"dispatched copy_tree ([0-9a-f-]{36}): 2,000 files")[1]
        walk.type(watching, "jobkit watch ID")
        watching.until("queued.*  attempt 0, checkpoint 0")
        walk.type(working, "jobkit worker")
        walk.known["PID"] = working.until(r"worker .*, process (\d+), on jobs.db, runs copy_tree\r")[1]
        watching.until("running.*  attempt 1, ")
        until_shown(watching, 100)

        # paused: the figure shown is the number of files, which is what the checkpoint knows
        walk.type(asking, "jobkit pause --wait ID")
        asking.until(f"{job_id} is paused until `jobkit resume`, or the next start of a worker\r")
        walk.type(asking, "find copy -type f | wc -l")
        paused_at = int(asking.until(r"\b(\d+)\r")[1])
        assert paused_at == walk.copied() == walk.saved()
        watching.until("paused.*  attempt 1, ")
        assert shown(watching.until(SHOWN.pattern)[0]) == [paused_at]
        walk.type(asking, "jobkit resume ID")
        watching.until("running.*  attempt 2, ")
        until_shown(watching, paused_at + 100)

        # killed: what was shown is not more than is there
        walk.type(asking, "kill -9 PID")
        working.until("Killed")
        there, saved = walk.copied(), walk.saved()
        killed_at = len(watching.said)
        assert saved <= there < saved + EVERY
        assert max(shown(watching.said)) <= there

        # restarted: by itself it goes on at the last checkpoint
        walk.type(working, "jobkit worker")
        watching.until("running.*  attempt 3, ")
        until_shown(watching, there + 100)
        assert min(shown(watching.said[killed_at:])) >= saved

        # a pause that lasts: stopped in order and started again, it still waits
        walk.type(asking, "jobkit pause --wait --across-restarts ID")
        asking.until(f"{job_id} is paused until `jobkit resume`\r")
        paused_at = walk.saved()
        working.ctrl_c()
        working.until("every running job was saved")
        walk.type(working, "jobkit worker")
        working.until("runs copy_tree\r")
        walk.type(asking, "jobkit resume ID")
        asking.until(f"{job_id} goes on")
        watching.until("running.*  attempt 4, ")
        assert shown(watching.until(SHOWN.pattern)[0])[0] >= paused_at

        # compared
        watching.until("completed.*  attempt 4, checkpoint 200")
        working.ctrl_c()
        working.until("every running job was saved")
        walk.type(asking, "(cd tree && find . -type f -exec sha256sum {} +) > sums")
        walk.type(asking, "(cd copy && sha256sum --quiet --check ../sums) && echo every checksum fits")
        asking.until(r"(?<!echo )every checksum fits\r")

    assert walk.is_over()
    figures = shown(watching.said)
    assert figures[-1] == walk.copied() == FILES
    back = [(one, next_one) for one, next_one in pairwise(figures) if next_one < one]
    assert len(back) <= 1, "only the kill may set a figure back"
    assert all(next_one >= saved for _, next_one in back)
    assert re.findall(r"started, attempt (\d)", working.said) == ["1", "2", "3", "4"]


def test_the_example_explains_itself():
    """Its module is short, opens with a docstring, and uses nothing of jobkit but its public names."""
    text = (EXAMPLE / "copying.py").read_text()
    assert text.startswith('"""')
    assert len(text.splitlines()) <= 60
    assert "from jobkit." not in text
