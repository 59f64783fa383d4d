"""Log-probabilities over HTTP where text is held back, hidden or cut: streamed and whole answers agree."""

import json
from typing import Any

import pytest
from error_shape import CHAT, COMPLETIONS, MESSAGES
from fake_engine import FakeOutputStream

from quartet.client.request import Output
from quartet.wire.frames import TextLogprobs

Row = tuple[str, int, str]
"""A token's name, where it begins, and the text that it completes."""


def increment(choice: int, rows: list[Row]) -> Output:
    entries = [TextLogprobs(name, name.encode(), -0.5, ((name, name.encode(), -0.5),), at) for name, at, _ in rows]
    return Output(choice, [7] * len(rows), "".join(text for *_, text in rows), entries, None)


async def columns(api: Any, deltas: list[list[Row]], is_stream: bool, **fields: Any) -> list[tuple[str, Any]]:
    """Have every choice send the deltas; return text and log-probabilities of each choice as the client has them."""

    async def script(output: FakeOutputStream) -> None:
        await output.subscribed.wait()
        for rows in deltas:
            output.push(*(increment(choice, rows) for choice in range(output.request.n)))
        output.finish_all(matched="stop", count=sum(map(len, deltas)))

    api.engine.script = script
    body = {"prompt": "x", "logprobs": 1, "stream": is_stream, **fields}
    status, answer, _ = await api.post(COMPLETIONS, body)
    assert status == 200
    if not is_stream:
        return [(choice["text"], choice["logprobs"]) for choice in answer["choices"]]
    events = [json.loads(line[6:]) for line in answer.split("\n\n") if line.startswith("data: {")]
    count = fields.get("n", 1)
    texts, merged = [""] * count, [dict[str, list[Any]]() for _ in range(count)]
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
            for name, values in (choice["logprobs"] or {}).items():
                merged[choice["index"]].setdefault(name, []).extend(values)
    return list(zip(texts, merged, strict=True))


HIDDEN = [[("<|end|>", 0, "")], [("<|end|>", 0, "")], [("<|end|>", 0, "")]]
RELEASED = [[("a", 0, "")], [("b", 1, "")], [("x", 2, "abx")], [("y", 3, "y")]]
CUT = [[("t", 0, "t")], [("a", 1, "")], [("b", 2, "")], [("c", 3, "")]]
CHARACTER = [[("a", 0, "a")], [(r"bytes:\xf0\x9f", 1, "")], [(r"bytes:\x98\x80", 1, "😀")], [("b", 2, "b")]]
TOGETHER = [[("a", 0, ""), ("b", 1, ""), ("c", 2, "ab")], [("d", 3, "")]]


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    ("deltas", "text", "offsets"),
    [
        (HIDDEN, "", [0, 0, 0]),
        (RELEASED, "abxy", [0, 1, 2, 3]),
        (CUT, "t", [0, 1, 1, 1]),
        (CHARACTER, "a😀b", [0, 1, 1, 2]),
        (TOGETHER, "ab", [0, 1, 2, 2]),
    ],
)
async def test_offsets_lie_in_the_text(
    api: Any, deltas: list[list[Row]], text: str, offsets: list[int], is_stream: bool, n: int
) -> None:
    choices = await columns(api, deltas, is_stream, n=n)
    assert len(choices) == n
    names = [name for rows in deltas for name, *_ in rows]
    for got, logprobs in choices:
        assert (got, logprobs["text_offset"]) == (text, offsets)
        assert logprobs["tokens"] == names
        assert logprobs["token_logprobs"] == [-0.5] * len(names)
        assert [top[name] for name, top in zip(names, logprobs["top_logprobs"], strict=True)] == [-0.5] * len(names)


async def test_a_token_is_sent_at_once_unless_its_text_is_held_back(api: Any) -> None:
    async def script(output: FakeOutputStream) -> None:
        await output.subscribed.wait()
        for rows in (*HIDDEN, *CHARACTER):
            output.push(increment(0, rows))
        output.finish_all(count=7)

    api.engine.script = script
    _, answer, _ = await api.post(COMPLETIONS, {"prompt": "x", "logprobs": 0, "stream": True})
    events = [json.loads(line[6:]) for line in answer.split("\n\n") if line.startswith("data: {")]
    assert [len(event["choices"][0]["logprobs"]["tokens"]) for event in events[:-1]] == [1] * 7


async def test_chat_has_the_names_and_the_bytes(api: Any) -> None:
    async def script(output: FakeOutputStream) -> None:
        top = ((r"bytes:\xf0\x9f", b"\xf0\x9f", -0.1), ("token_id:9", b"", -3.0))
        output.push(Output(0, [7], "", [TextLogprobs(r"bytes:\xf0\x9f", b"\xf0\x9f", -0.1, top)], None))
        output.finish_all(count=1)

    api.engine.script = script
    _, answer, _ = await api.post(CHAT, {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2})
    (entry,) = answer["choices"][0]["logprobs"]["content"]
    assert (entry["token"], entry["bytes"]) == (r"bytes:\xf0\x9f", [0xF0, 0x9F])
    assert [(top["token"], top["bytes"]) for top in entry["top_logprobs"]] == [
        (r"bytes:\xf0\x9f", [0xF0, 0x9F]),
        ("token_id:9", []),
    ]
