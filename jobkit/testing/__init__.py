"""For tests of jobs, and of jobkit itself: time that a test moves, and deaths at named points.

`FakeClock`, `FakeIds` and `FakeThreads` stand in for the system's own behind the manager's ports. `kill_at` arms a
crash point in the present process, to be run as a child. `store_contract` and `executor_contract` hold what every store
and every executor must do; they are made of pytest tests (the store's also of hypothesis), imported only there.
"""

from jobkit.testing.crash import kill_at
from jobkit.testing.fakes import FakeClock, FakeIds, FakeThreads

__all__ = ["FakeClock", "FakeIds", "FakeThreads", "kill_at"]
