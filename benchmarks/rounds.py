"""Rounds: every measurement once in each, and right before each the limit that it is compared with.

So noise that lasts for seconds hits a limit and its workload alike, and noise that lasts for minutes hits whole rounds.
Ratios are made within a round. Each measurement is a process of its own in an empty folder, without settings of the
machine's own: durability, history and all else are as jobkit has them by default.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from benchmarks.figures import Measurement

ROOT: Final = Path(__file__).parent.parent
TIMEOUT_S: Final = 300


class Found:
    """What all rounds found.

    Attributes:
        values: By figure, each value in the order in which they came.
        ratios: By figure, each value as a share of the limit measured right before it.
    """

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = defaultdict(list)
        self.ratios: dict[str, list[float]] = defaultdict(list)

    def take(self, answer: dict[str, float]) -> None:
        """Note what a measurement answered."""
        for name, value in answer.items():
            self.values[name].append(value)


def measure(
    measurements: Iterable[Measurement], rounds: int, folder: Path, *, quick: bool, say: Callable[[str], None]
) -> Found:
    """Take them all, `rounds` times.

    Args:
        measurements: What to take, in this order; a limit that one is compared with comes by itself.
        rounds: How often.
        folder: Where each process makes a folder of its own: on the disk to measure.
        quick: Small sizes, for a trial.
        say: Told what is being done.
    """
    found = Found()
    for number in range(1, rounds + 1):
        for one in measurements:
            say(f"round {number} of {rounds}: {one.name}")
            limit = None if one.limit is None else _take(one.limit, folder, quick=quick)
            answer = _take(one.name, folder, quick=quick)
            found.take(answer)
            if limit is not None:
                found.take(limit)
                found.ratios[one.name].append(answer[one.name] / limit[str(one.limit)])
    return found


def _take(name: str, folder: Path, *, quick: bool) -> dict[str, float]:
    """Take one measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.one", name, *(["--quick"] if quick else [])]
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("JOBKIT_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    if done.returncode:
        raise SystemExit(f"the measurement {name} failed:\n{done.stderr}")
    answer: dict[str, float] = json.loads(done.stdout)
    return answer
