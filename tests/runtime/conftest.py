"""What the tests of the runtime share: a place of their own, a gate, a listener."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from jobkit.runtime import reports
from jobkit.runtime.worker import FLUSH_S
from jobkit.testing import FakeClock, FakeThreads
from tests.runtime.kit import WAITING, Gate, Listener, store_at, until


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """Keep the settings of whoever runs the tests out of them."""
    for name in list(os.environ):
        if name.upper().startswith("JOBKIT_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def empty(tmp_path_factory) -> Path:
    """An empty database, made once: making its schema is most of what starting a manager costs."""
    made: Path = tmp_path_factory.mktemp("empty") / "jobs.db"
    store_at(made).close()
    return made


@pytest.fixture
def path(tmp_path, empty) -> Path:
    """Where the test's database is."""
    return Path(shutil.copy(empty, tmp_path / "jobs.db"))


@pytest.fixture
def gate():
    """A gate for handlers; open at the end, so that no thread is left waiting."""
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def listener() -> Listener:
    """An observer that remembers."""
    return Listener()


@pytest.fixture
def clock() -> FakeClock:
    """Time that the test moves."""
    return FakeClock()


@pytest.fixture
def timed(clock):
    """What a manager in fake time is given."""
    return {"clock": clock, "threads": FakeThreads(clock), "lease_s": 3_600.0}


def _longer(looks: list[reports.Reports], than: int) -> bool:
    return len(looks) > than


@pytest.fixture
def pass_looks(monkeypatch, clock):
    """Lets so many of a worker's looks for what its only attempt holds back go by in fake time, and their writes."""
    looks: list[reports.Reports] = []
    honest = reports.Reports.flush

    def flush(self: reports.Reports) -> None:
        honest(self)
        looks.append(self)

    monkeypatch.setattr(reports.Reports, "flush", flush)

    async def go_by(number: int, *, stored: bool = True) -> None:
        for _ in range(number):
            before = len(looks)
            clock.advance(FLUSH_S)
            await until(partial(_longer, looks, before))
            if stored and (write := looks[-1]._flush) is not None:
                await until(write.reply.given.is_set)

    return go_by


@pytest.fixture(autouse=True)
def waiting():
    """Handlers that wait do so for one test."""
    WAITING.reset()
    yield
    WAITING.go.set()
