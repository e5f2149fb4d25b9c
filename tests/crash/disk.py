"""A disk that loses power: what may be left of the files in a folder, at any moment.

Processes that preload `disklog.c` write a log of what they do to their files. A `Disk` is led through such a log, one
operation after another, and gives at any point of it the images that a loss of power could leave there. What was synced
is in all of them. Of everything since, each sector of each file, each file's size, and each name in the folder is as it
was at some moment between that sync and the loss: at one moment for all, at one for each file, or at one for each part,
as the image's `Fate` has it. So writes reach the disk in any order, in part, or not at all.

What is taken for granted, as SQLite does ("powersafe overwrite"): a sector, of 512 or of 4,096 bytes, is old or new and
never a mixture, and writing to a part of it leaves the rest as it was. Where a file has grown and its new sectors have
not come, there are zeros or garbage. To cut a file short is to change its metadata: it happens as a whole, and what was
written behind the cut later can't be there without it. A new name, or one taken away, is certain only once the folder
is synced, and until then each name for itself: file systems with a journal keep the order of names, and most keep a new
name whose file was synced; this disk need not. A disk that breaks its word is no part of the model.

Left out are files ending in `-shm`, memory that processes share: the first process to open a database makes it anew
whatever it holds. `effects.log` and `client.log` stand for what people know, which no loss of power takes away.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable, Hashable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

SOURCE = Path(__file__).with_name("disklog.c")

HEAD = struct.Struct("=IIiIq")
"""As in `disklog.c`: what was done, by which process, on which descriptor, with how many bytes, from where on."""

SECTORS = (512, 4096)

TOLD = ("effects.log", "client.log")


class Op(NamedTuple):
    """What a process did: `o`pen, `w`rite, `t`runcate, `s`ync, or `u`nlink; `data` may be a name."""

    kind: str
    pid: int
    fd: int
    offset: int
    data: bytes


def compile_log(compiler: str, folder: Path) -> Path:
    """Compile what writes the log, for processes to preload."""
    library = folder / "disklog.so"
    # Fortified headers bring their own `open`.
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-U_FORTIFY_SOURCE", "-o", library, SOURCE], check=True)
    return library


def logging_to(log: Path, library: Path, folder: Path) -> dict[str, str]:
    """The environment of processes that log what they do to the files in a folder."""
    return {"LD_PRELOAD": str(library), "DISK_FOLDER": str(folder), "DISK_LOG": str(log)}


def operations(log: Path) -> Iterator[Op]:
    """Read a log."""
    written, at = log.read_bytes(), 0
    while at < len(written):
        kind, pid, fd, length, offset = HEAD.unpack_from(written, at)
        at += HEAD.size + length
        yield Op(chr(kind), pid, fd, offset, written[at - length : at])


# ── what comes of a disk ──

Fate = Callable[[Hashable, Hashable], int]
"""Says for a part of a file, or of the folder, as of which operation it is on the disk."""

FATES: dict[str, Callable[[Random, int, int], Fate]] = {
    "nothing came": lambda _, safe, __: lambda *_: safe,
    "all in order": lambda random, safe, now: _always(random.randint(safe, now)),
    "each file in order": lambda random, safe, now: _by_file(cache(lambda _: random.randint(safe, now))),
    "in any order": lambda random, safe, now: cache(lambda *_: random.randint(safe, now)),
    "some of it": lambda random, safe, now: cache(lambda *_: random.choice([safe, now])),
}
"""Ways to lose power, each for a source of chance and for the operations between which all is uncertain."""


def _always(at: int) -> Fate:
    return lambda *_: at


def _by_file(at: Callable[[Hashable], int]) -> Fate:
    return lambda file, _: at(file)


class File:
    """A file: what of it is safe, and what was done to it since."""

    def __init__(self) -> None:
        self.safe = b""
        self.since: list[tuple[int, Op]] = []

    def content(self, fate: Fate, sector: int, unwritten: Callable[[int], bytes]) -> bytes:
        """What it holds if fate has it so."""
        held, size, gone = bytearray(self.safe), len(self.safe), 1 << 62
        size_as_of = fate(self, "size")
        for at, op in self.since:
            if op.kind == "t" and at <= size_as_of:
                size = op.offset
                del held[size:]
            elif op.kind == "t":
                gone = min(gone, op.offset)
            elif (end := min(op.offset + len(op.data), gone)) > op.offset:
                if at <= size_as_of:
                    size = max(size, end)
                for start in range(op.offset - op.offset % sector, end, sector):
                    if at <= fate(self, start):
                        first, last = max(start, op.offset), min(start + sector, end)
                        held += unwritten(max(0, last - len(held)))
                        held[first:last] = op.data[first - op.offset : last - op.offset]
        held += unwritten(max(0, size - len(held)))
        return bytes(held[:size])


class Folder:
    """The names in a folder: which are safe, and what was done to them since."""

    def __init__(self) -> None:
        self.safe: dict[str, File] = {}
        self.since: list[tuple[int, str, File | None]] = []

    def names(self, fate: Fate) -> dict[str, File]:
        """What it holds if fate has it so."""
        held = dict(self.safe)
        for at, name, file in self.since:
            if at > fate(self, name):
                continue
            if file is None:
                held.pop(name, None)
            else:
                held[name] = file
        return held

    def files(self) -> set[File]:
        """All files that may be left."""
        return {file for file in (*self.safe.values(), *(file for _, _, file in self.since)) if file is not None}


class Image(NamedTuple):
    """What is left after a loss of power, and which way it came about."""

    way: str
    files: dict[str, bytes]


class Disk:
    """A folder of files, led through what processes do to them.

    Attributes:
        now: How many operations it has had to do with.
        told: What people know by now: each log as far as it was written.
    """

    def __init__(self) -> None:
        self.now = 0
        self.told: dict[str, bytes] = dict.fromkeys(TOLD, b"")
        self._folder = Folder()
        self._open: dict[tuple[int, int], File | Folder | str] = {}

    def seen(self) -> dict[str, bytes]:
        """The files as processes see them, whatever of them is safe: what is left when one is killed."""
        return self._left(_always(self.now), SECTORS[0], bytes)

    def lose_power(self, random: Random) -> Image:
        """The files as a loss of power may leave them."""
        uncertain = [at for at, *_ in self._folder.since]
        uncertain += [at for file in self._folder.files() for at, _ in file.since]
        way = random.choice(list(FATES))
        fate = FATES[way](random, min(uncertain, default=self.now + 1) - 1, self.now)
        unwritten: Callable[[int], bytes] = random.choice((bytes, random.randbytes))
        return Image(way, self._left(fate, random.choice(SECTORS), unwritten))

    def _left(self, fate: Fate, sector: int, unwritten: Callable[[int], bytes]) -> dict[str, bytes]:
        return {name: file.content(fate, sector, unwritten) for name, file in self._folder.names(fate).items()}

    def do(self, op: Op) -> bool:
        """Go on by an operation; answer whether it changed anything: on the disk, or in what people know."""
        if op.kind == "o":
            return self._do_open(op)
        if op.kind == "u":
            return self._name(op.data.decode(), None)
        match self._open.get((op.pid, op.fd)):
            case str(log):
                self.told[log] += op.data
            case File() as file if op.kind != "s":
                self.now += 1
                file.since.append((self.now, op))
            case File() as file:
                file.safe = file.content(_always(self.now), SECTORS[0], bytes)
                file.since.clear()
            case Folder() as folder:
                folder.safe = folder.names(_always(self.now))
                folder.since.clear()
            case None:
                return False
        return True

    def _do_open(self, op: Op) -> bool:
        name = op.data.decode()
        known = self._folder.names(_always(self.now)).get(name)
        opened: File | Folder | str | None = None
        if name == "":
            opened = self._folder
        elif name in TOLD:
            opened = name
        elif name.startswith("jobs.db") and not name.endswith("-shm"):
            opened = known or File()
        if opened is None:
            self._open.pop((op.pid, op.fd), None)
        else:
            self._open[op.pid, op.fd] = opened
        return isinstance(opened, File) and opened is not known and self._name(name, opened)

    def _name(self, name: str, file: File | None) -> bool:
        if file is None and name not in self._folder.names(_always(self.now)):
            return False
        self.now += 1
        self._folder.since.append((self.now, name, file))
        return True
