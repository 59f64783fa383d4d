"""Admission at the edge: what is too much is refused before it is read, with an estimate of when to come back."""

import asyncio
import io
import json
from typing import Any

import pytest
from error_shape import CHAT, COMPLETIONS, MESSAGES, assert_error
from fake_engine import MODEL, answer_words, stay_silent

from api_proc.server.admission import Admission
from api_proc.server.drain_rate import DrainRate
from quartet.runtime.clock import ManualClock
from quartet.wire.config import Config, SchedulerConfig, ServerConfig
from quartet.wire.errors import RequestError
from quartet.wire.frames import Snapshot
from quartet.wire.ids import Epoch, Role


class Rig:
    """An Admission whose snapshots and clock the test sets; entered requests stay until the test closes them."""

    def __init__(self, api_procs: int = 1, max_requests_per_key: int = 0, **scheduler: Any) -> None:
        self.snapshots: dict[str, Snapshot] = {}
        self.clock = ManualClock()
        self.entered: list[Any] = []
        config = Config(
            server=ServerConfig(api_procs=api_procs, max_requests_per_key=max_requests_per_key),
            scheduler=SchedulerConfig(**scheduler),
            resolved=MODEL,
        )
        self.admission = Admission(config, self.clock, lambda: self.snapshots, lambda: 0.0)

    def see(self, queued: int, slots: int, compiling: int = 0) -> None:
        gauges = {"num_queue_reqs": float(queued), "max_running_reqs": float(slots)}
        gauges["num_grammar_queue_reqs"] = float(compiling)
        self.snapshots["scheduler-0"] = Snapshot(Role.SCHEDULER, 0, Epoch(1), gauges, {})

    def enter(self, choices: int = 1, priority: int | None = None, tenant: str = "") -> Any:
        """Admit a request; returns its block and its place. Raises RequestError as a handler would."""
        block = self.admission.enter(tenant)
        place = block.__enter__()
        try:
            place.claim(choices, priority)
        except RequestError as error:
            block.__exit__(type(error), error, None)
            raise
        self.entered.append(block)
        return block, place

    def refusal(self, **more: Any) -> RequestError:
        with pytest.raises(RequestError) as caught:
            self.enter(**more)
        return caught.value


def test_as_many_are_admitted_as_the_scheduler_can_hold() -> None:
    rig = Rig(max_queued_requests=3)
    rig.see(queued=0, slots=2)
    admitted = [rig.enter() for _ in range(5)]
    assert (rig.refusal().status, rig.refusal().code) == (503, "queue_full")
    admitted[0][1].on_output()
    assert rig.refusal().code == "queue_full", "a request that runs still has its slot"
    admitted[0][0].__exit__(None, None, None)
    rig.enter()
    assert (rig.admission.num_admitted, rig.admission.num_waiting) == (5, 5)


def test_every_choice_counts() -> None:
    rig = Rig(max_queued_requests=6, max_running_requests=2)
    rig.enter(choices=4)
    assert rig.refusal(choices=5).code == "queue_full"
    rig.enter(choices=4)
    assert rig.refusal().code == "queue_full"
    assert rig.admission.num_admitted == 8


def test_after_a_refusal_by_the_scheduler_only_a_queue_is_admitted_until_it_has_shrunk() -> None:
    rig = Rig(max_queued_requests=4)
    rig.see(queued=4, slots=100)
    admitted = [rig.enter() for _ in range(6)]
    admitted[0][1].on_refused(RequestError(503, "queue_full", "full", None, 1.0))
    assert rig.refusal().code == "queue_full"
    for _, place in admitted[:3]:
        place.on_output()
    rig.enter()
    assert rig.refusal().code == "queue_full"
    rig.see(queued=1, slots=100, compiling=2)
    assert rig.refusal().code == "queue_full"
    rig.see(queued=2, slots=100)
    for _ in range(20):
        rig.enter()


def test_an_urgent_request_is_not_refused_at_the_edge() -> None:
    rig = Rig(max_queued_requests=1, max_running_requests=1, enable_priority_scheduling=True)
    rig.enter(priority=5)
    rig.enter(priority=7)
    assert rig.refusal(priority=5).code == "queue_full"
    assert rig.refusal().code == "queue_full"
    _, urgent = rig.enter(priority=6)
    urgent.on_output()
    assert rig.admission.num_waiting == 2


def test_a_key_may_have_a_limit_of_its_own() -> None:
    rig = Rig(max_requests_per_key=2)
    first, _ = rig.enter(tenant="a")
    rig.enter(tenant="a", choices=3)
    error = rig.refusal(tenant="a")
    assert (error.status, error.code) == (429, "rate_limit_exceeded") and error.retry_after_s
    rig.enter(tenant="b")
    first.__exit__(None, None, None)
    rig.enter(tenant="a")


def test_large_bodies_have_a_budget_and_small_ones_need_none() -> None:
    rig = Rig()
    largest = ServerConfig().max_body_bytes
    places = [rig.enter()[1] for _ in range(3)]
    for place in places[:2]:
        place.hold(largest // 2)
        place.hold(largest)
    places[2].hold(1000)
    with pytest.raises(RequestError) as caught:
        places[2].hold(largest)
    assert (caught.value.status, caught.value.code) == (503, "queue_full")
    places[0].on_accepted()
    places[2].hold(largest)
    assert rig.admission.large_bytes == 2 * largest


def test_one_key_holds_half_of_the_large_bodies() -> None:
    rig = Rig()
    largest = ServerConfig().max_body_bytes
    (_, first), (_, second), (_, other) = (rig.enter(tenant=tenant) for tenant in ("a", "a", "b"))
    first.hold(largest)
    with pytest.raises(RequestError):
        second.hold(largest)
    other.hold(largest)
    first.on_accepted()
    second.hold(largest)


def test_nothing_is_left_of_what_has_ended() -> None:
    rig = Rig(enable_priority_scheduling=True, max_requests_per_key=9)
    blocks = [rig.enter(choices=2, priority=priority, tenant="t") for priority in range(4)]
    blocks[0][1].hold(1 << 20)
    blocks[1][1].on_output()
    blocks[1][1].on_output()
    for block, _ in blocks:
        block.__exit__(None, None, None)
    admission = rig.admission
    assert (admission.num_waiting, admission.num_admitted, admission.large_bytes) == (0, 0, 0)
    assert not admission._urgencies and not admission._tenants and not admission._large_of_tenant


def test_retry_after_is_the_time_in_which_the_queue_drains() -> None:
    clock, share = ManualClock(), [0.0]
    rate = DrainRate(clock, lambda: share[0])
    assert rate.seconds_to_drain(50) == 1.0
    for _ in range(100):
        clock.advance(0.25)
        rate.note(1)
    assert rate.seconds_to_drain(40) == pytest.approx(10.0, rel=0.15)
    share[0] = 1.0
    assert rate.seconds_to_drain(40) == pytest.approx(15.0, rel=0.15)
    assert rate.seconds_to_drain(4000) == 60.0
    share[0] = 0.0
    rate.begin()
    clock.advance(0.05)
    rate.note(1)
    assert rate.seconds_to_drain(40) == pytest.approx(4.0), "a queue that has just formed says little"
    clock.advance(20.0)
    assert rate.seconds_to_drain(40) == pytest.approx(20.0), "none leaves: as long as none has left"


async def test_a_refusal_comes_before_the_body_is_read_and_says_when_to_retry(make_api: Any) -> None:
    api = await make_api(scheduler=SchedulerConfig(max_queued_requests=1, max_running_requests=1))
    api.engine.script = stay_silent
    admitted = [asyncio.ensure_future(api.post(CHAT, {"messages": MESSAGES})) for _ in range(2)]
    async with asyncio.timeout(5):
        while len(api.engine.outputs) < 2:
            await asyncio.sleep(0.001)
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
    async with asyncio.timeout(5):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    writer.close()
    assert head.split()[1] == "503"
    assert 1 <= int(head.partition("retry-after: ")[2].split()[0]) <= 60
    assert len(api.engine.outputs) == 2
    for output in api.engine.outputs:
        output.finish_all()
    assert [(await one)[0] for one in admitted] == [200, 200]
    api.engine.script = answer_words


async def test_a_refusal_is_counted_by_its_code_and_leaves_no_place(make_api: Any) -> None:
    api = await make_api(scheduler=SchedulerConfig(max_queued_requests=2, max_running_requests=1))
    api.engine.script = stay_silent
    status, body, headers = await api.post(COMPLETIONS, {"prompt": ["a", "b"], "n": 2})
    assert status == 503 and int(headers["Retry-After"]) >= 1
    assert_error(body, "queue_full")
    assert api.service.stats.rejected["queue_full"] == 1
    assert not api.service.admission.num_admitted


async def test_a_body_that_holds_no_prompt_within_the_context_is_not_read(api: Any) -> None:
    body = io.BytesIO(json.dumps({"messages": [{"role": "user", "content": "x" * (2 << 20)}]}).encode())
    status, answer, _ = await api.post(CHAT, data=body)
    assert status == 413
    assert_error(answer, "request_too_large")
    assert not api.engine.outputs


async def test_a_body_that_is_on_its_way_takes_no_place(make_api: Any) -> None:
    api = await make_api(scheduler=SchedulerConfig(max_queued_requests=1, max_running_requests=1))
    slow = []
    for _ in range(8):
        _, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        slow.append(writer)
    await asyncio.sleep(0.05)
    assert not api.service.admission.num_admitted
    assert (await api.post(CHAT, {"messages": MESSAGES}))[0] == 200
    for writer in slow:
        writer.close()


async def test_a_burst_is_counted_before_any_of_it_is_tokenized(make_api: Any) -> None:
    """Heads and bodies that come together: as many are passed on as there is room for, whatever comes first."""
    api = await make_api(scheduler=SchedulerConfig(max_queued_requests=3, max_running_requests=1))
    api.engine.accept.clear()
    answers = [asyncio.ensure_future(api.post(CHAT, {"messages": MESSAGES})) for _ in range(20)]
    async with asyncio.timeout(10):
        while sum(answer.done() for answer in answers) < 16:
            await asyncio.sleep(0.005)
    assert {answer.result()[0] for answer in answers if answer.done()} == {503}
    api.engine.accept.set()
    assert sorted(status for status, _, _ in await asyncio.gather(*answers)) == [200] * 4 + [503] * 16
