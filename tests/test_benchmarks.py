"""The benchmarks run, and what they print can be trusted to be what they measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.figures import ALL, LIMITS, WORK
from benchmarks.rounds import Found

ROOT = Path(__file__).parent.parent


def rows(table: str) -> list[list[str]]:
    """The cells of a Markdown table, without the line below its heads."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [line for line in lines if not set(line[0]) <= {"-"}]


def test_everything_is_measured(tmp_path: Path) -> None:
    """A quick run measures every workload, prints a whole table, and leaves nothing behind."""
    disk = tmp_path / "disk"
    disk.mkdir()
    told = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--folder", str(disk), "--json", str(told)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not list(disk.iterdir())

    found = json.loads(told.read_text())
    assert found["quick"]
    assert set(found["machine"]) == {"python", "sqlite", "system", "cpus"}
    figures = {one["name"]: one for one in found["figures"]}
    assert set(figures) == {figure.name for one in ALL.values() for figure in one.figures}
    for one in WORK:
        for figure in one.figures:
            entry = figures[figure.name]
            assert len(entry["values"]) == 1
            assert entry["median"] >= 0
            assert (entry["reached"] is None) == (figure.reach is None)
        assert bool(figures[one.name]["ratio"] if one.limit else one.limit is None)

    headline, _, table = done.stdout.partition("\n\n")
    assert headline.startswith("quick")
    head, *body = rows(table)
    assert tuple(head) == report.COLUMNS
    assert len(body) == len(figures)
    assert {len(line) for line in table.splitlines()} == {len(table.splitlines()[0])}, "columns are aligned"


def test_a_share_is_that_of_its_own_round() -> None:
    """The share of a limit is the median of the rounds' shares, not the quotient of two medians."""
    found = Found()
    for limit, rate in ((1_000.0, 600.0), (2_000.0, 800.0), (3_000.0, 1_500.0)):
        found.take({"R1": limit})
        found.take({"dispatch_one": rate})
        found.ratios["dispatch_one"].append(rate / limit)
    _, first, second = rows(report.table(found))
    assert first[1:] == ["2,000/s", "1,000–3,000", "", "", ""]
    assert second[1:] == ["800/s", "600–1,500", "0.50 R1 (0.40–0.60)", "≥ 0.5 R1", "yes"]


def test_what_is_late_is_said_to_be() -> None:
    """A figure that is not reached stays in the table, and says so."""
    found = Found()
    found.take({"latency_p50": 1.6, "latency_p99": 4.9})
    entries = report.as_json(found, 1, quick=False)["figures"]
    assert [one["reached"] for one in entries] == [False, True]
    assert [row[-1] for row in rows(report.table(found))[1:]] == ["no", "yes"]


def test_each_limit_is_used_and_measured() -> None:
    """Whatever is a share of a limit names one that is measured."""
    assert {one.limit for one in WORK if one.limit} == {one.name for one in LIMITS}
    for one in ALL.values():
        assert any(figure.reach and figure.reach.of_limit for figure in one.figures) == (one.limit is not None)


def test_the_page_is_filled_in_between_its_marks(tmp_path: Path) -> None:
    """The page keeps everything but what stands between its marks; a page without them is left alone."""
    page = tmp_path / "README.md"
    page.write_text((ROOT / "benchmarks" / "README.md").read_text())
    report.fill_in(page, "one")
    once = page.read_text()
    report.fill_in(page, "two")
    assert page.read_text() == once.replace("\n\none\n\n", "\n\ntwo\n\n") != once
    page.write_text("nothing")
    with pytest.raises(ValueError, match="needs a line"):
        report.fill_in(page, "three")
    assert page.read_text() == "nothing"
