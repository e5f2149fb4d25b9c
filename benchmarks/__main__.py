"""`python -m benchmarks`, or `./dev bench`: measure, print the table, and write what was asked for.

The table goes to standard output and nothing else does, so that it can be redirected.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import report, rounds
from benchmarks.figures import ALL, WORK

README = Path(__file__).parent / "README.md"


def main() -> None:
    options = _options()
    count = options.rounds or (1 if options.quick else 5)
    measurements = [ALL[name] for name in options.only] if options.only else WORK
    with tempfile.TemporaryDirectory(prefix=".benchmarks-", dir=options.folder) as folder:
        found = rounds.measure(measurements, count, Path(folder).absolute(), quick=options.quick, say=_say)
    headline, table = report.headline(count, quick=options.quick), report.table(found)
    print(f"{headline}\n\n{table}")
    if options.json is not None:
        told = json.dumps(report.as_json(found, count, quick=options.quick), indent=2, ensure_ascii=False)
        options.json.write_text(f"{told}\n", encoding="utf-8")
    if options.readme:
        report.fill_in(README, f"{headline[0].upper()}{headline[1:]}.\n\n{table}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="How fast jobkit is beside the disk's limit."
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: to see that everything runs")
    parser.add_argument("--only", nargs="+", choices=ALL, metavar="NAME", help=f"only these: {', '.join(ALL)}")
    parser.add_argument("--rounds", type=_positive, help="how many rounds; 5 by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value to this file, too")
    parser.add_argument("--readme", action="store_true", help="put the table into benchmarks/README.md, too")
    parser.add_argument(
        "--folder", type=Path, default=Path(),
        help="a folder on the disk to measure; by default the working directory. What is made in it is removed again",
    )  # fmt: skip
    options = parser.parse_args()
    if options.readme and (options.quick or options.only):
        parser.error("--readme wants the whole table at full size: leave out --quick and --only")
    if not options.folder.is_dir():
        parser.error(f"there is no folder {options.folder}")
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
