"""What pydantic finds wrong, told by the path to it, without the values: they may be secret.

One way of telling for everything that is validated: parameters, outputs, settings, and stored objects whose class has
changed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Secret, SecretBytes, SecretStr, TypeAdapter
from pydantic.errors import PydanticUserError

from jobkit.model import MASK

if TYPE_CHECKING:
    from pydantic import ValidationError


def problems_of(error: ValidationError, unknown: Callable[[str], str] | None = None) -> dict[str, str]:
    """Tell what is wrong, by dotted path; the path of the whole value is empty.

    Args:
        error: What was raised.
        unknown: Says what is wrong with a name that is not there, at the top level; pydantic's words by default.

    Returns:
        A sentence or several for each path. They may quote values all the same, if a validator of the user's does.
    """
    problems: dict[str, str] = {}
    for one in error.errors(include_url=False, include_context=False, include_input=False):
        loc, problem = one["loc"], one["msg"]
        if unknown is not None and one["type"] == "extra_forbidden" and len(loc) == 1:
            problem = unknown(str(loc[0]))
        path = ".".join(map(str, loc))
        problems[path] = f"{problems[path]}; {problem}" if path in problems else problem
    return problems


def in_one_line(problems: dict[str, str]) -> str:
    """Join problems as `path: problem; path: problem`."""
    return "; ".join(f"{path}: {problem}" if path else problem for path, problem in problems.items())


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Ask for a name that is close to a wrong one, if there is any."""
    near = difflib.get_close_matches(name, known)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


# ── secrets ──


def may_hold_secret(annotation: Any) -> bool:
    """Tell by the JSON schema, in which pydantic marks most secrets `writeOnly`; what has none may."""
    if "pydantic.types.Secret[" in repr(annotation):
        return True
    try:
        return "'writeOnly': True" in str(TypeAdapter(annotation).json_schema())
    except PydanticUserError:
        return True


def texts_in(value: Any) -> Iterator[str]:
    """Yield every text in a value, secrets in clear."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (SecretStr, SecretBytes, Secret)):
        yield str(value.get_secret_value())
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from texts_in(one)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for one in value:
            yield from texts_in(one)


def without(secrets: set[str], problems: dict[str, str]) -> dict[str, str]:
    """Mask secrets wherever a problem quotes them; the longest first, for one may hold another."""
    for secret in sorted(secrets - {""}, key=len, reverse=True):
        problems = {path: problem.replace(secret, MASK) for path, problem in problems.items()}
    return problems
