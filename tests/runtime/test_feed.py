"""The feed: whoever listens hears, whatever others do meanwhile."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from jobkit import Event, JobStatus
from jobkit.runtime.feed import Ear, Feed
from tests.runtime.kit import DEADLINE_S


@pytest.mark.anyio
async def test_letting_go_in_another_thread_takes_nothing_from_those_who_listen():
    """A stream may be dropped in any thread at any moment: who listens is only struck off on the loop, between turns.

    Struck off from that thread, somebody who begins to listen to the same job just then would be struck off too.
    """
    feed = Feed()
    event = Event(uuid4(), 1, "progress", JobStatus.RUNNING, None, None, datetime.now(UTC))
    job = str(event.job_id)
    held: list[Ear] = [feed.listen(job)]
    table = feed._ears[job]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join(DEADLINE_S)
    assert not feed.watched
    assert feed._ears == {job: table}  # as it was found by whoever was about to listen
    table_was = len(table)

    ear = feed.listen(job)
    feed.happened(event)
    assert (ear.take(), table_was, feed.watched) == ([event], 1, True)
    del ear
    feed.happened(event)
    assert feed._ears == {}
