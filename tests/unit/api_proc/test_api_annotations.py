"""Token ids beside the text: `return_token_ids` in every shape of answer."""

import json
from typing import Any

import pytest
from error_shape import CHAT, COMPLETIONS, MESSAGES, assert_error
from fake_engine import PROMPT_IDS, FakeOutputStream, finish

from quartet.client.request import Output

IDS = [7, 8, 9, 10]


async def script(output: FakeOutputStream) -> None:
    """Text that is held back at first; the last token, a stop token, has none."""
    await output.subscribed.wait()
    for token, text in zip(IDS, ["a", "", "bc", ""], strict=True):
        output.push(*(Output(choice, [token], text, None, None) for choice in range(output.request.n)))
    output.is_finished = True
    output.push(*(Output(choice, [], "", None, finish(count=4)) for choice in range(output.request.n)))


def body_of(path: str, **fields: Any) -> dict[str, Any]:
    return {**({"messages": MESSAGES} if path == CHAT else {"prompt": "x"}), "return_token_ids": True, **fields}


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_whole_answer_has_the_ids_of_prompt_and_output(api: Any, path: str, n: int) -> None:
    api.engine.script = script
    status, body, _ = await api.post(path, body_of(path, n=n))
    assert status == 200
    assert [choice["token_ids"] for choice in body["choices"]] == [IDS] * n
    of_prompt = [body] if path == CHAT else body["choices"]
    assert [part["prompt_token_ids"] for part in of_prompt] == [PROMPT_IDS] * len(of_prompt)
    assert body["usage"]["completion_tokens"] == 4 * n


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(("path", "echo"), [(CHAT, False), (COMPLETIONS, False), (COMPLETIONS, True)])
async def test_the_events_of_a_stream_have_each_id_once(api: Any, path: str, echo: bool, n: int) -> None:
    api.engine.script = script
    status, text, _ = await api.post(path, body_of(path, n=n, stream=True, **({"echo": True} if echo else {})))
    assert status == 200
    events = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    for index in range(n):
        of_choice = [event for event in events if event["choices"][0]["index"] == index]
        ids = [event["choices"][0]["token_ids"] for event in of_choice]
        assert [token for part in ids for token in part] == IDS
        # An id comes with the first event after it: what gives no text waits for it.
        assert ids[-3:] == [[7], [8, 9], [10]]
        parts = of_choice if path == CHAT else [event["choices"][0] for event in of_choice]
        assert parts[0]["prompt_token_ids"] == PROMPT_IDS
        assert not any("prompt_token_ids" in part for part in parts[1:])


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_without_the_field_no_answer_has_ids(api: Any, path: str) -> None:
    for stream in (False, True):
        status, body, _ = await api.post(path, body_of(path, return_token_ids=False, stream=stream))
        assert status == 200 and "token_ids" not in str(body)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bad_words", ["never"]),
        ("allowed_token_ids", [1, 2]),
        ("logits_processors", ["module.Class"]),
        ("truncate_prompt_tokens", 5),
        ("skip_reading_prefix_cache", True),
        ("use_beam_search", True),
    ],
)
async def test_what_changes_an_answer_and_is_not_served_is_refused_by_name(
    api: Any, path: str, field: str, value: Any
) -> None:
    status, body, _ = await api.post(path, body_of(path, **{field: value}))
    assert status == 400 and not api.engine.outputs
    assert_error(body, "unsupported_parameter", field)


async def test_echo_in_chat_and_suffix_and_a_best_of_are_refused_by_name(api: Any) -> None:
    for path, field, value in ((CHAT, "echo", True), (COMPLETIONS, "suffix", "end"), (COMPLETIONS, "best_of", 3)):
        status, body, _ = await api.post(path, body_of(path, **{field: value}))
        assert status == 400
        assert_error(body, "unsupported_parameter", field)
