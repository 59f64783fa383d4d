"""The Encode jobs of one api process: each is sent again until it is answered, or given up. Sans-IO.

A job has two callbacks of its request. Exactly one of them is called, while the answer is handled, so that the frames
that follow from it leave at once.
"""

import collections
import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from quartet.client.processes import exempt
from quartet.client.request import GenerateRequest
from quartet.client.trials import Trials
from quartet.quarantine import Quarantine, fingerprint
from quartet.runtime.core import SUPERVISOR_NAME, Sent
from quartet.wire.errors import RequestError
from quartet.wire.frames import CancelEncode, Encode, Encoded, EncodeFailed, ProcessStatus
from quartet.wire.ids import Role, process_name

RETRY_S = 15.0
TRIES = 4
KILLS_ON_TRIAL = 2

OnEncoded = Callable[[Encoded, float], list[Sent]]
OnError = Callable[[RequestError], None]


@dataclass(slots=True)
class _Job:
    """A job without an answer so far. `deadline_s` is absolute."""

    frame: Encode
    deadline_s: float | None
    on_encoded: OnEncoded
    on_error: OnError
    tries: int = 1


class EncodeJobs:
    """Jobs that are not answered yet.

    Args:
        name: the address that answers go to.
        tokenizers: how many tokenizer processes share the jobs.
        last_job: jobs are numbered from the next one on.
        quarantine: refuses jobs like those that have ended their tokenizer.
    """

    def __init__(self, name: str, tokenizers: int, last_job: int, quarantine: Quarantine) -> None:
        self._name = name
        self._tokenizers = tokenizers
        self._jobs: dict[int, _Job] = {}
        self._due: list[tuple[float, int]] = []
        """When to look at which job; entries of answered jobs are passed over."""
        self._last_job = last_job
        self._trials: collections.defaultdict[str, Trials[int]] = collections.defaultdict(
            lambda: Trials(0, KILLS_ON_TRIAL)
        )
        """By tokenizer: after a death its jobs are sent again one at a time."""
        self._quarantine = quarantine

    def __len__(self) -> int:
        return len(self._jobs)

    def start(
        self,
        request: GenerateRequest,
        deadline_s: float | None,
        now: float,
        on_encoded: OnEncoded,
        on_error: OnError,
    ) -> tuple[int, list[Sent]]:
        """Begin a job; returns its number and what to send.

        `on_error` is called if the job is refused, or not answered by `deadline_s` (absolute) or in TRIES tries.
        Raises RequestError for a job like one that has ended its tokenizer.
        """
        self._quarantine.check(msgspec.msgpack.encode(request.prompt), request.params, now)
        self._last_job += 1
        frame = Encode(self._last_job, self._name, request.prompt, request.params, request.tenant, request.names_tokens)
        self._jobs[frame.job] = _Job(frame, deadline_s, on_encoded, on_error)
        heapq.heappush(self._due, (now + RETRY_S, frame.job))
        if deadline_s is not None:
            heapq.heappush(self._due, (deadline_s, frame.job))
        tokenizer = self._tokenizer_of(frame.job)
        return frame.job, self._send(tokenizer, [frame.job]) if self._trials[tokenizer].may_start(frame.job) else []

    def _tokenizer_of(self, job: int) -> str:
        return process_name(Role.TOKENIZER, job % self._tokenizers)

    def _send(self, tokenizer: str, jobs: Iterable[int]) -> list[Sent]:
        return [(tokenizer, self._jobs[job].frame) for job in jobs]

    def on_restart(self, process: ProcessStatus, now: float) -> list[Sent]:
        """A process has died and starts again. Of a tokenizer: return the jobs for it, one at a time, and fail one that
        is at fault."""
        if process.role is not Role.TOKENIZER:
            return []
        tokenizer = process_name(process.role, process.rank)
        held = {job: 0 for job in self._jobs if self._tokenizer_of(job) == tokenizer}
        again, at_fault = self._trials[tokenizer].on_death(held, process.last_end)
        for job_id in at_fault:
            frame = self._jobs[job_id].frame
            key = fingerprint(msgspec.msgpack.encode(frame.prompt), frame.params)
            self._give_up(self._jobs[job_id], self._quarantine.refuse(key, "tokenizer", now))
        pinned: list[Sent] = [(SUPERVISOR_NAME, exempt(process))] if at_fault else []
        return [*self._send(tokenizer, again), *pinned]

    def take(self, answer: Encoded | EncodeFailed, now: float) -> list[Sent]:
        """Take an answer; one to a job that has ended is ignored."""
        job = self._jobs.pop(answer.job, None)
        if job is None:
            return []
        released = self._release(answer.job)
        if isinstance(answer, EncodeFailed):
            job.on_error(RequestError(answer.status, answer.code, answer.message, answer.param))
            return released
        return [*job.on_encoded(answer, now), *released]

    def _release(self, job: int) -> list[Sent]:
        """A job has ended; returns those that have waited for its end."""
        tokenizer = self._tokenizer_of(job)
        return self._send(tokenizer, self._trials[tokenizer].end(job))

    def end(self, job_id: int) -> list[Sent]:
        """Forget a job without a call of its callbacks, and tell its tokenizer. Idempotent."""
        if self._jobs.pop(job_id, None) is None:
            return []
        return [(self._tokenizer_of(job_id), CancelEncode(job_id, self._name)), *self._release(job_id)]

    def fail_all(self, error: RequestError) -> None:
        """End every job with an error."""
        for job in list(self._jobs.values()):
            self._give_up(job, error)

    def next_deadline(self) -> float | None:
        """Return when a job must be looked at next."""
        while self._due and self._due[0][1] not in self._jobs:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def tick(self, now: float) -> list[Sent]:
        """Send again what has not been answered (a frame can be lost without its tokenizer's death), or give it up."""
        sent: list[Sent] = []
        while self._due and self._due[0][0] <= now:
            _, job_id = heapq.heappop(self._due)
            job = self._jobs.get(job_id)
            if job is None:
                continue
            tokenizer = self._tokenizer_of(job_id)
            if job.deadline_s is not None and job.deadline_s <= now:
                sent += self._give_up(job, RequestError(408, "deadline_exceeded", "The request's deadline has passed."))
            elif self._trials[tokenizer].is_held(job_id):
                heapq.heappush(self._due, (now + RETRY_S, job_id))
            elif job.tries == TRIES:
                unanswered = RequestError(503, "engine_restarting", "No tokenizer has answered.", None, 2.0)
                sent += self._give_up(job, unanswered)
            else:
                job.tries += 1
                heapq.heappush(self._due, (now + RETRY_S, job_id))
                sent += self._send(tokenizer, [job_id])
        return sent

    def _give_up(self, job: _Job, error: RequestError) -> list[Sent]:
        sent = self.end(job.frame.job)
        job.on_error(error)
        return sent
