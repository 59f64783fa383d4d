"""A short load on a running engine, from whose own figures step costs are fitted: `quartet advise --fit URL`.

The scheduler tells of each request how long the steps took that computed its prompt, and those that decoded it (GET
/requests/{id}/timeline). Prompts that come alone, and rows of one length that decode together, give steps of known
content. The engine must have no other load meanwhile.
"""

import asyncio
import random
import statistics
import time
from typing import Any

import msgspec

from quartet.cli.engine_client import EngineClient, default_key
from quartet.simulator.driver import SimulatedEngine
from quartet.wire.errors import EngineError
from quartet.wire.lengths import AUTO_CHUNK_CPU
from scheduler_proc.core.step_cost import MeasuredStep, fit_steps, pairs

PROMPTS = (64, 256, 512, 1024, 2048, 4096, 8192)
BATCHES = ((1, 64), (4, 64), (1, 1024), (16, 64), (4, 1024), (16, 256), (64, 64), (16, 1024), (64, 512))
"""Rows that decode together, and the prompt tokens of each."""
OUTPUT_TOKENS = 17
REPEATS = 2
LIMIT_S = 40.0
"""After this no larger step is measured, if one of each kind has been."""
MARGIN_TOKENS = 64
FIRST_ID, LAST_ID = 10, 400
"""Token ids that every vocabulary has."""


class Size(msgspec.Struct):
    """Of GET /config: what the engine is."""

    max_running_requests: int
    chunked_prefill_size: int
    enable_mixed_chunk: bool
    page_size: int
    kv_capacity_tokens: int


class Model(msgspec.Struct):
    """Of GET /v1/models."""

    id: str
    max_model_len: int


class Models(msgspec.Struct):
    """The answer of GET /v1/models."""

    data: list[Model]


class Answer(msgspec.Struct):
    """Of POST /v1/completions."""

    id: str


class Choice(msgspec.Struct):
    """Of GET /requests/{id}/timeline: `parts` have a name, a setback and seconds."""

    parts: list[dict[str, Any]]


class Timeline(msgspec.Struct):
    """The answer of GET /requests/{id}/timeline."""

    choices: list[Choice]


def calibrated(url: str, engine: SimulatedEngine) -> tuple[SimulatedEngine, list[MeasuredStep]]:
    """Measure the engine at `url`; returns `engine` with its size and its step cost, and the steps. Takes below a
    minute. Raises EngineError."""
    size, context_length, steps = asyncio.run(_measured(url))
    changed = msgspec.structs.replace(
        engine,
        cost=fit_steps(steps),
        kv_tokens=size.kv_capacity_tokens,
        page_size=size.page_size,
        max_slots=size.max_running_requests,
        context_length=context_length,
        is_cpu=size.chunked_prefill_size == AUTO_CHUNK_CPU,
        mixed_tokens=engine.mixed_tokens if size.enable_mixed_chunk else 0,
    )
    return changed, steps


async def _measured(url: str) -> tuple[Size, int, list[MeasuredStep]]:
    async with EngineClient(url, default_key()) as engine:
        size = await engine.get("/config", Size)
        (model, *_) = (await engine.get("/v1/models", Models)).data
        load = Load(engine, model.id, size, model.max_model_len)
        return size, model.max_model_len, await load.steps()


class Load:
    """Sends prompts and measures the steps that they make.

    Args:
        engine: at which it is directed.
        model: its name there.
        size: the engine's.
        context_length: the longest prompt with its output.
    """

    def __init__(self, engine: EngineClient, model: str, size: Size, context_length: int) -> None:
        self._engine = engine
        self._model = model
        self._size = size
        self._most_tokens = min(context_length, size.kv_capacity_tokens) - MARGIN_TOKENS
        self._rng = random.Random(0)

    async def steps(self) -> list[MeasuredStep]:
        """Return the measured steps, prompts and rows in turn, from small to large."""
        began_s, found = time.monotonic(), list[MeasuredStep]()
        # The first request of a launch meets what is loaded when it is needed.
        await self._prompt(PROMPTS[0])
        await self._rows(*BATCHES[0])
        kinds = [[(0, length) for length in PROMPTS], list(BATCHES)]
        for number in range(max(map(len, kinds))):
            for kind in kinds:
                rows, length = kind[number] if number < len(kind) else (0, 0)
                room = max(rows, 1) * (length + OUTPUT_TOKENS)
                fits = room <= self._most_tokens and rows <= self._size.max_running_requests
                if not length or not fits or (number and time.monotonic() - began_s > LIMIT_S):
                    continue
                found.append(await (self._rows(rows, length) if rows else self._prompt(length)))
        return found

    async def _prompt(self, length: int) -> MeasuredStep:
        """Return the mean step of a prompt that comes alone."""
        times = [await self._parts(self._ids(length), 1, "prefill") for _ in range(REPEATS)]
        chunk = self._size.chunked_prefill_size
        count = -(-length // chunk) if chunk > 0 else 1
        note = f"prompt of {length} in {count}"
        return MeasuredStep(length / count, pairs(0, length) / count, seconds=min(times) / count, note=note)

    async def _rows(self, rows: int, length: int) -> MeasuredStep:
        """Return the mean step of rows that decode together; their prompts are in the cache, so that they begin so."""
        prompts = [self._ids(length) for _ in range(rows)]
        await asyncio.gather(*(self._parts(ids, 1, "prefill") for ids in prompts))
        times = await asyncio.gather(*(self._parts(ids, OUTPUT_TOKENS, "decode") for ids in prompts))
        seconds = statistics.median(times) / (OUTPUT_TOKENS - 1)
        context = rows * (length + OUTPUT_TOKENS / 2)
        return MeasuredStep(0, 0, rows, context, seconds=seconds, note=f"{rows} rows of {length}")

    async def _parts(self, ids: list[int], output_tokens: int, part: str) -> float:
        """Send a request; returns the seconds of one part of its time."""
        body = {"model": self._model, "prompt": ids, "temperature": 0, "ignore_eos": True, "max_tokens": output_tokens}
        answer = await self._engine.post("/v1/completions", body, Answer)
        path = f"/requests/{answer.id.rpartition('-')[2]}/timeline"
        (choice, *_) = (await self._engine.get(path, Timeline)).choices
        seconds = sum(one["seconds"] for one in choice.parts if one["part"] == part)
        if seconds <= 0:
            raise EngineError(f"{self._engine.address}{path} tells no time of {part}: is it a quartet engine?")
        return float(seconds)

    def _ids(self, length: int) -> list[int]:
        return [self._rng.randrange(FIRST_ID, LAST_ID) for _ in range(length)]
