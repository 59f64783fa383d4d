"""A batch job: prompts from a JSON Lines file, answers to another, as many at once as the server likes.

quartet serve smollm2            # in another terminal
python examples/batch.py questions.jsonl answers.jsonl      # lines such as {"prompt": "Name a colour."}
"""

import asyncio
import json
import os
import sys
from collections.abc import Iterable
from typing import TextIO

from openai import APIStatusError, AsyncOpenAI

AT_ONCE = 64
"""Requests in flight. The server batches them by itself; more than it can run wait in its queue."""

server = os.environ.get("QUARTET_URL", "http://127.0.0.1:30000")
# A full queue is answered with 503 and Retry-After, which OpenAI's client obeys.
client = AsyncOpenAI(base_url=f"{server}/v1", api_key=os.environ.get("QUARTET_API_KEY", "none"), max_retries=10)


async def main(lines: Iterable[str], out: TextIO) -> None:
    """Answer every line; one that fails gets its error instead."""
    model = (await client.models.list()).data[0].id
    places = asyncio.Semaphore(AT_ONCE)

    async def answer(line: str) -> dict[str, object]:
        record = json.loads(line)
        async with places:
            try:
                # A seed makes the answers of a second run the same.
                done = await client.completions.create(model=model, prompt=record["prompt"], max_tokens=32, seed=1)
            except APIStatusError as error:
                return {**record, "error": str(error)}
            return {**record, "answer": done.choices[0].text, "tokens": done.usage.completion_tokens}

    # In the order of the prompts, each written as soon as it and all before it are done.
    for task in [asyncio.create_task(answer(line)) for line in lines if line.strip()]:
        out.write(json.dumps(await task) + "\n")
    await client.close()


with open(sys.argv[1]) as source, open(sys.argv[2], "w") as target:
    asyncio.run(main(source, target))
