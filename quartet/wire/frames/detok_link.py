"""scheduler ── Open | PromptTokens | Tokens | Close ──► detok ── PromptDelta | Delta ──► api
detok ── Stopped ──► scheduler
"""

import msgspec

from quartet.wire.frames.base import Frame, check_columns, check_ids
from quartet.wire.ids import Address, Handle, Rid


class TokenLogprobs(Frame, frozen=True):
    """Log-probabilities of one sampled token: its own, and the best alternatives as (id, logprob), best first."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class PromptLogprobs(Frame, frozen=True):
    """Log-probabilities of successive prompt tokens, from the logits without penalties or temperature.

    Columns with an entry for each token: `logprobs` (float32 bytes) and `ranks` (int32 bytes, 1 is the most likely
    token). `top_ids` (int32 bytes) and `top_logprobs` (float32 bytes) have the same number of alternatives for each
    token, best first.
    """

    logprobs: bytes
    ranks: bytes
    top_ids: bytes
    top_logprobs: bytes

    def __post_init__(self) -> None:
        check_columns(self.logprobs, self.ranks)
        check_columns(self.top_ids, self.top_logprobs)


class Timings(Frame, frozen=True):
    """Why a request took as long as it did, as the scheduler saw it, in seconds; attempts are not added up."""

    cached_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    retractions: int = 0
    max_new_tokens: int = 0


class PromptTokens(Frame, frozen=True, tag=25):
    """Log-probabilities of a part of a handle's prompt, ahead of its first output.

    `ids` (int32 bytes) are the prompt's from `start` on. Nothing predicts the prompt's first token: with `start` 0
    `logprobs` are those of the ids after the first. `is_last`: the prompt ends here.
    """

    handle: Handle
    start: int
    ids: bytes
    logprobs: PromptLogprobs
    is_last: bool

    def __post_init__(self) -> None:
        check_ids(self.ids)


class Open(Frame, frozen=True, tag=20):
    """Begin (or replay) one attempt on the token socket, ahead of its first Tokens row.

    `prompt_tail` holds the last prompt ids (int32 bytes, at most 16), for the first space. `output_ids` are all output
    ids so far; the first `delivered_count` of them have reached the api process, the rest is sent at once as a Delta.
    `shown_ids` are special tokens that are shown even with `skip_special_tokens`.
    `logprobs` are those of the rest, if they were requested, and `prompt` goes ahead of it. A stop string counts only
    from `min_new_tokens` on. `timings` is what is known so far, for a request that a stop string ends.
    """

    handle: Handle
    rid: Rid
    choice: int
    attempt: int
    reply_to: Address
    prompt_tail: bytes
    output_ids: bytes
    delivered_count: int
    stop: tuple[str, ...]
    include_stop_in_output: bool
    skip_special_tokens: bool
    min_new_tokens: int = 0
    logprobs: list[TokenLogprobs] = msgspec.field(default_factory=list)
    timings: Timings | None = None
    shown_ids: tuple[int, ...] = ()
    prompt: list[PromptTokens] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        check_ids(self.prompt_tail, self.output_ids)


class End(Frame, frozen=True):
    """The end of one handle in a Tokens frame, after its ids.

    `reason`: stop (end of sequence or stop token) or length. `matched` is the stop token id, or None for end of
    sequence or length. `hidden` of the last ids are the stop token itself and give no text.
    `count` is the total number of output tokens.
    """

    handle: Handle
    reason: str
    matched: int | None
    hidden: int
    count: int
    timings: Timings


class Tokens(Frame, frozen=True, tag=21):
    """One step's output ids for one detok. Columns of equal length as int32 bytes: handles, indices, ids.

    `index` counts a request's output tokens from 0. `logprobs` is sparse: (row, logprobs).
    """

    step: int
    handles: bytes
    indices: bytes
    ids: bytes
    logprobs: list[tuple[int, TokenLogprobs]]
    ends: list[End]

    def __post_init__(self) -> None:
        check_columns(self.handles, self.indices, self.ids)


class Close(Frame, frozen=True, tag=22):
    """The handle was aborted or has failed: forget it."""

    handle: Handle


class Stopped(Frame, frozen=True, tag=23):
    """A stop string ended the request after `count` output tokens; the scheduler finishes it normally."""

    handle: Handle
    rid: Rid
    choice: int
    attempt: int
    count: int


class TextLogprobs(Frame, frozen=True):
    """TokenLogprobs with text; alternatives are (name, bytes, logprob).

    A token's name is its text, `bytes:\\xf0\\x9f` if it is no whole text, `token_id:7` if it has none or if another
    token of the row has the name. `offset` is where the token begins in the choice's text, counted in characters; text
    that is held back counts.

    `top_ids` are the ids of `top`. Of a prompt token `rank` counts from 1, the most likely token, and `offset` has no
    meaning; the first token of a prompt has `rank` -1, and no log-probability. Of an output token `rank` is 0.
    """

    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...]
    offset: int = 0
    rank: int = 0
    top_ids: tuple[int, ...] = ()


class Finish(Frame, frozen=True):
    """The end of one choice. `reason`: stop or length. `matched` is the stop string, the stop token id or None."""

    reason: str
    matched: str | int | None
    count: int
    timings: Timings


class DeltaItem(Frame, frozen=True):
    """New output of one choice: ids from `index` on (int32 bytes) and the text they complete, from `offset` on.

    `offset` counts characters of the choice's text. The text after k ids is a pure function of those k ids.
    """

    rid: Rid
    choice: int
    attempt: int
    index: int
    ids: bytes
    text: str
    offset: int
    logprobs: list[TextLogprobs] | None = None
    finish: Finish | None = None


class PromptDelta(Frame, frozen=True, tag=26):
    """Log-probabilities of the prompt's tokens from `start` on, for one attempt of one choice; see PromptTokens."""

    rid: Rid
    choice: int
    attempt: int
    start: int
    tokens: list[TextLogprobs]
    is_last: bool


class Delta(Frame, frozen=True, tag=24):
    """One step's new output for one api process."""

    items: list[DeltaItem]
