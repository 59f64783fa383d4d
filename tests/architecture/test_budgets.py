"""Budgets that keep the code readable: lines of a file, of a function, of prose; and arrows between folders.

What exceeds a budget is named here with its reason; an exception that is not needed any more fails, too.
"""

import ast
import collections
import io
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRACKED = [
    ROOT / name
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
]
PYTHON = [path for path in TRACKED if path.suffix == ".py" and path.exists()]
PROCESSES = ("api_proc", "tokenizer_proc", "scheduler_proc", "worker_proc", "detok_proc")
PRODUCT = ("quartet", *PROCESSES, "kernels")

FILE_LINES = 300
LONG_FILES = {
    "tests/unit/scheduler_proc/rules/test_rules_budget.py": "the worked examples of one pass, in the rule book's order",
}

FUNCTION_LINES = 60
LONG_FUNCTIONS = {
    "kernels/extend_partition.py: _partition_kernel": "one Triton kernel, as _split_kernel",
    "kernels/paged_decode.py: _split_kernel": "one Triton kernel; a split would pass its tiles through arguments",
    "kernels/paged_extend.py: _extend_kernel": "one Triton kernel, as _split_kernel",
    "kernels/paged_extend_hopper.py: _attend": "the inner loop of one Triton kernel, on the registers of its caller",
    "kernels/paged_extend_hopper.py: _extend_hopper_kernel": "one Triton kernel, as _split_kernel",
    "kernels/skinny_fp8.py: _skinny_fp8_kernel": "one Triton kernel, as _split_kernel",
    "kernels/skinny_fp8_hopper.py: _skinny_fp8_hopper_kernel": "one Triton kernel, as _split_kernel",
    "kernels/skinny_hopper.py: _skinny_hopper_kernel": "one Triton kernel, as _split_kernel",
}

PROSE_COLUMNS = 120
DIRECTIVES = ("# noqa", "# type:", "# fmt:")
LONG_LINES: dict[str, str] = {}

# Folders that import-linter does not see, and what they must not import.
CLOSED = {
    "kernels": (*PROCESSES, "quartet", "tests", "benchmarks"),
    "scripts": ("tests", "benchmarks"),
    **dict.fromkeys(("quartet", *PROCESSES), ("tests", "benchmarks", "scripts")),
    "tests/support": ("benchmarks", "tests.unit", "tests.e2e", "tests.fault", "tests.gpu", "tests.property"),
    "tests/unit": ("benchmarks", "tests.e2e", "tests.fault", "tests.gpu", "tests.property"),
}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_two_test_files_have_one_name() -> None:
    """A run of all of them would stop at the second; a run of one folder would not show it."""
    names = collections.Counter(path.name for path in PYTHON if path.name.startswith("test_"))
    assert not [name for name, count in names.items() if count > 1]


def test_no_file_is_a_link() -> None:
    """A link leads out of the checkout, or to a file that has another name there."""
    assert not [named(path) for path in TRACKED if path.is_symlink()]


def test_files_are_short() -> None:
    lengths = {named(path): path.read_text().count("\n") for path in PYTHON}
    long_files = {name for name, lines in lengths.items() if lines > FILE_LINES}
    assert long_files == LONG_FILES.keys(), {name: lengths.get(name) for name in long_files ^ LONG_FILES.keys()}


def test_functions_are_short() -> None:
    lengths = {
        f"{named(path)}: {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in PYTHON
        if path.relative_to(ROOT).parts[0] in PRODUCT
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    long_functions = {name for name, lines in lengths.items() if lines > FUNCTION_LINES}
    assert long_functions == LONG_FUNCTIONS.keys(), long_functions ^ LONG_FUNCTIONS.keys()


def test_lines_of_prose_fit_the_width() -> None:
    pages = [path for path in TRACKED if path.suffix == ".md" and path.exists()]
    wide = [f"{named(path)}:{number}" for path in PYTHON for number, text in prose(path) if len(text) > PROSE_COLUMNS]
    wide += [f"{named(path)}:{number}" for path in pages for number, text in page_lines(path)]
    assert {line.rpartition(":")[0] for line in wide} == LONG_LINES.keys(), wide


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of every line that ends in a comment, other than a directive, or lies in a docstring."""
    source = path.read_text()
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith(DIRECTIVES):
            yield token.start[0], lines[token.start[0] - 1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from ((number, lines[number - 1]) for number in range(node.lineno, (node.end_lineno or 0) + 1))


def page_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the wide lines of a page; a row of a table cannot be broken."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if len(line) > PROSE_COLUMNS and not line.startswith("|"):
            yield number, line


@pytest.mark.parametrize("folder", CLOSED)
def test_arrows_between_folders(folder: str) -> None:
    backwards = [
        f"{named(path)} imports {name}"
        for path in PYTHON
        if path.is_relative_to(ROOT / folder)
        for name in imports(path)
        if any(f"{name}.".startswith(f"{closed}.") for closed in CLOSED[folder])
    ]
    assert not backwards


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
