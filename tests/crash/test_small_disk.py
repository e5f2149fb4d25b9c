"""A disk that is full, and then isn't any more: really so, to the page; nobody restarts anything.

How a case goes is told in `small_disk.py`: a process works, a person makes room after having been refused, and the
judge looks at the history as after any other fault.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.crash.harness import DEADLINE_S, LONG, environment
from tests.crash.plans import Order

PROGRAM = Path(__file__).with_name("small_disk.py")

STEPS = (
    "schema", "register", "retire", "recovery", "dispatch", "claim", "report", "checkpoint", "finish", "renew",
    "give_back", "control",
)  # fmt: skip
"""What is committed in a case, in about this order."""

FULL = r"(jobs\.db: the disk is full|can't be used \(No space left on device\)).*: free some space .*can be tried again"
REFUSES = (
    r"jobs\.db: the disk reports an error \(disk I/O error\): check it, and any quota or limit .*can be tried again"
)
SAID = {"mount": re.compile(FULL), "limit": re.compile(f"{FULL}|{REFUSES}")}

LIVES = 3
"""The first manager, the second, and the one that tidies up: one more, and a life was lost for nothing."""


PROBE = "import ctypes, sys; sys.exit(ctypes.CDLL(None).mount(b'tmpfs', b'/tmp', b'tmpfs', 0, b'size=4096'))"


def _namespace() -> tuple[str, ...]:
    """How to start a process that may mount, as an ordinary user or as root; empty if that isn't allowed here."""
    if shutil.which("unshare"):
        for options in ("-Urm", "-m"):
            command = ("unshare", options, sys.executable, "-S", "-c", PROBE)
            if subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False).returncode == 0:
                return command[:2]
    return ()


NAMESPACE = _namespace()
EVERY_KIND = pytest.mark.parametrize("kind", ["mount", "limit"] if NAMESPACE else ["limit"])
MOUNTED = pytest.mark.skipif(not NAMESPACE, reason="a disk of its own is needed")


class Programs:
    """The programs that carry out cases, one for each kind of disk."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._running: dict[str, subprocess.Popen[str]] = {}

    def _program(self, kind: str) -> subprocess.Popen[str]:
        if kind not in self._running:
            before = NAMESPACE if kind == "mount" else ()
            command = [*before, sys.executable, "-W", "error", str(PROGRAM), kind]
            self._running[kind] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
            )
        return self._running[kind]

    def carry_out(self, kind: str, case: dict[str, Any]) -> dict[str, Any]:
        """Have a case carried out; answer what came of it."""
        program = self._program(kind)
        assert program.stdin is not None
        self._count += 1
        program.stdin.write(json.dumps({**case, "folder": str(self._folder / str(self._count))}) + "\n")
        program.stdin.flush()
        return self.hear(kind)

    def hear(self, kind: str) -> dict[str, Any]:
        """Hear what came of a case, or of what follows in it."""
        program = self._program(kind)
        assert program.stdout is not None
        line = program.stdout.readline()
        assert line, "the program has died"
        outcome: dict[str, Any] = json.loads(line)
        assert not outcome.get("problem"), outcome["problem"]
        return outcome

    def close(self) -> None:
        """End them."""
        for program in self._running.values():
            program.communicate(timeout=DEADLINE_S)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """Where cases are carried out."""
    with closing(Programs(tmp_path_factory.mktemp("disks"))) as made:
        yield made


def check(kind: str, case: dict[str, Any], outcome: dict[str, Any]) -> None:
    """See that a case kept the promise."""
    told = f"{case}: {json.dumps(outcome, indent=2)}"
    assert outcome["breaches"] == [], told
    assert [said for said in outcome["said"] if not SAID[kind].search(said)] == [], told
    assert sum(line.startswith("jobkit.writer:") for line in outcome["logged"]) <= 2, told
    assert len(outcome["logged"]) <= 6, told


BACKENDS = ("asyncio", "trio")


@EVERY_KIND
def test_each_step_finds_the_disk_full(programs: Programs, kind: str):
    """G20: whatever is being committed when the disk becomes full, it is told clearly, and goes on once there is room.

    Nothing half-written shows, no refused dispatch is ever seen, and no life is lost.
    """
    for number, step in enumerate(STEPS):
        case = {"at": (f"{step}.before_commit", 1), "schema": step != "schema", "backend": BACKENDS[number % 2]}
        outcome = programs.carry_out(kind, case)
        check(kind, case, outcome)
        assert step in outcome["failed"], outcome
        assert outcome["said"]
        assert outcome["lives"] == LIVES


@EVERY_KIND
def test_the_disk_is_full_after_so_many_pages(programs: Programs, kind: str):
    """G20: the same wherever in a write the room ends, from an empty folder on: also where SQLite makes its files."""
    for number, pages in enumerate(range(130) if LONG else (0, 2, 9, 50, 67, 79, 93, 110)):
        case = {"pages": pages, "backend": BACKENDS[number % 2]}
        outcome = programs.carry_out(kind, case)
        check(kind, case, outcome)
        assert outcome["lives"] == LIVES
        assert outcome["said"] or pages > 60


@MOUNTED
@pytest.mark.parametrize("point", ["dispatch", "claim", "checkpoint", "finish"])
def test_a_process_is_killed_while_the_disk_is_full(programs: Programs, point: str):
    """G1, G3, G20: after a death on a full disk the next process loses nothing, and goes on once there is room.

    It may find room at once: opening moves the log that the dead one has left.
    """
    case = {"at": (f"{point}.before_commit", 1), "schema": True, "kill": True}
    killed, after = programs.carry_out("mount", case), programs.hear("mount")
    assert point in killed["failed"]
    check("mount", case, after)


@MOUNTED
def test_no_file_can_be_made(programs: Programs):
    """G20: a disk that has bytes left but no files counts as full, whichever file it is that can't be made."""
    said = []
    for files in range(8):
        case = {"files": files}
        outcome = programs.carry_out("mount", case)
        check("mount", case, outcome)
        said.append(bool(outcome["said"]))
    assert said == [True] * 6 + [False] * 2


@MOUNTED
def test_a_job_s_folder_can_not_be_made(programs: Programs):
    """G20: a handler that asks for its folder on a full disk gets the system's own error; with room, its folder."""
    outcome = programs.carry_out("mount", {"what": "make folders"})
    assert len(outcome["said"]) == 3
    for said in outcome["said"]:
        assert re.search(r"OSError: \[Errno 28\] No space left on device: '.*/disk/jobs\.db\.data", said)
    assert outcome["logged"] == []


@MOUNTED
def test_jobkit_does_not_fill_a_disk_by_itself(programs: Programs):
    """G20: the write-ahead log is moved before it has filled a small disk: it would have no room to be moved then."""
    case = {"pages": 250, "orders": [Order(nonce="large", steps=60, size=20_000)]}
    outcome = programs.carry_out("mount", case)
    check("mount", case, outcome)
    assert (outcome["said"], outcome["logged"]) == ([], [])


@MOUNTED
def test_a_disk_that_is_read_only(programs: Programs):
    """G20: a manager on a read-only disk is told so, and changes nothing; once it may write, the same one starts."""
    outcome = programs.carry_out("mount", {"what": "find it read-only"})
    assert len(outcome["said"]) == 2
    for said in outcome["said"]:
        assert re.search(r"/disk/jobs\.db.*read-only.*: mount it for writing", said, re.IGNORECASE), said
    assert (outcome["breaches"], outcome["logged"]) == ([], [])
