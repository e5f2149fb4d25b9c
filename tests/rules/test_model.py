"""The nouns read themselves: statuses in any spelling, filters that refuse what they can't mean, frozen records."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, fields, replace
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any, Final
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobkit.errors import InvalidFilter, InvalidJobId
from jobkit.filters import FilterFields, JobFilter, label_text
from jobkit.model import (
    EVENT_TYPES,
    TERMINAL,
    Event,
    Failure,
    JobRecord,
    JobStats,
    JobStatus,
    Page,
    Priority,
    Progress,
)

NOW: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)
ID: Final = UUID("019548f1-5a00-7000-8000-000000000001")
SYNONYMS: Final = {"pending": "queued", "succeeded": "completed", "canceled": "cancelled", "timeout": "timed_out"}
FIELDS: Final = ("status", "name", "queue", "user", "tag", "metadata", "since", "until", "parent", "text")


def record() -> JobRecord:
    """Make a record; what its fields hold does not matter here."""
    given: dict[str, Any] = dict.fromkeys((field.name for field in fields(JobRecord)), None)
    return JobRecord(**given | {"id": ID, "name": "file_copy", "status": JobStatus.RUNNING})


# ── statuses ──


@given(st.sampled_from(list(JobStatus)), st.data())
def test_a_status_is_read_in_any_letter_case(status: JobStatus, data):
    """People type statuses: letter case and blanks around them do not matter."""
    spelt = "".join(data.draw(st.sampled_from([letter.upper(), letter])) for letter in status.value)
    assert JobStatus(spelt) is status
    assert JobStatus(f" {spelt}\n") is status


@pytest.mark.parametrize(("word", "meaning"), SYNONYMS.items())
def test_other_systems_words_are_read(word, meaning):
    """Whoever comes from another job system may use its words for a status, in any letter case."""
    assert JobStatus(word) is JobStatus(word.upper()) is JobStatus(word.capitalize()) is JobStatus(meaning)


def test_synonyms_are_read_but_never_written():
    """A synonym is understood and adds no status: what is stored and shown has one spelling."""
    assert len(JobStatus) == 12
    assert not set(SYNONYMS) & {status.value for status in JobStatus}
    assert not set(SYNONYMS) & {name.lower() for name in JobStatus.__members__}
    assert [status.name for status in JobStatus] == [status.value.upper() for status in JobStatus]


@pytest.mark.parametrize("word", ["", "done", "queue", "timed out", None, 3, ["queued"]])
def test_an_unknown_status_is_refused(word):
    """A word that no status has is an error, never a guess."""
    with pytest.raises(ValueError, match="is not a valid JobStatus"):
        JobStatus(word)


def test_terminal_statuses():
    """G2: exactly five statuses are final."""
    final = {"completed", "failed", "cancelled", "timed_out", "lost"}
    assert {status.value for status in JobStatus if status.terminal} == final == set(TERMINAL)


def test_every_status_can_be_told():
    """G11: there is an event type for each status but `running`, which is told as `started`."""
    assert {status.value for status in JobStatus} - set(EVENT_TYPES) == {"running"}
    assert len(EVENT_TYPES) == len(set(EVENT_TYPES))


# ── filters ──


def of_keywords(**keywords: Any) -> JobFilter:
    """Make a filter in the way in which the manager's methods do."""
    return JobFilter.of(None, keywords)


def test_no_condition():
    """A filter without a condition is the empty one, however it is come by."""
    assert JobFilter() == JobFilter.of(None, {}) == JobFilter(status=None, name=None, metadata=None, text="")
    empty = JobFilter()
    assert {empty.status, empty.name, empty.queue, empty.user, empty.tag, empty.metadata, empty.parent} == {()}
    assert {empty.since, empty.until, empty.text} == {None}


@pytest.mark.parametrize("field", ["name", "queue", "user", "tag"])
def test_one_value_or_several(field):
    """A field takes one text or any iterable of them; a text is one value, not its letters."""
    assert getattr(of_keywords(**{field: "copy"}), field) == ("copy",)
    for several in (["copy", "move"], ("copy", "move"), iter(["copy", "move"]), {"copy": 1, "move": 2}):
        assert getattr(of_keywords(**{field: several}), field) == ("copy", "move")


def test_one_status_or_several():
    """Statuses may be given as members or words, mixed, one or several."""
    assert JobFilter(status="PENDING").status == (JobStatus.QUEUED,)
    assert JobFilter(status=JobStatus.LOST).status == (JobStatus.LOST,)
    both = JobFilter(status=[JobStatus.RUNNING, "Canceled"])
    assert both.status == (JobStatus.RUNNING, JobStatus.CANCELLED)
    assert all(type(status) is JobStatus for status in both.status)


@pytest.mark.parametrize("status", ["done", "", 3, ["running", "done"], [None]])
@pytest.mark.parametrize("make", [JobFilter, of_keywords])
def test_an_unknown_status_is_no_filter(make, status):
    """An unknown status is an error that lists all there are; ignored, it would match everything or nothing."""
    with pytest.raises(InvalidFilter, match="one of: scheduled, waiting, queued") as refusal:
        make(status=status)
    assert refusal.value.field == "status"
    assert refusal.value.allowed == tuple(status.value for status in JobStatus)
    assert refusal.value.code == "invalid_filter"


@pytest.mark.parametrize("make", [JobFilter, of_keywords])
def test_an_unknown_field_is_no_filter(make):
    """An unknown field is an error that lists the fields there are, wherever it is given."""
    with pytest.raises(InvalidFilter, match="'colour' is no field of a job filter; one of: status, name") as refusal:
        make(name="copy", colour="red")
    assert (refusal.value.field, refusal.value.value, refusal.value.allowed) == ("field", "colour", FIELDS)


def test_the_two_lists_of_fields_agree():
    """A filter's fields and the keywords that type checkers know are the same."""
    assert tuple(field.name for field in fields(JobFilter)) == tuple(FilterFields.__annotations__) == FIELDS


def test_of_reads_every_way_to_give_a_filter():
    """A filter object, a status, several, keywords, a status beside keywords: all say the same."""
    wanted = JobFilter(status="failed", name="copy")
    assert JobFilter.of(wanted, {}) is wanted
    assert JobFilter.of("failed", {"name": "copy"}) == wanted
    assert JobFilter.of(JobStatus.FAILED, {"name": "copy", "status": None}) == wanted
    assert JobFilter.of(None, {"status": "failed", "name": "copy"}) == wanted
    assert JobFilter.of(["failed", "lost"], {}) == JobFilter(status=["failed", "lost"])  # type: ignore[arg-type]  # it works all the same


@pytest.mark.parametrize(
    ("given", "keywords"), [(JobFilter(name="copy"), {"queue": "slow"}), (JobStatus.FAILED, {"status": "completed"})]
)
def test_of_ignores_nothing(given, keywords):
    """What is given twice is an error: neither of the two is dropped in silence."""
    with pytest.raises(InvalidFilter):
        JobFilter.of(given, keywords)


def test_a_naive_time_is_utc():
    """G14: `since` and `until` are UTC where they name no zone, whatever zone this machine is in."""
    naive = datetime(2026, 3, 1, 12)  # noqa: DTZ001  that is what is tested
    found = JobFilter(since=naive, until=naive)
    assert found.since == found.until == NOW
    assert found.since is not None
    assert found.since.tzinfo is UTC


def test_an_aware_time_is_turned_into_utc():
    """G14: a time in another zone is the same moment, kept in UTC like every time of the model."""
    zone = timezone(timedelta(hours=5, minutes=30))
    found = JobFilter(since=NOW.astimezone(zone), until=NOW.astimezone(zone))
    assert found.since == found.until == NOW
    assert found.since is not None
    assert found.since.isoformat() == "2026-03-01T12:00:00+00:00"


@pytest.mark.parametrize("field", ["since", "until"])
@pytest.mark.parametrize("value", ["2026-03-01", 1_772_366_400, date(2026, 3, 1)])
def test_what_is_no_time_is_refused(field, value):
    """A time must be a datetime: a text would be compared letter by letter, a day has no beginning without a zone."""
    with pytest.raises(InvalidFilter, match="a datetime") as refusal:
        of_keywords(**{field: value})
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("vsphere", "vsphere"),
        (3, "3"),
        (1, "1"),
        (0, "0"),
        (2.5, "2.5"),
        (1.0, "1"),
        (-0.0, "0"),
        (1e22, "10000000000000000000000"),
        (float("inf"), "Infinity"),
        (True, "true"),
        (False, "false"),
        (None, "null"),
    ],
)
def test_metadata_is_matched_as_text(value, text):
    """A filter says a scalar as the index does, so that the two meet; True is not 1, and None is not a text."""
    assert label_text(value) == text
    assert JobFilter(metadata={"provider": value}).metadata == (("provider", text),)


@given(st.integers(-(10**30), 10**30) | st.floats(allow_nan=False), st.integers(-(10**30), 10**30) | st.floats())
def test_equal_numbers_share_one_text(one: float, other: float):
    """Numbers that are equal are found by each other, whole or not; others never are."""
    assert (label_text(one) == label_text(other)) is (one == other)
    if isinstance(one, int) and float(one) == one:
        assert label_text(float(one)) == label_text(one)


@pytest.mark.parametrize("value", [["vsphere"], {"a": 1}, b"vsphere", pytest.param(10**5_000, id="huge")])
def test_only_scalars_of_metadata_can_be_filtered(value):
    """Nested metadata has no index: to ask for it is an error, not an empty answer."""
    with pytest.raises(InvalidFilter, match="metadata value"):
        JobFilter(metadata={"provider": value})


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        *((field, value, "a text") for field in ("name", "queue", "user", "tag") for value in (5, b"x", ["x", 5])),
        ("text", 5, "a text"),
        ("text", ["x"], "a text"),
        ("text", b"", "a text"),
        ("metadata", "x", "a mapping"),
        ("metadata", [("a", 1)], "a mapping"),
        ("metadata", 0, "a mapping"),
        ("parent", 5, "a UUID"),
        ("parent", [ID, None], "a UUID"),
        ("status", 5, "queued"),
        ("status", b"queued", "queued"),
        ("since", datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5))), "a datetime"),
    ],
)
def test_a_wrong_type_is_refused(field, value, allowed):
    """A value of a wrong type is an error that names the field and what it takes, whichever field it is."""
    with pytest.raises(InvalidFilter, match=rf"no {field} of a job filter; one of: .*{allowed}") as refusal:
        of_keywords(**{field: value})
    assert refusal.value.field == field


def test_a_key_of_metadata_is_a_text():
    """A key that is no text is refused: JSON has none."""
    wrong: Any = {1: "x"}
    with pytest.raises(InvalidFilter, match="metadata key"):
        JobFilter(metadata=wrong)


@pytest.mark.parametrize("field", ["status", "name", "queue", "user", "tag", "parent"])
def test_an_empty_list_is_refused(field):
    """No value at all may be meant as none or as all: the caller has to say."""
    empties: list[Any] = [[], (), set(), {}, iter(())]
    for empty in empties:
        with pytest.raises(InvalidFilter, match="at least one value") as refusal:
            of_keywords(**{field: empty})
        assert refusal.value.field == field
    assert JobFilter(metadata={}) == JobFilter()  # all of none do match


def test_a_parent_is_a_job_id():
    """A parent may be a UUID or its text in any spelling; they all mean the stored one."""
    spelt: list[UUID | str] = [ID, str(ID), str(ID).upper(), ID.hex]
    assert JobFilter(parent=spelt).parent == (str(ID),) * 4
    assert JobFilter(parent=ID).parent == JobFilter(parent=str(ID)).parent == (str(ID),)
    with pytest.raises(InvalidJobId, match="'mother' is not a job id"):
        JobFilter(parent="mother")


def test_a_filter_can_be_changed_copied_and_sent():
    """A filter is a value: equal ones hash alike, and replacing one field keeps the others."""
    one = JobFilter(status="queued", metadata={"a": True, "b": None}, since=NOW, parent=ID, text="co")
    assert replace(one, status=(JobStatus.FAILED,)) == JobFilter(
        status="failed", metadata={"a": True, "b": None}, since=NOW, parent=ID, text="co"
    )
    assert copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == replace(one) == one
    assert len({one, replace(one)}) == 1


# ── statistics ──


def stats(**counts: int) -> JobStats:
    """Make statistics with these counts, and zeros for the rest."""
    full = {status.value: counts.get(status.value, 0) for status in JobStatus}
    return JobStats(full, sum(counts.values()), success_rate=None, mean_duration_s=None, p95_duration_s=None)


def test_counts_read_as_attributes():
    """Every status is an attribute of the statistics: `stats.completed`."""
    found = stats(completed=3, timed_out=2)
    assert (found.completed, found.timed_out, found.queued) == (3, 2, 0)
    assert all(getattr(found, status.value) == found.counts[status] for status in JobStatus)


@pytest.mark.parametrize("name", ["complete", "pending", "COMPLETED", "__len__", "_completed"])
def test_what_is_no_status_is_no_attribute(name):
    """Anything else is an AttributeError that says what was asked of what, so that hasattr and getattr work."""
    assert not hasattr(stats(), name)
    with pytest.raises(AttributeError, match=f"'JobStats' object has no attribute '{name}'") as refusal:
        getattr(stats(), name)
    assert (refusal.value.name, isinstance(refusal.value.obj, JobStats)) == (name, True)


def test_statistics_can_be_copied_and_sent():
    """Reading counts as attributes does not trip over an object that is still being made."""
    found = stats(failed=1)
    assert copy.copy(found) == copy.deepcopy(found) == pickle.loads(pickle.dumps(found)) == found


# ── records ──


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (record(), "status"),
        (Progress(fraction=0.5), "fraction"),
        (Failure("ValueError", "no"), "message"),
        (Event(ID, 1, "created", JobStatus.QUEUED, None, None, NOW), "seq"),
        (Page([1], None), "next_cursor"),
        (stats(), "total"),
        (stats(), "completed"),
        (JobFilter(), "status"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_records_are_frozen(value, field):
    """What was read is what was stored: no one changes a record by accident, nor adds to it."""
    before = getattr(value, field)
    for name in (field, "brand_new"):
        with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
            setattr(value, name, 1)
    assert getattr(value, field) == before
    assert not hasattr(value, "brand_new")


def test_a_page_reads_like_its_items():
    """A page can be looped over and counted; an empty one is false."""
    page = Page([1, 2], "further")
    assert (list(page), len(page), page.items, page.next_cursor) == ([1, 2], 2, [1, 2], "further")
    assert not Page([], None)


def test_priorities_are_plain_integers():
    """The named priorities are integers, and leave room for others between them."""
    assert [int(priority) for priority in Priority] == [1, 5, 10, 15]
    assert Priority.NORMAL + 1 == 6
