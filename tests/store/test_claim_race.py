"""Four processes on one file: they claim, and dispatch, at once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from jobkit.filters import JobFilter
from jobkit.interfaces import Insert, Stored
from jobkit.store import SqlStore
from jobkit.testing.store_contract import NAME, Bench, new_job
from tests.store.children import Child

PROCESSES = 4
JOBS = 2_000

CLAIM = """
import json, random
from uuid import uuid4
from jobkit.interfaces import Claim, Life, Register
from jobkit.store import SqlStore

url, seed = args
chance = random.Random(int(seed))
store = SqlStore(url)
store.open()
life = str(uuid4())
(until,) = store.commit([Register(Life(life, "n", "h", "b", 1, True, {"work": 1}), 30)])
say("ready")
hear()
claimed = []
while True:
    (answer,) = store.commit([Claim(life, f"node {seed}", chance.randint(1, 20), {"work": 1})])
    if not isinstance(answer, list):
        raise SystemExit(repr(answer))
    if not answer:
        break
    claimed += [(one.transition.after.id, one.transition.after.attempt) for one in answer]
store.close()
say(json.dumps(claimed))
"""

DISPATCH = """
import json, random
from uuid import uuid4
from jobkit.codec import Codec
from jobkit.interfaces import Insert, NewJob
from jobkit.store import SqlStore

url, seed, keys = args
chance = random.Random(int(seed))
store = SqlStore(url)
store.open()
say("ready")
hear()
found = {}
for number in chance.sample(range(int(keys)), int(keys)):
    params = {"n": number}
    job = NewJob(str(uuid4()), "work", 1, "default", 5, True, params, Codec().pack(params), key=f"key {number}")
    (answer,) = store.commit([Insert((job,))])
    if not isinstance(answer, tuple):
        raise SystemExit(repr(answer))
    found[number] = answer[0]
store.close()
say(json.dumps(found))
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database of the test's own."""
    return f"sqlite:///{tmp_path / 'jobs.db'}"


def race(script: str, url: str, *args: object) -> list[str]:
    """Run the script in several processes that all start when all are ready; answer what each said last."""
    children = [Child(script, url, seed, *args) for seed in range(PROCESSES)]
    for child in children:
        assert child.says() == "ready"
    for child in children:
        child.hears("go")
    answers = [child.says() for child in children]
    assert [child.ends() for child in children] == [[]] * PROCESSES
    return answers


def test_no_job_is_claimed_twice(url: str):
    """G4: four processes that claim 2,000 jobs get each job once, all of them, and are shown no error."""
    store = SqlStore(url)
    store.open()
    jobs = [new_job() for _ in range(JOBS)]
    (stored,) = store.commit([Insert(tuple(jobs))])
    assert stored == tuple(Stored(job.id, created=True) for job in jobs)
    answers = race(CLAIM, url)
    claimed = [tuple(one) for answer in answers for one in json.loads(answer)]
    assert Counter(claimed) == {(job.id, 1): 1 for job in jobs}
    assert not store.claimable({NAME: 1}, None)
    assert store.stats(JobFilter()).running == JOBS
    events = Counter((event.type, event.seq) for event in store.events(None, None, None, 3 * JOBS))
    assert events == {("created", 1): JOBS, ("started", 2): JOBS}
    store.close()


def test_one_key_from_four_processes_is_one_job(url: str):
    """G12: four processes that dispatch under the same keys, and create the database, get one job for each key."""
    answers = [json.loads(answer) for answer in race(DISPATCH, url, 100)]
    ids = [{number: job_id for number, (job_id, _) in answer.items()} for answer in answers]
    assert ids[0] == ids[1] == ids[2] == ids[3]
    assert len(set(ids[0].values())) == 100
    created = Counter(number for answer in answers for number, (_, new) in answer.items() if new)
    assert created == dict.fromkeys(ids[0], 1)
    store = SqlStore(url)
    store.open()
    assert sorted(Bench(store).claim_ids()) == sorted(ids[0].values())
    store.close()
