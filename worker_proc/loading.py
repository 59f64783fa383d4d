"""From the configuration to a runner with loaded weights: the one place that chooses device, dtype and operations."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from quartet.checkpoint.grammar_tokenizer import load_grammar_tokenizer
from quartet.checkpoint.model_settings import check_settings
from quartet.checkpoint.quantization import has_cpu_compiler
from quartet.checkpoint.spec import ModelSpec, read_spec
from quartet.sizing.host_memory import host_memory
from quartet.sizing.model_bytes import (
    default_slots,
    page_bytes,
    rotary_bytes,
    weight_bytes,
)
from quartet.sizing.window_pools import WindowPool, window_pools
from quartet.wire.config import Config, ModelConfig, WorkerConfig
from quartet.wire.errors import ConfigError, ModelError
from worker_proc.compilation import set_kernel_cache, share_triton_hash
from worker_proc.contract import Capacity, Place, Start
from worker_proc.grammar.compiler import GrammarCompiler
from worker_proc.kv_pool import count_pages, wait_for_memory
from worker_proc.loaded_model import LoadedModel
from worker_proc.models.attention_shape import attention_shape
from worker_proc.models.decoder import Decoder
from worker_proc.ops.interface import Ops
from worker_proc.ops.invariant import invariant_ops
from worker_proc.ops.linear import can_prepack
from worker_proc.ops.torch_ops import TorchOps
from worker_proc.ranks import Ranks
from worker_proc.runner import ModelRunner
from worker_proc.sampler import Sampler
from worker_proc.state_memory import StateMemory, plan_states
from worker_proc.step_sizes import max_graph_tokens, mixed_tokens
from worker_proc.weights.cuda_ipc import SharingError
from worker_proc.weights.dummy import dummy_tensors
from worker_proc.weights.loader import Loader
from worker_proc.weights.shared import share, write_manifest
from worker_proc.weights.tensors import ModelTensors, Shard

GIB = 1 << 30


def load_tensors(
    config: Config,
    spec: ModelSpec,
    shard: Shard,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[], None],
) -> ModelTensors:
    """Return the weights of the configured model, or random ones. Raises ModelError for a damaged model."""
    if config.model.load_format == "dummy":
        return dummy_tensors(spec, shard, dtype, device)
    return Loader(Path(config.require_model().folder), spec, shard, dtype, device, progress).load()


def share_weights(config: Config, progress: Callable[[], None], folder: Path, epoch: int) -> object:
    """Load the weights, share them with other processes by a manifest in `folder`, and return what keeps them.

    Raises ModelError for a damaged or unsupported model, ConfigError for a device that cannot share its memory."""
    model = config.require_model()
    device = choose_device(config.worker)
    spec = read_spec(Path(model.folder), model.context_length, config.model.quantization)
    dtype = choose_dtype(config.model, spec, device)
    _set_threads(config.worker)
    with torch.inference_mode():
        tensors = load_tensors(config, spec, Shard(), dtype, device, progress)
        try:
            manifest, kept = share(tensors, epoch)
        except SharingError as error:
            raise ConfigError(f"--standby: {device} cannot share its memory ({error}); start without it") from error
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            raise ConfigError("--standby: the weights are larger than a file may be (ulimit -f)") from error
    if device.type == "cuda":
        torch.cuda.empty_cache()
    write_manifest(manifest, folder)
    return kept


def load_runner(
    config: Config,
    progress: Callable[[], None],
    start: Start = Start.FIRST,
    map_weights: Callable[[torch.device], ModelTensors] | None = None,
    run_dir: Path | None = None,
    place: Place | None = None,
) -> ModelRunner:
    """Return a runner whose weights are loaded and whose KV pool is sized but not allocated.

    Args:
        progress: called while weights are read.
        start: what it does before it is ready; the pool of a standby is not sized yet.
        map_weights: returns the weights that another process holds; without, they are read from the files.
        run_dir: of the launch, for what its workers share.
        place: of this rank, if there are several; the capacity is then that of the rank that can hold least.

    Raises ModelError for a damaged or unsupported model, ConfigError for a setting that does not fit the machine."""
    model = config.require_model()
    if config.worker.tp_size > 1 and place is None:
        raise ConfigError(f"--tp-size {config.worker.tp_size} takes a process for each rank: use quartet serve")
    spec = read_spec(Path(model.folder), model.context_length, config.model.quantization)
    check_settings(config, spec)
    shard = Shard() if place is None else Shard(place.rank, place.size)
    device = choose_device(config.worker, shard.rank)
    dtype = choose_dtype(config.model, spec, device)
    kv_dtype = choose_kv_dtype(config.worker, dtype, device)
    _set_threads(config.worker)
    _check_memory(spec, shard, dtype, device, model.context_length)
    ranks = None if place is None else Ranks(place, device)
    with torch.inference_mode():
        ops = choose_ops(config.worker, spec, shard, dtype, device, model.context_length)
        if run_dir is not None and ops.name == "triton":
            share_triton_hash(run_dir)
        if map_weights is None:
            tensors = load_tensors(config, spec, shard, dtype, device, progress)
        else:
            tensors = map_weights(device)
        decoder = Decoder(spec, ops, tensors, shard, ranks)
    if start is Start.RECOVERY:
        wait_for_memory(device)
    if ranks is not None:
        # Ranks that start differently would warm up by different steps.
        start = Start.RECOVERY if ranks.least(int(start is Start.RECOVERY)) else Start.FIRST
    is_empty, items = start is Start.STANDBY, kv_dtype.itemsize
    states = plan_states(config, spec, dtype.itemsize, items, device, is_empty)
    size, windows = _pools(config, spec, shard, items, device)
    pages = partial(count_pages, config.worker, device, size, states_bytes=states.total_bytes, windows=windows)
    page_count = pages(is_empty=is_empty) if ranks is None else ranks.least(pages())
    capacity = replace(_capacity(config, spec, shard, page_count, states, device), windows=windows)
    sampler = Sampler(capacity.max_slots, spec.vocab_size, model.context_length, model.eos_token_ids, device)
    facts = _facts(shard, dtype, device, ops)
    if kv_dtype != dtype:
        facts["kv_cache"] = config.worker.kv_cache_dtype
    facts |= states.facts()
    rows = 0 if config.worker.disable_cuda_graph else config.worker.cuda_graph_max_bs
    tokens = max_graph_tokens(spec, shard)
    grammars = GrammarCompiler(partial(load_grammar_tokenizer, config))
    loaded = LoadedModel(decoder, ops, sampler, device, dtype, kv_dtype, rows, tokens, facts, pages, grammars)
    return ModelRunner(loaded, capacity, progress, start)


def _check_memory(spec: ModelSpec, shard: Shard, dtype: torch.dtype, device: torch.device, context_length: int) -> None:
    """Raise ModelError if weights and rotary table need more memory than the device has in all.

    The table is made of parts that together are twice as large."""
    is_cuda = device.type == "cuda"
    needed = weight_bytes(spec, dtype.itemsize, shard.size, is_cuda) + rotary_bytes(spec, context_length)
    needed *= 1 if is_cuda else shard.size
    present = torch.cuda.mem_get_info(device)[1] if is_cuda else host_memory().total_bytes
    if needed > present:
        raise ModelError(
            f"weights and a context of {context_length} tokens take {needed / GIB:.1f} GiB, {_device_name(device)} has "
            f"{present / GIB:.1f}: take a smaller model or a shorter --context-length"
        )


def choose_device(config: WorkerConfig, rank: int = 0) -> torch.device:
    """Return the device of a rank; raises ConfigError if CUDA is requested and there is no such CUDA device."""
    has_cuda = torch.cuda.is_available() if config.device != "cpu" else False
    if config.device == "cuda" and not has_cuda:
        raise ConfigError("device cuda: torch finds no CUDA device; give --device cpu or install the CUDA build")
    if has_cuda and rank:
        if rank >= torch.cuda.device_count():
            raise ConfigError(f"--tp-size: rank {rank} has no GPU; torch finds {torch.cuda.device_count()}")
        torch.cuda.set_device(rank)
    return torch.device("cuda", torch.cuda.current_device()) if has_cuda else torch.device("cpu")


def choose_dtype(config: ModelConfig, spec: ModelSpec, device: torch.device) -> torch.dtype:
    """Return the dtype to run in; `auto` takes bfloat16 where the device computes it natively, else float32.

    On the CPU it also takes float32 for a model that is not stored in bfloat16: the rounding of the weights costs right
    answers, those of a small model above all."""
    if config.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.dtype]
    if device.type == "cuda":
        is_taken = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        is_taken = spec.stored_dtype == "bfloat16" and has_bf16 and can_prepack(torch.bfloat16)
    return torch.bfloat16 if is_taken else torch.float32


def choose_kv_dtype(config: WorkerConfig, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the type of the KV cache; raises ConfigError if the device cannot convert to it."""
    if config.kv_cache_dtype == "auto":
        return dtype
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise ConfigError(
            f"--kv-cache-dtype {config.kv_cache_dtype}: {_device_name(device)} has no conversions to FP8; give auto"
        )
    return torch.float8_e4m3fn


def choose_ops(
    config: WorkerConfig, spec: ModelSpec, shard: Shard, dtype: torch.dtype, device: torch.device, context_length: int
) -> Ops:
    """Return the operations for the device; raises ConfigError if the requested backend cannot run on it."""
    shape = attention_shape(spec, shard, config.page_size, context_length, device)
    backend = config.attention_backend
    if backend == "auto":
        backend = "triton" if device.type == "cuda" else "torch"
    if backend == "triton" and device.type != "cuda" and not _is_interpreting():
        raise ConfigError("attention_backend triton: needs a CUDA device; give --attention-backend torch")
    if config.deterministic:
        return invariant_ops(backend, shape, dtype, choose_kv_dtype(config, dtype, device))
    if backend == "torch" and device.type == "cpu" and has_cpu_compiler():
        from worker_proc.ops.cpu_ops import CpuOps

        return CpuOps(shape, dtype, spec.linear)
    if backend == "torch":
        return TorchOps(shape, dtype, device, spec.linear)
    set_kernel_cache()
    from worker_proc.ops.triton_ops import TritonOps
    from worker_proc.tuning.tables import use_tables

    use_tables(_device_name(device))
    return TritonOps(shape, dtype, spec.linear, choose_kv_dtype(config, dtype, device))


def _pools(
    config: Config, spec: ModelSpec, shard: Shard, item_bytes: int, device: torch.device
) -> tuple[int, tuple[WindowPool, ...]]:
    """Return the bytes of a page of group 0, and the pools of the other groups."""
    windows = window_pools(config, spec, item_bytes, device.type == "cpu", shard.size)
    return page_bytes(spec, config.worker.page_size, item_bytes, shard.size), windows


def _capacity(
    config: Config, spec: ModelSpec, shard: Shard, page_count: int, states: StateMemory, device: torch.device
) -> Capacity:
    return Capacity(
        page_size=config.worker.page_size,
        page_count=page_count,
        max_slots=states.slots or default_slots(page_count * config.worker.page_size, device.type == "cpu"),
        vocab_size=spec.vocab_size,
        context_length=config.require_model().context_length,
        device=_device_name(device),
        mixed_tokens=mixed_tokens(spec, shard) if device.type == "cuda" else 0,
        has_states=spec.linear is not None,
        checkpoints=states.checkpoints,
    )


def _facts(shard: Shard, dtype: torch.dtype, device: torch.device, ops: Ops) -> dict[str, str | int | float]:
    """Return what the ready line says of any model."""
    name = _device_name(device)
    return {
        "device": name if shard.size == 1 else f"{shard.size} x {name}",
        "dtype": str(dtype).removeprefix("torch."),
        "attention": ops.name,
    }


def _is_interpreting() -> bool:
    """Return whether Triton runs kernels in its interpreter, as in the tests on the CPU."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _set_threads(config: WorkerConfig) -> None:
    # More threads than cores would be slower.
    torch.set_num_threads(min(config.cpu_threads or 1, os.cpu_count() or 1))
