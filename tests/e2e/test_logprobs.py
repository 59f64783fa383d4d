"""Log-probabilities of the bundled model: names, offsets and bytes agree with the text, streamed or not."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.server import Server

pytestmark = pytest.mark.e2e
EMOJI = "😀🎉🚀 😀🎉🚀 😀🎉🚀 😀🎉🚀"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--max-total-tokens", "16384") as running:
        yield running


def complete(server: Server, **fields: Any) -> list[dict[str, Any]]:
    """Return the choices of a greedy completion, put together from events if it is streamed."""
    status, answer = server.post("/v1/completions", {"temperature": 0, **fields})
    assert status == 200, answer
    if not fields.get("stream"):
        choices: list[dict[str, Any]] = answer["choices"]
        return choices
    merged: dict[int, dict[str, Any]] = {}
    for line in answer.split("\n\n"):
        event = json.loads(line[6:]) if line.startswith("data: {") else {"choices": []}
        for choice in event["choices"]:
            whole = merged.setdefault(choice["index"], {"text": "", "logprobs": {}})
            whole["text"] += choice["text"]
            for name, values in (choice["logprobs"] or {}).items():
                whole["logprobs"].setdefault(name, []).extend(values)
    return [merged[index] for index in sorted(merged)]


def check(choice: dict[str, Any], alternatives: int) -> None:
    """Check what holds for every choice: names, values, and offsets that point at the token in the text."""
    logprobs, text = choice["logprobs"], choice["text"]
    rows = zip(*(logprobs[name] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")), strict=True)
    before = 0
    for token, logprob, top, offset in rows:
        assert len(top) == alternatives, top
        assert top[token] == logprob
        assert before <= offset <= len(text)
        before = offset
        is_whole = not token.startswith(("bytes:", "<|"))
        # A token of the stop string is cut off, and starts where the text ends.
        assert not is_whole or text[offset:].startswith(token[: len(text) - offset])


@pytest.mark.parametrize("is_stream", [False, True])
def test_half_characters_have_names_of_their_own(server: Server, is_stream: bool) -> None:
    (choice,) = complete(server, prompt=EMOJI, max_tokens=24, logprobs=5, stream=is_stream)
    check(choice, 5)
    names = {name for top in choice["logprobs"]["top_logprobs"] for name in top}
    assert any(name.startswith("bytes:\\x") for name in names)
    assert not any("\ufffd" in name for name in names)


@pytest.mark.parametrize("is_stream", [False, True])
def test_hidden_tokens_move_no_offset(server: Server, is_stream: bool) -> None:
    fields = {"prompt": "the crane", "max_tokens": 3, "logit_bias": {"2": 100}, "ignore_eos": True, "logprobs": 1}
    (choice,) = complete(server, stream=is_stream, **fields)
    assert (choice["text"], choice["logprobs"]["text_offset"]) == ("", [0, 0, 0])
    (choice,) = complete(server, stream=is_stream, skip_special_tokens=False, **fields)
    special = choice["logprobs"]["tokens"][0]
    assert choice["text"] == special * 3
    assert choice["logprobs"]["text_offset"] == [0, len(special), 2 * len(special)]


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_is_cut_off_with_its_offsets(server: Server, include: bool) -> None:
    fields: dict[str, Any] = {"prompt": "One, two, three,", "max_tokens": 24, "logprobs": 2, "n": 2}
    text = complete(server, **fields)[0]["text"]
    fields |= {"stop": [text[9:15], "One, two, three, four and more"], "include_stop_str_in_output": include}
    whole, streamed = complete(server, **fields), complete(server, stream=True, **fields)
    for choice, again in zip(whole, streamed, strict=True):
        check(choice, 2)
        assert choice["text"] == (text[:15] if include else text[: text.index(text[9:15])])
        assert (again["text"], again["logprobs"]) == (choice["text"], choice["logprobs"])


def test_chat_has_the_same_names_and_their_bytes(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": f"Repeat: {EMOJI}"}], "temperature": 0, "max_tokens": 24}
    status, answer = server.post("/v1/chat/completions", {**body, "logprobs": True, "top_logprobs": 5})
    assert status == 200, answer
    choice = answer["choices"][0]
    content = choice["logprobs"]["content"]
    for entry in content:
        assert len({top["token"] for top in entry["top_logprobs"]}) == 5
        for one in (entry, *entry["top_logprobs"]):
            is_whole = not one["token"].startswith("bytes:")
            assert bytes(one["bytes"]).decode("utf-8", "replace") == one["token"] if is_whole else one["bytes"]
    shown = b"".join(bytes(entry["bytes"]) for entry in content if not entry["token"].startswith("<|"))
    assert shown.decode("utf-8", "replace").startswith(choice["message"]["content"].rstrip("\ufffd"))


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("n", "max_tokens"), [(1, 0), (2, 4)])
def test_an_echo_is_scored_and_its_offsets_lie_in_its_text(
    server: Server, is_stream: bool, n: int, max_tokens: int
) -> None:
    prompt = "The crane 🎉<|im_end|>\nstands"
    fields = {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": max_tokens, "n": n, "stop": ["\n\n\n"]}
    for choice in complete(server, stream=is_stream, **fields):
        logprobs, text = choice["logprobs"], choice["text"]
        assert text.startswith(prompt) and (max_tokens or text == prompt)
        assert [logprobs[name][0] for name in ("token_logprobs", "top_logprobs", "text_offset")] == [None, None, 0]
        rows = list(zip(*(logprobs[name] for name in ("tokens", "token_logprobs", "top_logprobs")), strict=True))
        assert all(top[token] == logprob <= 0 and 2 <= len(top) <= 3 for token, logprob, top in rows[1:])
        offsets = logprobs["text_offset"]
        assert offsets == sorted(offsets) and offsets[-1] <= len(text)
        for token, offset in zip(logprobs["tokens"], offsets, strict=True):
            assert token.startswith("bytes:") or text[offset:].startswith(token[: len(text) - offset])
        assert "".join(logprobs["tokens"]).startswith("The crane") and len(rows) > max_tokens


def test_both_shapes_of_a_scored_prompt_have_the_same_numbers(server: Server) -> None:
    ids = [504, 3575, 282, 4649, 314]
    fields = {"prompt": ids, "echo": True, "logprobs": 1, "prompt_logprobs": 3, "max_tokens": 1}
    status, answer = server.post("/v1/completions", {"temperature": 0, "return_token_ids": True, **fields})
    assert status == 200, answer
    (choice,) = answer["choices"]
    scores = choice["prompt_logprobs"]
    assert choice["prompt_token_ids"] == ids and len(choice["token_ids"]) == 1 and scores[0] is None
    own = [entry[str(token)] for token, entry in zip(ids[1:], scores[1:], strict=True)]
    assert [one["logprob"] for one in own] == choice["logprobs"]["token_logprobs"][1:-1]
    assert [one["decoded_token"] for one in own] == choice["logprobs"]["tokens"][1:-1]
    for entry, top in zip(scores[1:], choice["logprobs"]["top_logprobs"][1:-1], strict=True):
        by_rank = {one["rank"]: one for one in entry.values()}
        assert {1, 2, 3} <= by_rank.keys() and len(entry) <= 4
        assert top[by_rank[1]["decoded_token"]] == by_rank[1]["logprob"] == max(top.values())
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
