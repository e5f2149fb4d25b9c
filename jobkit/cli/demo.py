"""`jobkit demo`: a job is killed half-way and goes on from its last checkpoint, before your eyes.

Nothing is staged. A real process does real work, is ended by a real SIGKILL, and every figure that is shown was
measured: read from the database, from the log of what was really done, or from the copied files.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from jobkit.cli.exits import JOB_FAILED, OK, USAGE, Refused

FEWEST_FILES = 50
"""With fewer there is no checkpoint to speak of before the half."""


async def demo(
    *,
    folder: Path | None = None,
    tamper: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    tree: Annotated[Path | None, Parameter(show=False)] = None,
) -> int:
    """See a job killed half-way go on from its last checkpoint.

    A job in a process of its own copies Python's standard library. The process is killed with SIGKILL half-way, another
    one is started, and the job goes on by itself. In the end every copy is compared with its source.

    Parameters
    ----------
    folder
        Where to work: a new or an empty folder, which is kept. By default a temporary one, which is removed.
    tamper
        Damage one copy before the comparison, to see that it is found: then the demonstration fails.
    tree
        Copy this folder instead.
    """
    from jobkit.cli.demo_play import play
    from jobkit.cli.demo_tree import files_of, standard_library
    from jobkit.cli.people import console

    root = (tree or standard_library()).absolute()
    files = files_of(root)
    if len(files) < FEWEST_FILES:
        raise Refused(USAGE, f"{root} holds {len(files)} files: give a folder of at least {FEWEST_FILES} with --tree")
    place = _place(folder)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # asked to end, it takes its worker along
    failed = False
    try:
        failed = not await play(console(), place, root, files, tamper=tamper)
        return JOB_FAILED if failed else OK
    finally:
        signal.signal(signal.SIGTERM, before)
        if folder is None and not failed:
            shutil.rmtree(place, ignore_errors=True)


def _place(folder: Path | None) -> Path:
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="jobkit-demo-"))
    folder = folder.expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise Refused(USAGE, f"{folder} is not empty: give a new or an empty folder with --folder")
    return folder
