"""The nursery, one for all crash tests, and an arena for each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash.harness import Arena, Nursery

collect_ignore_glob = ["test_*.py"] if sys.platform == "win32" else []  # no SIGKILL, fork or flock there


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where the children of all tests come from."""
    with closing(Nursery()) as one:
        yield one


@pytest.fixture
def arena(tmp_path: Path, nursery: Nursery) -> Iterator[Arena]:
    """A database, its logs, and the children that work there; none outlives the test, none shows a traceback."""
    with closing(Arena(tmp_path, nursery)) as one:
        yield one
    said = one.said()
    assert "Traceback" not in said, said
    assert "Exception ignored" not in said, said
