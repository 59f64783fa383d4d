"""What users of the offline engine give and get: sampling parameters, and an answer for each prompt."""

from collections.abc import Callable
from typing import Any

from quartet.client.request import Output
from quartet.wire import frames
from quartet.wire.errors import RequestError
from quartet.wire.frames import unpack_ids
from quartet.wire.ids import Rid


class SamplingParams(frames.SamplingParams, frozen=True, kw_only=True):
    """How to sample one request; the fields are those of frames.SamplingParams. `seed` None has one drawn."""

    seed: int | None = None  # type: ignore[assignment]


class Choice:
    """One generated sequence. `logprobs` has an entry for each id if they were requested, `prompt_logprobs` for each id
    of the prompt; the first of these has rank -1, and no log-probability."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.text = ""
        self.logprobs: list[frames.TextLogprobs] = []
        self.prompt_logprobs: list[frames.TextLogprobs] = []
        self.finish_reason: str | None = None


class Answer:
    """The result of one prompt; it fills while it is generated.

    `text`, `ids`, `logprobs`, `prompt_logprobs` and `finish_reason` are those of the first choice; they raise `error`
    if there is one.
    """

    def __init__(self, rid: Rid, num_choices: int, on_end: Callable[[], None]) -> None:
        self.rid, self.num_choices, self.is_settled = rid, num_choices, False
        self.prompt_ids: list[int] = []
        self.choices = [Choice() for _ in range(num_choices)]
        self.cached_tokens = 0
        self.error: RequestError | None = None
        self._on_end = on_end

    def __getattr__(self, name: str) -> Any:
        if name not in ("text", "ids", "logprobs", "prompt_logprobs", "finish_reason"):
            raise AttributeError(name)
        if self.error is not None:
            raise self.error
        return getattr(self.choices[0], name)

    # ClientCore calls these

    def on_encoded(self, encoded: frames.Encoded) -> None:
        """Keep the ids of the prompt."""
        self.prompt_ids = unpack_ids(encoded.ids)

    def on_accepted(self, choice: int, max_new_tokens: int) -> None:
        """Nothing waits for the acceptance."""

    def on_outputs(self, outputs: list[Output]) -> None:
        """Append output to its choice."""
        for output in outputs:
            choice = self.choices[output.choice]
            if output.logprobs and output.logprobs[0].rank:
                choice.prompt_logprobs = output.logprobs
                continue
            choice.ids += output.ids
            choice.text += output.text
            choice.logprobs += output.logprobs or []
            if output.finish is not None:
                choice.finish_reason = output.finish.reason
                self.cached_tokens = output.finish.timings.cached_tokens
                self._on_end()

    def on_error(self, error: RequestError) -> None:
        """Keep the error that ended the request."""
        self.error = error
        self._on_end()
