"""This process's life: registered, locked, and renewed from a thread of its own.

One lease covers all jobs of a life. It is renewed through the writer but from its own thread, so that neither a blocked
event loop nor a long handler lets it lapse. A life that can't renew in time, or finds itself noted as dead, must stop
its handlers before others may start their jobs again: `lost` is called for that.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
from typing import TYPE_CHECKING, Any, Final

from jobkit.errors import LeaseLost, StoreUnavailable
from jobkit.interfaces import Life, Register, Renew, Retire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobkit.interfaces import Clock, Hold, Ids, Store, Threads
    from jobkit.runtime.writer import Writer

log: logging.Logger = logging.getLogger("jobkit.leases")

LAST_MOMENT: Final = 0.8
"""After which part of a lease, if it could not be renewed, handlers are stopped: before others may take their jobs."""


class Lease:
    """One life, from its registration to its end."""

    def __init__(  # noqa: PLR0917  in the order in which it uses them
        self,
        store: Store,
        writer: Writer,
        clock: Clock,
        threads: Threads,
        life: Life,
        lease_s: float,
        lost: Callable[[], Any],
    ) -> None:
        """Prepare; `begin` registers it.

        Args:
            store: Holds the life's lock.
            writer: Commits what is said of it.
            clock: Measures whether a renewal came in time.
            threads: Where the renewing thread comes from.
            life: Who it is.
            lease_s: How long a lease holds, in seconds.
            lost: Called from the thread, once, when the lease is lost.
        """
        self._store, self._writer, self._clock, self._threads = store, writer, clock, threads
        self.life: Life = life
        self._lease_s, self._lost = lease_s, lost
        self._hold: Hold | None = None
        self._stop = threading.Event()

    async def begin(self) -> None:
        """Take the lock, enter the life, and start renewing."""
        self._hold = self._store.hold(self.life.id)
        try:
            await self._writer.submit(Register(self.life, self._lease_s))
        except BaseException:
            if self._hold is not None:
                self._hold.release()
            raise
        self._threads.start(self._renew, "jobkit lease")

    async def end(self) -> None:
        """Note that the life is over, and let its lock go."""
        self._stop.set()
        try:
            await self._writer.submit(Retire(self.life.id))
        except StoreUnavailable as error:
            log.warning("the end of this life could not be noted (%s); others will find it by its lock", error)
        self.forsake()

    def forsake(self) -> None:
        """Let the lock go without a word: the loop has ended under this life, and others may take over."""
        self._stop.set()
        if self._hold is not None:
            self._hold.close()
            self._hold = None

    def _renew(self) -> None:
        """Renew the lease while it can be; a database that answers late is as bad as one that refuses."""
        renewed = self._clock.monotonic()
        pause = self._lease_s / 3
        while not self._threads.wait(self._stop, pause):
            asked = self._clock.monotonic()
            answer = self._writer.ask(Renew(self.life.id, self._lease_s))
            left = renewed + self._lease_s * LAST_MOMENT - asked
            try:
                if not self._threads.wait(answer.given, max(left, self._lease_s / 10)):
                    log.error("the lease could not be renewed in time, so this life's handlers are stopped")
                    break
                answer.wait()
            except LeaseLost:
                log.error("this life was taken for dead; its jobs were given to others, so its handlers are stopped")  # noqa: TRY400  no trace to show
                break
            except StoreUnavailable as error:
                pause = self._lease_s / 10
                if left < pause:
                    log.error("the lease could not be renewed in time, so this life's handlers are stopped: %s", error)  # noqa: TRY400  as above
                    break
            else:
                renewed, pause = asked, self._lease_s / 3
        if not self._stop.is_set():
            self._lost()


def new_life(ids: Ids, node: str, versions: Mapping[str, int], boot_id: str) -> Life:
    """Describe a new life of this process."""
    return Life(str(ids.new()), node, platform.node(), boot_id, os.getpid(), True, versions)  # noqa: FBT003  `working`
