"""Records as JSON, for programs: the fields of `JobRecord` under their own names, times in ISO 8601."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobkit import Event, JobRecord


def record_json(record: JobRecord) -> dict[str, Any]:
    """Say a record in what JSON knows."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(record), default=_text))
    return plain


def event_json(event: Event) -> dict[str, Any]:
    """Say an event in what JSON knows."""
    told = event._asdict()
    told.pop("job_id")
    plain: dict[str, Any] = json.loads(json.dumps(told, default=_text))
    return plain


def dump(value: object, *, lines: bool = False) -> str:
    """Write JSON: indented, or on one line. No sign needs a particular encoding of the terminal."""
    return json.dumps(value) if lines else json.dumps(value, indent=2)


def _text(value: object) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
