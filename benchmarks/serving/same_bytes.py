"""The same requests in several companies, and what each of them got; a workload of gpu_client.py."""

import asyncio
import hashlib
import random
import struct
from typing import Any

from benchmarks.serving.gpu_traffic import draw_ids
from benchmarks.serving.recovery import POLL_S, kill
from quartet.client.async_engine import AsyncEngine
from quartet.client.request import GenerateRequest, Output
from quartet.wire.frames import IdsPrompt, SamplingParams, pack_ids
from quartet.wire.ids import Role, process_name

WORKER = process_name(Role.WORKER, 0)
LIMIT_S = 900.0


class _Stream:
    """One request: its ids, and the log-probability of each."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.done = asyncio.Event()
        self.error: Exception | None = None

    def take(self, outputs: list[Output]) -> None:
        """Keep the tokens of one increment."""
        for output in outputs:
            self.ids += output.ids
            self.logprobs += [one.logprob for one in output.logprobs or []]
            if output.finish is not None:
                self.done.set()

    def fail(self, error: Exception) -> None:
        """End the stream with an error."""
        self.error = error
        self.done.set()

    def digest(self) -> str:
        """Return a digest of all bits; raises the error that has ended the stream."""
        if self.error is not None:
            raise self.error
        count = len(self.ids)
        assert len(self.logprobs) == count
        return hashlib.blake2b(struct.pack(f"<{count}i{count}d", *self.ids, *self.logprobs), digest_size=8).hexdigest()


def make_requests(count: int, prompt: int, output: int) -> list[GenerateRequest]:
    """Return the same requests in every launch: prompts of up to `prompt` tokens, of which every other one begins with
    half of that many that are shared; a third greedy, the others drawn by seeds."""
    draw, made = random.Random(5), []
    shared = draw_ids(draw, prompt // 2)
    for at in range(count):
        own = draw_ids(draw, draw.randint(1, prompt // 2))
        sampling: dict[str, Any] = {"temperature": (0.0, 0.8, 1.0)[at % 3], "seed": at, "logprobs": 1}
        sampling["top_p"] = 0.9 if at % 3 == 2 else 1.0
        params = SamplingParams(max_new_tokens=output, ignore_eos=True, **sampling)
        made.append(GenerateRequest(prompt=IdsPrompt(pack_ids(shared + own if at % 2 else own)), params=params))
    return made


async def same_bytes(engine: AsyncEngine, requests: int, prompt: int, output: int, kills: int) -> dict[str, Any]:
    """Run the requests one by one, together, together again, and together while the worker is killed so many times;
    return by way a digest of each answer."""

    async def run(made: list[GenerateRequest], deaths: int = 0) -> list[str]:
        streams = [_Stream() for _ in made]
        async with asyncio.timeout(LIMIT_S):
            outputs = await asyncio.gather(*map(engine.generate, made))
            for one, stream in zip(outputs, streams, strict=True):
                one.subscribe(stream.take, stream.fail)
            for death in range(deaths):
                # Spread over the run: some streams are decoding, some may wait.
                while sum(len(stream.ids) for stream in streams) < (death + 1) * len(made) * output // (deaths + 1):
                    await asyncio.sleep(POLL_S)
                assert not all(stream.done.is_set() for stream in streams), "over before the kill"
                await kill(engine, WORKER)
            await asyncio.gather(*(stream.done.wait() for stream in streams))
        return [stream.digest() for stream in streams]

    def fresh() -> list[GenerateRequest]:
        return make_requests(requests, prompt, output)

    alone = [digest for request in fresh() for digest in await run([request])]
    together, again = await run(fresh()), await run(fresh())
    return {"digests": {"alone": alone, "together": together, "again": again, "killed": await run(fresh(), kills)}}
