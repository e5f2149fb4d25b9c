"""docs/control.md is true: its program runs, and its commands answer what it says they do."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.cli.conftest import JOBS, Greet
from tests.cli.processes import ROOT, environment
from tests.cli.workload import Echo, Steps, StuckThread

PAGE = (ROOT / "docs" / "control.md").read_text()


def blocks(language: str) -> list[str]:
    """The page's blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> dict[str, str]:
    """Each command that the page shows, and what it is said to print."""
    shown = "".join(blocks("console")).split("$ ")[1:]
    return dict(one.split("\n", 1) for one in shown)


def test_the_program(tmp_path):
    """The page's program prints what its comments say."""
    (program,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=False, capture_output=True, text=True, cwd=tmp_path, env=environment(), timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines() == re.findall(r"print\(.*  # (\w+)$", program, re.MULTILINE)


def test_the_commands(start, jobkit, dispatch, application):
    """Each command of the page, in its order, prints what stands below it there and ends with 0."""
    page = commands()
    *asked, work = page
    steps, stuck, echo = dispatch(Steps(gate=application / "gate"), StuckThread(), Echo())
    (unknown,) = dispatch(Greet(name="Ada"), registry=JOBS)

    running = start(*work.split()[1:])
    running.until(f"{steps}: started, attempt 1")
    running.until(f"{echo}: completed")
    assert jobkit("watch", unknown).stdout.splitlines()[-1].startswith("held  (unknown_job)")
    jobs = iter([steps, steps, stuck, steps, unknown, echo, echo])
    for command in asked:
        job_id = next(jobs)
        done = jobkit(*command.replace("ID", job_id).split()[1:])
        assert (done.returncode, done.stderr) == (0, "")
        assert re.sub(r"^\w+ ", "file_copy ", done.stdout).replace(job_id, "ID") == page[command]
    assert next(jobs, None) is None
