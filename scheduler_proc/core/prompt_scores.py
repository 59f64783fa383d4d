"""The log-probabilities of one request's prompt, chunk by chunk, until the client has them (rule TREE-11).

results.py adds to them, delivery.py sends them, intake.py releases them.
"""

from msgspec.structs import replace

from quartet.wire.frames import ID_BYTES, PromptLogprobs, PromptTokens, SamplingParams, ScoredChunk
from quartet.wire.ids import Handle


class PromptScores:
    """The scores of a prompt of `prompt_tokens`, whose first token has none.

    `is_complete`: all of it is scored. `is_released`: the client has the scores, and they are kept no longer.
    """

    __slots__ = ("_chunks", "_last", "_scored", "is_complete", "is_released")

    def __init__(self, prompt_tokens: int) -> None:
        self._last = prompt_tokens - 1
        self.is_complete = self.is_released = False
        self.restart()

    def restart(self) -> None:
        """The request enters the batch: a prompt that is not scored to its end is computed from its beginning."""
        if not self.is_complete:
            self._scored = 0
            self._chunks: list[tuple[int, PromptLogprobs]] = []

    def add(self, chunk: ScoredChunk) -> bool:
        """Take the scores of the next chunk; say whether they are wanted."""
        if self.is_complete:
            return False
        self._chunks.append((chunk.start, chunk.logprobs))
        self._scored = chunk.start + len(chunk.logprobs.logprobs) // ID_BYTES
        self.is_complete = self._scored == self._last
        return True

    def params(self, params: SamplingParams) -> SamplingParams:
        """Return the parameters with which the worker computes the request: it scores no prompt again."""
        return replace(params, prompt_logprobs=-1) if self.is_complete else params

    def release(self) -> None:
        """Forget the scores: no later attempt needs them."""
        self._chunks.clear()
        self.is_released = True

    def frames(self, handle: Handle, prompt: bytes) -> list[PromptTokens]:
        """Return everything as frames for the detokenizer; `prompt` is int32 bytes."""
        return [self._frame(handle, prompt, at) for at in range(len(self._chunks))]

    def newest(self, handle: Handle, prompt: bytes) -> PromptTokens:
        """Return the chunk that was added last as a frame for the detokenizer."""
        return self._frame(handle, prompt, len(self._chunks) - 1)

    def _frame(self, handle: Handle, prompt: bytes, at: int) -> PromptTokens:
        start, logprobs = self._chunks[at]
        end = start + 1 + len(logprobs.logprobs) // ID_BYTES
        first = start + 1 if start else 0
        is_last = self.is_complete and at == len(self._chunks) - 1
        return PromptTokens(handle, first, prompt[first * ID_BYTES : end * ID_BYTES], logprobs, is_last)
