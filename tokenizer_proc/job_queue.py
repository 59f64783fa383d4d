"""The Encode jobs that wait, between the event loop, which puts them in, and a thread, which takes them out.

Each api process, tenant and size has a queue of its own, and the queues take turns: prompts of megabytes delay a short
one by one job of theirs, and a tenant with many jobs delays another tenant's by one.
"""

import collections
import threading
from typing import NamedTuple

from quartet.wire.codec import Source
from quartet.wire.frames import ChatPrompt, Encode, Encoded, TextPrompt
from quartet.wire.ids import Epoch

MAX_JOBS = 8192
MAX_BYTES = 128 << 20
LARGE_BYTES = 1 << 16
"""A prompt of more bytes waits among the large ones of its tenant."""

Name = tuple[str, int]
"""The api process that a job is answered to, and its number there."""
Owner = tuple[str, str]
"""Api process and tenant."""


class Full(Exception):
    """No place is left for a job of this owner."""


class Waiting(NamedTuple):
    """A job, and its answer as far as there is one: only its grammar is missing."""

    source: Source
    job: Encode
    encoded: Encoded | None


class JobQueue:
    """Jobs by name, in the order of their turns. One owner holds at most half of the jobs and of the bytes.

    Methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._jobs: dict[Name, Waiting] = {}
        self._turns: collections.OrderedDict[tuple[Owner, bool], collections.deque[Name]] = collections.OrderedDict()
        self._owned: collections.Counter[Owner] = collections.Counter()
        self._owned_bytes: collections.Counter[Owner] = collections.Counter()
        self._epochs: dict[str, Epoch] = {}
        self._taken: set[Name] = set()
        self._is_closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """Return how many jobs wait or are not answered."""
        return len(self._jobs) + len(self._taken)

    @property
    def has_waiting(self) -> bool:
        """Whether a job waits to be taken."""
        return bool(self._jobs)

    def __contains__(self, name: Name) -> bool:
        """Return whether the job waits or is not answered."""
        return name in self._jobs or name in self._taken

    def put(self, source: Source, job: Encode, encoded: Encoded | None = None) -> None:
        """Queue a job, unless it is known already; raises Full if there is no place for it."""
        name, owner, size = (job.reply_to, job.job), (job.reply_to, job.tenant), size_bytes(job)
        with self._changed:
            self._drop_older(job.reply_to, source.epoch)
            if name in self:
                return
            if self._owned[owner] >= MAX_JOBS // 2 or self._owned_bytes[owner] + size > MAX_BYTES // 2:
                raise Full
            if len(self._jobs) >= MAX_JOBS or self._owned_bytes.total() + size > MAX_BYTES:
                raise Full
            self._jobs[name] = Waiting(source, job, encoded)
            self._owned[owner] += 1
            self._owned_bytes[owner] += size
            self._turns.setdefault((owner, size > LARGE_BYTES), collections.deque()).append(name)
            self._changed.notify()

    def take(self) -> Waiting | None:
        """Wait for a job; it is known until it is `answered`. None when the queue is closed."""
        with self._changed:
            while not self._jobs and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return None
            name = self._next()
            self._taken.add(name)
            return self._remove(name)

    def answered(self, job: Encode) -> None:
        """Forget a job that was taken."""
        with self._changed:
            self._taken.discard((job.reply_to, job.job))

    def cancel(self, name: Name) -> None:
        """Take out a job that waits. Idempotent."""
        with self._changed:
            if name in self._jobs:
                self._remove(name)

    def close(self) -> None:
        """Have `take` return None from this time on."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _next(self) -> Name:
        """Return the job whose turn it is; cancelled ones are passed over."""
        while True:
            key, names = self._turns.popitem(last=False)
            while names:
                name = names.popleft()
                if name in self._jobs:
                    if names:
                        self._turns[key] = names
                    return name

    def _remove(self, name: Name) -> Waiting:
        waiting = self._jobs.pop(name)
        job = waiting.job
        owner = (job.reply_to, job.tenant)
        self._owned[owner] -= 1
        self._owned_bytes[owner] -= size_bytes(job)
        if not self._owned[owner]:
            del self._owned[owner], self._owned_bytes[owner]
        return waiting

    def _drop_older(self, reply_to: str, epoch: Epoch) -> None:
        """Drop the jobs of an api process that has died, when its successor's first job comes."""
        known = self._epochs.setdefault(reply_to, epoch)
        if epoch > known:
            self._epochs[reply_to] = epoch
            for name in [name for name in self._jobs if name[0] == reply_to]:
                self._remove(name)


def size_bytes(job: Encode) -> int:
    """Return the size of a job's prompt and grammar; characters count as bytes."""
    prompt, grammar, size = job.prompt, job.params.grammar, 0
    while grammar is not None:
        size += len(grammar.source)
        grammar = grammar.alternative
    if isinstance(prompt, ChatPrompt):
        return size + len(prompt.messages) + len(prompt.tools or b"") + len(prompt.template_args or b"")
    return size + len(prompt.text if isinstance(prompt, TextPrompt) else prompt.ids)
