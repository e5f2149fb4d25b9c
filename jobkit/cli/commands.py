"""The commands, as one table: the overview is printed from it, and the parser is built from it.

A command's module is named, not imported, so that asking for an overview loads none of them.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Command(NamedTuple):
    """One command: its names, where it is, and what it does in a line."""

    names: tuple[str, ...]
    path: str
    line: str


COMMANDS: Final = (
    Command(("demo",), "jobkit.cli.demo:demo", "See a job killed half-way go on from its last checkpoint."),
    Command(("worker",), "jobkit.cli.worker:worker", "Run jobs until told to stop."),
    Command(("list", "ls"), "jobkit.cli.listing:list_jobs", "List jobs, newest first."),
    Command(("show",), "jobkit.cli.show:show", "Show all that is known of one job."),
    Command(("watch",), "jobkit.cli.watch:watch", "Watch one job's progress until it ends."),
    Command(("pause",), "jobkit.cli.control:pause", "Pause jobs, with their state saved."),
    Command(("resume",), "jobkit.cli.control:resume", "Let paused jobs go on."),
    Command(("cancel",), "jobkit.cli.control:cancel", "Cancel jobs: they can't complete any more."),
    Command(("release",), "jobkit.cli.control:release", "Let held jobs go on, once their cause is mended."),
    Command(("rm",), "jobkit.cli.control:rm", "Delete finished jobs, with all that is known of them."),
)

_OVERVIEW: Final = """\
Usage: jobkit COMMAND [OPTIONS]

Durable, resumable jobs: killed at any moment, resumed from the last checkpoint.

Commands:
{commands}

Everywhere:
  --database  A path or an SQLAlchemy URL. By default what JOBKIT_DATABASE_URL, JOBKIT_SQLITE_PATH, .env,
              jobkit.toml or pyproject.toml say, else jobs.db in this folder.
  --help      After a command: its options.
  --version   The release.

Exit codes: 0 ok, 1 job failed, 2 usage, 3 environment, 4 not found, 5 conflict,
6 migration needed, 7 time-out, 130 interrupted.
"""


def overview() -> str:
    """Say what the program does."""
    named = [(", ".join(command.names), command.line) for command in COMMANDS]
    width = max(len(names) for names, _ in named) + 2
    return _OVERVIEW.format(commands="\n".join(f"  {names:{width}}{line}" for names, line in named)).rstrip()
