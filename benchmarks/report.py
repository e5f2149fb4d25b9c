"""What was found, as a table and as JSON: medians, the range, the share of the limit, and what is to be reached.

The machine is told by what matters for speed; its name and paths are nobody's business.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.figures import LIMITS, WORK, Figure, Measurement

if TYPE_CHECKING:
    from benchmarks.rounds import Found

COLUMNS: Final = ("what", "median", "min–max", "of its limit", "to reach", "reached")
BEGIN: Final = "<!-- table: begin -->"
END: Final = "<!-- table: end -->"


def machine() -> dict[str, str | int | None]:
    """What the figures depend on."""
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
    }


def as_json(found: Found, rounds: int, *, quick: bool) -> dict[str, Any]:
    """All that was found, each value of it."""
    return {
        "machine": machine(),
        "rounds": rounds,
        "quick": quick,
        "figures": [_entry(one, figure, found) for one, figure in _figures(found)],
    }


def _figures(found: Found) -> list[tuple[Measurement, Figure]]:
    return [(one, figure) for one in (*LIMITS, *WORK) for figure in one.figures if found.values.get(figure.name)]


def _entry(one: Measurement, figure: Figure, found: Found) -> dict[str, Any]:
    values, ratios = found.values[figure.name], found.ratios.get(figure.name, [])
    return {
        "name": figure.name,
        "what": figure.what,
        "unit": figure.unit,
        "median": statistics.median(values),
        "values": values,
        "limit": one.limit if ratios else None,
        "ratio": statistics.median(ratios) if ratios else None,
        "ratios": ratios,
        "to_reach": _to_reach(one, figure) or None,
        "reached": _reached(figure, values, ratios),
    }


def _reached(figure: Figure, values: list[float], ratios: list[float]) -> bool | None:
    if figure.reach is None:
        return None
    return figure.reach.met_by(statistics.median(ratios if figure.reach.of_limit else values))


# ── the table ──


def table(found: Found) -> str:
    """A table in Markdown, its columns aligned for a terminal."""
    rows = [COLUMNS, *(_row(one, figure, found) for one, figure in _figures(found))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _row(one: Measurement, figure: Figure, found: Found) -> tuple[str, ...]:
    values, ratios = found.values[figure.name], found.ratios.get(figure.name, [])
    reached = _reached(figure, values, ratios)
    return (
        figure.what,
        _said(statistics.median(values), figure.unit),
        f"{_number(min(values), figure.unit)}–{_number(max(values), figure.unit)}",
        f"{statistics.median(ratios):.2f} {one.limit} ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else "",
        _to_reach(one, figure),
        "" if reached is None else "yes" if reached else "no",
    )


def _to_reach(one: Measurement, figure: Figure) -> str:
    if figure.reach is None:
        return ""
    if figure.reach.of_limit:
        return f"{figure.reach.sign} {figure.reach.value} {one.limit}"
    value = f"{figure.reach.value:,}"
    return f"{figure.reach.sign} {value}{_gap(figure.unit)}{figure.unit}"


def _said(value: float, unit: str) -> str:
    return f"{_number(value, unit)}{_gap(unit)}{unit}"


def _gap(unit: str) -> str:
    return "" if unit.startswith("/") else " "


def _number(value: float, unit: str) -> str:
    if unit in {"/s", "modules"}:
        return f"{value:,.0f}"
    return f"{value:,.2f}" if value < 10 else f"{value:,.1f}"


# ── the page ──


def headline(rounds: int, *, quick: bool) -> str:
    """Under which circumstances the table was made."""
    facts = machine()
    size = "quick: too small to mean anything; " if quick else ""
    return (
        f"{size}{rounds} round{'' if rounds == 1 else 's'}; {facts['python']}, SQLite {facts['sqlite']}, "
        f"{facts['system']}, {facts['cpus']} processors"
    )


def fill_in(page: Path, text: str) -> None:
    """Put a text between the two marks of a page.

    Raises:
        ValueError: It doesn't have both marks.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page.name} needs a line {BEGIN} and below it a line {END}")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
