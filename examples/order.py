"""Durable control flow: a step that runs once, a signal that is waited for, children, and a sleep.

Run it: `python examples/order.py [FOLDER]`. While the job waits it takes no slot and no memory: it has left `run()` and
is entered again, from the top, when what it waits for has come. What the named calls have answered stands in a journal
beside its state, so the second time they answer at once.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from jobkit import Job, JobContext, JobManager, job


@job
class Pack(Job[str]):
    """Pack one thing."""

    what: str

    async def run(self, ctx: JobContext) -> str:
        ctx.progress(1.0, message=self.what)
        return f"a parcel with {self.what}"


@job
class Order(Job[list[str]]):
    """Charge a card once, wait until it is approved, pack everything side by side, and rest."""

    things: list[str]

    def charge(self) -> str:
        print("charging the card")
        return "receipt 17"

    async def run(self, ctx: JobContext) -> list[str]:
        print(f"attempt {ctx.attempt}: {await ctx.step('charge', self.charge)}")
        approved = await ctx.wait_for("approval", timeout=3600)
        children = [await ctx.spawn(Pack(what=what), key=f"pack {what}") for what in self.things]
        parcels = await ctx.gather(*children)
        await ctx.sleep("rest", 0.1)
        return [f"approved by {approved}", *parcels]


async def main(folder: Path) -> None:
    async with JobManager(folder) as manager:
        handle = await manager.dispatch(Order(things=["a book", "a lamp"]))
        async for event in handle.events():
            if event.type == "waiting":
                break
        print(await manager.explain(handle.id))
        await manager.signal(handle.id, "approval", "Ada")
        for line in await handle.result(timeout=30):
            print(line)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary)))
