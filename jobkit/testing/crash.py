"""Deaths at named points: the real thing, SIGKILL, where the path says it stands."""

from __future__ import annotations

import os
import signal

from jobkit import points


def kill_at(point: str, *, nth: int = 1) -> None:
    """Have this process killed when it comes to a crash point.

    Args:
        point: One of `jobkit.points.POINTS`, such as `"checkpoint.before_commit"`.
        nth: At which time of coming there, from 1.

    Raises:
        ValueError: There is no such point.
    """
    if point not in points.POINTS:
        message = f"there is no crash point {point!r}; one of: {', '.join(sorted(points.POINTS))}"
        raise ValueError(message)
    seen = 0

    def reached(name: str) -> None:
        nonlocal seen
        if name == point:
            seen += 1
            if seen == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    points.arm(reached)
