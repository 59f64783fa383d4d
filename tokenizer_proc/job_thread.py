"""Runs the tokenizer's core in a thread, one job after the other, so that the event loop keeps sending heartbeats.

Job and answer cross between loop and thread through one queue and one callback. A job of ids, which only have to be
checked, is answered by the loop at once if no other waits.
"""

import asyncio
import queue
import threading
from typing import Any

from quartet.runtime.context import Context
from quartet.runtime.core import Metrics, Sent
from quartet.wire.codec import Source
from quartet.wire.frames import ChatPrompt, Encode, EncodeFailed, IdsPrompt, TextPrompt, TokenizerInbound
from tokenizer_proc.core import TokenizerCore

JOB_DEADLINE_S = 10.0
MAX_QUEUED_JOBS = 4096
_SECONDS_PER_BYTE = 1e-5
_BYTES_AT_ONCE = 4 * 16384
"""Ids that the loop checks itself: well below a millisecond's work."""


class JobThread:
    """A core for the shell whose jobs are answered by another core in a thread.

    Refuses a job with 503 when MAX_QUEUED_JOBS wait.
    """

    inbound: Any = TokenizerInbound

    def __init__(self, context: Context, core: TokenizerCore) -> None:
        self._context = context
        self._core = core
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[tuple[Source, Encode] | None] = queue.SimpleQueue()
        self._pending = 0
        self._refused = 0
        self._thread = threading.Thread(target=self._work, name="encode", daemon=True)
        self._thread.start()

    def handle(self, source: Source, frame: Any, now: float) -> list[Sent]:
        """Answer a job at once, or queue it for the thread, which sends the answer."""
        if not isinstance(frame, Encode):
            return []
        if self._pending >= MAX_QUEUED_JOBS:
            self._refused += 1
            message = "Too many prompts wait to be tokenized; try again."
            return [(frame.reply_to, EncodeFailed(frame.job, 503, "queue_full", message))]
        if not self._pending and _is_quick(frame):
            return self._core.handle(source, frame, now)
        self._pending += 1
        self._jobs.put((source, frame))
        return []

    def tick(self, now: float) -> list[Sent]:
        """Nothing depends on time."""
        return []

    def next_deadline(self) -> float | None:
        """Return None: nothing depends on time."""
        return None

    def is_idle(self) -> bool:
        """Say whether every job that was accepted has been answered."""
        return not self._pending

    def metrics(self) -> Metrics:
        """Return jobs that wait or run, and what became of the others."""
        counters = {**self._core.metrics().counters, "tokenizer_refused_jobs": float(self._refused)}
        return Metrics({"tokenizer_pending_jobs": float(self._pending)}, counters)

    def close(self) -> None:
        """End the thread after its current job; a job that never ends does not hold up the process."""
        self._jobs.put(None)

    def _work(self) -> None:
        """Answer jobs until told to end. Runs in the thread."""
        context = self._context
        while (queued := self._jobs.get()) is not None:
            source, job = queued
            context.set_phase("encode", JOB_DEADLINE_S + _SECONDS_PER_BYTE * _size_bytes(job))
            sent = self._core.handle(source, job, context.clock.now())
            context.progress()
            if self._jobs.empty():
                context.set_phase("idle")
            self._loop.call_soon_threadsafe(self._answered, sent)

    def _answered(self, sent: list[Sent]) -> None:
        self._pending -= 1
        for destination, answer in sent:
            self._context.send(destination, answer)


def _is_quick(job: Encode) -> bool:
    prompt = job.prompt
    return isinstance(prompt, IdsPrompt) and not prompt.is_echoed and len(prompt.ids) <= _BYTES_AT_ONCE


def _size_bytes(job: Encode) -> int:
    prompt = job.prompt
    if isinstance(prompt, ChatPrompt):
        return len(prompt.messages) + len(prompt.tools or b"")
    return len(prompt.text) if isinstance(prompt, TextPrompt) else len(prompt.ids)
