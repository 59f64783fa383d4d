"""A model on two ranks, as real processes: whichever rank dies, all streams go on and are those of one rank."""

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from quartet import LLM, SamplingParams
from tests.golden.oracles import FOLDER
from tests.support.client import events
from tests.support.server import Server, alive

pytestmark = pytest.mark.e2e
MODEL, TOKENIZER = FOLDER / "models" / "llama_tied", FOLDER / "models" / "qwen3"
TOKENS, LIMIT_S = 160, 60.0
PROMPTS = [[3 + (11 * i + 5 * k) % 500 for i in range(6 + 30 * k)] for k in range(4)]
TOPOLOGY = {"worker-0", "worker-1"}


def serve(*flags: str, env: dict[str, str] | None = None) -> Server:
    """Return a launch on two ranks."""
    common = ("--tokenizer-path", str(TOKENIZER), "--dtype", "float32", "--max-total-tokens", "1024")
    return Server(str(MODEL), "--tp-size", "2", *common, *flags, env=env)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """The device of the ranks; on CUDA each has a GPU of its own."""
    if request.param == "cuda":
        import torch

        if torch.cuda.device_count() < 2:
            pytest.skip("two ranks need two GPUs")
    return str(request.param)


@pytest.fixture(scope="module")
def expected(device: str) -> list[list[int]]:
    """The greedy ids of one rank."""
    llm = LLM(str(MODEL), tokenizer_path=str(TOKENIZER), dtype="float32", device=device, max_total_tokens=4096)
    answers = llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_new_tokens=TOKENS, ignore_eos=True))
    return [[*answer.ids] for answer in answers]


@pytest.fixture(scope="module")
def server(device: str) -> Iterator[Server]:
    with serve("--device", device) as it:
        yield it


async def ids_of(server: Server, prompt: list[int], counts: list[int], number: int, tokens: int = TOKENS) -> list[int]:
    """Stream a completion to its end and return its token ids; `counts[number]` follows their number."""
    body = {"model": "llama_tied", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    body |= {"stream": True, "return_token_ids": True}
    found: list[int] = []
    timeout = aiohttp.ClientTimeout(total=2 * LIMIT_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(server.url + "/v1/completions", json=body) as response,
    ):
        assert response.status == 200, await response.text()
        async for data in events(response):
            if data == "[DONE]":
                return found
            chunk: dict[str, Any] = json.loads(data)
            assert "error" not in chunk, chunk
            for choice in chunk["choices"]:
                found += choice.get("token_ids") or []
            counts[number] = len(found)
    raise AssertionError("the stream has no end")


async def streams(server: Server, kills: list[tuple[int, str, signal.Signals]]) -> list[list[int]]:
    """Stream all prompts at once; signal a process when the streams have so many tokens together."""
    counts = [0] * len(PROMPTS)
    running = [asyncio.create_task(ids_of(server, prompt, counts, n)) for n, prompt in enumerate(PROMPTS)]
    for tokens, name, number in kills:
        while sum(counts) < tokens:
            assert not all(one.done() for one in running), counts
            await asyncio.sleep(0.005)
        await asyncio.to_thread(server.kill, name, number)
    return await asyncio.gather(*running)


def listening(pids: list[int]) -> set[str]:
    """Return the local IPv4 addresses on which processes listen, as the kernel writes them."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(str(entry.readlink()))
            except OSError:
                continue
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


async def test_streams_outlive_each_rank_and_are_those_of_one(server: Server, expected: list[list[int]]) -> None:
    before = server.topology()
    assert before.keys() >= TOPOLOGY and all(before[name]["state"] == "ready" for name in TOPOLOGY)
    assert any("on 2 x " in line for line in server.output)
    assert listening(server.processes()) == {"0100007F"}, "all on loopback"
    kills = [(150, "worker-1", signal.SIGKILL), (400, "worker-0", signal.SIGKILL)]
    assert await streams(server, kills) == expected
    server.wait_until(server.is_complete, LIMIT_S)
    after = server.topology()
    for name in TOPOLOGY:
        assert after[name]["epoch"] == before[name]["epoch"] + 2 and after[name]["restarts"] == 2, name
        assert after[name]["pid"] != before[name]["pid"]
    assert after["worker-1"]["last_cause"] == "signal SIGKILL of worker-0"
    metrics = server.get("/metrics")[1]
    for rank in (0, 1):
        assert f'quartet_process_up{{model_name="llama_tied",rank="{rank}",role="worker"}} 1.0' in metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TOPOLOGY))
async def test_a_rank_that_hangs_is_ended_with_the_one_that_waits_for_it(
    server: Server, expected: list[list[int]], name: str
) -> None:
    before = server.topology()
    assert await streams(server, [(200, name, signal.SIGSTOP)]) == expected
    server.wait_until(server.is_complete, LIMIT_S)
    after = server.topology()
    assert all(after[one]["restarts"] == before[one]["restarts"] + 1 for one in TOPOLOGY)
    assert any(f"{name} (pid {before[name]['pid']}) hangs" in line for line in server.output)


@pytest.mark.slow
async def test_ranks_that_die_while_they_start_find_each_other(server: Server, expected: list[list[int]]) -> None:
    """Each death comes while the other ranks wait for the one that dies, or have not yet ended themselves."""
    kills = [(100, "worker-0", signal.SIGKILL)] + [(100, f"worker-{n % 2}", signal.SIGKILL) for n in (1, 0, 1)]
    assert await streams(server, kills) == expected
    server.wait_until(server.is_complete, LIMIT_S)
    epochs = {server.topology()[name]["epoch"] for name in TOPOLOGY}
    assert len(epochs) == 1


def test_no_rank_outlives_a_drain(server: Server) -> None:
    pids = server.processes()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(20) == 0
    assert not alive(pids) and not server.leftovers()


@pytest.mark.slow
def test_no_rank_outlives_the_supervisor() -> None:
    with serve("--device", "cpu") as it:
        pids = it.processes()
        it.process.kill()
        it.process.wait(10)
        it.wait_until(lambda: not alive(pids), 10.0)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu"], indirect=True)
async def test_the_kernels_and_graph_runners_of_a_gpu_on_two_ranks(
    expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Triton's interpreter, with collectives between the kernels; a step is the function that a graph captures."""
    monkeypatch.setattr("tests.support.server.START_LIMIT_S", 280.0)
    small = ("--cuda-graph-max-bs", "2", "--max-running-requests", "2", "--context-length", "64")
    with serve("--device", "cpu", "--attention-backend", "triton", *small, env={"TRITON_INTERPRET": "1"}) as it:
        counts = [0]
        assert await ids_of(it, PROMPTS[0], counts, 0, tokens=8) == expected[0][:8]
