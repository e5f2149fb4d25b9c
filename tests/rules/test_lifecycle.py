"""The state machine, held against its specification.

`EXPECTED` is the table of what jobkit promises, written down a second time in words of its own and interpreted by
`foretell`: a second, slower state machine that shares no code with `jobkit.lifecycle`. Every status meets every trigger
in every variation of the facts, and both must agree to the last field. `DEVIATIONS` lists the cells in which the built
table differs on purpose from the first design, each with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import product
from random import Random
from typing import Any, Final, NamedTuple

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from jobkit.errors import IllegalTransition, LeaseLost
from jobkit.lifecycle import TABLE, Blame, Cause, Standing, Transition, Trigger, advance
from jobkit.model import EVENT_TYPES, TERMINAL, JobStatus, Wanted

NOW: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)
PAST: Final = NOW - timedelta(seconds=90)
FUTURE: Final = NOW + timedelta(hours=1)

WANTS: Final[tuple[Wanted | None, ...]] = (None, "pause", "cancel")
CRASHES: Final = ((False, False), (True, False), (True, True))
"""Whether the owner crashed, and whether that counts against the job; what is no crash never counts."""
BLAMES: Final[tuple[Blame, ...]] = ("hold", "cancel", "run")

OPEN: Final = ("scheduled", "waiting", "queued", "assigned", "running", "paused", "held")
FINAL: Final = ("completed", "failed", "cancelled", "timed_out", "lost")

# ── the specification ──
#
# A cell is a list of rules, "outcome if fact and fact", divided by ";": the first whose facts all hold applies. An
# outcome is a status, or one of noted, ignored, refused, fenced, removed; then what else changes:
#   :word        the reason (":given" is the cause's own,    says X      the event, where it isn't the new status
#                ":same" the job's)
#   +attempt     the attempt is raised                       quietly     no event
#   +retry       one more retry, due when the cause says     +strike     the death is counted, if it is a strike
#   unblocked    nothing is waited for any more              forgiven    strikes are forgotten
#   rewait       waits for what the cause says               keeps-life  the life stays noted
#   redue        due when the cause says                     wants=X     X is wanted from now on
#   +checkpoint  one more checkpoint                         cleared     it is no suspect any more
#   stays        outlasts a restart if the cause says so  in-time     the end of its wait is no matter any more
# A crash makes a suspect, also where it is no strike; only a pause can outlast a restart; what is over is no suspect.

ATTEMPT: Final = dict.fromkeys(["scheduled", "waiting", "queued", "assigned", "paused", "held", "terminal"], "fenced")
"""Only the attempt that holds the job may speak for it."""

EXPECTED: Final[Mapping[str, Mapping[str, str]]] = {
    "due": {
        "scheduled": "waiting if blocked; queued",
        "waiting": "scheduled unblocked if later; queued unblocked",
        "queued": "ignored", "assigned": "ignored", "running": "ignored", "paused": "ignored", "held": "ignored",
        "terminal": "ignored",
    },
    "a blocker's end": {
        "scheduled": "noted rewait",
        "waiting": "waiting rewait quietly if to-wait; queued rewait in-time if has-run; scheduled rewait if later; "
        "queued rewait",
        "queued": "noted", "assigned": "noted", "running": "noted",
        "paused": "noted rewait if to-wait; noted rewait in-time if has-run; noted rewait",
        "held": "noted rewait if to-wait; noted rewait in-time if has-run; noted rewait",
        "terminal": "ignored",
    },
    "signal": {
        "scheduled": "noted", "waiting": "noted", "queued": "noted", "assigned": "noted", "running": "noted",
        "paused": "noted", "held": "noted", "terminal": "refused",
    },
    "a dependency's failure": {
        "scheduled": "held:given if blame-hold and says-why; held:dependency_failed if blame-hold; "
                     "cancelled if blame-cancel; "
                     "waiting rewait if to-wait; scheduled rewait quietly if later; queued rewait",
        "waiting": "held:given if blame-hold and says-why; held:dependency_failed if blame-hold; "
                   "cancelled if blame-cancel; "
                   "waiting rewait quietly if to-wait; scheduled rewait if later; queued rewait",
        "queued": "refused", "assigned": "refused", "running": "refused",
        "paused": "noted", "held": "noted",
        "terminal": "ignored",
    },
    "assign": {
        "scheduled": "refused", "waiting": "refused",
        "queued": "assigned +attempt",
        "assigned": "refused", "running": "refused", "paused": "refused", "held": "refused", "terminal": "refused",
    },
    "claim": {
        "scheduled": "refused", "waiting": "refused",
        "queued": "running +attempt says started",
        "assigned": "running says started",
        "running": "refused", "paused": "refused", "held": "refused", "terminal": "refused",
    },
    "checkpoint": ATTEMPT | {"running": "noted forgiven cleared +checkpoint"},
    "report": ATTEMPT | {"running": "noted"},
    "suspend": ATTEMPT | {
        "running": "cancelled rewait redue +checkpoint forgiven cleared if to-cancel; "
                   "paused:user rewait redue +checkpoint forgiven cleared if to-pause; "
                   "waiting rewait redue +checkpoint forgiven cleared if to-wait; "
                   "scheduled rewait redue +checkpoint forgiven cleared if until-later; "
                   "queued rewait redue +checkpoint forgiven cleared",
    },
    "complete": ATTEMPT | {"running": "cancelled if to-cancel; completed"},
    "fail": ATTEMPT | {
        "running": "cancelled if to-cancel; failed if no-retry; paused:user +retry forgiven cleared if to-pause; "
                   "scheduled +retry forgiven cleared says retried",
    },
    "time-out": ATTEMPT | {
        "running": "cancelled if to-cancel; timed_out if no-retry; paused:user +retry forgiven cleared if to-pause; "
                   "scheduled +retry forgiven cleared says retried",
    },
    "pause": {
        "scheduled": "paused:user stays", "waiting": "paused:user stays", "queued": "paused:user stays",
        "assigned": "paused:user stays +attempt",
        "running": "refused if fragile; refused if to-cancel; noted if to-pause and stays-so; "
                   "noted wants=pause stays says pause_requested",
        "paused": "paused:user quietly if by-user and stays-so; paused:user stays",
        "held": "refused", "terminal": "refused",
    },
    "saved and stopped": ATTEMPT | {
        "running": "cancelled if to-cancel; paused:user if to-pause; lost if fragile; queued if others; "
                   "paused:shutdown keeps-life",
    },
    "resume": {
        "scheduled": "refused", "waiting": "refused", "queued": "refused", "assigned": "refused",
        "running": "noted wants=None says resumed if to-pause; refused",
        "paused": "waiting says resumed if blocked; scheduled says resumed if later; queued says resumed",
        "held": "refused", "terminal": "refused",
    },
    "cancel": {
        "scheduled": "cancelled", "waiting": "cancelled", "queued": "cancelled", "assigned": "cancelled",
        "running": "noted if to-cancel; noted wants=cancel says cancel_requested",
        "paused": "cancelled", "held": "cancelled",
        "terminal": "ignored",
    },
    "owner gone": {
        "scheduled": "ignored", "waiting": "ignored", "queued": "ignored",
        "assigned": "queued",
        "running": "cancelled +strike if to-cancel; paused:user +strike if to-pause; lost +strike if fragile; "
                   "held:crash_loop +strike if third-strike; queued +strike",
        "paused": "ignored", "held": "ignored", "terminal": "ignored",
    },
    "shutdown grace over": ATTEMPT | {
        "running": "cancelled if to-cancel; paused:user if to-pause; lost if fragile; queued if others; "
                   "paused:shutdown keeps-life",
    },
    "unloadable": {
        "scheduled": "ignored", "waiting": "ignored",
        "queued": "held:given", "assigned": "held:given",
        "running": "cancelled if to-cancel; held:given",
        "paused": "ignored", "held": "ignored", "terminal": "ignored",
    },
    "known again": {
        "scheduled": "ignored", "waiting": "ignored", "queued": "ignored", "assigned": "ignored", "running": "ignored",
        "paused": "ignored",
        "held": "held:same quietly if otherwise-held; waiting says released if blocked; "
                "scheduled says released if later; queued says released",
        "terminal": "ignored",
    },
    "release": {
        "scheduled": "refused", "waiting": "refused", "queued": "refused", "assigned": "refused",
        "running": "refused", "paused": "refused",
        "held": "waiting forgiven says released if blocked; scheduled forgiven says released if later; "
                "queued forgiven says released",
        "terminal": "refused",
    },
    "delete": {
        "scheduled": "refused", "waiting": "refused", "queued": "refused", "assigned": "refused",
        "running": "refused", "paused": "refused", "held": "refused",
        "terminal": "removed",
    },
}  # fmt: skip

REFUSED_TARGET: Final = {
    "assign": "assigned", "claim": "running", "pause": "paused", "resume": "queued", "release": "queued",
    "delete": "deleted", "a dependency's failure": "held", "signal": "signalled",
}  # fmt: skip
"""The status that a refused request would have led to."""

FACTS: Final[Mapping[str, Callable[[Standing, Cause, datetime], bool]]] = {
    "to-cancel": lambda job, _cause, _now: job.wanted == "cancel",
    "to-pause": lambda job, _cause, _now: job.wanted == "pause",
    "fragile": lambda job, _cause, _now: not job.resumable,
    "blocked": lambda job, _cause, _now: job.blockers > 0,
    "later": lambda job, _cause, now: job.due_at is not None and job.due_at > now,
    "stays-so": lambda job, cause, _now: job.across_restarts == cause.across_restarts,
    "otherwise-held": lambda job, _cause, _now: job.reason != "unknown_job",
    "by-user": lambda job, _cause, _now: job.reason == "user",
    "has-run": lambda job, _cause, _now: job.attempt > 0,
    "to-wait": lambda _job, cause, _now: cause.blockers > 0,
    "until-later": lambda _job, cause, now: cause.due_at is not None and cause.due_at > now,
    "no-retry": lambda _job, cause, _now: cause.due_at is None,
    "others": lambda _job, cause, _now: cause.others,
    "third-strike": lambda job, cause, _now: cause.strike and job.crash_count >= 2,
    "blame-hold": lambda _job, cause, _now: cause.blame == "hold",
    "blame-cancel": lambda _job, cause, _now: cause.blame == "cancel",
    "says-why": lambda _job, cause, _now: cause.reason is not None,
}


def cell_of(trigger: str, status: str) -> str:
    """Look a pair up in `EXPECTED`."""
    return EXPECTED[trigger]["terminal" if status in FINAL else status]


def rules_of(cell: str) -> list[tuple[str, list[str], list[str]]]:
    """Take a cell apart into its rules: the outcome, what else changes, and the facts that must hold."""
    rules = []
    for rule in cell.split(";"):
        outcome, _, facts = rule.partition(" if ")
        head, *rest = outcome.split()
        rules.append((head, rest, facts.split(" and ") if facts else []))
    return rules


def foretell(job: Standing, cause: Cause, now: datetime) -> tuple[str, Standing, str | None]:
    """Work out from `EXPECTED` alone what is to happen: the kind of outcome, the standing and the event after it."""
    rules = rules_of(cell_of(cause.trigger.value, job.status.value))
    head, rest, _ = next(rule for rule in rules if all(FACTS[fact](job, cause, now) for fact in rule[2]))
    word, _, reason = head.partition(":")
    if word in {"ignored", "refused", "fenced", "removed"}:
        return word, job, None
    new: dict[str, Any] = {}
    event = None if word == "noted" else word
    if word != "noted":
        new = {"status": JobStatus(word), "wanted": None, "reason": reason or None, "life": None, "running_since": None}
        if reason in {"given", "same"}:
            new["reason"] = cause.reason if reason == "given" else job.reason
        new["across_restarts"] = job.across_restarts and word == "paused"
        new["suspect"] = job.suspect and word not in FINAL
        if word in {"assigned", "running"}:
            new["life"] = cause.life
        if word == "running":
            new["running_since"] = now
        if job.status is JobStatus.RUNNING and job.running_since is not None:
            new["run_s"] = job.run_s + max((now - job.running_since).total_seconds(), 0.0)
    changes: Mapping[str, Mapping[str, Any]] = {
        "+attempt": {"attempt": job.attempt + 1},
        "+checkpoint": {"checkpoint_seq": job.checkpoint_seq + 1},
        "+retry": {"retry_count": job.retry_count + 1, "due_at": cause.due_at},
        "+strike": {
            "crash_count": job.crash_count + (1 if cause.strike else 0),
            "suspect": (job.suspect or cause.crashed) and word not in FINAL,
        },
        "forgiven": {"crash_count": 0},
        "cleared": {"suspect": False},
        "stays": {"across_restarts": cause.across_restarts},
        "keeps-life": {"life": job.life},
        "redue": {"due_at": cause.due_at},
        "rewait": {"blockers": cause.blockers},
        "in-time": {"due_at": None},
        "unblocked": {"blockers": 0},
        "wants=None": {"wanted": None, "across_restarts": False},
        "wants=cancel": {"wanted": "cancel", "across_restarts": False},
        "wants=pause": {"wanted": "pause"},
    }
    words = iter(rest)
    for change in words:
        if change in {"says", "quietly"}:
            event = next(words) if change == "says" else None
        else:
            new |= changes[change]
    if event is not None:
        new["event_seq"] = job.event_seq + 1
    return ("noted" if word == "noted" else "moved"), job._replace(**new), event


def outcome_of(job: Standing, cause: Cause, now: datetime) -> Transition | IllegalTransition | LeaseLost:
    """Let the cause act on the job, and take what it raises for a value."""
    try:
        return advance(job, cause, now)
    except (IllegalTransition, LeaseLost) as error:
        return error


def check(job: Standing, cause: Cause, now: datetime) -> Transition | None:
    """Let the cause act on the job and hold the outcome against `EXPECTED`; None where it was refused or fenced."""
    kind, after, event = foretell(job, cause, now)
    done = outcome_of(job, cause, now)
    if kind == "refused":
        assert isinstance(done, IllegalTransition), f"{job} took {cause}"
        target = REFUSED_TARGET[cause.trigger.value]
        assert (done.job_id, done.status, done.request, done.target) == (job.id, job.status, cause.trigger, target)
        assert all(word in str(done) for word in (job.id, f"is {job.status.value}:", cause.trigger.value, target))
        return None
    if kind == "fenced":
        assert isinstance(done, LeaseLost), f"{job} took {cause}"
        assert (done.job_id, done.attempt) == (job.id, job.attempt)
        return None
    assert done == Transition(job, cause, after, event), f"{job.status} meets {cause}\nbefore {job}"
    return done


def oddities(job: Standing) -> Iterator[str]:
    """Say what about a standing can't be: no walk may reach such a job, so no pair is tried with one."""
    status = job.status.value
    if job.wanted is not None and status != "running":
        yield "something is wanted of a job that is not running"
    if job.wanted == "pause" and not job.resumable:
        yield "a pause is wanted of a job that can't be resumed"
    if (job.running_since is not None) != (status == "running"):
        yield "running_since is set if and only if the job is running"
    if (job.life is not None) != (status in {"assigned", "running"} or job.reason == "shutdown"):
        yield "a life is named if and only if it holds the job or paused it when shutting down"
    if (job.reason is not None) != (status in {"paused", "held"}):
        yield "a reason is given if and only if the job is paused or held"
    if (status == "paused") != (job.reason in {"user", "shutdown"}):
        yield "a pause is by the user or by a shutdown"
    if job.across_restarts and status != "paused" and job.wanted != "pause":
        yield "what is not to be paused outlasts a restart"
    if job.across_restarts and job.reason == "shutdown":
        yield "a shutdown's pause outlasts a restart"
    if job.suspect and status in FINAL:
        yield "what is over is a suspect"
    if job.blockers and status in {"queued", "assigned", "running"}:
        yield "a job that still waits for something is ready or runs"
    if not job.blockers and status == "waiting":
        yield "a job waits for nothing"


def standings(status: JobStatus) -> Iterator[Standing]:
    """All the standings with a status that differ in a fact that matters."""
    running = status is JobStatus.RUNNING
    for attempt, wanted, resumable, reason, blockers, due_at, (crashes, suspect), stays, since in product(
        (0, 3) if status in {JobStatus.WAITING, JobStatus.PAUSED, JobStatus.HELD} else (3,),
        WANTS, (True, False), (None, "user", "shutdown", "crash_loop", "unknown_job"), (0, 2),
        (None, NOW, FUTURE), ((1, False), (2, True)), (False, True), (PAST, FUTURE) if running else (None,),
    ):  # fmt: skip
        held = status in {JobStatus.ASSIGNED, JobStatus.RUNNING} or reason == "shutdown"
        job = Standing(
            id="job-1", status=status, attempt=attempt, wanted=wanted, reason=reason, resumable=resumable, priority=7,
            blockers=blockers, due_at=due_at, retry_count=1, crash_count=crashes, event_seq=7, checkpoint_seq=4,
            suspect=suspect, across_restarts=stays,
            life="life-1" if held else None, running_since=since, run_s=10.0,
        )  # fmt: skip
        if not any(oddities(job)):
            yield job


def causes(trigger: Trigger, status: JobStatus) -> Iterator[Cause]:
    """All the ways in which a trigger may come; where no fact may matter, the two that have nothing in common."""
    plain = Cause(trigger, life="life-2")
    busy = Cause(
        trigger, "life-2", "corrupt_state", FUTURE, 1, "run",
        others=True, across_restarts=True, crashed=True, strike=True,
    )  # fmt: skip
    if cell_of(trigger.value, status.value) in {"ignored", "refused", "fenced", "removed", "noted", "noted rewait"}:
        yield from (plain, busy)
        return
    for due_at, blockers, blame, others, (crashed, strike), reason in product(
        (None, NOW, FUTURE), (0, 1), BLAMES, (False, True), CRASHES, (None, "corrupt_state")
    ):
        yield replace(
            plain, due_at=due_at, blockers=blockers, blame=blame, reason=reason,
            others=others, across_restarts=others, crashed=crashed, strike=strike,
        )  # fmt: skip


PAIRS: Final = [
    pytest.param(trigger, status, id=f"{trigger.name.lower()}-{status.value}")
    for trigger in Trigger
    for status in JobStatus
]


# ── the whole table ──


def test_specification_is_complete():
    """Every trigger and every status stands in the specification: none can be added without saying what it does."""
    assert set(EXPECTED) == {trigger.value for trigger in Trigger}
    assert {*OPEN, *FINAL} == {status.value for status in JobStatus}
    assert set(FINAL) == {status.value for status in TERMINAL}
    assert all(set(row) == {*OPEN, "terminal"} for row in EXPECTED.values())


@pytest.mark.parametrize(("trigger", "status"), PAIRS)
def test_every_pair_in_every_variation(trigger: Trigger, status: JobStatus):
    """G2, G4, G7, G8, G9, G11: each pair of status and trigger does exactly what is promised, and changes nothing else.

    That is: status, wanted, reason, attempt, retries, strikes, what it waits for and until when, life, running time,
    event and its number. A refusal names the status and the target; a fenced attempt gets `LeaseLost`.
    """
    jobs = list(standings(status))
    assert jobs
    reached = set()
    for job, cause in product(jobs, list(causes(trigger, status))):
        done = check(job, cause, NOW)
        if done is not None and TABLE[trigger][status].answer in {"move", "note"}:
            reached.add(done.after.status)
    assert reached == set(TABLE[trigger][status].targets), "each target is reached by some facts, and nothing else is"


@pytest.mark.parametrize(("trigger", "status"), PAIRS)
def test_table_declares_what_is_promised(trigger: Trigger, status: JobStatus):
    """The table, from which the diagram is drawn, names for each cell just the kinds of outcome that are promised."""
    words = {head.partition(":")[0] for head, _, _ in rules_of(cell_of(trigger.value, status.value))}
    cell = TABLE[trigger][status]
    if "noted" in words:
        assert words <= {"noted", "refused"}
        assert (cell.answer, cell.targets) == ("note", (status,))
    elif words & {"ignored", "refused", "fenced", "removed"}:
        (word,) = words
        assert cell.answer == {"ignored": "ignore", "refused": "refuse", "fenced": "fence", "removed": "remove"}[word]
        assert (cell.targets, cell.decide) == ((), None)
    else:
        assert cell.answer == "move"
        assert sorted(target.value for target in cell.targets) == sorted(words)


def test_nothing_to_do_leaves_the_very_same_standing():
    """G2: what is ignored answers with the standing that it met, so that the store has nothing to write."""
    for status in TERMINAL:
        job = Standing("job-1", status, attempt=1, event_seq=4)
        for trigger in (Trigger.CANCEL, Trigger.OWNER_GONE, Trigger.DUE, Trigger.DELETE):
            done = advance(job, Cause(trigger), NOW)
            assert done.after is job
            assert done.event is None


@pytest.mark.parametrize("trigger", list(Trigger))
def test_lines_of_the_log_are_numbered_before_the_event(trigger: Trigger):
    """G11: lines that come with a cause raise the number of the latest event by one each, and change nothing else.

    The cause's own event has the last number; where a cause does nothing, no line is numbered, for none is stored.
    """
    for status in JobStatus:
        job = Standing("job-1", status, attempt=1, event_seq=4, blockers=int(status is JobStatus.WAITING))
        cause = Cause(trigger, life="life-1", reason="corrupt_state")
        if isinstance(alone := outcome_of(job, cause, NOW), Transition):
            told = advance(job, cause, NOW, lines=3)
            acts = TABLE[trigger][status].answer in {"move", "note"}
            assert told.after == alone.after._replace(event_seq=alone.after.event_seq + 3 * acts)
            assert told.event == alone.event
            assert acts or told.after is job
        else:
            with pytest.raises(type(alone)):
                advance(job, cause, NOW, lines=3)


def test_running_time_is_added_up_over_attempts():
    """Running time counts the seconds of every attempt, and none between them: that is what a time-out measures."""
    job = Standing("job-1", JobStatus.QUEUED, run_s=2.5)
    job = advance(job, Cause(Trigger.CLAIM, life="a"), NOW).after
    job = advance(job, Cause(Trigger.FAIL, due_at=NOW), NOW + timedelta(seconds=4)).after
    assert job.run_s == 6.5
    job = advance(job, Cause(Trigger.DUE), NOW + timedelta(hours=5)).after
    job = advance(job, Cause(Trigger.CLAIM, life="a"), NOW + timedelta(hours=6)).after
    job = advance(job, Cause(Trigger.COMPLETE), NOW + timedelta(hours=6, microseconds=250_000)).after
    assert job.run_s == 6.75


# ── where the table differs from its first design ──


@dataclass(frozen=True)
class Deviation:
    """A cell that is built otherwise than it was first designed.

    Attributes:
        why: The reason.
        job: A standing that meets it.
        cause: What happens to it.
        designed: The outcome of the first design.
        built: What happens instead: the status after it, or the word for the outcome.
        reason: The reason of the pause or the hold, if it ends in one.
    """

    why: str
    job: Standing
    cause: Cause
    designed: str
    built: str
    reason: str | None = None


def running(**facts: Any) -> Standing:
    """Make a job in its first attempt."""
    return Standing("job-1", JobStatus.RUNNING, attempt=1, life="life-1", running_since=PAST, **facts)


DEVIATIONS: Final = {
    "a retry does not lose a wanted pause": Deviation(
        "back-off is a wait like any other: were it scheduled, it would run on though a person was told it pauses",
        running(wanted="pause"), Cause(Trigger.FAIL, due_at=FUTURE), "scheduled", "paused", "user",
    ),
    "a retry after a time-out does not lose a wanted pause": Deviation(
        "as above", running(wanted="pause"), Cause(Trigger.TIME_OUT, due_at=FUTURE), "scheduled", "paused", "user",
    ),
    "the grace's end honours a wanted cancel": Deviation(
        "G7: an accepted cancel is never lost, least of all by queuing the job for another worker",
        running(wanted="cancel"), Cause(Trigger.GRACE_OVER, others=True), "queued", "cancelled",
    ),
    "the grace's end honours a wanted pause": Deviation(
        "G8: beside another worker it would run on; paused by shutdown it would resume at the next start",
        running(wanted="pause"), Cause(Trigger.GRACE_OVER, others=True), "queued", "paused", "user",
    ),
    "an unloadable job honours a wanted cancel": Deviation(
        "G7: nobody need mend what is no longer wanted",
        running(wanted="cancel"), Cause(Trigger.UNLOADABLE, reason="corrupt_state"), "held", "cancelled",
    ),
    "a job being cancelled can't be paused": Deviation(
        "cancel outranks pause: `accepted` would promise a pause that can't come, or take back the cancel",
        running(wanted="cancel"), Cause(Trigger.PAUSE), "noted", "refused",
    ),
    "a paused job stays blocked by a failed dependency": Deviation(
        "the note is the blocker itself: once resumed it waits, and a sweep finds the failure and asks the policy",
        Standing("job-1", JobStatus.PAUSED, reason="user", blockers=1), Cause(Trigger.DEPENDENCY_FAILED), "noted",
        "noted",
    ),
    "a held job stays blocked by a failed dependency": Deviation(
        "as above, once released",
        Standing("job-1", JobStatus.HELD, reason="corrupt_state", blockers=1), Cause(Trigger.DEPENDENCY_FAILED),
        "noted", "noted",
    ),
    "a paused job that falls due needs no note": Deviation(
        "its due time stays on the row, and a resume works out anew where the job goes",
        Standing("job-1", JobStatus.PAUSED, reason="user", due_at=PAST, blockers=1), Cause(Trigger.DUE), "noted",
        "ignored",
    ),
    "a held job that falls due needs no note": Deviation(
        "as above, once released",
        Standing("job-1", JobStatus.HELD, reason="corrupt_state", due_at=PAST, blockers=1), Cause(Trigger.DUE),
        "noted", "ignored",
    ),
    "a shutdown never gives back a job that is not resumable": Deviation(
        "its next claim would be the second attempt that it must never have; at the grace's end it is lost as well",
        running(resumable=False), Cause(Trigger.STOPPED), "paused", "lost",
    ),
    "nor beside another working life": Deviation(
        "as above", running(resumable=False), Cause(Trigger.STOPPED, others=True), "queued", "lost",
    ),
    "a scheduled job that falls due still waits for its dependencies": Deviation(
        "a delay and a dependency may be given together, and both count",
        Standing("job-1", JobStatus.SCHEDULED, due_at=PAST, blockers=1), Cause(Trigger.DUE), "queued", "waiting",
    ),
    "a wait that times out ends before the job is due": Deviation(
        "due_at says not to run before: as when the last blocker goes, it is scheduled",
        Standing("job-1", JobStatus.WAITING, due_at=FUTURE, blockers=1), Cause(Trigger.DUE), "queued", "scheduled",
    ),
    "the policy to run all the same waits for the other dependencies": Deviation(
        "one has failed; the rest may still succeed, and the job reads what they leave",
        Standing("job-1", JobStatus.WAITING, blockers=2), Cause(Trigger.DEPENDENCY_FAILED, blame="run", blockers=1),
        "queued", "waiting",
    ),
}  # fmt: skip


@pytest.mark.parametrize("deviation", DEVIATIONS.values(), ids=DEVIATIONS)
def test_deliberate_deviation(deviation: Deviation):
    """G4, G7, G8: each departure from the designed table is on purpose, and its reason is written beside it."""
    assert deviation.why
    done = check(deviation.job, deviation.cause, NOW)
    if deviation.built == "refused":
        assert done is None
    elif deviation.built in {"noted", "ignored"}:
        assert done is not None
        assert done.after == deviation.job
        assert done.after.blockers
    else:
        assert done is not None
        assert (done.after.status.value, done.after.reason) == (deviation.built, deviation.reason)
        assert deviation.built != deviation.designed


def test_noted_dependency_is_found_again():
    """A dependency that failed while its dependant was paused or held leads to a wait, not to a run, on resume."""
    for job, way_out in (
        (Standing("job-1", JobStatus.PAUSED, reason="user", blockers=1), Trigger.RESUME),
        (Standing("job-1", JobStatus.HELD, reason="corrupt_state", blockers=1), Trigger.RELEASE),
    ):
        noted = advance(job, Cause(Trigger.DEPENDENCY_FAILED, blame="hold"), NOW).after
        waits = advance(noted, Cause(way_out), NOW).after
        assert waits.status is JobStatus.WAITING
        assert advance(waits, Cause(Trigger.DEPENDENCY_FAILED), NOW).after.reason == "dependency_failed"


def test_a_resume_overtakes_the_stop():
    """G8: a job that is resumed while its handler already stops for the pause goes on: this life still works."""
    job = advance(running(), Cause(Trigger.PAUSE), NOW).after
    job = advance(job, Cause(Trigger.RESUME), NOW).after
    assert advance(job, Cause(Trigger.STOPPED, others=True), NOW).after.status is JobStatus.QUEUED


def test_strikes_are_counted_whatever_was_wanted():
    """G9: a pause asked for between two deaths does not hide a strike, and a reboot after it adds none."""
    job = running(wanted="pause", crash_count=2)
    job = advance(job, Cause(Trigger.OWNER_GONE, strike=True), NOW).after
    assert (job.status, job.crash_count) == (JobStatus.PAUSED, 3)
    job = advance(job, Cause(Trigger.RESUME), NOW).after
    job = advance(job, Cause(Trigger.CLAIM, life="life-2"), NOW).after
    rebooted = advance(job, Cause(Trigger.OWNER_GONE, strike=False), NOW).after
    assert (rebooted.status, rebooted.crash_count) == (JobStatus.QUEUED, 3)
    died = advance(job, Cause(Trigger.OWNER_GONE, strike=True), NOW).after
    assert (died.status, died.reason) == (JobStatus.HELD, "crash_loop")


def test_a_checkpoint_forgives_strikes():
    """G9: only deaths without a newer checkpoint between them add up, and what is saved is no suspect any more."""
    saved = advance(running(crash_count=2, suspect=True), Cause(Trigger.CHECKPOINT), NOW).after
    assert (saved.crash_count, saved.suspect) == (0, False)


def test_a_handler_that_ends_by_itself_breaks_the_row():
    """G9: strikes are crashes in a row; an attempt that merely failed, and is retried, ends the row."""
    retried = advance(running(crash_count=2, suspect=True), Cause(Trigger.FAIL, due_at=FUTURE), NOW).after
    assert (retried.status, retried.crash_count, retried.suspect) == (JobStatus.SCHEDULED, 0, False)


def test_a_pause_across_restarts_is_asked_for_anew():
    """G8: whoever pauses again says whether it outlasts a restart, and each change of that is told by an event."""
    job = running()
    for stays in (False, True, True, False):
        before, job = job, advance(job, Cause(Trigger.PAUSE, across_restarts=stays), NOW).after
        assert (job.wanted, job.across_restarts) == ("pause", stays)
        assert (job.event_seq > before.event_seq) == ((before.wanted, before.across_restarts) != ("pause", stays))
    job = advance(
        advance(job, Cause(Trigger.PAUSE, across_restarts=True), NOW).after, Cause(Trigger.STOPPED), NOW
    ).after
    assert (job.status, job.reason, job.across_restarts) == (JobStatus.PAUSED, "user", True)
    assert not advance(job, Cause(Trigger.RESUME), NOW).after.across_restarts


# ── walks ──


class Step(NamedTuple):
    """One step of a walk.

    Attributes:
        wild: Whether any trigger may come, or only one that does something to a job of that status.
        pick: Which of those.
        facts: What comes with it; its own trigger doesn't count.
        seconds: How far the clock has moved since the last step; back, when negative.
    """

    wild: bool
    pick: int
    facts: Cause
    seconds: float


RARE: Final = {
    Trigger.UNBLOCK, Trigger.DEPENDENCY_FAILED, Trigger.CHECKPOINT, Trigger.REPORT, Trigger.COMPLETE, Trigger.CANCEL,
    Trigger.UNLOADABLE,
}  # fmt: skip
"""What ends a walk early, or changes little: drawn less often."""

WELCOME: Final = {
    status: [
        trigger
        for trigger in Trigger
        for _ in range(1 if trigger in RARE and status is not JobStatus.WAITING else 5)
        if not {head for head, _, _ in rules_of(cell_of(trigger.value, status.value))}
        <= {"ignored", "refused", "fenced", "removed"}
    ]
    for status in JobStatus
}
"""The triggers that may do something to a job, each as often as it is to be drawn."""

TIMES: Final = st.integers(-100, 100).map(lambda minutes: NOW + timedelta(minutes=minutes))
STEPS: Final = st.lists(
    st.builds(
        Step,
        wild=st.sampled_from([False, False, False, True]),
        pick=st.integers(0, 999),
        facts=st.builds(
            Cause,
            st.just(Trigger.REPORT),
            life=st.sampled_from(["life-1", "life-2"]),
            reason=st.sampled_from(["corrupt_state", "needs_migration", "unknown_job"]),
            due_at=st.sampled_from([None, NOW, PAST, FUTURE]) | TIMES,
            blockers=st.integers(0, 2),
            blame=st.sampled_from(BLAMES),
            others=st.booleans(),
            across_restarts=st.booleans(),
            crashed=st.booleans(),
            strike=st.booleans(),
        ),
        seconds=st.floats(-600, 3600),
    ),
    min_size=25,
    max_size=60,
)


WALKS: Final = settings(deadline=None, phases=[phase for phase in Phase if phase is not Phase.explain])
"""A failing walk is shrunk, which takes seconds, but not explained, which takes minutes."""


@st.composite
def fresh_jobs(draw: st.DrawFn) -> Standing:
    """Draw a job as dispatch leaves it: its first event is stored, nobody has held it."""
    job = Standing("job-1", JobStatus.QUEUED, resumable=draw(st.sampled_from([True, True, False])), event_seq=1)
    due_at, blockers = draw(st.none() | TIMES), draw(st.sampled_from([0, 0, 0, 1, 2]))
    if due_at is not None and due_at > NOW:
        status = draw(st.sampled_from([JobStatus.SCHEDULED, JobStatus.WAITING] if blockers else [JobStatus.SCHEDULED]))
        return job._replace(status=status, due_at=due_at, blockers=blockers)
    return job._replace(status=JobStatus.WAITING if blockers else JobStatus.QUEUED, due_at=due_at, blockers=blockers)


def walk(job: Standing, steps: list[Step]) -> Iterator[Transition]:
    """Take the steps one after the other; refused ones must leave the job as it was. Ends when its row is gone."""
    now = NOW
    for step in steps:
        now += timedelta(seconds=step.seconds)
        open_to = list(Trigger) if step.wild else WELCOME[job.status] or list(Trigger)
        cause = replace(step.facts, trigger=open_to[step.pick % len(open_to)])
        done = check(job, cause, now)
        if done is None:
            continue
        yield done
        if TABLE[cause.trigger][job.status].answer == "remove":
            return
        job = done.after


def hold_invariants(walked: Iterator[Transition]) -> Iterator[Transition]:
    """Check each transition of a walk, and pass it on."""
    for before, cause, after, event, _ in walked:
        assert not list(oddities(after)), f"{before} met {cause}"
        if before.status in TERMINAL:
            assert after == before
        assert after.attempt >= before.attempt
        if cause.trigger in {Trigger.ASSIGN, Trigger.CLAIM} and before.status is JobStatus.QUEUED:
            assert after.attempt == before.attempt + 1
        assert after.event_seq == before.event_seq + (event is not None)
        assert event is None or event in EVENT_TYPES
        if after.status is not before.status:
            assert event is not None
        if before.wanted == "cancel":
            assert (after.status, after.wanted) in {(JobStatus.RUNNING, "cancel"), (JobStatus.CANCELLED, None)}
        assert after.run_s >= before.run_s
        assert after.retry_count >= before.retry_count
        saved = cause.trigger in {Trigger.CHECKPOINT, Trigger.SUSPEND}
        assert after.checkpoint_seq == before.checkpoint_seq + saved
        assert (after.id, after.resumable, after.priority) == (before.id, before.resumable, before.priority)
        yield Transition(before, cause, after, event)


@settings(WALKS, max_examples=200)
@given(fresh_jobs(), STEPS)
def test_invariants_hold_on_any_walk(job: Standing, steps: list[Step]):
    """G2, G4, G7, G11: whatever happens to a job, in whatever order, and however the clock jumps.

    Terminal is final; the attempt never falls and rises at every claim; stored events are numbered without gaps, one
    for each change of status; a wanted cancel ends cancelled; running_since, life, reason and blockers fit the status;
    running time never falls.
    """
    assert not list(oddities(job))
    for _ in hold_invariants(walk(job, steps)):
        pass


def test_long_walks_go_everywhere():
    """G2, G4, G7, G11: the same over three thousand long walks that between them go through every move of the table.

    Hypothesis looks for short odd walks and shrinks what it finds; these, drawn evenly, are for breadth.
    """
    random = Random(20260301)
    seen: set[tuple[JobStatus, Trigger, JobStatus]] = set()
    for _ in range(3000):
        job = Standing("job-1", JobStatus.QUEUED, resumable=random.random() < 0.8, event_seq=1)
        if random.random() < 0.3:
            due_at = random.choice([None, FUTURE])
            job = job._replace(status=JobStatus.WAITING, blockers=random.randint(1, 2), due_at=due_at)
        elif random.random() < 0.3:
            job = job._replace(status=JobStatus.SCHEDULED, blockers=random.randint(0, 2), due_at=FUTURE)
        steps = [random_step(random) for _ in range(60)]
        seen |= {(met.before.status, met.cause.trigger, met.after.status) for met in hold_invariants(walk(job, steps))}
    moves = {
        (status, trigger, target) for trigger, row in TABLE.items() for status in row for target in row[status].targets
    }
    assert sorted(moves - seen) == []


def random_step(random: Random) -> Step:
    """Draw a step as `STEPS` does, but evenly."""
    cause = Cause(
        Trigger.REPORT,
        life=random.choice(["life-1", "life-2"]),
        reason=random.choice(["corrupt_state", "needs_migration", "unknown_job"]),
        due_at=random.choice([None, PAST, NOW + timedelta(minutes=random.randint(-100, 1000))]),
        blockers=random.randint(0, 2),
        blame=random.choice(BLAMES),
        others=random.random() < 0.5,
        across_restarts=random.random() < 0.5,
        crashed=random.random() < 0.9,
        strike=random.random() < 0.9,
    )
    return Step(random.random() < 0.2, random.randrange(1000), cause, random.uniform(-600, 1800))


@WALKS
@given(fresh_jobs(), STEPS)
def test_a_job_that_is_not_resumable_runs_once(job: Standing, steps: list[Step]):
    """G8: no death, shutdown or pause ever leads to a second attempt of a job that is not resumable.

    A retry that its policy asks for and a suspension of its own do, for they are its author's word; and what could
    not be loaded has not run.
    """
    entered = False
    for _, cause, after, *_ in walk(job._replace(resumable=False), steps):
        if cause.trigger is Trigger.CLAIM and after.status is JobStatus.RUNNING:
            assert not entered
            entered = True
        if cause.trigger in {Trigger.SUSPEND, Trigger.FAIL, Trigger.TIME_OUT, Trigger.UNLOADABLE}:
            entered = False


@WALKS
@given(fresh_jobs(), STEPS)
def test_stored_events_tell_the_whole_story(job: Standing, steps: list[Step]):
    """G11: who reads the stored events alone, in their order, knows every status that the job went through."""
    told = {1: job.status}
    for _, _, after, event, _ in walk(job, steps):
        if event is not None:
            told[after.event_seq] = after.status
        assert told[max(told)] is after.status
    assert list(told) == list(range(1, len(told) + 1))
