"""The judge: says which promises a history breaks.

A history is what the processes wrote outside the database (what their handlers did, what they were told) and what the
database says in the end. The judge knows nothing of how jobkit works: it holds the one against the other.

Each predicate yields a sentence for each breach, with the number of the promise; `judge` gathers them, and a history
that broke nothing gives an empty list. Some hold at any moment, also right after a death; those of `AT_REST` hold once
all work is done and every process has ended.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]

Line = dict[str, Any]

TERMINAL = {"completed", "failed", "cancelled", "timed_out", "lost"}


class History(NamedTuple):
    """What happened.

    Attributes:
        effects: What handlers did, and which ends observers heard of, in the order in which it happened.
        client: What dispatchers tried and were told.
        jobs: The stored jobs, by id.
        events: The stored events, by job, in the order in which they were committed.
        lives: The stored lives.
        damage: What the database says of its own integrity.
        damaged: What was done to single jobs from outside, by job: at which attempt, and what must become of them.
        living: The processes that were alive after the database had been read.
    """

    effects: list[Line]
    client: list[Line]
    jobs: dict[str, Line]
    events: dict[str, list[Line]]
    lives: list[Line]
    damage: list[str]
    damaged: dict[str, Line]
    living: set[int]


def read(folder: Path, database: Path | None = None) -> History:
    """Read a history.

    Args:
        folder: Where the logs are.
        database: A database at rest, or a copy of it: reading one may tidy up what a crash has left; by default the one
            in the folder.
    """
    with closing(sqlite3.connect(database or folder / "jobs.db")) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA synchronous=OFF")  # tidying up, too, is done on a copy
        has_tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'jobs'").fetchone()

        def rows(query: str) -> list[Line]:
            return [dict(row) for row in connection.execute(query)] if has_tables else []

        events: dict[str, list[Line]] = defaultdict(list)
        for event in rows("SELECT job_id, seq, type, status FROM job_events ORDER BY pos"):
            events[event["job_id"]].append(event)
        damage = [row[0] for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
        damage += [f"{tuple(row)} refers to nothing" for row in connection.execute("PRAGMA foreign_key_check")]
        return History(
            effects=lines(folder / "effects.log"),
            client=lines(folder / "client.log"),
            jobs={row["id"]: row for row in rows("SELECT * FROM jobs ORDER BY num")},
            events=events,
            lives=rows("SELECT * FROM lives"),
            damage=damage,
            damaged={line["job"]: line for line in lines(folder / "damage.log")},
            living=set(),
        )


def lines(path: Path) -> list[Line]:
    """Read a log; one that was never begun is empty."""
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def judge(history: History, *, at_rest: bool = True, overlap: bool = False) -> list[str]:
    """Say what the history breaks.

    Args:
        history: What happened.
        at_rest: Whether all work is done and every process has ended, as after a last run without a fault.
        overlap: Whether two attempts of one job may run side by side for a while, as where a process was stopped and
            not killed: then only what they commit is judged.

    Returns:
        A sentence for each breach; empty if all promises were kept.
    """
    found = [breach for predicate in ALWAYS for breach in predicate(history)]
    found += checkpoints_kept(history, overlap=overlap)
    if not overlap:
        found += living_spared(history)
    if at_rest:
        found += [breach for predicate in AT_REST for breach in predicate(history)]
    return found


# ── at any moment ──


def dispatches_kept(history: History) -> Iterator[str]:
    """G1: what was acknowledged is stored, and nothing is stored that nobody dispatched."""
    intents = Counter(line["nonce"] for line in history.client if line["what"] == "intent")
    stored = Counter(json.loads(row["params"])["nonce"] for row in history.jobs.values())
    for line in history.client:
        if line["what"] == "dispatched":
            row = history.jobs.get(line["job"])
            if row is None:
                yield f"G1: the acknowledged dispatch of {line['nonce']} as {line['job']} is lost"
            elif json.loads(row["params"])["nonce"] != line["nonce"] or row["key"] != line["key"]:
                yield f"G1: {line['job']} is stored with other parameters than {line['nonce']} was dispatched with"
    for line in history.effects:
        if line["job"] not in history.jobs:
            yield f"G1: {line['job']} has run ({line['what']}), but is not stored"
    for nonce, times in stored.items():
        if times > intents[nonce]:
            yield f"G1: {nonce} was dispatched {intents[nonce]} times, and is stored {times} times"


def refused_stays_away(history: History) -> Iterator[str]:
    """G20: a dispatch that was refused is not stored, now or later."""
    intents = Counter(line["nonce"] for line in history.client if line["what"] == "intent")
    refused = Counter(line["nonce"] for line in history.client if line["what"] == "refused")
    stored = Counter(json.loads(row["params"])["nonce"] for row in history.jobs.values())
    for nonce, times in refused.items():
        if stored[nonce] > intents[nonce] - times:
            yield f"G20: {nonce} was refused {times} of {intents[nonce]} times, and is stored {stored[nonce]} times"


def one_job_a_key(history: History) -> Iterator[str]:
    """G12: a key is one job, stored and as it was told."""
    stored = Counter((row["name"], row["key"]) for row in history.jobs.values() if row["key"] is not None)
    for (name, key), times in stored.items():
        if times > 1:
            yield f"G12: {times} jobs {name} are stored under {key!r}"
    told: dict[str, set[str]] = defaultdict(set)
    for line in history.client:
        if line["what"] == "dispatched" and line["key"] is not None:
            told[line["key"]].add(line["job"])
    for key, ids in told.items():
        if len(ids) > 1:
            yield f"G12: {key!r} was answered with {len(ids)} jobs: {sorted(ids)}"


def checkpoints_kept(history: History, *, overlap: bool = False) -> Iterator[str]:
    """G3, G4: no acknowledged step again, none left out, no mixed state; attempts rise, and none commits late."""
    jobs: dict[str, list[Line]] = defaultdict(list)
    for line in history.effects:
        jobs[line["job"]].append(line)
    for job, happened in jobs.items():
        yield from _one_jobs_checkpoints(job, happened, overlap=overlap)


def _one_jobs_checkpoints(  # noqa: PLR0912  one story, told from its beginning to its end
    job: str, happened: list[Line], *, overlap: bool
) -> Iterator[str]:
    newest = 0  # attempt
    began = 0  # where the newest attempt began
    saved = 0  # the latest acknowledged step
    done = {0}  # steps that any attempt has done: what can be in a state
    at: dict[int, int] = {}  # where each attempt is
    for line in happened:
        attempt, what = line["attempt"], line["what"]
        if what == "begin":
            late = attempt < newest and overlap  # claimed before, begun after: what it does can't count
            if attempt <= newest and not late:
                yield f"G4: {job}: attempt {attempt} began after attempt {newest}"
            if line["at"] < saved and not late:
                yield f"G3: {job}: attempt {attempt} began at step {line['at']}, but step {saved} was acknowledged"
            if line["at"] not in done:
                yield f"G3: {job}: attempt {attempt} began at step {line['at']}, which nobody had done"
            if not line["whole"]:
                yield f"G3: {job}: attempt {attempt} began with a state that was put together of several"
            at[attempt] = line["at"]
            if not late:
                newest, began = attempt, line["at"]
        elif what not in {"finished", "left"}:
            if attempt not in at:
                yield f"G4: {job}: attempt {attempt} did something ({what}) and never began"
            if attempt < newest and not overlap:
                yield f"G4: {job}: attempt {attempt} did something ({what}) after attempt {newest} had begun"
        if what == "step":
            step = line["step"]
            if step != at.get(attempt, 0) + 1:
                yield f"G3: {job}: attempt {attempt} went from step {at.get(attempt, 0)} to {step}"
            if step <= saved and attempt >= newest:
                yield f"G3: {job}: attempt {attempt} did step {step} again, but step {saved} was acknowledged"
            at[attempt] = step
            done.add(step)
        elif what == "saved":
            if attempt < newest and line["step"] > began:
                yield f"G4: {job}: step {line['step']} was acknowledged to attempt {attempt}, not to {newest}"
            saved = max(saved, line["step"])


def finished_stays(history: History) -> Iterator[str]:
    """G2: what is finished is finished once, never goes on, and keeps its result."""
    ended: dict[str, Line] = {}
    for line in history.effects:
        job, end = line["job"], ended.get(line["job"])
        if line["what"] == "finished":
            if end is not None:
                yield f"G2: {job}: {_end(end)} and then {_end(line)}"
            ended[job] = line
        elif end is not None and line["attempt"] > end["attempt"]:
            yield f"G2: {job}: attempt {line['attempt']} did something ({line['what']}) after the job {_end(end)}"
    for job, end in ended.items():
        row = history.jobs.get(job)
        if row is not None and (row["status"], row["attempt"]) != (end["status"], end["attempt"]):
            yield f"G2: {job}: {_end(end)} and now {_end(row)}"
    for line in history.client:
        if line["what"] == "result":
            row = history.jobs.get(line["job"])
            if row is not None and (row["output"] is None or json.loads(row["output"]) != line["result"]):
                yield f"G2: {line['job']}: its result was {line['result']} and is now {row['output']}"


def _end(one: Line) -> str:
    return f"was {one['status']} in attempt {one['attempt']}"


def events_in_order(history: History) -> Iterator[str]:
    """G11: numbered 1, 2, 3…; the first is `created`; one end at most, and last; as many starts as attempts."""
    for job, row in history.jobs.items():
        events = history.events.get(job, [])
        types = [event["type"] for event in events]
        numbers = [event["seq"] for event in events]
        if numbers != list(range(1, len(events) + 1)):
            yield f"G11: {job}: its events are numbered {numbers}"
        if row["event_seq"] != len(events):
            yield f"G11: {job}: {len(events)} events are stored, and the row says {row['event_seq']}"
        if types[:1] != ["created"] or types.count("created") != 1:
            yield f"G11: {job}: its events are {types}: not created once, and first"
        if any(kind in TERMINAL for kind in types[:-1]):
            yield f"G11: {job}: its events are {types}: something follows its end"
        if events and events[-1]["status"] != row["status"]:
            yield f"G11: {job}: its last event says {events[-1]['status']}, its row {row['status']}"
        if types.count("started") != row["attempt"]:
            yield f"G11: {job}: its events are {types}, and it is at attempt {row['attempt']}"
    for job in history.events.keys() - history.jobs.keys():
        yield f"G11: {job}: it has events and no row"


def saved_is_stored(history: History) -> Iterator[str]:
    """G3: the row knows of every acknowledged checkpoint and attempt."""
    saved: dict[str, int] = defaultdict(int)
    attempts: dict[str, int] = defaultdict(int)
    for line in history.effects:
        attempts[line["job"]] = max(attempts[line["job"]], line["attempt"])
        if line["what"] == "saved":
            saved[line["job"]] = max(saved[line["job"]], line["step"])
    for job, row in history.jobs.items():
        if row["checkpoint_seq"] < saved[job]:
            yield f"G3: {job}: step {saved[job]} was acknowledged, and {row['checkpoint_seq']} checkpoints are stored"
        if row["attempt"] < attempts[job]:
            yield f"G4: {job}: attempt {attempts[job]} has run, and the row says {row['attempt']}"


def states_whole(history: History) -> Iterator[str]:
    """G3, G17: a stored state is one that was saved, and none older than the acknowledged."""
    saved: dict[str, int] = defaultdict(int)
    for line in history.effects:
        if line["what"] == "saved":
            saved[line["job"]] = max(saved[line["job"]], line["step"])
    for job, row in history.jobs.items():
        if job in history.damaged:
            continue  # see `damage_contained`
        state: Line = {"done": 0, "trail": [], "pad": b""}
        owner = job
        if row["state"] is not None:
            try:
                _, owner, _, _, _, state, _ = msgpack.unpackb(row["state"])
            except ValueError as error:
                yield f"G17: {job}: its stored state can't be read: {error}"
                continue
        done, pad = state["done"], bytes([state["done"] % 256]) * json.loads(row["params"])["size"]
        if (owner, len(state["trail"]), state["pad"]) != (job, done, pad if done else b""):
            yield f"G3: {job}: its stored state, of step {done}, is put together of several"
        if done < saved[job]:
            yield f"G3: {job}: step {saved[job]} was acknowledged, and the stored state is of step {done}"


# ── what people asked, and who was to blame ──


def _told(history: History, request: str) -> Iterator[Line]:
    """The requests of a kind that were accepted."""
    for line in history.client:
        if line["what"] == "told" and line["request"] == request and line["outcome"] == "accepted":
            yield line


def _went_on(history: History, told: Line, *, begun_before: bool) -> Iterator[Line]:
    """Checkpoints that a handler came to after something was asked of its job, and that did not stop it.

    Args:
        history: What happened.
        told: The request; it was noted after it was accepted.
        begun_before: Whether only attempts count that had begun before that.
    """
    lines = [line for line in history.effects if line["job"] == told["job"]]
    begun = {line["attempt"]: line["t"] for line in lines if line["what"] == "begin"}
    steps = {(line["attempt"], line["step"]): line["t"] for line in lines if line["what"] == "step"}
    for line in lines:
        counts = not begun_before or begun[line["attempt"]] < told["t"]
        if counts and line["what"] == "saved" and steps[line["attempt"], line["step"]] > told["t"]:
            yield line


def cancels_kept(history: History) -> Iterator[str]:
    """G7: after a cancel was accepted its job does not go on beyond its next checkpoint, and ends in no other way."""
    for told in _told(history, "cancel"):
        job, status = told["job"], history.jobs[told["job"]]["status"]
        if status in TERMINAL - {"cancelled"}:
            yield f"G7: {job}: its cancel was accepted, and it is {status}"
        for line in _went_on(history, told, begun_before=False):
            yield f"G7: {job}: attempt {line['attempt']} saved step {line['step']} and went on after an accepted cancel"


def pauses_kept(history: History) -> Iterator[str]:
    """G8: a pause that was accepted is stored and heard of; no start follows it unless it was taken back.

    A job that ends before it sees its pause keeps its own end. A start of a manager may take back a pause, unless that
    is one across restarts: then only a person may.
    """
    for told in _told(history, "pause"):
        job = told["job"]
        events = history.events[job]
        if not any(event["type"] in {"pause_requested", "paused"} for event in events[: told["seq"]]):
            yield f"G8: {job}: its pause was accepted, and none of its events tells of it"
        if any(line["job"] == job and line["request"] == "resume" for line in history.client if line["what"] == "ask"):
            continue
        for line in _went_on(history, told, begun_before=True):
            yield f"G8: {job}: attempt {line['attempt']} saved step {line['step']} and went on after an accepted pause"
        if told.get("across") and any(event["type"] == "resumed" for event in events[told["seq"] :]):
            yield f"G8: {job}: nobody resumed it, and it did not stay paused"
    for job, events in history.events.items():
        paused = False
        for event in events:
            if event["type"] == "started" and paused:
                yield f"G8: {job}: it was started (event {event['seq']}) though a pause had not been taken back"
            paused = (paused or event["type"] in {"pause_requested", "paused"}) and event["type"] not in _TAKES_BACK


_TAKES_BACK = {"resumed", "released"}

STRIKES = 3

AMONG_OTHERS = 1 + STRIKES
"""Deaths in a row without a checkpoint after which a job does not run again, whatever ran beside it: at the first one
nobody may be to blame, but it makes a suspect, and at each further one the job was the only suspect."""


def _deaths(attempts: int, lines: list[Line], excused: set[int]) -> Iterator[tuple[int, int]]:
    """For each attempt, and the one to come, how many deaths in a row without a checkpoint were before it.

    Args:
        attempts: How many attempts a job has had.
        lines: What its handlers did. A handler that died has not left.
        excused: The processes whose deaths were no crashes.
    """
    left = {line["attempt"]: line["how"] for line in lines if line["what"] == "left"}
    begun = {line["attempt"]: line for line in lines if line["what"] == "begin"}
    saved = {line["attempt"] for line in lines if line["what"] == "saved"}
    saved |= {one for one, later in pairwise(sorted(begun)) if begun[later]["at"] > begun[one]["at"]}
    deaths = 0
    for attempt in range(1, attempts + 1):
        yield attempt, deaths
        if attempt in saved or left.get(attempt) in {"Completed", "Failed", "Interrupted"}:
            deaths = 0
        if attempt not in left and begun.get(attempt, {}).get("pid") not in excused:
            deaths += 1
    yield attempts + 1, deaths


def poison_contained(history: History) -> Iterator[str]:
    """G9: who ends its process again and again is held in time, and nobody else is.

    Who was told to stop, or whose machine was started again, may be killed without having crashed.
    """
    excused = {line["pid"] for line in history.client if line["what"] in {"terminated", "rebooted"}}
    released = {line["job"] for line in history.client if line["what"] == "ask" and line["request"] == "release"}
    lines: dict[str, list[Line]] = defaultdict(list)
    for line in history.effects:
        lines[line["job"]].append(line)
    for job in history.jobs.keys() - released:
        *attempts, (_, deaths) = _deaths(history.jobs[job]["attempt"], lines[job], excused)
        for attempt, before in attempts:
            if before >= AMONG_OTHERS:
                yield f"G9: {job}: attempt {attempt} began after {before} deaths in a row without a checkpoint"
        if history.jobs[job]["reason"] == "crash_loop" and deaths < STRIKES:
            yield f"G9: {job}: it is held as a crash loop after {deaths} deaths in a row without a checkpoint"


def damage_contained(history: History) -> Iterator[str]:
    """G10, G17: what was damaged never reaches user code, and its bytes are kept."""
    for line in history.effects:
        damaged = history.damaged.get(line["job"])
        by_handler = line["what"] not in {"left", "finished"}  # which tell of an attempt from outside it
        if damaged is not None and by_handler and line["attempt"] > damaged["attempt"]:
            since = f"was damaged after attempt {damaged['attempt']}"
            yield f"G17: {line['job']}: attempt {line['attempt']} did something ({line['what']}) with what {since}"
    for job, damaged in history.damaged.items():
        row = history.jobs.get(job)
        if row is None or (row["state"] or b"") != bytes.fromhex(damaged["state"]):
            yield f"G10: {job}: the bytes of its damaged state were not kept"


def living_spared(history: History) -> Iterator[str]:
    """G14: nobody is taken for dead who is alive, whatever the clocks say."""
    for life in history.lives:
        if life["pid"] in history.living and life["ended_how"] not in {None, "left"}:
            yield f"G14: the life {life['id']} was noted as {life['ended_how']}, and process {life['pid']} is alive"


def undamaged(history: History) -> Iterator[str]:
    """The database is whole."""
    for damage in history.damage:
        yield f"the database is damaged: {damage}"


# ── once all is done ──


def all_completed(history: History) -> Iterator[str]:
    """G1, G6: every job that is stored has been completed, also those whose dispatch was never acknowledged.

    Others may rest where somebody asked them to, accepted or not, and poison where it is held.
    """
    asked = {(line["job"], line["request"]) for line in history.client if line["what"] == "ask"}
    for job, row in history.jobs.items():
        if job in history.damaged:
            continue  # see `damaged_set_aside`
        rests = row["reason"] == "crash_loop" or (job, _ASKED_FOR.get(row["status"])) in asked
        if row["status"] != "completed" and not rests:
            yield f"G6: {job} is {row['status']} ({row['reason'] or row['error_message'] or 'no reason given'})"
        if row["life"] is not None or row["rank"] is not None or row["wanted"] is not None:
            held = {name: row[name] for name in ("life", "rank", "wanted") if row[name] is not None}
            yield f"G6: {job} is {row['status']}, and still has {held}"


_ASKED_FOR = {"cancelled": "cancel", "paused": "pause"}


def damaged_set_aside(history: History) -> Iterator[str]:
    """G10: a damaged job is where it does no harm."""
    for job, damaged in history.damaged.items():
        row = history.jobs.get(job)
        if row is not None and (row["status"], row["reason"]) != (damaged["status"], damaged["reason"]):
            due = f"it was damaged, so that it had to become {damaged['status']} ({damaged['reason']})"
            yield f"G10: {job} is {row['status']} ({row['reason']}): {due}"


def results_right(history: History) -> Iterator[str]:
    """G3: each result was put together by the attempts whose checkpoints were acknowledged, and by no others."""
    did = {(line["job"], line["attempt"], line["step"]) for line in history.effects if line["what"] == "step"}
    saved = {(line["job"], line["step"]): line["attempt"] for line in history.effects if line["what"] == "saved"}
    for job, row in history.jobs.items():
        if row["status"] != "completed":
            continue
        params = json.loads(row["params"])
        trail, steps = json.loads(row["output"] or "null"), params["steps"]
        if not isinstance(trail, list) or len(trail) != steps:
            yield f"G3: {job}: after {steps} steps its result is {trail}"
            continue
        if row["checkpoint_seq"] != steps and params["trap"] != "linger":  # which saves once more when it is stopped
            yield f"G3: {job}: it has {steps} steps, and {row['checkpoint_seq']} checkpoints were stored"
        if any(later < earlier for earlier, later in pairwise(trail)):
            yield f"G4: {job}: its steps were done by attempts {trail}, in this order"
        for step, attempt in enumerate(trail, 1):
            if (job, attempt, step) not in did:
                yield f"G3: {job}: its result says that attempt {attempt} did step {step}, and it didn't"
            if saved.get((job, step), attempt) != attempt:
                yield f"G3: {job}: attempt {attempt}'s step {step} is stored, not attempt {saved[job, step]}'s"


def all_over(history: History) -> Iterator[str]:
    """G6: every life is noted as over."""
    for life in history.lives:
        if life["ended_at"] is None:
            yield f"G6: the life {life['id']} of process {life['pid']} is not noted as over"


ALWAYS = (
    dispatches_kept, refused_stays_away, one_job_a_key, finished_stays, events_in_order, saved_is_stored, states_whole,
    damage_contained, undamaged, cancels_kept, pauses_kept, poison_contained,
)  # fmt: skip
AT_REST = (all_completed, damaged_set_aside, results_right, all_over)
