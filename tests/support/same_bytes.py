"""What --deterministic promises, as ways to run the same requests: each must give a request the bytes it gets alone."""

import random
import struct
from collections.abc import Callable
from typing import Any

from tests.support.local_engine import LocalEngine
from tests.support.stream_client import ClientStream

Requests = tuple[list[list[int]], list[dict[str, Any]]]
Bytes = list[tuple[tuple[int, ...], bytes]]
"""Of each request its ids, and the bits of their log-probabilities."""


def make_requests(count: int, longest: int, new_tokens: int, vocab_size: int) -> Requests:
    """Return prompts of ids, two of three of which begin alike, and their parameters: greedy and drawn."""
    draw = random.Random(count)
    shared = [draw.randrange(3, vocab_size) for _ in range(longest // 2)]
    prompts, params = [], []
    for at in range(count):
        own = [draw.randrange(3, vocab_size) for _ in range(draw.randrange(1, longest // 2))]
        prompts.append(shared + own if at % 3 else own)
        kinds: list[dict[str, Any]] = [
            {},
            {"temperature": 0.8, "seed": at},
            {"temperature": 1.0, "top_p": 0.9, "seed": at},
        ]
        length = draw.randrange(new_tokens // 2, new_tokens + 1)
        params.append({"logprobs": 1, "max_new_tokens": length, **kinds[at // 2 % 3]})
    return prompts, params


def bytes_of(streams: list[ClientStream]) -> Bytes:
    """Return what has been received of each stream."""
    assert all(len(one.logprobs) == len(one.outputs) for one in streams)
    return [(tuple(one.outputs), struct.pack(f"<{len(one.logprobs)}d", *one.logprobs)) for one in streams]


def alone(engine: LocalEngine, requests: Requests) -> Bytes:
    """Run one request after another, each with an empty tree."""
    found: Bytes = []
    for prompt, params in zip(*requests, strict=True):
        engine.restart()
        found += bytes_of(engine.run([prompt], [params]))
    return found


def ways(engine: LocalEngine, requests: Requests, lives: tuple[int, ...]) -> dict[str, Callable[[], Bytes]]:
    """Return by name the ways to run all requests together; the workers of the last live so many frames."""

    def together(worker_lives: tuple[int, ...] = (), **scheduler: Any) -> Bytes:
        engine.restart(**scheduler)
        return bytes_of(engine.run(*requests, worker_lives))

    def cached() -> Bytes:
        assert engine.cached_tokens() > 0, "prompts that begin alike share nothing"
        before = engine.cached_tokens()
        found = bytes_of(engine.run(*requests))
        assert engine.cached_tokens() > before
        return found

    def retracted() -> Bytes:
        found = together(test_retract=True)
        assert engine.retractions() > 0
        return found

    return {
        "batched": together,
        "cached": cached,
        "chunked": lambda: together(chunked_prefill_size=16, enable_mixed_chunk=True),
        "drafted": lambda: together(speculative_tokens=4),
        "retracted": retracted,
        "after deaths of the worker": lambda: together(lives),
    }
