"""api ── Submit | Abort | LiveRequests | Written | Query ──► scheduler
scheduler ── Accepted | Rejected | Failed | HeldRequests | QueryReply ──► api
"""

from quartet.wire.frames.base import Frame, check_ids
from quartet.wire.frames.sampling import SamplingParams
from quartet.wire.ids import Address, Rid


class Submit(Frame, frozen=True, tag=10):
    """One (rid, choice), self-contained: a second attempt carries the output ids delivered to the client so far.

    `deadline_s` is seconds left for the whole request when the frame was sent, or None. `request_id` is the client's
    own id of it, by which queries may name it, `session_id` that of the session of which it is a turn. The api process
    took the request at `accepted_s` of the machine's monotonic clock; `tokenizing_s` of the time since then went into
    its prompt.
    """

    rid: Rid
    choice: int
    attempt: int
    reply_to: Address
    detok: Address
    prompt_ids: bytes
    output_ids: bytes
    params: SamplingParams
    priority: int | None = None
    tenant: str = ""
    cache_salt: str = ""
    routing_key: str = ""
    weight: float = 1.0
    deadline_s: float | None = None
    request_id: str = ""
    accepted_s: float | None = None
    tokenizing_s: float = 0.0
    session_id: str = ""

    def __post_init__(self) -> None:
        check_ids(self.prompt_ids, self.output_ids)


class Accepted(Frame, frozen=True, tag=11):
    """The scheduler queued the request. `max_new_tokens` is the value after the clamp of LEN-2."""

    rid: Rid
    choice: int
    attempt: int
    max_new_tokens: int


class Rejected(Frame, frozen=True, tag=12):
    """The scheduler refused the request; nothing of it is kept."""

    rid: Rid
    choice: int
    attempt: int
    status: int
    code: str
    message: str
    retry_after_s: float | None = None


class Abort(Frame, frozen=True, tag=13):
    """The client has left: end every choice of `rid`. Idempotent; exact match only."""

    rid: Rid


class Written(Frame, frozen=True, tag=19):
    """The last byte of a response was written `seconds` after its last output had come: its client reads slowly."""

    rid: Rid
    seconds: float


class LiveRequest(Frame, frozen=True):
    """One live request of an api process, and how many of its outputs have been delivered."""

    rid: Rid
    choice: int
    attempt: int
    delivered_count: int = 0


class LiveRequests(Frame, frozen=True, tag=14):
    """Each second: the live requests of the api process `reply_to`. A request missing from two in a row is freed."""

    reply_to: Address
    live: list[LiveRequest]


class HeldRequest(Frame, frozen=True):
    """One request the scheduler holds: `is_running`, and the steps issued for it since it was queued."""

    rid: Rid
    choice: int
    attempt: int
    is_running: bool
    steps_issued: int


class HeldRequests(Frame, frozen=True, tag=15):
    """Reply to LiveRequests: what the scheduler holds for that api process.

    `is_step_in_flight`: the worker has a step in progress, whose deadline is the worker's own; waiting for it is no
    stall."""

    held: list[HeldRequest]
    is_step_in_flight: bool = False


class Failed(Frame, frozen=True, tag=16):
    """After acceptance the request cannot go on; the output so far is final."""

    rid: Rid
    choice: int
    attempt: int
    status: int
    code: str
    message: str


class Query(Frame, frozen=True, tag=17):
    """A query to the scheduler, numbered by its sender.

    `what` is `timeline` (of the requests that the argument names), `abort` and `requests` (the live ones; "" names
    all), `trace`, `config` or `flush`. `tenant`: only requests of this tenant are found; None: those of all.
    """

    number: int
    reply_to: Address
    what: str
    argument: str = ""
    tenant: str | None = None


class QueryReply(Frame, frozen=True, tag=18):
    """Reply to the Query of that number: JSON bytes."""

    number: int
    body: bytes
