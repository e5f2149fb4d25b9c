"""The user's own modules, imported so that their jobs are registered.

What goes wrong there is the user's to read: it is shown as Python shows it, without the frames that lead from the
command line to the module, so that the last line and the first are about their code.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from traceback import StackSummary, TracebackException
from typing import TYPE_CHECKING, Final

from jobkit import discover, registry
from jobkit.cli.exits import ENVIRONMENT, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from traceback import FrameSummary

OURS: Final = str(Path(__file__).parents[1]) + os.sep
HOW: Final = "name a module as `python -m` does, as in --app myapp.jobs, from the folder that it is in"


def load(modules: Sequence[str]) -> list[str]:
    """Import an application's modules, and what installed packages bring.

    Args:
        modules: Dotted names; the current folder is looked in first, as with `python -m`.

    Returns:
        The names of all jobs that are registered now.

    Raises:
        Refused: A module can't be imported, or there are no jobs.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    for module in modules:
        _imported(module, partial(discover, module))
    _imported("an installed package", registry.load_installed)
    if names := registry.names():
        return names
    if modules:
        raise Refused(ENVIRONMENT, f"{' and '.join(modules)} defines no job: decorate its Job classes with @job")
    raise Refused(
        ENVIRONMENT,
        "there are no jobs to run: say which module defines them, as in --app myapp.jobs, or in jobkit.toml: "
        'app = "myapp.jobs"',
    )


def _imported(what: str, bring_in: Callable[[], object]) -> None:
    try:
        bring_in()
    except (Exception, SystemExit) as error:  # noqa: BLE001  the wall around the user's modules
        if isinstance(error, ModuleNotFoundError) and error.name and f"{what}.".startswith(f"{error.name}."):
            raise Refused(ENVIRONMENT, f"there is no module {error.name!r} here: {HOW}") from None
        sys.stderr.write("".join(_without_ours(TracebackException.from_exception(error)).format()))
        raise Refused(ENVIRONMENT, f"{what} can't be imported, as shown above") from None


def _without_ours(told: TracebackException) -> TracebackException:
    """Leave out jobkit's own frames and the import system's, in the exceptions that led to it too."""
    for one in _chain(told):
        one.stack = StackSummary.from_list([frame for frame in one.stack if not _is_ours(frame)])
    return told


def _chain(told: TracebackException | None) -> Iterator[TracebackException]:
    if told is not None:
        yield told
        yield from _chain(told.__cause__)
        yield from _chain(told.__context__)


def _is_ours(frame: FrameSummary) -> bool:
    name = frame.filename
    return name.startswith((OURS, "<frozen importlib")) or name.endswith(f"{os.sep}importlib{os.sep}__init__.py")
