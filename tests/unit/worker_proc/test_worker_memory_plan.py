"""The plan that is made before the start and the worker that carries it out agree."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from quartet.checkpoint.spec import read_spec
from quartet.sizing import demand
from quartet.sizing.device import Device, find_device
from quartet.sizing.host_memory import HostMemory
from quartet.sizing.model_bytes import page_bytes, weight_bytes
from quartet.sizing.plan import dtype_of, plan_memory
from quartet.wire.config import Config
from tests.golden.oracles import FOLDER
from tests.support.local_engine import make_config
from worker_proc import kv_pool
from worker_proc.loading import choose_dtype, load_runner, load_tensors
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
    assert page_bytes(spec, 16, kind.itemsize) * 17 == sum(layer.nbytes for layer in runner._kv_cache)


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
