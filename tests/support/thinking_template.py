"""A chat template for small models in ChatML, with tools in Hermes' form and thinking, and what a message of it is."""

import json
from collections.abc import Iterable
from typing import Any

TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Answer with <tool_call> {"name": ..., "arguments": ...} </tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""


def message_of(chunks: Iterable[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """Return one choice as a client puts it together from the chunks of a stream: a message, and how it ends."""
    message: dict[str, Any] = {"role": None, "content": None, "refusal": None}
    choice: dict[str, Any] = {"index": index, "message": message, "logprobs": None}
    for chunk in chunks:
        for part in chunk["choices"]:
            if part["index"] != index:
                continue
            _add(message, part["delta"])
            if part["logprobs"]:
                entries = choice["logprobs"] = choice["logprobs"] or {"content": [], "refusal": None}
                entries["content"] += part["logprobs"]["content"]
            if part["finish_reason"]:
                choice |= {name: part[name] for name in ("finish_reason", "matched_stop")}
    return choice


def _add(message: dict[str, Any], delta: dict[str, Any]) -> None:
    message["role"] = delta.get("role", message["role"])
    for name in ("content", "reasoning", "reasoning_content"):
        if delta.get(name) is not None:
            message[name] = (message.get(name) or "") + delta[name]
    for piece in delta.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        if piece["index"] == len(calls):
            calls.append({key: value for key, value in piece.items() if key != "index"})
        else:
            calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]


def chunks_of(stream: str) -> list[dict[str, Any]]:
    """Return the chunks of a stream that has ended as it should."""
    *events, last, nothing = stream.split("\n\n")
    assert (last, nothing) == ("data: [DONE]", ""), stream[-200:]
    return [json.loads(event[6:]) for event in events if event.startswith("data: ")]
