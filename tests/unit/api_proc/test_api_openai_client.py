"""The openai package as a client: what our users run."""

import asyncio
import json
from typing import Any

import openai
import pytest
from fake_engine import WORDS

from quartet.wire.errors import RequestError
from quartet.wire.frames import IdsPrompt, TextPrompt, pack_ids

MESSAGES: Any = [{"role": "user", "content": "hi"}]
TEXT = "".join(WORDS)


async def test_chat(client: openai.AsyncOpenAI, api: Any) -> None:
    answer = await client.chat.completions.create(model="toy", messages=MESSAGES)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer._request_id
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", TEXT, "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 4, 9)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer.model_extra is not None
    assert set(answer.model_extra["timings"]) >= {"queue_ms", "prefill_ms", "ttft_ms", "retractions"}


async def test_chat_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="toy", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


async def test_several_choices(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="toy", messages=MESSAGES, n=3, max_completion_tokens=1)
    assert [one.index for one in answer.choices] == [0, 1, 2]
    assert [one.finish_reason for one in answer.choices] == ["length"] * 3
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


async def test_chat_logprobs(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="toy", messages=MESSAGES, logprobs=True, top_logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [one.token for one in logprobs.content] == list(WORDS)
    assert len(logprobs.content[0].top_logprobs) == 2
    answer = await client.chat.completions.create(model="toy", messages=MESSAGES)
    assert answer.choices[0].logprobs is None


async def test_completions_in_every_prompt_form(client: openai.AsyncOpenAI, api: Any) -> None:
    forms: list[Any] = ["one", ["one", "two"], [1, 2, 3], [[1, 2], [3]]]
    expected = [
        [TextPrompt("one")],
        [TextPrompt("one"), TextPrompt("two")],
        [IdsPrompt(pack_ids([1, 2, 3]))],
        [IdsPrompt(pack_ids([1, 2])), IdsPrompt(pack_ids([3]))],
    ]
    for form, prompts in zip(forms, expected, strict=True):
        api.engine.outputs.clear()
        answer = await client.completions.create(model="toy", prompt=form, n=2)
        assert [one.request.prompt for one in api.engine.outputs] == prompts
        assert [one.index for one in answer.choices] == list(range(2 * len(prompts)))
        assert {one.text for one in answer.choices} == {TEXT}
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 5 * len(prompts)
    seeds = [one.request.params.seed for one in api.engine.outputs]
    assert len(set(seeds)) == 2
    assert api.engine.outputs[0].request.params.max_new_tokens == 16


async def test_completions_echo_and_zero_tokens(client: openai.AsyncOpenAI, api: Any) -> None:
    answer = await client.completions.create(model="toy", prompt="the prompt", echo=True, max_tokens=0)
    assert answer.choices[0].text == "the prompt"
    assert answer.choices[0].finish_reason == "length"
    answer = await client.completions.create(model="toy", prompt=[1, 2], echo=True, max_tokens=1)
    assert answer.choices[0].text == "decoded promptHello"
    assert api.engine.outputs[-1].request.prompt == IdsPrompt(pack_ids([1, 2]), is_echoed=True)


async def test_completions_stream_and_logprobs(client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(model="toy", prompt="x", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == TEXT
    answer = await client.completions.create(model="toy", prompt="x", logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == list(WORDS)
    assert logprobs.text_offset == [0, 5, 11, 13]
    assert logprobs.token_logprobs == [-0.5] * 4
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] == {"alt0": -1.0, "Hello": -0.5}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RequestError(400, "context_length_exceeded", "maximum context length is 64 tokens"), openai.BadRequestError),
        (RequestError(404, "model_not_found", "no"), openai.NotFoundError),
        (RequestError(408, "deadline_exceeded", "late"), openai.APIStatusError),
        (RequestError(500, "internal_error", "bug"), openai.InternalServerError),
        (RequestError(503, "queue_full", "busy"), openai.InternalServerError),
    ],
)
async def test_error_classes(
    client: openai.AsyncOpenAI, api: Any, error: RequestError, expected: type[openai.APIStatusError]
) -> None:
    api.engine.refusal = error
    for is_stream in (False, True):
        with pytest.raises(expected) as caught:
            await client.chat.completions.create(model="toy", messages=MESSAGES, stream=is_stream)
        assert (caught.value.status_code, caught.value.code) == (error.status, error.code)


async def test_auth_and_validation_errors(make_api: Any) -> None:
    api = await make_api(api_key=("right",))
    for key, expected in (("wrong", openai.AuthenticationError), ("right", openai.BadRequestError)):
        async with openai.AsyncOpenAI(base_url=api.url + "/v1", api_key=key, max_retries=0) as client:
            with pytest.raises(expected) as caught:
                await client.chat.completions.create(model="toy", messages=MESSAGES, max_tokens=-1)
            assert caught.value.param == (None if key == "wrong" else "max_tokens")


async def test_an_error_midway_raises(client: openai.AsyncOpenAI, api: Any) -> None:
    async def script(output: Any) -> None:
        await output.subscribed.wait()
        await asyncio.sleep(0.01)
        output.text("some")
        output.fail(RequestError(500, "out_of_memory", "it does not fit"))

    api.engine.script = script
    stream = await client.chat.completions.create(model="toy", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="does not fit"):
        async for _ in stream:
            pass


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [one.id for one in (await client.models.list()).data] == ["toy"]
    one = await client.models.retrieve("toy")
    assert one.model_extra is not None
    assert one.model_extra["max_model_len"] == 64
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other")


async def test_what_reaches_the_engine(client: openai.AsyncOpenAI, api: Any) -> None:
    messages: Any = [
        {"role": "developer", "content": "be brief", "name": "boss"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None},
    ]
    await client.chat.completions.create(
        model="toy",
        messages=messages,
        max_tokens=7,
        seed=-1,
        stop="END",
        logit_bias={"5": -100},
        presence_penalty=0.5,
        extra_body={"priority": 3, "min_tokens": 2, "ignore_eos": True, "cache_salt": "s", "timeout": 9.5,
                    "top_k": -1, "stop_token_ids": [8], "chat_template_kwargs": {"thinking": False}},
        extra_headers={"x-override-priority": "-4"},
    )  # fmt: skip
    request = api.engine.outputs[0].request
    assert json.loads(request.prompt.messages) == [
        {"role": "system", "content": "be brief", "name": "boss"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": ""},
    ]
    assert json.loads(request.prompt.template_args) == {"thinking": False}
    assert (request.priority, request.cache_salt, request.deadline_s) == (-4, "s", 9.5)
    params = request.params
    assert (params.max_new_tokens, params.min_new_tokens, params.ignore_eos) == (7, 2, True)
    assert (params.temperature, params.top_p, params.top_k) == (0.6, 0.9, 0), "the model's defaults, less top_k"
    assert params.seed == 2**63 - 1
    assert (params.stop, params.stop_token_ids) == (("END",), (8,))
    assert params.logit_bias == ((5, -100.0),)
    assert params.presence_penalty == 0.5
    assert params.logprobs == -1


async def test_defaults_of_chat(client: openai.AsyncOpenAI, api: Any) -> None:
    await client.chat.completions.create(model="toy", messages=MESSAGES, temperature=0, top_p=1)
    await client.chat.completions.create(model="toy", messages=MESSAGES, temperature=1e-9)
    first, second = (one.request for one in api.engine.outputs)
    assert (first.params.temperature, first.params.top_p, first.params.top_k) == (0.0, 1.0, 20)
    assert second.params.temperature == 0.0
    assert first.params.max_new_tokens is None
    assert first.params.seed != second.params.seed
    assert (first.priority, first.deadline_s, first.n) == (None, None, 1)
