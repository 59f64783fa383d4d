"""Every Struct that crosses a socket, one tagged union per inbox.

A frame is a fact or an order, never an object. Bodies are tagged msgspec arrays; unknown fields are refused.
Token ids, slots and pages travel as little-endian int32 bytes (`pack_ids` / `unpack_ids`).
The integer tag of a frame is also the `type` of its header (quartet.codec).

    api ── Encode ──► tokenizer ── Encoded | EncodeFailed ──► api
    api ── Submit | Abort | LiveSet | Ask ──► scheduler ── Accepted | Rejected | Failed | Held | Answer ──► api
    scheduler ── Open | Tokens | Close ──► detok ── Delta ──► api;  detok ── Stopped ──► scheduler
    scheduler ── SchedulerHello | Step ──► worker ── WorkerHello | StepResult | StepFailed ──► scheduler
    every process ── Snapshot ──► api, each second
    supervisor ◄── Ready | Heartbeat | Drained | Fatal ── child;  supervisor ── Assignment | Who | Drain ──► child
"""

import sys
from array import array

import msgspec

from quartet.config import Config
from quartet.ids import Epoch, Handle, Rid, Role


class _Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of everything on the wire."""


def pack_ids(ids: "list[int] | array[int]") -> bytes:
    """Return little-endian int32 bytes of `ids`."""
    packed = array("i", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_ids(data: bytes) -> list[int]:
    """Return the ids in little-endian int32 bytes; raises ValueError if the length is no multiple of 4."""
    unpacked = array("i")
    unpacked.frombytes(data)
    if sys.byteorder == "big":
        unpacked.byteswap()
    return unpacked.tolist()


# What a request asks for


class SamplingParams(_Frame, frozen=True):
    """Resolved sampling parameters of one request; nothing is left to be drawn or defaulted downstream.

    `max_new_tokens` None means the rest of the context; the scheduler clamps it (LEN-2). `seed` is drawn by the edge
    when the client gave none. `logprobs` is -1 for none, else the number of alternatives beside the sampled token.
    `stop_token_ids` are the client's; the model's end-of-sequence ids are added unless `ignore_eos`.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int = -1
    stop: tuple[str, ...] = ()
    include_stop_in_output: bool = False
    skip_special_tokens: bool = True


# Api <-> tokenizer


class TextPrompt(_Frame, frozen=True, tag="text"):
    """Plain text to encode; special tokens are added as the tokenizer's own post-processor would."""

    text: str


class IdsPrompt(_Frame, frozen=True, tag="ids"):
    """Ids to be checked against the vocabulary. int32 bytes. Their text is made only if it `is_echoed`."""

    ids: bytes
    is_echoed: bool = False


class ChatPrompt(_Frame, frozen=True, tag="chat"):
    """A conversation to render with the model's chat template.

    `messages` and `tools` are JSON bytes, `template_args` JSON bytes of allow-listed extra template variables.
    """

    messages: bytes
    tools: bytes | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_args: bytes | None = None


class Encode(_Frame, frozen=True, tag=1):
    """Job for a tokenizer. `job` is unique at the edge `reply_to`; a job lost with its tokenizer is sent again."""

    job: int
    reply_to: str
    prompt: TextPrompt | IdsPrompt | ChatPrompt
    params: SamplingParams


class Encoded(_Frame, frozen=True, tag=2):
    """Answer to Encode: prompt ids (int32 bytes), the prompt's text (empty for ids that are not echoed), parameters
    checked and cleaned."""

    job: int
    ids: bytes
    text: str
    params: SamplingParams


class EncodeFailed(_Frame, frozen=True, tag=3):
    """The job's request is at fault (or rendering failed): becomes a RequestError at the edge."""

    job: int
    status: int
    code: str
    message: str
    param: str | None = None


# Api <-> scheduler


class Submit(_Frame, frozen=True, tag=10):
    """One (rid, choice), self-contained: a second attempt carries the output ids the edge has delivered so far.

    `deadline_s` is seconds left for the whole request when the frame was sent, or None.
    """

    rid: Rid
    choice: int
    attempt: int
    reply_to: str
    detok: str
    prompt_ids: bytes
    output_ids: bytes
    params: SamplingParams
    priority: int | None = None
    tenant: str = ""
    cache_salt: str = ""
    routing_key: str = ""
    weight: float = 1.0
    deadline_s: float | None = None


class Accepted(_Frame, frozen=True, tag=11):
    """The scheduler queued the request. `max_new_tokens` is the value after the clamp of LEN-2."""

    rid: Rid
    choice: int
    attempt: int
    max_new_tokens: int


class Rejected(_Frame, frozen=True, tag=12):
    """The scheduler refused the request; nothing of it is kept."""

    rid: Rid
    choice: int
    attempt: int
    status: int
    code: str
    message: str
    retry_after_s: float | None = None


class Abort(_Frame, frozen=True, tag=13):
    """The edge no longer wants any choice of `rid`. Idempotent; exact match only."""

    rid: Rid


class LiveRequest(_Frame, frozen=True):
    """One request of a live set."""

    rid: Rid
    choice: int
    attempt: int


class LiveRequests(_Frame, frozen=True, tag=14):
    """Each second: everything alive at the edge `reply_to`. What is absent from two of them in a row is freed."""

    reply_to: str
    live: list[LiveRequest]


class HeldRequest(_Frame, frozen=True):
    """One request the scheduler holds: `is_running`, and the steps issued for it since it was queued."""

    rid: Rid
    choice: int
    attempt: int
    is_running: bool
    steps_issued: int


class HeldRequests(_Frame, frozen=True, tag=15):
    """Answer to LiveSet: what the scheduler holds for that edge."""

    held: list[HeldRequest]


class Failed(_Frame, frozen=True, tag=16):
    """After acceptance the request cannot go on; the output so far is final."""

    rid: Rid
    choice: int
    attempt: int
    status: int
    code: str
    message: str


class Query(_Frame, frozen=True, tag=17):
    """A question to the scheduler: `timeline`, `config` or `flush`, with an argument where one is needed."""

    ask: int
    reply_to: str
    what: str
    argument: str = ""


class QueryReply(_Frame, frozen=True, tag=18):
    """Reply to Ask: JSON bytes."""

    ask: int
    body: bytes


# Scheduler <-> detok, detok -> api


class Open(_Frame, frozen=True, tag=20):
    """Begin (or replay) one attempt on the token socket, ahead of its first Tokens row.

    `prompt_tail` holds the last prompt ids (int32 bytes, at most 16), for the first space. `output_ids` are all output
    ids so far; the first `delivered_count` of them have reached the api process, the rest is sent at once as a Delta.
    `logprobs` are those of the rest, if they were requested. A stop string counts only from `min_new_tokens` on.
    `timings` is what is known so far, for a request that a stop string ends.
    """

    handle: Handle
    rid: Rid
    choice: int
    attempt: int
    reply_to: str
    prompt_tail: bytes
    output_ids: bytes
    delivered_count: int
    stop: tuple[str, ...]
    include_stop_in_output: bool
    skip_special_tokens: bool
    min_new_tokens: int = 0
    logprobs: "list[TokenLogprobs]" = []
    timings: "Timings | None" = None


class TokenLogprobs(_Frame, frozen=True):
    """Log-probabilities of one sampled token: its own, and the best alternatives as (id, logprob), best first."""

    logprob: float
    top: tuple[tuple[int, float], ...]


class End(_Frame, frozen=True):
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
    timings: "Timings"


class Timings(_Frame, frozen=True):
    """Why a request took as long as it did, as the scheduler saw it, in seconds; attempts are not added up."""

    cached_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    retractions: int = 0
    max_new_tokens: int = 0


class Tokens(_Frame, frozen=True, tag=21):
    """One step's output ids for one detok. Columns of equal length as int32 bytes: handles, indices, ids.

    `index` counts a request's output tokens from 0. `logprobs` is sparse: (row, logprobs).
    """

    step: int
    handles: bytes
    indices: bytes
    ids: bytes
    logprobs: list[tuple[int, TokenLogprobs]]
    ends: list[End]


class Close(_Frame, frozen=True, tag=22):
    """The handle was aborted or has failed: forget it."""

    handle: Handle


class Stopped(_Frame, frozen=True, tag=23):
    """A stop string ended the request after `count` output tokens; the scheduler finishes it normally."""

    handle: Handle
    rid: Rid
    choice: int
    attempt: int
    count: int


class TextLogprobs(_Frame, frozen=True):
    """TokenLogprobs with text: `token` may hold U+FFFD where `token_bytes` is half a character."""

    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...]


class Finish(_Frame, frozen=True):
    """The end of one choice. `reason`: stop or length. `matched` is the stop string, the stop token id or None."""

    reason: str
    matched: str | int | None
    count: int
    timings: Timings


class DeltaItem(_Frame, frozen=True):
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


class Delta(_Frame, frozen=True, tag=24):
    """One step's new output for one api process."""

    items: list[DeltaItem]


# Scheduler <-> worker


class WorkerHello(_Frame, frozen=True, tag=30):
    """A worker presents itself. First with `is_ready` false and the page count it can hold; once it has allocated
    exactly the count of the scheduler's hello and warmed up, again with `is_ready` true.

    `page_count` excludes the dummy page 0. `max_slots` is the number of sequences it can run at once.
    """

    scheduler_epoch: Epoch
    is_ready: bool
    page_size: int
    page_count: int
    max_slots: int
    vocab_size: int
    context_length: int
    device: str


class SchedulerHello(_Frame, frozen=True, tag=31):
    """Answer to a worker's hello. The worker drops all slots, and allocates exactly `page_count` pages or fails."""

    worker_epoch: Epoch
    page_count: int


class Enter(_Frame, frozen=True):
    """A sequence takes a slot. `ids` are prompt and resumed output ids (int32 bytes), of which the first
    `prompt_length` are the prompt and the first `cached_length` are in KV already. `pages` (int32 bytes) cover the
    cached part and this step's chunk."""

    slot: int
    generation: int
    ids: bytes
    prompt_length: int
    cached_length: int
    pages: bytes
    params: SamplingParams
    choice: int


class Chunk(_Frame, frozen=True):
    """Compute `length` more tokens of the prompt in `slot`; the last chunk also samples (`is_last`)."""

    slot: int
    length: int
    is_last: bool


class Step(_Frame, frozen=True, tag=32):
    """What changed since the step before, and what to run. Applied in field order.

    `release`: slots that become inactive (int32 bytes). `pages`: page table writes, triples (slot, index, page).
    `decode`: whether active slots that are not in mid-prefill decode one token in this step.
    """

    worker_epoch: Epoch
    step: int
    release: bytes
    enter: list[Enter]
    pages: bytes
    chunks: list[Chunk]
    decode: bool


class StepTimes(_Frame, frozen=True):
    """Where a step's time went, in seconds, on the worker's clock."""

    wait_s: float
    prepare_s: float
    forward_s: float
    sample_s: float


class StepResult(_Frame, frozen=True, tag=33):
    """Sampled ids of one step. Columns of equal length as int32 bytes: slots, generations, ids.

    `logprobs` is sparse (row, logprobs); `bad_rows` are rows whose logits were not finite, their ids mean nothing.
    """

    scheduler_epoch: Epoch
    step: int
    slots: bytes
    generations: bytes
    ids: bytes
    logprobs: list[tuple[int, TokenLogprobs]]
    bad_rows: list[int]
    times: StepTimes


class StepFailed(_Frame, frozen=True, tag=34):
    """The step raised; nothing of it may be used. `kind`: oom or error."""

    scheduler_epoch: Epoch
    step: int
    kind: str
    message: str


# Every process -> api


class Snapshot(_Frame, frozen=True, tag=40):
    """Metrics of one process, by metric name without prefix."""

    role: Role
    rank: int
    epoch: Epoch
    gauges: dict[str, float]
    counters: dict[str, float]


# Supervisor <-> child, on the inherited socketpair


class ProcessStatus(_Frame, frozen=True):
    """One row of the process table. `state`: starting, ready, draining, down."""

    role: Role
    rank: int
    pid: int
    epoch: Epoch
    state: str
    phase: str
    restarts: int


class Assignment(_Frame, frozen=True, tag=50):
    """First message to a child: who it is, and the configuration of the launch."""

    boot_id: int
    role: Role
    rank: int
    epoch: Epoch
    run_dir: str
    config: Config
    listen_fd: int = -1


class ProcessTable(_Frame, frozen=True, tag=51):
    """The process table, sent to every child whenever it changes. `is_draining`: the service is shutting down.
    `serial` rises with each; a child's heartbeats say which it has seen."""

    processes: list[ProcessStatus]
    is_draining: bool
    serial: int = 0


class Drain(_Frame, frozen=True, tag=52):
    """Finish what is accepted, take nothing else, then answer Drained; at the latest after `limit_s`."""

    limit_s: float


class Ready(_Frame, frozen=True, tag=53):
    """The child has bound its inbox and can work. `facts` are for the ready line, e.g. kv_tokens."""

    facts: dict[str, str | int | float]


class Heartbeat(_Frame, frozen=True, tag=54):
    """Four times a second, from the main loop. No rise of `progress` within `deadline_s` is a hang; a deadline of 0
    means that the process is idle and only the heartbeats themselves are required."""

    phase: str
    progress: int
    deadline_s: float
    table_serial: int = 0


class Drained(_Frame, frozen=True, tag=55):
    """The child has finished what it had accepted."""


class Fatal(_Frame, frozen=True, tag=56):
    """The child cannot start; a restart will not help. `message` is one line for the user."""

    message: str


TokenizerInbound = Encode
SchedulerInbound = Submit | Abort | LiveRequests | Query | Stopped | WorkerHello | StepResult | StepFailed
WorkerInbound = SchedulerHello | Step
DetokInbound = Open | Tokens | Close
ApiInbound = Encoded | EncodeFailed | Accepted | Rejected | Failed | HeldRequests | Delta | QueryReply | Snapshot
ChildInbound = Assignment | ProcessTable | Drain
SupervisorInbound = Ready | Heartbeat | Drained | Fatal
