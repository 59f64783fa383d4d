"""POST /tokenize and /detokenize, with vLLM's and SGLang's names."""

from typing import Any

import pytest
from error_shape import MESSAGES, assert_error
from fake_engine import PROMPT_IDS

from quartet.wire.errors import RequestError
from quartet.wire.frames import ChatPrompt, IdsPrompt, TextPrompt

PATHS = ("/tokenize", "/v1/tokenize")


@pytest.mark.parametrize("path", PATHS)
async def test_a_text_is_tokenized(api: Any, path: str) -> None:
    status, body, _ = await api.post(path, {"model": "toy", "prompt": "hello"})
    assert (status, body) == (
        200,
        {"count": 5, "max_model_len": 64, "tokens": PROMPT_IDS, "token_strs": None},
    )
    assert api.engine.encoded[0].prompt == TextPrompt("hello", True)
    assert not api.engine.outputs


async def test_several_texts_special_tokens_and_token_strings(api: Any) -> None:
    body = {"prompt": ["a", "b"], "add_special_tokens": False, "return_token_strs": True}
    status, answer, _ = await api.post("/tokenize", body)
    assert status == 200
    assert (answer["count"], answer["tokens"]) == ([5, 5], [PROMPT_IDS] * 2)
    assert answer["token_strs"] == [[f"<{index}>" for index in PROMPT_IDS]] * 2
    assert [one.prompt for one in api.engine.encoded] == [TextPrompt("a", False), TextPrompt("b", False)]


async def test_a_conversation_is_tokenized_as_a_chat_request_would_be(api: Any) -> None:
    more = {"chat_template_kwargs": {"enable_thinking": False}, "add_generation_prompt": False}
    await api.post("/v1/chat/completions", {"messages": MESSAGES, **more})
    status, answer, _ = await api.post("/tokenize", {"messages": MESSAGES, **more})
    assert (status, answer["tokens"]) == (200, PROMPT_IDS)
    prompt = api.engine.encoded[0].prompt
    assert isinstance(prompt, ChatPrompt) and prompt == api.engine.outputs[0].request.prompt


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": MESSAGES}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": ["a"] * 513}, "prompt"),
        ({"prompt": [1, 2]}, "prompt[0]"),
        ({"messages": []}, "messages"),
        ({"messages": MESSAGES, "add_special_tokens": True}, "add_special_tokens"),
        ({"messages": MESSAGES, "chat_template": "{{ x }}"}, "chat_template"),
        ({"prompt": "a", "mm_processor_kwargs": {"x": 1}}, "mm_processor_kwargs"),
    ],
)
async def test_what_cannot_be_tokenized_is_named(api: Any, body: dict[str, Any], param: str) -> None:
    status, answer, _ = await api.post("/tokenize", body)
    assert status == 400
    assert_error(answer, None, param)


@pytest.mark.parametrize("path", ["/detokenize", "/v1/detokenize"])
async def test_ids_become_text(api: Any, path: str) -> None:
    status, answer, _ = await api.post(path, {"tokens": [1, 2]})
    assert (status, answer) == (200, {"prompt": "decoded prompt", "text": "decoded prompt"})
    prompt = api.engine.encoded[0].prompt
    assert isinstance(prompt, IdsPrompt) and (prompt.is_echoed, prompt.skips_special_tokens) == (True, False)
    status, answer, _ = await api.post(path, {"tokens": [[1], []], "skip_special_tokens": True})
    assert (status, answer["text"]) == (200, ["decoded prompt", ""])
    assert api.engine.encoded[1].prompt.skips_special_tokens
    assert (await api.post(path, {"tokens": []}))[1]["prompt"] == ""


@pytest.mark.parametrize("tokens", [[1000], [-1], [1, [2]], [[1], 2], [1] * 65, ["a"], [1.5], [10**30], None, "x"])
async def test_what_are_no_ids_is_refused(api: Any, tokens: Any) -> None:
    status, answer, _ = await api.post("/detokenize", {"tokens": tokens})
    assert status == 400
    assert_error(answer)
    assert not api.engine.encoded


async def test_the_tokenizers_refusal_is_the_answer(api: Any) -> None:
    api.engine.refusal = RequestError(400, "context_length_exceeded", "too long", "prompt")
    status, answer, _ = await api.post("/tokenize", {"prompt": "a"})
    assert status == 400
    assert_error(answer, "context_length_exceeded", "prompt")
    assert api.service.admission.num_admitted == 0
    assert (await api.post("/tokenize", {"model": "other", "prompt": "a"}))[0] == 404
