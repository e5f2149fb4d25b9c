"""Settings: five sources in a fixed order, and every wrong value told at once with the place it stands in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import make_url

from jobkit.errors import InvalidSettings, JobkitError
from jobkit.settings import Settings


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Stand in an empty folder, without variables of the machine's own."""
    import os

    for name in list(os.environ):
        if name.upper().startswith("JOBKIT_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_defaults():
    """Nothing needs to be set."""
    settings = Settings()
    assert settings.url == "sqlite:///jobs.db"
    assert settings.model_dump() == {
        "app": (),
        "database_url": None,
        "sqlite_path": Path("jobs.db"),
        "data_dir": None,
        "concurrency": 100,
        "lease_s": 30,
        "sweep_s": 5,
        "grace_s": 10,
        "resume": "all",
        "checkpoint_every_s": 1,
        "keep_checkpoints": 5,
        "max_state_bytes": 64 * 1024 * 1024,
        "max_log_bytes": 1024 * 1024,
        "durability": "full",
        "allow_network_fs": False,
    }
    with pytest.raises(ValidationError, match="frozen"):
        settings.concurrency = 3


def test_the_order_of_sources(here, monkeypatch):
    """Argument, environment, .env, jobkit.toml, pyproject.toml: the first that has a value gives it."""
    (here / "pyproject.toml").write_text("[tool.other]\nx = 1\n[tool.jobkit]\nconcurrency = 1\n")
    assert Settings().concurrency == 1
    (here / "jobkit.toml").write_text("concurrency = 2\nlease_s = 60")
    assert Settings().concurrency == 2
    (here / ".env").write_text("OTHER=1\nJOBKIT_CONCURRENCY=3\nJOBKIT_DURABILITY=normal")
    assert Settings().concurrency == 3
    monkeypatch.setenv("JOBKIT_CONCURRENCY", "4")
    assert Settings().concurrency == 4
    settings = Settings(concurrency=5)
    assert (settings.concurrency, settings.lease_s, settings.durability) == (5, 60, "normal")


def test_several_modules(here, monkeypatch):
    """An application may be several modules: a list in a file, words with commas everywhere."""
    (here / "jobkit.toml").write_text('app = ["myapp.jobs", "myapp.more"]')
    assert Settings().app == ("myapp.jobs", "myapp.more")
    monkeypatch.setenv("JOBKIT_APP", "other.jobs, other.more")
    assert Settings().app == ("other.jobs", "other.more")
    wrong: dict[str, Any] = {"app": 3}
    with pytest.raises(InvalidSettings, match="app"):
        Settings(**wrong)


def test_empty_variables_are_not_set(monkeypatch):
    """`JOBKIT_DATABASE_URL=` in a compose file means the default."""
    monkeypatch.setenv("JOBKIT_DATABASE_URL", "")
    monkeypatch.setenv("JOBKIT_CONCURRENCY", "")
    assert (Settings().database_url, Settings().concurrency) == (None, 100)


def test_every_problem_is_told_at_once_with_its_source(here, monkeypatch):
    """A person mends all of it in one go."""
    (here / "pyproject.toml").write_text('[tool.jobkit]\nlease_s = "soon"\ngrace_s = -1')
    (here / "jobkit.toml").write_text("max_state_bytes = 0\ngrace_s = nan")
    (here / ".env").write_text("JOBKIT_DURABILITY=some")
    monkeypatch.setenv("jobkit_sweep_s", "0")
    with pytest.raises(InvalidSettings) as refused:
        Settings(concurrency=100_001)
    assert refused.value.sources == {
        "concurrency": "the argument concurrency",
        "sweep_s": "JOBKIT_SWEEP_S in the environment",
        "durability": "JOBKIT_DURABILITY in .env",
        "max_state_bytes": "max_state_bytes in jobkit.toml",
        "grace_s": "grace_s in jobkit.toml",
        "lease_s": "[tool.jobkit] lease_s in pyproject.toml",
    }
    assert refused.value.fields.keys() == refused.value.sources.keys()
    assert refused.value.fields["concurrency"] == "Input should be less than or equal to 100000"
    assert "sweep_s (JOBKIT_SWEEP_S in the environment): Input should be greater than 0" in str(refused.value)
    assert isinstance(refused.value, JobkitError)
    assert isinstance(refused.value, ValueError)
    assert refused.value.code == "invalid_settings"


def test_unknown_names_in_own_files_are_misspellings(here):
    """In jobkit.toml and [tool.jobkit], and among arguments, an unknown name is refused, with near ones."""
    (here / "jobkit.toml").write_text("concurency = 3\n[worker]\nx = 1")
    (here / "pyproject.toml").write_text("[tool.jobkit]\nlease-s = 3\n")
    misspelt: dict[str, Any] = {"max_state_byte": 3}
    with pytest.raises(InvalidSettings) as refused:
        Settings(**misspelt)
    assert refused.value.fields == {
        "max_state_byte": "there is no such setting: did you mean max_state_bytes or max_log_bytes?",
        "concurency": "there is no such setting: did you mean concurrency?",
        "worker": "there is no such setting: take it away",
        "lease-s": "there is no such setting: did you mean lease_s?",
    }
    assert refused.value.sources["lease-s"] == "[tool.jobkit] lease-s in pyproject.toml"


def test_unknown_names_in_shared_places_are_ignored(here, monkeypatch):
    """The environment and .env belong to other tools too."""
    monkeypatch.setenv("JOBKIT_TEST_POSTGRES_URL", "x")
    (here / ".env").write_text("JOBKIT_REQUIRE_DB=postgres\nPORT=80\nconcurrency=7\n")
    (here / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert Settings() == Settings()
    assert Settings().concurrency == 100


@pytest.mark.parametrize("name", ["jobkit.toml", "pyproject.toml", ".env"])
def test_unreadable_files_are_told_beside_other_problems(here, name):
    """A broken file is named, with the place in it, and does not hide a wrong argument."""
    (here / name).write_bytes(b"concurrency = \xff\xfe")
    with pytest.raises(InvalidSettings) as refused:
        Settings(lease_s=-1)
    assert refused.value.fields.keys() == {name, "lease_s"}
    assert "can't be read" in refused.value.fields[name]


@pytest.mark.parametrize("text", ["tool = 3", "[tool]\njobkit = 3", "[tool]\njobkit = [1]"])
def test_a_table_that_is_none(here, text):
    """[tool.jobkit] must be a table."""
    (here / "pyproject.toml").write_text(text)
    with pytest.raises(InvalidSettings, match=r"\[tool\.jobkit\] is no table"):
        Settings()


@pytest.mark.parametrize("path", ["jobs.db", "/var/lib/my app/jobs.db", "/a?b/c#d/100%.db", "größe.db", "~/jobs.db"])
def test_any_file_name_reaches_sqlalchemy(path, monkeypatch):
    """The URL of sqlite_path names that very file, whatever characters are in it."""
    monkeypatch.setenv("HOME", "/home/someone")
    made = make_url(Settings(sqlite_path=path).url)
    assert made.database == path.replace("~", "/home/someone")
    assert (made.drivername, dict(made.query)) == ("sqlite", {})


def test_a_database_url_goes_as_it_is():
    """It outranks sqlite_path; only what is no URL at all is refused, without quoting it."""
    url = "postgresql+psycopg://user:pass@host/db?sslmode=require"
    assert Settings(database_url=url, sqlite_path=Path("x.db")).url == url
    assert Settings(database_url="sqlite://").url == "sqlite://"
    with pytest.raises(InvalidSettings, match="write a URL such as") as refused:
        Settings(database_url="user:hunter2@host")
    told = f"{refused.value} {refused.value.__context__} {refused.value.__cause__}"
    assert "hunter2" not in told


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2@host:5432/db",
        "postgresql://user:hunter2@hunter2@host/db",
        "postgresql://user:hunter2/hunter2@host/db",
        "postgresql://:hunter2@host/db",
        "postgresql://host/db?user=me&password=hunter2&sslmode=require",
        "mysql+pymysql://user:hunter2@host/db?ssl_key_password=hunter2",
    ],
)
def test_passwords_are_masked_when_shown(url):
    """Neither repr nor str shows a password, not even an unescaped one."""
    settings = Settings(database_url=url)
    assert "hunter2" not in f"{settings!r} {settings}"
    assert "***" in repr(settings)
    assert "host" in repr(settings)
    assert settings.url == url
