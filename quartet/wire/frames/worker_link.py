"""scheduler ── SchedulerHello | Step | CompileGrammar ──► worker
worker ── WorkerHello | StepResult | StepFailed | GrammarCompiled ──► scheduler
rank 0 of the worker ── RunnerCall | Step ──► its other ranks
"""

from enum import StrEnum

import msgspec

from quartet.wire.frames.base import Frame, check_columns, check_ids
from quartet.wire.frames.detok_link import PromptLogprobs, TokenLogprobs
from quartet.wire.frames.sampling import SamplingParams
from quartet.wire.ids import Epoch


class WindowPages(Frame, frozen=True):
    """The page pool of the layers that see a window of tokens: a token sees itself and the `window` - 1 before it.
    `page_count` excludes the pool's own dummy page 0."""

    window: int
    page_count: int


class WorkerHello(Frame, frozen=True, tag=30):
    """A worker presents itself. First with `is_ready` false and the page count it can hold; once it has allocated
    exactly the count of the scheduler's hello and warmed up, again with `is_ready` true.

    `page_count` excludes the dummy page 0. `max_slots` is the number of sequences it can run at once. `session` and
    `query` are those of the SchedulerHello that it answers. `last_step` is the last step that was taken, of which the
    last `steps_in_flight` have no result yet; results and hellos arrive in the order in which they were sent.
    `mixed_tokens` is the size of a step up to which prompts pause decode rows that join it by no more than a reader
    notices, by the model's size; 0 on a device where joining gains nothing. With `has_states` the model has layers that
    keep a state for each slot: pages alone are no prefix that another request could start from. It can start from one
    of so many `checkpoints`, copies of states that the worker makes and keeps as steps say. `windows` are the pools of
    layers that see less than others do, page group 1, 2 and so on; the layers that see most are group 0, whose pool
    `page_count` is. A group has page numbers and a page table of its own.
    """

    scheduler_epoch: Epoch
    is_ready: bool
    page_size: int
    page_count: int
    max_slots: int
    vocab_size: int
    context_length: int
    device: str
    session: int = 0
    query: int = 0
    last_step: int = 0
    steps_in_flight: int = 0
    mixed_tokens: int = 0
    has_states: bool = False
    checkpoints: int = 0
    windows: tuple[WindowPages, ...] = ()


class SchedulerHello(Frame, frozen=True, tag=31):
    """Answer to a worker's hello, or a query. The first of a `session` makes the worker drop all slots and allocate
    exactly `page_count` pages (those of windows follow from it), or fail; the steps of the session follow `last_step`
    without a gap. A later one asks for a WorkerHello with the number `query`."""

    worker_epoch: Epoch
    page_count: int
    session: int = 0
    last_step: int = 0
    query: int = 0


class Enter(Frame, frozen=True):
    """A sequence takes a slot. `ids` are prompt and resumed output ids (int32 bytes), of which the first
    `prompt_length` are the prompt and the first `cached_length` are in KV already. `pages` (int32 bytes) cover the
    cached part and this step's chunk; `window_pages` do so in each page group from 1 on, with 0 for a page that no row
    reads any more. With a `checkpoint` the sequence starts from the state that is kept there, of the cached part; a
    checkpoint is read before a step computes anything."""

    slot: int
    generation: int
    ids: bytes
    prompt_length: int
    cached_length: int
    pages: bytes
    params: SamplingParams
    choice: int
    checkpoint: int = -1
    window_pages: tuple[bytes, ...] = ()


class Chunk(Frame, frozen=True):
    """Compute `length` more tokens of the prompt in `slot`; the last chunk also samples (`is_last`)."""

    slot: int
    length: int
    is_last: bool


class Step(Frame, frozen=True, tag=32):
    """What changed since the step before, and what to run. Applied in field order.

    `release`: slots that become inactive (int32 bytes). `pages`: page table writes, triples (slot, index, page).
    `window_pages`: those of the page groups from 1 on, quadruples (group, slot, index, page), where page 0 stands for
    one that no row reads any more.
    `decode`: whether active slots that are not in mid-prefill decode one token in this step. `rows`, if there are any,
    say which rows decode instead: triples (slot, context length, id) by slot and length, where the id -1 stands for
    the one sampled last. A slot may have several rows, one after the other: all but the first compute drafted tokens,
    and those that the sampled ids contradict count as never computed. The next step in which such a slot decodes has
    `rows`, too, which say from where it goes on. `saves`: pairs (slot, checkpoint) of states to keep as they are after
    the step, one after the other.
    """

    worker_epoch: Epoch
    step: int
    release: bytes
    enter: list[Enter]
    pages: bytes
    chunks: list[Chunk]
    decode: bool
    rows: bytes = b""
    saves: bytes = b""
    window_pages: bytes = b""

    def __post_init__(self) -> None:
        check_ids(self.release, self.pages, self.rows, self.saves, self.window_pages)


class StepTimes(Frame, frozen=True):
    """Where a step's time went, in seconds, on the worker's clock."""

    wait_s: float
    prepare_s: float
    forward_s: float
    sample_s: float


class ScoredChunk(Frame, frozen=True):
    """What a chunk that begins at position `start` says of the prompt tokens from `start` + 1 on: each of its logits
    rows is for the token after it. The sequence is named by its generation."""

    generation: int
    start: int
    logprobs: PromptLogprobs


class StepResult(Frame, frozen=True, tag=33):
    """Sampled ids of one step. Columns of equal length as int32 bytes: slots, generations, ids.

    `logprobs` is sparse (row, logprobs). `scored` has the chunks of sequences with `prompt_logprobs`. The ids of some
    rows mean nothing: of `bad_rows`, whose logits were not finite, and of the rows in `grammar_errors`, whose grammars
    cannot be followed any further, each with the reason.
    """

    scheduler_epoch: Epoch
    step: int
    slots: bytes
    generations: bytes
    ids: bytes
    logprobs: list[tuple[int, TokenLogprobs]]
    bad_rows: list[int]
    times: StepTimes
    scored: list[ScoredChunk] = msgspec.field(default_factory=list)
    grammar_errors: tuple[tuple[int, str], ...] = ()

    def __post_init__(self) -> None:
        check_columns(self.slots, self.generations, self.ids)


class StepFailed(Frame, frozen=True, tag=34):
    """The step raised; nothing of it may be used. `kind`: oom or error."""

    scheduler_epoch: Epoch
    step: int
    kind: str
    message: str


class CompileGrammar(Frame, frozen=True, tag=35):
    """Compile a grammar of kind llguidance ahead of the request that needs it; `key` is the scheduler's name for it."""

    key: bytes
    source: str


class GrammarCompiled(Frame, frozen=True, tag=36):
    """The grammar of that key is compiled, or cannot be for the reason in `error`."""

    scheduler_epoch: Epoch
    key: bytes
    error: str = ""


class RunnerMethod(StrEnum):
    """Methods of worker_proc.contract.Runner that every rank calls, beside `launch`."""

    RESET = "reset"
    ALLOCATE = "allocate"
    PREPARE_NEXT = "prepare_next"


class RunnerCall(Frame, frozen=True, tag=37):
    """Rank 0 calls this method of its runner, so the others call it of theirs. `page_count` is that of `allocate`."""

    method: RunnerMethod
    page_count: int = 0
