"""`jobkit show`: one job, for people and for programs."""

from __future__ import annotations

import json
import uuid

import pytest


@pytest.fixture
def ids(in_process, database):
    """The ids of all jobs by name; of several of one name, the newest."""
    records = json.loads(in_process("list", "--json", "--database", database).stdout)
    return {one["name"]: one["id"] for one in reversed(records)}


def test_a_completed_job(jobkit, database, ids):
    """People see status, progress, times, parameters, output and events; secrets are masked, and no code escapes."""
    done = jobkit("show", ids["greet"], "--database", database)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("greet  completed\nGreet somebody.\n")
    for shown in (
        ids["greet"], "75%  3 of 4 words  nearly there", "created", "completed", "checkpoints", "Parameters",
        "[red]Eve[/red]", "*****", "Output", "Hello, [red]Eve[/red]!", "Events", "started",
    ):  # fmt: skip
        assert shown in done.stdout
    assert "hunter2" not in done.stdout
    assert "\x1b" not in done.stdout


def test_a_failed_job(jobkit, database, ids):
    """A failure is shown with its traceback, in full and harmless; reading it is no failure."""
    done = jobkit("show", ids["stumble"], "--database", database)
    assert (done.returncode, done.stderr) == (0, "")
    assert "LookupError: no such [bold]street[/bold] " in done.stdout
    assert "Traceback (most recent call last):" in done.stdout
    assert "\x1b" not in done.stdout


def test_an_unfinished_job(jobkit, database, ids):
    """A job that waits is shown with the events that it has; nobody waits for more."""
    done = jobkit("show", ids["someday"], "--database", database)
    assert done.returncode == 0
    assert done.stdout.startswith("someday  queued\n")
    assert "created" in done.stdout.partition("Events")[2]


def test_json(jobkit, database, ids):
    """--json is the whole record with its events."""
    done = jobkit("show", ids["greet"], "--json", "--database", database)
    record = json.loads(done.stdout)
    assert record["id"] == ids["greet"]
    assert record["output"] == {"greeting": "Hello, [red]Eve[/red]!"}
    types = [one["type"] for one in record["events"]]
    assert (types[0], types[-1]) == ("created", "completed")
    assert [one["seq"] for one in record["events"]] == list(range(1, len(record["events"]) + 1))
    assert "hunter2" not in done.stdout


def test_an_id_may_be_shortened(in_process, database, ids):
    """The beginning of an id is enough if it is the only one, with or without hyphens, in any case."""
    whole = ids["greet"]
    for typed in (whole, whole.upper(), whole[:-2], whole[:-2].replace("-", "")):
        done = in_process("show", typed, "--json", "--database", database)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["id"] == whole


def test_an_id_that_fits_several_is_refused_with_all_of_them(jobkit, database, ids):
    """Too little of an id is answered with the ids that it could be, and exit code 2."""
    done = jobkit("show", ids["greet"][:4], "--database", database)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "give more of it" in done.stderr


@pytest.mark.parametrize("typed", [str(uuid.UUID(int=5 << 100)), "ffff"])
def test_no_such_job(jobkit, database, typed):
    """An id that no job has, whole or in part, is exit code 4."""
    done = jobkit("show", typed, "--database", database)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (4, "", 1)


def test_what_is_no_id(jobkit, database):
    """A word that can't be an id is wrong usage, exit code 2, and says what an id is."""
    done = jobkit("show", "greet", "--database", database)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "jobkit list" in done.stderr
