"""The queue of Encode jobs: turns by api process, tenant and size, bounds, cancellation."""

import pytest

from quartet.wire.codec import Source
from quartet.wire.frames import Encode, SamplingParams, TextPrompt
from quartet.wire.ids import Epoch, Role
from tokenizer_proc import job_queue
from tokenizer_proc.job_queue import LARGE_BYTES, Full, JobQueue

PARAMS = SamplingParams()
LARGE = "x" * (LARGE_BYTES + 1)


def put(queue: JobQueue, number: int, tenant: str = "", text: str = "hi", epoch: int = 1, api: str = "api-0") -> None:
    queue.put(Source(Role.API, 0, Epoch(epoch)), Encode(number, api, TextPrompt(text), PARAMS, tenant))


def taken(queue: JobQueue, count: int) -> list[int]:
    """Take and answer that many jobs; returns their numbers."""
    numbers = []
    for _ in range(count):
        found = queue.take()
        assert found is not None
        queue.answered(found[1])
        numbers.append(found[1].job)
    return numbers


def test_a_short_prompt_waits_for_one_large_one_at_most() -> None:
    queue = JobQueue()
    for number in range(60):
        put(queue, number, text=LARGE)
    put(queue, 100)
    put(queue, 101)
    assert taken(queue, 5) == [0, 100, 1, 101, 2]


def test_tenants_and_api_processes_take_turns() -> None:
    queue = JobQueue()
    for number in range(5):
        put(queue, number, "flood")
    put(queue, 10, "other")
    put(queue, 11, "other")
    put(queue, 20, api="api-1")
    assert taken(queue, 8) == [0, 10, 20, 1, 11, 2, 3, 4]


def test_one_owner_holds_half_of_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_queue, "MAX_JOBS", 8)
    queue = JobQueue()
    for number in range(4):
        put(queue, number, "flood")
    with pytest.raises(Full):
        put(queue, 4, "flood")
    for number in range(10, 14):
        put(queue, number, "other")
    with pytest.raises(Full):
        put(queue, 20, "third")
    assert len(taken(queue, 8)) == 8 and not len(queue)


def test_the_queue_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_queue, "MAX_BYTES", 4 * len(LARGE))
    queue = JobQueue()
    put(queue, 1, text=LARGE)
    put(queue, 2, text=LARGE)
    with pytest.raises(Full):
        put(queue, 3)
    put(queue, 4, "other")
    queue.cancel(("api-0", 1))
    queue.cancel(("api-0", 1))
    put(queue, 5)
    assert taken(queue, 3) == [2, 4, 5]


def test_a_job_is_known_until_it_is_answered() -> None:
    queue = JobQueue()
    put(queue, 1)
    put(queue, 1)
    found = queue.take()
    assert found is not None and len(queue) == 1
    put(queue, 1)
    assert not queue.has_waiting
    queue.answered(found[1])
    assert not len(queue)


def test_the_jobs_of_a_dead_api_process_are_dropped() -> None:
    queue = JobQueue()
    put(queue, 1)
    put(queue, 2, api="api-1")
    put(queue, 1 << 41, epoch=2)
    assert sorted(taken(queue, 2)) == [2, 1 << 41]


def test_a_closed_queue_gives_nothing() -> None:
    queue = JobQueue()
    queue.close()
    put(queue, 1)
    assert queue.take() is None
