"""A handler that blocks: `def run` instead of `async def run`, and it runs in a thread.

Run it: `python examples/blocking.py [FOLDER]`. The context has the same names, without `await`. Meanwhile the event
loop is free: here another task follows the job's progress.
"""

import asyncio
import hashlib
import sys
import tempfile
from pathlib import Path

from jobkit import BlockingJobContext, Job, JobHandle, JobManager, job, state


@job("stretch_key")
class StretchKey(Job[str]):
    """Hash a text again and again, as slow as it has to be."""

    text: str
    rounds: int = 20
    done: int = state(0)
    digest: bytes = state(b"")

    def run(self, ctx: BlockingJobContext) -> str:
        while self.done < self.rounds:
            self.digest = hashlib.pbkdf2_hmac("sha256", self.text.encode() + self.digest, b"salt", 100_000)
            self.done += 1
            ctx.progress(completed=self.done, total=self.rounds, unit="rounds", message=f"round {self.done}")
            ctx.checkpoint()  # blocks this thread, and nothing else, until it is durable
        return self.digest.hex()


async def follow(handle: JobHandle[str]) -> int:
    seen = 0
    async for progress in handle.progress():  # ends when the job does
        seen += 1
        print(f"{progress.fraction:.0%} {progress.message}")
    return seen


async def main(folder: Path) -> None:
    async with JobManager(folder) as manager:
        handle = await manager.dispatch(StretchKey(text="correct horse battery staple"))
        seen, digest = await asyncio.gather(follow(handle), handle.result())
        print(f"{digest[:16]}… after {(await handle.record()).checkpoint_seq} checkpoints, progress seen: {seen > 0}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else scratch)))
