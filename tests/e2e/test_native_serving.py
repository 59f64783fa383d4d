"""SGLang's and vLLM's routes through all processes: tokenizing, aborts by id, health by a token, timelines by id."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.server import Server

pytestmark = pytest.mark.e2e
CHAT = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hällo <|im_end|>"}]}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--simulated-worker", "--simulated-step-ms", "20", "--max-total-tokens", "65536") as running:
        yield running


def post(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    status, answer = server.post(path, body)
    assert status == 200, answer
    found: dict[str, Any] = answer
    return found


def test_a_prompt_is_tokenized_as_it_is_computed(server: Server) -> None:
    tokenized = post(server, "/tokenize", {**CHAT, "return_token_strs": True})
    answer = post(server, "/v1/chat/completions", {**CHAT, "max_tokens": 1, "return_token_ids": True})
    assert tokenized["tokens"] == answer["prompt_token_ids"]
    assert tokenized["count"] == answer["usage"]["prompt_tokens"] == len(tokenized["token_strs"])
    text = post(server, "/detokenize", {"tokens": tokenized["tokens"]})["prompt"]
    assert text.count("hällo <|im_end|>") == 1 and text.startswith("<|im_start|>system\nBe brief.")
    shorter = post(server, "/v1/detokenize", {"tokens": tokenized["tokens"], "skip_special_tokens": True})["text"]
    assert "<|im_start|>" not in shorter
    several = post(server, "/v1/tokenize", {"prompt": ["one", "two three"]})
    assert several["count"] == [len(ids) for ids in several["tokens"]]


def test_generation_by_text_and_by_ids_is_the_same(server: Server) -> None:
    ids = post(server, "/tokenize", {"prompt": "Hello there"})["tokens"]
    sampling = {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True}
    by_text = post(server, "/generate", {"text": "Hello there", "sampling_params": sampling, "return_logprob": True})
    by_ids = post(server, "/generate", {"input_ids": ids, "sampling_params": sampling, "stream": False})
    assert by_text["output_ids"] == by_ids["output_ids"] and by_text["text"] == by_ids["text"]
    assert by_text["meta_info"]["prompt_tokens"] == len(ids) and by_text["meta_info"]["completion_tokens"] == 6
    assert [row[1] for row in by_text["meta_info"]["output_token_logprobs"]] == by_text["output_ids"]


@pytest.mark.parametrize("path", ["/v1/completions", "/generate"])
def test_a_running_request_is_aborted_by_the_clients_id(server: Server, path: str) -> None:
    name = f"mine-{path.rpartition('/')[2]}"
    body = (
        {"prompt": "x", "max_tokens": 3000, "ignore_eos": True, "stream": True}
        if path != "/generate"
        else {"text": "x", "sampling_params": {"max_new_tokens": 3000, "ignore_eos": True}, "stream": True}
    )
    events: list[str] = []
    has_begun = threading.Event()

    def read() -> None:
        request = urllib.request.Request(server.url + path, json.dumps({**body, "rid": name}).encode())
        with urllib.request.urlopen(request, timeout=30) as response:
            assert response.headers["X-Request-Id"] == name
            for line in response:
                events.append(line.decode())
                has_begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert has_begun.wait(20)
    assert server.get(f"/requests/{name}/timeline")[1]["choices"][0]["request_id"] == name
    assert post(server, "/abort_request", {"rid": "another"}) == {"aborted": 0}
    assert post(server, "/abort_request", {"rid": name}) == {"aborted": 1}
    reader.join(20)
    assert not reader.is_alive()
    last = [json.loads(line[6:]) for line in events if line.startswith("data: {")][-1]
    assert last["error"]["code"] == "request_aborted" and events[-2:] == ["data: [DONE]\n", "\n"]
    choice = server.get(f"/requests/{name}/timeline")[1]["choices"][0]
    assert choice["state"] == "failed"


def test_information_for_routers(server: Server) -> None:
    assert server.get("/health_generate") == (200, {"status": "ok"})
    info = server.get("/server_info")[1]
    assert info["max_total_num_tokens"] == 65536 and info["internal_states"][0]["page_size"] == info["block_size"]
    server.wait_until(lambda: server.get("/v1/loads")[1]["loads"])
    load = server.get("/v1/loads")[1]["loads"][0]
    assert load["max_total_num_tokens"] == 65536 and load["max_running_requests"] > 0
    assert server.get("/v1/loads?format=prometheus")[1].startswith("# HELP sglang_")


def test_prompts_have_log_probabilities_from_a_position_on(server: Server) -> None:
    sampling = {"max_new_tokens": 2, "ignore_eos": True}
    body = {"input_ids": [5, 6, 7, 8], "sampling_params": sampling, "return_logprob": True, "top_logprobs_num": 1}
    for start in (0, 2):
        meta = post(server, "/generate", {**body, "logprob_start_len": start})["meta_info"]
        assert [row[1] for row in meta["input_token_logprobs"]] == [5, 6, 7, 8][start:]
        assert [row[0] is None for row in meta["input_token_logprobs"]] == [True, *[False] * (3 - start)]
        assert len(meta["output_token_logprobs"]) == len(meta["output_top_logprobs"]) == 2
