"""Engines that ship with the simulator: what a step costs on them, and how much KV they hold.

`smollm2-cpu` is fitted to steps of SmolLM2-135M in bfloat16 on one thread of a server core, measured through our own
worker (benchmarks/simulation/fit_step_cost.py; the steps are in benchmarks/results/smollm2-cpu-steps.jsonl). One step
of 21 is 22 % off, the others at most 13 %; fit it again on the machine that you want to know about.

The two H100 presets are fitted to published figures of another engine, vLLM 0.24.0 on one H100 80GB, until our worker
is measured there. Each row below is one measurement, and the fit is made from them when the preset is requested. It is
within 1.2 % of every row for the 8B model and within 10 % for the small one, whose steps cost the host as much as the
device. Left out, because the host and not the step decides them: times to first token below 4,096 tokens (16,384 for
the small model), and of the small model the batch of 8, which took less time than that of 1.
"""

from collections.abc import Callable

from quartet.simulator.driver import SimulatedEngine
from quartet.wire.config import DEFAULT_SLOTS_CPU
from quartet.wire.errors import ConfigError
from scheduler_proc.core.step_cost import MeasuredStep, StepCost, fit_steps, pairs

DECODE_CONTEXT = 1040
"""Context of the decode tables: 960 prompt tokens and half of 160 outputs."""

SMOLLM2_CPU = StepCost(
    base_s=0.04153,
    prefill_token_s=0.00034965,
    attention_pair_s=5.0772e-07,
    decode_row_s=0.00064804,
    context_token_s=7.9345e-06,
)


def _prefill(sequences: int, tokens: int, seconds: float, note: str) -> MeasuredStep:
    return MeasuredStep(sequences * tokens, sequences * pairs(0, tokens), seconds=seconds, note=note)


def _decode(rows: int, context: int, milliseconds: float, note: str = "decode step table") -> MeasuredStep:
    return MeasuredStep(0, 0, rows, rows * context, seconds=milliseconds / 1e3, note=f"{rows} x {context}, {note}")


def llama_8b_h100_rows() -> list[MeasuredStep]:
    """Return the measurements of Llama-3.1-8B dimensions."""
    throughput = "prefill throughput, a step of 16,384 tokens"
    anchor_ms = 32 * (1.407 - 0.3723)
    return [
        _prefill(16, 1024, 16384 / 42_950, f"64 x 1024, {throughput}"),
        _prefill(4, 4096, 16384 / 40_950, f"16 x 4096, {throughput}"),
        _prefill(1, 4096, 0.1048, "time to first token, 4,096 tokens"),
        _prefill(1, 16384, 0.491, "time to first token, 16,384 tokens"),
        _decode(1, 256, 6.535, "prompt 128 and 256 out"),
        *(
            _decode(rows, DECODE_CONTEXT, milliseconds)
            for rows, milliseconds in ((1, 6.60), (8, 6.99), (32, 8.25), (64, 9.93), (128, 13.49), (256, 20.84))
        ),
        _decode(256, 4096, 20.84 + anchor_ms, "row 256 plus 32 layers of the attention kernel's difference"),
    ]


def qwen3_0_6b_h100_rows() -> list[MeasuredStep]:
    """Return the measurements of Qwen3-0.6B dimensions."""
    throughput = "prefill throughput, a step of 16,384 tokens"
    anchor_ms = 28 * (1.407 - 0.3723)
    return [
        _prefill(16, 1024, 16384 / 324_000, f"64 x 1024, {throughput}"),
        _prefill(4, 4096, 16384 / 325_500, f"16 x 4096, {throughput}"),
        _prefill(1, 16384, 0.0936, "time to first token, 16,384 tokens"),
        *(
            _decode(rows, DECODE_CONTEXT, milliseconds)
            for rows, milliseconds in ((1, 2.27), (32, 3.11), (64, 4.49), (128, 7.19), (256, 12.44))
        ),
        _decode(256, 4096, 12.44 + anchor_ms, "row 256 plus 28 layers of the attention kernel's difference"),
    ]


def _smollm2_cpu() -> SimulatedEngine:
    return SimulatedEngine(
        cost=SMOLLM2_CPU, kv_tokens=65_536, context_length=8192, max_slots=DEFAULT_SLOTS_CPU, is_cpu=True
    )


def _llama_8b_h100() -> SimulatedEngine:
    return SimulatedEngine(cost=fit_steps(llama_8b_h100_rows()), kv_tokens=444_528, context_length=131_072)


def _qwen3_0_6b_h100() -> SimulatedEngine:
    return SimulatedEngine(cost=fit_steps(qwen3_0_6b_h100_rows()), kv_tokens=645_792, context_length=40_960)


PRESETS: dict[str, Callable[[], SimulatedEngine]] = {
    "llama-8b-h100": _llama_8b_h100,
    "qwen3-0.6b-h100": _qwen3_0_6b_h100,
    "smollm2-cpu": _smollm2_cpu,
}
DEFAULT_PRESET = "llama-8b-h100"


def preset(name: str) -> SimulatedEngine:
    """Return the engine of that name; raises ConfigError for an unknown one."""
    make = PRESETS.get(name)
    if make is None:
        raise ConfigError(f"--preset: {name!r} is not one of {', '.join(PRESETS)}")
    return make()
