"""The async face of the engine: `await engine.generate(request)`, then output as it comes.

Used by the api process, and by anything else that runs as one. Its state is ClientCore's; here are the futures, queues
and timeouts of an event loop.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Protocol

from quartet.client.adoption import Adopted
from quartet.client.core import SCHEDULER, ClientCore
from quartet.client.request import GenerateRequest, Output
from quartet.runtime import failpoints
from quartet.runtime.clock import Clock
from quartet.runtime.core import Metrics, Sent
from quartet.wire.errors import FrameError, RequestError
from quartet.wire.frames import Encoded, ProcessTable, Snapshot, Written, unpack_ids
from quartet.wire.ids import Rid

QUERY_TIMEOUT_S = 5.0
START_GRACE_S = 2.0
POLL_S = 0.02

OnOutput = Callable[[list[Output]], None]
OnError = Callable[[RequestError], None]


class Sender(Protocol):
    """Sends what a direct call of the core has returned (runtime.shell.Shell)."""

    def send(self, sent: Iterable[Sent]) -> None:
        """Send the frames; raises FrameError for one that is too big."""
        ...


class OutputStream:
    """A request in progress. Take its output by `subscribe` (push) or by iteration (pull), not both.

    Output waits here until one of them is used.
    """

    def __init__(self, engine: "AsyncEngine", rid: Rid, choices: int) -> None:
        self.rid = rid
        self.num_choices = choices
        self.max_new_tokens = 0
        self._engine = engine
        self._encoded: Encoded | None = None
        self._unaccepted = set(range(choices))
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._early: list[Output] = []
        self._error: RequestError | None = None
        self._on_output: OnOutput = self._early.extend
        self._on_error: OnError | None = None

    @property
    def encoded(self) -> Encoded:
        """What the tokenizer has made of the prompt; only of a request that is accepted."""
        assert self._encoded is not None
        return self._encoded

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
        if failpoints.active is not None:
            on_output = failpoints.active.before("before_write", on_output)
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

        left = self._engine.choices_left(self) + sum(1 for output in self._early if output.finish)
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
        self._engine.abort(self)

    async def accepted(self) -> None:
        """Wait until every choice is queued; raises RequestError if one is refused."""
        await self._accepted

    # ClientCore calls these

    @property
    def is_settled(self) -> bool:
        """Whether the request has been accepted or refused, or its caller was cancelled."""
        return self._accepted.done()

    def on_encoded(self, encoded: Encoded) -> None:
        """Keep what the tokenizer has made of the prompt."""
        self._encoded = encoded

    def on_accepted(self, choice: int, max_new_tokens: int) -> None:
        """Note that one choice is queued."""
        self.max_new_tokens = max_new_tokens
        self._unaccepted.discard(choice)
        if not self._unaccepted and not self._accepted.done():
            self._accepted.set_result(None)

    def on_outputs(self, outputs: list[Output]) -> None:
        """Pass output on."""
        self._on_output(outputs)

    def on_error(self, error: RequestError) -> None:
        """Pass the end of the request on."""
        self._error = error
        if not self._accepted.done():
            self._accepted.set_exception(error)
        elif self._on_error is not None:
            self._on_error(error)


class AsyncEngine:
    """The engine as asyncio programs use it.

    Args:
        core: the live requests; frames and time reach it through the shell that runs it.
        sender: that shell.
        clock: the shell's clock.
    """

    def __init__(self, core: ClientCore, sender: Sender, clock: Clock) -> None:
        self._core = core
        self._sender = sender
        self._clock = clock

    @property
    def is_accepting(self) -> bool:
        """Whether every role is ready and the service is not draining."""
        return self._core.processes.is_accepting

    @property
    def is_alive(self) -> bool:
        """Whether the engine was ready once: it is up or recovering."""
        return self._core.processes.is_alive

    @property
    def is_draining(self) -> bool:
        """Whether the service is shutting down."""
        return self._core.processes.is_draining

    @property
    def live_count(self) -> int:
        """Live (rid, choice) pairs."""
        return self._core.live_count

    @property
    def process_table(self) -> ProcessTable:
        """The process table as last received."""
        return self._core.processes.table

    @property
    def snapshots(self) -> dict[str, Snapshot]:
        """The newest snapshot of each process, by process name."""
        return self._core.processes.snapshots

    def journal_metrics(self) -> Metrics:
        """Return the metrics of the live requests."""
        return self._core.metrics()

    async def generate(self, request: GenerateRequest) -> OutputStream:
        """Tokenize and queue a request; returns once every choice is accepted.

        Raises RequestError with the status to answer if it is refused. Cancelling it frees everything.
        """
        await self._started()
        stream = OutputStream(self, request.rid or Rid(os.urandom(16)), request.n)
        try:
            self._sender.send(self._core.generate(request, stream, self._clock.now()))
            await stream.accepted()
        except FrameError:
            self.abort(stream)
            raise RequestError(400, "invalid_value", "The request is too long to be passed on.") from None
        except BaseException:
            self.abort(stream)
            raise
        return stream

    async def encode(self, request: GenerateRequest) -> Encoded:
        """Have a request's prompt tokenized and its parameters checked; nothing is generated.

        Raises RequestError with the status to answer if it is refused. Cancelling it cancels the job.
        """
        await self._started()
        answer: asyncio.Future[Encoded] = asyncio.get_running_loop().create_future()

        def on_encoded(encoded: Encoded, now: float) -> list[Sent]:
            if not answer.done():
                answer.set_result(encoded)
            return []

        def on_error(error: RequestError) -> None:
            if not answer.done():
                answer.set_exception(error)

        now = self._clock.now()
        deadline_s = None if request.deadline_s is None else now + request.deadline_s
        job, sent = self._core.encodes.start(request, deadline_s, now, on_encoded, on_error)
        try:
            self._sender.send(sent)
            return await answer
        except FrameError:
            raise RequestError(400, "invalid_value", "The request is too long to be passed on.") from None
        finally:
            self._sender.send(self._core.encodes.end(job))

    def adopt(self, adopted: Adopted) -> OutputStream:
        """Go on with a request of this process's predecessor; its stream has the output that is still to come."""
        stream = OutputStream(self, adopted.rid, len(adopted.choices))
        stream.on_encoded(adopted.encoded)
        for choice in range(stream.num_choices):
            stream.on_accepted(choice, 0)
        self._sender.send(self._core.adopt(adopted, stream, self._clock.now()))
        return stream

    async def _started(self) -> None:
        """Wait a moment for the first readiness: the ready line may be read before the table has arrived here.

        Raises RequestError 503 if there is none, and while the service is shutting down.
        """
        if self.is_draining:
            raise RequestError(503, "draining", "The server is shutting down.", None, 1.0)
        deadline_s = asyncio.get_running_loop().time() + START_GRACE_S
        while not self._core.processes.is_alive:
            if asyncio.get_running_loop().time() >= deadline_s:
                raise RequestError(503, "engine_starting", "The engine is starting.", None, 2.0)
            await asyncio.sleep(POLL_S)

    def abort(self, stream: OutputStream) -> None:
        """Give a request up. Idempotent."""
        self._sender.send(self._core.abort(stream, self._clock.now()))

    def choices_left(self, stream: OutputStream) -> int:
        """Return how many choices of a request have not ended."""
        return self._core.choices_left(stream)

    def note_written(self, rid: Rid, seconds: float) -> None:
        """Tell the scheduler that a response was written so many seconds after its last output had come."""
        self._sender.send([(SCHEDULER, Written(rid, seconds))])

    async def query(self, what: str, argument: str = "", tenant: str | None = None) -> bytes:
        """Ask the scheduler a question (frames.Query); returns JSON. Raises RequestError 503 without a reply."""
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def on_reply(body: bytes) -> None:
            if not reply.done():
                reply.set_result(body)

        number, sent = self._core.queries.start(what, argument, tenant, on_reply)
        try:
            self._sender.send(sent)
            async with asyncio.timeout(QUERY_TIMEOUT_S):
                return await reply
        except TimeoutError:
            raise RequestError(503, "engine_restarting", "The scheduler did not answer.", None, 2.0) from None
        finally:
            self._core.queries.end(number)

    async def drain(self, limit_s: float) -> None:
        """Refuse new requests and wait for the live ones; what is left after `limit_s` fails with 503 draining."""
        self._core.processes.is_stopping = True
        deadline_s = self._clock.now() + limit_s
        while self._core.live_count and self._clock.now() < deadline_s:
            await asyncio.sleep(POLL_S)
        error = RequestError(503, "draining", "The server is shutting down.")
        self._sender.send(self._core.fail_all(error, self._clock.now()))
