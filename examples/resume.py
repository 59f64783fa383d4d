"""A stream that outlives its connection: read a few events, lose the connection, read the rest.

The same works after a death of the server's api process, the one that owns the connections.

    quartet serve smollm2            # in another terminal
    python examples/resume.py
"""

import asyncio
import json
import os

import aiohttp

server = os.environ.get("QUARTET_URL", "http://127.0.0.1:30000")
key = {"Authorization": f"Bearer {os.environ.get('QUARTET_API_KEY', 'none')}"}


async def read(response: aiohttp.ClientResponse, most: int) -> str:
    """Show up to `most` events, and return the id of the last one."""
    last = ""
    async for line in response.content:
        field, _, value = line.decode().strip().partition(": ")
        if field == "id":
            last = value
        elif field == "data" and value != "[DONE]":
            print("".join(choice["delta"].get("content") or "" for choice in json.loads(value)["choices"]), end="")
            most -= 1
            if not most:
                break
    return last


async def main() -> None:
    """Ask, leave in the middle, and come back."""
    body = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 60, "stream": True}
    async with aiohttp.ClientSession(server, headers=key) as session:
        # Keep the answer for 60 seconds after a connection is lost.
        async with session.post("/v1/chat/completions", json=body, headers={"X-Quartet-Resume": "60"}) as response:
            address = response.headers["Content-Location"]
            last = await read(response, most=10)
        print(f"\n--- the connection is lost after event {last.rpartition(':')[2]}; {address} has the rest:")
        await asyncio.sleep(0.2)
        async with session.get(address, headers={"Last-Event-ID": last}) as response:
            response.raise_for_status()
            await read(response, most=0)
    print()


asyncio.run(main())
