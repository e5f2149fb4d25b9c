"""Where stack overflows show: a thread with the smallest stack that platforms give by default."""

from __future__ import annotations

import threading
from collections.abc import Callable


def on_small_stack(body: Callable[[], None]) -> None:
    """Run in a thread with a stack of 512 kB; what it raises is raised here."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            body()
        except BaseException as fault:
            failures.append(fault)

    before = threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=guarded)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    if failures:
        raise failures[0]
