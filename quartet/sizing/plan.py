"""The memory plan of a launch: what goes where, or which single setting makes it fit. Made before anything is spawned.

The worker measures what is in use once the weights are loaded, and sizes the pool by that; the plan computes the same
from the shape of the model. On a GPU the share outside --mem-fraction-static is for graphs and intermediate results.
"""

from dataclasses import replace
from pathlib import Path

import msgspec

from quartet.checkpoint.model_settings import check_settings
from quartet.checkpoint.spec import ModelSpec, read_spec
from quartet.sizing.demand import Demand, sized, with_checkpoints, with_fitting_slots
from quartet.sizing.device import Device
from quartet.sizing.model_bytes import ITEM_BYTES, SIMULATED_TOKENS, default_slots, kv_item_bytes
from quartet.sizing.remedy import remedy
from quartet.sizing.window_pools import window_pools
from quartet.wire.config import Config
from quartet.wire.errors import ConfigError
from quartet.wire.lengths import AUTO_CHUNK, AUTO_CHUNK_CPU

GIB = 1 << 30
_KNOBS = (
    ("--max-total-tokens", "kv_tokens", 256),
    ("--max-running-requests", "slots", 1),
    ("--context-length", "context_length", 256),
    ("--chunked-prefill-size", "prefill_tokens", 128),
)
"""Settings that decide the demand, and the least value worth suggesting."""


class MemoryPlan(msgspec.Struct, frozen=True):
    """Bytes and tokens of a launch. `largest_context` is the longest request that the pool can hold,
    `requests_at_full_context` how many of the model's context it holds at once. The bytes are those of one device: of
    one of `ranks` on a GPU, of all of them on the CPU. `states_bytes` include those of `checkpoints`, which are for
    cached prefixes. `window_tokens` are those of the pools of layers that see a window, by the window; the other
    numbers of tokens are of the layers that see most."""

    device: str
    dtype: str
    total_bytes: int
    free_bytes: int
    weights_bytes: int
    graphs_bytes: int
    kv_bytes: int
    states_bytes: int
    kv_bytes_per_token: int
    kv_tokens: int
    page_size: int
    context_length: int
    largest_context: int
    requests_at_full_context: int
    max_running_requests: int
    ranks: int = 1
    checkpoints: int = 0
    window_tokens: dict[int, int] = {}

    @property
    def line(self) -> str:
        """The plan in one line."""
        used = self.weights_bytes + self.graphs_bytes + self.kv_bytes + self.states_bytes
        own = f"{self.max_running_requests} requests, {self.checkpoints} cached prefixes"
        states = f" + states {_gib(self.states_bytes)} ({own})" if self.states_bytes else ""
        is_cuda = self.device not in ("cpu", "simulated")
        what = "graphs" if is_cuda else "steps"
        ranks = (f" for each of {self.ranks} ranks" if is_cuda else f" for {self.ranks} ranks") * (self.ranks > 1)
        windows = "".join(f", window of {one} {tokens} tokens" for one, tokens in self.window_tokens.items())
        limit = f"; a request may have {self.largest_context}" if self.largest_context < self.context_length else ""
        return (
            f"memory: weights {_gib(self.weights_bytes)} + {what} {_gib(self.graphs_bytes)} + KV {_gib(self.kv_bytes)}"
            f"{states} = {_gib(used)} of {_gib(self.free_bytes)} GiB free on {self.device}{ranks}; "
            f"KV cache {self.kv_tokens} tokens{windows} "
            f"({self.requests_at_full_context} requests of {self.context_length}{limit})"
        )


def plan_lines(config: Config, device: Device | None) -> list[str]:
    """Return the line of the plan, none for a device whose memory cannot be asked for. Raises as plan_memory does."""
    if device is None:
        _checked_spec(config)
        return []
    return [plan_memory(config, device).line]


def plan_memory(config: Config, device: Device) -> MemoryPlan:
    """Return the plan for a resolved configuration. Raises ConfigError, in one line with the numbers and one setting
    that works, if it does not fit, or if the model does not allow a setting."""
    model, worker = config.require_model(), config.worker
    spec = _checked_spec(config)
    dtype = "none" if spec is None else dtype_of(config, spec, device)
    demand = _demand(config, spec, device, dtype)
    if not config.scheduler.max_running_requests:
        demand = with_fitting_slots(demand, device)
    if not config.scheduler.disable_radix_cache:
        demand = with_checkpoints(demand, device)
    demand = sized(demand, device)
    _check(demand, device)
    tokens, page_size = demand.kv_tokens, worker.page_size
    windows = {one.window: one.pages(tokens // page_size) * page_size for one in demand.windows}
    at_full_context = [tokens // model.context_length]
    at_full_context += [size // (window + page_size) for window, size in windows.items()]
    return MemoryPlan(
        device=device.name,
        dtype=dtype,
        total_bytes=device.total_bytes,
        free_bytes=device.free_bytes,
        weights_bytes=demand.weights,
        graphs_bytes=demand.tables + demand.runtime + demand.steps,
        kv_bytes=demand.kv,
        states_bytes=demand.states,
        kv_bytes_per_token=demand.kv_token_bytes,
        kv_tokens=tokens,
        page_size=page_size,
        context_length=model.context_length,
        largest_context=min(model.context_length, tokens),
        requests_at_full_context=min(at_full_context),
        max_running_requests=demand.slots,
        ranks=demand.ranks,
        checkpoints=demand.checkpoints,
        window_tokens=windows,
    )


def _checked_spec(config: Config) -> ModelSpec | None:
    """Return the model's shape, None for a simulated worker; raises ConfigError for settings that it does not allow."""
    if config.worker.simulated_worker:
        return None
    model = config.require_model()
    spec = read_spec(Path(model.folder), model.context_length, config.model.quantization)
    check_settings(config, spec)
    return spec


def dtype_of(config: Config, spec: ModelSpec, device: Device) -> str:
    """Return the name of the dtype that the worker computes in: `auto` is decided there, by torch, in the same way."""
    if config.model.dtype != "auto":
        return config.model.dtype
    is_stored = device.is_cuda or spec.stored_dtype == "bfloat16"
    return "bfloat16" if is_stored and device.has_bfloat16 else "float32"


def _demand(config: Config, spec: ModelSpec | None, device: Device, dtype: str) -> Demand:
    worker, scheduler, is_cpu = config.worker, config.scheduler, not device.is_cuda
    chunk = scheduler.chunked_prefill_size or (AUTO_CHUNK_CPU if is_cpu else AUTO_CHUNK)
    slots = scheduler.max_running_requests or default_slots(1 << 30, is_cpu and spec is not None)
    tokens = worker.max_total_tokens or (SIMULATED_TOKENS if spec is None else 0)
    kv_item, ranks_here = (
        kv_item_bytes(worker.kv_cache_dtype, ITEM_BYTES.get(dtype, 0)),
        worker.tp_size if is_cpu else 1,
    )
    return Demand(
        spec=spec,
        is_cuda=device.is_cuda,
        item_bytes=ITEM_BYTES.get(dtype, 0),
        kv_item_bytes=kv_item,
        page_size=worker.page_size,
        context_length=config.require_model().context_length,
        slots=slots,
        graph_rows=0 if worker.disable_cuda_graph else min(worker.cuda_graph_max_bs, slots),
        prefill_tokens=chunk if chunk > 0 else scheduler.max_prefill_tokens,
        kv_tokens=tokens // worker.page_size * worker.page_size,
        mem_fraction_static=worker.mem_fraction_static,
        ranks=worker.tp_size,
        windows=() if spec is None else window_pools(config, spec, kv_item * ranks_here, is_cpu, worker.tp_size),
    )


def _check(demand: Demand, device: Device) -> None:
    if demand.kv_tokens >= demand.page_size and demand.total <= device.free_bytes:
        return
    needed = demand if demand.kv_tokens else replace(demand, kv_tokens=demand.page_size)
    parts = {
        f"weights of {8 * demand.item_bytes} bits": demand.weights,
        f"a context of {demand.context_length} tokens with {demand.slots} requests": demand.tables,
        "the worker and its steps": demand.runtime + demand.steps,
        f"the states of {demand.slots} requests and {demand.checkpoints} cached prefixes": demand.states,
        f"a KV cache of {needed.kv_tokens} tokens": needed.kv,
    }
    listed = " + ".join(f"{_gib(size)} for {name}" for name, size in parts.items() if size > GIB >> 5)
    share = f", of which {demand.mem_fraction_static:g} are for weights and KV" if device.is_cuda else ""
    held = f"; held by {', '.join(device.holders[:3])}" if device.holders else ""
    raise ConfigError(
        f"memory: the launch takes {_gib(needed.total)} GiB ({listed}), {device.name} has {_gib(device.free_bytes)} "
        f"of {_gib(device.total_bytes)} GiB free{share}{held}: {remedy(demand, device)}"
    )


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"
