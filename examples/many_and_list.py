"""Many jobs: dispatched in one transaction, run by priority, found again by what was said of them.

Run it: `python examples/many_and_list.py [FOLDER]`. The first manager is a client, which dispatches and runs nothing;
the second one works, on one job at a time so that the order shows.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

from jobkit import Job, JobContext, JobManager, JobStatus, Priority, job

ORDER: list[str] = []


@job("import_machine")
class ImportMachine(Job[int]):
    """Import one machine."""

    host: str

    async def run(self, ctx: JobContext) -> int:
        ORDER.append(f"{self.host} ({ctx.metadata['provider']})")
        if self.host == "db-2":
            raise ConnectionError("db-2 doesn't answer")
        return len(self.host)


async def main(folder: Path) -> None:
    async with JobManager(folder, work=False) as client:
        web = [ImportMachine(host=f"web-{number}") for number in (1, 2, 3)]
        await client.dispatch_many(web, tags=["nightly"], metadata={"provider": "vsphere"}, user="ada")
        urgent = [("import_machine", {"host": "db-1"}), ("import_machine", {"host": "db-2"})]  # by name does as well
        await client.dispatch_many(
            urgent, priority=Priority.HIGH, label="databases first", tags=["nightly"], metadata={"provider": "hyperv"}
        )

    async with JobManager(folder, concurrency=1) as manager:
        await manager.run_until_idle()
        print("ran:", ", ".join(ORDER))
        for title, page in (
            ("failed", await manager.list_jobs(JobStatus.FAILED)),
            ("of vsphere", await manager.list_jobs(metadata={"provider": "vsphere"}, status=["completed", "failed"])),
            ("nightly, the newest two", await manager.list_jobs(tag="nightly", limit=2)),
        ):
            found = (
                f"{one.params['host']} {one.status}" + (f" ({one.error.message})" if one.error else "") for one in page
            )
            print(f"{title}:", ", ".join(found))
        stats = await manager.stats(tag="nightly")
        print(
            f"{stats.total} jobs, {stats.completed} completed, {stats.failed} failed: {stats.success_rate:.0%} success"
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else scratch)))
