"""The Encode jobs of one edge: each is sent again until it is answered, or given up.

Owned by the Engine, on its loop. A job knows nothing of its request but two callbacks, of which one is called, once, in
the very turn of the loop in which the answer arrives, so that what follows from it leaves at once.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from quartet.runtime.actor import Context
from quartet.wire.errors import RequestError
from quartet.wire.frames import ChatPrompt, Encode, Encoded, EncodeFailed, IdsPrompt, SamplingParams, TextPrompt
from quartet.wire.ids import Role, process_name

RETRY_S = 15.0
TRIES = 4

OnEncoded = Callable[[Encoded], None]
OnError = Callable[[RequestError], None]


@dataclass(slots=True)
class _Job:
    """One job on its way: how often it was sent, and whom its end is told."""

    frame: Encode
    on_encoded: OnEncoded
    on_error: OnError
    tries: int = 1
    again: asyncio.TimerHandle | None = None
    deadline: asyncio.TimerHandle | None = None


class EncodeJobs:
    """Jobs that are not answered yet. Needs a Context for its name, its configuration and its links."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._jobs: dict[int, _Job] = {}
        self._last_id = 0

    def send(self, prompt: TextPrompt | IdsPrompt | ChatPrompt, params: SamplingParams) -> Encode:
        """Send a job and return it, to be passed to `expect` in the same turn of the loop: whatever is made ready for
        its answer is made while the tokenizer works. Raises FrameError if it fits into no frame."""
        self._last_id += 1
        frame = Encode(self._last_id, self._context.name, prompt, params)
        self._context.send(self._tokenizer(frame), frame)
        return frame

    def expect(self, frame: Encode, deadline_s: float | None, on_encoded: OnEncoded, on_error: OnError) -> None:
        """Have the answer to a job told; or that it was refused, or not answered in time or to several tries."""
        job = self._jobs[frame.job] = _Job(frame, on_encoded, on_error)
        loop = asyncio.get_running_loop()
        job.again = loop.call_later(RETRY_S, self._send_again, job)
        if deadline_s is not None:
            error = RequestError(408, "deadline_exceeded", "The request's deadline has passed.")
            job.deadline = loop.call_later(deadline_s, self._fail, frame.job, error)

    def _send_again(self, job: _Job) -> None:
        """A frame can be lost without its tokenizer dying."""
        if job.tries == TRIES:
            error = RequestError(503, "engine_restarting", "No tokenizer has answered.", None, 2.0)
            self._fail(job.frame.job, error)
            return
        job.tries += 1
        self._context.send(self._tokenizer(job.frame), job.frame)
        job.again = asyncio.get_running_loop().call_later(RETRY_S, self._send_again, job)

    def send_all(self, tokenizer: str) -> None:
        """Send what a tokenizer that has died took with it to its successor."""
        for job in self._jobs.values():
            if self._tokenizer(job.frame) == tokenizer:
                self._context.send(tokenizer, job.frame)

    def _tokenizer(self, frame: Encode) -> str:
        return process_name(Role.TOKENIZER, frame.job % self._context.config.server.tokenizer_procs)

    def take(self, answer: Encoded | EncodeFailed) -> None:
        """Take an answer; a second one to the same job, or one that nobody waits for, is ignored."""
        if isinstance(answer, EncodeFailed):
            self._fail(answer.job, RequestError(answer.status, answer.code, answer.message, answer.param))
            return
        job = self.end(answer.job)
        if job is not None:
            job.on_encoded(answer)

    def _fail(self, job_id: int, error: RequestError) -> None:
        job = self.end(job_id)
        if job is not None:
            job.on_error(error)

    def end(self, job_id: int) -> _Job | None:
        """Forget a job, of which nobody will be told any more. Idempotent."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            for timer in (job.again, job.deadline):
                if timer is not None:
                    timer.cancel()
        return job
