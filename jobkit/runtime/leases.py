"""This process's life: registered, locked, and renewed from a thread of its own.

One lease covers all jobs of a life. It is renewed through the writer but from its own thread, so that neither a blocked
event loop nor a long handler lets it lapse. A life that can't renew in time, or finds itself noted as dead, must stop
its handlers before others may start their jobs again: `lost` is called for that. But where everybody can see by the
life's lock that it lives, nobody takes its jobs before its end is noted in the database, and that can be looked up even
where nothing can be written. So on a disk that is full for an hour handlers go on, and what they have to save waits.
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
        """Renew the lease until the life ends, or is lost."""
        why = self._keep()
        if not self._stop.is_set():  # else it ended in good order, and what was met on the way is no trouble
            log.error("%s, so this life's handlers are stopped", why)
            self._lost()

    def _keep(self) -> str:
        """Renew the lease while it can be, and answer why it can't; a late answer is as bad as a refusal."""
        renewed = self._clock.monotonic()
        lasts_s, pause = self._lease_s * LAST_MOMENT, self._lease_s / 3
        try:
            while not self._threads.wait(self._stop, pause):
                asked = self._clock.monotonic()
                pause = self._lease_s / 10
                answer = self._writer.ask(Renew(self.life.id, self._lease_s))
                while not self._threads.wait(answer.given, pause):
                    if self._needs_no_lease():
                        renewed = self._clock.monotonic()
                    elif self._clock.monotonic() + pause > renewed + lasts_s:
                        return "the lease could not be renewed in time"
                try:
                    answer.wait()
                except StoreUnavailable as error:
                    if self._needs_no_lease():
                        renewed = asked
                    elif asked + pause > renewed + lasts_s:
                        return f"the lease could not be renewed in time ({error})"
                else:
                    renewed, pause = asked, self._lease_s / 3
        except LeaseLost:
            return "this life was taken for dead and its jobs were given to others"
        return "this life has ended"

    def _needs_no_lease(self) -> bool:
        """Whether nobody has taken the life's jobs, or will unseen: all can see its lock, and would note its end first.

        Raises:
            LeaseLost: It is noted as over.
        """
        if self._hold is None or not self._hold.suffices:
            return False
        try:
            living = {life.id for life in self._store.lives()}
        except StoreUnavailable:
            return False
        if self.life.id not in living:
            raise LeaseLost(self.life.id, 0)
        return True


def new_life(ids: Ids, node: str, versions: Mapping[str, int], boot_id: str) -> Life:
    """Describe a new life of this process."""
    return Life(str(ids.new()), node, platform.node(), boot_id, os.getpid(), True, versions)  # noqa: FBT003  `working`
