"""Requests, budgets and half-way states as the examples of the scheduling rules give them: name(I, O, M)."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import msgspec

from quartet.wire.config import SchedulerConfig
from quartet.wire.frames import Query, QueryReply, SamplingParams, Submit, pack_ids
from quartet.wire.ids import Epoch, Rid
from quartet.wire.urgency import urgency_of
from scheduler_proc.core.admission import PrefillAdder
from scheduler_proc.core.events import WorkerUp
from scheduler_proc.core.kv import KvCache
from scheduler_proc.core.prefill import PrefillBatch
from scheduler_proc.core.request import Request, RequestState
from scheduler_proc.core.scheduler import Scheduler
from tests.support.core_rig import EOS, VOCAB, CoreRig
from tests.support.strict_worker import continuation

DEFAULTS = SchedulerConfig()


def own_tokens(number: int, count: int) -> list[int]:
    """Return tokens that no other number shares."""
    return [number * 10_000 + i + 1 for i in range(count)]


def request(
    prompt: int | list[int],
    output: int = 0,
    max_new: int = 8,
    number: int = 1,
    priority: int | None = None,
    config: SchedulerConfig = DEFAULTS,
    **params: Any,
) -> Request:
    """Make a waiting request (I, O, M); `number` is its arrival, its rid, and keeps its tokens its own."""
    ids = own_tokens(number, prompt) if isinstance(prompt, int) else prompt
    rid = Rid(number.to_bytes(16, "big"))
    sampling = SamplingParams(max_new_tokens=max_new, **params)
    outputs = pack_ids([90 + i for i in range(output)])
    submit = Submit(rid, 0, 0, "api-0", "detok-0", pack_ids(ids), outputs, sampling, priority)
    made = Request(submit, max_new, (EOS,), number, number, 0.0)
    made.urgency = urgency_of(priority, config)
    return made


def match_and_lock(kv: KvCache, made: Request) -> int:
    """Lock what the tree has of a request, as the prefill pass does."""
    return kv.match_and_lock(made.lease, made.key()[:-4], made.namespace, made.urgency)


class Room:
    """Stands in for the KV cache where an example says no more than how many tokens can be had."""

    def __init__(self, tokens: int, page_size: int = 1, is_sharing: bool = True) -> None:
        self.tokens, self.page_size, self.is_sharing = tokens, page_size, is_sharing
        self.windows = ()

    def reachable_tokens(self) -> int:
        return self.tokens

    def sole_tokens(self, lease: Any) -> int:
        return len(lease.pages) * self.page_size


def adder(
    room: Any, running: list[Request] | None = None, ratio: float = 1.0, chunk: int = -1, mixed_rows: int = 0,
    **config: Any,
) -> PrefillAdder:  # fmt: skip
    """Return the budget of a pass; `room` is Room or KvCache."""
    return PrefillAdder(SchedulerConfig(**config), room, running or [], ratio, chunk, mixed_rows)


def books(budget: PrefillAdder) -> tuple[float, float]:
    """Return (total_off, rem_total), rounded as the examples are."""
    return round(budget.total_offset, 6), round(budget.remaining_total(), 6)


class Bench:
    """A scheduler whose batch is laid out by hand: no worker, no steps, unless a test starts them.

    Args:
        pages: of the pool.
        config: further fields of SchedulerConfig.
    """

    def __init__(self, pages: int, page_size: int = 1, slots: int = 8, context: int = 1 << 20, **config: Any) -> None:
        config.setdefault("chunked_prefill_size", -1)
        self.config = SchedulerConfig(max_running_requests=slots, **config)
        self.scheduler = Scheduler(self.config, page_size, context, (EOS,))
        self.scheduler.handle(WorkerUp(Epoch(1), pages, slots, True), 0.0)
        self.queue, self.batch, self.kv = self.scheduler._queue, self.scheduler._batch, self.scheduler._kv
        self.in_flight, self.table = self.scheduler._in_flight, self.scheduler._table
        self.delivery, self.counters = self.scheduler._delivery, self.scheduler._counters
        self.ratio, self.prefill, self.retraction = (
            self.scheduler._ratio,
            self.scheduler._prefill,
            self.scheduler._retraction,
        )
        self.names: dict[int, str] = {}

    def request(self, name: str, prompt: int | list[int], output: int, max_new: int, **fields: Any) -> Request:
        """Make a request that the scheduler knows, in no place yet."""
        made = request(prompt, output, max_new, self.table.next_seq(), config=self.config, **fields)
        self.queue._number(made)
        self.table._by_rid[made.rid] = {0: made}
        self.names[id(made)] = name
        return made

    def wait(self, name: str, prompt: int | list[int], output: int, max_new: int, **fields: Any) -> Request:
        """Put a request into the queue."""
        made = self.request(name, prompt, output, max_new, **fields)
        self.queue.add(made, 0.0)
        return made

    def run(
        self,
        name: str,
        prompt: int | list[int],
        output: int,
        max_new: int,
        num_computed_tokens: int | None = None,
        **fields: Any,
    ) -> Request:
        """Put a request into the running batch. Its KV reaches to C, by default I + O - 1; what the tree has of it is
        locked, the rest is private."""
        made = self.request(name, prompt, output, max_new, **fields)
        match_and_lock(self.kv, made)
        computed = made.total_tokens - 1 if num_computed_tokens is None else num_computed_tokens
        made.lease.num_computed_tokens = computed
        self.kv.extend(made.lease, computed)
        made.timeline.cached_tokens, made.timeline.started_s = 0, 0.0
        self.delivery.open(made, 0.0)
        self.batch.enter(made)
        made.launched = computed - made.prompt_tokens + 1
        made.in_flight = max(0, made.launched - output)
        made.move_to(RequestState.RUNNING)
        self.batch.running[made.generation] = made
        return made

    def cache(self, ids: list[int], urgency: int = 0) -> None:
        """Put a sequence into the tree, unlocked."""
        page_size = self.kv.page_size
        pages = self.kv.pool.allocate(len(ids) // page_size)
        present, _, _ = self.kv.tree.insert(pack_ids(ids), pages, 0, ("", ""), urgency)
        self.kv.pool.free(pages[: present // page_size])

    def leave_available(self, tokens: int) -> None:
        """Take pages away until `tokens` are available; the audit would object."""
        pool = self.kv.pool
        pool.allocate((pool.available_tokens - tokens) // self.kv.page_size)
        assert pool.available_tokens == tokens

    def form(self, step: int, **arguments: Any) -> PrefillBatch:
        """Run one prefill pass at time 0."""
        return self.prefill.form(step, 0.0, **arguments)

    def rows(self) -> list[Request]:
        return self.batch.rows()

    def waiting(self) -> str:
        """Return the names in the queue, in its order."""
        return " ".join(self.names[id(made)] for made in self.queue.waiting)

    def running(self) -> str:
        """Return the names in the batch, in its order."""
        return " ".join(self.names[id(made)] for made in self.batch.running.values())


def ask(scheduler: Scheduler, what: str, argument: str = "", now: float = 0.0) -> Any:
    """Return the decoded answer to a question."""
    sent = scheduler.handle(Query(1, "api-0", what, argument), now)
    (answer,) = [frame for _, frame in sent if isinstance(frame, QueryReply)]
    return json.loads(answer.body)


def timeline(rig: CoreRig, rid: Rid) -> dict[str, Any]:
    """Return what `timeline` says about the only choice of a request."""
    (choice,) = ask(rig.scheduler, "timeline", rid.hex(), rig.now)["choices"]
    assert isinstance(choice, dict)
    return choice


def events(rig: CoreRig, rid: Rid, what: str) -> list[dict[str, Any]]:
    """Return the events of one kind from a request's timeline."""
    return [event for event in timeline(rig, rid)["events"] if event["event"] == what]


def oracle(prompt: list[int], max_new: int, eos: int = EOS) -> list[int]:
    """Return the output that the strict worker gives."""
    return continuation(prompt, max_new, VOCAB, eos)


def prompt_that_ends_after(outputs: int, length: int = 3) -> list[int]:
    """Return a prompt whose output number `outputs` is the end of sequence, and none before."""
    for first in range(1, 10_000):
        prompt = [first, *range(2, length + 1)]
        if len(found := oracle(prompt, outputs + 1)) == outputs and found[-1] == EOS:
            return prompt
    raise AssertionError("no such prompt")


def steady(max_new: int) -> SamplingParams:
    """Return parameters of a request that only ends by length, and yet is reserved for by the ratio."""
    return SamplingParams(max_new_tokens=max_new, min_new_tokens=max_new)


@contextlib.contextmanager
def at_once(rig: CoreRig) -> Iterator[None]:
    """Have the scheduler take in one go what is submitted inside: no step is in flight yet."""
    rig.worker_lost()
    yield
    rig.worker_up()


def greedy(max_new: int, **params: Any) -> SamplingParams:
    """Return parameters of a request that only ends by length."""
    return msgspec.structs.replace(SamplingParams(max_new_tokens=max_new, ignore_eos=True), **params)
