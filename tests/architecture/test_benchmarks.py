"""Benchmarks import nothing from the tests, and each command in a docstring or page names a module that exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "benchmarks").rglob("*.py"))
COMMAND = re.compile(r"python -m ((?:benchmarks|tests\.gpu)[\w.]*\w)\b(?!\.\.)")


def imported_modules(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT / "benchmarks")))
def test_a_benchmark_imports_nothing_from_the_tests(file: Path) -> None:
    assert not [name for name in imported_modules(ast.parse(file.read_text())) if name.partition(".")[0] == "tests"]


def test_every_command_in_a_docstring_or_page_names_a_module() -> None:
    files = [
        *FILES,
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("tests/*/*.py"),
        *ROOT.glob("tests/unit/**/*.py"),
    ]
    named = {name for file in files for name in COMMAND.findall(file.read_text())}
    assert len(named) > 20
    assert not [name for name in named if not (ROOT / (name.replace(".", "/") + ".py")).exists()]
