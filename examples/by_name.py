"""Jobs from untrusted input: a name and parameters, as they come out of JSON, a form or a message.

Run it: `python examples/by_name.py [FOLDER]`. What fits is dispatched, what doesn't is answered field by field, and
what would fit is in the job's JSON schema. A caller can never set a job's state.
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field

from jobkit import InvalidParams, Job, JobContext, JobManager, UnknownJob, job, state

REQUESTS = """[
    {"job": "resize", "params": {"width": 640, "height": "480", "format": "png"}},
    {"job": "resize", "params": {"width": -1, "format": "bmp"}},
    {"job": "resize", "params": {"width": 1, "height": 1, "done": 9}},
    {"job": "rezise", "params": {}}
]"""


@job("resize")
class Resize(Job[str]):
    """Resize a picture."""

    width: int = Field(gt=0)
    height: int = Field(gt=0)
    format: Literal["png", "jpeg"] = "png"
    done: int = state(0)

    async def run(self, ctx: JobContext) -> str:  # noqa: ARG002  the context isn't needed
        return f"{self.width}×{self.height}.{self.format}"


async def main(folder: Path) -> None:
    async with JobManager(folder) as manager:
        for request in json.loads(REQUESTS):
            try:
                handle = await manager.dispatch_by_name(request["job"], request["params"])
            except InvalidParams as error:
                for path, problem in error.fields.items():
                    print(f"refused: {path}: {problem}")
            except UnknownJob as error:
                print(f"refused: {error}")
            else:
                print(f"done: {await handle.result()}")
        print("schema:", json.dumps(manager.schema("resize"), indent=2))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else scratch)))
