"""Bytes of a model's parts, and the share of memory that is for KV: one definition, for the plan and for the worker."""

import functools
import math

from quartet.checkpoint.ranks import is_split
from quartet.checkpoint.spec import ModelSpec, expected_shapes
from quartet.wire.config import DEFAULT_SLOTS, DEFAULT_SLOTS_CPU

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TRITON_SCRATCH_BYTES = 256 << 20
"""Most scratch of decode attention: only rows that share long prefixes could need more, whose contexts then add up to
many times the cache."""
SIMULATED_TOKENS = 1 << 18
"""KV capacity of a simulated worker without --max-total-tokens."""
CPU_KV_SHARE = 4
CPU_KV_LIMIT_BYTES = 2 << 30
CHECKPOINTS_SHARE = 10
"""Of the memory of the KV pool, one part in so many is for checkpoints of states."""
STATES_SHARE = 3
"""Of the memory for KV, one part in so many at most is for the states of slots, unless --max-running-requests says
otherwise."""


@functools.lru_cache(maxsize=8)
def weight_bytes(spec: ModelSpec, item_bytes: int, num_shards: int = 1, is_cuda: bool = False) -> int:
    """Return the bytes of one rank's weights, those that are not quantised with numbers of `item_bytes`."""
    method, total = spec.quantization, 0
    for name, shape in expected_shapes(spec).items():
        if method is not None and method.covers(name, shape):
            size = method.held_bytes(name, shape, item_bytes, is_cuda)
        else:
            size = math.prod(shape) * item_bytes
        total += size // num_shards if is_split(name) else size
    return total


def packed_head_bytes(spec: ModelSpec, item_bytes: int) -> int:
    """Return the bytes of a tied output layer, which a CPU packs apart from the embedding unless it keeps its codes."""
    method, name, shape = spec.quantization, "model.embed_tokens.weight", (spec.vocab_size, spec.hidden_size)
    has_codes = method is not None and method.covers(name, shape) and method.is_kept(name, is_cuda=False)
    return math.prod(shape) * item_bytes if spec.is_tied and not has_codes else 0


def kv_item_bytes(kv_cache_dtype: str, item_bytes: int) -> int:
    """Return the bytes of a number in the KV cache by --kv-cache-dtype, where others have `item_bytes`."""
    return item_bytes if kv_cache_dtype == "auto" else 1


def page_bytes(spec: ModelSpec, page_size: int, item_bytes: int, num_shards: int = 1, group: int = 0) -> int:
    """Return the bytes of a KV page of `page_size` tokens in one rank's layers of a page group (spec.page_groups)."""
    own = sum(kind.heads.kv_size for kind in spec.layers_of(group))
    return 2 * own // num_shards * page_size * item_bytes


def state_bytes(spec: ModelSpec, item_bytes: int) -> int:
    """Return the bytes that the layers with linear attention keep for a slot."""
    return 0 if spec.linear is None else len(spec.linear_layers) * spec.linear.state_bytes(item_bytes)


def rotary_bytes(spec: ModelSpec, context_length: int) -> int:
    """Return the most bytes of the float32 tables of angles, one for each kind of rotation: each is made of parts that
    together are twice as large."""
    widths = [head_dim for rope, head_dim in {(kind.rope, kind.heads.head_dim) for kind in spec.kinds} if rope]
    return (sum(widths) + 2 * max(widths, default=0)) * (context_length + 1) * 4


def cuda_kv_bytes(total_bytes: int, in_use_bytes: int, mem_fraction_static: float) -> int:
    """Return the bytes for KV of a GPU on which the weights are in use already."""
    return int(total_bytes * mem_fraction_static) - in_use_bytes


def cpu_kv_bytes(available_bytes: int) -> int:
    """Return the bytes for KV of a machine that has so many left beside the weights."""
    return min(available_bytes // CPU_KV_SHARE, CPU_KV_LIMIT_BYTES)


def slots_for_states(wanted: int, budget_bytes: int, bytes_a_slot: int) -> int:
    """Return how many of `wanted` slots run at once if each keeps a state: a share of what is left beside the weights
    holds those of all slots and of one more."""
    if not bytes_a_slot:
        return wanted
    return max(1, min(wanted, budget_bytes // STATES_SHARE // bytes_a_slot - 1))


def checkpoints_within(pool_bytes: int, bytes_a_state: int) -> int:
    """Return how many checkpoints of states the share of a KV pool holds."""
    return max(0, pool_bytes) // CHECKPOINTS_SHARE // bytes_a_state if bytes_a_state else 0


def default_slots(capacity_tokens: int, is_cpu: bool) -> int:
    """Return how many requests run at once unless --max-running-requests says so."""
    return max(1, min(capacity_tokens // 2, DEFAULT_SLOTS_CPU if is_cpu else DEFAULT_SLOTS))
