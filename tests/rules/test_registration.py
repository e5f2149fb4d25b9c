"""The registry: a name means one definition, which may come again, and what is unknown is told with help."""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import json
import linecache
import subprocess
import sys
import weakref
from pathlib import Path
from textwrap import dedent
from typing import Any, Generic, TypeVar

import msgpack  # type: ignore[import-untyped]
import pytest

from jobkit import registration
from jobkit.definition import Job, state
from jobkit.errors import (
    DuplicateJob,
    FrozenParameter,
    InvalidJob,
    InvalidParams,
    StateCorrupt,
    StateVersionError,
    UnknownJob,
)
from jobkit.registration import Registry, discover, job

T = TypeVar("T")
ROOT = Path(__file__).parents[2]


class Plain(Job):
    """A job that is not registered."""

    size: int = 1
    done: int = state(0)

    async def run(self, ctx: Any) -> None: ...


@pytest.fixture
def registry() -> Registry:
    """Give each test a registry of its own."""
    return Registry()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write modules of a package that can be imported, whose jobs go to a global registry of this test's own."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registration, "registry", own := Registry())
    monkeypatch.setattr(registration, "_GLOBAL", own)
    before = set(sys.modules)

    def write(sources: dict[str, str]) -> None:
        for name, source in sources.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(source))
        importlib.invalidate_caches()
        linecache.clearcache()

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def module(name: str, *, cls: str = "Copy", above: str = "") -> str:
    """Write a module that defines a job."""
    return f"""{above}
from jobkit.definition import Job
from jobkit.registration import job
@job("{name}")
class {cls}(Job):
    async def run(self, ctx): ...
"""


def define(registry: Registry, name: str, **options: Any) -> Any:
    """Define a job; each call does so on the same lines."""

    @job(name, registry=registry, **options)
    class Made(Plain):
        pass

    return Made


# ── names ──


def test_the_decorator_returns_the_class_itself(registry):
    """A decorated class is the class, registered under the name, its options kept."""

    class Sized(Plain): ...

    assert job("sized", registry=registry, version=3, queue="slow", resumable=False, priority=7)(Sized) is Sized
    kind = registry.get("sized")
    assert (kind.cls, kind.version, kind.queue, kind.resumable, kind.priority) == (Sized, 3, "slow", False, 7)
    assert registry.names() == ["sized"]
    assert registry.job_types() == [kind]
    assert repr(registry) == "<Registry of sized>"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("FileCopy", "file_copy"), ("HTTPFetch", "http_fetch"), ("Copy2Disk", "copy2_disk"), ("copy", "copy"), ("A", "a")],
)
def test_a_name_is_made_of_the_class_name(registry, name, expected):
    """Without a name it is the class's, in snake_case; `@job` and `@job()` are alike."""
    job(registry=registry)(type(name, (Plain,), {"__module__": __name__}))
    assert registry.names() == [expected]


def test_bare_decorator_registers_globally(monkeypatch):
    """`@job` without parentheses goes to the global registry."""
    monkeypatch.setattr(registration, "_GLOBAL", own := Registry())

    @job
    class BareOne(Plain): ...

    assert isinstance(BareOne, type)
    assert own.names() == ["bare_one"]


def test_an_empty_name_is_refused_not_replaced(registry):
    """`@job("")` is a mistake, not a request for the default."""
    with pytest.raises(InvalidJob, match="1 to 200"):
        define(registry, "")


def test_aliases_mean_the_same_job(registry):
    """Stored jobs are found under older names; `names()` tells the present one."""
    made = define(registry, "copy", aliases=("cp", "copy_files"), version=4)
    assert registry.get("cp") is registry.get("copy")
    assert registry.get("copy_files").cls is made
    assert "cp" in registry
    assert "dd" not in registry
    assert registry.names() == ["copy"]
    assert registry.versions() == {"copy": 4, "copy_files": 4, "cp": 4}


def test_an_unknown_name_tells_near_ones(registry):
    """A misspelling is answered with what was meant; aliases are near names too."""
    define(registry, "file_copy", aliases=("duplicate",))
    with pytest.raises(UnknownJob) as unknown:
        registry.get("file_cpy")
    assert unknown.value.near == ("file_copy",)
    assert isinstance(unknown.value, LookupError)
    with pytest.raises(UnknownJob) as unknown:
        registry.create("duplicat", {})
    assert unknown.value.near == ("duplicate",)
    with pytest.raises(UnknownJob, match="import the module"):
        registry.schema("zzz")


def test_the_registry_speaks_for_its_types(registry):
    """Schema and creation are those of the job type; parameters are validated."""
    define(registry, "sized", aliases=("s",))
    assert list(registry.schema("s")["properties"]) == ["size"]
    created: Any = registry.create("s", {"size": "3"})
    assert created.size == 3
    with pytest.raises(InvalidParams) as refused:
        registry.create("s", {"done": 3})
    assert refused.value.name == "sized"


# ── whose job is it ──


def test_an_undecorated_subclass_is_refused(registry):
    """A subclass would be stored under its parent's name and come back as its parent."""
    parent: Any = define(registry, "parent")

    class Child(parent): ...  # type: ignore[misc]

    with pytest.raises(InvalidJob, match=r"Child is not registered here: decorate this very class with @job"):
        registry.type_of(Child())
    with pytest.raises(InvalidJob, match="decorate this very class"):
        registry.pack(Child())
    with pytest.raises(InvalidJob, match="not derived from Job"):
        registry.type_of(3)


def test_registries_are_apart(registry):
    """A job of one registry is unknown to another; one class may be in both."""
    made, other = define(registry, "copy"), Registry()
    with pytest.raises(InvalidJob, match="not registered here"):
        other.type_of(made())
    job("other", registry=other)(made)
    assert (registry.type_of(made()).name, other.type_of(made()).name) == ("copy", "other")


def test_a_generic_job_is_decorated_once_for_each_type(registry):
    """A parametrised class is not the one that was decorated."""

    class Batch(Job[list[T]], Generic[T]):
        items: list[T]

        async def run(self, ctx: Any) -> list[T]:
            return self.items

    job("batch", registry=registry)(Batch)
    assert registry.type_of(Batch(items=[1])).name == "batch"
    with pytest.raises(InvalidJob):
        registry.type_of(Batch[int](items=[1]))


def test_a_class_has_one_name(registry):
    """Two decorators on one class would leave open which name it is stored under."""
    made = define(registry, "one")
    with pytest.raises(InvalidJob, match=r"already: write @job\('one', aliases=\('two',\)\)"):
        job("two", registry=registry)(made)
    job("one", registry=registry, version=2)(made)
    assert registry.get("one").version == 2


# ── the same definition again, or another ──


def test_two_definitions_under_one_name_are_refused(registry):
    """The second is refused, by name or alias, with both places named; the first stays."""
    first = define(registry, "copy", aliases=("cp",))

    class Second(Plain): ...

    for name, aliases in (("copy", ()), ("cp", ()), ("other", ("copy",)), ("other", ("cp",))):
        with pytest.raises(DuplicateJob) as refused:
            job(name, aliases=aliases, registry=registry)(Second)
        assert "define.<locals>.Made" in refused.value.first
        assert f"{Path(__file__).name}:" in refused.value.second
    assert registry.get("copy").cls is first
    assert registry.names() == ["copy"]
    assert "other" not in registry


def test_two_classes_of_one_name_on_two_lines_are_two_definitions(registry):
    """Within one run of one module, a second class of the same name is a mistake."""

    def twice() -> None:
        @job("copy", registry=registry)
        class Copy(Plain): ...

        @job("copy", registry=registry)
        class Copy(Plain):  # type: ignore[no-redef]  # noqa: F811
            more: int = 0

    with pytest.raises(DuplicateJob):
        twice()


def test_the_same_lines_again_replace_the_older(registry):
    """A test run on both backends defines its jobs twice; jobs of the older class are still known by the name."""
    first = define(registry, "copy", aliases=("cp",))
    second = define(registry, "copy")
    assert registry.get("copy").cls is second is not first
    assert "cp" not in registry
    assert registry.type_of(first()).cls is first
    assert registry.type_of(second()).cls is second


def test_a_factory_makes_several_jobs(registry):
    """The same lines under another name are another job, not a replacement."""
    define(registry, "copy")
    define(registry, "move")
    assert registry.names() == ["copy", "move"]


def test_a_replaced_class_is_let_go(registry):
    """A cell that is run a thousand times does not keep a thousand classes."""
    first = weakref.ref(define(registry, "copy"))
    define(registry, "copy")
    gc.collect()
    assert first() is None


def test_a_reloaded_module_replaces_its_jobs(package):
    """After an edit the same class stands on other lines: it is the same definition."""
    package({"reloaded": module("copy")})
    mod = importlib.import_module("reloaded")
    first = mod.Copy
    package({"reloaded": module("copy", above="# edited\n\n")})
    importlib.reload(mod)
    assert registration.registry.get("copy").cls is mod.Copy is not first


def test_another_module_is_another_definition(package):
    """Two modules that claim one name are refused, though their classes are called alike and stand on the same line."""
    package({"one": module("copy"), "two": module("copy")})
    importlib.import_module("one")
    told = r"belongs to one\.Copy \(.*one\.py:4\); two\.Copy \(.*two\.py:4\) needs another"
    with pytest.raises(DuplicateJob, match=told):
        importlib.import_module("two")


def test_a_notebook_cell_may_run_again(registry):
    """A cell is compiled anew each time, as another file; another class in `__main__` still needs another name."""
    cell = "@job('copy', registry=registry)\nclass Copy(Plain):\n    step: int = {}\n"
    space: dict[str, Any] = {"__name__": "__main__", "job": job, "registry": registry, "Plain": Plain}
    for number in (1, 2):
        source = "\n" * number + cell.format(number)
        exec(compile(source, f"<ipython-input-{number}>", "exec"), space)
        assert registry.get("copy").cls is space["Copy"]
    assert space["Copy"]().step == 2
    with pytest.raises(DuplicateJob):
        exec(compile(cell.replace("class Copy", "class Other"), "<ipython-input-3>", "exec"), space)


def test_a_module_run_as_a_program_may_import_itself(tmp_path):
    """`python -m pkg.main` defines its jobs as `__main__`, and again when another module imports pkg.main."""
    source = module("copy") + dedent("""
        if __name__ == "__main__":
            import json, pkg.helper
            from jobkit.registration import registry
            kind = registry.get("copy")
            print(json.dumps([registry.names(), kind.cls.__module__, registry.type_of(Copy()).name]))
    """)
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/main.py").write_text(source)
    (tmp_path / "pkg/helper.py").write_text("import pkg.main")
    path = f"{ROOT}:{tmp_path}"
    for command, folder in (
        (["-m", "pkg.main"], tmp_path),
        (["pkg/main.py"], tmp_path),
        (["main.py"], tmp_path / "pkg"),
    ):
        ran = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env={"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout) == [["copy"], "pkg.main", "copy"]


# ── bytes ──


def test_pack_and_restore(registry):
    """A whole job comes back equal and bound, under its name or an alias."""
    made = define(registry, "sized", aliases=("s",), version=2)
    work = made(size=3)
    work.done = 2
    data = registry.pack(work)
    for name in ("sized", "s"):
        again: Any = registry.restore(name, data)
        assert (type(again), again.size, again.done) == (made, 3, 2)
        with pytest.raises(FrozenParameter):
            again.size = 4
    assert msgpack.unpackb(data)["version"] == 2


def test_a_newer_version_is_left_alone(registry):
    """G19: what a newer class packed is refused as such, with both versions."""
    newer = Registry()
    data = newer.pack(define(newer, "sized", version=3)())
    define(registry, "sized", version=2)
    with pytest.raises(StateVersionError) as refused:
        registry.restore("sized", data)
    assert (refused.value.name, refused.value.found, refused.value.known) == ("sized", 3, 2)
    older = registry.pack(registry.get("sized").cls())
    assert newer.type_of(newer.restore("sized", older)).version == 3


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x80", b"\x01", msgpack.packb({"version": 1, "params": {}, "state": b""})]
)
def test_bytes_that_were_not_packed_are_corrupt(registry, data):
    """Whatever the bytes are, the answer is StateCorrupt."""
    define(registry, "sized")
    with pytest.raises(StateCorrupt):
        registry.restore("sized", data)


# ── importing ──


def test_discover_imports_every_module(package):
    """Modules of packages within packages register; a `__main__` is a program and is not run."""
    package(
        {
            "found/__init__": "",
            "found/one": module("one"),
            "found/inner/__init__": module("two"),
            "found/inner/three": module("three"),
            "found/__main__": "raise SystemExit(3)",
            "found/inner/__main__": "raise SystemExit(3)",
        }
    )
    assert discover("found") == ["one", "three", "two"]
    assert discover("found.one") == ["one", "three", "two"]


def test_a_module_that_fails_to_import_is_named(package):
    """The user's own error comes through as it is, with a note that names the module."""
    fine = {"broken/__init__": "", "broken/fine": module("fine"), "broken/inner/__init__": ""}
    package({**fine, "broken/inner/bad": "1 / 0"})
    with pytest.raises(ZeroDivisionError) as failed:
        discover("broken")
    assert failed.value.__notes__ == ["raised while discover('broken') imported broken.inner.bad"]
    with pytest.raises(ModuleNotFoundError) as missing:
        discover("not_there.jobs")
    assert "not_there.jobs" in missing.value.__notes__[0]


def test_installed_packages_are_loaded_once(registry, package, monkeypatch):
    """Entry points of the group jobkit.jobs are imported at the first call; later ones do nothing."""
    package({"plugin": module("plugged")})
    asked: list[str] = []

    def entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
        asked.append(group)
        return [importlib.metadata.EntryPoint("mine", "plugin", group)]

    monkeypatch.setattr(registration, "entry_points", entry_points)
    assert registry.load_installed() == registry.load_installed() == ["mine"]
    assert asked == ["jobkit.jobs"]
    assert "plugged" in registration.registry


def test_a_broken_installed_package_is_named(registry, package, monkeypatch):
    """Its own error comes through, with a note that names the entry point; the next call tries again."""
    package({"bad_plugin": "import no_such_module"})
    point = importlib.metadata.EntryPoint("mine", "bad_plugin", "jobkit.jobs")
    monkeypatch.setattr(registration, "entry_points", lambda **_: [point])
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError) as failed:
            registry.load_installed()
        assert failed.value.__notes__ == ["raised by the entry point jobkit.jobs: mine = bad_plugin"]
