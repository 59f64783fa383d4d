"""The Encode jobs of one api process: each is sent again until it is answered, or given up. Sans-IO.

A job has two callbacks of its request. Exactly one of them is called, while the answer is handled, so that the frames
that follow from it leave at once.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from quartet.client.request import GenerateRequest
from quartet.runtime.core import Sent
from quartet.wire.errors import RequestError
from quartet.wire.frames import CancelEncode, Encode, Encoded, EncodeFailed
from quartet.wire.ids import Role, process_name

RETRY_S = 15.0
TRIES = 4

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
    """

    def __init__(self, name: str, tokenizers: int, last_job: int) -> None:
        self._name = name
        self._tokenizers = tokenizers
        self._jobs: dict[int, _Job] = {}
        self._due: list[tuple[float, int]] = []
        """When to look at which job; entries of answered jobs are passed over."""
        self._last_job = last_job

    def __len__(self) -> int:
        return len(self._jobs)

    def start(
        self,
        request: GenerateRequest,
        deadline_s: float | None,
        now: float,
        on_encoded: OnEncoded,
        on_error: OnError,
    ) -> tuple[int, Sent]:
        """Begin a job; returns its number and the frame to send.

        `on_error` is called if the job is refused, or not answered by `deadline_s` (absolute) or in TRIES tries.
        """
        self._last_job += 1
        frame = Encode(self._last_job, self._name, request.prompt, request.params, request.tenant)
        self._jobs[frame.job] = _Job(frame, deadline_s, on_encoded, on_error)
        heapq.heappush(self._due, (now + RETRY_S, frame.job))
        if deadline_s is not None:
            heapq.heappush(self._due, (deadline_s, frame.job))
        return frame.job, self._addressed(frame)

    def _addressed(self, frame: Encode | CancelEncode) -> Sent:
        return process_name(Role.TOKENIZER, frame.job % self._tokenizers), frame

    def send_all(self, tokenizer: str) -> list[Sent]:
        """Return the jobs that a tokenizer took with it when it died, for its successor."""
        sent = [self._addressed(job.frame) for job in self._jobs.values()]
        return [one for one in sent if one[0] == tokenizer]

    def take(self, answer: Encoded | EncodeFailed, now: float) -> list[Sent]:
        """Take an answer; one to a job that has ended is ignored."""
        job = self._jobs.pop(answer.job, None)
        if job is None:
            return []
        if isinstance(answer, EncodeFailed):
            job.on_error(RequestError(answer.status, answer.code, answer.message, answer.param))
            return []
        return job.on_encoded(answer, now)

    def end(self, job_id: int) -> list[Sent]:
        """Forget a job without a call of its callbacks, and tell its tokenizer. Idempotent."""
        if self._jobs.pop(job_id, None) is None:
            return []
        return [self._addressed(CancelEncode(job_id, self._name))]

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
            if job.deadline_s is not None and job.deadline_s <= now:
                sent += self._give_up(job, RequestError(408, "deadline_exceeded", "The request's deadline has passed."))
            elif job.tries == TRIES:
                unanswered = RequestError(503, "engine_restarting", "No tokenizer has answered.", None, 2.0)
                sent += self._give_up(job, unanswered)
            else:
                job.tries += 1
                heapq.heappush(self._due, (now + RETRY_S, job_id))
                sent.append(self._addressed(job.frame))
        return sent

    def _give_up(self, job: _Job, error: RequestError) -> list[Sent]:
        sent = self.end(job.frame.job)
        job.on_error(error)
        return sent
