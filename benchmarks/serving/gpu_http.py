"""nano-vllm's workload through HTTP: a launch with its real api process, loaded by several client processes.

Used by gpu_nano.py --http. A pass has all requests ready and connected before the clock starts, sends them at one
moment, and ends with the last byte of the last stream. Tokens are counted from the usage of each stream.
"""

import asyncio
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
from pathlib import Path
from typing import Any

from benchmarks.model_configs import ROOT, TOKENIZER
from benchmarks.serving.cpu_time import cpu_seconds
from benchmarks.serving.full_vocabulary import write_tokenizer
from benchmarks.serving.gpu_launch import describe, launched, make_config
from benchmarks.serving.gpu_traffic import NANO_TEMPERATURE, draw_ids, nano_lengths
from benchmarks.serving.http_load import HOST
from benchmarks.serving.served import ANSWER_LIMIT_S, get

READY_LIMIT_S, CONNECT_LIMIT_S, PASS_LIMIT_S = 300.0, 60.0, 300.0
START_DELAY_S = 0.1
SNAPSHOT_S = 1.5
WARM_UP = [(300, 8)] * 8
LATE_COMPILES = "quartet_worker_compiles_after_ready_total"

Body = dict[str, Any]


def run_http_launch(model: str, passes: int, clients: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Run nano passes over HTTP in one launch; the result is like that of gpu_launch.run_launch."""
    found: dict[str, Any] = {"results": []}
    with tempfile.TemporaryDirectory() as folder:
        vocab_size = make_config(model, {}).require_model().vocab_size
        write_tokenizer(TOKENIZER, vocab_size, Path(folder))
        port = free_port()
        served = {"model.tokenizer_path": folder, **settings, "server.port": port}
        with launched("--served", model, served) as supervisor:
            try:
                found["ready_s"] = wait_until_ready(port, supervisor)
                result: dict[str, Any] = {
                    "kind": "nano",
                    "path": "http",
                    "clients": clients,
                    "passes": passes,
                    "passes_found": [],
                }
                found["results"].append(result)
                nano_over_http(port, passes, clients, result["passes_found"])
                found["compiles_after_ready"] = late_compiles(port)
            except (OSError, RuntimeError, TimeoutError, ValueError) as error:
                found["error"] = repr(error)
    return {**describe(model, settings), **found}


def free_port() -> int:
    """Return a free port."""
    with socket.create_server((HOST, 0)) as free:
        return int(free.getsockname()[1])


def wait_until_ready(port: int, supervisor: "subprocess.Popen[bytes]") -> float:
    """Return the seconds until /ready succeeds; raises TimeoutError, or RuntimeError if the launch ends."""
    started = time.monotonic()
    while time.monotonic() < started + READY_LIMIT_S:
        if supervisor.poll() is not None:
            raise RuntimeError(f"the launch ended with {supervisor.returncode} before it was ready")
        try:
            fetch(port, "/ready")
            return round(time.monotonic() - started, 2)
        except (urllib.error.URLError, OSError):
            time.sleep(0.02)
    raise TimeoutError(f"not ready after {READY_LIMIT_S:g} s")


def fetch(port: int, path: str) -> bytes:
    """Return the body of a GET; raises URLError for any status but 200."""
    return get(f"http://{HOST}:{port}{path}")


def process_ids(port: int) -> dict[str, int]:
    """Return the processes of the launch by name."""
    rows = json.loads(fetch(port, "/topology"))["processes"]
    return {f"{row['role']}-{row['rank']}": row["pid"] for row in rows}


def late_compiles(port: int) -> float:
    """Return how many kernels the worker compiled after it was ready, by a snapshot later than all requests."""
    time.sleep(SNAPSHOT_S)
    lines = fetch(port, "/metrics").decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(LATE_COMPILES))


def nano_over_http(port: int, passes: int, clients: int, found: list[dict[str, Any]]) -> None:
    """Add a record of each pass to `found`; raises RuntimeError if a stream fails."""
    draw = random.Random(2)
    asyncio.run(send_together(port, nano_bodies(draw, WARM_UP), clients))
    for _ in range(passes):
        bodies = nano_bodies(draw, nano_lengths())
        before = {name: cpu_seconds(pid) for name, pid in process_ids(port).items()}
        one = asyncio.run(send_together(port, bodies, clients))
        used = {name: round(cpu_seconds(pid) - before[name], 2) for name, pid in process_ids(port).items()}
        del one["pauses_s"]
        found.append({**one, "cpu_s": used})


def nano_bodies(draw: random.Random, lengths: list[tuple[int, int]]) -> list[Body]:
    """Return the bodies of requests with these numbers of prompt and output tokens."""
    return [
        {
            "prompt": draw_ids(draw, prompt),
            "max_tokens": output,
            "temperature": NANO_TEMPERATURE,
            "seed": draw.randrange(1 << 30),
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for prompt, output in lengths
    ]


async def send_together(port: int, bodies: list[Body], clients: int) -> dict[str, Any]:
    """Send all requests at one moment from `clients` processes; return tokens and seconds until the last ends."""
    shares = [bodies[number::clients] for number in range(clients)]
    command = (sys.executable, "-m", "benchmarks.serving.http_load")
    pipe = asyncio.subprocess.PIPE
    processes = [await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe) for _ in shares]
    try:
        async with asyncio.timeout(CONNECT_LIMIT_S):
            await asyncio.gather(*(_connect(*pair, port) for pair in zip(processes, shares, strict=True)))
        start_s = time.monotonic() + START_DELAY_S
        async with asyncio.timeout(PASS_LIMIT_S + ANSWER_LIMIT_S):
            counted = await asyncio.gather(*(_count(process, start_s) for process in processes))
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()
    return _sum(counted, start_s, len(bodies))


async def _connect(process: asyncio.subprocess.Process, bodies: list[Body], port: int) -> None:
    order = {"port": port, "path": "/v1/completions", "limit_s": PASS_LIMIT_S, "bodies": bodies}
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(order).encode() + b"\n")
    await process.stdin.drain()
    if await process.stdout.readline() != b"connected\n":
        raise RuntimeError("a client could not connect")


async def _count(process: asyncio.subprocess.Process, start_s: float) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{start_s}\n".encode())
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError("a client ended without a result")
    return dict(json.loads(line))


def _sum(counted: list[dict[str, Any]], start_s: float, wanted: int) -> dict[str, Any]:
    ended = sum(one["ended"] for one in counted)
    if ended < wanted:
        example = next((one["bad_ending"] for one in counted if one["bad_ending"]), "")
        raise RuntimeError(f"{wanted - ended} of {wanted} streams failed, for example: {example}")
    tokens = sum(one["tokens"] for one in counted)
    seconds = max(one["end_s"] for one in counted) - start_s
    return {
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_s": round(tokens / seconds),
        "events": sum(one["events"] for one in counted),
        "last_first_event_s": round(max(one["last_first_s"] for one in counted) - start_s, 3),
        "pauses_s": [pause for one in counted for pause in one["pauses_s"]],
        "client_cpu_s": [round(one["cpu_s"], 2) for one in counted],
    }
