"""The plan that is made before the start and the worker that carries it out agree."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from quartet.checkpoint.spec import read_spec
from quartet.sizing import demand
from quartet.sizing.demand import Demand, sized, with_checkpoints, with_fitting_slots
from quartet.sizing.device import Device, find_device
from quartet.sizing.host_memory import HostMemory
from quartet.sizing.model_bytes import page_bytes, slots_for_states, state_bytes, weight_bytes
from quartet.sizing.plan import dtype_of, plan_memory
from quartet.sizing.window_pools import pools_bytes, window_pools
from quartet.wire.config import Config
from quartet.wire.errors import ConfigError
from tests.golden.oracles import FOLDER
from tests.support.local_engine import make_config
from worker_proc import kv_pool
from worker_proc.loading import choose_dtype, load_runner, load_tensors
from worker_proc.ops.interface import LinearState
from worker_proc.simulated import SimulatedRunner
from worker_proc.weights.tensors import Shard

GIB = 1 << 30
CPU = torch.device("cpu")
MODELS = ("qwen3", "llama", "qwen2", "mistral")


def planned(config: Config, device: Device) -> int:
    return plan_memory(config, device).kv_tokens // config.worker.page_size


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", [one for one in MODELS if (FOLDER / "models" / one).exists()])
def test_the_bytes_of_weights_and_pages_are_those_that_are_loaded(model: str, dtype: str) -> None:
    config = make_config(FOLDER / "models" / model, dtype, tokenizer=FOLDER / "models" / "qwen3", max_total_tokens=256)
    spec = read_spec(Path(config.require_model().folder), 256)
    kind = choose_dtype(config.model, spec, CPU)
    tensors = load_tensors(config, spec, Shard(), kind, CPU, lambda: None)
    parts = [tensors.embedding, tensors.final_norm, tensors.lm_head]
    parts += [getattr(layer, name) for layer in tensors.layers for name in layer.__slots__]
    assert weight_bytes(spec, kind.itemsize) == sum(part.nbytes for part in parts if part is not None)
    runner = load_runner(config, lambda: None)
    runner.allocate(16)
    assert page_bytes(spec, 16, kind.itemsize) * 17 == sum(layer.nbytes for layer in runner._caches)


def test_keys_and_values_in_fp8_take_a_byte() -> None:
    folder = FOLDER / "models" / "qwen3"
    plain, coded = (
        make_config(folder, "bfloat16", max_total_tokens=0, kv_cache_dtype=kind) for kind in ("auto", "fp8_e4m3")
    )
    device = Device("cuda", "card", 80 * GIB, 79 * GIB, True)
    expected, found = plan_memory(plain, device), plan_memory(coded, device)
    assert found.kv_bytes_per_token * 2 == expected.kv_bytes_per_token
    assert found.kv_tokens == pytest.approx(2 * expected.kv_tokens, rel=0.001)
    runner = load_runner(
        msgspec.structs.replace(coded, worker=msgspec.structs.replace(coded.worker, max_total_tokens=256)), lambda: None
    )
    runner.allocate(16)
    assert found.kv_bytes_per_token * 16 * 17 == sum(
        layer.nbytes for layer in runner._caches if isinstance(layer, torch.Tensor)
    )


@pytest.mark.parametrize("free_gib", [2, 6, 60])
def test_the_pool_on_the_cpu(free_gib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(FOLDER / "models" / "qwen3", max_total_tokens=0)
    model = config.require_model()
    spec = read_spec(Path(model.folder), model.context_length)
    device = Device("cpu", "cpu", 64 * GIB, free_gib * GIB, False)
    # The worker looks once its weights are loaded.
    left = free_gib * GIB - weight_bytes(spec, 4) - demand.CPU_RUNTIME_BYTES
    monkeypatch.setattr(kv_pool, "host_memory", lambda: HostMemory(64 * GIB, left))
    counted = kv_pool.count_pages(config.worker, CPU, page_bytes(spec, 16, 4))
    assert 0.97 * counted <= planned(config, device) <= counted


@pytest.mark.parametrize("fraction", [0.5, 0.88])
def test_the_pool_on_a_gpu(fraction: float, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(FOLDER / "models" / "qwen3", "bfloat16", max_total_tokens=0, mem_fraction_static=fraction)
    model = config.require_model()
    spec = read_spec(Path(model.folder), model.context_length)
    device = Device("cuda", "a GPU", 80 * GIB, 79 * GIB, True)
    left = 79 * GIB - weight_bytes(spec, 2) - demand.CUDA_RUNTIME_BYTES
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (left, 80 * GIB))
    counted = kv_pool.count_pages(config.worker, torch.device("cuda"), page_bytes(spec, 16, 2))
    assert 0.999 * counted <= planned(config, device) <= counted


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_the_dtype(stored: str) -> None:
    config = make_config(FOLDER / "models" / "qwen3", "auto")
    device = find_device(config)
    assert device is not None
    model = config.require_model()
    spec = replace(read_spec(Path(model.folder), model.context_length), stored_dtype=stored)
    assert str(choose_dtype(config.model, spec, CPU)) == f"torch.{dtype_of(config, spec, device)}"


@pytest.mark.parametrize("tokens", [0, 4096])
def test_the_simulated_pool(tokens: int) -> None:
    config = make_config(FOLDER / "models" / "qwen3", max_total_tokens=tokens, simulated_worker=True)
    device = find_device(config)
    assert device is not None
    capacity = SimulatedRunner(config, clock=None).capacity  # type: ignore[arg-type]
    plan = plan_memory(config, device)
    assert (capacity.page_count, capacity.max_slots) == (planned(config, device), plan.max_running_requests)
    assert msgspec.structs.asdict(plan)["weights_bytes"] == 0


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_states_take_their_share_of_the_pool(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan and the worker choose the same slots, a third of the pool holds their states, and pages get the rest."""
    config = make_config(
        FOLDER / "models" / "qwen3_5", "float32", tokenizer=FOLDER / "models" / "qwen3", max_total_tokens=0
    )
    spec = read_spec(Path(config.require_model().folder), 512)
    assert spec.linear is not None
    spec = replace(spec, linear=replace(spec.linear, key_dim=512, value_dim=4096, num_value_heads=8))
    one = state_bytes(spec, 4)
    assert one == 3 * 4 * (8 * 512 * 4096 + 4 * spec.linear.channels)
    device = Device(kind, kind, 80 * GIB, 79 * GIB, True)
    asked = Demand(spec, kind == "cuda", 4, 4, 16, 512, 256, 0, 512, 0, 0.5)
    pool = demand.pool_bytes(asked, device)
    planned_for = sized(with_fitting_slots(asked, device), device)
    assert 1 < planned_for.slots == slots_for_states(256, pool, one) < 256
    assert 0.8 * pool / 3 < planned_for.states == (planned_for.slots + 1) * one <= pool / 3
    planned_for = sized(with_checkpoints(with_fitting_slots(asked, device), device), device)
    assert planned_for.checkpoints == (pool - (planned_for.slots + 1) * one) // 10 // one
    monkeypatch.setattr(kv_pool, "pool_bytes", lambda *_: pool)
    counted = kv_pool.count_pages(config.worker, CPU, page_bytes(spec, 16, 4), False, planned_for.states)
    assert 0.99 * counted <= planned_for.kv_tokens // 16 <= 1.01 * counted


@pytest.mark.parametrize(
    "setting",
    [{"speculative_tokens": 4}, {"kv_events_config": '{"publisher": "zmq"}'}],
    ids=str,
)
def test_a_setting_that_states_do_not_allow_is_refused(setting: dict[str, Any]) -> None:
    config = make_config(FOLDER / "models" / "qwen3_5", tokenizer=FOLDER / "models" / "qwen3")
    section = "scheduler" if "speculative_tokens" in setting else "server"
    config = msgspec.structs.replace(config, **{section: msgspec.structs.replace(getattr(config, section), **setting)})
    device = find_device(config)
    assert device is not None
    for start in (lambda: plan_memory(config, device), lambda: load_runner(config, lambda: None)):
        with pytest.raises(ConfigError, match=f"{next(iter(setting)).replace('_', '-')}.* does not work"):
            start()


def test_the_states_that_are_allocated() -> None:
    config = make_config(FOLDER / "models" / "qwen3_5", tokenizer=FOLDER / "models" / "qwen3", max_total_tokens=2048)
    runner = load_runner(config, lambda: None)
    runner.allocate(16)
    assert runner.capacity.checkpoints == 3
    spec = read_spec(Path(config.require_model().folder), 512)
    states = [layer for layer in runner._caches if isinstance(layer, LinearState)]
    found = sum(one.window.nbytes + one.matrix.nbytes for one in states)
    assert found == (runner.capacity.max_slots + 1 + 3) * state_bytes(spec, 4)
    assert sum(one.nbytes for one in runner._caches if isinstance(one, torch.Tensor)) == 17 * page_bytes(spec, 16, 4)


@pytest.mark.parametrize("model", ["gemma3", "mistral_window"])
def test_the_pools_of_layers_with_windows(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan and worker divide the memory alike and allocate what they have counted; one pool where all layers see the
    same."""
    settings = {"chunked_prefill_size": 64, "max_running_requests": 4}
    folders = FOLDER / "models" / model, FOLDER / "models" / "qwen3"
    config = make_config(folders[0], tokenizer=folders[1], max_total_tokens=0, scheduler=settings)
    spec = read_spec(Path(config.require_model().folder), 512)
    assert spec.page_groups == ((0, 24) if model == "gemma3" else (24,))
    windows, one = window_pools(config, spec, 4, is_cpu=True), page_bytes(spec, 16, 4)
    monkeypatch.setattr(demand, "pool_bytes", lambda *_: 1 << 20)
    monkeypatch.setattr(kv_pool, "pool_bytes", lambda *_: 1 << 20)
    device = Device("cpu", "cpu", 64 * GIB, 60 * GIB, False)
    plan, runner = plan_memory(config, device), load_runner(config, lambda: None)
    counts = runner.capacity.page_counts
    # The plan counts the scheduler's lists, too.
    assert 0.97 * counts[0] <= plan.kv_tokens // 16 <= counts[0]
    assert list(plan.window_tokens) == [24] * len(windows) and ("window of 24" in plan.line) == bool(windows)
    runner.allocate(counts[0])
    bytes_of_pools = sum(layer.nbytes for layer in runner._caches if isinstance(layer, torch.Tensor))
    assert pools_bytes(counts[0], one, windows) == bytes_of_pools <= 1 << 20
    assert pools_bytes(counts[0] + 2, one, windows) > 1 << 20
    # Two pages of a window, four of a chunk and as many to spare; for four slots twice three of each.
    assert [(pool.least, pool.most) for pool in windows] == [(10, 32)] * len(windows)
    assert runner.facts()["kv_tokens"] == 16 * counts[0]
    assert [runner.facts()["kv_tokens_window_24"] for _ in windows] == [16 * count for count in counts[1:]]
