"""Engines that ship with the simulator: what a step costs on them, and how much KV they hold.

All are fitted to measurements of our own worker. `smollm2-cpu` is SmolLM2-135M in bfloat16 on one thread of a server
core (benchmarks/simulation/fit_step_cost.py; the steps are in benchmarks/results/smollm2-cpu-steps.jsonl). One step of
21 is 22 % off, the others at most 13 %; fit it again on the machine that you want to know about.

The GPU presets are fitted, when one is requested, to the steps in preset_steps.json, which
benchmarks/simulation/make_presets.py makes from the results in benchmarks/results. The fit is within 4.5 % of every
step of the 8B model on the H100, 7 % on the H200; within 3 % of the small model's on the H100 and 15 % on the H200.
"""

import functools
from collections.abc import Callable
from importlib import resources

import msgspec

from quartet.simulator.driver import SimulatedEngine
from quartet.wire.config import DEFAULT_SLOTS_CPU
from quartet.wire.errors import ConfigError
from scheduler_proc.core.step_cost import MeasuredStep, StepCost, fit_steps

SMOLLM2_CPU = StepCost(
    base_s=0.04153,
    prefill_token_s=0.00034965,
    attention_pair_s=5.0772e-07,
    decode_row_s=0.00064804,
    context_token_s=7.9345e-06,
)


class MeasuredEngine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A GPU preset as preset_steps.json has it: the engine's size and the steps that were measured on it."""

    kv_tokens: int
    context_length: int
    mixed_tokens: int
    steps: list[MeasuredStep]


@functools.cache
def measured_engines() -> dict[str, MeasuredEngine]:
    """Return the GPU presets by name."""
    text = resources.files("quartet.simulator").joinpath("preset_steps.json").read_bytes()
    return msgspec.json.decode(text, type=dict[str, MeasuredEngine])


def _smollm2_cpu() -> SimulatedEngine:
    return SimulatedEngine(
        cost=SMOLLM2_CPU, kv_tokens=65_536, context_length=8192, max_slots=DEFAULT_SLOTS_CPU, is_cpu=True
    )


def _measured(name: str) -> SimulatedEngine:
    found = measured_engines()[name]
    return SimulatedEngine(
        cost=fit_steps(found.steps),
        kv_tokens=found.kv_tokens,
        context_length=found.context_length,
        mixed_tokens=found.mixed_tokens,
    )


GPU_PRESETS = ("llama-8b-h100", "llama-8b-h200", "qwen3-0.6b-h100", "qwen3-0.6b-h200")
PRESETS: dict[str, Callable[[], SimulatedEngine]] = {
    **{name: functools.partial(_measured, name) for name in GPU_PRESETS},
    "smollm2-cpu": _smollm2_cpu,
}
DEFAULT_PRESET = "llama-8b-h100"


def preset(name: str) -> SimulatedEngine:
    """Return the engine of that name; raises ConfigError for an unknown one."""
    make = PRESETS.get(name)
    if make is None:
        raise ConfigError(f"--preset: {name!r} is not one of {', '.join(PRESETS)}")
    return make()
