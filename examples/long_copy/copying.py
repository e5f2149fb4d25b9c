"""A long copy, to be paused, killed and resumed from a terminal: README.md leads through it.

`python copying.py SECONDS` makes a folder of files, `tree`, and dispatches one job that copies it to `copy` in about as
many seconds. It runs nothing itself: `jobkit worker` does, which finds this module named in jobkit.toml.
"""

import asyncio
import random
import shutil
import sys
import time
from pathlib import Path

from jobkit import BlockingJobContext, Job, JobManager, job, state

FILES = 2_000
EVERY = 10  # files between two checkpoints: so many at most are copied again after a kill


@job("copy_tree")
class CopyTree(Job[int]):
    """Copy a folder, file by file."""

    source: Path
    target: Path
    pace_s: float
    done: int = state(0)

    def run(self, ctx: BlockingJobContext) -> int:
        files = sorted(path.relative_to(self.source) for path in self.source.rglob("*") if path.is_file())
        while self.done < len(files):
            copy(self.source / files[self.done], self.target / files[self.done])
            self.done += 1
            ctx.progress(completed=self.done, total=len(files), unit="files", message=str(files[self.done - 1]))
            if self.done % EVERY == 0:
                ctx.checkpoint()  # durable from here on; a pause or a stop of the worker happens here
            time.sleep(self.pace_s)
        return self.done


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    shutil.copyfile(source, part)
    part.replace(target)  # under its own name a file is there whole or not at all


async def main(folder: Path, seconds: float) -> None:
    for number in range(FILES):
        path = folder / "tree" / f"part-{number // 100:02}" / f"file-{number:04}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.randbytes(number))
    async with JobManager(work=False) as client:  # a client: it dispatches, and runs nothing
        handle = await client.dispatch(CopyTree(source=folder / "tree", target=folder / "copy", pace_s=seconds / FILES))
        print(f"dispatched copy_tree {handle.id}: {FILES:,} files")


if __name__ == "__main__":
    asyncio.run(main(Path.cwd(), float(sys.argv[1])))
