"""The memory plan: sums that are right, and for what does not fit one setting that does."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quartet.settings import build_config
from quartet.sizing.device import Device
from quartet.sizing.plan import GIB, MemoryPlan, plan_lines, plan_memory
from quartet.wire.config import Config, ResolvedModel
from quartet.wire.errors import ConfigError

LLAMA = Path(__file__).resolve().parents[4] / "benchmarks" / "models" / "llama-3.1-8b"
H200 = Device("cuda", "H200", 140 * GIB, 139 * GIB, True)
RTX = Device("cuda", "RTX", 24 * GIB, 23 * GIB, True)
CPU = Device("cpu", "cpu", 64 * GIB, 60 * GIB, True)
SIMULATED = Device("simulated", "simulated", 8 * GIB, 6 * GIB, False)
SECTIONS = {"max_total_tokens": "worker", "mem_fraction_static": "worker", "simulated_worker": "worker"}
SECTIONS |= {
    "tp_size": "worker",
    "max_running_requests": "scheduler",
    "chunked_prefill_size": "scheduler",
    "dtype": "model",
}


def configured(context_length: int = 131072, **settings: Any) -> Config:
    config = build_config({f"{SECTIONS[name]}.{name}": str(value) for name, value in settings.items()}, {})
    model = ResolvedModel(str(LLAMA), "llama", "LlamaForCausalLM", 128256, context_length, (2,))
    return msgspec.structs.replace(config, resolved=model)


def test_an_8b_model_on_an_h200() -> None:
    plan = plan_memory(configured(), H200)
    assert plan.dtype == "bfloat16" and plan.kv_bytes_per_token == 131072
    assert plan.weights_bytes == 16_060_522_496, "8.03 billion numbers of two bytes"
    assert 100 * GIB < plan.kv_bytes < 108 * GIB and plan.kv_tokens % plan.page_size == 0
    assert plan.weights_bytes + plan.kv_bytes < 0.88 * H200.total_bytes
    assert plan.requests_at_full_context == plan.kv_tokens // 131072 == 6
    assert re.fullmatch(
        r"memory: weights 15.0 \+ graphs [\d.]+ \+ KV 10\d.\d = 1\d\d.\d of 139.0 GiB free on H200; "
        r"KV cache \d+ tokens \(6 requests of 131072\)",
        plan.line,
    )


def test_a_pool_that_is_smaller_than_the_context() -> None:
    plan = plan_memory(configured(max_total_tokens=10000), H200)
    assert (plan.kv_tokens, plan.largest_context, plan.requests_at_full_context) == (10000, 10000, 0)
    assert plan.line.endswith("(0 requests of 131072; a request may have 10000)")


REFUSED: list[tuple[dict[str, Any], Device, str]] = [
    ({"max_total_tokens": 100_000_000}, H200, "--max-total-tokens"),
    ({"max_total_tokens": 100_000_000}, CPU, "--max-total-tokens"),
    ({"max_total_tokens": 10_000_000_000, "simulated_worker": "true"}, SIMULATED, "--max-total-tokens"),
    ({"max_running_requests": 10_000_000}, H200, "--max-running-requests"),
    ({"max_running_requests": 10_000_000, "simulated_worker": "true"}, SIMULATED, "--max-running-requests"),
    ({"context_length": 40_000_000}, RTX, "--context-length"),
    ({"chunked_prefill_size": 16 * 100_000}, RTX, "--chunked-prefill-size"),
    ({"mem_fraction_static": 0.5}, RTX, "--mem-fraction-static"),
    ({"mem_fraction_static": 0.99}, RTX, "--mem-fraction-static"),
    ({"dtype": "float32"}, RTX, "--dtype"),
]


@pytest.mark.parametrize(("settings", "device", "flag"), REFUSED)
def test_what_does_not_fit_names_one_setting_that_does(settings: dict[str, Any], device: Device, flag: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_memory(configured(**settings), device)
    message = str(caught.value)
    found = re.search(r": give (--\S+) (\S+)$", message)
    assert found is not None and found[1] == flag, message
    assert f"{device.name} has" in message and "GiB free" in message
    name = flag[2:].replace("-", "_")
    value = int(found[2]) if name == "context_length" else found[2]
    later = device._replace(free_bytes=int(device.free_bytes * 0.97))
    for one in (device, later):
        assert plan_memory(configured(**{**settings, name: value}), one).kv_tokens > 0


def test_what_can_never_fit() -> None:
    small = RTX._replace(total_bytes=8 * GIB, free_bytes=7 * GIB)
    with pytest.raises(ConfigError, match=r"15.0 for weights of 16 bits.*: take a smaller model, or free memory"):
        plan_memory(configured(context_length=1024), small)


def test_processes_that_hold_the_memory_are_named() -> None:
    busy = H200._replace(free_bytes=5 * GIB, holders=("pid 4242 python (134.1 GiB)",))
    with pytest.raises(
        ConfigError,
        match=r"5.0 of 140.0 GiB free, .*; held by pid 4242 python \(134.1 GiB\)",
    ):
        plan_memory(configured(), busy)


def test_the_plan_is_data() -> None:
    plan = plan_memory(configured(), CPU)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=MemoryPlan) == plan


def test_ranks_on_gpus_have_the_plan_of_one_of_them() -> None:
    one, two = (plan_memory(configured(tp_size=ranks), H200) for ranks in (1, 2))
    whole = 128256 * 4096 * 2 * 2 + 65 * 4096 * 2
    assert two.weights_bytes == whole + (one.weights_bytes - whole) // 2, "embedding, output layer and norms are whole"
    assert two.kv_bytes_per_token * 2 == one.kv_bytes_per_token
    assert two.kv_tokens > 2 * one.kv_tokens
    assert "GiB free on H200 for each of 2 ranks; " in two.line and "ranks" not in one.line


def test_ranks_on_the_cpu_share_its_memory() -> None:
    one, two = (plan_memory(configured(tp_size=ranks), CPU) for ranks in (1, 2))
    assert two.kv_bytes_per_token == one.kv_bytes_per_token
    assert 0.99 * one.kv_tokens < two.kv_tokens <= one.kv_tokens, "the pool is the same, in two parts"
    assert one.weights_bytes < two.weights_bytes < 2 * one.weights_bytes
    assert "GiB free on cpu for 2 ranks; " in two.line


@pytest.mark.parametrize("device", [H200, CPU, None])
def test_a_number_of_ranks_that_divides_no_heads_is_refused_with_those_that_work(device: Device | None) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_lines(configured(tp_size=3), device)
    assert str(caught.value) == (
        "--tp-size 3 does not divide 8 KV heads, 32 heads and an MLP of 14336: give one of 1, 2, 4, 8"
    )
