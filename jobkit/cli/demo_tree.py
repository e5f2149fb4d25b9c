"""What the demonstration copies, and whether the copies are what they should be."""

from __future__ import annotations

import hashlib
import os
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from jobkit.cli.demo_job import copy_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

AIM_S: Final = 20.0
"""How long copying may take. All of it is real work, so a slow disk gets fewer files, not a shorter demonstration."""

FEWEST: Final = 200
PROBES: Final = 20
LEFT_OUT: Final = frozenset({"site-packages", "dist-packages", "__pycache__"})
TESTS: Final = frozenset({"test", "tests", "idle_test"})


def standard_library() -> Path:
    """Find the standard library of this Python."""
    return Path(sysconfig.get_path("stdlib"))


def files_of(root: Path) -> list[Path]:
    """List the regular files below a folder, by their paths from there; tests come last, to be left out first.

    Args:
        root: The folder.

    Returns:
        The paths, in an order that is always the same.
    """
    found = sorted(_walk(root), key=lambda path: (not TESTS.isdisjoint(path.parts), path))
    return [path for path in found if path.as_posix().isprintable()]


def _walk(root: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        # config-3.x holds the interpreter as a static library: tens of megabytes in one file that nobody would look at
        below[:] = [one for one in below if one not in LEFT_OUT and not one.startswith("config-")]
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(root)


def as_many_as_fit(root: Path, files: Sequence[Path], folder: Path) -> list[Path]:
    """Choose how many files to copy, by copying some of them and looking at the clock.

    Args:
        root: Where the files are.
        files: Their paths from there.
        folder: Where the copies are to go.

    Returns:
        The first ones, as many as are copied in about `AIM_S`.
    """
    probes = files[:: max(1, len(files) // PROBES)][:PROBES]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        began = time.monotonic()
        for number, path in enumerate(probes):
            copy_atomically(root / path, Path(scratch, str(number)))
        each_s = (time.monotonic() - began) / max(1, len(probes))
    return list(files[: max(FEWEST, int(AIM_S / each_s))]) if probes else []


def differing(root: Path, files: Sequence[Path], copies: Path) -> list[str]:
    """Compare every copy with its source, by checksum, and look for what should not be there.

    Args:
        root: Where the sources are.
        files: Their paths from there.
        copies: Where the copies are.

    Returns:
        What is wrong, a line for each file.
    """
    wrong = []
    for path in files:
        copy = copies / path
        if not copy.is_file():
            wrong.append(f"{path}: is missing")
        elif _checksum(copy) != _checksum(root / path):
            wrong.append(f"{path}: the copy's checksum is not the source's")
    expected = set(files)
    there = (Path(folder, name).relative_to(copies) for folder, _, names in os.walk(copies) for name in names)
    return wrong + [f"{path}: was never asked for" for path in sorted(set(there) - expected)]


def _checksum(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()
