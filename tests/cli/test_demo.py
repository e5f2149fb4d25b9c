"""`jobkit demo`: it shows what it says, it can fail, and it leaves no process behind."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = 600
EVERY = 5
"""How many files there are between two checkpoints, as the program itself says."""


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """A folder of small files, enough that the job isn't done before it can be killed."""
    root = tmp_path_factory.mktemp("tree")
    for number in range(FILES):
        folder = root / f"part {number % 7}"
        folder.mkdir(exist_ok=True)
        (folder / f"file {number}").write_bytes(bytes([number % 256]) * (number * 37))
    return root


def test_the_job_survives_the_kill(jobkit, tree, tmp_path):
    """Killed half-way, the job goes on from its last checkpoint: nothing before it is done again, all copies fit."""
    done = jobkit("demo", "--tree", tree, "--folder", tmp_path / "kept")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert f"a checkpoint after every {EVERY} files" in done.stdout
    assert "SIGKILL to process" in done.stdout
    assert "(its exit code: -9)" in done.stdout
    assert "still says: running, attempt 1, checkpoint" in done.stdout

    def figure(name: str) -> int:
        found = re.search(rf"^{name} +([\d,]+)  ", done.stdout, re.MULTILINE)
        assert found, f"{name} is missing in the summary"
        return int(found[1].replace(",", ""))

    assert figure("files") == FILES
    assert figure("checkpoints") == FILES // EVERY
    assert FILES / 2 <= figure("killed at") < FILES
    assert figure("not done again") + figure("done again") == figure("killed at")
    assert figure("not done again") % EVERY == 0
    assert figure("done again") <= EVERY
    assert figure("cut off") <= 1
    assert figure("attempts") == 2
    assert f"All {FILES} copies have the checksum of their source" in done.stdout

    begun = [line.split()[2] for line in (tmp_path / "kept/effects.log").read_text().splitlines() if "begin" in line]
    assert len(begun) - len(set(begun)) == figure("done again") + figure("cut off")


def test_the_kept_folder_can_be_looked_at(jobkit, tree, tmp_path):
    """With --folder the database stays, and shows one job that was started twice."""
    assert jobkit("demo", "--tree", tree, "--folder", tmp_path / "kept").returncode == 0
    listed = jobkit("list", "--database", tmp_path / "kept")
    assert re.search(r"completed +file_copy .* 100% +2 ", listed.stdout)


def test_a_damaged_copy_is_found(jobkit, tree, tmp_path):
    """One changed bit in one copy makes the demonstration fail: the comparison is real."""
    done = jobkit("demo", "--tree", tree, "--tamper", TMPDIR=str(tmp_path))
    assert done.returncode == 1
    assert "the copy's checksum is not the source's" in done.stdout
    assert "FAILED" in done.stdout
    assert "copies have the checksum" not in done.stdout


def test_a_temporary_folder_is_removed(jobkit, tree, tmp_path):
    """Without --folder nothing stays behind."""
    assert jobkit("demo", "--tree", tree, TMPDIR=str(tmp_path)).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_gets_a_bar(at_a_terminal, tree):
    """At a terminal both processes have a progress bar, and the second one reaches the end."""
    shown = at_a_terminal("demo", "--tree", tree)
    assert "━" in shown
    assert re.search(rf"{FILES}/{FILES}.*files", shown)


def test_a_folder_in_use_is_left_alone(jobkit, tree, tmp_path):
    """A folder that holds something is refused with exit code 2, and nothing is written into it."""
    (tmp_path / "mine").write_text("precious")
    done = jobkit("demo", "--tree", tree, "--folder", tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert [one.name for one in tmp_path.iterdir()] == ["mine"]


def test_a_tree_too_small_is_refused(jobkit, tmp_path):
    """A folder without enough files to be killed half-way is refused with exit code 2."""
    (tmp_path / "few").mkdir()
    done = jobkit("demo", "--tree", tmp_path / "few")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda sent: sent.name)
def test_the_worker_dies_with_the_demonstration(tree, tmp_path, sent):
    """Interrupted, asked to end, or killed itself, the demonstration leaves no worker behind."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jobkit.cli", "demo", "--tree", str(tree)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        found = next(found for line in process.stdout if (found := re.match(r"process (\d+): ", line)))
        worker = os.pidfd_open(int(found[1]))
        process.send_signal(sent)
        assert select.select([worker], [], [], 60)[0], "the worker still lives"
        os.close(worker)
        _, said = process.communicate(timeout=60)
    if sent is signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert (process.returncode, said) == (130, "jobkit: interrupted\n")
        assert list(tmp_path.iterdir()) == []
