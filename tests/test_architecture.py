"""The house holds: layers point downward, the root touches nothing, and the page that describes it is true."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jobkit"
ROOT_MODULES = sorted(path for path in PACKAGE.glob("*.py") if path.name != "__init__.py")

TOUCHES = {"open", "print", "input", "exec", "eval"}
TOUCHING_METHODS = {"read_text", "write_text", "read_bytes", "write_bytes", "mkdir", "unlink", "rename", "touch"}


def test_import_contracts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every import contract in pyproject.toml is kept, type-checking imports included."""
    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == 0, capsys.readouterr().out


@pytest.mark.parametrize("path", ROOT_MODULES, ids=lambda path: path.stem)
def test_a_file_at_the_root_touches_nothing(path: Path) -> None:
    """No module at the root calls for a file, the terminal, or the evaluation of text; settings alone read files."""
    touching = TOUCHING_METHODS - {"read_text"} if path.stem == "settings" else TOUCHING_METHODS
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in TOUCHES:
                found.append(f"{called.id}() in line {node.lineno}")
            if isinstance(called, ast.Attribute) and called.attr in touching:
                found.append(f".{called.attr}() in line {node.lineno}")
    assert not found


def test_every_module_says_what_lives_there() -> None:
    """Each module opens with a docstring."""
    bare = [
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*.py")
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not bare


def test_no_module_bears_the_name_of_a_public_object() -> None:
    """A module called like a public name would take that name's place once it is imported."""
    import jobkit

    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not modules & set(jobkit.__all__)


def test_the_architecture_page_is_true() -> None:
    """Every file and folder that ARCHITECTURE.md names exists, and every module at the root is named there."""
    page = (ROOT / "ARCHITECTURE.md").read_text()
    tree = page.split("```")[1]
    named = set(re.findall(r"\b(\w+\.py)\b|\b(\w+/)", tree))
    names = {file or folder.rstrip("/") for file, folder in named} - {"jobkit"}
    there = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert names == there - {"__init__.py"}
    for guard in re.findall(r"`((?:tests|jobkit)/[\w/]+(?:\.py)?/?)`", page):
        assert (ROOT / guard).exists(), guard
