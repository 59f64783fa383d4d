"""Breaks six rules, one at a time, in a copy of the tree; prints which test fails, exit status 1 if none does.

    python scripts/broken_variants.py [WORDS ...]     only the variants whose name contains one of the words

Each variant is a text that must occur once in a file, and what replaces it. A variant whose text is gone no longer
tests anything, so that is an error, too.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("quartet", "scheduler_proc", "tests", "pyproject.toml")
TESTS = "tests/unit/scheduler_proc"
CORE = "scheduler_proc/core"


@dataclass(frozen=True, slots=True)
class Variant:
    """One rule broken: in `file`, `old` becomes `new`."""

    name: str
    file: str
    old: str
    new: str


VARIANTS = (
    Variant("victim order reversed (RET-2)", f"{CORE}/retraction.py", "position = min(", "position = max("),
    Variant(
        "retracted request subject to the queue limit (RET-7)",
        f"{CORE}/queue.py",
        "if not stream.is_open and stream.attempt == 0",
        "if stream.attempt == 0",
    ),
    Variant(
        "token in flight dropped (RET-10)",
        f"{CORE}/retraction.py",
        "        self._batch.leave(request, RequestState.WAITING)\n",
        "        self._in_flight.by_generation.pop(request.generation, None)\n"
        "        request.in_flight = 0\n"
        "        self._batch.leave(request, RequestState.WAITING)\n",
    ),
    Variant(
        "lock not released (TREE-5)",
        f"{CORE}/kv.py",
        'that holds nothing")\n        self.tree.unlock(lease.node)\n',
        'that holds nothing")\n',
    ),
    Variant(
        "floor for ceil in blocks (BLK-2)", f"{CORE}/admission.py", "-(-(whole + (tokens > whole)) //", "(whole //"
    ),
    Variant(
        "floor for ceil in pages (ADM-6)",
        f"{CORE}/lengths.py",
        "return -(-tokens // page_size) * page_size",
        "return tokens // page_size * page_size",
    ),
    Variant("ratio not re-estimated (RAT-3)", f"{CORE}/ratio.py", "        if pairs:\n", "        if not pairs:\n"),
)


def first_failure(tree: Path) -> str | None:
    """Run the scheduler's tests of a tree; return the first one that fails, or None. Raises RuntimeError for no run."""
    command = [sys.executable, "-m", "pytest", TESTS, "-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
    finished = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=600)
    if finished.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", finished.stdout, re.MULTILINE)
    if finished.returncode != 1 or found is None:
        raise RuntimeError(f"the tests did not run:\n{finished.stdout}{finished.stderr}")
    return found[1]


def copy_tree(to: Path) -> None:
    """Copy what the tests need. Run from there, `python -m pytest` imports the copy and not an installed package."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
        else:
            shutil.copy(source, to / name)


def first_failure_of(variant: Variant, tree: Path) -> str | None:
    """Break the rule in a tree, run the tests, mend it again; return the test that failed."""
    path = tree / variant.file
    text = path.read_text(encoding="utf-8")
    if text.count(variant.old) != 1:
        raise RuntimeError(
            f"{variant.name}: {variant.file} has the text to be replaced {text.count(variant.old)} times"
        )
    path.write_text(text.replace(variant.old, variant.new), encoding="utf-8")
    try:
        return first_failure(tree)
    finally:
        path.write_text(text, encoding="utf-8")


def main(words: list[str]) -> int:
    """Try every variant; return the exit status."""
    chosen = [variant for variant in VARIANTS if not words or any(word in variant.name for word in words)]
    unseen = 0
    with tempfile.TemporaryDirectory(prefix="broken-variants-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        broken = first_failure(tree)
        if broken is not None:
            print(f"nothing is broken yet, and {broken} fails")
            return 1
        for variant in chosen:
            test = first_failure_of(variant, tree)
            unseen += test is None
            print(f"{variant.name}: {'NOT NOTICED' if test is None else test}", flush=True)
    return 1 if unseen or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
