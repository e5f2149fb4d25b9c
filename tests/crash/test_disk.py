"""The disk that loses power: what it may leave, and what it never does."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from tests.crash.disk import Disk, Op

OLD, NEW = b"o" * 1024, b"n" * 1024

FILE, FOLDER, OTHER = 3, 4, 5


def op(kind: str, fd: int, data: bytes = b"", offset: int = 0) -> Op:
    """What the one process here does."""
    return Op(kind, 1, fd, offset, data)


SAFE = [
    op("o", FILE, b"jobs.db"),
    op("o", FOLDER, b""),
    op("w", FILE, OLD),
    op("s", FILE),
    op("s", FOLDER),
]
"""A file of two sectors, there for certain."""


def left(ops: Iterable[Op], name: str = "jobs.db") -> set[bytes | None]:
    """What a thousand losses of power leave of a file; None where it isn't there."""
    disk, random = Disk(), Random(0)
    for one in ops:
        disk.do(one)
    return {disk.lose_power(random).files.get(name) for _ in range(1000)}


def test_what_was_synced_stays():
    """A file that was synced, in a folder that was synced, is what it was."""
    assert left(SAFE) == {OLD}
    assert left([*SAFE, op("w", FILE, NEW), op("s", FILE)]) == {NEW}


def test_what_was_not_synced_may_come_in_part():
    """Each sector may be old or new, and is never a mixture."""
    assert left([*SAFE, op("w", FILE, NEW)]) == {OLD, NEW, OLD[:512] + NEW[512:], NEW[:512] + OLD[512:]}


def test_writes_may_come_out_of_order_but_not_within_a_sector():
    """A later write may be there without an earlier one; a sector goes through what was written to it."""
    found = left([*SAFE, op("w", FILE, b"1", 0), op("w", FILE, b"2", 600), op("w", FILE, b"3", 0)])
    assert {(content[:1], content[600:601]) for content in found if content} == {
        (first, second) for first in (b"o", b"1", b"3") for second in (b"o", b"2")
    }


def test_files_may_be_left_behind_each_other():
    """A later write to one file may be there without an earlier one to another."""
    ops = [*SAFE, op("o", OTHER, b"jobs.db-wal"), op("s", FOLDER), op("w", OTHER, NEW), op("w", FILE, NEW)]
    disk, random = Disk(), Random(0)
    for one in ops:
        disk.do(one)
    found = [disk.lose_power(random).files for _ in range(1000)]
    assert {(files["jobs.db"] == NEW, files["jobs.db-wal"] == NEW) for files in found} == {
        (first, second) for first in (False, True) for second in (False, True)
    }


def test_a_file_may_have_grown_before_what_it_grew_by_has_come():
    """New sectors that have not come hold zeros, or anything; the size may be the old one, too."""
    found = {content for content in left([*SAFE, op("w", FILE, NEW, 1024)]) if content is not None}
    assert {OLD, OLD + NEW, OLD + bytes(1024), OLD + NEW[:512] + bytes(512)} < found
    assert any(content[1024:] not in {NEW, bytes(1024)} and len(content) == 2048 for content in found)
    assert all(content.startswith(OLD) for content in found)


def test_a_cut_happens_as_a_whole():
    """What was cut off is all there or all gone, and what was written behind the cut is not there without it."""
    ops = [*SAFE, op("t", FILE, offset=0), op("w", FILE, NEW)]
    found = left(ops)
    assert {OLD, b"", NEW} < found
    old, new = OLD[:512], NEW[:512]
    assert not found & {old + new, new + old, old, old + bytes(512), bytes(512) + old}


def test_a_new_name_is_certain_once_its_folder_is_synced():
    """A new file may be missing, though it was synced, until its folder is."""
    ops = [*SAFE, op("o", OTHER, b"jobs.db-wal"), op("w", OTHER, NEW), op("s", OTHER)]
    assert left(ops, "jobs.db-wal") == {None, NEW}
    assert left([*ops, op("s", FOLDER)], "jobs.db-wal") == {NEW}


def test_a_name_may_come_back_until_its_folder_is_synced():
    """A file that was taken away, and one made in its place, may each be what the name leads to."""
    ops = [*SAFE, op("u", -1, b"jobs.db")]
    assert left(ops) == {OLD, None}
    ops += [op("o", OTHER, b"jobs.db"), op("w", OTHER, NEW), op("s", OTHER)]
    assert left(ops) == {OLD, None, NEW}
    assert left([*ops, op("s", FOLDER)]) == {NEW}


def test_processes_see_everything():
    """Who was not cut off sees what was done, whatever is safe."""
    disk = Disk()
    for one in [*SAFE, op("w", FILE, NEW, 512), op("o", OTHER, b"jobs.db-wal"), op("u", -1, b"jobs.db-journal")]:
        disk.do(one)
    assert disk.seen() == {"jobs.db": OLD[:512] + NEW, "jobs.db-wal": b""}


def test_what_people_know_is_not_on_the_disk():
    """Logs are kept as they were written, and leave no file."""
    disk = Disk()
    for one in [op("o", FILE, b"client.log"), op("w", FILE, b"a"), op("w", FILE, b"b")]:
        assert disk.do(one) is (one.kind == "w")
    assert disk.told == {"client.log": b"ab", "effects.log": b""}
    assert disk.lose_power(Random(0)).files == {}


def test_shared_memory_and_other_files_are_left_out():
    """What SQLite makes anew after every loss, and what is not its own, is not there."""
    for name in (b"jobs.db-shm", b"said.log", b"pipe"):
        assert not any(map(Disk().do, [op("o", FILE, name), op("w", FILE, NEW), op("u", -1, name)]))
