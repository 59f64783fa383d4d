"""Runs the tokenizer's core in threads, one job after the other, so that the event loop keeps sending heartbeats.

Job and answer cross between loop and thread through one queue and one callback. A job of ids, which only have to be
checked, is answered by the loop at once if no other waits. A job whose grammar has to be compiled goes on to a queue
and a thread of its own: a compiler that takes a second delays those alone that wait for it, too.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from quartet.runtime.context import Context
from quartet.runtime.core import Metrics, Sent, TimelessCore
from quartet.wire.codec import Source
from quartet.wire.frames import CancelEncode, Encode, Encoded, EncodeFailed, IdsPrompt, TokenizerInbound
from tokenizer_proc.core import TokenizerCore
from tokenizer_proc.job_queue import Full, JobQueue, Waiting, size_bytes

JOB_DEADLINE_S = 10.0
_SECONDS_PER_BYTE = 1e-5
_BYTES_AT_ONCE = 4 * 16384
"""Ids that the loop checks itself: well below a millisecond's work."""


class JobThread(TimelessCore):
    """A core for the shell whose jobs are answered by another core in threads.

    Refuses a job with 503 when too many wait (tokenizer_proc.job_queue).
    """

    inbound: Any = TokenizerInbound

    def __init__(self, context: Context, core: TokenizerCore) -> None:
        self._context = context
        self._core = core
        self._loop = asyncio.get_running_loop()
        self._queue = JobQueue()
        self._grammars = JobQueue()
        self._refused = 0
        self._start("encode", self._queue, self._encode)
        self._start("grammar", self._grammars, self._compile)

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        """Answer a job at once, or queue it for the thread, which sends the answer."""
        if isinstance(frame, CancelEncode):
            self._queue.cancel((frame.reply_to, frame.job))
            self._grammars.cancel((frame.reply_to, frame.job))
        if not isinstance(frame, Encode) or (frame.reply_to, frame.job) in self._grammars:
            return []
        if not len(self._queue) and _is_quick(frame):
            sent = self._core.handle(source, frame, now)
            self._context.finished_work()
            return sent
        return self._put(self._queue, Waiting(source, frame, None))

    def is_idle(self) -> bool:
        """Say whether every job that was accepted has been answered."""
        return not self._pending()

    def metrics(self) -> Metrics:
        """Return jobs that wait or run, and what became of the others."""
        counters = {**self._core.metrics().counters, "tokenizer_refused_jobs": float(self._refused)}
        return Metrics({"tokenizer_pending_jobs": float(self._pending())}, counters)

    def close(self) -> None:
        """End the threads after their current jobs; a job that never ends does not hold up the process."""
        self._queue.close()
        self._grammars.close()

    def _pending(self) -> int:
        return len(self._queue) + len(self._grammars)

    def _put(self, queue: JobQueue, waiting: Waiting) -> list[Sent]:
        """Queue a job; returns the refusal of one for which there is no place."""
        job = waiting.job
        try:
            queue.put(*waiting)
        except Full:
            self._refused += 1
            message = "Too many prompts wait to be tokenized; try again."
            return [(job.reply_to, EncodeFailed(job.job, 503, "queue_full", message))]
        return []

    def _start(self, name: str, queue: JobQueue, work: Callable[[Waiting], None]) -> None:
        def run() -> None:
            while (taken := queue.take()) is not None:
                work(taken)

        threading.Thread(target=run, name=name, daemon=True).start()

    def _encode(self, waiting: Waiting) -> None:
        """Answer a job, or pass it on with all but its grammar. Runs in the thread for prompts."""
        context, core, job = self._context, self._core, waiting.job
        context.set_phase("encode", JOB_DEADLINE_S + _SECONDS_PER_BYTE * size_bytes(job))
        answer = core.attempt(job, core.answer if job.params.grammar is None else core.encode)
        finished = core.check_known_grammar(job, answer) if isinstance(answer, Encoded) else answer
        context.progress()
        context.finished_work()
        if not self._queue.has_waiting:
            context.set_phase("idle")
        if finished is not None:
            self._in_loop(self._answered, self._queue, job, core.answered(job, finished))
        elif isinstance(answer, Encoded):
            self._in_loop(self._encoded, waiting._replace(encoded=answer))

    def _compile(self, waiting: Waiting) -> None:
        """Answer a job that is encoded, its grammar compiled. Runs in the thread for grammars."""
        core, job, encoded = self._core, waiting.job, waiting.encoded
        assert encoded is not None
        answer = core.attempt(job, lambda job: core.check_grammar(job, encoded))
        self._context.finished_work()
        self._in_loop(self._answered, self._grammars, job, core.answered(job, answer))

    def _in_loop(self, callback: Callable[..., None], *arguments: object) -> None:
        """Have the loop call `callback`. A loop that has ended, with a job in progress, takes no answer."""
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _encoded(self, waiting: Waiting) -> None:
        self._answered(self._queue, waiting.job, self._put(self._grammars, waiting))

    def _answered(self, queue: JobQueue, job: Encode, sent: list[Sent]) -> None:
        queue.answered(job)
        for destination, answer in sent:
            self._context.send(destination, answer)


def _is_quick(job: Encode) -> bool:
    prompt = job.prompt
    is_checked = isinstance(prompt, IdsPrompt) and not prompt.is_echoed and len(prompt.ids) <= _BYTES_AT_ONCE
    return is_checked and job.params.grammar is None
