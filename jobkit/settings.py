"""What can be set: `Settings`, and where each value comes from.

An argument outranks `JOBKIT_*` in the environment, that a line in `.env`, that `jobkit.toml`, that `[tool.jobkit]` in
`pyproject.toml`; all files are those of the working directory. A value that can't be used is never replaced by a
default: every problem is told at once, with the place it comes from. What is unknown is refused in jobkit's own files,
where it is a misspelling, and ignored in the environment and in `.env`, which belong to others too.

This is the only module that reads files of settings.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from jobkit.errors import InvalidSettings
from jobkit.problems import did_you_mean, problems_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Settings"]

_PREFIX: Final = "JOBKIT_"

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A duration."""

UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
"""A path in which `~` means the home directory."""


def _words(given: Any) -> Any:
    """Take a text apart at its commas; whatever else it is, leave it to be judged."""
    return [word for part in given.split(",") if (word := part.strip())] if isinstance(given, str) else given


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)]
"""Several words: a list, or one text with commas, as the environment has it."""


class Settings(BaseSettings):
    """How jobkit works here. Arguments outrank the environment, which outranks files.

    Attributes:
        app: The modules that define this application's jobs, by dotted names, for the command line to import.
        database_url: An SQLAlchemy URL; without one, the SQLite file `sqlite_path` is used.
        sqlite_path: The SQLite file.
        data_dir: Where jobs keep files; by default beside the SQLite file.
        concurrency: How many jobs one manager runs at a time.
        lease_s: After how many seconds without a sign of life an owner on another machine counts as dead.
        sweep_s: How often, in seconds, what dead owners left is looked for.
        grace_s: How many seconds a stopping manager gives its jobs to reach a checkpoint.
        resume: What a start resumes unless another working manager is there: `"all"`, what was running and what is
            paused, or `"interrupted"`, only what was running.
        checkpoint_every_s: How often `ctx.track` makes a checkpoint, in seconds, unless told otherwise.
        keep_checkpoints: How many checkpoints of a job are kept.
        max_state_bytes: The largest packed state.
        max_log_bytes: How much of a job's log is kept, over all its attempts.
        durability: `"full"`: what is committed survives power loss; `"normal"`: it survives any crash of a process.
        allow_network_fs: Whether SQLite may be used on a network file system, where its locks can't be relied on.

    Raises:
        InvalidSettings: Some values can't be used; its message names all of them.
    """

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
    )

    app: Words = ()
    database_url: str | None = None
    sqlite_path: UserPath = Path("jobs.db")
    data_dir: UserPath | None = None
    concurrency: int = Field(default=100, ge=1, le=100_000)
    lease_s: Seconds = 30.0
    sweep_s: Seconds = 5.0
    grace_s: float = Field(default=10.0, ge=0, allow_inf_nan=False)
    resume: Literal["all", "interrupted"] = "all"
    checkpoint_every_s: Seconds = 1.0
    keep_checkpoints: int = Field(default=5, ge=1)
    max_state_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    max_log_bytes: int = Field(default=1024 * 1024, ge=1)
    durability: Literal["full", "normal"] = "full"
    allow_network_fs: bool = False

    if not TYPE_CHECKING:  # checkers make a constructor of the fields

        def __init__(self, **given: Any) -> None:
            values, origins, problems = _gather(type(self), given)
            try:
                super().__init__(**values)
            except ValidationError as error:
                problems |= problems_of(error, _unknown)
            if problems:  # raised out here: the ValidationError quotes values, and a URL holds a password
                raise InvalidSettings(problems, {name: origins[name] for name in problems if name in origins})

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  as below
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003  as below
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  as below
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  as below
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave the first source alone to pydantic-settings: the constructor reads the others, to tell them apart.

        Args:
            settings_cls: This class.
            init_settings: What the constructor gathered.
            env_settings: Not used.
            dotenv_settings: Not used.
            file_secret_settings: Not used.

        Returns:
            The first source.
        """
        return (init_settings,)

    @field_validator("database_url")
    @classmethod
    def _looks_like_a_url(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"[a-z][a-z0-9_+.-]*://", url):
            raise ValueError("write a URL such as postgresql://user:password@host/name, or set sqlite_path for a file")
        return url

    @property
    def url(self) -> str:
        """The database as an SQLAlchemy URL, password included."""
        return self.database_url or f"sqlite:///{quote(self.sqlite_path.as_posix(), safe='/:')}"

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, _masked(value) if name == "database_url" and value else value


def _masked(url: str) -> str:
    """Hide the passwords in a URL, also one whose `@` was not escaped, and one among its options."""
    url = re.sub(r"^([^:]+://[^:/@]*):.*@", r"\1:***@", url, flags=re.DOTALL)
    return re.sub(r"(?i)([?&][^=&]*(?:password|passwd|secret|token)[^=&]*=)[^&]*", r"\1***", url)


# ── where values come from, and what is wrong with them ──


_SOURCES: Final[tuple[tuple[str, str, Callable[[type[Settings]], dict[str, Any]]], ...]] = (
    ("the environment", f"{_PREFIX}{{1}} in the environment", lambda cls: EnvSettingsSource(cls)()),
    (".env", f"{_PREFIX}{{1}} in .env", lambda cls: DotEnvSettingsSource(cls, ".env", "utf-8", "only_existing")()),
    ("jobkit.toml", "{0} in jobkit.toml", lambda _: _read_toml("jobkit.toml")),
    ("pyproject.toml", "[tool.jobkit] {0} in pyproject.toml", lambda _: _read_toml("pyproject.toml", "tool", "jobkit")),
)
"""What there is beside arguments, strongest first: its name, how to tell where in it a value stands, and its reader."""


def _gather(cls: type[Settings], given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Read all sources, strongest first: values by setting, where each comes from, and what could not be read."""
    values, origins, problems = dict(given), {name: f"the argument {name}" for name in given}, {}
    for place, origin, read in _SOURCES:
        try:
            found = read(cls)
        except (OSError, ValueError) as error:  # ValueError: what is no TOML, or no UTF-8
            problems[place] = f"can't be read: {error}"
        else:
            for name in found.keys() - values.keys():
                values[name], origins[name] = found[name], origin.format(name, name.upper())
    return values, origins, problems


def _read_toml(file: str, *tables: str) -> dict[str, Any]:
    try:
        found = tomllib.loads(Path(file).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    for table in tables:
        found = found.get(table, {})
        if not isinstance(found, dict):
            problem = f"[{'.'.join(tables)}] is no table: write settings below it, such as concurrency = 10"
            raise ValueError(problem)  # noqa: TRY004  a wrong value in a file, as a TOMLDecodeError is
    return found


def _unknown(name: str) -> str:
    return f"there is no such setting: {did_you_mean(name, Settings.model_fields, 'take it away')}"
