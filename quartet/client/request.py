"""A request as its owner states it, the output it gets, and the owner's face towards the client core."""

from typing import Protocol

import msgspec

from quartet.wire.codec import MAX_FRAME_BYTES
from quartet.wire.errors import RequestError
from quartet.wire.frames import ChatPrompt, Encoded, Finish, IdsPrompt, SamplingParams, Submit, TextLogprobs, TextPrompt
from quartet.wire.ids import Rid, Role, process_name

MAX_PROMPT_BYTES = MAX_FRAME_BYTES - (1 << 20)
"""A Submit with this many bytes of prompt ids, its output and its parameters still fits a frame."""


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request of `n` choices. `deadline_s` is seconds from now for the whole of it, `first_token_s` until there is
    any output. `request_id` is the client's own id of it, `session_id` that of its session. With `names_tokens` the
    prompt's tokens are named, too. `accepted_s` is when the server took it, absolute, None for when the engine gets
    it; of the time since then its prompt took `tokenizing_s`."""

    prompt: TextPrompt | IdsPrompt | ChatPrompt
    params: SamplingParams
    n: int = 1
    priority: int | None = None
    tenant: str = ""
    cache_salt: str = ""
    routing_key: str = ""
    weight: float = 1.0
    deadline_s: float | None = None
    first_token_s: float | None = None
    rid: Rid | None = None
    request_id: str = ""
    names_tokens: bool = False
    accepted_s: float | None = None
    tokenizing_s: float = 0.0
    session_id: str = ""


class Output(msgspec.Struct, frozen=True, array_like=True):
    """One increment of one choice: new ids, the text they complete, and the end if this is it.

    The first one of a request with `prompt_logprobs` has nothing but the log-probabilities of the prompt's tokens.
    """

    choice: int
    ids: list[int]
    text: str
    logprobs: list[TextLogprobs] | None
    finish: Finish | None


class Listener(Protocol):
    """The owner of one request. Its methods are called while a frame is handled and must return quickly."""

    rid: Rid
    num_choices: int

    @property
    def is_settled(self) -> bool:
        """Whether the request has been accepted or refused, or its owner has given it up."""
        ...

    def on_encoded(self, encoded: Encoded) -> None:
        """The prompt has been tokenized."""
        ...

    def on_accepted(self, choice: int, max_new_tokens: int) -> None:
        """The scheduler has queued one choice."""
        ...

    def on_outputs(self, outputs: list[Output]) -> None:
        """Output has come."""
        ...

    def on_error(self, error: RequestError) -> None:
        """The whole request has ended with an error; called once at most."""
        ...


def timed(request: GenerateRequest, begun_s: float, encoded_s: float) -> GenerateRequest:
    """Return a request whose prompt was tokenized between two times, with what it says of its own times complete."""
    accepted_s = begun_s if request.accepted_s is None else request.accepted_s
    return msgspec.structs.replace(request, accepted_s=accepted_s, tokenizing_s=encoded_s - begun_s)


def submit_of(
    request: GenerateRequest,
    rid: Rid,
    choice: int,
    encoded: Encoded,
    reply_to: str,
    detoks: int,
    attempt: int = 0,
) -> Submit:
    """Return an attempt of one choice of a request whose prompt has been tokenized; one of `detoks` makes its text.

    Raises RequestError for a prompt that no frame can carry."""
    if len(encoded.ids) > MAX_PROMPT_BYTES:
        raise RequestError(400, "invalid_value", "The request is too long to be passed on.")
    return Submit(
        rid,
        choice,
        attempt,
        reply_to,
        process_name(Role.DETOK, rid[0] % detoks),
        encoded.ids,
        b"",
        encoded.params,
        request.priority,
        request.tenant,
        request.cache_salt,
        request.routing_key,
        request.weight,
        request.deadline_s,
        request.request_id,
        request.accepted_s,
        request.tokenizing_s,
        request.session_id,
    )
