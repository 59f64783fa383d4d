"""Each field that no client can do without changes the answer as it says, on the bundled model.

`priority` decides between requests (tests/unit/scheduler_proc/rules), and ids of requests change no answer
(tests/unit/api_proc/test_api_request_ids.py).
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.server import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
PROMPT = "The capital of France is"
END = 2
"""The id of <|im_end|>, the end of sequence."""
HOT = {"temperature": 2.0, "seed": 7}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--max-total-tokens", "16384") as running:
        yield running


def whole(server: Server, path: str = "/v1/completions", **fields: Any) -> dict[str, Any]:
    """Return the answer to a request, greedy and of 12 tokens unless the fields say otherwise."""
    prompt = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": PROMPT}
    status, answer = server.post(
        path, {**prompt, "temperature": 0, "max_tokens": 12, "return_token_ids": True, **fields}
    )
    assert status == 200, answer
    found: dict[str, Any] = answer
    return found


def ids(server: Server, **fields: Any) -> list[int]:
    """Return the output ids of the first choice."""
    found: list[int] = whole(server, **fields)["choices"][0]["token_ids"]
    return found


@pytest.fixture(scope="module")
def base(server: Server) -> dict[str, Any]:
    """The greedy choice without further fields."""
    choice: dict[str, Any] = whole(server)["choices"][0]
    assert len(choice["token_ids"]) == 12 and choice["finish_reason"] == "length"
    return choice


@pytest.mark.parametrize("limit", [1, 5])
def test_max_tokens(server: Server, base: dict[str, Any], limit: int) -> None:
    assert ids(server, max_tokens=limit) == base["token_ids"][:limit]
    answer = whole(server, "/v1/chat/completions", max_tokens=9, max_completion_tokens=limit, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == limit


@pytest.mark.parametrize("fields", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_filters_that_leave_the_best_token_make_any_temperature_greedy(
    server: Server, base: dict[str, Any], fields: dict[str, Any]
) -> None:
    assert ids(server, **HOT, **fields) == base["token_ids"]


def test_temperature_and_seed(server: Server, base: dict[str, Any]) -> None:
    hot = ids(server, **HOT)
    assert hot != base["token_ids"]
    assert ids(server, **HOT) == hot and ids(server, temperature=2.0, seed=8) != hot


@pytest.mark.parametrize("fields", [{"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 5.0}])
def test_penalties_end_a_repetition(server: Server, fields: dict[str, Any]) -> None:
    repeated = {"prompt": "a b a b a b a b a b a b a b a b", "max_tokens": 20}
    plain, penalised = ids(server, **repeated), ids(server, **repeated, **fields)
    assert len(set(penalised)) > len(set(plain))


def test_logit_bias(server: Server, base: dict[str, Any]) -> None:
    first = base["token_ids"][0]
    assert ids(server, logit_bias={str(first): -100})[0] != first
    assert set(ids(server, logit_bias={"100": 100}, max_tokens=3)) == {100}


def test_stop_strings(server: Server, base: dict[str, Any]) -> None:
    word = base["text"].split()[1]
    cut = whole(server, stop=[word])["choices"][0]
    assert base["text"].startswith(cut["text"]) and word not in cut["text"]
    assert (cut["finish_reason"], cut["matched_stop"]) == ("stop", word)
    for name in ("include_stop_str_in_output", "no_stop_trim"):
        assert whole(server, stop=word, **{name: True})["choices"][0]["text"] == cut["text"] + word


def test_stop_token_ids(server: Server, base: dict[str, Any]) -> None:
    third = base["token_ids"][2]
    cut = whole(server, stop_token_ids=[third])["choices"][0]
    assert (cut["finish_reason"], cut["matched_stop"]) == ("stop", third)
    assert len(cut["token_ids"]) == base["token_ids"].index(third) + 1


def test_ends_of_sequence(server: Server) -> None:
    ends = {"logit_bias": {str(END): 100}, "max_tokens": 6}
    assert ids(server, **ends) == [END]
    assert len(ids(server, **ends, min_tokens=4)) > 4
    assert ids(server, **ends, ignore_eos=True) == [END] * 6
    texts = [
        whole(server, **ends, ignore_eos=True, skip_special_tokens=skips)["choices"][0]["text"]
        for skips in (True, False)
    ]
    assert texts == ["", "<|im_end|>" * 6]


def test_n_and_prompts(server: Server, base: dict[str, Any]) -> None:
    choices = whole(server, n=3, **HOT)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert len({tuple(choice["token_ids"]) for choice in choices}) == 3
    prompt_ids = server.post("/tokenize", {"prompt": PROMPT})[1]["tokens"]
    choices = whole(server, prompt=[prompt_ids, prompt_ids[:3]])["choices"]
    assert choices[0]["token_ids"] == base["token_ids"] != choices[1]["token_ids"]
    assert ids(server, prompt=prompt_ids) == base["token_ids"]
    choices = whole(server, prompt=["Hello", PROMPT])["choices"]
    assert choices[1]["token_ids"] == base["token_ids"]


def test_streams_and_their_usage(server: Server, base: dict[str, Any]) -> None:
    found = {}
    for options in ({}, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}):
        body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 12, "stream": True, "stream_options": options}
        _, text = server.post("/v1/completions", body)
        events = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
        assert "".join(choice["text"] for event in events for choice in event["choices"]) == base["text"]
        found[len(options)] = [event["usage"]["completion_tokens"] for event in events if event.get("usage")]
    assert (found[0], found[1], found[2][-1]) == ([], [12], 12) and len(found[2]) > 10


def test_log_probabilities_and_echo(server: Server, base: dict[str, Any]) -> None:
    columns = whole(server, logprobs=3)["choices"][0]["logprobs"]
    assert len(columns["tokens"]) == 12 and {len(top) for top in columns["top_logprobs"]} == {3}
    content = whole(server, "/v1/chat/completions", logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert {len(entry["top_logprobs"]) for entry in content} == {2}
    assert whole(server, echo=True)["choices"][0]["text"] == PROMPT + base["text"]
    for count in (0, 1):
        echoed = whole(server, echo=True, logprobs=1, max_tokens=count)["choices"][0]
        assert echoed["logprobs"]["token_logprobs"][0] is None and len(echoed["logprobs"]["tokens"]) == 5 + count
        assert all(logprob < 0 for logprob in echoed["logprobs"]["token_logprobs"][1:])


def test_salts_share_no_prefix(server: Server) -> None:
    long = {"prompt": "one two three four five six seven eight nine ten " * 10, "max_tokens": 1}
    cached = [
        whole(server, **long, **salt)["usage"]["prompt_tokens_details"]["cached_tokens"]
        for salt in ({}, {}, {"cache_salt": "s"}, {"cache_salt": "s"})
    ]
    assert cached[0] == cached[2] == 0 and cached[1] == cached[3] > 0


def test_deadlines_end_a_request(server: Server) -> None:
    body = {"prompt": PROMPT, "max_tokens": 4000, "ignore_eos": True, "timeout": 0.5}
    status, answer = server.post("/v1/completions", body)
    assert (status, answer["error"]["code"]) == (408, "deadline_exceeded")
