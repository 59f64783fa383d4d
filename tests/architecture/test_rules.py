"""Every rule and example of the rule book has a test, and the script that says so would notice."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "rules_without_tests.py"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rules_without_tests", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_rule_is_without_a_test() -> None:
    finished = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert re.search(r"^(\d+) rules and examples, \1 with a test", finished.stdout, re.MULTILINE)


def test_the_rule_book_has_all_groups_and_examples() -> None:
    needed, exempt = script().rules((ROOT / "docs" / "scheduling-rules.md").read_text())
    counts = {"RAT": 6, "LEN": 3, "ADM": 12, "BLK": 4, "RET": 17, "POL": 6, "PRI": 4, "PRE": 7, "SES": 5, "TREE": 11,
              "INV": 8, "STEP": 15, "MET": 4, "CFG": 3, "PR": 19}  # fmt: skip
    for group, count in counts.items():
        assert {f"{group}-{number}" for number in range(1, count + 1)} <= {*needed, *exempt}, group
    examples = {"E": 10, "A": 18, "B": 3, "P": 12, "X": 9, "R": 8, "S": 5}
    for letter, count in examples.items():
        assert {f"{letter}{number}" for number in range(1, count + 1)} <= {*needed, *exempt}
    assert {f"D{number}" for number in range(10)} <= set(needed)
    assert len(exempt) < 8


def test_files_that_the_rule_book_names_exist() -> None:
    page = (ROOT / "docs" / "scheduling-rules.md").read_text()
    named = set(re.findall(r"`([\w/]+\.py)`", page))
    assert len(named) > 15
    assert not [
        name for name in named if not any((ROOT / base / name).exists() for base in ("", "scheduler_proc/core"))
    ]


def test_the_script_tells_ids_from_other_words() -> None:
    module = script()
    assert set(module.ID.findall("RET-5, A4: P 16 and C = 32, 4.7; not SHA-1, 1.4.7, PRE-1(b), XA4, A4x")) == {
        "RET-5", "A4", "4.7", "PRE-1",
    }  # fmt: skip
    assert module._ids_in_name("test_x7_x9_and_ret17_too") == {"X7", "X9", "RET-17"}
    assert module._ids_in_name("test_4_7_off") == {"4.7"}
