"""`jobkit list`: for people, for programs, and its filters."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import pytest

COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|9[0-7])[0-9;]*m")


def names(done):
    """Read the names, and for greetings whom they are for, out of --jsonl."""
    assert (done.returncode, done.stderr) == (0, "")
    return [one["params"].get("name", one["name"]) for one in map(json.loads, done.stdout.splitlines())]


def test_the_table_is_plain_in_a_pipe(jobkit, database):
    """In a pipe there is a line for each job, newest first, with whole ids and without one escape code."""
    done = jobkit("list", "--database", database)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["ID", "STATUS", "NAME", "LABEL", "QUEUE", "PROGRESS", "ATTEMPT", "TOOK", "CREATED"]
    assert [line.split()[1:3] for line in lines] == [
        ["queued", "someday"], ["queued", "someday"], ["failed", "stumble"],
        ["completed", "greet"], ["completed", "greet"], ["completed", "greet"],
    ]  # fmt: skip
    assert all(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", line.split()[0]) for line in lines)


def test_what_a_job_holds_is_shown_and_not_obeyed(jobkit, at_a_terminal, database):
    """A label with mark-up or control sequences is shown as it is written, in a pipe and at a terminal."""
    for shown in (jobkit("list", "--database", database).stdout, at_a_terminal("list", "--database", database)):
        assert "[red]wild[/red] \N{REPLACEMENT CHARACTER}[31m" in shown


def test_a_terminal_gets_colour_unless_no_color_is_set(at_a_terminal, database):
    """At a terminal statuses are coloured; NO_COLOR takes the colours away."""
    assert COLOUR.search(at_a_terminal("list", "--database", database))
    assert not COLOUR.search(at_a_terminal("list", "--database", database, NO_COLOR="1"))


def test_json_is_an_array_of_records(jobkit, database):
    """--json is one array; a record has the fields of JobRecord, secrets masked."""
    done = jobkit("list", "--json", "--database", database)
    records = json.loads(done.stdout)
    assert (done.returncode, done.stderr, len(records)) == (0, "", 6)
    eve = records[3]
    assert eve["params"]["name"] == "[red]Eve[/red]"
    assert eve["output"] == {"greeting": "Hello, [red]Eve[/red]!"}
    assert eve["progress"]["fraction"] == 0.75
    assert datetime.fromisoformat(eve["created_at"]).tzinfo == UTC
    assert records[2]["error"]["type"] == "LookupError"
    assert "hunter2" not in done.stdout


def test_ls_is_list(jobkit, database):
    """`ls` is `list`."""
    assert len(names(jobkit("ls", "--jsonl", "--database", database))) == 6


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--status", "failed"], ["stumble"]),
        (["--status", "failed,queued"], ["someday", "someday", "stumble"]),
        (["--status", "failed", "--status", "PENDING"], ["someday", "someday", "stumble"]),
        (["--name", "greet", "--user", "ada"], ["Grace", "Ada"]),
        (["--queue", "slow"], ["someday", "someday"]),
        (["--tag", "nightly"], ["Grace", "Ada"]),
        (["--metadata", "provider=vsphere"], ["Grace", "Ada"]),
        (["--metadata", "provider=hyperv"], []),
        (["--text", "stum"], ["stumble"]),
        (["--text", "street"], ["stumble"]),
        (["--since", "1h", "--name", "stumble"], ["stumble"]),
        (["--until", "1h"], []),
        (["--since", "2000-01-01", "--until", "2000-01-01T12:00+02:00"], []),
        (["--limit", "1", "--status", "failed"], ["stumble"]),
    ],
)
def test_filters(in_process, database, options, found):
    """Every filter leaves the jobs that match; several values of one are alternatives, several filters all hold."""
    assert names(in_process("list", "--jsonl", "--database", database, *options)) == found


def test_a_cursor_goes_on(jobkit, database):
    """What didn't fit is announced on stderr with a cursor, and each job comes once."""
    seen: list[str] = []
    more: list[str] = []
    while True:
        done = jobkit("list", "--jsonl", "--limit", "4", "--database", database, *more)
        assert done.returncode == 0
        seen += [json.loads(line)["id"] for line in done.stdout.splitlines()]
        if not done.stderr:
            break
        more = done.stderr.split()[-2:]
        assert more[0] == "--cursor"
    assert len(seen) == len(set(seen)) == 6


def test_nothing_found_is_said(jobkit, database):
    """An empty answer is a sentence for people and an empty array for programs; neither is an error."""
    for options, shown in (((), "No job matches.\n"), (("--json",), "[]\n"), (("--jsonl",), "")):
        done = jobkit("list", "--database", database, "--name", "nothing", *options)
        assert (done.returncode, done.stdout, done.stderr) == (0, shown, "")


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--status", "sleeping"], "timed_out"),
        (["--metadata", "provider"], "key=value"),
        (["--since", "yesterday"], "2h"),
        (["--limit", "0"], "1000"),
        (["--cursor", "xyz"], "cursor"),
        (["--status", ","], "at least one value"),
        (["--json", "--jsonl"], "take one"),
    ],
)
def test_a_wrong_filter_is_one_line_and_exit_code_2(in_process, database, options, hint):
    """A filter that can't be meant is refused in one line that says what can be, and never ignored."""
    done = in_process("list", "--database", database, *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert hint in done.stderr


@pytest.mark.parametrize("form", ["folder", "url", "setting", "ahead"])
def test_a_database_can_be_named_in_every_way(jobkit, database, form, tmp_path):
    """A folder, a URL, a setting, and the option before the command all lead to the same jobs."""
    plain = tmp_path / "jobs.db"
    plain.symlink_to(database)
    done = {
        "folder": lambda: jobkit("list", "--jsonl", "--database", tmp_path),
        "url": lambda: jobkit("list", "--jsonl", "--database", f"sqlite:///{database}"),
        "setting": lambda: jobkit("list", "--jsonl", JOBKIT_SQLITE_PATH=str(database)),
        "ahead": lambda: jobkit("--database", database, "list", "--jsonl"),
    }[form]()
    assert len(names(done)) == 6
