"""The program as a whole: help, usage, missing parts, missing databases, time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobkit.cli.commands import COMMANDS

ROOT = Path(__file__).parents[2]
HEAVY = {"anyio", "asyncio", "cyclopts", "pydantic", "rich", "sqlalchemy"}


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_command(jobkit, arguments):
    """Whoever types `jobkit`, with or without --help, is told what it can do."""
    done = jobkit(*arguments)
    assert done.returncode == 0
    assert done.stderr == ""
    named = [", ".join(command.names) for command in COMMANDS]
    assert {"demo", "worker", "list, ls", "watch", "rm"} < set(named)
    assert all(f"\n  {name} " in done.stdout for name in [*named, "--database", "--version"])
    for code in ("7 time-out", "130 interrupted"):
        assert code in done.stdout


@pytest.mark.parametrize("command", [name for command in COMMANDS for name in command.names])
def test_each_command_explains_itself(jobkit, command):
    """--help after a command lists its options, and does nothing else."""
    done = jobkit(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: jobkit {command}")
    assert "--tree" not in done.stdout


def test_version(jobkit):
    """--version is the release, on one line."""
    done = jobkit("--version")
    assert (done.returncode, done.stdout) == (0, "jobkit 0.1.0\n")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("lst",), "list"),
        (("list", "--statsu", "x"), "--status"),
        (("show",), "ID"),
        (("list", "--limit", "many"), "--limit"),
        (("--frobnicate",), "--frobnicate"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(jobkit, arguments, hint):
    """A mistyped command is answered with one line that helps, never with a traceback."""
    done = jobkit(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("jobkit: ")
    assert done.stderr.count("\n") == 1
    assert hint in done.stderr
    assert "--help" in done.stderr


@pytest.mark.parametrize("command", [("list",), ("show", "0199"), ("watch", "0199"), ("cancel", "0199")])
@pytest.mark.parametrize("given", [(), ("--database", "nowhere.db"), ("--database", "sqlite:///nowhere.db")])
def test_looking_makes_no_database(jobkit, tmp_path, command, given):
    """A command that reads never leaves a database behind: a mistyped path is told, with exit code 3."""
    done = jobkit(*command, *given)
    assert done.returncode == 3
    assert done.stderr.startswith("jobkit: no jobs yet: ")
    assert done.stderr.count("\n") == 1
    assert "--database" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_stays_empty(jobkit, tmp_path):
    """An empty file is no database yet: it is told as a missing one is, and stays as it is."""
    file = tmp_path / "empty.db"
    file.touch()
    done = jobkit("list", "--database", file)
    assert done.returncode == 3
    assert "no jobs yet" in done.stderr
    assert [(one.name, one.stat().st_size) for one in tmp_path.iterdir()] == [("empty.db", 0)]


def test_what_is_no_database_is_told_and_left_alone(jobkit, tmp_path):
    """A file that is something else is told in one line, with exit code 3, and not a byte of it is changed."""
    file = tmp_path / "letter.txt"
    file.write_text("Dear Ada, " * 200)
    done = jobkit("list", "--database", file)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "not a SQLite database" in done.stderr
    assert file.read_text() == "Dear Ada, " * 200


def test_a_wrong_setting_is_one_line(jobkit):
    """A setting that can't be used is told with where it comes from, with exit code 3."""
    done = jobkit("list", JOBKIT_CONCURRENCY="many")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "JOBKIT_CONCURRENCY" in done.stderr


def test_a_missing_extra_is_named(tmp_path):
    """Without cyclopts and rich the program says in one line what to install, and ends with exit code 3."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "jobkit.cli", "list"],  # -S: without any installed package
        check=False, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr == "jobkit: the command line needs cyclopts and rich: pip install 'jobkit-py[cli]'\n"


def test_a_reader_that_leaves_early_is_no_error(database, tmp_path):
    """`jobkit list | head -1` ends quietly."""
    command = f'"{sys.executable}" -m jobkit.cli list --jsonl --database "{database}" | true; echo "${{PIPESTATUS[0]}}"'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", command], check=True, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_help_loads_nothing_heavy(tmp_path):
    """`jobkit --help` loads no library, so that it answers at once on any machine."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "jobkit.cli", "--help"],
        check=True, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, timeout=60,
    )  # fmt: skip
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "jobkit" in loaded
    assert loaded & HEAVY == set()


def test_help_answers_within_200_ms(tmp_path):
    """`jobkit --help` takes less than 200 ms more than starting Python does."""

    def best_of_five(*arguments: str) -> float:
        took = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, *arguments],
                check=True, stdout=subprocess.DEVNULL, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, timeout=60,
            )  # fmt: skip
            took.append(time.perf_counter() - began)
        return min(took)

    assert best_of_five("-m", "jobkit.cli", "--help") - best_of_five("-c", "pass") < 0.2
