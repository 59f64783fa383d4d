"""The grammar child: what it dies of is the error of one grammar, and other prompts do not wait for it."""

import asyncio
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from tokenizer_rig import VOCAB_SIZE, resolved

from quartet.wire.codec import Source
from quartet.wire.config import Config
from quartet.wire.errors import ModelError
from quartet.wire.frames import CancelEncode, Encode, Encoded, EncodeFailed, Grammar, SamplingParams, TextPrompt
from quartet.wire.ids import Epoch, Role
from tests.support.fake_context import FakeContext, running
from tests.support.hostile_grammars import HOSTILE
from tokenizer_proc import process
from tokenizer_proc.grammar_bounds import GrammarError
from tokenizer_proc.grammar_process import GrammarProcess
from tokenizer_proc.grammars import LocalGrammars
from tokenizer_proc.thinking import Thinking
from tokenizer_proc.verdicts import Verdicts

API = Source(Role.API, 0, Epoch(1))
GOOD = Grammar("regex", "[ab]+")
OPTIONAL = {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(1000)}}
SLOW = Grammar("json_schema", json.dumps(OPTIONAL))
"""Compiles within the deadline, in tens of milliseconds."""


@pytest.fixture(scope="module")
def config(byte_level_folder: Path) -> Config:
    return Config(resolved=resolved(byte_level_folder, vocab_size=VOCAB_SIZE))


@pytest.fixture(scope="module")
def grammars(config: Config) -> Iterator[GrammarProcess]:
    made = GrammarProcess(config)
    yield made
    made.close()


def compiled(grammars: GrammarProcess, grammar: Grammar = GOOD) -> str:
    return grammars.compile(grammar, Thinking.CLOSED)


def test_the_child_compiles_what_this_process_would(grammars: GrammarProcess, config: Config) -> None:
    for grammar in (GOOD, SLOW):
        assert compiled(grammars, grammar) == LocalGrammars(config).compile(grammar, Thinking.CLOSED)
    thinking = Grammar("choice", '["a","é"]', after="</think>", opening="<think>")
    for state in Thinking:
        assert grammars.compile(thinking, state) == LocalGrammars(config).compile(thinking, state)
    with pytest.raises(GrammarError, match="unclosed group"):
        compiled(grammars, Grammar("regex", "("))


def test_no_child_is_started_for_what_is_too_large_to_begin_with(config: Config) -> None:
    unused = GrammarProcess(config)
    with pytest.raises(GrammarError, match="4096 bytes"):
        compiled(unused, Grammar("regex", "a" * 5000))
    assert unused.pid is None


def test_a_grammar_beyond_the_deadline_is_refused_and_the_next_compiled(config: Config) -> None:
    grammars = GrammarProcess(config, deadline_s=0.005)
    begin_s = time.monotonic()
    with pytest.raises(GrammarError, match="too much processor time"):
        compiled(grammars, SLOW)
    # Most of it is the start of the child.
    assert time.monotonic() - begin_s < 20.0
    assert compiled(grammars)
    grammars.close()


def test_a_killed_child_is_replaced_and_the_grammar_compiled(grammars: GrammarProcess) -> None:
    compiled(grammars)
    before = grammars.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    assert compiled(grammars) and grammars.pid != before


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGABRT, "memory"), (signal.SIGSEGV, "nested"), (signal.SIGPROF, "processor time")]
)
def test_what_kills_the_child_is_refused_at_once_when_it_comes_again(
    grammars: GrammarProcess, number: int, reason: str
) -> None:
    compiled(grammars)
    pid = grammars.pid
    assert pid is not None
    verdicts = Verdicts(grammars)
    os.kill(pid, number)
    assert reason in verdicts.find(GOOD, Thinking.CLOSED).refusal
    assert grammars.pid is None
    assert reason in verdicts.find(GOOD, Thinking.CLOSED).refusal
    assert grammars.pid is None, "it is refused without a child"


def test_memory_is_bounded_and_the_child_ends_with_its_parent(grammars: GrammarProcess) -> None:
    compiled(grammars)
    pid = grammars.pid
    limits = Path(f"/proc/{pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max address space")]
    size_kib = int(next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmSize" in x).split()[1])
    assert int(line.split()[3]) <= (size_kib << 10) + (512 << 20) + (1 << 20)
    grammars.close()
    assert not Path(f"/proc/{pid}").exists()


def test_memory_does_not_grow_with_the_number_of_schemas(grammars: GrammarProcess) -> None:
    verdicts = Verdicts(grammars, max_bytes=1 << 20)

    def resident() -> int:
        assert grammars.pid is not None
        return int(psutil.Process(grammars.pid).memory_info().rss) + int(psutil.Process().memory_info().rss)

    def send(count: int, start: int) -> None:
        for number in range(start, start + count):
            schema = {"type": "object", "properties": {f"a{number}": {"enum": [str(number), number]}}}
            assert verdicts.find(Grammar("json_schema", json.dumps(schema)), Thinking.CLOSED).source

    send(300, 0)
    before = resident()
    send(700, 300)
    assert resident() - before < 16 << 20


def test_a_tokenizer_that_cannot_be_read_is_not_tried_twice(byte_level_folder: Path) -> None:
    grammars = GrammarProcess(Config(resolved=resolved(byte_level_folder, vocab_size=10)))
    for _ in range(2):
        with pytest.raises(ModelError, match="no grammar can be used"):
            compiled(grammars)
        assert grammars.pid is None


@pytest.fixture
async def tokenizer(config: Config) -> AsyncIterator[FakeContext]:
    context = FakeContext(Role.TOKENIZER, config)
    async with running(process.main, context):
        yield context


def job(number: int, grammar: Grammar | None = None, tenant: str = "") -> Encode:
    return Encode(number, "api-0", TextPrompt("hello"), SamplingParams(grammar=grammar), tenant)


async def answered(context: FakeContext, count: int) -> list[Any]:
    """Wait for that many answers; returns them."""
    async with asyncio.timeout(30):
        while len(context.sent) < count:
            await asyncio.sleep(0.001)
    return [answer for _, answer in context.sent]


class Held:
    """Replaces the compiler by one that waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.compiled: list[str] = []
        monkeypatch.setattr(GrammarProcess, "compile", lambda _, grammar, thinking: self.compile(grammar))

    def compile(self, grammar: Grammar) -> str:
        self.go.wait(20)
        self.compiled.append(grammar.source)
        if grammar.source == "bug":
            raise RuntimeError("secret prompt text")
        return grammar.source


async def test_jobs_with_a_grammar_are_answered_and_known_ones_at_once(tokenizer: FakeContext) -> None:
    tokenizer.deliver(API, job(1, GOOD))
    tokenizer.deliver(API, job(2, Grammar("regex", "(")))
    first, second = sorted(await answered(tokenizer, 2), key=lambda answer: answer.job)
    assert isinstance(first, Encoded) and first.params.grammar is not None
    assert first.params.grammar.kind == "llguidance"
    assert isinstance(second, EncodeFailed) and second.code == "invalid_grammar"


async def test_prompts_do_not_wait_for_a_grammar(tokenizer: FakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    tokenizer.deliver(API, job(1, GOOD))
    tokenizer.deliver(API, job(2))
    tokenizer.deliver(API, job(1, GOOD))
    assert [answer.job for answer in await answered(tokenizer, 1)] == [2]
    tokenizer.deliver(API, job(1, GOOD))
    assert tokenizer.metrics().gauges["tokenizer_pending_jobs"] == 1
    held.go.set()
    assert [answer.job for answer in await answered(tokenizer, 2)] == [2, 1]
    tokenizer.deliver(API, job(3, GOOD))
    await answered(tokenizer, 3)
    assert held.compiled == [GOOD.source], "a duplicate job and a known grammar compile nothing"


async def test_grammars_of_keys_take_turns_and_leave_with_their_clients(
    tokenizer: FakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    for number in range(6):
        tokenizer.deliver(API, job(number, Grammar("regex", f"a{number}"), "greedy"))
    tokenizer.deliver(API, job(6, Grammar("regex", "b"), "other"))
    # Every prompt is encoded once a later one is.
    tokenizer.deliver(API, job(7))
    await answered(tokenizer, 1)
    tokenizer.deliver(API, CancelEncode(3, "api-0"))
    held.go.set()
    await answered(tokenizer, 7)
    assert held.compiled == ["a0", "a1", "b", "a2", "a4", "a5"] or held.compiled == ["a0", "b", "a1", "a2", "a4", "a5"]


async def test_a_bug_in_the_compiler_is_one_jobs_error(tokenizer: FakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    Held(monkeypatch).go.set()
    tokenizer.deliver(API, job(1, Grammar("regex", "bug")))
    (found,) = await answered(tokenizer, 1)
    assert isinstance(found, EncodeFailed) and (found.status, "secret" in found.message) == (500, False)
    tokenizer.deliver(API, job(2, GOOD))
    assert isinstance((await answered(tokenizer, 2))[1], Encoded)


@pytest.mark.slow
async def test_other_prompts_are_as_quick_beside_hostile_grammars(tokenizer: FakeContext) -> None:
    async def latencies_s(numbers: range) -> list[float]:
        found = []
        for number in numbers:
            begin_s = time.monotonic()
            tokenizer.deliver(API, job(number))
            while not any(answer.job == number for _, answer in tokenizer.sent):
                await asyncio.sleep(0.0005)
            found.append(time.monotonic() - begin_s)
            tokenizer.sent.clear()
        return sorted(found)

    await latencies_s(range(50))
    alone = await latencies_s(range(1000, 2000))
    hostile = itertools.count(1 << 20)
    for grammar in HOSTILE.values():
        for _ in range(2):
            # Each is another, so that none is known.
            number = next(hostile)
            tokenizer.deliver(API, job(number, msgspec.structs.replace(grammar, markers=(str(number),)), "hostile"))
    beside = await latencies_s(range(2000, 3000))
    assert tokenizer.metrics().gauges["tokenizer_pending_jobs"] > 0, "the grammars are still compiled"
    # The margins are those of a machine that others use.
    assert beside[500] < 2 * alone[500] + 0.005, (alone[500], beside[500])
    assert beside[990] < 2 * alone[990] + 0.05, (alone[990], beside[990])


@pytest.mark.slow
def test_ten_thousand_schemas_leave_the_memory_flat(grammars: GrammarProcess) -> None:
    verdicts = Verdicts(grammars)
    measured = []
    for number in range(10_000):
        schema = {"type": "object", "properties": {f"a{number}": {"type": "string", "pattern": f"^[a-z]+{number}$"}}}
        assert verdicts.find(Grammar("json_schema", json.dumps(schema)), Thinking.CLOSED).source
        if number % 1000 == 999:
            assert grammars.pid is not None
            measured.append(psutil.Process(grammars.pid).memory_info().rss)
    assert max(measured) - measured[0] < 16 << 20, measured
