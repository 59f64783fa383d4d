"""Ask the deployment of engine.py for streams at once, and show which replica has sent how many, and when.

python check.py [URL] [STREAMS]
"""

import asyncio
import collections
import json
import sys
import time

import aiohttp


async def stream(session: aiohttp.ClientSession, url: str, number: int) -> tuple[str, int, float, float]:
    """Return the replica, the events, and the seconds to the first and to the last of them."""
    messages = [{"role": "user", "content": f"Count from {number} on."}]
    body = {"messages": messages, "max_tokens": 32, "stream": True, "ignore_eos": True}
    started_s, first_s, events = time.monotonic(), 0.0, 0
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                json.loads(line[6:])
                events += 1
                first_s = first_s or time.monotonic() - started_s
            elif line.startswith(b"data: [DONE]"):
                return response.headers["x-replica"], events, first_s, time.monotonic() - started_s
    raise RuntimeError("a stream has ended without [DONE]")


async def main(url: str = "http://127.0.0.1:8000", streams: str = "20") -> None:
    """Run, and print a line for each replica."""
    async with aiohttp.ClientSession() as session:
        found = await asyncio.gather(*(stream(session, url, number) for number in range(int(streams))))
    replicas = collections.defaultdict(list)
    for replica, *figures in found:
        replicas[replica].append(figures)
    for replica, rows in replicas.items():
        first_s, last_s = (sum(row[at] for row in rows) / len(rows) for at in (1, 2))
        events = sum(row[0] for row in rows)
        print(f"{replica}: {len(rows)} streams, {events} events, first {first_s:.2f} s, last {last_s:.2f} s")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
