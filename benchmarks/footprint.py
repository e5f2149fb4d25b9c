"""What jobkit costs where it does nothing: imports, the first answer of the command line, a worker without work.

Imports are timed in processes of their own, which hold nothing but what is written here: what the benchmarks themselves
load would make them look cheaper. Each is done once for nothing first, since that one may have to compile.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LOADED = """
import sys
before = set(sys.modules)
import jobkit
import json
print(json.dumps([name for name in set(sys.modules) - before if name.partition(".")[0] not in sys.stdlib_module_names]))
"""

BEYOND_PYDANTIC = """
import time
from pydantic import BaseModel
class Model(BaseModel):
    number: int
began = time.perf_counter()
from jobkit import Job
print(time.perf_counter() - began)
"""


def import_jobkit(_: Path, __: int) -> dict[str, float]:
    """How many modules outside the standard library come along."""
    loaded = set(json.loads(_python("-c", LOADED)))
    assert "jobkit" in loaded
    return {"import_jobkit": len(loaded) - 1}


def import_job(_: Path, size: int) -> dict[str, float]:
    """What `Job` adds for a program that uses pydantic anyway."""
    _python("-c", BEYOND_PYDANTIC)
    return {"import_job": statistics.median(float(_python("-c", BEYOND_PYDANTIC)) for _ in range(size)) * 1e3}


def cli_help(_: Path, size: int) -> dict[str, float]:
    """From starting the process to its end, the interpreter's own start included; nothing where there is no cli."""
    if find_spec("jobkit.cli.__main__") is None:
        return {}
    times = []
    for _number in range(size + 1):
        began = time.perf_counter()
        assert "jobkit" in _python("-m", "jobkit.cli", "--help")
        times.append(time.perf_counter() - began)
    return {"cli_help": statistics.median(times[1:]) * 1e3}


def idle(folder: Path, size: int) -> dict[str, float]:
    """A worker with one kind of job and no jobs, on a file; long enough to see it look for dead owners."""
    import anyio

    from jobkit import Job, JobManager, job

    @job("bench_idle")
    class Idle(Job[None]):
        async def run(self, _: Any, /) -> None: ...

    async def main() -> dict[str, float]:
        async with JobManager(folder / "jobs.db"):
            await anyio.sleep(0.5)
            began, used = time.perf_counter(), time.process_time()
            await anyio.sleep(size / 10)
            share = (time.process_time() - used) / (time.perf_counter() - began)
            return {"idle_rss": _resident() / 1e6, "idle_cpu": share * 100}

    return anyio.run(main)


def _resident() -> int:
    """Bytes of memory that this process holds now; at its most, where the present can't be asked."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return pages * os.sysconf("SC_PAGE_SIZE")


def _python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, timeout=60).stdout
