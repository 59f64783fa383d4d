"""The client of the engine: `await engine.generate(request)`, then output as it comes.

Used by the api process, and by anything else that runs as one. Keeps the journal; replays what a dead process took
with it; delivers each token once. It needs a Context for its address, its clock and its links, and is told of frames
and of the process table by its owner.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import msgspec

from quartet.client.encode_jobs import EncodeJobs
from quartet.client.journal import MAX_STALL_REPLAYS, Entry, Gap, Journal
from quartet.runtime.actor import Context, Metrics
from quartet.wire.codec import Source
from quartet.wire.errors import FrameError, RequestError
from quartet.wire.frames import (
    Abort,
    Accepted,
    ChatPrompt,
    Delta,
    DeltaItem,
    Encoded,
    EncodeFailed,
    Failed,
    Finish,
    HeldRequests,
    IdsPrompt,
    LiveRequests,
    ProcessTable,
    Query,
    QueryReply,
    Rejected,
    SamplingParams,
    Snapshot,
    Submit,
    TextLogprobs,
    TextPrompt,
    unpack_ids,
)
from quartet.wire.ids import Rid, Role, process_name

LIVE_REQUESTS_S = 1.0
ASK_TIMEOUT_S = 5.0
START_GRACE_S = 2.0
REQUIRED_ROLES = (Role.TOKENIZER, Role.SCHEDULER, Role.WORKER, Role.DETOK)


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request of `n` choices. `deadline_s` is seconds from now for the whole of it."""

    prompt: TextPrompt | IdsPrompt | ChatPrompt
    params: SamplingParams
    n: int = 1
    priority: int | None = None
    tenant: str = ""
    cache_salt: str = ""
    routing_key: str = ""
    weight: float = 1.0
    deadline_s: float | None = None
    rid: Rid | None = None


class Output(msgspec.Struct, frozen=True):
    """One increment of one choice: new ids, the text they complete, and the end if this is it."""

    choice: int
    ids: list[int]
    text: str
    logprobs: list[TextLogprobs] | None
    finish: Finish | None


OnOutput = Callable[[list[Output]], None]
OnError = Callable[[RequestError], None]


class OutputStream:
    """A request in progress. Take its output by `subscribe` (push) or by iteration (pull), not both.

    Until one of them is used, output waits here.
    """

    def __init__(self, engine: "Engine", rid: Rid, choices: int) -> None:
        self.rid = rid
        self.max_new_tokens = 0
        self._encoded: Encoded | None = None
        self._engine = engine
        self._unaccepted = set(range(choices))
        self.choices = choices
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._early: list[Output] = []
        self._error: RequestError | None = None
        self._on_output: OnOutput = self._early.extend
        self._on_error: OnError | None = None

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt as the tokenizer encoded it; made afresh by each call."""
        return unpack_ids(self._encoded.ids) if self._encoded else []

    @property
    def prompt_text(self) -> str:
        """The prompt's text; empty for ids that are not echoed."""
        return self._encoded.text if self._encoded else ""

    def subscribe(self, on_output: OnOutput, on_error: OnError) -> None:
        """Have output pushed, on the loop's thread, as each Delta arrives; at once what has come already."""
        self._on_output, self._on_error = on_output, on_error
        if self._early:
            early, self._early = self._early, []
            on_output(early)
        if self._error is not None:
            on_error(self._error)

    async def __aiter__(self) -> AsyncIterator[Output]:
        """Yield increments until every choice has ended. Raises RequestError if the request fails midway.

        Leaving early aborts the request."""
        # Bounded by the journal: a request has at most max_new_tokens increments for each choice.
        queue: asyncio.Queue[Output | RequestError] = asyncio.Queue()

        def push(outputs: list[Output]) -> None:
            for output in outputs:
                queue.put_nowait(output)

        left = self._engine.choices_left(self.rid) + sum(1 for output in self._early if output.finish)
        self.subscribe(push, queue.put_nowait)
        try:
            while left or not queue.empty():
                item = await queue.get()
                if isinstance(item, RequestError):
                    raise item
                yield item
                left -= item.finish is not None
        finally:
            if left:
                self.abort()

    def abort(self) -> None:
        """Give the request up and free what it holds. Idempotent."""
        self._engine.abort(self.rid)

    def deliver(self, outputs: list[Output]) -> None:
        """Take output from the engine."""
        self._on_output(outputs)

    def fail(self, error: RequestError) -> None:
        """Take the end of the whole request from the engine."""
        self._error = error
        if not self._accepted.done():
            self._accepted.set_exception(error)
        elif self._on_error is not None:
            self._on_error(error)

    def encode(self, encoded: Encoded) -> None:
        """Note what the tokenizer has made of the prompt."""
        self._encoded = encoded

    def accept(self, choice: int, max_new_tokens: int) -> None:
        """Note that the scheduler has queued one choice."""
        self.max_new_tokens = max_new_tokens
        self._unaccepted.discard(choice)
        if not self._unaccepted and not self._accepted.done():
            self._accepted.set_result(None)

    @property
    def is_settled(self) -> bool:
        """Whether the request has been accepted or refused, or nobody waits for that any more."""
        return self._accepted.done()

    async def accepted(self) -> None:
        """Wait until every choice is queued; raises RequestError if one is refused."""
        await self._accepted


class Engine:
    """The engine as its clients see it.

    The owner calls `on_frame` for each frame, `on_process_table` for each process table, and keeps `run` in a task.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._journal: Journal[OutputStream] = Journal()
        self._streams: dict[Rid, OutputStream] = {}
        self._encodes = EncodeJobs(context)
        self._asks: dict[int, asyncio.Future[bytes]] = {}
        self._last_ask = 0
        self._epochs: dict[str, int] = {}
        self._scheduler = process_name(Role.SCHEDULER, 0)
        self.process_table = context.process_table
        self.snapshots: dict[str, Snapshot] = {}
        self._first_ready = asyncio.Event()
        self._is_stopping = False

    # What the process table says

    @property
    def is_accepting(self) -> bool:
        """Whether every role is ready and the service is not draining."""
        return not self.is_draining and all(self._is_ready(role) for role in REQUIRED_ROLES)

    @property
    def is_alive(self) -> bool:
        """Whether the engine was ready once: it is alive or recovering."""
        return self._first_ready.is_set()

    @property
    def is_draining(self) -> bool:
        """Whether the service is shutting down."""
        return self.process_table.is_draining or self._is_stopping

    @property
    def live_count(self) -> int:
        """Live (rid, choice) pairs."""
        return len(self._journal.entries)

    def _is_ready(self, role: Role) -> bool:
        return any(process.role is role and process.state == "ready" for process in self.process_table.processes)

    def on_process_table(self, process_table: ProcessTable) -> None:
        """Take the process table; whatever died takes nothing with it that is not submitted again."""
        self.process_table = process_table
        for process in process_table.processes:
            name = process_name(process.role, process.rank)
            before = self._epochs.get(name)
            self._epochs[name] = process.epoch
            if before is not None and process.epoch > before:
                self._on_restart(process.role, name)
        if self.is_accepting:
            self._first_ready.set()

    def _on_restart(self, role: Role, name: str) -> None:
        if role is Role.TOKENIZER:
            self._encodes.send_all(name)
        elif role is Role.SCHEDULER:
            self._submit_all(self._journal.replay_all(self._context.clock.now()))
        elif role is Role.DETOK:
            self._submit_all(self._journal.replay_all(self._context.clock.now(), name))

    def _submit_all(self, submits: list[Submit]) -> None:
        for submit in submits:
            self._context.send(self._scheduler, submit)

    # Requests

    async def generate(self, request: GenerateRequest) -> OutputStream:
        """Tokenize and queue a request; returns once every choice is accepted.

        Raises RequestError with the status to answer if it is refused. Cancelling it frees everything.
        """
        if self.is_draining:
            raise RequestError(503, "draining", "The server is shutting down.", None, 1.0)
        await self._started()
        job = self._encodes.send(request.prompt, request.params)
        stream = OutputStream(self, request.rid or Rid(os.urandom(16)), request.n)
        submit = partial(self._submit, request, stream)
        self._encodes.expect(job, request.deadline_s, submit, stream.fail)
        try:
            await stream.accepted()
        except BaseException:
            if self._streams.get(stream.rid) is stream:
                self.abort(stream.rid)
            raise
        finally:
            self._encodes.end(job.job)
        return stream

    async def _started(self) -> None:
        """Wait a moment for the first readiness: the ready line may be read before the table has come here."""
        if self._first_ready.is_set():
            return
        try:
            async with asyncio.timeout(START_GRACE_S):
                await self._first_ready.wait()
        except TimeoutError:
            raise RequestError(503, "engine_starting", "The engine is starting.", None, 2.0) from None

    def _submit(self, request: GenerateRequest, stream: OutputStream, encoded: Encoded) -> None:
        """Journal and submit every choice of a request, unless nobody waits for it any more."""
        if stream.is_settled:
            return
        if stream.rid in self._streams:
            error = RequestError(400, "invalid_value", "A request with this id is in progress.", "request_id")
            stream.fail(error)
            return
        stream.encode(encoded)
        self._streams[stream.rid] = stream
        now = self._context.clock.now()
        deadline_s = None if request.deadline_s is None else now + request.deadline_s
        try:
            for choice in range(request.n):
                submit = self._submit_frame(request, stream.rid, choice, encoded)
                self._journal.add(submit, stream, deadline_s, now)
                self._context.send(self._scheduler, submit)
        except FrameError:
            stream.fail(RequestError(400, "invalid_value", "The request is too long to be passed on."))

    def _submit_frame(self, request: GenerateRequest, rid: Rid, choice: int, encoded: Encoded) -> Submit:
        return Submit(
            rid,
            choice,
            0,
            self._context.name,
            process_name(Role.DETOK, rid[0] % self._context.config.server.detok_procs),
            encoded.ids,
            b"",
            encoded.params,
            request.priority,
            request.tenant,
            request.cache_salt,
            request.routing_key,
            request.weight,
            request.deadline_s,
        )

    def abort(self, rid: Rid) -> None:
        """Give a request up. Idempotent."""
        stream = self._streams.pop(rid, None)
        if stream is None:
            return
        for choice in range(stream.choices):
            self._journal.remove(rid, choice)
        self._context.send(self._scheduler, Abort(rid))

    def choices_left(self, rid: Rid) -> int:
        """Return how many choices of a request have not ended."""
        stream = self._streams.get(rid)
        if stream is None:
            return 0
        return sum((rid, choice) in self._journal.entries for choice in range(stream.choices))

    async def ask(self, what: str, argument: str = "") -> bytes:
        """Ask the scheduler a question (frames.Ask); returns JSON. Raises RequestError 503 if it does not answer."""
        self._last_ask += 1
        ask_id = self._last_ask
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asks[ask_id] = answer
        try:
            self._context.send(self._scheduler, Query(ask_id, self._context.name, what, argument))
            async with asyncio.timeout(ASK_TIMEOUT_S):
                return await answer
        except TimeoutError:
            raise RequestError(503, "engine_restarting", "The scheduler did not answer.", None, 2.0) from None
        finally:
            del self._asks[ask_id]

    # Frames

    def on_frame(self, source: Source, frame: Any) -> None:
        """Take one frame."""
        match frame:
            case Delta():
                self._on_delta(frame)
            case Accepted():
                self._on_accepted(frame)
            case Encoded() | EncodeFailed():
                self._encodes.take(frame)
            case Rejected():
                error = RequestError(frame.status, frame.code, frame.message, None, frame.retry_after_s)
                self._on_failed(frame.rid, frame.choice, frame.attempt, error)
            case Failed():
                error = RequestError(frame.status, frame.code, frame.message)
                self._on_failed(frame.rid, frame.choice, frame.attempt, error)
            case HeldRequests():
                self._on_held_requests(frame)
            case QueryReply():
                answer = self._asks.get(frame.ask)
                if answer is not None and not answer.done():
                    answer.set_result(frame.body)
            case Snapshot():
                self.snapshots[process_name(frame.role, frame.rank)] = frame

    def _on_accepted(self, frame: Accepted) -> None:
        entry = self._journal.entries.get((frame.rid, frame.choice))
        if entry is not None and entry.submit.attempt == frame.attempt:
            entry.is_accepted = True
            entry.owner.accept(frame.choice, frame.max_new_tokens)

    def _on_delta(self, delta: Delta) -> None:
        now = self._context.clock.now()
        take = self._journal.take
        for item in delta.items:
            try:
                taken = take(item, now)
            except Gap:
                self._on_gap(self._journal.entries[item.rid, item.choice], now)
                continue
            if taken is not None:
                entry, item = taken
                if not entry.is_accepted:
                    # Output implies acceptance; the word itself was lost, or comes last.
                    entry.is_accepted = True
                    entry.owner.accept(item.choice, entry.submit.params.max_new_tokens or 0)
                if item.finish is not None:
                    self._on_finish(item)
                entry.owner.deliver([Output(item.choice, unpack_ids(item.ids), item.text, item.logprobs, item.finish)])

    def _on_gap(self, entry: Entry[OutputStream], now: float) -> None:
        """Output is missing or contradicts what was delivered: submit again, but not for ever without any progress."""
        entry.stall_replays += 1
        if entry.stall_replays > MAX_STALL_REPLAYS:
            self._give_up(entry, RequestError(500, "internal_error", "The request's output cannot be continued."))
        else:
            self._context.send(self._scheduler, self._journal.replay(entry, now))

    def _on_finish(self, item: DeltaItem) -> None:
        self._journal.remove(item.rid, item.choice)
        if not self.choices_left(item.rid):
            self._streams.pop(item.rid, None)

    def _on_failed(self, rid: Rid, choice: int, attempt: int, error: RequestError) -> None:
        entry = self._journal.entries.get((rid, choice))
        if entry is not None and entry.submit.attempt == attempt:
            self._give_up(entry, error)

    def _give_up(self, entry: Entry[OutputStream], error: RequestError) -> None:
        if entry.submit.rid in self._streams:
            self.abort(entry.submit.rid)
            entry.owner.fail(error)

    def _on_held_requests(self, held: HeldRequests) -> None:
        now = self._context.clock.now()
        if not self.is_accepting and not self.is_draining:
            # A role is coming back: nothing can be expected to move, and its return replays what it held.
            for entry in self._journal.entries.values():
                entry.progress_s = now
        again, hopeless = self._journal.lost(held.held, now)
        for entry in again:
            self._context.send(self._scheduler, self._journal.replay(entry, now))
        for entry in hopeless:
            self._give_up(entry, RequestError(500, "internal_error", "The request stalled repeatedly."))

    # Life

    async def run(self) -> None:
        """Send the live set each second, until cancelled."""
        while True:
            await asyncio.sleep(LIVE_REQUESTS_S)
            self.send_live_requests()

    def send_live_requests(self) -> None:
        """Tell the scheduler what is alive here; its answer shows what was lost."""
        self._context.send(self._scheduler, LiveRequests(self._context.name, self._journal.live_requests()))

    async def drain(self, limit_s: float) -> None:
        """Refuse new requests and wait for the live ones; what is left after `limit_s` fails with 503 draining."""
        self._is_stopping = True
        deadline = self._context.clock.now() + limit_s
        while self._streams and self._context.clock.now() < deadline:
            await asyncio.sleep(0.02)
        for entry in list(self._journal.entries.values()):
            self._give_up(entry, RequestError(503, "draining", "The server is shutting down."))

    def journal_metrics(self) -> Metrics:
        """Metrics of the journal."""
        journal = self._journal
        return Metrics(
            {"api_live_requests": float(len(journal.entries))},
            {
                "api_replays": float(journal.replays),
                "api_stale_items": float(journal.stale_items),
                "api_replay_divergences": float(journal.divergences),
            },
        )
