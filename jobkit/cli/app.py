"""From arguments to a command, and from whatever it raises to an exit code.

The parser is built from the table in `commands`; a command's module is imported when it is the one that was asked for.
No traceback leaves here.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from cyclopts import App
from cyclopts.exceptions import CycloptsError

from jobkit import JobkitError
from jobkit.cli.commands import COMMANDS
from jobkit.cli.exits import ENVIRONMENT, INTERRUPTED, OK, USAGE, Refused, complain, exit_code_of

if TYPE_CHECKING:
    from collections.abc import Sequence


def run(tokens: Sequence[str]) -> int:
    """Run the command that the arguments name.

    Args:
        tokens: The arguments.

    Returns:
        The exit code.
    """
    try:
        code = _parser()(_command_first(tokens), exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as error:
        complain(f"{error} See `jobkit --help`, or `--help` after a command.")
        return USAGE
    except Refused as refusal:
        complain(refusal)
        return refusal.exit_code
    except JobkitError as error:
        complain(error)
        return exit_code_of(error.code)
    except BrokenPipeError:  # `jobkit list | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        complain(f"{error}: check the path, its permissions and the disk")
        return ENVIRONMENT
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except Exception as error:  # the wall around a command: a person is shown a line, never a traceback
        if os.environ.get("JOBKIT_TRACEBACK"):
            raise
        complain(
            f"a fault of jobkit: {type(error).__name__}: {error}. Set JOBKIT_TRACEBACK=1 to see where, and report it"
        )
        return ENVIRONMENT
    return code if isinstance(code, int) else OK


def _parser() -> App:
    parser = App(name="jobkit", help="Durable, resumable jobs.", version=_version, suppress_keyboard_interrupt=False)
    for command in COMMANDS:
        parser.command(command.path, name=command.names)
    return parser


def _version() -> str:
    from jobkit import __version__

    return f"jobkit {__version__}"


def _command_first(tokens: Sequence[str]) -> list[str]:
    """Let `--database` stand before the command too: it is the command's own option, so it moves behind it."""
    ahead: list[str] = []
    rest = list(tokens)
    while rest and (rest[0] == "--database" or rest[0].startswith("--database=")):
        count = 1 if "=" in rest[0] else 2
        ahead, rest = [*ahead, *rest[:count]], rest[count:]
    return [*rest[:1], *ahead, *rest[1:]]
