"""`quartet chat` against a real server: piped questions, a terminal, failures, Ctrl-C."""

import asyncio
import io
import json
from typing import Any

import pytest
from fake_engine import WORDS, stay_silent

from quartet.cli.chat import ChatServer, Conversation, run_chat
from quartet.wire.errors import RequestError

TEXT = "".join(WORDS)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def chat(api: Any, lines: str, terminal: bool = False, **more: Any) -> tuple[int, str, str]:
    out, notes = io.StringIO(), io.StringIO()
    source = (Terminal if terminal else io.StringIO)(lines)
    url = more.pop("url", api.url)
    code = await asyncio.to_thread(run_chat, url, source=source, out=out, notes=notes, **more)
    return code, out.getvalue(), notes.getvalue()


def turns(api: Any, request: int) -> list[tuple[str, str]]:
    messages = json.loads(api.engine.outputs[request].request.prompt.messages)
    return [(one["role"], one["content"]) for one in messages]


async def test_piped_lines_are_one_conversation(api: Any) -> None:
    code, out, notes = await chat(api, "first\n\nsecond\n/reset\nthird\n/exit\nnever\n", max_tokens=9, system="brief")
    assert (code, notes) == (0, "")
    assert out == f"{TEXT}\n" * 3
    assert len(api.engine.outputs) == 3
    assert turns(api, 1) == [("system", "brief"), ("user", "first"), ("assistant", TEXT), ("user", "second")]
    assert turns(api, 2) == [("system", "brief"), ("user", "third")]
    assert api.engine.outputs[0].request.params.max_new_tokens == 9


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_any_form_of_the_address(api: Any, suffix: str) -> None:
    code, out, _ = await chat(api, "hi\n", url=api.url.removeprefix("http://") + suffix)
    assert (code, out) == (0, f"{TEXT}\n")


async def test_a_terminal_gets_prompts_and_goes_on_after_an_error(api: Any) -> None:
    api.engine.refusal = RequestError(503, "queue_full", "the queue is full")
    api.engine.refuse_after = 1
    code, out, notes = await chat(api, "one\ntwo\n/reset\n", terminal=True)
    assert code == 0
    assert out.startswith(f"> {TEXT}\n> ")
    assert "toy at http://127.0.0.1" in notes
    assert "4 tokens" in notes
    assert "(the queue is full)" in notes
    assert "forgotten" in notes


async def test_failures_end_a_piped_run(api: Any, make_api: Any) -> None:
    code, _, notes = await chat(api, "hi\n", model="other")
    assert code == 1
    assert "toy" in notes
    code, _, notes = await chat(api, "hi\n", url="http://127.0.0.1:1")
    assert code == 1
    assert "cannot reach http://127.0.0.1:1" in notes
    code, _, notes = await chat(api, "hi\n", url="ftp://x")
    assert code == 1
    locked = await make_api(api_key=("k",))
    assert (await chat(locked, "hi\n"))[0] == 1
    assert (await chat(locked, "hi\n", api_key="k"))[0] == 0


async def test_an_error_event_and_a_broken_stream(api: Any) -> None:
    async def fail(output: Any) -> None:
        await output.subscribed.wait()
        await asyncio.sleep(0.01)
        output.fail(RequestError(500, "internal_error", "it broke"))

    api.engine.script = fail
    code, _, notes = await chat(api, "hi\n")
    assert code == 1
    assert "it broke" in notes


async def test_control_characters_do_not_reach_the_terminal(api: Any) -> None:
    async def script(output: Any) -> None:
        await output.subscribed.wait()
        output.text("a\x1b[2Jb\tc\nd\x9b")
        output.finish_all()

    api.engine.script = script
    _, out, _ = await chat(api, "hi\n")
    assert out == "a[2Jb\tc\nd\n"


async def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(api: Any) -> None:
    api.engine.script = stay_silent

    class Interrupting(io.StringIO):
        def write(self, text: str) -> int:
            super().write(text)
            if text == "partly":
                raise KeyboardInterrupt
            return len(text)

    async def speak() -> None:
        await api.engine.arrived.wait()
        await api.engine.outputs[0].subscribed.wait()
        api.engine.outputs[0].text("partly")

    conversation = Conversation(ChatServer(api.url), "toy", {})
    speaker = asyncio.ensure_future(speak())
    answer = await asyncio.to_thread(conversation.ask, "hi", Interrupting())
    await speaker
    assert (answer.text, answer.finish_reason) == ("partly", "interrupted")
    async with asyncio.timeout(2):
        await api.engine.outputs[0].aborted.wait()
    api.engine.script = lambda output: _finish(output)
    await asyncio.to_thread(conversation.ask, "go on", io.StringIO())
    assert turns(api, 1) == [("user", "hi"), ("assistant", "partly"), ("user", "go on")]


async def _finish(output: Any) -> None:
    await output.subscribed.wait()
    output.finish_all()
