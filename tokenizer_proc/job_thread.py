"""Runs the tokenizer's core in a thread, one job after the other, so that the event loop keeps sending heartbeats.

Job and answer cross between loop and thread through one queue and one callback. A job of ids, which only have to be
checked, is answered by the loop at once if no other waits.
"""

import asyncio
import threading
from typing import Any

from quartet.runtime.context import Context
from quartet.runtime.core import Metrics, Sent, TimelessCore
from quartet.wire.codec import Source
from quartet.wire.frames import CancelEncode, Encode, EncodeFailed, IdsPrompt, TokenizerInbound
from tokenizer_proc.core import TokenizerCore
from tokenizer_proc.job_queue import Full, JobQueue, size_bytes

JOB_DEADLINE_S = 10.0
_SECONDS_PER_BYTE = 1e-5
_BYTES_AT_ONCE = 4 * 16384
"""Ids that the loop checks itself: well below a millisecond's work."""


class JobThread(TimelessCore):
    """A core for the shell whose jobs are answered by another core in a thread.

    Refuses a job with 503 when too many wait (tokenizer_proc.job_queue).
    """

    inbound: Any = TokenizerInbound

    def __init__(self, context: Context, core: TokenizerCore) -> None:
        self._context = context
        self._core = core
        self._loop = asyncio.get_running_loop()
        self._queue = JobQueue()
        self._refused = 0
        self._thread = threading.Thread(target=self._work, name="encode", daemon=True)
        self._thread.start()

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        """Answer a job at once, or queue it for the thread, which sends the answer."""
        if isinstance(frame, CancelEncode):
            self._queue.cancel((frame.reply_to, frame.job))
        if not isinstance(frame, Encode):
            return []
        if not len(self._queue) and _is_quick(frame):
            sent = self._core.handle(source, frame, now)
            self._context.finished_work()
            return sent
        try:
            self._queue.put(source, frame)
        except Full:
            self._refused += 1
            message = "Too many prompts wait to be tokenized; try again."
            return [(frame.reply_to, EncodeFailed(frame.job, 503, "queue_full", message))]
        return []

    def is_idle(self) -> bool:
        """Say whether every job that was accepted has been answered."""
        return not len(self._queue)

    def metrics(self) -> Metrics:
        """Return jobs that wait or run, and what became of the others."""
        counters = {**self._core.metrics().counters, "tokenizer_refused_jobs": float(self._refused)}
        return Metrics({"tokenizer_pending_jobs": float(len(self._queue))}, counters)

    def close(self) -> None:
        """End the thread after its current job; a job that never ends does not hold up the process."""
        self._queue.close()

    def _work(self) -> None:
        """Answer jobs until the queue is closed. Runs in the thread."""
        context = self._context
        while (taken := self._queue.take()) is not None:
            source, job = taken
            context.set_phase("encode", JOB_DEADLINE_S + _SECONDS_PER_BYTE * size_bytes(job))
            sent = self._core.handle(source, job, context.clock.now())
            context.progress()
            context.finished_work()
            if not self._queue.has_waiting:
                context.set_phase("idle")
            self._loop.call_soon_threadsafe(self._answered, job, sent)

    def _answered(self, job: Encode, sent: list[Sent]) -> None:
        self._queue.answered(job)
        for destination, answer in sent:
            self._context.send(destination, answer)


def _is_quick(job: Encode) -> bool:
    prompt = job.prompt
    return isinstance(prompt, IdsPrompt) and not prompt.is_echoed and len(prompt.ids) <= _BYTES_AT_ONCE
