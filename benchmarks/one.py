"""One measurement in this very process: `python -m benchmarks.one NAME [--quick] [--folder FOLDER]` prints JSON.

To be profiled, too: `python -m cProfile -s tottime -m benchmarks.one drain`, or `py-spy record -- python -m …`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib import import_module
from pathlib import Path

from benchmarks.figures import ALL


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one", description="Take one measurement, once.")
    parser.add_argument("name", choices=ALL, help="which one")
    parser.add_argument("--quick", action="store_true", help="a small size, for a trial")
    parser.add_argument("--size", type=int, help="a size of your own")
    parser.add_argument("--folder", type=Path, default=Path(), help="where to make a folder, removed afterwards")
    options = parser.parse_args()
    measurement = ALL[options.name]
    size = options.size or (measurement.quick if options.quick else measurement.size)
    with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=options.folder) as folder:
        function = getattr(import_module(f"benchmarks.{measurement.module}"), measurement.name)
        print(json.dumps(function(Path(folder), size)))


if __name__ == "__main__":
    main()
