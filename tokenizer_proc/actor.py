"""The shell of the tokenizer process: jobs run one at a time in a thread, so that heartbeats go on.

Owns the queue of jobs; keeps nothing about a job once it is answered. Jobs and replies cross between loop and thread
through one queue and one callback. A job of ids, which are only checked, is answered by the loop itself if no other
job waits.
"""

import asyncio
import logging
import os
import queue
import resource
import threading
from collections import Counter
from pathlib import Path

from quartet.checkpoint.tokenizer_files import tokenizer_folder
from quartet.runtime.actor import Context, Metrics
from quartet.wire.codec import Source
from quartet.wire.frames import (
    ChatPrompt,
    Encode,
    Encoded,
    EncodeFailed,
    IdsPrompt,
    ProcessTable,
    TextPrompt,
    TokenizerInbound,
)
from tokenizer_proc.chat_template import ChatTemplate
from tokenizer_proc.job import Encodings
from tokenizer_proc.tokenizer import TextEncoder

log = logging.getLogger(__name__)

JOB_DEADLINE_S = 10.0
MAX_QUEUED_JOBS = 4096
_SECONDS_PER_BYTE = 1e-5
_BYTES_AT_ONCE = 4 * 16384
"""Ids that the loop checks itself: well below a millisecond's work."""
_SPARE_MEMORY_BYTES = 4 << 30


class TokenizerActor:
    """Actor of the role TOKENIZER. Refuses a job with 503 when MAX_QUEUED_JOBS wait."""

    inbound = TokenizerInbound
    is_threaded = False

    def __init__(self, context: Context) -> None:
        self._context = context
        self._jobs: queue.SimpleQueue[Encode | None] = queue.SimpleQueue()
        self._pending = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._counters: Counter[str] = Counter()
        self._encodings: Encodings | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> dict[str, str | int | float]:
        """Load tokenizer and template; raises ModelError if either is missing or damaged."""
        # Jobs run one at a time; the library's own threads would only add memory.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        config = self._context.config
        encoder = TextEncoder(tokenizer_folder(config))
        template = ChatTemplate(config.require_model().chat_template, encoder.names)
        _limit_memory()
        self._loop = asyncio.get_running_loop()
        self._encodings = Encodings(config, encoder, template)
        self._thread = threading.Thread(target=self._work, name="encode", daemon=True)
        self._thread.start()
        return {"chat": "yes" if config.require_model().chat_template else "no"}

    def on_frame(self, source: Source, frame: Encode) -> None:
        """Answer a job, or queue it for the thread."""
        if self._pending >= MAX_QUEUED_JOBS:
            self._counters["tokenizer_refused_jobs"] += 1
            message = "Too many prompts wait to be tokenized; try again."
            self._context.send(frame.reply_to, EncodeFailed(frame.job, 503, "queue_full", message))
            return
        if not self._pending and _is_quick(frame):
            self._send(frame.reply_to, self._answer(frame))
            return
        self._pending += 1
        self._is_idle.clear()
        self._jobs.put(frame)

    def on_batch_end(self) -> None:
        """Nothing is gathered over a burst: each job is queued as it arrives."""

    def on_process_table(self, process_table: ProcessTable) -> None:
        """Destinations are process names, which restarts do not change."""

    def metrics(self) -> Metrics:
        """Jobs that wait or run, and how many were answered, failed or refused."""
        counters = {name: float(count) for name, count in self._counters.items()}
        return Metrics({"tokenizer_pending_jobs": float(self._pending)}, counters)

    async def drain(self, limit_s: float) -> None:
        """Answer every accepted job."""
        try:
            async with asyncio.timeout(limit_s):
                await self._is_idle.wait()
        except TimeoutError:
            log.warning("%d jobs were not answered before the end", self._pending)

    async def close(self) -> None:
        """End the thread after its current job; a job that never ends does not keep the process alive."""
        self._jobs.put(None)

    def _work(self) -> None:
        """Answer jobs until close. Runs in the thread."""
        loop = self._loop
        assert loop is not None
        while True:
            job = self._jobs.get()
            if job is None:
                return
            self._context.set_phase("encode", JOB_DEADLINE_S + _SECONDS_PER_BYTE * _size_bytes(job))
            answer = self._answer(job)
            self._context.progress()
            if self._jobs.empty():
                self._context.set_phase("idle")
            loop.call_soon_threadsafe(self._answered, job.reply_to, answer)

    def _answer(self, job: Encode) -> Encoded | EncodeFailed:
        """Return the reply to a job, also after an unexpected exception. Runs in the thread, or in the loop while the
        thread is idle."""
        encodings = self._encodings
        assert encodings is not None
        try:
            return encodings.answer(job)
        except Exception as error:
            # Prompt text stays out of the log, so no message and no stack.
            log.error("job %d failed: %s", job.job, type(error).__name__)
            return EncodeFailed(job.job, 500, "internal_error", "The prompt could not be tokenized.")

    def _answered(self, reply_to: str, answer: Encoded | EncodeFailed) -> None:
        self._pending -= 1
        if not self._pending:
            self._is_idle.set()
        self._send(reply_to, answer)

    def _send(self, reply_to: str, answer: Encoded | EncodeFailed) -> None:
        self._counters["tokenizer_jobs" if isinstance(answer, Encoded) else "tokenizer_failed_jobs"] += 1
        self._context.send(reply_to, answer)


def _is_quick(job: Encode) -> bool:
    prompt = job.prompt
    return isinstance(prompt, IdsPrompt) and not prompt.is_echoed and len(prompt.ids) <= _BYTES_AT_ONCE


def _size_bytes(job: Encode) -> int:
    prompt = job.prompt
    if isinstance(prompt, ChatPrompt):
        return len(prompt.messages) + len(prompt.tools or b"")
    return len(prompt.text) if isinstance(prompt, TextPrompt) else len(prompt.ids)


def _limit_memory() -> None:
    """Bound the address space, so that a chat template without bounds raises MemoryError instead of swapping."""
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = used + _SPARE_MEMORY_BYTES
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (OSError, ValueError) as error:
        log.warning("the memory of chat templates is not bounded: %s", error)
