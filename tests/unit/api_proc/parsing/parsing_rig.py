"""Feeds parsers with outputs in pieces, and joins what they give."""

import json
import random
import re
from collections.abc import Callable, Iterable
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from api_proc.parsing.pieces import CallArguments, CallStart, Content, OutputParser, Piece
from api_proc.parsing.tools import Tool

MakeParser = Callable[[], OutputParser]
INSIDE_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\(?:u[0-9a-fA-F]{0,3})?\Z")

TOOLS = (
    Tool(
        "get_weather",
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "exact": {"type": "boolean"},
                "near": {"type": ["number", "null"]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "place": {"type": "object", "properties": {"lat": {"type": "number"}, "names": {"type": "array"}}},
                "unit": {"enum": ["C", "F", 1]},
                "free": {},
            },
        },
    ),
    Tool("stop", {"type": "object", "properties": {}}),
    Tool("mcp__files-read.all", {"type": "object", "properties": {"path": {"type": "string"}}}),
)


class Call(NamedTuple):
    """A call that an output holds."""

    name: str
    arguments: dict[str, Any]


STRINGS = (
    "Paris",
    "",
    "東京 \U0001f600",
    'say "hi" \\ it\'s\n\ttabbed\u2028',
    "</tool_call> <tool_call> [TOOL_CALLS] </parameter x> ```\n[get_weather(]) {}}",
    "12",
    "true",
    "null",
    " spaced ",
    "line one\n\nline two",
    "a,b=c;d: {e}",
)


def sample_calls(generator: random.Random, strings: tuple[str, ...] = STRINGS) -> list[Call]:
    """Return one to three calls that TOOLS allow."""
    return [_sample_call(generator, strings) for _ in range(generator.choice((1, 1, 2, 3)))]


def _sample_call(generator: random.Random, strings: tuple[str, ...]) -> Call:
    name = generator.choice(TOOLS).name
    if name == "stop":
        return Call(name, {})
    if name != "get_weather":
        return Call(name, {"path": generator.choice(strings)})
    values = {
        "city": generator.choice(strings),
        "days": generator.choice((0, 3, -17)),
        "exact": generator.random() < 0.5,
        "near": generator.choice((None, 2.5, -1e-07, 3)),
        "tags": generator.choices(strings, k=generator.randrange(3)),
        "place": {"lat": 48.85, "names": [generator.choice(strings), {"fr": None}]},
        "unit": generator.choice(("C", "F", 1)),
    }
    return Call(
        name, {key: values[key] for key in generator.sample(list(values), generator.randrange(len(values) + 1))}
    )


def read(make: MakeParser, pieces: Iterable[str]) -> list[Piece]:
    """Return what a parser gives for an output that comes in `pieces`, neighbouring texts joined."""
    parser = make()
    given = [piece for text in pieces for piece in parser.push(text)] + parser.finish()
    assert all(isinstance(piece, CallStart) or piece.text for piece in given)
    check_escapes(given)
    return joined(given)


def joined(given: list[Piece]) -> list[Piece]:
    """Return the pieces with neighbours of one kind made one."""
    result: list[Piece] = []
    for piece in given:
        last = result[-1] if result else None
        if last is not None and type(last) is type(piece) and not isinstance(piece, CallStart):
            result[-1] = last._replace(text=last.text + piece.text)  # type: ignore[union-attr]
        else:
            result.append(piece)
    return result


def check_escapes(given: list[Piece]) -> None:
    """No piece of arguments that are JSON ends inside an escape."""
    texts: dict[int, list[str]] = {}
    for piece in given:
        if isinstance(piece, CallArguments):
            texts.setdefault(piece.call, []).append(piece.text)
    for pieces in texts.values():
        beginnings = list(accumulate(pieces))
        if is_json(beginnings[-1]):
            assert not any(INSIDE_ESCAPE.search(text) for text in beginnings), pieces


def is_json(text: str) -> bool:
    """Return whether `text` is JSON."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def text_of(given: list[Piece], kind: type = Content) -> str:
    """Return the texts of one kind."""
    return "".join(piece.text for piece in given if isinstance(piece, kind))


def calls_of(given: list[Piece]) -> list[tuple[str, str]]:
    """Return names and arguments, as text, of the calls."""
    names = [piece for piece in given if isinstance(piece, CallStart)]
    assert [piece.call for piece in names] == list(range(len(names)))
    arguments = dict.fromkeys(range(len(names)), "")
    for piece in given:
        if isinstance(piece, CallArguments):
            arguments[piece.call] += piece.text
    return [(piece.name, arguments[piece.call]) for piece in names]


def cut(text: str, generator: random.Random) -> list[str]:
    """Return `text` in pieces: of one character, or of random lengths."""
    count = generator.choice((0, 1, 2, len(text) // 4, len(text)))
    places = sorted(generator.choices(range(len(text) + 1), k=count)) if text else []
    return [text[start:end] for start, end in pairwise([0, *places, len(text)])]


def deletions(text: str) -> list[str]:
    """Return `text` without each one of its characters, and every beginning of it."""
    return [text[:at] + text[at + 1 :] for at in range(len(text))] + [text[:at] for at in range(len(text))]
