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


def qwen3_coder(content: str, calls: Sequence[Call], generator: random.Random) -> str:
    texts = []
    for call in calls:
        values = [f"<parameter={key}>\n{plain(value)}\n</parameter>\n" for key, value in call.arguments.items()]
        texts.append(f"<tool_call>\n<function={call.name}>\n{''.join(values)}</function>\n</tool_call>")
    return (content and f"{content}\n\n") + "\n".join(texts)


def plain(value: object) -> str:
    """Return a value as jinja's filter `string` writes it, and lists and objects as JSON."""
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def gemma(content: str, calls: Sequence[Call], generator: random.Random) -> str:
    python = pythonic("", calls, generator)
    lines = "\n".join(pythonic("", [call], generator)[1:-1] for call in calls)
    listed = dumped([{"name": call.name, "parameters": call.arguments} for call in calls], generator)
    one = dumped({"name": calls[0].name, "arguments": calls[0].arguments}, generator)
    inside = generator.choice([python, lines, listed, *([one] if len(calls) == 1 else [])])
    fence = "tool_code" if inside in (python, lines) else "json"
    return (content and f"{content}\n") + f"```{fence}\n{inside}\n```"


def gemma4(content: str, calls: Sequence[Call], generator: random.Random) -> str:
    return braced(calls, "<|tool_call>", "<tool_call|>", '<|"|>') + content


def function_gemma(content: str, calls: Sequence[Call], generator: random.Random) -> str:
    return content + braced(calls, "<start_function_call>", "<end_function_call>", "<escape>")


def braced(calls: Sequence[Call], opening: str, closing: str, quote: str) -> str:
    def written(value: object) -> str:
        if isinstance(value, str):
            return f"{quote}{value}{quote}"
        if isinstance(value, dict):
            return f"{{{','.join(f'{key}:{written(each)}' for key, each in value.items())}}}"
        return f"[{','.join(map(written, value))}]" if isinstance(value, list) else str(value)

    return "".join(f"{opening}call:{call.name}{written(call.arguments)}{closing}" for call in calls)


def gpt_oss(content: str, calls: Sequence[Call], generator: random.Random) -> str:
    texts = [f"<|channel|>commentary<|message|>{content}<|end|>"] if content else []
    if generator.random() < 0.5:
        texts.insert(0, "<|channel|>analysis<|message|>They ask\nfor <b>.<|end|>")
    for call in calls:
        header = generator.choice(
            (
                f"<|channel|>commentary to=functions.{call.name} <|constrain|>json",
                f" to=functions.{call.name}<|channel|>commentary json",
                f"<|channel|>analysis to=functions.{call.name}",
            )
        )
        texts.append(f"{header}<|message|>{dumped(call.arguments, generator)}<|call|>")
    return "<|start|>assistant".join(texts)


def glm(content: str, calls: Sequence[Call], generator: random.Random) -> str:
    texts = []
    for call in calls:
        between = generator.choice(("\n", ""))
        values = [
            f"<arg_key>{key}</arg_key>{between}<arg_value>{value if isinstance(value, str) else json.dumps(value)}"
            f"</arg_value>{between}"
            for key, value in call.arguments.items()
        ]
        texts.append(f"<tool_call>{call.name}{between}{''.join(values)}</tool_call>")
    return (content and f"{content}\n") + "\n".join(texts)


def deepseek_v31(content: str, calls: Sequence[Call], generator: random.Random) -> str:
    texts = [
        f"<｜tool▁call▁begin｜>{call.name}<｜tool▁sep｜>{dumped(call.arguments, generator)}<｜tool▁call▁end｜>"
        for call in calls
    ]
    return f"{content}<｜tool▁calls▁begin｜>{''.join(texts)}<｜tool▁calls▁end｜>"


def deepseek_v3(content: str, calls: Sequence[Call], generator: random.Random) -> str:
    texts = [
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{call.name}\n```json\n{dumped(call.arguments, generator)}\n```"
        "<｜tool▁call▁end｜>"
        for call in calls
    ]
    joined = "\n".join(texts)
    return f"{content}<｜tool▁calls▁begin｜>{joined}<｜tool▁calls▁end｜>"


WRITERS: dict[str, Write] = {
    "function_gemma": function_gemma,
    "deepseek_v3": deepseek_v3,
    "deepseek_v31": deepseek_v31,
    "glm": glm,
    "gemma": gemma,
    "gemma4": gemma4,
    "gpt_oss": gpt_oss,
    "hermes": hermes,
    "llama3_json": llama3_json,
    "mistral": mistral,
    "mistral_args": mistral,
    "pythonic": pythonic,
    "qwen3_coder": qwen3_coder,
}


def corpus(name: str, count: int, seed: int = 12) -> list[Output]:
    """Return outputs of a family, the first of them without a call."""
    generator = random.Random(seed)
    outputs = [Output(text, text, []) for text in CONTENTS if text]
    while len(outputs) < count:
        content, calls = generator.choice(CONTENTS), sample_calls(generator)
        outputs.append(Output(WRITERS[name](content, calls, generator), content, calls))
    return outputs
