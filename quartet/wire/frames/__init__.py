"""Every Struct that crosses a socket: one module for each link, one tagged union for each inbox.

A frame is a fact or an order, never an object. Bodies are tagged msgspec arrays; unknown fields are refused.
Token ids, slots and pages travel as little-endian int32 bytes (`pack_ids` / `unpack_ids`).
The integer tag of a frame is also the `type` of its header (quartet.wire.codec).

    tokenizer_link   api ── Encode | CancelEncode ──► tokenizer ── Encoded | EncodeFailed ──► api
    scheduler_link   api ── Submit | Abort | LiveRequests | Written | Query ──► scheduler
                     scheduler ── Accepted | Rejected | Failed | HeldRequests | QueryReply ──► api
    worker_link      scheduler ── SchedulerHello | Step | CompileGrammar ──► worker
                     worker ── WorkerHello | StepResult | StepFailed | GrammarCompiled ──► scheduler
                     rank 0 of the worker ── RunnerCall | Step ──► its other ranks
    detok_link       scheduler ── Open | PromptTokens | Tokens | Close ──► detok ── PromptDelta | Delta ──► api
                     detok ── Stopped ──► scheduler
    control_link     supervisor ── Assignment | ProcessTable | Drain ──► child
                     child ── Ready | Heartbeat | Exempt | Drained | Fatal ──► supervisor
                     every process ── Snapshot ──► api, each second
"""

from quartet.wire.frames.base import (
    ID_BYTES,
    Frame,
    pack_ids,
    unpack_ids,
)
from quartet.wire.frames.control_link import (
    Assignment,
    Drain,
    Drained,
    Exempt,
    Fatal,
    Heartbeat,
    LastEnd,
    ProcessStatus,
    ProcessTable,
    Ready,
    Snapshot,
)
from quartet.wire.frames.detok_link import (
    Close,
    Delta,
    DeltaItem,
    End,
    Finish,
    Open,
    PromptDelta,
    PromptLogprobs,
    PromptTokens,
    Stopped,
    TextLogprobs,
    Timings,
    TokenLogprobs,
    Tokens,
)
from quartet.wire.frames.sampling import (
    Grammar,
    Marker,
    SamplingParams,
)
from quartet.wire.frames.scheduler_link import (
    Abort,
    Accepted,
    Failed,
    HeldRequest,
    HeldRequests,
    LiveRequest,
    LiveRequests,
    Query,
    QueryReply,
    Rejected,
    Submit,
    Written,
)
from quartet.wire.frames.tokenizer_link import (
    CancelEncode,
    ChatPrompt,
    Encode,
    Encoded,
    EncodeFailed,
    IdsPrompt,
    TextPrompt,
)
from quartet.wire.frames.worker_link import (
    Chunk,
    CompileGrammar,
    Enter,
    GrammarCompiled,
    RunnerCall,
    RunnerMethod,
    SchedulerHello,
    ScoredChunk,
    Step,
    StepFailed,
    StepResult,
    StepTimes,
    WindowPages,
    WorkerHello,
)

TokenizerInbound = Encode | CancelEncode
SchedulerInbound = (
    Submit | Abort | LiveRequests | Written | Query | Stopped | WorkerHello | StepResult | StepFailed | GrammarCompiled
)
WorkerInbound = SchedulerHello | Step | CompileGrammar
RankInbound = RunnerCall | Step
"""Of the ranks of the worker from 1 on."""
DetokInbound = Open | PromptTokens | Tokens | Close
ApiInbound = (
    Encoded | EncodeFailed | Accepted | Rejected | Failed | HeldRequests | PromptDelta | Delta | QueryReply | Snapshot
)
ChildInbound = Assignment | ProcessTable | Drain
SupervisorInbound = Ready | Heartbeat | Exempt | Drained | Fatal

__all__ = [
    "ID_BYTES",
    "Abort",
    "Accepted",
    "ApiInbound",
    "Assignment",
    "CancelEncode",
    "ChatPrompt",
    "ChildInbound",
    "Chunk",
    "Close",
    "CompileGrammar",
    "Delta",
    "DeltaItem",
    "DetokInbound",
    "Drain",
    "Drained",
    "Encode",
    "EncodeFailed",
    "Encoded",
    "End",
    "Enter",
    "Exempt",
    "Failed",
    "Fatal",
    "Finish",
    "Frame",
    "Grammar",
    "GrammarCompiled",
    "Heartbeat",
    "HeldRequest",
    "HeldRequests",
    "IdsPrompt",
    "LastEnd",
    "LiveRequest",
    "LiveRequests",
    "Marker",
    "Open",
    "ProcessStatus",
    "ProcessTable",
    "PromptDelta",
    "PromptLogprobs",
    "PromptTokens",
    "Query",
    "QueryReply",
    "RankInbound",
    "Ready",
    "Rejected",
    "RunnerCall",
    "RunnerMethod",
    "SamplingParams",
    "SchedulerHello",
    "SchedulerInbound",
    "ScoredChunk",
    "Snapshot",
    "Step",
    "StepFailed",
    "StepResult",
    "StepTimes",
    "Stopped",
    "Submit",
    "SupervisorInbound",
    "TextLogprobs",
    "TextPrompt",
    "Timings",
    "TokenLogprobs",
    "TokenizerInbound",
    "Tokens",
    "WindowPages",
    "WorkerHello",
    "WorkerInbound",
    "Written",
    "pack_ids",
    "unpack_ids",
]
