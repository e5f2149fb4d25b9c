"""The page about a job's life says what the transition table says."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any, Final

import pytest

from jobkit.lifecycle import TABLE, Trigger
from jobkit.model import JobStatus

DOCS: Final = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """The names that docs/lifecycle.py defines; reading them writes nothing."""
    return runpy.run_path(str(DOCS / "lifecycle.py"))


def test_page_is_up_to_date(script):
    """docs/lifecycle.md is what the table generates today: nobody reads of a transition that no longer exists."""
    page = DOCS / "lifecycle.md"
    written = page.read_text(encoding="utf-8") if page.exists() else None
    if written != script["render"]():
        pytest.fail(f"docs/lifecycle.md is {'stale' if written else 'missing'}: run `python docs/lifecycle.py`")


def test_page_says_that_it_is_generated(script):
    """The page opens with where it comes from and how it is made, so that nobody edits it by hand."""
    first = script["render"]().splitlines()[0]
    assert "Generated from jobkit/lifecycle.py" in first
    assert "`python docs/lifecycle.py`" in first


def test_diagram_shows_every_move(script):
    """Each move of the table is an arrow of the diagram that bears its trigger, and no arrow is made up."""
    arrows = {}
    for line in list(script["diagram"]())[1:]:
        ends, _, label = line.strip().partition(": ")
        source, _, target = ends.partition(" --> ")
        assert (source, target) not in arrows
        arrows[source, target] = label.split(", ")
    for trigger in Trigger:
        for status in JobStatus:
            cell = TABLE[trigger][status]
            drawn = {target for target in JobStatus if trigger.value in arrows.get((status.value, target.value), [])}
            assert drawn == (set(cell.targets) - {status} if cell.answer == "move" else set())


def test_table_shows_every_cell(script):
    """The table has a row for each trigger and a column for each status; the terminal ones share one."""
    head, _, *rows = script["table"]()
    names = [name.strip() for name in head.split("|")[2:-1]]
    assert names == ["scheduled", "waiting", "queued", "assigned", "running", "paused", "held", "*terminal*"]
    assert [row.split("|")[1].strip(" *") for row in rows] == [trigger.value for trigger in Trigger]
    assert all(row.count("|") == head.count("|") for row in rows)
    claim = next(row for row in rows if row.startswith("| **claim**"))
    assert [cell.strip() for cell in claim.split("|")[2:-1]] == ["✗", "✗", "running", "running", "✗", "✗", "✗", "✗"]
