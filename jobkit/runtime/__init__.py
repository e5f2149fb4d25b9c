"""What makes jobs move: time, tasks and threads around the store.

One straight line: `manager` (dispatch) → `writer` (one commit for all who wait) → `worker` (claim) → `runner` (one
attempt) → an executor → back through the writer. `recovery` puts dead owners' jobs back in the line; `leases` proves
that this owner lives; `feed` tells what was committed; `clock` and `loops` are the system's time, threads and event
loop. `blocking` is the same for callers without a loop, through a `portal`.
"""
