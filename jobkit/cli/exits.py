"""How a command ends: exit codes, and one line on stderr that says what to do.

An error is told by the `code` of its `JobkitError`, so this knows every error's kind without importing one.
"""

from __future__ import annotations

import sys
from typing import Final

OK: Final = 0
JOB_FAILED: Final = 1
USAGE: Final = 2
ENVIRONMENT: Final = 3
NOT_FOUND: Final = 4
CONFLICT: Final = 5
MIGRATION: Final = 6
TIMED_OUT: Final = 7
INTERRUPTED: Final = 130

_BY_CODE: Final = {
    "illegal_transition": CONFLICT,
    "invalid_filter": USAGE,
    "invalid_job_id": USAGE,
    "invalid_option": USAGE,
    "invalid_params": USAGE,
    "job_cancelled": JOB_FAILED,
    "job_failed": JOB_FAILED,
    "job_held": JOB_FAILED,
    "job_lost": JOB_FAILED,
    "job_not_found": NOT_FOUND,
    "job_timed_out": JOB_FAILED,
    "key_conflict": CONFLICT,
    "schema_mismatch": MIGRATION,
    "unknown_job": NOT_FOUND,
}


class Refused(Exception):
    """A command can't do what was asked.

    Attributes:
        exit_code: What the program ends with.
    """

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def exit_code_of(code: str) -> int:
    """Translate a `JobkitError.code`; one that stands for no other thing is about the environment."""
    return _BY_CODE.get(code, ENVIRONMENT)


def complain(message: object) -> None:
    """Say on stderr, in one line, what is wrong and what to do."""
    line = " ".join(str(message).split())
    print("jobkit:", "".join(sign for sign in line if sign.isprintable()), file=sys.stderr)
