"""Priorities and deadlines: an urgent request is answered while the server is full of others.

quartet serve smollm2 --enable-priority-scheduling --max-running-requests 4    # in another terminal
python examples/priorities.py
"""

import asyncio
import os
import statistics
import time

from openai import APIError, AsyncOpenAI

server = os.environ.get("QUARTET_URL", "http://127.0.0.1:30000")
client = AsyncOpenAI(base_url=f"{server}/v1", api_key=os.environ.get("QUARTET_API_KEY", "none"), max_retries=0)


async def first_token(model: str, text: str, **extra: object) -> float:
    """Return the seconds until the first token of an answer."""
    started, first = time.monotonic(), 0.0
    messages = [{"role": "user", "content": text}]
    stream = await client.chat.completions.create(
        model=model, messages=messages, max_tokens=64, stream=True, extra_body={"ignore_eos": True, **extra}
    )
    async for event in stream:
        # The first event has no text: it says that the request is queued.
        if event.choices and event.choices[0].delta.content:
            first = first or time.monotonic() - started
    return first


async def main() -> None:
    """Fill the server, then ask something urgent, and something that is only worth it within a moment."""
    model = (await client.models.list()).data[0].id
    # Tenants that must not see by the time to the first token what others have asked have a salt each: requests with
    # different salts, or different API keys, share no cached prefix.
    batch = [
        asyncio.create_task(first_token(model, f"Story {n}", priority=0, cache_salt=f"tenant {n % 2}"))
        for n in range(24)
    ]
    await asyncio.sleep(0.3)
    urgent = asyncio.create_task(first_token(model, "Now!", priority=10))
    try:
        await first_token(model, "In a moment or never", first_token_timeout=0.1)
    except APIError as error:
        print(f"the one with a deadline: {error.message}")
    print(f"the urgent one: first token after {await urgent:.2f} s")
    print(f"the others: after {statistics.median(await asyncio.gather(*batch)):.2f} s (median)")
    await client.close()


asyncio.run(main())
