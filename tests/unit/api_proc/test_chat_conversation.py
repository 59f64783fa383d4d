"""`quartet chat` against the API in front of a fake engine, without a terminal: turns, one answer, failures."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engine import WORDS, stay_silent

from quartet.cli import chat
from quartet.cli.chat_conversation import Answer, Conversation, first_model, summary
from quartet.cli.chat_terminal import Terminal
from quartet.cli.engine_client import EngineClient
from quartet.wire.errors import ConfigError, EngineError, RequestError

TEXT = "".join(WORDS)


@pytest.fixture
async def engine(api: Any) -> AsyncIterator[EngineClient]:
    async with EngineClient(api.url) as client:
        yield client


@pytest.fixture
def talk(engine: EngineClient, capsys: pytest.CaptureFixture[str]) -> Callable[..., Awaitable[tuple[str, str]]]:
    """A conversation in which the given lines are typed; an exception is a key. Returns output and notes."""

    async def run(*lines: str | type[BaseException], system: str = "") -> tuple[str, str]:
        typed = iter((*lines, EOFError))

        async def read() -> str:
            line = next(typed)
            if isinstance(line, str):
                return line
            raise line

        async def guard(asking: Awaitable[Answer], _: Callable[[], None]) -> Answer:
            return await asking

        assert await Terminal(Conversation(engine, "toy", {}, system), guard, read).talk() == 0
        shown = capsys.readouterr()
        return shown.out, " ".join(shown.err.split())

    return run


def turns(api: Any, request: int) -> list[tuple[str, str]]:
    messages = json.loads(api.engine.outputs[request].request.prompt.messages)
    return [(one["role"], one["content"]) for one in messages]


async def test_lines_are_one_conversation(api: Any, talk: Any) -> None:
    out, notes = await talk("first", "  ", "second", "/reset", "third", "/exit", "never", system="brief")
    assert out == f"{TEXT}\n" * 3
    assert turns(api, 1) == [("system", "brief"), ("user", "first"), ("assistant", TEXT), ("user", "second")]
    assert turns(api, 2) == [("system", "brief"), ("user", "third")]
    assert api.engine.outputs[0].request.params.max_new_tokens is None, "as long as the context allows"
    assert "toy at http://127.0.0.1" in notes and "4 tokens" in notes and "prompt 5 (3 cached)" in notes


async def test_commands(api: Any, talk: Any, tmp_path: Path) -> None:
    path = tmp_path / "saved.json"
    commands = ("/help", "/system Be brief.", "hi", f"/save {path}", f"/save {path}", "/save", "/sytem x", " /etc is?")
    _, notes = await talk(*commands)
    assert turns(api, 0) == [("system", "Be brief."), ("user", "hi")]
    assert turns(api, 1)[-1] == ("user", "/etc is?")
    saved = json.loads(path.read_text())
    assert [one["content"] for one in saved["messages"]] == ["Be brief.", "hi", TEXT] and saved["model"] == "toy"
    for expected in ("/save FILE", "Alt-Enter", "not saved: [Errno 17]", "needs the name", "/sytem is no command"):
        assert expected in notes


async def test_ctrl_c_at_the_prompt_leaves_the_second_time(api: Any, talk: Any) -> None:
    out, notes = await talk(KeyboardInterrupt, "hi", KeyboardInterrupt, KeyboardInterrupt, "never")
    assert out == f"{TEXT}\n" and notes.count("Ctrl-C again") == 2


async def test_a_conversation_goes_on_after_an_error(api: Any, talk: Any) -> None:
    api.engine.refusal = RequestError(503, "queue_full", "the queue is full")
    api.engine.refuse_after = 1
    out, notes = await talk("one", "two", "/reset")
    assert out == f"{TEXT}\n" and "the queue is full" in notes and "forgotten" in notes


async def test_one_answer(api: Any, engine: EngineClient) -> None:
    out = io.StringIO()
    conversation = Conversation(engine, await first_model(engine), {"max_tokens": 2, "temperature": 0.25})
    assert await chat.answer_once(conversation, "hi", out, io.StringIO()) == 0
    assert out.getvalue() == "".join(WORDS[:2]) + "\n"
    params = api.engine.outputs[0].request.params
    assert (params.max_new_tokens, params.temperature) == (2, 0.25)


async def test_one_answer_as_json(api: Any, engine: EngineClient) -> None:
    out = io.StringIO()
    assert await chat.answer_as_json(Conversation(engine, "toy", {}), "hi", out) == 0
    record = json.loads(out.getvalue())
    assert (record["answer"], record["finish_reason"], record["usage"]["completion_tokens"]) == (TEXT, "stop", 4)
    assert 0 < record["ttft_s"] <= record["total_s"]


def test_a_pipe_is_the_text_that_the_question_is_about() -> None:
    assert chat.full_question("summarise", io.StringIO("a file\n")) == "a file\n\nsummarise"
    assert chat.full_question("", io.StringIO("a question\n")) == "a question"
    assert chat.full_question("a question", None) == "a question"
    for errors in ("strict", "surrogateescape"):
        with pytest.raises(ConfigError, match="not UTF-8 text"):
            chat.full_question("", io.TextIOWrapper(io.BytesIO(b"a\xff"), encoding="utf-8", errors=errors))


async def test_failures_are_for_the_user(api: Any, engine: EngineClient) -> None:
    with pytest.raises(EngineError, match="toy"):
        await Conversation(engine, "other", {}).ask("hi")

    async def fail(output: Any) -> None:
        await output.subscribed.wait()
        output.text("Partly")
        output.fail(RequestError(500, "internal_error", "it broke"))

    api.engine.script = fail
    out = io.StringIO()
    with pytest.raises(EngineError, match="it broke"):
        await chat.answer_once(Conversation(engine, "toy", {}), "hi", out, io.StringIO())
    assert out.getvalue() == "Partly\n"


async def test_an_answer_that_is_stopped_stays_in_the_conversation(api: Any, engine: EngineClient) -> None:
    api.engine.script = stay_silent
    conversation = Conversation(engine, "toy", {})

    class Display:
        def thinking(self, piece: str) -> None: ...

        def text(self, piece: str) -> None:
            asyncio.get_running_loop().call_soon(conversation.stop)

    asking = asyncio.ensure_future(conversation.ask("hi", Display()))
    await api.engine.arrived.wait()
    await api.engine.outputs[0].subscribed.wait()
    api.engine.outputs[0].text("partly")
    answer = await asking
    assert (answer.text, answer.finish_reason) == ("partly", "interrupted")
    assert "stopped" in summary(answer)
    async with asyncio.timeout(2):
        await api.engine.outputs[0].aborted.wait()
    assert conversation.messages == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "partly"}]
