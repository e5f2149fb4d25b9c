"""A job survives the death of its process: run this twice.

Run it: `python examples/resume_after_kill.py [FOLDER]`, and again with the same FOLDER (this one by default). The first
time, the process kills itself with SIGKILL half-way. The second time, the job is found where its last checkpoint left
it and goes on from there by itself: starting a manager is all it takes.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from jobkit import Job, JobContext, JobManager, job, state

EVERY = 10  # numbers between two checkpoints


@job("sum_of_squares")
class SumOfSquares(Job[int]):
    """Add the squares of the first numbers."""

    count: int
    done: int = state(0)  # state: what a checkpoint saves
    total: int = state(0)

    async def run(self, ctx: JobContext) -> int:
        if ctx.is_resuming:
            print(f"attempt {ctx.attempt} goes on from checkpoint {self.done // EVERY}: {self.done} numbers are done")
        while self.done < self.count:
            self.total += self.done**2
            self.done += 1
            if self.done % EVERY == 0:
                await ctx.checkpoint()  # durable when this returns
            if ctx.attempt == 1 and self.done == 57:
                print("killing this process after 57 numbers: run the same command again", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        return self.total


async def main(folder: Path) -> None:
    async with JobManager(folder) as manager:
        # The key makes this the same job each time: a second run finds it instead of dispatching another.
        handle = await manager.dispatch(SumOfSquares(count=100), key="squares")
        print(f"the sum is {await handle.result()}, in {(await handle.record()).attempt} attempts")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
