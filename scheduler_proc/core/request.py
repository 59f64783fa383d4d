"""One request in the scheduler, and the literal table of what may become of it.

A request is one (rid, choice). What it holds of the KV cache is its lease, what of its output has been sent its stream,
what has happened to it its timeline. Its tokens, by position:

    0                    prot              floorP(C)         C                 I+O
    | tree-owned, locked | private pages ...                 | not in KV yet   |
    | prompt I                      | output O, as far as it is back from the worker

`launched` counts output tokens that steps have been issued for; `launched - O` of them are in flight. Once the
prompt is computed, C = I + launched - 1: the last sampled token is not in KV until the next step.
"""

from enum import Enum, auto

from quartet.wire.errors import InvariantViolation
from quartet.wire.frames import SamplingParams, Submit, Timings, pack_ids, unpack_ids
from quartet.wire.ids import Rid
from scheduler_proc.core.lease import Lease
from scheduler_proc.core.meters import PrefillMeter
from scheduler_proc.core.prompt_scores import PromptScores
from scheduler_proc.core.radix import ID_BYTES, Namespace, Node
from scheduler_proc.core.session import Session
from scheduler_proc.core.stream import Stream
from scheduler_proc.core.suspicion import Suspicion
from scheduler_proc.core.timeline import Timeline


class RequestState(Enum):
    """Where a request is. Exactly one of these at any time (INV-7)."""

    WAITING = auto()
    """In the queue: holds no pages, no lock, no slot."""
    PREFILLING = auto()
    """The chunked request: some of its prompt is computed or being computed."""
    RUNNING = auto()
    """Its prompt is computed; decodes, or waits for its last results."""
    FINISHED = auto()
    ABORTED = auto()
    FAILED = auto()


TRANSITIONS: dict[RequestState, frozenset[RequestState]] = {
    RequestState.WAITING: frozenset(
        {
            RequestState.PREFILLING,
            RequestState.RUNNING,
            RequestState.FINISHED,
            RequestState.ABORTED,
            RequestState.FAILED,
        }
    ),
    RequestState.PREFILLING: frozenset(
        {RequestState.RUNNING, RequestState.WAITING, RequestState.FINISHED, RequestState.ABORTED, RequestState.FAILED}
    ),
    RequestState.RUNNING: frozenset(
        {RequestState.WAITING, RequestState.FINISHED, RequestState.ABORTED, RequestState.FAILED}
    ),
    RequestState.FINISHED: frozenset(),
    RequestState.ABORTED: frozenset(),
    RequestState.FAILED: frozenset(),
}
"""RUNNING to WAITING is a retraction; WAITING to FINISHED is one whose token in flight turned out to be its last."""


class Request:
    """One request. Lengths and positions count tokens; the table in the package docstring names who owns which slot."""

    __slots__ = (
        "charged_outputs",
        "choice",
        "generation",
        "in_flight",
        "is_deprioritized",
        "is_done",
        "launched",
        "launched_at_entry",
        "lease",
        "matched_node",
        "matched_tokens",
        "max_new_tokens",
        "namespace",
        "output_ids",
        "params",
        "passes_at_entry",
        "prefill_meter",
        "processed_at_entry",
        "prompt_key",
        "prompt_scores",
        "prompt_tokens",
        "qseq",
        "request_id",
        "rid",
        "routing_key",
        "seq",
        "session",
        "session_id",
        "slot",
        "state",
        "stop_ids",
        "stream",
        "suspicion",
        "timeline",
        "urgency",
        "weight",
    )  # fmt: skip

    def __init__(
        self, submit: Submit, max_new_tokens: int, eos_token_ids: tuple[int, ...], seq: int, qseq: int, now: float
    ) -> None:
        params = submit.params
        self.rid: Rid = submit.rid
        self.request_id = submit.request_id
        self.choice = submit.choice
        # As bytes, never as a list: the garbage collector would walk every id of every waiting prompt.
        self.prompt_key = submit.prompt_ids
        self.prompt_tokens = len(submit.prompt_ids) // ID_BYTES
        self.prompt_scores = PromptScores(self.prompt_tokens) if params.prompt_logprobs >= 0 else None
        self.output_ids = unpack_ids(submit.output_ids)
        self.params: SamplingParams = params
        self.routing_key = submit.routing_key
        self.weight = submit.weight
        self.session_id = submit.session_id
        self.session: Session | None = None
        self.urgency = 0
        self.namespace: Namespace = (submit.tenant, submit.cache_salt)
        # What the last policy pass found out, and how long the request has waited (scheduling rules POL).
        self.matched_tokens = 0
        self.matched_node: Node | None = None
        self.is_deprioritized = False
        self.passes_at_entry = 0
        self.processed_at_entry = 0
        self.charged_outputs = -1  # Before its prompt is charged.
        self.max_new_tokens = max_new_tokens
        self.stop_ids = frozenset(
            params.stop_token_ids if params.ignore_eos else (*params.stop_token_ids, *eos_token_ids)
        )
        self.seq = seq
        self.qseq = qseq
        self.state = RequestState.WAITING
        self.is_done = False
        self.suspicion: Suspicion | None = None
        self.stream = Stream(submit)
        self.timeline = Timeline(now, submit.priority, submit.accepted_s)
        self.prefill_meter = PrefillMeter()
        self.in_flight = 0
        self.slot = -1
        self.generation = 0
        self.launched = self.launched_at_entry = 0
        self.lease = Lease()

    def move_to(self, state: RequestState) -> None:
        """Change state; raises InvariantViolation for a change that the table does not have."""
        if state not in TRANSITIONS[self.state]:
            raise InvariantViolation("INV-7", f"request {self.rid.hex()}: {self.state.name} to {state.name}")
        self.state = state
        self.is_done = not TRANSITIONS[state]

    @property
    def total_tokens(self) -> int:
        """L = I + O: what must be in KV before the next decode."""
        return self.prompt_tokens + len(self.output_ids)

    @property
    def reusable_tokens(self) -> int:
        """How many tokens may come from the cache: all but the last, which samples; none of a prompt to be scored
        (TREE-11)."""
        scores = self.prompt_scores
        return self.total_tokens - 1 if scores is None or scores.is_complete else 0

    @property
    def uncomputed_tokens(self) -> int:
        """L - C: what a prefill has to compute."""
        return self.total_tokens - self.lease.num_computed_tokens

    @property
    def min_new_tokens(self) -> int:
        """Outputs before which nothing but the length ends the request (LEN-3)."""
        return min(self.params.min_new_tokens, self.max_new_tokens)

    @property
    def are_all_rows_launched(self) -> bool:
        """Say whether no further row is wanted; a request for no token still computes its prompt, which samples."""
        return self.launched >= (self.max_new_tokens or 1)

    @property
    def remaining_tokens(self) -> int:
        """max(M - O, 0)."""
        return max(self.max_new_tokens - len(self.output_ids), 0)

    def key(self) -> bytes:
        """Return prompt and output as int32 bytes, the key of the radix tree."""
        return self.prompt_key + pack_ids(self.output_ids) if self.output_ids else self.prompt_key

    def timings(self, now: float) -> Timings:
        """Return where the request's time went so far."""
        timeline = self.timeline
        started = timeline.started_s if timeline.started_s >= 0 else now
        first = self.stream.first_token_s if self.stream.first_token_s >= 0 else now
        return Timings(
            max(0, timeline.cached_tokens),
            started - timeline.arrived_s,
            first - started,
            now - first,
            timeline.retractions,
            self.max_new_tokens,
        )

    def end_reason(self) -> str | None:
        """Say why the output so far is complete, or None: stop before length (STEP-12)."""
        outputs = self.output_ids
        if outputs and outputs[-1] in self.stop_ids and len(outputs) > self.min_new_tokens:
            return "stop"
        return "length" if len(outputs) >= self.max_new_tokens else None
