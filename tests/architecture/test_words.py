"""Words that the project does not use: people for requests and processes, and private names for the field's terms."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = (".py", ".md", ".toml", ".yml", "Makefile")
PEOPLE = ("somebody", "whoever", "nobody", "innocents?", "in[ _]vain", "puts?[ _]up[ _]with")
# Old name -> the field's: step descriptor, pinned rings, fused sampler, completion poller, stub, path, process slot,
# usage counter, timeouts. As part of an identifier or as a word, in any case.
PRIVATE_NAMES = ("letter", "mailbox", "picker", "twin", "road", "seat", "tally", "patience", "rehearsal")
PRIVATE_CLASSES = ("Pace", "Who", "Places", "Ask", "Draft", "Ending")

FORBIDDEN = re.compile(
    "|".join(
        (
            *(rf"(?i:(?<![a-z]){words}(?![a-z]))" for words in PEOPLE),
            *(rf"(?i:(?<![a-z]){name}s?(?![a-z]))" for name in PRIVATE_NAMES),
            *(rf"(?<![A-Za-z]){name}(?=[(:\[])" for name in PRIVATE_CLASSES),
        )
    )
)

ALLOWED = {
    ("tests/golden/prompts.py", "*"): "English prose, given to models",
    ("tests/e2e/test_start_up.py", "nobody"): "the owner of a model on the hub that does not exist",
    ("benchmarks/serving/full_vocabulary.py", "letters"): "letters of the alphabet",
    ("quartet/checkpoint/gguf_reader.py", "letters"): "letters of the alphabet",
    ("tests/unit/scheduler_proc/policies/policy_rig.py", "letters"): "letters of the alphabet",
    ("docs/scale-out.md", "picker"): "the endpoint picker of the Gateway API inference extension",
    ("tests/unit/api_proc/test_kubernetes_manifests.py", "picker"): "the same",
    ("tests/architecture/test_rules.py", "letter"): "the letter of an example's name",
}


def test_no_forbidden_word_is_used() -> None:
    found = {(name, word): f"{name}:{number}" for name, number, word in uses()}
    excused = {(name, word) for name, word in found if (name, word) in ALLOWED or (name, "*") in ALLOWED}
    assert not {where: word for (name, word), where in found.items() if (name, word) not in excused}
    needed = {(name, word if (name, word) in ALLOWED else "*") for name, word in excused}
    assert needed == ALLOWED.keys(), "an exception that is not needed any more"


@pytest.mark.parametrize(
    "text",
    [
        "Nobody waits",
        "puts up with it",
        "test_it_waits_in_vain",
        "_test_it_harms_nobody",
        "self._letter",
        "TWIN_RUNNER",
        "class Pace:",
        "Who(table)",
        "the worker's twin",
        "letters",
    ],
)
def test_a_forbidden_word_is_found(text: str) -> None:
    assert FORBIDDEN.search(text)


@pytest.mark.parametrize("text", ["the request whose", "pacemaker", "broad", "at its own pace", "between", "who"])
def test_other_words_are_not(text: str) -> None:
    assert not FORBIDDEN.search(text)


def uses() -> list[tuple[str, int, str]]:
    """Return file, line number and lower-case word of each use."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    names = [name for name in tracked if name.endswith(SUFFIXES) and (ROOT / name).exists()]
    return [
        (name, number, match[0].lower())
        for name in names
        if name != "tests/architecture/test_words.py"
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        for match in FORBIDDEN.finditer(line)
    ]
