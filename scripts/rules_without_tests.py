"""Prints the rules and examples of docs/scheduling-rules.md that no test names; exit status 1 if there are any.

A test names an id in its docstring (`RET-5`, `A4`, `4.7`) or in its name (`test_ret5_...`, `test_a4_...`,
`test_4_7_...`). Rules whose row says `not built` or `not applicable` need none. Ids whose every test is expected to
fail are listed, too.

    python scripts/rules_without_tests.py
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GROUPS = "RAT|LEN|ADM|BLK|OBS|RET|POL|PRI|PRE|SES|TREE|CKP|WIN|INV|STEP|MET|CFG|PR"
ID = re.compile(rf"(?<![\w.-])((?:{GROUPS})-\d+|[EABDPXRSC]\d{{1,2}}|[46]\.\d)(?![\w-]|\.\d)")
ROW = re.compile(r"^\| ([A-Z]+-\d+|[A-Z]\d{1,2}|\d\.\d) \|(.*)$", re.MULTILINE)
EXEMPT = ("not built", "not applicable")


def rules(page: str) -> tuple[list[str], list[str]]:
    """Return (ids that need a test, exempt ids) of the rule book, in its order."""
    needed, exempt = list[str](), list[str]()
    for name, rest in ROW.findall(page):
        (exempt if any(words in rest for words in EXEMPT) else needed).append(name)
    return needed, exempt


def tests(folder: Path) -> Iterator[tuple[set[str], bool]]:
    """Yield (ids that it names, whether it is expected to fail) of every test below a folder."""
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                marks = [ast.unparse(decorator) for decorator in node.decorator_list]
                is_failing = any(mark.startswith("pytest.mark.xfail") for mark in marks)
                yield set(ID.findall(ast.get_docstring(node) or "")) | _ids_in_name(node.name), is_failing


def _ids_in_name(name: str) -> set[str]:
    found = set()
    for word in name.removeprefix("test_").split("_"):
        if match := re.fullmatch(rf"({GROUPS.lower()})(\d+)", word):
            found.add(f"{match[1].upper()}-{match[2]}")
        elif re.fullmatch(r"[eabdpxrsc]\d{1,2}", word):
            found.add(word.upper())
    if match := re.match(r"test_([46])_(\d)_", name):
        found.add(f"{match[1]}.{match[2]}")
    return found


def main() -> int:
    """Print what is missing; return the exit status."""
    needed, exempt = rules((ROOT / "docs" / "scheduling-rules.md").read_text(encoding="utf-8"))
    passing, failing = set[str](), set[str]()
    for ids, is_failing in tests(ROOT / "tests"):
        (failing if is_failing else passing).update(ids)
    repeated = sorted({name for name in needed if needed.count(name) > 1})
    missing = [name for name in needed if name not in passing | failing]
    for name in missing:
        print(f"no test names {name}")
    for name in repeated:
        print(f"{name} stands in the rule book twice")
    for name in needed:
        if name in failing - passing:
            print(f"{name}: every test of it is expected to fail")
    strangers = sorted(name for name in (passing | failing) - set(needed) - set(exempt) if "-" in name)
    for name in strangers:
        print(f"a test names {name}, which the rule book does not have")
    print(f"{len(needed)} rules and examples, {len(needed) - len(missing)} with a test, {len(exempt)} exempt")
    return 1 if missing or repeated or strangers else 0


if __name__ == "__main__":
    sys.exit(main())
