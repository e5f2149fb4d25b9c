"""The demonstration's worker process: `python -m jobkit.cli.demo_worker FOLDER`. It is there to be killed.

It knows nothing of having been killed before: it opens the database and works until nothing is left to do, the first
time and every time.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import anyio

from jobkit import JobManager
from jobkit.cli.demo_job import COPIES


async def work(folder: Path) -> None:
    """Run what there is to run."""
    async with JobManager(folder / "jobs.db", registry=COPIES) as manager:
        await manager.run_until_idle()


def end_with_parent() -> None:
    """Die when the parent does, however it did: then the pipe that is this process's stdin reaches its end."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    anyio.run(work, Path(sys.argv[1]))
