"""Measures the offline engine: a workload all at once, or the latency of one batch again and again."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from quartet.answer import Answer, SamplingParams
from quartet.bench.plan import PlannedRequest
from quartet.llm import LLM
from quartet.wire.errors import EngineError
from quartet.wire.frames import unpack_ids


def measure_throughput(llm: LLM, requests: Sequence[PlannedRequest], has_ignore_eos: bool, progress: bool) -> Any:
    """Run all requests at once; returns the figures. Raises EngineError if none succeeded."""
    started_s = time.monotonic()
    answers = _generate(llm, requests, has_ignore_eos, progress)
    duration_s = time.monotonic() - started_s
    good = [answer for answer in answers if answer.error is None]
    inputs = sum(len(answer.prompt_ids) for answer in good)
    outputs = sum(len(answer.ids) for answer in good)
    return {
        "duration": duration_s,
        "completed": len(good),
        "failed": len(answers) - len(good),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "total_cached_tokens": sum(answer.cached_tokens for answer in good),
        "request_throughput": len(good) / duration_s,
        "input_throughput": inputs / duration_s,
        "output_throughput": outputs / duration_s,
        "total_token_throughput": (inputs + outputs) / duration_s,
    }


def measure_latency(
    llm: LLM, batches: Sequence[Sequence[PlannedRequest]], warm_ups: int, percentiles: Sequence[float]
) -> Any:
    """Run each batch alone, the first `warm_ups` unmeasured; returns the figures. Raises EngineError.

    The prompts of one batch should not begin like those of another, or its prefixes are found in the cache.
    """
    times_ms = []
    for batch in batches:
        started_s = time.monotonic()
        _generate(llm, batch, True, False)
        times_ms.append((time.monotonic() - started_s) * 1000)
    measured = np.array(times_ms[warm_ups:])
    found = {"mean": measured.mean(), "median": np.median(measured), "std": measured.std()}
    found |= {f"p{share:g}": np.percentile(measured, share) for share in percentiles}
    return {f"{name}_batch_ms": float(value) for name, value in found.items()} | {"iterations": len(measured)}


def _generate(llm: LLM, requests: Sequence[PlannedRequest], has_ignore_eos: bool, progress: bool) -> list[Answer]:
    prompts = [unpack_ids(one.ids) if one.ids else one.text for one in requests]
    params = [
        SamplingParams(max_new_tokens=one.output_tokens, temperature=0.0, ignore_eos=has_ignore_eos) for one in requests
    ]
    answers = llm.generate(prompts, params, progress=progress)
    errors = [answer.error for answer in answers if answer.error is not None]
    if len(errors) == len(answers):
        raise EngineError(f"every request failed; the first: {errors[0]}")
    return answers
