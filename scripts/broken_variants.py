"""Breaks rules, one at a time, in a copy of the tree; prints which test fails, exit status 1 if none does.

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
        "        self._batch.leave(request, RequestState.WAITING, keeps_kv)\n",
        "        self._in_flight.by_generation.pop(request.generation, None)\n"
        "        request.in_flight = 0\n"
        "        self._batch.leave(request, RequestState.WAITING, keeps_kv)\n",
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
    Variant(
        "siblings not put off under shortest-prefill-first (4.3)",
        f"{CORE}/policies/short_prefill.py",
        "key=lambda request: (request.is_deprioritized, _work(request))",
        "key=_work",
    ),
    Variant(
        "hrrn without the snapshot at the entry (4.2)",
        f"{CORE}/policies/response_ratio.py",
        "context.processed_tokens - request.processed_at_entry",
        "context.processed_tokens",
    ),
    Variant(
        "hrrn counts outputs as prompt (4.2)",
        f"{CORE}/policies/response_ratio.py",
        "request.prompt_tokens - request.matched_tokens",
        "request.total_tokens - request.matched_tokens",
    ),
    Variant(
        "lof by max_tokens before the clamp (4.2)",
        f"{CORE}/policies/arrival.py",
        "-request.max_new_tokens)",
        "-(request.params.max_new_tokens or 0))",
    ),
    Variant(
        "compatible need with M - O (PRE-4)",
        f"{CORE}/admission.py",
        "missing = request.uncomputed_tokens + min(request.max_new_tokens, self._clip)",
        "missing = request.uncomputed_tokens + self._estimate(request)",
    ),
    Variant(
        "a preemption gives back the newcomer's reservation (PRE-6)",
        f"{CORE}/retraction.py",
        "            adder.forget_victim(victim)\n",
        "            adder.forget_victim(victim)\n            adder.total_offset -= adder.reservation_of(newcomer)\n",
    ),
    Variant(
        "a locked prefix counts as given by the victim (PRE-4)",
        f"{CORE}/admission.py",
        "ceil_to(one.lease.num_computed_tokens, self.page_size) - one.lease.protected for one in victims",
        "ceil_to(one.lease.num_computed_tokens, self.page_size) for one in victims",
    ),
    Variant(
        "age kept at a requeue (RET-7)",
        f"{CORE}/queue.py",
        "        request.passes_at_entry = self._admitting_passes\n        request.processed_at_entry",
        "        if not request.stream.is_open:\n"
        "            request.passes_at_entry = self._admitting_passes\n"
        "        request.processed_at_entry",
    ),
    Variant(
        "min_free_slots_delay delays chunks (STEP-6)",
        f"{CORE}/prefill.py",
        "return is_short_of_slots and self._batch.chunked is None",
        "return is_short_of_slots",
    ),
    Variant(
        "the oldest by entry number instead of arrival (4.2)",
        f"{CORE}/policies/longest_prefix.py",
        "key=lambda one: one.seq)",
        "key=lambda one: one.qseq)",
    ),
    Variant(
        "test_retract retracts a lone request (RET-16)",
        f"{CORE}/retraction.py",
        "self._checks % FORCED_EVERY == 0 and len(rows) > 1",
        "self._checks % FORCED_EVERY == 0",
    ),
    Variant(
        "a lone row fails although a prompt in progress holds the pages (RET-4)",
        f"{CORE}/retraction.py",
        "        if self._batch.chunked is not None:\n            self._retract",
        "        if False:\n            self._retract",
    ),
    Variant(
        "an aborted request's outputs enter the tree (RET-14)",
        f"{CORE}/batch.py",
        "        if to is RequestState.FINISHED:\n",
        "        if to in (RequestState.FINISHED, RequestState.ABORTED):\n",
    ),
    Variant(
        "the flag full is not cleared by arrivals (ADM-11)",
        f"{CORE}/prefill.py",
        "self._queue.changes != self._changes_when_full or ",
        "",
    ),
    Variant(
        "a preemption without an admission where there is no tree (PRE-7)",
        f"{CORE}/admission.py",
        "        if victims and (total <= 0 or self._remaining_current() + freed <= 0):\n            return False\n",
        "        if victims:\n"
        "            return extend + self._estimate(request) + self.page_size < total - withheld\n",
    ),
    Variant(
        "the rest of a prompt in progress is not needed in blocks (BLK-3)",
        f"{CORE}/admission.py",
        "self._block_tokens += ceil_to(request.uncomputed_tokens, self.page_size)",
        "self._block_tokens += padded",
    ),
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
