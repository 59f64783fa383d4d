"""The anthropic package as a client of /v1/messages and /v1/messages/count_tokens."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_create_params as beta_create_params
from fake_engine import PROMPT_IDS, WORDS

from api_proc.anthropic.schema import FIELDS, CountRequest, MessageRequest
from quartet.wire.errors import RequestError

MESSAGES: Any = [{"role": "user", "content": "hi"}]
TEXT = "".join(WORDS)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


@pytest.fixture
async def claude(api: Any) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """The anthropic client, without retries."""
    async with anthropic.AsyncAnthropic(base_url=api.url, api_key="none", max_retries=0) as made:
        yield made


def prompt_of(api: Any) -> Any:
    return api.engine.outputs[-1].request.prompt


def turns_of(api: Any) -> Any:
    return json.loads(prompt_of(api).messages)


async def test_a_message(claude: anthropic.AsyncAnthropic, api: Any) -> None:
    answer = await claude.messages.create(model="toy", max_tokens=64, messages=MESSAGES, system="Be brief.")
    assert answer.id.startswith("msg_")
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "toy")
    assert [(block.type, block.text) for block in answer.content if block.type == "text"] == [("text", TEXT)]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    usage = answer.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (2, 3, 4)
    assert answer._request_id
    assert turns_of(api) == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert api.engine.outputs[0].request.params.max_new_tokens == 64


async def test_a_stream(claude: anthropic.AsyncAnthropic) -> None:
    async with claude.messages.stream(model="toy", max_tokens=64, messages=MESSAGES) as stream:
        assert "".join([text async for text in stream.text_stream]) == TEXT
        final = await stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens, final.usage.cache_read_input_tokens) == ("end_turn", 4, 3)
    events = await claude.messages.create(model="toy", max_tokens=64, messages=MESSAGES, stream=True)
    kinds = [event.type async for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


async def test_what_reaches_the_engine(claude: anthropic.AsyncAnthropic, api: Any) -> None:
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "ok"}]},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "The answer is ("},
    ]
    system: Any = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=4fe2;"},
        {"type": "text", "text": "You help.\nx-anthropic-billing-header: other\nAlways.", "cache_control": None},
    ]
    await claude.messages.create(
        model="toy",
        max_tokens=7,
        messages=messages,
        system=system,
        stop_sequences=["END", "STOP"],
        metadata={"user_id": "someone"},
        thinking={"type": "disabled"},
        service_tier="standard_only",
        extra_body={
            "temperature": 0,
            "top_p": 0.5,
            "top_k": 3,
            "seed": 5,
            "priority": 3,
            "cache_salt": "s",
            "unknown": {"field": 1},
        },
        extra_headers={"anthropic-beta": "tools-2024-04-04", "x-request-timeout": "9.5"},
    )
    assert turns_of(api) == [
        {"role": "system", "content": "You help.\nAlways."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "The answer is ("},
    ]
    assert prompt_of(api).continue_final_message and not prompt_of(api).add_generation_prompt
    assert json.loads(prompt_of(api).template_args) == {"enable_thinking": False}
    request = api.engine.outputs[0].request
    assert (request.priority, request.cache_salt, request.deadline_s) == (3, "s", 9.5)
    assert request.routing_key == "someone"
    params = request.params
    assert (params.temperature, params.top_p, params.top_k, params.seed) == (0.0, 0.5, 3, 5)
    assert (params.max_new_tokens, params.stop) == (7, ("END", "STOP"))


async def test_edits_of_the_context_are_reported_as_not_made(claude: anthropic.AsyncAnthropic) -> None:
    edits: Any = {"edits": [{"type": "clear_tool_uses_20250919"}]}
    asked: Any = {"model": "toy", "max_tokens": 9, "messages": MESSAGES, "context_management": edits}
    answer = await claude.beta.messages.create(**asked)
    async with claude.beta.messages.stream(**asked) as stream:
        final = await stream.get_final_message()
    for one in (answer, final):
        assert one.context_management is not None and one.context_management.applied_edits == []


def test_every_field_of_the_package_is_known() -> None:
    """Served, without effect, or refused by name: a version with further fields is looked at here."""
    for params, kind in (
        (message_create_params.MessageCreateParamsBase, MessageRequest),
        (beta_create_params.MessageCreateParamsBase, MessageRequest),
        (message_count_tokens_params.MessageCountTokensParams, CountRequest),
    ):
        known = {*kind.__struct_fields__, *FIELDS.refused, *FIELDS.without_effect}
        assert params.__annotations__.keys() <= known, params.__annotations__.keys() - known


async def test_a_user_id_longer_than_a_routing_key_is_one_all_the_same(api: Any) -> None:
    for user in ("u" * 200, "u" * 200, "v" * 200):
        body = {"max_tokens": 1, "messages": MESSAGES, "metadata": {"user_id": user}}
        assert (await api.post("/v1/messages", body))[0] == 200
    keys = [output.request.routing_key for output in api.engine.outputs]
    assert keys[0] == keys[1] != keys[2]


async def test_stop_reasons(claude: anthropic.AsyncAnthropic, api: Any) -> None:
    answer = await claude.messages.create(model="toy", max_tokens=2, messages=MESSAGES)
    assert answer.stop_reason == "max_tokens"

    async def script(output: Any) -> None:
        output.text("some")
        output.finish_all("stop", "END")

    api.engine.script = script
    answer = await claude.messages.create(model="toy", max_tokens=9, messages=MESSAGES, stop_sequences=["END"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "END")


async def test_tokens_are_counted_without_a_request(claude: anthropic.AsyncAnthropic, api: Any) -> None:
    counted = await claude.messages.count_tokens(model="toy", messages=MESSAGES, system="Be brief.")
    assert counted.input_tokens == len(PROMPT_IDS)
    assert not api.engine.outputs
    assert not len(api.service.open) and not api.service.admission.num_admitted
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.role"):
        await claude.messages.count_tokens(model="toy", messages=[{"role": "robot", "content": "x"}])  # type: ignore


async def test_models(claude: anthropic.AsyncAnthropic) -> None:
    page = await claude.models.list()
    assert not page.has_next_page()
    (model,) = page.data
    assert (model.id, model.type, model.display_name, model.max_input_tokens) == ("toy", "model", "toy", 64)
    assert model.created_at.year == 2023
    assert (await claude.models.retrieve("toy")).id == "toy"
    with pytest.raises(anthropic.NotFoundError):
        await claude.models.retrieve("other")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            RequestError(400, "context_length_exceeded", "maximum context length is 64 tokens"),
            anthropic.BadRequestError,
        ),
        (RequestError(404, "model_not_found", "no"), anthropic.NotFoundError),
        (RequestError(429, "rate_limit_exceeded", "no", None, 1.0), anthropic.RateLimitError),
        (RequestError(500, "internal_error", "bug"), anthropic.InternalServerError),
        (RequestError(503, "queue_full", "busy", None, 1.0), anthropic.APIStatusError),
    ],
)
async def test_error_classes(
    claude: anthropic.AsyncAnthropic, api: Any, error: RequestError, expected: type[anthropic.APIStatusError]
) -> None:
    api.engine.refusal = error
    for is_stream in (False, True):
        with pytest.raises(expected) as caught:
            await claude.messages.create(model="toy", max_tokens=9, messages=MESSAGES, stream=is_stream)  # type: ignore
        assert caught.value.status_code == error.status
        assert caught.value.body["error"]["message"] == error.message  # type: ignore[index]
        assert caught.value.request_id
        assert (caught.value.response.headers.get("retry-after") is None) == (error.retry_after_s is None)


async def test_a_stream_that_dies_ends_in_its_error_event(claude: anthropic.AsyncAnthropic, api: Any) -> None:
    async def script(output: Any) -> None:
        await output.subscribed.wait()
        await asyncio.sleep(0.01)
        output.text("some")
        output.fail(RequestError(503, "engine_failed", "the worker cannot run"))

    api.engine.script = script
    stream = await claude.messages.create(model="toy", max_tokens=9, messages=MESSAGES, stream=True)
    with pytest.raises(anthropic.APIStatusError, match="the worker cannot run"):
        async for _ in stream:
            pass
    _, body, _ = await api.post("/v1/messages", {"max_tokens": 9, "messages": MESSAGES, "stream": True})
    last = body.strip().split("\n\n")[-1]
    error = {"type": "overloaded_error", "message": "the worker cannot run"}
    assert last.startswith("event: error\n") and json.loads(last.partition("data: ")[2])["error"] == error
