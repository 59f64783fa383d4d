"""A launch with a standby: whichever of worker, standby and holder dies, streams go on and are exact."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.client import Answer, stream_completion
from tests.support.server import Server, alive

pytestmark = pytest.mark.e2e
BODY = {
    "model": "smollm2",
    "prompt": "The three primary colours are",
    "max_tokens": 60,
    "temperature": 0.8,
    "seed": 11,
    "ignore_eos": True,
}
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def simulated() -> Iterator[Server]:
    with Server("--standby", "--simulated-worker", "--simulated-step-ms", "4") as server:
        yield server


@pytest.fixture(scope="module")
def real() -> Iterator[Server]:
    with Server("--standby", "--dtype", "float32", "--max-total-tokens", "8192") as server:
        yield server


def wait_for_standby(server: Server) -> None:
    server.wait_until(lambda: server.topology()["standby-0"]["state"] == "ready", LIMIT_S)


async def killing(server: Server, *names: str) -> tuple[Answer, float]:
    """Stream, and kill one process after the other, some events apart; return the answer and the longest pause."""
    left, times = list(names), [time.monotonic()]

    async def on_event(answer: Answer) -> None:
        times.append(time.monotonic())
        if left and answer.events % 10 == 0:
            server.kill(left.pop(0), signal.SIGKILL)

    answer = await stream_completion(server.url, BODY, on_event)
    assert not left and answer.is_done and answer.finish == "length"
    return answer, max(later - earlier for earlier, later in itertools.pairwise(times))


async def check_takeover(server: Server) -> float:
    """Kill the worker; check that the standby has taken its place; return the longest pause in seconds."""
    calm = await stream_completion(server.url, BODY)
    wait_for_standby(server)
    before = server.topology()
    shaken, pause_s = await killing(server, "worker-0")
    after = server.topology()
    assert shaken.text == calm.text
    assert after["worker-0"]["pid"] == before["standby-0"]["pid"]
    assert after["worker-0"]["epoch"] == before["worker-0"]["epoch"] + 1
    assert after["worker-0"]["restarts"] == before["worker-0"]["restarts"] + 1
    assert after["standby-0"]["restarts"] == before["standby-0"]["restarts"], "it has not died"
    return pause_s


async def test_the_standby_takes_the_place_of_a_dead_worker(simulated: Server) -> None:
    for _ in range(2):
        await check_takeover(simulated)
    assert 'quartet_process_up{model_name="smollm2",rank="0",role="standby"}' in simulated.get("/metrics")[1]


async def test_a_second_death_before_the_next_standby_is_ready_is_an_ordinary_restart(simulated: Server) -> None:
    calm = await stream_completion(simulated.url, BODY)
    wait_for_standby(simulated)
    restarts = simulated.topology()["worker-0"]["restarts"]
    shaken, _ = await killing(simulated, "worker-0", "worker-0")
    assert shaken.text == calm.text
    assert simulated.topology()["worker-0"]["restarts"] == restarts + 2


async def test_the_death_of_the_standby_is_not_noticed(simulated: Server) -> None:
    calm = await stream_completion(simulated.url, BODY)
    wait_for_standby(simulated)
    before = simulated.topology()
    shaken, _ = await killing(simulated, "standby-0")
    assert shaken.text == calm.text
    assert simulated.topology()["worker-0"] | {"phase": ""} == before["worker-0"] | {"phase": ""}
    assert simulated.get("/ready")[0] == 200
    wait_for_standby(simulated)
    assert simulated.topology()["standby-0"]["restarts"] == before["standby-0"]["restarts"] + 1


@pytest.mark.parametrize("other", ["standby-0", "scheduler-0"])
async def test_worker_and_another_killed_together_start_again(simulated: Server, other: str) -> None:
    calm = await stream_completion(simulated.url, BODY)
    wait_for_standby(simulated)
    pids = [simulated.pid(name) for name in ("worker-0", other)]

    async def on_event(answer: Answer) -> None:
        if answer.events == 10:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)

    shaken = await stream_completion(simulated.url, BODY, on_event)
    assert shaken.text == calm.text and shaken.is_done
    wait_for_standby(simulated)


@pytest.mark.parametrize("name", ["tokenizer-0", "scheduler-0", "detok-0"])
async def test_the_other_processes_die_as_without_a_standby(simulated: Server, name: str) -> None:
    calm = await stream_completion(simulated.url, BODY)
    shaken, _ = await killing(simulated, name)
    assert shaken.text == calm.text
    simulated.wait_until(lambda: simulated.get("/ready")[0] == 200)


def test_a_drain_ends_standby_and_holder_too() -> None:
    with Server("--standby", "--simulated-worker") as server:
        wait_for_standby(server)
        check_end(server)


def check_end(server: Server) -> None:
    pids = server.processes()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    assert not alive(pids) and not server.leftovers()


@pytest.mark.slow
async def test_the_real_model_is_exact_across_a_takeover(real: Server) -> None:
    await check_takeover(real)


@pytest.mark.slow
async def test_the_real_model_is_exact_across_the_death_of_the_holder(real: Server) -> None:
    calm = await stream_completion(real.url, BODY)
    wait_for_standby(real)
    before = real.topology()
    shaken, _ = await killing(real, "weights-0")
    assert shaken.text == calm.text
    wait_for_standby(real)
    rows = real.topology()
    for name in ("weights-0", "worker-0", "standby-0"):
        assert rows[name]["restarts"] == before[name]["restarts"] + 1 and rows[name]["state"] == "ready"
    gauges = real.get("/metrics")[1]
    found = [line for line in gauges.splitlines() if line.startswith("quartet_worker_start_up_seconds{")]
    phases = {line.split('phase="')[1].split('"')[0] for line in found if 'process="worker-0"' in line}
    assert {"imports", "load", "warm_up"} <= phases


@pytest.mark.slow
def test_the_weights_are_in_memory_once_and_the_drain_frees_them() -> None:
    with Server("--standby", "--dtype", "float32", "--max-total-tokens", "8192") as server:
        wait_for_standby(server)
        descriptors = os.listdir(f"/proc/{server.pid('weights-0')}/fd")
        links = [os.readlink(f"/proc/{server.pid('weights-0')}/fd/{number}") for number in descriptors]
        assert sum("memfd:weights" in link for link in links) == 1
        for name in ("worker-0", "standby-0"):
            with open(f"/proc/{server.pid(name)}/maps") as maps:
                assert "memfd:weights" in maps.read()
        check_end(server)


def body_of(**changes: Any) -> dict[str, Any]:
    return {**BODY, **changes}


@pytest.mark.slow
async def test_many_streams_survive_a_takeover_of_the_real_model(real: Server) -> None:
    bodies = [body_of(prompt=f"Number {at} is", seed=at, max_tokens=30, temperature=at % 2 * 0.8) for at in range(6)]
    calm = await asyncio.gather(*(stream_completion(real.url, body) for body in bodies))
    wait_for_standby(real)
    pid = real.pid("worker-0")

    async def on_event(answer: Answer) -> None:
        if answer.events == 8:
            os.kill(pid, signal.SIGKILL)

    first = stream_completion(real.url, bodies[0], on_event)
    shaken = await asyncio.gather(first, *(stream_completion(real.url, body) for body in bodies[1:]))
    assert [answer.text for answer in shaken] == [answer.text for answer in calm]
