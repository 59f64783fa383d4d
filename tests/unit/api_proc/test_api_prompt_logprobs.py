"""Log-probabilities of prompts over HTTP: OpenAI's echo and vLLM's prompt_logprobs, streamed and whole."""

import json
from typing import Any

import pytest
from error_shape import CHAT, COMPLETIONS, MESSAGES, assert_error
from fake_engine import PROMPT_IDS, FakeOutputStream, finish, logprob_of, stay_silent

from api_proc.server import respond
from quartet.client.request import Output
from quartet.wire.frames import TextLogprobs

TEXT = "the promptß!"
NAMES = ["<s>", "the", " prompt", r"bytes:\xc3", r"bytes:\x9f!"]
BYTES = [b"<s>", b"the", b" prompt", b"\xc3", b"\x9f!"]
OFFSETS = [0, 0, 3, 10, 10]
"""The tokenizer has put <s> before the text."""


def prompt_entries(alternatives: int) -> list[TextLogprobs]:
    entries = []
    for i, (name, data) in enumerate(zip(NAMES, BYTES, strict=True)):
        top = tuple((f"alt{k}", b"", -k / 4) for k in range(alternatives)) if i else ()
        ids = tuple(900 + k for k in range(len(top)))
        entries.append(TextLogprobs(name, data, -float(i), top, 0, 3 if i else -1, ids))
    return entries


async def script(output: FakeOutputStream) -> None:
    """Scores of the prompt, as many as the engine was asked for, then a token or none, in every choice."""
    await output.subscribed.wait()
    params, n = output.request.params, output.request.n
    for choice in range(n):
        if params.prompt_logprobs >= 0:
            output.push(Output(choice, [], "", prompt_entries(params.prompt_logprobs), None))
    for choice in range(n):
        if params.max_new_tokens != 0:
            entries = None if params.logprobs < 0 else [logprob_of("Hi", params.logprobs, 0)]
            output.push(Output(choice, [7], "Hi", entries, None))
    output.is_finished = True
    count = int(params.max_new_tokens != 0)
    output.push(*(Output(choice, [], "", None, finish("length", count=count)) for choice in range(n)))


async def answer(api: Any, path: str, stream: bool, **fields: Any) -> Any:
    """Return the body of an answer, or the events of a stream."""
    api.engine.script = script
    prompt = {"messages": MESSAGES} if path == CHAT else {"prompt": TEXT}
    status, body, _ = await api.post(path, {**prompt, "stream": stream, **fields})
    assert status == 200, body
    if not stream:
        return body
    assert body.endswith("data: [DONE]\n\n")
    return [json.loads(line[6:]) for line in body.split("\n\n") if line.startswith("data: {")]


def joined(events: list[Any], index: int) -> dict[str, Any]:
    """Put the events of one choice of a text completion together."""
    whole: dict[str, Any] = {"text": "", "logprobs": {}}
    for event in events:
        for choice in event["choices"]:
            if choice["index"] == index:
                whole["text"] += choice.pop("text")
                for name, values in (choice.pop("logprobs") or {}).items():
                    whole["logprobs"].setdefault(name, []).extend(values)
                whole |= choice
    return whole


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("n", "max_tokens"), [(1, 1), (1, 0), (2, 1)])
async def test_echo_with_logprobs_has_openais_columns(api: Any, stream: bool, n: int, max_tokens: int) -> None:
    found = await answer(api, COMPLETIONS, stream, echo=True, logprobs=1, max_tokens=max_tokens, n=n)
    assert api.engine.outputs[0].request.params.prompt_logprobs == 1
    for index in range(n):
        choice = joined(found, index) if stream else found["choices"][index]
        columns = choice["logprobs"]
        assert choice["text"] == TEXT + "Hi" * max_tokens and choice["finish_reason"] == "length"
        assert columns["tokens"] == NAMES + ["Hi"] * max_tokens
        assert columns["token_logprobs"] == [None, -1.0, -2.0, -3.0, -4.0] + [-0.5] * max_tokens
        assert columns["text_offset"] == OFFSETS + [len(TEXT)] * max_tokens
        assert columns["top_logprobs"][0] is None
        assert columns["top_logprobs"][1:5] == [{"alt0": 0.0, name: -i} for i, name in enumerate(NAMES[1:], start=1)]
        assert len(columns["top_logprobs"]) == 5 + max_tokens


def scores(alternatives: int) -> list[Any]:
    """Return vLLM's `prompt_logprobs` of the entries above."""
    found: list[Any] = [None]
    for i, token in enumerate(PROMPT_IDS[1:], start=1):
        own = {str(token): {"logprob": -i, "rank": 3, "decoded_token": NAMES[i]}}
        others = range(alternatives)
        found.append(
            own | {str(900 + k): {"logprob": -k / 4, "rank": k + 1, "decoded_token": f"alt{k}"} for k in others}
        )
    return found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("wanted", [0, 2])
async def test_prompt_logprobs_are_vllms(api: Any, path: str, wanted: int, stream: bool) -> None:
    found = await answer(api, path, stream, prompt_logprobs=wanted)
    assert api.engine.outputs[0].request.params.prompt_logprobs == wanted
    parts = found if stream else [found]
    members = [part if path == CHAT else part["choices"][0] for part in parts]
    having = [index for index, member in enumerate(members) if "prompt_logprobs" in member]
    assert [members[index]["prompt_logprobs"] for index in having] == [scores(wanted)]
    texts = [json.dumps(part) for part in parts]
    assert having == [next(index for index, text in enumerate(texts) if '"Hi"' in text)], "with the first output"
    assert not any("token_ids" in text for text in texts)


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_and_prompt_logprobs_have_each_their_alternatives(api: Any, stream: bool) -> None:
    fields = {"echo": True, "logprobs": 2, "prompt_logprobs": 1, "return_token_ids": True, "max_tokens": 1}
    found = await answer(api, COMPLETIONS, stream, **fields)
    assert api.engine.outputs[0].request.params.prompt_logprobs == 2
    choice = joined(found, 0) if stream else found["choices"][0]
    assert choice["prompt_logprobs"] == scores(1) and choice["prompt_token_ids"] == PROMPT_IDS
    assert choice["logprobs"]["top_logprobs"][1] == {"alt0": 0.0, "alt1": -0.25, "the": -1.0}
    assert choice["text"] == TEXT + "Hi"


async def test_chat_logprobs_are_those_of_the_output_alone(api: Any) -> None:
    body = await answer(api, CHAT, False, prompt_logprobs=1, logprobs=True)
    assert [one["token"] for one in body["choices"][0]["logprobs"]["content"]] == ["Hi"]
    assert body["prompt_logprobs"] == scores(1)


@pytest.mark.parametrize("value", [-1, 21, True, "2"])
async def test_a_number_of_alternatives_out_of_bounds_is_refused_by_name(api: Any, value: Any) -> None:
    status, body, _ = await api.post(COMPLETIONS, {"prompt": "x", "prompt_logprobs": value})
    assert status == 400
    assert_error(body, "invalid_value", "prompt_logprobs")


async def test_prompts_with_too_many_scores_together_are_refused(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(respond, "MAX_SCORES", 29)
    api.engine.script = stay_silent
    fields = {"prompt": ["a", "b"], "prompt_logprobs": 1, "max_tokens": 1}
    status, body, _ = await api.post(COMPLETIONS, {**fields, "n": 2})
    assert status == 400 and "20 tokens in all choices; 1 alternatives are given for 14" in body["error"]["message"]
    assert_error(body, "invalid_value", "prompt_logprobs")
    assert all(output.aborted.is_set() for output in api.engine.outputs)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_with_a_tools_call_has_them_too(make_api: Any, stream: bool) -> None:
    pieces = ["<tool_", 'call>\n{"name": "f", "arguments": {', '"a": 1}}\n</tool_call>']

    async def calling(output: FakeOutputStream) -> None:
        await output.subscribed.wait()
        output.push(Output(0, [], "", prompt_entries(1), None))
        for token, piece in enumerate(pieces):
            output.push(Output(0, [token], piece, None, None))
        output.finish_all(count=len(pieces))

    api = await make_api(tool_call_parser="hermes")
    api.engine.script = calling
    tools = [{"type": "function", "function": {"name": "f"}}]
    fields = {"messages": MESSAGES, "tools": tools, "prompt_logprobs": 1, "return_token_ids": True, "stream": stream}
    status, body, _ = await api.post(CHAT, fields)
    assert status == 200, body
    parts = [json.loads(line[6:]) for line in body.split("\n\n") if line.startswith("data: {")] if stream else [body]
    assert [part["prompt_logprobs"] for part in parts if "prompt_logprobs" in part] == [scores(1)]
    assert [token for part in parts for token in part["choices"][0]["token_ids"]] == [0, 1, 2]
    assert parts[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert '"f"' in json.dumps(parts)
