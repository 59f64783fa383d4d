"""Responses of POST /generate in SGLang's shape: the text so far, the ids so far, and `meta_info`.

Each event has all of its choice's output. Streams carry no keep-alive comments, which clients of this route do not
expect.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from api_proc.openai.logprobs import FLOOR, prompt_and_output
from api_proc.server.rendering import ChoiceOutput, OpenAIEvents, Prompted
from quartet.wire.frames import Finish, TextLogprobs

_encode = msgspec.json.encode


class GenerateShape(msgspec.Struct, frozen=True, tag="generate"):
    """What makes the renderer of a native response.

    `names` are the clients' ids of the prompts, "" where the server's is shown. With `is_list` there are several
    choices. `logprobs` is the number of alternatives of each token, -1 for no log-probabilities, which show tokens'
    texts with `names_tokens`. Tokens of the prompt have them from position `start` on, with -1 none.
    """

    names: list[str]
    is_list: bool
    logprobs: int
    names_tokens: bool
    start: int = -1

    @property
    def is_echoed(self) -> bool:
        """No prompt is shown."""
        return False

    def renderer(self, prompts: Sequence[Prompted], choices_each: int) -> "GenerateRenderer":
        """Return the renderer of one response."""
        choices = [
            _Choice(name or prompt.rid.hex(), prompt.prompt_ids, self.start >= 0)
            for name, prompt in zip(self.names, prompts, strict=True)
            for _ in range(choices_each)
        ]
        return GenerateRenderer(self, choices)


class _Choice:
    """The output of one choice so far."""

    def __init__(self, name: str, prompt_ids: list[int], shows_prompt: bool) -> None:
        self.name = name
        self.prompt_tokens = len(prompt_ids)
        # A long prompt is not kept for the length of the answer unless it is shown.
        self.prompt_ids = prompt_ids if shows_prompt else []
        self.prompt: list[TextLogprobs] = []
        self.text = ""
        self.ids: list[int] = []
        self.logprobs: list[TextLogprobs] = []


class GenerateRenderer(OpenAIEvents):
    """Implements Renderer for one native response."""

    keep_alive: ClassVar[bytes] = b""

    def __init__(self, shape: GenerateShape, choices: list[_Choice]) -> None:
        self._shape = shape
        self._choices = choices

    def take_ids(self, choice: int, ids: list[int]) -> None:
        """Append the ids of the output that is rendered next."""
        self._choices[choice].ids += ids

    def first(self, choice: int) -> bytes:
        """Return nothing: a choice begins with its first text."""
        return b""

    def delta(self, choice: int, text: str, logprobs: list[TextLogprobs] | None, usage: bytes) -> bytes:
        """Return the event of the text so far."""
        state = self._choices[choice]
        if logprobs and logprobs[0].rank:
            state.prompt, logprobs = prompt_and_output(logprobs)
            if not text and not logprobs:
                return b""
        state.text += text
        state.logprobs += logprobs or ()
        return self._event(choice, None)

    def finish(self, choice: int, finish: Finish, usage: bytes) -> bytes:
        """Return the event of the whole output of a choice."""
        return self._event(choice, finish)

    def usage(self, usage: bytes, timings: bytes) -> bytes:
        """Return nothing: `meta_info` has the counts."""
        return b""

    def whole(self, choices: list[ChoiceOutput], usage: bytes, timings: bytes) -> bytes:
        """Return the body of a response that is not streamed: an object, or a list of them."""
        bodies = []
        for state, output in zip(self._choices, choices, strict=True):
            state.text, state.ids = output.text, output.ids
            state.prompt, state.logprobs = prompt_and_output(output.logprobs)
            bodies.append(self._body(state, output.finish))
        return _encode(bodies if self._shape.is_list else bodies[0])

    def _event(self, choice: int, finish: Finish | None) -> bytes:
        body = self._body(self._choices[choice], finish)
        if self._shape.is_list:
            body["index"] = choice
        return b"data: " + _encode(body) + b"\n\n"

    def _body(self, state: _Choice, finish: Finish | None) -> dict[str, Any]:
        meta: dict[str, Any] = {
            "id": state.name,
            "finish_reason": None if finish is None else _reason(finish, state.ids),
            "prompt_tokens": state.prompt_tokens,
            "completion_tokens": len(state.ids) if finish is None else finish.count,
            "weight_version": "default",
        }
        if finish is not None:
            times = finish.timings
            meta["cached_tokens"] = times.cached_tokens
            meta["num_retractions"] = times.retractions
            meta["e2e_latency"] = round(times.queue_s + times.prefill_s + times.decode_s, 6)
        if self._shape.logprobs >= 0:
            meta |= self._logprobs(state)
        return {"text": state.text, "output_ids": state.ids, "meta_info": meta}

    def _logprobs(self, state: _Choice) -> dict[str, Any]:
        """Return the members of log-probabilities, as lists of [log-probability, id, text or null]."""
        shows, start = self._shape.names_tokens, self._shape.start
        prompt = list(zip(state.prompt, state.prompt_ids, strict=False))[start:] if start >= 0 else []
        output = list(zip(state.logprobs, state.ids, strict=False))
        found: dict[str, Any] = {
            # The first that is shown has no number, wherever it stands.
            "input_token_logprobs": [_score(*row, shows, not index) for index, row in enumerate(prompt)],
            "output_token_logprobs": [_score(*row, shows) for row in output],
        }
        if self._shape.logprobs:
            found["input_top_logprobs"] = [_top(row, shows) if index else None for index, (row, _) in enumerate(prompt)]
            found["output_top_logprobs"] = [_top(row, shows) for row, _ in output]
        return found


def _score(row: TextLogprobs, token: int, shows: bool, is_first: bool = False) -> list[Any]:
    return [None if is_first else max(row.logprob, FLOOR), token, row.token if shows else None]


def _top(row: TextLogprobs, shows: bool) -> list[list[Any]]:
    return [
        [max(logprob, FLOOR), token, name if shows else None]
        for (name, _, logprob), token in zip(row.top, row.top_ids, strict=True)
    ]


def _reason(finish: Finish, ids: list[int]) -> dict[str, Any]:
    """Return why a choice has ended. An end by the model's own end of sequence names that id."""
    if finish.reason == "length":
        return {"type": "length", "length": finish.count}
    return {"type": "stop", "matched": ids[-1] if finish.matched is None and ids else finish.matched}
