"""Anthropic's messages and OpenAI's responses through all processes: deaths in mid-stream, and the end of the engine.

The model is simulated and answers from a script; SmolLM2 is asked in test_real_model.py.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.support.server import Server
from tests.support.thinking_template import TEMPLATE

pytestmark = pytest.mark.e2e

REPLY = (
    "<think>\nThe lamp 🎉 is at five, so I look there.\n</think>\n\nI look at the lamp.\n"
    '<tool_call>\n{"name": "look", "arguments": {"what": "the \\"lamp\\" \\n é 🎉", "at": [5, 6]}}\n</tool_call>'
)
ARGUMENTS = {"what": 'the "lamp" \n é 🎉', "at": [5, 6]}
TOOL = {"name": "look", "description": "Look."}
SCHEMA = {"type": "object"}
MESSAGE: Any = {
    "model": "smollm2",
    "max_tokens": 500,
    "messages": [{"role": "user", "content": "What is at five?"}],
    "tools": [{**TOOL, "input_schema": SCHEMA}],
}
RESPONSE: Any = {
    "model": "smollm2",
    "input": "What is at five?",
    "tools": [{**TOOL, "type": "function", "parameters": SCHEMA}],
}
FATAL = """
from quartet.runtime.process import run_process
from quartet.wire.errors import ModelError
async def main(context):
    raise ModelError("the model is damaged")
run_process(main)
"""


def launch(folder: Path) -> Server:
    (folder / "template.jinja").write_text(TEMPLATE)
    (folder / "script.json").write_text(json.dumps([{"contains": "", "reply": REPLY}]))
    flags = ["--chat-template", str(folder / "template.jinja"), "--simulated-script", str(folder / "script.json")]
    flags += ["--restart-limit", "1"]
    return Server("--simulated-worker", "--simulated-step-ms", "8", *flags, cwd=folder)


async def watched(events: Any, mark: str, server: Server) -> AsyncIterator[Any]:
    """Yield the events of a stream; kill the worker at the first that has `mark`."""
    async for event in events:
        if mark and mark in event.type:
            server.kill("worker-0")
            mark = ""
        yield event
    assert not mark


async def message(server: Server, mark: str = "") -> Any:
    """Return the final message of a stream, without what differs between requests."""
    claude = anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0)
    async with claude, claude.messages.stream(**MESSAGE) as stream:
        assert [event async for event in watched(stream, mark, server)][-1].type == "message_stop"
        final = (await stream.get_final_message()).to_dict()
    thinking, text, call = final["content"]  # type: ignore[misc]
    assert thinking["thinking"] == "The lamp 🎉 is at five, so I look there."
    assert text["text"] == "I look at the lamp." and call["input"] == ARGUMENTS
    assert final["stop_reason"] == "tool_use"
    return final["usage"]["output_tokens"], final["usage"]["output_tokens_details"]  # type: ignore[index]


async def response(server: Server, mark: str = "") -> Any:
    """Return the final response of a stream, without what differs between requests."""
    client = openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    async with client, client.responses.stream(**RESPONSE) as stream:
        numbers = [event.sequence_number async for event in watched(stream, mark, server)]
        final: Any = await stream.get_final_response()
    assert numbers == list(range(len(numbers)))
    reasoning, text, call = final.output
    assert reasoning.content[0].text == "The lamp 🎉 is at five, so I look there."
    assert text.content[0].text == "I look at the lamp." and json.loads(call.arguments) == ARGUMENTS
    return final.usage.output_tokens, final.usage.output_tokens_details


async def test_a_message_outlives_the_worker(tmp_path: Path) -> None:
    with launch(tmp_path) as server:
        calm = await message(server)
        assert await message(server, "input_json") == calm
        assert server.topology()["worker-0"]["restarts"] == 1


@pytest.mark.slow
async def test_a_response_outlives_the_worker_and_a_message_ends_with_the_engine(tmp_path: Path) -> None:
    with launch(tmp_path) as server:
        calm = await response(server)
        assert await response(server, "function_call_arguments.delta") == calm
        server.wait_until(server.is_complete)
        package = tmp_path / "worker_proc"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(FATAL)
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as claude:
            events = await claude.messages.create(**MESSAGE, stream=True)
            with pytest.raises(anthropic.APIStatusError) as caught:
                assert [event.type async for event in watched(events, "content_block_delta", server)]
        assert caught.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]
