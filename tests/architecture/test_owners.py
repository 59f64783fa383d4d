"""The scheduler's owners: each is handed to at most three parts, and only its own file changes it.

Read from the source: constructors' annotations say what is handed to whom, assignments say who changes what.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parents[2] / "scheduler_proc" / "core"
OWNERS = {
    "WaitingQueue",
    "Batch",
    "StepsInFlight",
    "KvCache",
    "Delivery",
    "RequestTable",
    "NewTokenRatio",
    "SchedulerCounters",
    "MemoryLimit",
    "ObservedLengths",
    "Sessions",
    "Suspects",
    "GrammarQueue",
}
COUNTED_BY_ALL = {"SchedulerCounters"}
"""A record of numbers without invariants: the parts that are given it add to it."""
MOST_HOLDERS = 3


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield every class of the core with the name of its file."""
    for path in sorted(CORE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                yield path.name, node


def handed(node: ast.ClassDef) -> dict[str, str]:
    """Return the owners among a class's constructor arguments, by the name of the argument."""
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            arguments = [*method.args.args, *method.args.kwonlyargs]
            return {
                argument.arg: name
                for argument in arguments
                if argument.annotation is not None
                for name in OWNERS & {part.id for part in ast.walk(argument.annotation) if isinstance(part, ast.Name)}
            }
    return {}


def changes(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Yield (owner, attribute) for each assignment to an attribute of an owner that the class has been handed."""
    owners = {f"self._{argument}": owner for argument, owner in handed(node).items()}
    for method in node.body:
        if not isinstance(method, ast.FunctionDef):
            continue
        aliases = dict(owners)
        for statement in ast.walk(method):
            if isinstance(statement, ast.Assign):
                aliases |= _aliases(statement, aliases)
        for target in _targets(method):
            holder = ast.unparse(target.value)
            if holder in aliases:
                yield aliases[holder], target.attr


def _aliases(statement: ast.Assign, owners: dict[str, str]) -> dict[str, str]:
    """Return the local names that an assignment such as `kv, batch = self._kv, self._batch` gives to owners."""
    found = {}
    for target in statement.targets:
        pairs = [(target, statement.value)]
        if isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
            pairs = list(zip(target.elts, statement.value.elts, strict=True))
        for name, value in pairs:
            if isinstance(name, ast.Name) and ast.unparse(value) in owners:
                found[name.id] = owners[ast.unparse(value)]
    return found


def _targets(method: ast.FunctionDef) -> Iterator[ast.Attribute]:
    for node in ast.walk(method):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                while isinstance(part, ast.Subscript):
                    part = part.value
                if isinstance(part, ast.Attribute):
                    yield part


def test_no_owner_is_handed_to_more_than_three_parts() -> None:
    holders = defaultdict(set)
    for _, node in classes():
        for owner in handed(node).values():
            holders[owner].add(node.name)
    assert holders.keys() == OWNERS
    assert {owner: parts for owner, parts in holders.items() if len(parts) > MOST_HOLDERS} == {}


def test_a_part_changes_no_owner_that_it_is_handed() -> None:
    found = [
        f"{file}: {node.name} assigns {owner}.{attribute}"
        for file, node in classes()
        for owner, attribute in changes(node)
        if owner not in COUNTED_BY_ALL
    ]
    assert found == []


def test_private_attributes_are_used_by_their_own_object_alone() -> None:
    found = [
        f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        for path in sorted(CORE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and ast.unparse(node.value) not in ("self", "cls")
    ]
    assert found == []


def test_the_table_of_owners_is_true() -> None:
    table = ast.get_docstring(ast.parse((CORE / "__init__.py").read_text())) or ""
    named = {word.strip(".,:;()") for word in table.split()}
    parts = {node.name for _, node in classes() if handed(node)}
    assert named >= OWNERS | parts
    assert {name for name in named if name.endswith(".py")} <= {path.name for path in CORE.glob("*.py")}
    assert named >= {path.name for path in CORE.glob("*.py")} - {"__init__.py"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("self._kv.pool = None", [("KvCache", "pool")]),
        ("kv, other = self._kv, 1\n        kv.page_size += 1", [("KvCache", "page_size")]),
        ("kv = self._kv\n        kv.pages[3] = 4", [("KvCache", "pages")]),
        ("self._kv.extend(1)\n        self.size = self._kv.page_size", []),
    ],
)
def test_a_change_would_be_found(body: str, expected: list[tuple[str, str]]) -> None:
    source = f"""
class Part:
    def __init__(self, kv: KvCache) -> None:
        self._kv = kv

    def act(self) -> None:
        {body}
"""
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ClassDef)
    assert list(changes(node)) == expected
