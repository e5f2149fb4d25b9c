"""G3: every state field comes back equal and of its own type at every level, or is refused by its path."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from jobkit import SerializationError, StateVersionError
from tests.rules.kinds import ALL_CHANGED, KINDS, REFUSED, Nested, Newer, holding, same, through

NAMES = [name for name, _, _ in KINDS]


def test_the_catalogue_is_long_enough() -> None:
    """The 83 kinds that were tried before the first line was written are all here, each once."""
    assert len(set(NAMES)) == len(NAMES) >= 120


EACH = pytest.mark.parametrize(("hint", "values"), [(hint, values) for _, hint, values in KINDS], ids=NAMES)


@EACH
def test_a_kind_comes_back(hint: Any, values: list[Any]) -> None:
    """Each value comes back from its own field, from one that takes anything, from inside containers; and once more."""
    kind = holding(hint)
    for value in values:
        before = copy.deepcopy(value)
        again = through(kind, kind, field=value, anything=[value, {"k": (value,)}])
        assert same(value, before)  # packing changes nothing
        assert same(again.field, before)
        assert same(again.anything, [before, {"k": (before,)}])
        assert same(through(kind, kind, field=again.field).field, before)


@EACH
def test_a_kind_comes_back_whatever_has_changed_beside_it(hint: Any, values: list[Any]) -> None:
    """A class that has changed since changes nothing in values of other classes, not even if they never fitted."""
    kind, later = holding(hint), holding(hint, Newer)
    for value in values:
        again = through(kind, later, field=value, anything=[value])
        assert same(again.field, value)
        assert same(again.anything, [value])


@EACH
def test_a_kind_fits_its_own_declaration(hint: Any, values: list[Any]) -> None:
    """What fits is left as it is, unvalidated, even if its own class has changed; only what does not fit is refused."""
    kind = holding(hint)
    for value in values:
        if value != [] and value == Nested.model_construct(name=5, at="never"):
            with pytest.raises(StateVersionError, match="name: Input should be a valid string"):
                through(kind, kind, ALL_CHANGED, field=value)
        else:
            assert same(through(kind, kind, ALL_CHANGED, field=value).field, value)


@pytest.mark.parametrize(
    ("hint", "value", "below", "match"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused(hint: Any, value: Any, below: str, match: str) -> None:
    """What can't be kept is refused at the checkpoint, with the path to it and what to do; nothing changes silently."""
    kind = holding(hint)
    job: Any = kind.cls()
    job.field = value
    with pytest.raises(SerializationError, match=match) as refused:
        kind.pack_state(job)
    assert refused.value.path == f"state.field{below}"
