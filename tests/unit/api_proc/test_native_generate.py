"""POST /generate in SGLang's shapes: text and ids, one and many, streamed and whole."""

import json
from typing import Any

import pytest
from error_shape import assert_error
from fake_engine import PROMPT_IDS, WORDS, FakeOutputStream, answer_words

from quartet.client.request import Output
from quartet.wire.errors import RequestError
from quartet.wire.frames import IdsPrompt, TextLogprobs, TextPrompt, pack_ids

TEXT = "".join(WORDS)


def events(text: str) -> list[Any]:
    """Return the events of a stream, which must end with [DONE]."""
    lines = [line for line in text.split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_a_text_is_continued(api: Any, method: str) -> None:
    body = {"text": "Hi", "sampling_params": {"max_new_tokens": 9, "temperature": 0}}
    async with api.http.request(method, api.url + "/generate", json=body) as response:
        answer = await response.json()
    assert (answer["text"], answer["output_ids"]) == (TEXT, [7, 7, 7, 7])
    meta = answer["meta_info"]
    assert meta.pop("e2e_latency") > 0
    assert meta == {
        "id": "00" * 16,
        "finish_reason": {"type": "stop", "matched": 7},
        "prompt_tokens": 5,
        "completion_tokens": 4,
        "cached_tokens": 3,
        "num_retractions": 0,
        "weight_version": "default",
    }
    request = api.engine.outputs[0].request
    assert request.prompt == TextPrompt("Hi")
    assert (request.params.max_new_tokens, request.params.temperature) == (9, 0.0)


async def test_a_stream_carries_the_text_so_far(api: Any) -> None:
    body = {"input_ids": [1, 2], "stream": True, "sampling_params": {"max_new_tokens": 2}, "rid": "mine"}
    status, text, headers = await api.post("/generate", body)
    assert (status, headers["X-Request-Id"]) == (200, "mine")
    found = events(text)
    assert [one["text"] for one in found] == ["Hello", "Hello wörld", "Hello wörld"]
    assert [one["output_ids"] for one in found] == [[7], [7, 7], [7, 7]]
    assert [one["meta_info"]["completion_tokens"] for one in found] == [1, 2, 2]
    assert [one["meta_info"]["finish_reason"] for one in found] == [None, None, {"type": "length", "length": 2}]
    assert {one["meta_info"]["id"] for one in found} == {"mine"} and "index" not in found[0]
    request = api.engine.outputs[0].request
    assert (request.prompt, request.request_id) == (IdsPrompt(pack_ids([1, 2])), "mine")


async def test_a_batch_is_a_list_with_ids_and_parameters_of_each(api: Any) -> None:
    body = {
        "text": ["a", "b"],
        "sampling_params": [{"max_new_tokens": 1}, {"max_new_tokens": 2, "sampling_seed": 5}],
        "rid": ["one", "two"],
    }
    status, answer, _ = await api.post("/generate", body)
    assert status == 200 and [one["text"] for one in answer] == ["Hello", "Hello wörld"]
    assert [one["meta_info"]["id"] for one in answer] == ["one", "two"]
    assert [one.request.request_id for one in api.engine.outputs] == ["one", "two"]
    assert api.engine.outputs[1].request.params.seed == 5
    _, text, _ = await api.post("/generate", {**body, "rid": "r", "stream": True})
    assert {(one["index"], one["meta_info"]["id"]) for one in events(text)} == {(0, "r_0"), (1, "r_1")}
    _, answer, _ = await api.post("/generate", {"input_ids": [[1]], "sampling_params": {"n": 2}})
    assert len(answer) == 2


async def test_log_probabilities(api: Any) -> None:
    body = {"text": "a", "return_logprob": True, "top_logprobs_num": 2, "logprob_start_len": -1}
    meta = (await api.post("/generate", body))[1]["meta_info"]
    assert meta["output_token_logprobs"] == [[-0.5, 7, None]] * 4
    assert meta["output_top_logprobs"][0] == [[-1.0, 0, None], [-2.0, 1, None]]
    assert meta["input_token_logprobs"] == []
    meta = (await api.post("/generate", {**body, "top_logprobs_num": 0, "return_text_in_logprobs": True}))[1][
        "meta_info"
    ]
    assert [one[2] for one in meta["output_token_logprobs"]] == list(WORDS) and "output_top_logprobs" not in meta


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("start", "alternatives"), [(0, 1), (3, 0)])
async def test_log_probabilities_of_the_prompt_begin_where_they_are_wanted(
    api: Any, start: int, alternatives: int, stream: bool
) -> None:
    async def script(output: FakeOutputStream) -> None:
        await output.subscribed.wait()
        top = tuple((f"alt{k}", b"", -0.25) for k in range(output.request.params.prompt_logprobs))
        ids = tuple(range(40, 40 + len(top)))
        prompt = [TextLogprobs(f"p{i}", b"", -float(i), top, 0, 2 if i else -1, ids) for i in range(5)]
        output.push(Output(0, [], "", prompt, None))
        await answer_words(output)

    api.engine.script = script
    body = {"text": "a", "return_logprob": True, "top_logprobs_num": alternatives, "logprob_start_len": start}
    _, answer, _ = await api.post("/generate", {**body, "return_text_in_logprobs": True, "stream": stream})
    meta = (events(answer)[-1] if stream else answer)["meta_info"]
    assert api.engine.outputs[0].request.params.prompt_logprobs == alternatives
    rows = [[-float(i), PROMPT_IDS[i], f"p{i}"] for i in range(5)][start:]
    rows[0][0] = None
    assert meta["input_token_logprobs"] == rows and len(meta["output_token_logprobs"]) == 4
    if alternatives:
        assert meta["input_top_logprobs"] == [None] + [[[-0.25, 40, "alt0"]]] * (len(rows) - 1)


async def test_a_constraint_and_stops_reach_the_engine(api: Any) -> None:
    sampling = {"regex": "a+", "stop": ["x"], "no_stop_trim": True, "skip_special_tokens": False, "max_new_tokens": 3}
    assert (await api.post("/generate", {"text": "a", "sampling_params": sampling}))[0] == 200
    params = api.engine.outputs[0].request.params
    assert params.grammar is not None and (params.grammar.kind, params.grammar.source) == ("regex", "a+")
    assert (params.stop, params.include_stop_in_output, params.skip_special_tokens) == (("x",), True, False)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": "a", "input_ids": [1]}, "text"),
        ({"text": ""}, "text"),
        ({"text": []}, "text"),
        ({"input_ids": []}, "input_ids"),
        ({"input_ids": [1, [2]]}, "input_ids"),
        ({"input_ids": [1000]}, "input_ids"),
        ({"text": "a", "sampling_params": 5}, "sampling_params"),
        ({"text": "a", "sampling_params": [{}, {}]}, "sampling_params"),
        ({"text": ["a", "b"], "sampling_params": [{"n": 1}, {"n": 2}]}, "sampling_params"),
        ({"text": "a", "sampling_params": {"max_new_tokens": -1}}, "sampling_params.max_new_tokens"),
        ({"text": "a", "sampling_params": {"max_new_tokens": "x"}}, "sampling_params.max_new_tokens"),
        (
            {"text": "a", "sampling_params": {"min_new_tokens": 9, "max_new_tokens": 1}},
            "sampling_params.min_new_tokens",
        ),
        ({"text": "a", "sampling_params": {"temperature": 9}}, "sampling_params.temperature"),
        ({"text": "a", "sampling_params": {"sampling_seed": 2**70}}, "sampling_params.sampling_seed"),
        ({"text": "a", "sampling_params": {"regex": "a", "ebnf": "b"}}, "sampling_params.ebnf"),
        ({"text": "a", "sampling_params": {"stop_regex": "a"}}, "sampling_params.stop_regex"),
        ({"text": "a", "sampling_params": {"beam_width": 4}}, "sampling_params.beam_width"),
        ({"text": "a", "lora_path": "x"}, "lora_path"),
        ({"text": "a", "image_data": "x"}, "image_data"),
        ({"text": "a", "token_ids_logprob": [1]}, "token_ids_logprob"),
        ({"text": "a", "return_logprob": True, "logprob_start_len": -2}, "logprob_start_len"),
        ({"text": "a", "top_logprobs_num": 21}, "top_logprobs_num"),
        ({"text": ["a", "b"], "return_logprob": [True, False]}, "return_logprob"),
        ({"text": ["a", "b"], "rid": ["x"]}, "rid"),
        ({"text": ["a", "b"], "rid": ["x", "x"]}, "rid"),
        ({"text": "a", "rid": "two words"}, "rid"),
        ({"text": ["a"], "rid": ["two words"]}, "rid"),
    ],
)
async def test_what_is_wrong_is_named_as_this_route_names_it(api: Any, body: dict[str, Any], param: str) -> None:
    status, answer, _ = await api.post("/generate", body)
    assert status == 400, answer
    assert_error(answer, None, param)
    assert not api.engine.outputs


async def test_an_error_in_a_stream_is_its_last_event(api: Any) -> None:
    async def failing(output: FakeOutputStream) -> None:
        await output.subscribed.wait()
        output.text("Hello")
        output.fail(RequestError(500, "internal_error", "gone"))

    api.engine.script = failing
    _, text, _ = await api.post("/generate", {"text": "a", "stream": True})
    assert events(text)[-1]["error"]["message"] == "gone"


async def test_an_end_by_a_stop_string_names_it(api: Any) -> None:
    async def stopped(output: FakeOutputStream) -> None:
        output.text("Hello")
        output.finish_all("stop", "x", 1)

    api.engine.script = stopped
    _, answer, _ = await api.post("/generate", {"text": "a"})
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": "x"}
