"""Crash points: the named places on a job's path at which a test may stop the process.

The path calls `reach(name)` where a death is interesting: before and after each commit, between a claim and the
handler. In production nothing is armed and the call costs one comparison. `jobkit.testing.kill_at` arms a point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

POINTS: Final = frozenset(
    f"{what}.{when}"
    for what in (
        "dispatch",
        "claim",
        "checkpoint",
        "session",
        "report",
        "control",
        "finish",
        "give_back",
        "recovery",
        "register",
        "renew",
        "leave",
        "retire",
    )
    for when in ("before_commit", "after_commit")
) | {"run.before_handler", "run.after_handler", "schema.before_commit", "schema.after_commit"}
"""Every point there is."""

_armed: Callable[[str], None] | None = None


def arm(hook: Callable[[str], None] | None) -> None:
    """Call `hook` with the name of each point that is reached from now on; None disarms."""
    global _armed  # noqa: PLW0603  one switch a process, for tests alone
    _armed = hook


def reach(point: str) -> None:
    """Say that the path has come to a point."""
    if _armed is not None:
        _armed(point)
