"""One frame of every type for the tests, the inboxes they go to, and frames sealed by hand with any fault."""

import zlib
from typing import Any, get_args

import msgspec

from quartet.wire import frames
from quartet.wire.codec import HEADER, MAGIC, VERSION, seal
from quartet.wire.config import Config, ResolvedModel
from quartet.wire.frames import pack_ids
from quartet.wire.ids import Epoch, Handle, Rid, Role

BOOT = 7
RID = Rid(bytes(range(16)))
PARAMS = frames.SamplingParams(max_new_tokens=9, logit_bias=((3, -1.5),), stop=("…", "end"), seed=(1 << 64) - 1)
LOGPROBS = frames.TokenLogprobs(-0.5, ((4, -0.5), (5, -1.25)))
TIMINGS = frames.Timings(cached_tokens=16, queue_s=0.25, retractions=1)
IDS = pack_ids([1, 2, 2**31 - 1])
PROMPT = frames.PromptLogprobs(bytes(8), bytes(8), bytes(8), bytes(8))

INBOXES: dict[str, Any] = {
    "tokenizer": frames.TokenizerInbound,
    "scheduler": frames.SchedulerInbound,
    "worker": frames.WorkerInbound,
    "rank": frames.RankInbound,
    "detok": frames.DetokInbound,
    "api": frames.ApiInbound,
    "child": frames.ChildInbound,
    "supervisor": frames.SupervisorInbound,
}

CONFIG = Config(resolved=ResolvedModel("/m", "m", "Qwen3ForCausalLM", 512, 1024, (2,), default_sampling={"top_p": 0.9}))
STATUS = frames.ProcessStatus(Role.DETOK, 3, 4321, Epoch(2), "ready", "serving", 1)

SAMPLES: list[msgspec.Struct] = [
    frames.Encode(1, "api-0", frames.ChatPrompt(b'[{"role": "user"}]', tools=b"[]"), PARAMS),
    frames.CancelEncode(1, "api-0"),
    frames.Encoded(1, IDS, "grüße", PARAMS),
    frames.EncodeFailed(1, 400, "context_length_exceeded", "too long", "prompt"),
    frames.Submit(RID, 2, 1, "api-0", "detok-1", IDS, b"", PARAMS, priority=-3, deadline_s=1.5),
    frames.Accepted(RID, 0, 1, 64),
    frames.Rejected(RID, 0, 1, 503, "queue_full", "full", 2.0),
    frames.Abort(RID),
    frames.LiveRequests("api-0", [frames.LiveRequest(RID, 0, 1), frames.LiveRequest(RID, 1, 0)]),
    frames.HeldRequests([frames.HeldRequest(RID, 0, 1, True, 12)]),
    frames.Failed(RID, 0, 1, 500, "out_of_memory", "no room"),
    frames.Query(5, "api-0", "timeline", "x"),
    frames.QueryReply(5, b"{}"),
    frames.Written(RID, 0.25),
    frames.Open(Handle(4), RID, 0, 1, "api-0", IDS, IDS, 1, ("stop",), False, True, 2, [LOGPROBS], TIMINGS),
    frames.Tokens(9, IDS, IDS, IDS, [(1, LOGPROBS)], [frames.End(Handle(4), "stop", 2, 1, 12, TIMINGS)]),
    frames.PromptTokens(Handle(4), 0, IDS, PROMPT, True),
    frames.PromptDelta(RID, 0, 1, 0, [frames.TextLogprobs("a", b"a", -0.5, (("b", b"b", -1.0),), 0, 2, (7,))], True),
    frames.Close(Handle(4)),
    frames.Stopped(Handle(4), RID, 0, 1, 11),
    frames.Delta(
        [
            frames.DeltaItem(RID, 0, 1, 3, IDS, "…", 7),
            frames.DeltaItem(
                RID,
                1,
                1,
                0,
                IDS,
                "\N{GRINNING FACE}",
                0,
                [frames.TextLogprobs(r"bytes:\xf0\x9f", b"\xf0\x9f", -0.1, (("a", b"a", -2.0),), 5)],
                frames.Finish("stop", "end", 3, TIMINGS),
            ),
        ]
    ),
    frames.WorkerHello(Epoch(0), False, 16, 400, 64, 512, 1024, "cpu", windows=(frames.WindowPages(128, 50),)),
    frames.SchedulerHello(Epoch(2), 400),
    frames.Step(
        Epoch(2),
        8,
        pack_ids([1]),
        [frames.Enter(0, 5, IDS, 2, 0, IDS, PARAMS, 0, 2, (IDS,))],
        IDS,
        [frames.Chunk(0, 16, True)],
        True,
        window_pages=pack_ids([1, 0, 3, 9]),
    ),
    frames.StepResult(
        Epoch(3),
        8,
        IDS,
        IDS,
        IDS,
        [(0, LOGPROBS)],
        [2],
        frames.StepTimes(0.1, 0.2, 0.3, 0.4),
        [frames.ScoredChunk(5, 0, PROMPT)],
    ),
    frames.StepFailed(Epoch(3), 8, "oom", "out of memory"),
    frames.CompileGrammar(bytes(16), "start: /a+/"),
    frames.GrammarCompiled(Epoch(3), bytes(16), "no rule is named start"),
    frames.RunnerCall(frames.RunnerMethod.ALLOCATE, 400),
    frames.Snapshot(Role.WORKER, 0, Epoch(2), {"running": 1.0}, {"steps": 2.0}),
    frames.Assignment(BOOT, Role.API, 0, Epoch(1), "/run/q", CONFIG, 7),
    frames.ProcessTable([STATUS], True, 3),
    frames.Drain(2.5),
    frames.Ready({"kv_tokens": 4096, "device": "cpu", "seconds": 0.5}),
    frames.Heartbeat("serving", 3, 1.0, 2, True),
    frames.Exempt(Role.WORKER, 0, Epoch(4)),
    frames.Drained(),
    frames.Fatal("no model", 3),
]


def kinds(inbound: Any) -> tuple[type[msgspec.Struct], ...]:
    """Return the frame types of an inbox."""
    return get_args(inbound) or (inbound,)


def inbox_of(frame: msgspec.Struct) -> Any:
    """Return the union that takes this frame."""
    return next(inbound for inbound in INBOXES.values() if type(frame) in kinds(inbound))


def sealed(body: bytes, kind: int, **header: int | bytes) -> bytes:
    """Return a frame with a correct header around `body`, but for the header fields that are given."""
    fields: dict[str, int | bytes] = {
        "magic": MAGIC,
        "version": VERSION,
        "kind": kind,
        "role": Role.API,
        "rank": 0,
        "boot": BOOT,
        "epoch": 1,
        "length": len(body),
        "crc": 0,
    }
    fields |= header
    if "crc" not in header:
        fields["crc"] = zlib.crc32(body, seal(*(int(fields[name]) for name in ("role", "rank", "epoch", "kind"))))
    return HEADER.pack(*fields.values()) + body


def tag(frame: msgspec.Struct) -> int:
    """Return the type number of a frame."""
    return int(frame.__struct_config__.tag)  # type: ignore[arg-type]
