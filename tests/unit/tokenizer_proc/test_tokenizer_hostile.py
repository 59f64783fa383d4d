"""Grammars that are meant to use up time or memory: refused or bounded, and what comes after them is compiled."""

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tokenizer_rig import VOCAB_SIZE, resolved

from quartet.wire.config import Config
from quartet.wire.frames import Grammar
from tests.support.hostile_grammars import HOSTILE
from tokenizer_proc.grammar_bounds import GrammarError
from tokenizer_proc.grammar_process import GrammarProcess
from tokenizer_proc.thinking import Thinking
from tokenizer_proc.verdicts import Verdicts

REFUSED = {
    "deep_regex", "deep_schema", "self", "cycle", "cycle_of_all", "doubling_one", "product", "numbers",
    "pattern_properties", "deep_lark", "deep_json_in_lark", "many_rules", "deep_gbnf", "large",
}  # fmt: skip
"""Those that no machine is fast enough for."""
NEXT = Grammar("regex", "[ab]+")


@pytest.fixture(scope="module")
def grammars(byte_level_folder: Path) -> Iterator[GrammarProcess]:
    made = GrammarProcess(Config(resolved=resolved(byte_level_folder, vocab_size=VOCAB_SIZE)))
    yield made
    made.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_or_bounded_in_time_and_memory(grammars: GrammarProcess, name: str) -> None:
    grammars.compile(NEXT, Thinking.CLOSED)
    assert grammars.pid is not None
    child = psutil.Process(grammars.pid)
    before, cpu_s = child.memory_info().rss, used_s(child)
    verdicts = Verdicts(grammars)
    found = verdicts.find(HOSTILE[name], Thinking.CLOSED)
    assert found.refusal or name not in REFUSED
    if grammars.pid == child.pid:
        assert child.memory_info().rss - before < 64 << 20
    # A second, and the start of another child if the first has died.
    assert used_s(child) - cpu_s < 3.0
    pid = grammars.pid
    assert verdicts.find(HOSTILE[name], Thinking.CLOSED) == found and grammars.pid == pid, "it is not compiled again"
    assert grammars.compile(NEXT, Thinking.CLOSED)


def used_s(child: psutil.Process) -> float:
    """Return the processor time of a child, alive or dead, and of those that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        alive = child.cpu_times()
    except psutil.NoSuchProcess:
        return ended.ru_utime + ended.ru_stime
    return float(ended.ru_utime + ended.ru_stime + alive.user + alive.system)


def test_a_reference_to_a_document_is_refused_before_anything_is_opened(grammars: GrammarProcess) -> None:
    for url in ("http://169.254.169.254/latest", "file:///etc/passwd", "other.json", "//host/x"):
        with pytest.raises(GrammarError, match="only followed within"):
            grammars.compile(Grammar("json_schema", f'{{"$ref": "{url}"}}'), Thinking.CLOSED)
