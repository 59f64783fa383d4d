"""Outputs of models with calls, in each family's format: as its template writes them into a conversation."""

import json
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from parsing_rig import Call, sample_calls

Write = Callable[[str, Sequence[Call], random.Random], str]
CONTENTS = ("", "", "I look.", "First:\n\n```py\nif a < b: x = {'k': [1]}\n```\n\nThen <b>", "東京 < \U0001f600")


class Output(NamedTuple):
    """What a model wrote, and what it means."""

    text: str
    content: str
    calls: list[Call]


def dumped(value: object, generator: random.Random) -> str:
    """Return JSON as a model may write it: with or without escapes, tight, spaced or on many lines."""
    style = generator.choice(
        ({}, {"ensure_ascii": False}, {"separators": (",", ":")}, {"indent": 2}, {"ensure_ascii": False})
    )
    return json.dumps(value, **style)  # type: ignore[arg-type]


def hermes(content: str, calls: Sequence[Call], generator: random.Random) -> str:
    texts = [
        f'<tool_call>\n{{"name": "{call.name}", "arguments": {dumped(call.arguments, generator)}}}\n</tool_call>'
        for call in calls
    ]
    return "\n".join([content, *texts] if content else texts)


def llama3_json(content: str, calls: Sequence[Call], generator: random.Random) -> str:
    texts = [f'{{"name": "{call.name}", "parameters": {dumped(call.arguments, generator)}}}' for call in calls]
    tag = "<|python_tag|>" if content or generator.random() < 0.5 else ""
    return content + tag + generator.choice((";", "; ", "\n")).join(texts)


def mistral(content: str, calls: Sequence[Call], generator: random.Random) -> str:
    if generator.random() < 0.5:
        texts = [
            f'{{"name": "{call.name}", "arguments": {dumped(call.arguments, generator)}, "id": "abcdefgh{at}"}}'
            for at, call in enumerate(calls)
        ]
        return f"{content}[TOOL_CALLS] [{', '.join(texts)}]"
    between = generator.choice(("", "[ARGS]", "[CALL_ID]abcdefghi[ARGS]"))
    texts = [f"[TOOL_CALLS]{call.name}{between}{dumped(call.arguments, generator)}" for call in calls]
    return content + "".join(texts)


def pythonic(content: str, calls: Sequence[Call], generator: random.Random) -> str:
    texts = []
    for call in calls:
        values = [f"{key}={literal(value, generator)}" for key, value in call.arguments.items()]
        texts.append(f"{call.name}({', '.join(values)})")
    return f"{content}[{', '.join(texts)}]"


def literal(value: object, generator: random.Random) -> str:
    """Return a value as Python or JSON writes it; models write both."""
    return repr(value) if generator.random() < 0.7 else json.dumps(value, ensure_ascii=generator.random() < 0.5)


WRITERS: dict[str, Write] = {
    "hermes": hermes,
    "llama3_json": llama3_json,
    "mistral": mistral,
    "pythonic": pythonic,
}


def corpus(name: str, count: int, seed: int = 12) -> list[Output]:
    """Return outputs of a family, the first of them without a call."""
    generator = random.Random(seed)
    outputs = [Output(text, text, []) for text in CONTENTS if text]
    while len(outputs) < count:
        content, calls = generator.choice(CONTENTS), sample_calls(generator)
        outputs.append(Output(WRITERS[name](content, calls, generator), content, calls))
    return outputs
