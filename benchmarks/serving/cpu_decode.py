"""Decode speed of SmolLM2 on the CPU over HTTP, through all processes: one stream, then eight at once.

    python -m benchmarks.serving.cpu_decode [tokens per stream] [more serve flags ...]

Prints one JSON line: seconds from exec to the ready line, and output tokens per second after each stream's first.
"""

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp

from benchmarks.serving.served import served

PROMPT = "Write a long story about a lighthouse keeper and the sea."


async def stream(session: aiohttp.ClientSession, url: str, tokens: int, seed: int) -> tuple[float, float, int]:
    """Return the times of the first and the last event, and the tokens between them."""
    body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": tokens, "stream": True, "ignore_eos": True, "seed": seed}
    first = last = 0.0
    async with session.post(url + "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                last = time.perf_counter()
                first = first or last
    return first, last, tokens - 1


async def measure(url: str, streams: int, tokens: int) -> float:
    """Return output tokens per second over all `streams`, without their first tokens."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:
        times = await asyncio.gather(*(stream(session, url, tokens, seed) for seed in range(streams)))
    return sum(count for _, _, count in times) / (max(t[1] for t in times) - min(t[0] for t in times))


def main(arguments: list[str]) -> int:
    """Start the server, measure and stop it."""
    tokens, flags = int((arguments or ["128"])[0]), arguments[1:]
    started = time.perf_counter()
    with served(*flags) as url:
        result: dict[str, Any] = {"ready_s": round(time.perf_counter() - started, 2)}
        asyncio.run(measure(url, 1, 16))
        for streams in (1, 8):
            result[f"tokens_per_s_{streams}"] = round(asyncio.run(measure(url, streams, tokens)), 1)
        print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
