"""The bytes that a launch takes, as a function of the settings that decide them."""

from dataclasses import dataclass, replace

from quartet.checkpoint.spec import ModelSpec
from quartet.sizing.device import Device
from quartet.sizing.model_bytes import (
    TRITON_SCRATCH_BYTES,
    checkpoints_within,
    cpu_kv_bytes,
    cuda_kv_bytes,
    packed_head_bytes,
    page_bytes,
    rotary_bytes,
    slots_for_states,
    state_bytes,
    weight_bytes,
)
from quartet.sizing.window_pools import WindowPool, fitting_pages, pools_bytes

CUDA_RUNTIME_BYTES = 700 << 20
"""CUDA context, loaded kernels and library workspaces of a worker, as measured on an H100."""
CPU_RUNTIME_BYTES = 400 << 20
"""torch in the worker, and the other processes."""
SIMULATED_TOKEN_BYTES = 8
"""A simulated page holds an id of 64 bits a token."""
_SLOT_BYTES = 2048
"""Sampling parameters of a slot, on the device and staged."""
_ENTRY_BYTES = 4
"""A page number in a page table."""
_LISTED_PAGE_BYTES = 40
"""A free page in the scheduler's list, which is memory of the host."""
_PREFILL_ROWS = 16


@dataclass(frozen=True, slots=True)
class Demand:
    """What decides the size of a launch. `spec` is None for a simulated worker, which has no weights. `kv_tokens` is
    the pool, `slots` the requests that run at once, `graph_rows` the largest decode batch of a CUDA graph,
    `prefill_tokens` those of one prefill step. A `kv_tokens` of 0 leaves it to `sized`. `checkpoints` are of states,
    `windows` the pools beside the first. The bytes are those of one device: of one of `ranks` on a GPU, of all of them
    on the CPU."""

    spec: ModelSpec | None
    is_cuda: bool
    item_bytes: int
    kv_item_bytes: int
    page_size: int
    context_length: int
    slots: int
    graph_rows: int
    prefill_tokens: int
    kv_tokens: int
    mem_fraction_static: float
    ranks: int = 1
    checkpoints: int = 0
    windows: tuple[WindowPool, ...] = ()

    @property
    def _ranks_here(self) -> int:
        """The ranks whose memory is that of the device: each has a GPU of its own, on the CPU they share it."""
        return 1 if self.is_cuda else self.ranks

    @property
    def kv_token_bytes(self) -> int:
        """KV of one token, in layers without a pool of their own."""
        if self.spec is None:
            return SIMULATED_TOKEN_BYTES
        return page_bytes(self.spec, 1, self.kv_item_bytes, self.ranks) * self._ranks_here

    @property
    def token_bytes(self) -> float:
        """KV of one token, and on the host its share of the scheduler's list."""
        return self.kv_token_bytes + (0 if self.is_cuda else _LISTED_PAGE_BYTES / self.page_size)

    @property
    def weights(self) -> int:
        """Weights; on the CPU a tied output layer is packed apart from the embedding."""
        spec = self.spec
        if spec is None:
            return 0
        packed = 0 if self.is_cuda else packed_head_bytes(spec, self.item_bytes)
        return (weight_bytes(spec, self.item_bytes, self.ranks, self.is_cuda) + packed) * self._ranks_here

    @property
    def kv(self) -> int:
        """The KV pools and their dummy pages."""
        return int(pools_bytes(self.kv_tokens // self.page_size, self.token_bytes * self.page_size, self.windows))

    @property
    def slot_state(self) -> int:
        """What layers with linear attention keep for one slot."""
        return 0 if self.spec is None else state_bytes(self.spec, self.item_bytes)

    @property
    def states(self) -> int:
        """What they keep for all slots, for the rows that are padding, and as checkpoints."""
        return self.slot_state and (self.slots + 1 + self.checkpoints) * self.slot_state

    @property
    def tables(self) -> int:
        """What grows with the context and the slots: the table of angles, page tables, sampling parameters."""
        pages = -(-(self.context_length + 1) // self.page_size)
        rows = self.slots + 1 + (self.graph_rows + _PREFILL_ROWS if self.is_cuda else 0)
        angles = 8 * self.context_length if self.spec is None else rotary_bytes(self.spec, self.context_length)
        entries = rows * pages * (1 + len(self.windows))
        return (angles + entries * _ENTRY_BYTES + self.slots * _SLOT_BYTES) * self._ranks_here

    @property
    def runtime(self) -> int:
        """What a worker takes before it has a model."""
        return CUDA_RUNTIME_BYTES if self.is_cuda else CPU_RUNTIME_BYTES * self.ranks

    @property
    def steps(self) -> int:
        """Intermediate results of the largest step, and on a GPU the buffers of its graphs."""
        spec = self.spec
        if spec is None:
            return 0
        qkv = max(kind.heads.size for kind in spec.kinds)
        # Hidden states and residual, q, k and v with the output of attention, and both halves of the MLP.
        split = 2 * qkv + max(map(spec.step_numbers, range(spec.num_layers)))
        widths = 3 * spec.hidden_size + split // self.ranks
        logits = (self.graph_rows + _PREFILL_ROWS if self.is_cuda else self.slots) * spec.vocab_size
        numbers = self.prefill_tokens * widths + logits
        return numbers * self.item_bytes * self._ranks_here + (TRITON_SCRATCH_BYTES if self.is_cuda else 0)

    @property
    def before_kv(self) -> int:
        """What is in use when the KV pool is sized."""
        return self.weights + self.tables + self.runtime

    @property
    def total(self) -> int:
        """Everything."""
        return self.before_kv + self.steps + self.states + self.kv


def sized(demand: Demand, device: Device) -> Demand:
    """Return the demand with the KV pool that the worker will make of what is left, unless its size is given."""
    if demand.kv_tokens:
        return demand
    page_bytes = int(demand.token_bytes * demand.page_size)
    pages = max(0, fitting_pages(pool_bytes(demand, device) - demand.states, page_bytes, demand.windows))
    return replace(demand, kv_tokens=pages * demand.page_size)


def with_fitting_slots(demand: Demand, device: Device) -> Demand:
    """Return the demand with the slots that the worker chooses by itself."""
    return replace(demand, slots=slots_for_states(demand.slots, pool_bytes(demand, device), demand.slot_state))


def with_checkpoints(demand: Demand, device: Device) -> Demand:
    """Return the demand with the checkpoints that the worker makes of a share of its pool; the slots are known."""
    pool = demand.kv_tokens * demand.kv_token_bytes if demand.kv_tokens else pool_bytes(demand, device) - demand.states
    return replace(demand, checkpoints=checkpoints_within(pool, demand.slot_state))


def pool_bytes(demand: Demand, device: Device) -> int:
    """Return what is left for the KV pool and the states of slots."""
    left = max(0, device.free_bytes - demand.before_kv)
    if device.is_cuda:
        in_use = device.total_bytes - device.free_bytes + demand.before_kv
        return min(left, cuda_kv_bytes(device.total_bytes, in_use, demand.mem_fraction_static))
    return cpu_kv_bytes(left)
