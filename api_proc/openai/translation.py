"""What a route needs that answers another API by a chat: turns, fields of the same meaning, the names of its fields."""

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import msgspec
from aiohttp import web

from api_proc.openai.other_fields import REFUSED, WITHOUT_EFFECT, FieldTable
from api_proc.openai.response_task import Answer
from api_proc.openai.schema import ChatRequest, SamplingFields
from api_proc.server.admission import Place
from api_proc.server.errors import invalid, unsupported
from api_proc.server.respond import ResponseTask
from api_proc.server.service import Service
from quartet.wire.errors import RequestError

Names = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
"""Patterns of a chat's fields, and what the route calls them."""


def field_table(known: type[msgspec.Struct], refused: Mapping[str, str], without_effect: Iterable[str]) -> FieldTable:
    """Return the fields that a route knows beside those of its schema `known`.

    `refused` says by name what to do instead. Fields of a chat that the route has not are refused, too.
    """
    of_chats = dict.fromkeys(set(ChatRequest.__struct_fields__).difference(known.__struct_fields__), ((), ""))
    own = {name: ((), instead) for name, instead in refused.items()}
    return FieldTable({**REFUSED, **of_chats, **own}, {*WITHOUT_EFFECT, *without_effect})


ELSEWHERE = ("return_token_ids", "prompt_logprobs")
"""Fields of what other APIs have no place for in their answers."""


def same_fields(wanted: SamplingFields) -> dict[str, Any]:
    """Return the fields that are set and have the name and meaning that they have in a chat.

    Raises RequestError 400 for those that ask for what the answer has no place for.
    """
    if wanted.n not in (None, 1):
        raise invalid("n", "n must be 1 on this route, which has one answer")
    for name in ELSEWHERE:
        if getattr(wanted, name):
            raise unsupported(name)
    values = {name: getattr(wanted, name) for name in SamplingFields.__struct_fields__}
    return {name: value for name, value in values.items() if value is not None}


_ARGUMENTS = r"messages\[(\d+)\]\.tool_calls\[(\d+)\]\.function\.arguments"


class Turns:
    """The messages of a chat, written from those of another API.

    Args:
        merged: roles of which messages that follow each other are one.
    """

    def __init__(self, merged: frozenset[str]) -> None:
        self._merged = merged
        self._messages: list[dict[str, Any]] = []
        self._origins: list[str] = []
        self._arguments: dict[tuple[int, int], str] = {}
        """The fields that arguments came from, by message and call."""

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages as the chat takes them: a text alone is a string."""
        return [message | {"content": _content(message["content"])} for message in self._messages]

    @property
    def names(self) -> Names:
        """What the fields of the messages are called in the request."""
        return (
            (_ARGUMENTS, lambda found: self._arguments[int(found[1]), int(found[2])]),
            (r"messages\[(\d+)\]", lambda found: self._origins[int(found[1])]),
        )

    def texts(self, role: str, texts: Sequence[str], origin: str) -> None:
        """Add the text parts of a message; `origin` is the field that they came from."""
        self._turn(role, origin, role in self._merged)["content"] += _parts(texts)

    def reasoning(self, text: str, origin: str) -> None:
        """Add what the assistant has thought."""
        turn = self._turn("assistant", origin)
        turn["reasoning_content"] = turn.get("reasoning_content", "") + text

    def call(self, call_id: str, name: str, arguments: str | dict[str, Any], origin: str, of_arguments: str) -> None:
        """Add a call of a tool by the assistant, whose arguments came from the field `of_arguments`."""
        function = {"name": name, "arguments": arguments}
        calls = self._turn("assistant", origin).setdefault("tool_calls", [])
        self._arguments[len(self._messages) - 1, len(calls)] = of_arguments
        calls.append({"id": call_id, "type": "function", "function": function})

    def result(self, call_id: str, texts: Sequence[str], origin: str) -> None:
        """Add what a tool has answered."""
        self._add({"role": "tool", "tool_call_id": call_id, "content": _parts(texts)}, origin)

    def _turn(self, role: str, origin: str, is_merged: bool = True) -> dict[str, Any]:
        last = self._messages[-1] if self._messages else {}
        if is_merged and last.get("role") == role:
            return last
        return self._add({"role": role, "content": []}, origin)

    def _add(self, message: dict[str, Any], origin: str) -> dict[str, Any]:
        self._messages.append(message)
        self._origins.append(origin)
        return message


def _parts(texts: Sequence[str]) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def _content(parts: list[dict[str, str]]) -> str | list[dict[str, str]]:
    return parts if len(parts) > 1 else "".join(part["text"] for part in parts)


def chat_of(fields: dict[str, Any]) -> ChatRequest:
    """Return the chat of fields with OpenAI's names and shapes."""
    return msgspec.convert(fields, ChatRequest)


@contextmanager
def fields_named(names: Names) -> Iterator[None]:
    """Name the field at fault as the route does, in the errors of a chat that the block raises."""
    try:
        yield
    except RequestError as error:
        raise _renamed(error, names) from None


def named(names: Names, answer: Answer) -> Answer:
    """Return `answer` with the errors of the engine named as the route names fields."""

    def wrapped(
        request: web.Request, service: Service, task: ResponseTask, place: Place, release: ExitStack
    ) -> Awaitable[web.StreamResponse]:
        # The task, which holds the prompts, is kept by `answer` alone.
        return _named(names, answer(request, service, task, place, release))

    return wrapped


async def _named(names: Names, answer: Awaitable[web.StreamResponse]) -> web.StreamResponse:
    with fields_named(names):
        return await answer


def _renamed(error: RequestError, names: Names) -> RequestError:
    given = error.param or ""
    for pattern, name in names:
        param, matches = re.subn(rf"\A{pattern}(?!\w)", name, given, count=1)
        if matches:
            named = re.compile(rf"(?<![\w.]){re.escape(given)}(?!\w)")
            message = param.join(named.split(error.message))
            return RequestError(error.status, error.code, message, param, error.retry_after_s)
    return error
