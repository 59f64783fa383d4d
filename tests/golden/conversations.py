"""Seeded conversations in the form that clients send: the same ones for transformers and for the engine.

Imported in both environments, so by the standard library alone.
"""

import random
from typing import Any, NamedTuple

_SENTENCES = (
    "What is the capital of France?",
    "  two  spaces   and\ttabs\t\tinside  ",
    "line one\nline two\r\nline three\n\n\n",
    "def f(x):\n    return {'a': x[0], \"b\": x ** 2}  # comment",
    "1234567890 3.14159 0x1F 12,345.67 ½ ²",
    "naïve café e\u0301 \u00c5 \u212b \ufb01",
    "日本語と中文，한국어도。",
    "😀👩\u200d👩\u200d👧🏽 🇫🇷 ❤️",
    "שלום \u202bعالم\u202c ।नमस्ते",
    "<b>bold</b> & <thing/> </s> <s> <|x|> [INST] {{ 7 * 7 }} {% raw %}",
    "it's they'RE I'Ll we'd \u2019s",
    "\u00a0\u2003\u3000\u200b\ufeff\u0000\u0007",
    "-----=====*****_____ ...!!!???",
    "The quick brown fox jumps over the lazy dog. " * 7,
    "a",
    "HELLO WORLD helloWorld snake_case kebab-case",
    "\u2581meta \u0120space \u010anewline",
    "https://example.org/path?q=1&r=a%20b#frag",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β",
    "𝕬𝖇𝖈 \U0001f9ff \U00010348 \ue000",
)
_PREFILLS = ("<", "|", "m", "end", "_", "I am ", "Sure:\n", "{", "日", "a", "The capital", "1")
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'Weather <now> & "later" für 東京',
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 3}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "stop", "description": "", "parameters": {"type": "object"}}},
]


class Conversation(NamedTuple):
    """One request."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    adds_generation_prompt: bool
    is_continued: bool
    template_args: dict[str, Any]


def conversations(count: int = 200, seed: int = 10, has_tools: bool = True) -> list[Conversation]:
    """Return `count` conversations; without `has_tools` roles only alternate between user and assistant."""
    generator = random.Random(seed)
    return [_conversation(generator, has_tools and index % 4 == 3) for index in range(count)]


def _conversation(generator: random.Random, has_tools: bool) -> Conversation:
    messages: list[dict[str, Any]] = []
    if generator.random() < 0.5:
        messages.append({"role": "system", "content": _form(generator, [_text(generator)])})
    for turn in range(generator.randint(1, 4)):
        if turn:
            messages.append({"role": "assistant", "content": _content(generator)})
            if generator.random() < 0.2:
                messages[-1]["reasoning_content"] = _text(generator)
        messages.append({"role": "user", "content": _content(generator)})
    if has_tools and generator.random() < 0.7:
        messages += _tool_turns(generator)
    is_continued = messages[-1]["role"] == "user" and generator.random() < 0.3
    if is_continued:
        messages.append({"role": "assistant", "content": _form(generator, [generator.choice(_PREFILLS)])})
    adds_generation_prompt = not is_continued and generator.random() < 0.8
    template_args = {"enable_thinking": generator.random() < 0.5} if generator.random() < 0.2 else {}
    return Conversation(messages, _TOOLS if has_tools else None, adds_generation_prompt, is_continued, template_args)


def _tool_turns(generator: random.Random) -> list[dict[str, Any]]:
    arguments = {"city": _text(generator), "days": generator.choice([1, 2.5, None, True, [], {"x": "é"}])}
    count = generator.randint(1, 2)
    calls = [
        {"id": f"call0000{index}", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
        for index in range(count)
    ]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "name": "get_weather", "content": _text(generator)}
        for call in calls
    ]
    return [{"role": "assistant", "content": generator.choice(["", "Let me see."]), "tool_calls": calls}, *results]


def _content(generator: random.Random) -> Any:
    return _form(generator, [_text(generator) for _ in range(generator.randint(1, 3))])


def _form(generator: random.Random, texts: list[str]) -> Any:
    """Return `texts` as parts or, if there is one, sometimes as text."""
    if len(texts) == 1 and generator.random() < 0.7:
        return texts[0]
    return [{"type": "text", "text": text} for text in texts]


def _text(generator: random.Random) -> str:
    return generator.choice(["", " ", "\n"]).join(generator.sample(_SENTENCES, generator.randint(1, 3)))
