"""Calls that SmolLM2 is made to write, read by the openai client, and the worker killed in the middle of one."""

from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.support.server import Server
from tests.support.thinking_template import TEMPLATE

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
MESSAGES: Any = [{"role": "user", "content": "Pick a colour."}]


class Pick(pydantic.BaseModel):
    """Pick a colour."""

    colour: Literal["red", "green", "blue"]
    counts: list[Literal[1, 2, 3]] = pydantic.Field(max_length=2)
    note: str = pydantic.Field(max_length=8)


TOOLS: Any = [openai.pydantic_function_tool(Pick), {"type": "function", "function": {"name": "stop", "strict": True}}]
NAMED: Any = {"type": "function", "function": {"name": "Pick"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    template = tmp_path_factory.mktemp("model") / "template.jinja"
    template.write_text(TEMPLATE)
    with Server("--dtype", "float32", "--max-total-tokens", "8192", "--chat-template", str(template)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_named_tool(client: openai.OpenAI, seed: int, temperature: float) -> None:
    asked: Any = {"model": "smollm2", "messages": MESSAGES, "tools": TOOLS, "tool_choice": NAMED}
    asked |= {"max_tokens": 300, "seed": seed, "temperature": temperature}
    answer = client.chat.completions.parse(**asked)
    (call,) = answer.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Pick)
    assert answer.choices[0].finish_reason == "stop"
    with client.chat.completions.stream(**asked) as stream:
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or ()
    assert streamed.function.arguments == call.function.arguments


def test_a_required_tool_and_thinking_before_it(client: openai.OpenAI) -> None:
    asked: Any = {"model": "smollm2", "messages": MESSAGES, "tools": TOOLS, "parallel_tool_calls": False}
    answer = client.chat.completions.create(**asked, tool_choice="required", max_tokens=300, temperature=0)
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.function.name in ("Pick", "stop")
    assert answer.choices[0].finish_reason == "tool_calls"


def test_a_format_beside_tools(client: openai.OpenAI) -> None:
    asked: Any = {"model": "smollm2", "messages": MESSAGES, "tools": TOOLS[:1], "max_tokens": 300}
    for seed in range(2):
        message = client.chat.completions.parse(**asked, response_format=Pick, seed=seed).choices[0].message
        found = message.tool_calls[0].function.parsed_arguments if message.tool_calls else message.parsed
        assert isinstance(found, Pick)


def test_the_worker_dies_in_mid_call(server: Server, client: openai.OpenAI) -> None:
    asked: Any = {"model": "smollm2", "messages": MESSAGES, "tools": TOOLS, "tool_choice": NAMED, "stream": True}
    restarts = server.topology()["worker-0"]["restarts"]
    calm, shaken = (arguments(client, {**asked, "seed": 3}, server if kills else None) for kills in (False, True))
    assert shaken == calm
    Pick.model_validate_json(calm)
    server.wait_until(lambda: server.topology()["worker-0"]["restarts"] == restarts + 1)


def arguments(client: openai.OpenAI, asked: Any, killed: Server | None) -> str:
    """Return the arguments of a streamed call; the worker of `killed` dies after a few pieces of them."""
    pieces: list[str] = []
    for chunk in client.chat.completions.create(**asked):
        for call in chunk.choices[0].delta.tool_calls or ():
            pieces.append(call.function.arguments)
            if killed is not None and len(pieces) == 6:
                killed.kill("worker-0")
    return "".join(pieces)
