"""Which database a command means, and opening it to look at its jobs or to ask something of them.

Such a command must never make a database: a mistyped path would leave an empty one behind and answer that there are no
jobs. So a file is looked for before anything opens it.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias
from urllib.parse import unquote, urlsplit

from cyclopts import Parameter

from jobkit.cli.exits import ENVIRONMENT, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from jobkit import JobManager, Settings

Database: TypeAlias = Annotated[
    str | None,
    Parameter(name="--database", help="A path or an SQLAlchemy URL; by default as set for this folder, else jobs.db."),
]
"""The option that every command has."""


@asynccontextmanager
async def client(given: str | None) -> AsyncIterator[JobManager]:
    """Open the database that is there, with a manager that runs nothing.

    Args:
        given: The option `--database`.

    Yields:
        The manager.

    Raises:
        Refused: There is no database there.
        JobkitError: The settings are wrong, or the database can't be used.
    """
    from jobkit import JobManager, Settings

    settings = Settings()
    store = meant(given, settings)
    _must_exist(store, hint=given is None)
    async with JobManager(store, settings=settings, work=False) as manager:
        yield manager


def meant(given: str | None, settings: Settings) -> str | Path:
    """Tell which database is meant: a URL, or a path.

    Args:
        given: The option `--database`.
        settings: What holds without it.
    """
    if given is not None:
        return given if "://" in given else Path(given).expanduser()
    return settings.database_url or settings.sqlite_path


def _must_exist(store: str | Path, *, hint: bool) -> None:
    advice = "give another one with --database, or dispatch a first job there"
    if isinstance(store, str):
        if not store.startswith("sqlite"):
            return
        name = unquote(urlsplit(store).path).removeprefix("/")
        if name in {"", ":memory:"}:
            raise Refused(ENVIRONMENT, "no jobs: a database in memory ends with its process; name one with --database")
        store = Path(name)
    file = store / "jobs.db" if store.is_dir() else store
    if not file.exists() or (file.is_file() and file.stat().st_size == 0):
        advice = "name a database with --database or JOBKIT_DATABASE_URL, or dispatch a first job" if hint else advice
        raise Refused(ENVIRONMENT, f"no jobs yet: there is no database at {file.absolute()}: {advice}")
