"""An in-memory engine client for tests of the api process: accepts, pushes a test's output, records aborts."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import msgspec

from quartet.client.adoption import Adopted
from quartet.client.request import GenerateRequest, Output
from quartet.runtime.core import Metrics
from quartet.wire.config import ResolvedModel
from quartet.wire.errors import RequestError
from quartet.wire.frames import (
    Encoded,
    Finish,
    IdsPrompt,
    ProcessStatus,
    ProcessTable,
    Snapshot,
    TextLogprobs,
    TextPrompt,
    Timings,
    pack_ids,
    unpack_ids,
)
from quartet.wire.ids import Epoch, Rid, Role

WORDS = ("Hello", " wörld", " 🎉", "!")
PROMPT_IDS = [11, 12, 13, 14, 15]

MODEL = ResolvedModel(
    folder="/nowhere/toy",
    name="toy",
    architecture="LlamaForCausalLM",
    vocab_size=1000,
    context_length=64,
    eos_token_ids=(2,),
    default_sampling={"temperature": 0.6, "top_p": 0.9, "top_k": 20},
)


def finish(reason: str = "stop", matched: str | int | None = None, count: int = len(WORDS)) -> Finish:
    return Finish(reason, matched, count, Timings(cached_tokens=3, queue_s=0.002, prefill_s=0.01, decode_s=0.03))


def logprob_of(text: str, alternatives: int, offset: int) -> TextLogprobs:
    top = tuple((f"alt{i}", f"alt{i}".encode(), -1.0 - i) for i in range(alternatives))
    return TextLogprobs(text, text.encode(), -0.5, top, offset, 0, tuple(range(alternatives)))


class FakeOutputStream:
    """One accepted request, driven by the test through `push`, `fail` and `finish_all`."""

    def __init__(self, request: GenerateRequest, rid: Rid) -> None:
        self.request = request
        self.rid = rid
        self.prompt_ids = list(PROMPT_IDS)
        self.prompt_text = request.prompt.text if isinstance(request.prompt, TextPrompt) else "decoded prompt"
        self.encoded = Encoded(1, pack_ids(PROMPT_IDS), self.prompt_text, request.params)
        self.aborted = asyncio.Event()
        self.subscribed = asyncio.Event()
        self.is_finished = False
        self._shown = [0] * request.n
        self._early: list[list[Output]] = []
        self._on_output: Callable[[list[Output]], None] | None = None
        self._on_error: Callable[[RequestError], None] | None = None

    def subscribe(self, on_output: Callable[[list[Output]], None], on_error: Callable[[RequestError], None]) -> None:
        self._on_output, self._on_error = on_output, on_error
        self.subscribed.set()
        for outputs in self._early:
            on_output(outputs)

    def abort(self) -> None:
        if not self.is_finished:
            self.aborted.set()

    def push(self, *outputs: Output) -> None:
        if self._on_output is None:
            self._early.append(list(outputs))
        else:
            self._on_output(list(outputs))

    def text(self, text: str, choice: int = 0, token: int = 7) -> None:
        logprobs = None
        if self.request.params.logprobs >= 0:
            logprobs = [logprob_of(text, self.request.params.logprobs, self._shown[choice])]
        self._shown[choice] += len(text)
        self.push(Output(choice, [token], text, logprobs, None))

    def finish_all(self, reason: str = "stop", matched: str | int | None = None, count: int = len(WORDS)) -> None:
        self.is_finished = True
        self.push(*(Output(i, [], "", None, finish(reason, matched, count)) for i in range(self.request.n)))

    def fail(self, error: RequestError) -> None:
        assert self._on_error is not None
        self._on_error(error)


async def answer_words(output: FakeOutputStream) -> None:
    """The default script: every choice outputs WORDS, then stops."""
    limit = output.request.params.max_new_tokens
    words = WORDS if limit is None else WORDS[:limit]
    for word in words:
        await asyncio.sleep(0)
        for choice in range(output.request.n):
            output.text(word, choice)
    output.finish_all("length" if len(words) < len(WORDS) else "stop", count=len(words))


async def stay_silent(output: FakeOutputStream) -> None:
    """A script for tests that push by hand."""


Script = Callable[[FakeOutputStream], Awaitable[None]]


class FakeEngine:
    """Implements api_proc.server.service.EngineClient."""

    def __init__(self) -> None:
        self.is_accepting = True
        self.is_alive = True
        self.refusal: Exception | None = None
        self.refuse_after: int | None = None
        self.script: Script = answer_words
        self.outputs: list[FakeOutputStream] = []
        self.encoded: list[GenerateRequest] = []
        self.adopted: list[tuple[Adopted, FakeOutputStream]] = []
        self.written: list[tuple[Rid, float]] = []
        self.cancelled = 0
        self.accept = asyncio.Event()
        self.accept.set()
        self.waiting = asyncio.Event()
        self.arrived = asyncio.Event()
        self.process_table = ProcessTable(
            [
                ProcessStatus(Role.SCHEDULER, 0, 41, Epoch(1), "ready", "idle", 0),
                ProcessStatus(Role.WORKER, 0, 42, Epoch(3), "starting", "loading", 2),
            ],
            False,
        )
        self.snapshots = {
            "scheduler-0": Snapshot(
                Role.SCHEDULER,
                0,
                Epoch(1),
                {"num_running_reqs": 3.0, "token_usage": 0.25, "kv_capacity_tokens": 1600.0, "bad name": 1},
                {
                    "output_tokens": 1234.0,
                    "input_tokens": 400.0,
                    "cached_tokens": 100.0,
                    "retractions": 7.0,
                    'frames_dropped{reason="crc"}': 2.0,
                },
            )
        }
        self._tasks: set[asyncio.Task[None]] = set()

    async def query(self, what: str, argument: str = "", tenant: str | None = None) -> bytes:
        """Reply with the query itself; no request is called `gone`."""
        if argument == "gone":
            return b'{"error":"no such request"}'
        return json.dumps({"what": what, "argument": argument, "tenant": tenant}).encode()

    def note_written(self, rid: Rid, seconds: float) -> None:
        self.written.append((rid, seconds))

    def journal_metrics(self) -> Metrics:
        return Metrics({"api_live_requests": float(len(self.outputs))}, {"api_replays": 0.0})

    def adopt(self, adopted: Adopted) -> FakeOutputStream:
        output = FakeOutputStream(adopted.request, adopted.rid)
        self.adopted.append((adopted, output))
        return output

    async def encode(self, request: GenerateRequest) -> Encoded:
        """Answer with PROMPT_IDS, or with the ids of a prompt of ids."""
        self.encoded.append(request)
        if self.refusal is not None:
            raise self.refusal
        prompt = request.prompt
        ids = prompt.ids if isinstance(prompt, IdsPrompt) else pack_ids(PROMPT_IDS)
        tokens = [f"<{index}>" for index in unpack_ids(ids)] if request.names_tokens else None
        return Encoded(1, ids, "decoded prompt", request.params, tokens)

    async def generate(self, request: GenerateRequest) -> FakeOutputStream:
        self.waiting.set()
        try:
            await self.accept.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.refusal is not None and len(self.outputs) >= (self.refuse_after or 0):
            raise self.refusal
        # When it was sent says nothing about what was sent.
        request = msgspec.structs.replace(request, accepted_s=None)
        output = FakeOutputStream(request, Rid(len(self.outputs).to_bytes(16, "big")))
        self.outputs.append(output)
        self.arrived.set()
        task = asyncio.ensure_future(self.script(output))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return output
