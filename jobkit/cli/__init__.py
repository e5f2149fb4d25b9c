"""The command line, `jobkit`: for people at a terminal, and for scripts.

A face: it asks the public `jobkit` package, and knows nothing of what lies below it. This module is the door. It is
imported by every call of the program, so it imports nothing but the standard library: the overview is answered before
cyclopts is loaded, and SQLAlchemy and pydantic are loaded by the commands that open a database.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from jobkit.cli.commands import overview
from jobkit.cli.exits import ENVIRONMENT, OK, complain

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What stands after the program's name; the process's own arguments by default.

    Returns:
        The exit code; see `jobkit.cli.exits`.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # an old terminal shows `?` for a sign that it lacks, and loses no more
            stream.reconfigure(errors="replace")
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    missing = [name for name in ("cyclopts", "rich") if find_spec(name) is None]
    if missing:
        complain(f"the command line needs {' and '.join(missing)}: pip install 'jobkit-py[cli]'")
        return ENVIRONMENT
    if tokens in ([], ["--help"], ["-h"]):
        print(overview())
        return OK

    from jobkit.cli.app import run

    return run(tokens)
