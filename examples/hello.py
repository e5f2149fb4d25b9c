"""The smallest whole thing: define a job, dispatch it, await its result.

Run it: `python examples/hello.py [FOLDER]`. The job is stored in FOLDER/jobs.db (a temporary folder by default) before
it runs, so it would survive anything that happens to this process.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from pydantic import BaseModel

from jobkit import Job, JobContext, JobManager, job


class Greeting(BaseModel):
    text: str
    length: int


@job  # registered as "hello": the class's name in snake_case
class Hello(Job[Greeting]):
    """Greet somebody."""  # the first line is the job's description

    name: str  # a parameter: validated, stored once
    loud: bool = False

    async def run(self, ctx: JobContext) -> Greeting:
        text = f"Hello, {self.name}!"
        ctx.log("greeting", name=self.name)
        return Greeting(text=text.upper() if self.loud else text, length=len(text))


async def main(folder: Path) -> None:
    async with JobManager(folder) as manager:
        handle = await manager.dispatch(Hello(name="world"))  # returns once the job is durable
        greeting = await handle.result()  # typed: a Greeting
        print(greeting.text)
        print(f"{await handle.status()} in attempt {(await handle.record()).attempt}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else scratch)))
